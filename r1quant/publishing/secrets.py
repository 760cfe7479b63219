"""Strings that nobody means to publish: keys, tokens, names of home directories. Said by kind and line, never shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

KINDS: Mapping[str, re.Pattern[bytes]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
        "an API key (sk-...)": rb"\bsk-(?:[a-z]+-)*[A-Za-z0-9_]{20,}",
        "an AWS access key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
        "an AWS secret key": rb"(?i)aws_secret_access_key\W{1,5}[A-Za-z0-9/+=]{30,}",
        "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
        "a Google API key": rb"\bAIza[0-9A-Za-z_-]{35}",
        "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{20,}",
        "a private key": rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY",
        "a bearer token": rb"(?i)\bbearer\s+[A-Za-z0-9._~+/-]{24,}",
        "a password in a URL": rb"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>{}]{1,100}:[^\s/@\"'<>{}]{3,200}@",
        "a token in a URL": rb"(?i)https?://[^\s\"'<>]{1,300}[?&](?:access_token|token|api_?key|sig|signature"
        rb"|x-amz-signature)=[A-Za-z0-9%._~+/-]{8,}",
        "the path of a home directory": rb"(?<![\w.-])(?:/home/|/Users/)[A-Za-z0-9._-]+(?=[/\"'\s\\]|$)"
        rb"|(?<![\w.-])/root/"
        rb"|\b[A-Za-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)[A-Za-z0-9._-]+",
    }.items()
}


def found(content: bytes) -> list[tuple[str, int]]:
    """What the content seems to hold and the number of the line, each kind once."""
    hits = ((name, pattern.search(content)) for name, pattern in KINDS.items())
    return [(name, content.count(b"\n", 0, hit.start()) + 1) for name, hit in hits if hit]
