import dataclasses
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from surgery.methods.pix import ops
from surgery.methods.pix.ops import reference
from surgery.methods.pix.ops.backend import composition
from tests.methods.pix.ops.loop_pix import loop_pix

VARIANTS = [
    {},
    {"tau": 0.0},
    {"tau": 1.0},
    {"fusion": "weighted"},
    {"operator": "max"},
    {"operator": "avg"},
    {"operator": "min"},
    {"activation": "tanh"},
    {"grouping": "strided"},
    {"grouping": "strided", "fusion": "weighted"},
]


def inputs(n=2, c=8, out=2, h=3, w=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64)
    weight = torch.randn(out, c, 1, 1, generator=generator, dtype=torch.float64)
    bias = torch.randn(out, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("c", "out"), [(8, 2), (5, 5), (7, 3), (9, 2)])
def test_equals_the_loops(variant, c, out):
    x, weight, bias = inputs(c=c, out=out)
    torch.testing.assert_close(ops.pix(x, weight, bias, **variant)[0], loop_pix(x, weight, bias, **variant))


def test_views_with_gaps_are_taken():
    x, weight, bias = inputs()
    gaps = weight.flatten(1).t().contiguous().t(), bias.repeat_interleave(3)[::3]
    assert not any(t.is_contiguous() for t in gaps)
    for view in (x, x.transpose(2, 3), x[:, :, 1:, ::2]):
        torch.testing.assert_close(ops.pix(view, *gaps)[0], loop_pix(view, weight, bias))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 13),
    share=st.integers(1, 13),
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    stride=st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    has_bias=st.booleans(),
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_the_loops(n, c, share, h, w, stride, has_bias, variant, seed):
    x, weight, bias = inputs(n, c, min(share, c), h, w, seed)
    given_bias = bias if has_bias else None
    y, p = ops.pix(x, weight, given_bias, stride=stride, **variant)
    torch.testing.assert_close(y, loop_pix(x, weight, given_bias, stride=stride, **variant))
    assert p.shape == (n, min(share, c))
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("c", "out", "stride"), [(8, 2, (1, 1)), (7, 3, (1, 1)), (8, 4, (2, 2)), (7, 3, (2, 1))])
def test_gradients_first_and_second(variant, c, out, stride):
    leaves = [t.requires_grad_() for t in inputs(c=c, out=out)]

    def site(x, weight, bias):
        return ops.pix(x, weight, bias, stride=stride, **variant)

    assert torch.autograd.gradcheck(site, leaves)
    assert torch.autograd.gradgradcheck(site, leaves)


@pytest.mark.parametrize("operator", reference.OPERATORS)
def test_gradients_of_the_fusion_alone(operator):
    x = torch.randn(2, 7, 3, 3, dtype=torch.float64, requires_grad=True)
    p = torch.rand(2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: ops.pix_fuse(x, p, operator=operator), (x, p))


def test_tau_zero_is_mean_and_tau_one_is_max():
    x, weight, bias = inputs()
    mean, p = ops.pix(x, weight, bias, tau=0.0)
    largest, _ = ops.pix(x, weight, bias, tau=1.0)
    torch.testing.assert_close(mean, p[..., None, None] * x.unflatten(1, (2, 4)).mean(2))
    torch.testing.assert_close(largest, p[..., None, None] * x.unflatten(1, (2, 4)).amax(2))


def test_p_exactly_tau_takes_the_max():
    x, weight, _ = inputs()
    y, p = ops.pix(x, torch.zeros_like(weight))
    assert (p == 0.5).all()
    torch.testing.assert_close(y, 0.5 * x.unflatten(1, (2, 4)).amax(2))


