"""Compiles what `TritonAttention` starts for a GPU of the Hopper generation, without one.

    python -m tests.unit.gpu.compiled_kernels

Prints for each case its name, the bytes of shared memory and the bytes of a thread's stack.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from furiosa_llm.modeling import triton_kernels
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.attention_triton import TritonAttention
from furiosa_llm.modeling.step_layout import make_layout
from furiosa_llm.modeling.token_cache import TokenCache

_HOPPER = GPUTarget("cuda", 90, 32)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
}
_NUMBERS = {int: "i32", float: "fp32"}
_CASES = {
    "decodes": [(70, 71)] * 512,
    "few long decodes": [(4000, 4001)],
    "prompts": [(0, 40), (20, 60)],
}


class _Compiler:
    """Stands in for a kernel: compiles it for what it is called with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def compile_for(*args: Any, num_warps: int = 4, **constants: Any) -> None:
            names = self.kernel.arg_names
            places = {name: (names.index(name),) for name in names}
            signature = dict(zip(names, map(_type_of, args), strict=False))
            source = ASTSource(
                self.kernel,
                signature | dict.fromkeys(constants, "constexpr"),
                constexprs={places[name]: value for name, value in constants.items()},
                attrs={
                    places[name]: [["tt.divisibility", 16]]
                    for name, type_ in signature.items()
                    if type_.startswith("*")
                },
            )
            self.compiled = triton.compile(source, target=_HOPPER, options={"num_warps": num_warps})

        return compile_for

    def stack_bytes(self) -> int:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [_TOOLS / "cuobjdump", "--dump-resource-usage", file.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        found = re.search(r"STACK:(\d+)", usage)
        assert found is not None, usage
        return int(found[1])


def _type_of(value: Any) -> str:
    return _POINTERS[value.dtype] if isinstance(value, torch.Tensor) else _NUMBERS[type(value)]


def main() -> None:
    attend = triton_kernels.attend = _Compiler(triton_kernels.attend)
    triton_kernels.combine = _Compiler(triton_kernels.combine)
    for dtype in (torch.bfloat16, torch.float32):
        for head_size in (64, 128, 256):
            for name, spans in _CASES.items():
                layout = make_layout(spans, block_size=32, device=torch.device("cpu"))
                cache = TokenCache(
                    keys=torch.empty(1, 32, 2, head_size, dtype=dtype),
                    values=torch.empty(1, 32, 2, head_size, dtype=dtype),
                )
                query = torch.empty(len(layout.slot_mapping), 8, head_size, dtype=dtype)
                TritonAttention()(query, cache, layout, AttentionParams(scaling=0.1))
                shared = attend.compiled.metadata.shared
                line = f"{dtype}, {head_size}, {name}\t{shared}\t{attend.stack_bytes()}"
                sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
