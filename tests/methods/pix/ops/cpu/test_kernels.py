"""The compiled kernels against the composition in float64: values, indices, gradients, guards, threads."""

import ctypes
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.methods.pix import ops
from surgery.methods.pix.ops import cpu, gradients, reference
from surgery.methods.pix.ops.backend import backend, composition
from surgery.methods.pix.ops.cpu import library
from surgery.methods.pix.ops.gradients import ForwardPass
from surgery.methods.pix.ops.reference import SiteSpec

pytestmark = pytest.mark.skipif(library.LIBRARY is None, reason=f"no compiled kernels: {library.REASON}")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FORMS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DEFAULT = SiteSpec()
SHAPES = [
    (2, 64, 16, 5, 7),  # lanes exactly, subsets of four
    (1, 128, 16, 4, 4),  # of eight
    (1, 66, 33, 3, 3),  # of two, with a tail
    (2, 17, 17, 3, 2),  # of one
    (1, 102, 17, 2, 3),  # of six
    (2, 50, 7, 3, 3),  # uneven
    (3, 40, 16, 1, 1),
    (1, 1, 1, 9, 1),
    (1, 5000, 3, 2, 2),
]


def tensors(shape, dtype, form="nchw", seed=0):
    n, c, out, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64).to(dtype)
    weight = (torch.randn(out, c, generator=generator, dtype=torch.float64) / c**0.5).to(dtype)
    bias = torch.randn(out, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=FORMS[form]), weight, bias


def check_site(x, weight, bias, spec=DEFAULT):
    """Kernel against float64; max or mean is decided by the kernel's own p, which rounding may move across tau."""
    with_index = spec.fusion == "threshold" and x.shape[1] <= 256 * weight.shape[0]
    y, p, context, index = cpu.pix(x, weight, bias, spec, with_index)
    wide = x.double()
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(context.double(), wide.mean((2, 3)), rtol=1e-5, atol=1e-5, equal_nan=True)
    expected_p = reference.predict(
        context.double(), weight.double(), None if bias is None else bias.double(), "sigmoid"
    )
    torch.testing.assert_close(p.double(), expected_p, rtol=tolerance, atol=tolerance, equal_nan=True)
    expected = reference.fuse(wide, p.double(), spec)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert y.dtype == x.dtype
    if with_index and spec.operator == "max+avg":
        groups, _ = reference.split_subsets(reference.strided(x, spec.stride), weight.shape[0], spec.grouping)
        takes = (p[:, :, None, None] <= spec.tau).expand_as(index)
        torch.testing.assert_close(index[takes].long(), reference.subset_extreme(groups, spec.operator)[1][takes])
    return y, p, index


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference_in_float64(shape, dtype, form):
    x, weight, bias = tensors(shape, dtype, form)
    for grouping, fusion, stride in itertools.product(reference.GROUPINGS, reference.FUSIONS, [(1, 1), (2, 2), (1, 3)]):
        check_site(x, weight, bias, SiteSpec(fusion=fusion, stride=stride, grouping=grouping))
    for operator in ("max", "avg", "min"):
        check_site(x, weight, None, SiteSpec(operator=operator))
    for tau in (0.0, 1.0):
        check_site(x, weight, None, SiteSpec(tau))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fill", [0.0, -3.0, float("nan"), float("inf"), float("-inf"), 6e4, 1e-7])
@pytest.mark.parametrize("shape", [(1, 64, 16, 3, 3), (1, 50, 7, 3, 3), (2, 34, 17, 1, 1)], ids=str)
def test_special_values(shape, form, dtype, fill):
    x, _, bias = tensors(shape, dtype, form)
    weight = torch.zeros(shape[2], shape[1], dtype=dtype)  # so that p is a number whatever x is
    for grouping in reference.GROUPINGS:
        check_site(torch.full_like(x, fill), weight, bias, SiteSpec(grouping=grouping))
        some = x.clone()
        some.permute(0, 2, 3, 1)[torch.randn(shape[0], *shape[3:], shape[1]) > 1] = fill
        context = torch.zeros(shape[0], shape[1], dtype=torch.float64)
        p = reference.predict(context, weight.double(), bias.double(), "sigmoid")
        for operator in reference.OPERATORS:
            spec = SiteSpec(operator=operator, grouping=grouping)
            y = cpu.pix_fuse(some, p, spec)
            expected = reference.fuse(some.double(), p, spec)
            torch.testing.assert_close(
                y.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True, check_dtype=False
            )


