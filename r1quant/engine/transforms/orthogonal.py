"""Orthogonal matrices that are quick to multiply by: random signs, then a Kronecker product of small factors.

A product of Hadamard matrices spreads every channel evenly over all (QuIP#, Tseng et al. 2024, arXiv 2402.04396). Sizes
that have no such product get a random orthogonal factor. All follows from the size and a seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

LARGEST = 64  # Hadamard factor: two of them reach 4096

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rotation:
    """Q = diag(signs) (F1 x F2 x ...), orthogonal. signs float32 [n]; factors float32 [m, m], product of m is n."""

    signs: torch.Tensor
    factors: tuple[torch.Tensor, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x Q for float32 x [..., n], or of each of h neighbouring blocks if x is [..., h n]."""
        rotated = (x.reshape(-1, len(self.signs)) * self.signs).reshape(-1, *(len(factor) for factor in self.factors))
        for axis, factor in enumerate(self.factors, 1):
            rotated = torch.tensordot(rotated, factor, dims=([axis], [0])).movedim(-1, axis)
        return rotated.reshape(x.shape)


def rotation(size: int, *seed: int) -> Rotation:
    """The rotation of a space with so many channels."""
    draw = np.random.default_rng(seed)
    signs = draw.integers(0, 2, size).astype(np.float32) * 2 - 1
    factors = [factor / math.sqrt(len(factor)) for factor in _hadamard_factors(size)]
    left = size // math.prod(map(len, factors))
    if left > 1:
        factors.append(random_orthogonal(left, draw))
    return Rotation(torch.from_numpy(signs), tuple(torch.from_numpy(f.astype(np.float32)) for f in factors))


def random_orthogonal(size: int, draw: np.random.Generator) -> Matrix:
    """Uniform over all orthogonal matrices: QR of a Gaussian one, signs made unique."""
    q, r = np.linalg.qr(draw.standard_normal((size, size)))
    unique: Matrix = q * np.sign(np.diag(r))
    return unique


def _hadamard_factors(size: int) -> list[Matrix]:
    """Hadamard matrices whose sizes multiply to size, or to its part that is a power of two."""
    power = size & -size
    odd = size // power
    special = paley(4 * odd) if odd > 1 and power >= 4 else None
    factors = [] if special is None else [special]
    left = power if special is None else power // 4
    while left > 1:
        factors.append(sylvester(min(left, LARGEST)))
        left //= len(factors[-1])
    return factors


def sylvester(size: int) -> Matrix:
    """The Hadamard matrix of a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(matrix, np.array([[1.0, 1.0], [1.0, -1.0]]))
    return matrix


def paley(size: int) -> Matrix | None:
    """A Hadamard matrix of size q + 1 with a prime q = 3 mod 4, or 2 (q + 1) with q = 1 mod 4 (Paley 1933)."""
    if _prime(size - 1) and size % 4 == 0:
        skew = _bordered(size - 1, -1)
        return skew + np.eye(size)
    if size % 4 == 0 and _prime(size // 2 - 1) and (size // 2 - 1) % 4 == 1:
        symmetric = _bordered(size // 2 - 1, 1)
        on, off = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.kron(symmetric, on) + np.kron(np.eye(len(symmetric)), off)
    return None


def _bordered(q: int, corner: int) -> Matrix:
    """The matrix of quadratic residues modulo q, with a border of 1 above and of `corner` on the left."""
    residues = {i * i % q for i in range(1, q)}
    character = np.array([0.0] + [1.0 if i in residues else -1.0 for i in range(1, q)])
    matrix = np.zeros((q + 1, q + 1))
    matrix[0, 1:], matrix[1:, 0] = 1, corner
    index = np.arange(q)
    matrix[1:, 1:] = character[(index[:, None] - index[None, :]) % q]
    return matrix


def _prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
