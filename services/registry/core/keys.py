"""API keys: their text, their public id and what is kept of them. Chance is an argument: bytes from a secure source."""

from __future__ import annotations

import hashlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 32 characters of 62 carry 190 bits.
TEXT_CHARACTERS = 32
ID_CHARACTERS = 12
CHANCE_BYTES = 48


def base62(number: int, characters: int) -> str:
    """`number` modulo 62**characters in exactly that many characters."""
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


def text_and_id(chance: bytes) -> tuple[str, str]:
    """A key's text ("ap_…") and its public id ("k_…") from CHANCE_BYTES of randomness.

    The two share no randomness, so that an id tells nothing about its text. Raises ValueError for too little chance.
    """
    if len(chance) < CHANCE_BYTES:
        raise ValueError(f"a key needs {CHANCE_BYTES} random bytes; got {len(chance)}")
    # 8 bytes more than the characters carry, so that the remainder's bias is below 2**-60.
    text = base62(int.from_bytes(chance[:32], "big"), TEXT_CHARACTERS)
    public = base62(int.from_bytes(chance[32:48], "big"), ID_CHARACTERS)
    return f"ap_{text}", f"k_{public}"


def sha256(text: str) -> bytes:
    """What is kept of a key: 32 bytes. The text has 190 random bits, so no salt and no slow hash are needed."""
    return hashlib.sha256(text.encode()).digest()
