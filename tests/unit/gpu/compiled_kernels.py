"""Compiles our Triton kernels for a GPU of the Hopper generation, without one.

    python -m tests.unit.gpu.compiled_kernels

Prints for each case its name, the bytes of shared memory and the bytes of a thread's stack.
"""

from __future__ import annotations

import functools
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

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu import triton_attention_kernels as triton_kernels
from furiosa_llm.modeling.gpu import triton_layer_kernels, triton_rounding
from furiosa_llm.modeling.gpu.attention_triton import TritonAttention
from furiosa_llm.modeling.gpu.layer_triton import TritonLayerKernels
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.step_layout import make_layout

_HOPPER = GPUTarget("cuda", 90, 32)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
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
            given = dict(zip(names, args, strict=False))
            specialized = {
                parameter.name: given[parameter.name]
                for parameter in self.kernel.params
                if parameter.name in given and not parameter.do_not_specialize
            }
            constants |= {
                name: 1 for name, value in specialized.items() if type(value) is int and value == 1
            }
            signature = {name: _type_of(value) for name, value in given.items()}
            source = ASTSource(
                self.kernel,
                signature | dict.fromkeys(constants, "constexpr"),
                constexprs={places[name]: value for name, value in constants.items()},
                attrs={
                    places[name]: [["tt.divisibility", 16]]
                    for name, value in specialized.items()
                    if isinstance(value, torch.Tensor)
                    or (isinstance(value, int) and value % 16 == 0)
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

    def report(self, case: str) -> None:
        sys.stdout.write(f"{case}\t{self.compiled.metadata.shared}\t{self.stack_bytes()}\n")


def _type_of(value: Any) -> str:
    return _POINTERS[value.dtype] if isinstance(value, torch.Tensor) else _NUMBERS[type(value)]


def compile_attention() -> None:
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
                attend.report(f"{dtype}, {head_size}, {name}")


def compile_layer_kernels() -> None:
    compilers = {}
    for name in ("normalize", "gate", "rotate", "store"):
        compilers[name] = _Compiler(getattr(triton_layer_kernels, name))
        setattr(triton_layer_kernels, name, compilers[name])
    kernels = TritonLayerKernels()
    for dtype in (torch.bfloat16, torch.float32):
        make = functools.partial(torch.empty, dtype=dtype)
        for size in (128, 4096, 16384):
            rows = make(2, 3, 4, size)[:, :, :2]
            kernels.normalize(rows, make(size), 1e-6, adds_one=True, rounds_first=True)
            compilers["normalize"].report(f"{dtype}, norm of {size}")
        for kind in ("silu", "gelu", "gelu_tanh"):
            kernels.gate(make(2, 2 * 8192), kind)
            compilers["gate"].report(f"{dtype}, {kind}")
        for head_size, rotary_size in ((64, 64), (128, 128), (256, 64), (80, 32)):
            query, key = make(1, 2, 32, head_size), make(1, 2, 8, head_size)
            cos = make(1, 2, rotary_size)
            kernels.rotate(query.transpose(1, 2), key.transpose(1, 2), cos, cos, halves=False)
            compilers["rotate"].report(f"{dtype}, rotation of {rotary_size} of {head_size}")
        for head_size in (128, 80):
            new = make(2, 8, head_size)
            cache = TokenCache(keys=make(1, 32, 8, head_size), values=make(1, 32, 8, head_size))
            kernels.store(cache, torch.zeros(2, dtype=torch.int64), new, new)
            compilers["store"].report(f"{dtype}, storing heads of {head_size}")


def compile_rounding() -> None:
    compiler = triton_rounding.round_rows = _Compiler(triton_rounding.round_rows)
    for dtype in (torch.bfloat16, torch.float32):
        rows = torch.empty(2, 4096, dtype=dtype)
        triton_rounding.round_to_fp8(rows, largest=448.0, smallest_scale=1e-12)
        compiler.report(f"{dtype}, rounding to FP8")


def main() -> None:
    compile_attention()
    compile_layer_kernels()
    compile_rounding()


if __name__ == "__main__":
    main()
