"""Random draws that depend on a stream and a position alone, never on the batch."""

from __future__ import annotations

from hashlib import blake2b

_MASK = 2**64 - 1


def stream_seed(*parts: object) -> int:
    """Returns a 64-bit stream for the given parts: a seed, the row, which of its n answers."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(stream: int, position: int) -> float:
    """Returns the draw of a stream at a position, in (0, 1] (SplitMix64, Steele et al. 2014)."""
    z = (stream + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    z ^= z >> 31
    return float((z >> 11) + 1) / float(2**53)
