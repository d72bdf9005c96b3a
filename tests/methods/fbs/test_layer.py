"""The FBS layer against a reference written with loops; all its forms; training; calibration."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn
from torch.autograd import gradcheck

from surgery.methods.fbs.execution import FORMS
from surgery.methods.fbs.layer import PLACEMENTS, FBSConv2d
from surgery.planning.computed_macs import counting_macs

FORMATS = [torch.contiguous_format, torch.channels_last]


def conv_of(inputs=6, outputs=9, stride=1, bias=True, kernel=3):
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


def norm_of(channels=9, fused=False):
    norm = BatchNormAct2d(channels) if fused else nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor, low in ((norm.weight, -1.0), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
            tensor.copy_(low + 1.5 * torch.rand(channels, generator=generator))
    return norm


def layer_of(density=0.5, placement="output", saliency=0.3, norm=True, act=True, **geometry):
    conv = conv_of(**geometry)
    layer = FBSConv2d(
        conv,
        norm_of(conv.out_channels) if norm else None,
        nn.ReLU() if act else None,
        density=density,
        placement=placement,
    )
    with torch.no_grad():
        layer.saliency.weight.normal_(0, saliency, generator=torch.Generator().manual_seed(2))
    return layer.double().eval()


def images(count=3, channels=6, height=7, width=8):
    return torch.randn(count, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def by_loops(layer, x):
    """The definition, image by image and channel by channel."""
    rows = []
    for image in x:
        pooled = [image[c].abs().mean().item() for c in range(layer.in_channels)]
        weights, constants = layer.saliency.weight.tolist(), layer.saliency.bias.tolist()
        saliency = [
            max(0.0, layer.constant + constants[o] + sum(w * p for w, p in zip(weights[o], pooled, strict=True)))
            for o in range(layer.out_channels)
        ]
        count = math.ceil(layer.density * layer.out_channels)
        winners = sorted(range(layer.out_channels), key=lambda o: -saliency[o])[:count]
        convolved = F.conv2d(image[None], layer.weight, layer.bias, layer.stride, layer.padding)[0]
        channels = []
        for o in range(layer.out_channels):
            y = convolved[o]
            if layer.norm is not None:
                y = (y - layer.norm.running_mean[o]) / (layer.norm.running_var[o] + layer.norm.eps).sqrt()
            if layer.placement == "output":
                if layer.norm is not None:
                    y = layer.norm.weight[o] * y + layer.norm.bias[o]
                y = layer.act(y) * saliency[o] / (sum(saliency) / len(saliency))
            else:
                y = layer.act(saliency[o] * y + (0 if layer.beta is None else layer.beta[o]))
            channels.append(y if o in winners else torch.zeros_like(y))
        rows.append(torch.stack(channels))
    return torch.stack(rows)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_dense_form_is_the_definition(placement, norm, stride):
    layer = layer_of(placement=placement, norm=norm, stride=stride)
    torch.testing.assert_close(layer(images()), by_loops(layer, images()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory_format", FORMATS)
@settings(max_examples=12, deadline=None)
@given(
    inputs=st.integers(1, 8),
    outputs=st.integers(2, 9),
    count=st.integers(1, 4),
    stride=st.integers(1, 2),
    kernel=st.sampled_from([1, 3]),
    density=st.sampled_from([0.1, 0.5, 0.9]),
    zeros=st.booleans(),
)
def test_forms_agree(placement, form, memory_format, inputs, outputs, count, stride, kernel, density, zeros):
    layer = layer_of(density, placement, inputs=inputs, outputs=outputs, stride=stride, kernel=kernel)
    x = images(count, inputs).to(memory_format=memory_format)
    if zeros:  # inputs that another layer left out, or all of an image
        x = x * (torch.arange(inputs) % 3 == 1)[None, :, None, None] * (torch.arange(count) > 0)[:, None, None, None]
    expected = layer(x).detach()
    layer._execution.form = form
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("density", [0.2, 0.5, 0.7])
def test_exactly_the_share_is_kept(placement, density):
    layer = layer_of(density, placement, act=False, outputs=10, saliency=0.01)
    with torch.no_grad():
        kept = (layer(images()).abs().amax((2, 3)) > 0).sum(1)
    assert kept.tolist() == [math.ceil(round(density * 10, 6))] * 3


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_density_1_is_neutral_at_the_start(placement, fused, bias):
    conv, norm = conv_of(bias=bias), norm_of(fused=fused)
    plain = nn.Sequential(conv, norm, nn.Identity() if fused else nn.ReLU()).double().eval()
    expected = plain(images()).detach()
    layer = FBSConv2d(conv, norm, None if fused else plain[2], density=1.0, placement=placement).eval()
    torch.testing.assert_close(layer(images()), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradients(placement):
    layer = layer_of(placement=placement, inputs=3, outputs=4)
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(run, (images(2, 3, 4, 4).requires_grad_(), *values))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_folding_the_norm_changes_nothing(placement):
    layer = layer_of(placement=placement)
    folded = layer.folded()
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), layer(images()), rtol=1e-10, atol=1e-10)
    assert layer.norm is not None and not layer.compact


def linked_pair(placement="output"):
    first, second = layer_of(placement=placement, inputs=4, outputs=6), layer_of(placement=placement, inputs=6)
    second.link(first)
    return nn.Sequential(first, nn.MaxPool2d(2), second)


def folded_pair(pair):
    pair = copy.deepcopy(pair)
    return nn.Sequential(*(part.folded() if isinstance(part, FBSConv2d) else part for part in pair)).requires_grad_(
        False
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("again", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_linked_layers_hand_compact_maps_on(placement, form, again):
    pair = linked_pair(placement)
    folded = again(folded_pair(pair))
    for layer in (folded[0], folded[2]):
        layer._execution.form = form
    x, seen = images(3, 4), []
    folded[1].register_forward_hook(lambda _, arguments, output: seen.append(output.shape[1]))
    torch.testing.assert_close(folded(x), pair(x).detach(), rtol=1e-10, atol=1e-10)
    assert seen == [3]


def test_a_linked_pair_is_dense_where_it_is_not_prepared_for_inference():
    pair, seen = linked_pair(), []
    pair[1].register_forward_hook(lambda _, arguments, output: seen.append(output.shape[1]))
    with torch.no_grad():
        pair(images(2, 4))
    assert seen == [6]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_200_steps_of_training_stay_finite_and_learn(placement):
    torch.manual_seed(0)
    layers = nn.Sequential(layer_of(placement=placement, inputs=3, outputs=8), layer_of(placement=placement, inputs=8))
    model = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 3)).float().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(200):
        labels = torch.randint(3, (16,), generator=generator)
        x = (
            torch.randn(16, 3, 8, 8, generator=generator)
            + labels[:, None, None, None] * torch.eye(3)[labels][..., None, None]
        )
        loss = F.cross_entropy(model(x), labels) + sum(layer.auxiliary_loss() for layer in layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert all(p.isfinite().all() for p in model.parameters())
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_the_auxiliary_loss_is_the_mean_sum_of_saliencies_and_is_given_once():
    layer = layer_of().train()
    layer.l1 = 0.5
    x = images()
    layer(x)
    pooled = x.abs().mean((2, 3))
    expected = 0.5 * torch.relu(layer.saliency(pooled) + 1).sum(1).mean()
    torch.testing.assert_close(layer.auxiliary_loss(), expected.float())
    assert layer.auxiliary_loss() is None
    layer(x)
    assert copy.deepcopy(layer).auxiliary_loss() is None


def test_dead_saliencies_give_zeros_not_nan():
    layer = layer_of()
    with torch.no_grad():
        layer.saliency.weight.zero_()
        layer.saliency.bias.fill_(-2.0)
    y = layer(images())
    y.sum().backward()
    assert not y.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_a_schedule_lowers_the_density_in_equal_shares():
    layer = FBSConv2d(conv_of(outputs=10), density=0.5, schedule=(1.0, 0.8, 0.6))
    counts = []
    for epoch in range(8):
        layer.set_progress(epoch / 7)
        counts.append(layer.count)
    assert counts == [10, 10, 8, 8, 6, 6, 5, 5]
    layer.set_progress(1.0)
    assert layer.count == 5


def test_the_start_ranks_channels_by_what_they_give():
    layer = layer_of(outputs=8, saliency=0.0)
    x = torch.randn(64, 6, 7, 8, dtype=torch.float64) * (0.2 + torch.rand(64, 6, 1, 1, dtype=torch.float64))
    with torch.no_grad():
        observed = layer.observe(x)
        layer.start(observed)
        once = layer.saliency.weight.clone()
        layer.start(layer.observe(x))
        assert torch.equal(layer.saliency.weight, once)
        magnitudes = layer.act(layer.norm(layer.filters(x))).mean((2, 3))
        kept = layer(x).abs().amax((2, 3)) > 0
    share = (magnitudes * kept).sum() / magnitudes.sum()
    assert share > magnitudes.topk(4, 1).values.sum() / magnitudes.sum() - 0.05


def test_computed_macs_leave_zero_inputs_out():
    layer = layer_of(inputs=8, outputs=10)
    x = images(2, 8) * (torch.arange(8) < 3)[:, None, None]
    macs = layer.computed_macs(x, layer(x))
    assert macs.tolist() == [5 * 3 * 9 * 7 * 8 + 80] * 2
    assert layer.cost(tuple(x.shape), (2, 10, 7, 8)).macs == 5 * 8 * 9 * 7 * 8 + 80


def kept_by(layer, x):
    with torch.no_grad():
        return layer(x).abs().amax((2, 3)) > 0


def calibrated_layer():
    layer = layer_of(0.5, inputs=12, outputs=40, saliency=0.0, act=False).float()
    x = images(48, 12).float() * (0.2 + torch.rand(48, 12, 1, 1, generator=torch.Generator().manual_seed(4)))
    with torch.no_grad():
        layer.start(layer.observe(x))
    return layer, x


def test_autocast_keeps_the_same_channels():
    layer, x = calibrated_layer()
    expected = kept_by(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept_by(layer, x), expected)


def test_a_cast_to_bfloat16_keeps_nearly_the_same_channels():
    layer, x = calibrated_layer()
    expected = kept_by(layer, x)
    same = kept_by(layer.bfloat16(), x.bfloat16()) == expected
    assert same.float().mean() > 0.99


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("trained", ["saliency.weight", "norm.bias", "beta"])
def test_frozen_filters_leave_the_rest_trainable_in_eval_mode(placement, trained):
    layer = layer_of(placement=placement)
    layer.requires_grad_(False)
    parameter = dict(layer.named_parameters()).get(trained)
    if parameter is None:
        pytest.skip(f"{placement} has no {trained}")
    parameter.requires_grad_(True)
    x = images(1)
    expected = layer(x.requires_grad_()).detach()
    y = layer(x.detach())
    torch.testing.assert_close(y.detach(), expected)
    y.square().sum().backward()
    assert parameter.grad.abs().sum() > 0


def test_a_norm_in_training_mode_is_one_also_in_a_layer_in_eval_mode():
    layer = layer_of()
    layer.norm.train()
    with torch.no_grad():
        expected = layer.dense(images(1), None, *mask_and_factors(layer, images(1)))
        before = layer.norm.running_mean.clone()
        torch.testing.assert_close(layer(images(1)), expected)
    assert not torch.equal(layer.norm.running_mean, before)


def mask_and_factors(layer, x):
    gates = layer.gates(x)
    return gates.states["kept"], gates.values


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_vmap_takes_the_dense_form(placement):
    layer, x = layer_of(placement=placement), images(3)
    with torch.no_grad():
        y = torch.func.vmap(layer)(x[:, None])[:, 0]
        torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("training", [False, True])
def test_fx_traces_it(placement, training):
    pair = linked_pair(placement).train(training)
    traced = torch.fx.symbolic_trace(pair)
    assert not any("constant" in str(node.target) for node in traced.graph.nodes)  # all parameters stay parameters
    x = images(2, 4)
    torch.testing.assert_close(traced(x), pair(x))
    assert pair[0].train()(x).isfinite().all()
    assert pair[0].auxiliary_loss() is not None


def test_a_traced_copy_for_inference_computes_the_same():
    folded = folded_pair(linked_pair())
    torch.testing.assert_close(torch.fx.symbolic_trace(folded)(images(2, 4)), folded(images(2, 4)))


def test_it_is_called_and_read_as_a_convolution_is():
    layer, x = layer_of(), images()
    assert torch.equal(layer(input=x), layer(x))
    assert (layer.groups, layer.padding_mode) == (1, "zeros")
    with torch.no_grad():
        torch.testing.assert_close(layer(x[0]), layer(x[:1])[0])
        torch.testing.assert_close(layer.train()(x[0]), layer(x[:1])[0])


def test_a_checkpointed_layer_holds_no_graph_of_the_backward():
    layer = layer_of().train()
    y = torch.utils.checkpoint.checkpoint(layer, images(), use_reentrant=False)
    loss = y.square().sum() + layer.auxiliary_loss()
    loss.backward()
    assert layer._last_saliency is None
    assert layer.saliency.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("outputs", [4, 30])
def test_no_more_is_computed_than_is_counted(density, share, outputs):
    first = FBSConv2d(conv_of(4, 20), density=density, schedule=(1.0, 0.8))
    second = FBSConv2d(conv_of(20, outputs), density=density, schedule=(1.0, 0.8))
    second.link(first)
    pair = nn.Sequential(first, second).double().eval()
    for layer in pair:
        layer.set_progress(share)
    x, skips = images(2, 4), second.count < outputs
    with counting_macs(pair) as computed, torch.no_grad():
        pair(x)
    assert computed.difference == 0
    counted = second.cost((1, 20, 7, 8), (1, outputs, 7, 8)).macs
    assert counted == second.count * (first.count if skips else 20) * 9 * 56 + 20 * outputs


def test_measured_forms_are_no_part_of_a_copy():
    layer = layer_of().folded().requires_grad_(False)
    layer(images())
    layer(images())
    assert len(layer._execution.fastest) == 1
    assert not copy.deepcopy(layer)._execution.fastest
