"""Compiles the Triton kernels to machine code of a CUDA device, for which no device is needed.

Run by ``test_triton_kernels.py`` in a process of its own: the interpreter runs Python, and would not see a type error.
"""

import itertools
import re

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from surgery.methods.pix.ops.reference import SiteSpec
from surgery.methods.pix.ops.triton_kernels import fusing, planes, pooling, runs, spreading
from surgery.methods.pix.ops.triton_kernels.site import ACCUMULATORS, decision, site_sizes

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
FORMS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SLOW = pytest.mark.slow  # the suite compiles a kernel of each file
EVERY_KIND = [kind if kind == "bf16" else pytest.param(kind, marks=SLOW) for kind in KINDS]
MULTIPLES = "channels", "subsets", "plane", "pixels"


def compiled(kernel, kind, arguments):
    """PTX for a site; arguments that are None or constexpr are compiled in, other numbers are told by 16 or not."""
    exact = "fp64" if kind == "fp64" else "fp32"
    pointers = dict.fromkeys(("x", "y", "other", "grad", "dx", "weight", "bias", "predicted", "p"), kind)
    pointers |= {"index": "u8"} | dict.fromkeys(("context", "base", "sums", "out"), exact)
    if kernel in (pooling._sum_tiles, pooling._sum_parts):
        pointers["rounded"] = kind
    signature, constants, hints = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        value = arguments.get(name, 7)
        if parameter.is_constexpr or value is None or (value == 1 and not parameter.annotation):
            signature[name], constants[name] = "constexpr", value
        elif name in pointers:
            signature[name] = "*" + pointers[name]
            hints[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = parameter.annotation or "i32"
            if name in MULTIPLES and value % 16 == 0:
                hints[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


def decided(kind, operator="max+avg", fusion="threshold"):
    chosen = decision(SiteSpec(fusion=fusion, operator=operator), KINDS[kind], KINDS[kind])
    return {**chosen.arguments, "MINIMUM": chosen.minimum}


def widest(ptx, what):
    """Bits of the widest access to global memory."""
    accesses = re.findall(rf"{what}\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    return max(int(count or 1) * int(bits) for count, bits in accesses)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize(
    ("size", "grouping", "stride"),
    [
        ((8, 256, 56, 56), "contiguous", (1, 1)),
        pytest.param((8, 256, 56, 56), "strided", (1, 1), marks=SLOW),
        pytest.param((8, 250, 56, 56), "contiguous", (2, 2), marks=SLOW),
        pytest.param((8, 64 * 300, 7, 7), "contiguous", (1, 1), marks=SLOW),
    ],
    ids=str,
)
def test_subset_kernels_compile(size, grouping, stride, kind, form):
    sizes = site_sizes(size, 64, SiteSpec(stride=stride, grouping=grouping), FORMS[form])
    module = runs if sizes.has_runs else planes
    common = {**sizes.arguments, **sizes.run, "p": 7}
    fuse, spread = (owner._RUNS if sizes.has_runs else owner._PLANES for owner in (fusing, spreading))
    fuse_kernel, spread_kernel = (
        (module.fuse_runs, module.spread_runs)
        if module is runs
        else (
            module.fuse_planes,
            module.spread_planes,
        )
    )
    chosen = {**common, "ACTIVATION": "sigmoid", "REVERSED": True, **decided(kind)}
    for indexed in (None, 7):
        ptx = compiled(fuse_kernel, kind, {**chosen, "index": indexed, **fuse.default.kwargs})
        if size[1:] == (256, 56, 56):
            assert widest(ptx, "ld") == 128
            assert widest(ptx, "st") >= 64
    ptx = compiled(spread_kernel, kind, {**chosen, **spread.default.kwargs})
    if size[1:] == (256, 56, 56):
        assert widest(ptx, "st") == 128
    others = [("min", "threshold"), ("avg", "threshold"), ("max+avg", "weighted")]
    variants = others if size[1] == 250 and kind != "fp64" else []
    for operator, fusion in variants:
        variant = {**common, "ACTIVATION": "none", "REVERSED": False, **decided(kind, operator, fusion), "p": None}
        compiled(fuse_kernel, kind, {**variant, "index": None, **fuse.default.kwargs})
        if fusion == "threshold":
            compiled(spread_kernel, kind, {**variant, "p": 7, **spread.default.kwargs})


@SLOW
@pytest.mark.parametrize("candidates", [fusing._PLANES, fusing._RUNS, spreading._PLANES, spreading._RUNS])
def test_every_candidate_compiles(candidates):
    is_run = "KB" in candidates.kernel.arg_names
    sizes = site_sizes((8, 256, 28, 28), 64, SiteSpec(), FORMS["nhwc" if is_run else "nchw"])
    for config in candidates.tuned.configs:
        chosen = {**sizes.arguments, **sizes.run, **decided("bf16"), "ACTIVATION": "tanh", "REVERSED": True}
        assert compiled(candidates.kernel, "bf16", {**chosen, **config.kwargs})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_sums_and_small_sites_compile(kind, form):
    last = form == "nhwc"
    exact = ACCUMULATORS[torch.float64 if kind == "fp64" else torch.float32]
    for other, rounded in [(None, 7), (7, None)]:
        across, along, *_ = pooling.cuts(pooling.Maps(8, 256, 784, last))
        size = {"channels": 256, "pixels": 784, "CHANNELS_LAST": last, "ALIGN": 16, "WIDE": False, "ACC": exact}
        arguments = {**size, "BLOCK_C": across, "BLOCK_P": along, "other": other, "rounded": rounded}
        assert widest(compiled(pooling._sum_tiles, kind, arguments), "ld") == 128
        assert compiled(pooling._sum_parts, kind, {"BLOCK": 128, "ACC": exact, "rounded": rounded})
    for bias, index in itertools.product((None, 7), repeat=2):
        sizes = site_sizes((8, 64, 8, 8), 16, SiteSpec(), FORMS[form])
        blocks = {"BLOCK_C": 64, "BLOCK_O": 16, "BLOCK_Q": 64, "BLOCK_P": 64, "ACTIVATION": "sigmoid"}
        assert compiled(
            planes.fuse_small, kind, {**sizes.arguments, **decided(kind), **blocks, "bias": bias, "index": index}
        )
