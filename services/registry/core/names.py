"""The form of names, digests and version numbers."""

from __future__ import annotations

import re

from services.common.errors import invalid

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What a signed 64-bit column holds.
MOST_VERSION = (1 << 63) - 1


def name(field: str, text: str) -> str:
    """`text` where it is a name; else a Refusal about `field`."""
    if NAME.fullmatch(text) is None:
        raise invalid(
            field, f"{text[:80]!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-' and begin and end with a letter or digit"
        )
    return text


def digest(field: str, text: str) -> str:
    """`text` where it is "sha256:" and 64 lower-case hexadecimal digits; else a Refusal about `field`."""
    if DIGEST.fullmatch(text) is None:
        raise invalid(field, f'{text[:80]!r} must be "sha256:" and 64 lower-case hexadecimal digits')
    return text


def version(field: str, number: int) -> int:
    """`number` where it can number a version, from 1; else a Refusal about `field`."""
    if not 1 <= number <= MOST_VERSION:
        raise invalid(field, f"{number} must be 1 to {MOST_VERSION}")
    return number