def test_ties_give_the_gradient_to_the_first():
    x = torch.zeros(1, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    ops.pix_fuse(x, torch.full((1, 1), 0.25, dtype=torch.float64)).sum().backward()
    assert x.grad.flatten().tolist() == [0.25, 0, 0, 0]


def test_short_subset_divides_by_its_own_size():
    x = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    y = ops.pix_fuse(x, torch.ones(1, 2))
    assert y.flatten().tolist() == [1.0, 4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("c", [6, 7])
def test_non_finite_values_propagate_to_their_subset_only(bad, c):
    x = torch.ones(1, c, 1, 1)
    x[0, 0] = bad
    y = ops.pix_fuse(x, torch.ones(1, 3)).flatten()
    assert torch.equal(y[0].nan_to_num(7, 8, 9), torch.tensor(bad).nan_to_num(7, 8, 9))
    assert y[1:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_close_and_keeps_its_dtype(dtype):
    x, weight, bias = inputs(c=16, out=4, dtype=dtype)
    y, _ = ops.pix(x, weight, bias)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    assert y.dtype == dtype
    expected = loop_pix(x.double(), weight.double(), bias.double(), fusion="threshold")
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_its_dtype_and_float_gradients(dtype):
    x, weight, bias = (t.requires_grad_() for t in inputs(dtype=torch.float32))
    with torch.autocast("cpu", dtype):
        y, p = ops.pix(x, weight, bias)
    y.float().sum().backward()
    assert (y.dtype, p.dtype) == (dtype, torch.float32)
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


def test_channels_last_in_channels_last_out_same_values():
    x, weight, bias = inputs(n=2, c=8, out=4, h=5, w=6)
    y, _ = ops.pix(x.contiguous(memory_format=torch.channels_last), weight, bias)
    torch.testing.assert_close(y, ops.pix(x, weight, bias)[0])


@pytest.mark.parametrize("out", [2, 3])
@pytest.mark.parametrize("grouping", reference.GROUPINGS)
def test_library_registration_is_sound(out, grouping):
    tensors = inputs(c=8, out=out)
    torch.library.opcheck(
        torch.ops.surgery.pix.default,
        (*tensors, 0.5, "threshold", "max+avg", "sigmoid", [1, 1], grouping),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    leaves = [t.requires_grad_() for t in tensors]
    torch.library.opcheck(
        torch.ops.surgery.pix_with_index.default, (*leaves, 0.5, "max+avg", "sigmoid", [1, 1], grouping)
    )
    p = torch.rand(2, out, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(
        torch.ops.surgery.pix_fuse.default, (leaves[0], p, 0.5, "threshold", "max+avg", [2, 2], grouping)
    )


@pytest.mark.parametrize("channels", [4, 600])
def test_more_channels_than_a_byte_can_index(channels):
    x, weight, bias = inputs(n=1, c=channels, out=1, h=2, w=2)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: ops.pix(*t), leaves)


def test_flop_counter_counts_the_predictor():
    x, weight, bias = inputs(n=3, c=8, out=2)
    with FlopCounterMode(display=False) as counter:
        ops.pix(x, weight, bias)
    assert counter.get_total_flops() == 2 * 3 * 8 * 2


def test_empty_batch():
    x, weight, bias = inputs(n=1)
    assert ops.pix(x[:0], weight, bias)[0].shape == (0, 2, 3, 4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("inplace", [torch.relu_, torch.sin_, lambda y: y.mul_(3)])
def test_an_operation_in_place_behind_the_site(inplace, compiled):
    """A convolution permits it; gradients are those of the composition with the operation out of place."""

    def gradients(site, follow):
        leaves = [t.requires_grad_() for t in inputs(c=8, out=2)]
        follow(site(*leaves)).square().sum().backward()
        return [t.grad for t in leaves]

    def site(x, weight, bias):
        return ops.pix(x, weight, bias)[0]

    plain = {torch.relu_: torch.relu, torch.sin_: torch.sin}.get(inplace, lambda y: y * 3)
    with composition():
        expected = gradients(lambda *t: ops.pix(*t)[0].clone(), plain)
    run = (
        (lambda *t: inplace(site(*t)))
        if not compiled
        else torch.compile(lambda *t: inplace(site(*t)), backend="aot_eager", fullgraph=True)
    )
    torch.testing.assert_close(gradients(run, lambda y: y), expected)


def test_backward_twice_through_a_kept_graph():
    leaves = [t.requires_grad_() for t in inputs(c=8, out=2)]
    total = ops.pix(*leaves)[0].square().sum()
    total.backward(retain_graph=True)
    once = [t.grad.clone() for t in leaves]
    total.backward()
    torch.testing.assert_close([t.grad for t in leaves], [2 * g for g in once])


SITE = {"tau": 0.5, "operator": "max+avg", "activation": "sigmoid", "stride": [1, 1]}


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ((1, 7, 8, 8), (16, 64, 1, 1), None),
        ((1, 4, 8, 8), (2, 4, 3, 3), None),
        ((1, 4, 8, 8), (9, 4, 1, 1), None),
        ((1, 4, 8, 8), (4,), None),
        ((4, 8, 8), (2, 4), None),
        ((1, 4, 8, 8), (2, 4), (3,)),
    ],
    ids=str,
)
def test_operators_read_nothing_beyond_their_tensors(x, weight, bias):
    """A kernel's loops follow the shapes, so an operator called by itself must refuse what does not fit."""
    tensors = [torch.zeros(x), torch.zeros(weight), None if bias is None else torch.zeros(bias)]
    with pytest.raises((ValueError, RuntimeError), match="PiX site reads|do not fit"):
        torch.ops.surgery.pix_with_index(*tensors, **SITE)
    with pytest.raises((ValueError, RuntimeError), match="PiX site reads|do not fit"):
        torch.ops.surgery.pix(*tensors, **SITE, fusion="threshold")
    with torch.no_grad(), pytest.raises(ValueError, match="PiX site reads"):
        ops.pix(*tensors)


@pytest.mark.parametrize("p", [(3, 64), (1, 8), (4,)], ids=str)
def test_a_p_that_does_not_fit_is_refused(p):
    x = torch.zeros(1, 7, 8, 8)
    with pytest.raises(ValueError, match="PiX fusion takes"):
        torch.ops.surgery.pix_fuse(x, torch.zeros(p), 0.5, "threshold", "max+avg", [1, 1])
    with pytest.raises(ValueError, match="PiX fusion takes"):
        ops.pix_fuse(x, torch.zeros(p))


def test_a_gradient_of_another_site_is_refused():
    y, p, weight = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4), torch.zeros(4, 8, 1, 1)
    index = torch.zeros(2, 4, 8, 7, dtype=torch.uint8)
    with pytest.raises(ValueError, match="PiX gradient reads"):
        torch.ops.surgery.pix_backward(
            y, p, y, p, index, weight, [8, 8], 0.5, "max+avg", "sigmoid", [1, 1], "contiguous"
        )


def test_a_spec_is_one_frozen_value_per_set_of_options():
    options = 0.3, "weighted", "max+avg", "tanh"
    spec = reference.site_spec(*options, [2, 1], "strided")
    assert spec is reference.site_spec(*options, (2, 1), "strided")
    assert spec == reference.SiteSpec(*options, stride=(2, 1), grouping="strided")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.tau = 0.5


def test_kernels_of_all_devices_have_one_interface():
    pytest.importorskip("triton")
    from surgery.methods.pix.ops import cpu, triton_kernels

    for name in ("pix", "pix_fuse", "pix_backward"):
        parameters = [list(inspect.signature(getattr(module, name)).parameters) for module in (cpu, triton_kernels)]
        assert parameters[0] == parameters[1]
        assert "spec" in parameters[0]
        assert len(parameters[0]) <= 5


@pytest.mark.parametrize("options", [{"fusion": "weighted"}, {"grouping": "strided", "stride": (2, 2)}], ids=str)
def test_options_are_seen_through_by_torch_compile(options):
    """Without a break of the graph, where the operators take them and where the composition does."""
    gradients = []
    for run in (ops.pix, torch.compile(ops.pix, backend="aot_eager", fullgraph=True)):
        leaves = [t.requires_grad_() for t in inputs(c=8, out=2)]
        run(*leaves, **options)[0].square().sum().backward()
        gradients.append([t.grad for t in leaves])
    torch.testing.assert_close(*gradients)
