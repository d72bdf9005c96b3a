"""Gates of layers over images, their statistics, and which layers are shown."""

import pytest
import torch
from torch import nn

from surgery.core.surgery_layer import Gates, SurgeryLayer
from surgery.explanation.layer_gates import LayerGates, layer_gates
from surgery.explanation.surgery_calls import last_of_stages, shown_layers
from tests.explanation.networks import converted, original


def test_gates_are_collected_over_batches():
    model, images = converted(original(), "fbs"), torch.randn(7, 3, 32, 32)
    collected = {gates.name: gates for gates in layer_gates(model, images, 3)}
    assert set(collected) == {name for name, m in model.named_modules() if type(m).__name__ == "FBSConv2d"}
    expected = model.get_submodule("conv1").gates(images)
    torch.testing.assert_close(collected["conv1"].values, expected.values.detach())
    assert torch.equal(collected["conv1"].states["kept"], expected.states["kept"])
    assert not model.conv1._forward_pre_hooks


class Halved(SurgeryLayer):
    opaque = False

    def forward(self, x):
        return x / 2

    def gates(self, x):
        return Gates(x.mean((2, 3)), {})


def test_of_a_layer_that_runs_twice_the_first_call_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.halved = nn.Conv2d(3, 3, 1), Halved()

        def forward(self, x):
            return self.halved(x=self.halved(self.conv(x)))

    model, images = Twice(), torch.randn(5, 3, 4, 4)
    (gates,) = layer_gates(model, images, 2)
    torch.testing.assert_close(gates.values, model.conv(images).mean((2, 3)).detach())
    assert gates.to_json([""] * 5)["dead"] is None


def test_statistics_of_gates():
    values = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.7, 0.2], [0.0, 0.5, 1.0], [0.0, 0.7, 0.2]])
    kept = values > 0.4
    gates, labels = LayerGates("a", values, {"kept": kept, "suppressed": ~kept}), ("x", "y", "x", "y")
    assert gates.shares == {"kept": 0.5, "suppressed": 0.5}
    assert gates.dead == pytest.approx(2 / 3)  # the last one alone changes
    assert gates.saturated == pytest.approx((4 + 2) / 12)
    assert gates.spread_over_classes(labels) == pytest.approx(2 / 3)  # classes say all of two channels, one is constant
    assert gates.kept_by_class(labels, "kept")["x"].tolist() == [0, 1, 1]
    assert gates.kept_by_class([""] * 4, "kept")["all images"].tolist() == [0, 1, 0.5]


def test_gates_above_one_are_not_saturated():
    assert LayerGates("a", torch.tensor([[0.0, 1.5]]), {}).saturated is None


def test_the_spread_is_a_share_of_the_variance_whatever_the_classes_sizes():
    values = torch.tensor([[1.0], [1.0], [1.0], [1.0], [5.0], [6.0]])
    spread = LayerGates("a", values, {}).spread_over_classes(["x"] * 4 + ["y"] * 2)
    within = 2 * 0.25 / 6
    assert spread == pytest.approx(1 - within / float(values.var(correction=0)), rel=1e-5)


@pytest.mark.parametrize("labels", [("x", "y", "", ""), ("x", "x", "x", "x"), ("", "", "", "")])
def test_there_is_no_spread_over_one_class_or_single_images(labels):
    assert LayerGates("a", torch.rand(4, 3), {}).spread_over_classes(labels) is None


def test_the_last_layers_of_stages_are_shown_first():
    names = ["stem", *(f"layer{stage}.{block}.conv{n}" for stage in (1, 2) for block in (0, 1, 2) for n in (1, 2))]
    assert last_of_stages(names) == ["stem", "layer1.2.conv2", "layer2.2.conv2"]
    shown = shown_layers(names, 6)
    assert len(shown) == 6
    assert {"stem", "layer1.2.conv2", "layer2.2.conv2"} <= set(shown)
    assert shown == [name for name in names if name in shown]
    assert shown_layers(names, 20) == names
    flat = [f"features.{n}.conv.0" for n in range(9)]
    assert shown_layers(flat, 3) == [flat[0], flat[4], flat[8]]
