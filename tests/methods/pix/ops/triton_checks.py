"""Checks of the Triton kernels: on a CUDA device where there is one, else in Triton's interpreter.

Run by ``test_triton_kernels.py`` in a process of its own, as the interpreter is chosen when Triton is imported.
"""

import dataclasses
import itertools

import pytest
import torch

from surgery.methods.pix import ops
from surgery.methods.pix.ops import gradients, reference, triton_kernels
from surgery.methods.pix.ops.gradients import ForwardPass
from surgery.methods.pix.ops.reference import SiteSpec
from surgery.methods.pix.ops.triton_kernels import fusing, pooling, site
from tests.methods.pix.ops.loop_pix import loop_pix

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_CUDA = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FORMS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DEFAULT = SiteSpec()
SHAPES = [(2, 16, 4, 3, 5), (1, 6, 3, 2, 2), (1, 7, 3, 5, 1), (1, 70, 70, 2, 2), (2, 12, 2, 1, 1), (1, 300, 2, 2, 2)]
LARGE = [(3, 256, 64, 40, 40), (2, 512, 100, 7, 7), (1, 2048, 512, 7, 7), (5, 64, 64, 56, 56)]
if DEVICE == "cuda":
    SHAPES += LARGE


@pytest.fixture(params=["tiled", "small"] if DEVICE == "cuda" else ["tiled"], autouse=True)
def path(request, monkeypatch):
    """Sites in one launch where they are small, or all in several, here with so small tiles that maps are cut."""
    if request.param == "tiled":
        monkeypatch.setattr(fusing, "SMALL", 0)
    if DEVICE == "cpu":
        monkeypatch.setattr(pooling, "LANES", (8, 8))
        monkeypatch.setattr(pooling, "TILE", 32)
    return request.param


