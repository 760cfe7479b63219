"""How much the engine holds or does at a time. What plans predict and what runs do follow from the same numbers."""

from __future__ import annotations

KEPT_LIMIT = 1 << 30  # bytes; stage inputs up to this size are kept, larger ones are computed again
BOUNDARY_BYTES = 8_000_000_000  # of the sensitivity pass's activations that are on the disk at once
BLOCK = 1024  # outputs whose covariance is kept; that between blocks is left out
BACKWARD_TOKENS = 2048  # at a time; a layer keeps all its intermediate results for the way back
HEAD_TOKENS = 256  # at a time, at the head
TABLE_WEIGHTS = 1 << 25  # of an embedding or a head, rounded at once
