"""Numbers of 16 bits that are the upper half of a float32 (bfloat16), for kernels."""

from __future__ import annotations

from llvmlite import ir

BFLOAT16_BITS = 16
UPPER_BITS = 0xFFFF0000  # of a float32, or of a pair of them in 32 bits


class BFloat16(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """The type of LLVM, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat16)

    def __hash__(self) -> int:
        return hash(BFloat16)
