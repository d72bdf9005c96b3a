"""Compiles the Triton kernels to machine code of a CUDA device, for which no device is needed.

Run by ``test_triton_kernels.py`` in a process of its own: the interpreter runs Python, and would not see a type error.
"""

import itertools

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from surgery.ops.triton_kernels import kernels

TYPES = {"fp32": tl.float32, "bf16": tl.float32, "fp16": tl.float32, "fp64": tl.float64}
LAYOUTS = {"nhwc": "channel", "nchw": "pixel"}


def compiled(kernel, types, constants):
    kernel = getattr(kernel, "fn", kernel) if isinstance(kernel, triton.runtime.Autotuner) else kernel
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TYPES)
def test_kernels_compile(kind, layout):
    exact = "*fp64" if kind == "fp64" else "*fp32"
    pointers = dict.fromkeys(("a", "b", "x", "y", "grad", "dx"), f"*{kind}") | {"index": "*u8", "tau": "fp32"}
    pointers |= {"total": exact, "base": exact, "p": exact}
    one = LAYOUTS[layout]  # the stride that is 1, which Triton compiles in
    tile = {"PIXELS": 16, "CHANNELS": 64, "SUM": TYPES[kind]}
    for product in (False, True):
        assert compiled(kernels.sum_kernel, pointers, {f"a_{one}": 1, "chunk": 1024, "PRODUCT": product, **tile})
    strides = {f"x_{one}": 1, f"y_{one}": 1}
    for strided, single in itertools.product([False, True], [0, 1, 2]):
        chosen = {"STRIDED": strided, "SINGLE": single, **strides, **tile}
        assert compiled(kernels.spread_kernel, pointers, chosen)
    for neighbours, longest, weighted in [(4, 4, False), (2, 2, False), (0, 3, True), (0, 1, False), (0, 300, False)]:
        variants = {"MIN": weighted, "INDEX": not weighted, "WEIGHTED": weighted, "SINGLE": 0, "STRIDED": False}
        sizes = {"NEIGHBOURS": neighbours if layout == "nhwc" else 0, "LONGEST": longest}
        assert compiled(kernels.fuse_kernel, pointers, {**variants, **sizes, **strides, **tile})