def tensors(shape, dtype, form):
    n, c, out, h, w = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    weight = (torch.randn(out, c, generator=generator, dtype=torch.float64) / c**0.5).to(DEVICE, dtype)
    bias = torch.randn(out, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    return x.contiguous(memory_format=FORMS[form]), weight, bias


def check(x, weight, bias, spec=DEFAULT):
    """Forward, index and backward against float64; max or mean is decided by the kernel's own rounded p."""
    tolerance = {"rtol": TOLERANCE[x.dtype], "atol": TOLERANCE[x.dtype], "equal_nan": True}
    with_index = spec.fusion == "threshold" and x.shape[1] <= 256 * weight.shape[0]
    y, p, context, index = triton_kernels.pix(x, weight, bias, spec, with_index)
    wide = [None if t is None else t.double() for t in (context, weight, bias)]
    torch.testing.assert_close(context.double(), x.double().mean((2, 3)), rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(p.double(), reference.predict(*wide, spec.activation), **tolerance)
    torch.testing.assert_close(y.double(), reference.fuse(x.double(), p.double(), spec), **tolerance)
    assert y.dtype == x.dtype
    assert y.stride() == y.contiguous(memory_format=reference.layout(x)).stride()
    if not with_index:
        return
    groups, _ = reference.split_subsets(reference.strided(x, spec.stride), len(weight), spec.grouping)
    torch.testing.assert_close(index.long(), reference.subset_extreme(groups, spec.operator)[1])
    if torch.isfinite(y).all():
        check_backward(ForwardPass(y, p, index, weight, list(x.shape[2:])), spec)


def check_backward(forward, spec):
    grads = torch.randn_like(forward.y), torch.randn_like(forward.p)
    exact = {name: getattr(forward, name).double() for name in ("y", "p", "weight")}
    computed = triton_kernels.pix_backward(*grads, forward, spec)
    expected = gradients.site_backward(*(grad.double() for grad in grads), dataclasses.replace(forward, **exact), spec)
    tolerance = 4 * TOLERANCE[forward.y.dtype]
    for mine, theirs in zip(computed, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_strides_and_groupings(shape, form):
    for dtype in TOLERANCE if DEVICE == "cuda" else [torch.float32]:
        for grouping, stride in itertools.product(reference.GROUPINGS, [(1, 1), (2, 3)]):
            check(*tensors(shape, dtype, form), SiteSpec(stride=stride, grouping=grouping))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE if DEVICE == "cuda" else [torch.float32, torch.bfloat16], ids=str)
def test_small_sites_in_one_launch(dtype, form, monkeypatch):
    monkeypatch.setattr(fusing, "SMALL", 8192)
    monkeypatch.setattr(pooling, "means", None)  # it takes no part
    for shape, stride in itertools.product([*SHAPES[:3], SHAPES[4]], [(1, 1), (2, 1)]):
        for grouping in reference.GROUPINGS:
            spec = SiteSpec(activation="tanh", stride=stride, grouping=grouping)
            check(*tensors(shape, dtype, form), spec)
        x, weight, _ = tensors(shape, dtype, form)
        check(x, weight, None, SiteSpec(fusion="weighted", stride=stride))
        check(x, weight, None, SiteSpec(operator="min", stride=stride))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grouping", reference.GROUPINGS)
@pytest.mark.parametrize("shape", [(2, 12, 3, 3, 4), (1, 7, 3, 5, 3), (1, 5, 5, 2, 2), (2, 9, 2, 1, 1)], ids=str)
def test_equals_the_loops(shape, grouping, form):
    x, weight, bias = tensors(shape, torch.float64, form)
    for fusion, operator, stride in [
        ("threshold", "max+avg", (1, 1)),
        ("weighted", "max+avg", (2, 1)),
        ("threshold", "min", (2, 2)),
    ]:
        spec = SiteSpec(fusion=fusion, operator=operator, stride=stride, grouping=grouping)
        y = triton_kernels.pix(x, weight, bias, spec, with_index=False)[0]
        expected = loop_pix(x.cpu(), weight[:, :, None, None].cpu(), bias.cpu(), **dataclasses.asdict(spec))
        torch.testing.assert_close(y.cpu(), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grouping", reference.GROUPINGS)
def test_index_is_of_the_first_nan_or_the_first_of_equals(grouping, form):
    for shape in [(2, 12, 3, 3, 4), (1, 11, 3, 2, 3), (1, 80, 2, 2, 2)]:
        x, weight, bias = tensors(shape, torch.float32, form)
        x = x.round()  # many ties
        x.permute(0, 2, 3, 1)[torch.rand(shape[0], *shape[3:], shape[1]) > 0.8] = float("nan")
        x.permute(0, 2, 3, 1)[torch.rand(shape[0], *shape[3:], shape[1]) > 0.9] = float("-inf")
        for operator in ("max+avg", "min"):
            check(x, torch.zeros_like(weight), bias, SiteSpec(operator=operator, grouping=grouping))


@pytest.mark.parametrize("form", FORMS)
def test_offsets_of_64_bits_give_the_same(form, monkeypatch):
    monkeypatch.setattr(site, "MARGIN", 2**31)  # as if every image were that large
    site.site_sizes.cache_clear()
    for grouping in reference.GROUPINGS:
        check(*tensors(SHAPES[0], torch.float32, form), SiteSpec(stride=(2, 1), grouping=grouping))
        check(*tensors(SHAPES[2], torch.float32, form), SiteSpec(grouping=grouping))
    site.site_sizes.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_weight_in_another_dtype_than_x(form):
    for x_dtype, weight_dtype in [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]:
        x = tensors(SHAPES[0], x_dtype, form)[0]
        _, weight, bias = tensors(SHAPES[0], weight_dtype, form)
        y, p, context, _ = triton_kernels.pix(x, weight, bias, SiteSpec(), with_index=False)
        assert (y.dtype, p.dtype, context.dtype) == (x_dtype, weight_dtype, torch.float32)
        torch.testing.assert_close(p, reference.predict(context, weight, bias, "sigmoid"), rtol=2e-3, atol=2e-3)
        expected = reference.fuse(x.double(), p.double(), SiteSpec())
        torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_dtypes_and_variants(form, dtype):
    for shape in SHAPES[1:3]:
        for option in ({"activation": "tanh"}, {"fusion": "weighted"}):
            check(*tensors(shape, dtype, form), SiteSpec(**option))
        for operator in ("max", "avg", "min"):
            check(*tensors(shape, dtype, form), SiteSpec(operator=operator))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fill", [0.0, -3.0, float("nan"), float("inf"), float("-inf")])
def test_special_values(fill, form):
    for shape in SHAPES[:3]:
        x, weight, bias = tensors(shape, torch.float32, form)
        check(torch.full_like(x, fill), torch.zeros_like(weight), bias)
        some = x.clone()
        some.permute(0, 2, 3, 1)[torch.rand(shape[0], *shape[3:], shape[1]) > 0.7] = fill
        p = reference.activate(bias, "sigmoid").expand(shape[0], -1)
        for operator in reference.OPERATORS:
            y = triton_kernels.pix_fuse(some, p, SiteSpec(operator=operator))
            expected = reference.fuse(some.double(), p.double(), SiteSpec(operator=operator))
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_p_exactly_tau_takes_the_max_and_the_first_of_equals(dtype):
    x = torch.ones(1, 8, 2, 2, dtype=dtype, device=DEVICE)
    for tau in (0.5, 0.3):
        p = torch.full((1, 2), tau, dtype=dtype, device=DEVICE)
        x[:, 1::2] = 3
        y = triton_kernels.pix_fuse(x, p, SiteSpec(tau))
        torch.testing.assert_close(y, 3 * p[:, :, None, None].expand_as(y))
    weight = torch.zeros(2, 8, dtype=dtype, device=DEVICE)
    *_, index = triton_kernels.pix(x, weight, None, SiteSpec(), with_index=True)
    assert (index == 1).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_nothing_is_written_outside_the_outputs(shape, form, monkeypatch):
    margin, buffers, plain = 512, [], torch.empty

    def guarded(*size, dtype=None, device=None, memory_format=torch.contiguous_format):
        size = tuple(size[0]) if len(size) == 1 else size
        count = torch.Size(size).numel()
        buffers.append(torch.full((count + 2 * margin,), 77, dtype=dtype, device=device))
        inside = buffers[-1][margin : margin + count]
        if memory_format == torch.channels_last:
            n, c, h, w = size
            return inside.view(n, h, w, c).permute(0, 3, 1, 2)
        return inside.view(size)

    x, weight, bias = tensors(shape, torch.float32, form)
    with_index = shape[1] <= 256 * shape[2]
    monkeypatch.setattr(torch, "empty", guarded)
    spec = SiteSpec(stride=(2, 1))
    y, p, _, index = triton_kernels.pix(x, weight, bias, spec, with_index)
    triton_kernels.pix_backward(y, p, ForwardPass(y, p, index, weight, list(x.shape[2:])), spec)
    monkeypatch.setattr(torch, "empty", plain)
    assert len(buffers) >= 5
    for buffer in buffers:
        assert (buffer[:margin] == 77).all()
        assert (buffer[-margin:] == 77).all()


@ON_CUDA
@pytest.mark.parametrize("grouping", reference.GROUPINGS)
def test_gradcheck_on_the_device(grouping):
    x, weight, bias = (t.requires_grad_() for t in tensors((2, 8, 2, 3, 4), torch.float64, "nhwc"))
    assert torch.autograd.gradcheck(lambda *t: ops.pix(*t, grouping=grouping), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *t: ops.pix(*t, grouping=grouping), (x, weight, bias))


@ON_CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_repeat_bit_for_bit(dtype):
    runs = []
    for _ in range(3):
        leaves = [t.requires_grad_() for t in tensors((8, 256, 64, 28, 28), dtype, "nhwc")]
        y, p = ops.pix(*leaves)
        y.float().square().sum().backward()
        runs.append((y, p, leaves[0].grad))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@ON_CUDA
def test_cuda_graph():
    x, weight, bias = tensors((4, 256, 64, 14, 14), torch.bfloat16, "nhwc")
    with torch.no_grad():
        ops.pix(x, weight, bias)  # compiles and tunes
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ops.pix(x, weight, bias)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(captured, ops.pix(x, weight, bias))


@ON_CUDA
def test_captured_before_it_was_ever_measured():
    x, weight, bias = tensors((2, 192, 48, 36, 20), torch.float16, "nhwc")
    with torch.no_grad():
        torch.nn.functional.linear(x.mean((2, 3)), weight, bias)  # cuBLAS makes its workspace
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ops.pix(x, weight, bias, stride=(2, 2))
        graph.replay()
        torch.testing.assert_close(captured, ops.pix(x, weight, bias, stride=(2, 2)))


@ON_CUDA
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_x():
    moved = [t.to("cuda:1") for t in tensors(SHAPES[0], torch.float32, "nhwc")]
    check(*moved)


@ON_CUDA
def test_operator_runs_on_triton():
    assert ops.backend.backend("cuda") == "triton"