def test_infinities_of_both_signs_have_a_maximum():
    x = torch.tensor([float("inf"), float("-inf"), 1.0, 2.0]).reshape(1, 4, 1, 1).expand(1, 4, 3, 3)
    x = torch.cat([x] * 16, 1).contiguous(memory_format=torch.channels_last)
    y = cpu.pix_fuse(x, torch.full((1, 16), 0.25), SiteSpec())
    assert (y == float("inf")).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_p_exactly_tau_takes_the_max_and_the_first_of_equals(dtype):
    x, weight, _ = tensors((1, 64, 16, 3, 3), dtype, "nhwc")
    x = x.round()  # many ties
    y, p, index = check_site(x, torch.zeros_like(weight), None)
    assert (p == 0.5).all()
    groups = x.unflatten(1, (16, 4))
    torch.testing.assert_close(y, 0.5 * groups.amax(2))
    first = (groups == groups.amax(2, keepdim=True)).int().argmax(2)
    assert torch.equal(index.long(), first)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_tau_is_compared_in_the_dtype_of_p(dtype):
    """As PyTorch does: a p that is tau rounded equals tau."""
    x = torch.arange(4.0, dtype=dtype).reshape(1, 4, 1, 1)
    for tau in (0.3, 0.1, 0.7):
        p = torch.full((1, 1), tau, dtype=dtype)
        assert (p <= tau).all()
        y = cpu.pix_fuse(x, p, SiteSpec(tau))
        torch.testing.assert_close(y.flatten(), 3 * p.flatten())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] < 5000], ids=str)
def test_backward_equals_the_reference(shape, dtype, form):
    x, weight, bias = tensors(shape, dtype, form)
    size, tolerance = list(x.shape[2:]), 4 * TOLERANCE[dtype]
    for grouping, stride in itertools.product(reference.GROUPINGS, [(1, 1), (2, 2), (1, 3)]):
        for operator, activation in [("max+avg", "sigmoid"), ("avg", "tanh"), ("min", "sigmoid")]:
            spec = SiteSpec(operator=operator, activation=activation, stride=stride, grouping=grouping)
            y, p, _, index = cpu.pix(x, weight, bias, spec, with_index=True)
            grads = torch.randn_like(y), torch.randn_like(p)
            computed = cpu.pix_backward(*grads, ForwardPass(y, p, index, weight, size), spec)
            exact = ForwardPass(y.double(), p.double(), index, weight.double(), size)
            expected = gradients.site_backward(*(grad.double() for grad in grads), exact, spec)
            for mine, theirs in zip(computed, expected, strict=True):
                torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    stride=st.sampled_from([(1, 1), (2, 2), (2, 1), (3, 4)]),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from(list(TOLERANCE)),
    grouping=st.sampled_from(reference.GROUPINGS),
    fusion=st.sampled_from(reference.FUSIONS),
    seed=st.integers(0, 9),
)
def test_any_shape(shape, stride, form, dtype, grouping, fusion, seed):
    n, c, out, h, w = shape
    spec = SiteSpec(fusion=fusion, stride=stride, grouping=grouping)
    check_site(*tensors((n, c, min(c, out), h, w), dtype, form, seed), spec)


@pytest.mark.parametrize("view", ["channels", "rows", "transposed", "expanded"])
def test_views_that_are_not_dense(view):
    x = torch.randn(2, 16, 6, 8).contiguous(memory_format=torch.channels_last)
    x = {
        "channels": x[:, 3:11],
        "rows": x[:, :, 1::2],
        "transposed": x.transpose(2, 3),
        "expanded": x[:1].expand_as(x),
    }[view]
    weight, bias = torch.randn(4, x.shape[1]), torch.randn(4)
    with torch.no_grad():
        mine = ops.pix(x, weight, bias)
        with composition():
            theirs = ops.pix(x, weight, bias)
    torch.testing.assert_close(mine, theirs)
    assert mine[0].stride() == theirs[0].stride()


def backward_kernels(x, weight, form, y, p, context, index):
    """By themselves: the matrix products between them are torch's, and may depend on its threads."""
    n, c, h, w = x.shape
    size = (n, c, len(weight), h, w)
    description = library.describe(size, SiteSpec(), FORMS[form], x.dtype, weight.dtype)
    dx, total = torch.empty_like(x), torch.empty_like(p)
    library.call("pix_products", description, y, y, total)
    library.call("pix_spread", description, y, p, index, context, dx)
    return dx, total


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "c", "out", "size"), [(1, 64, 16, 30), (9, 50, 7, 5), (3, 128, 32, 11)])
def test_threads_change_nothing(n, c, out, size, form):
    x, weight, bias = tensors((n, c, out, size, size), torch.float32, form)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                inference = ops.pix(x, weight, bias)
            trained = cpu.pix(x, weight, bias, SiteSpec(), with_index=True)
            results.append((*inference, *trained, *backward_kernels(x, weight, form, *trained)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("own_threads", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_is_written_outside_the_outputs(shape, dtype, form, own_threads):
    n, c, out, h, w = shape
    x, weight, bias = tensors(shape, dtype, form)
    exact = reference.computing_dtype(x)
    description = library.describe(shape, SiteSpec(stride=(2, 1)), FORMS[form], x.dtype, weight.dtype)
    if own_threads:
        description.parallel_for, description.threads = None, 3
    y_size = n * out * description.out_h * description.out_w
    y, p, context, index, total, dx = (
        Guarded(count, kind)
        for count, kind in [
            (y_size, dtype),
            (n * out, dtype),
            (n * c, exact),
            (y_size, torch.uint8),
            (n * out, exact),
            (n * c * h * w, dtype),
        ]
    )
    library.call("pix_forward", description, x, weight, bias, y.inside, p.inside, context.inside, index.inside)
    library.call("pix_products", description, y.inside, y.inside, total.inside)
    exact_p = p.inside.to(exact)
    library.call("pix_spread", description, y.inside, exact_p, index.inside, context.inside, dx.inside)
    library.call("pix_fuse", description, x, exact_p, y.inside)
    for guarded in (y, p, context, index, total, dx):
        guarded.check()


class Guarded:
    """A tensor between guard values."""

    MARGIN = 256

    def __init__(self, count, dtype):
        self.all = torch.full((count + 2 * self.MARGIN,), 77, dtype=dtype)
        self.inside = self.all[self.MARGIN : self.MARGIN + count]

    def check(self):
        assert (self.all[: self.MARGIN] == 77).all()
        assert (self.all[-self.MARGIN :] == 77).all()


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_gives_the_same(isa, monkeypatch):
    paths = list(library.FOLDER.glob(f"_pix_{isa}.*"))
    if not paths or (isa == "avx2" and library.ISA == "baseline"):
        pytest.skip(f"no {isa} here")
    monkeypatch.setattr(library, "LIBRARY", ctypes.CDLL(str(paths[0])))
    for shape, dtype, form in itertools.product(SHAPES, TOLERANCE, FORMS):
        check_site(*tensors(shape, dtype, form))


def test_backend_says_what_runs():
    assert backend("cpu") == f"compiled ({library.ISA})"
    with composition():
        assert backend("cpu") == "composition (as asked for)"


def test_shapes_that_do_not_fit_are_refused():
    x = torch.randn(1, 8, 2, 2)
    with pytest.raises(RuntimeError, match="do not fit"):
        torch.ops.surgery.pix(x, torch.randn(4, 6), None, 0.5, "threshold", "max+avg", "sigmoid", [1, 1])


def test_without_a_library_there_is_one_warning_and_the_composition(monkeypatch):
    from surgery.methods.pix.ops import backend as module

    monkeypatch.setattr(library, "LIBRARY", None)
    monkeypatch.setattr(library, "REASON", "none was built")
    module._module.cache_clear()
    try:
        with pytest.warns(UserWarning, match="none was built"):
            assert module.kernels_for(torch.ones(1), torch.ones(1)) is None
        assert "none was built" in backend("cpu")
    finally:
        module._module.cache_clear()
