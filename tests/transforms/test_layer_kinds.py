from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import surgery
from surgery.planning.registry import discover
from surgery.transforms import layer_kinds
from surgery.transforms.carry_out import apply
from surgery.transforms.history import history
from surgery.transforms.insert_before import InsertBefore
from surgery.transforms.layer_kinds import Insertion, LayerKind, checked_options, layer_kind, register_layer
from surgery.transforms.replace import Replace
from tests.small_models import Net, with_statistics

discover()
SIZE = (3, 8, 8)


@dataclass(frozen=True)
class Options:
    slopes: tuple[float, ...]
    gain: float = 1.0
    names: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.gain, float):
            raise TypeError(f"gain={self.gain!r}: a number is needed")


class Scaled(nn.Conv2d):
    """A convolution, then a gain, then LeakyReLUs."""

    options: Options

    def forward(self, x):
        y = self.options.gain * super().forward(x)
        for slope in self.options.slopes:
            y = nn.functional.leaky_relu(y, slope)
        return y


def replacing(conv, options):
    layer = Scaled(conv.in_channels, conv.out_channels, 1)
    layer.weight, layer.bias, layer.options = conv.weight, conv.bias, options
    return layer


def first_channels(channels, squeezed, options):
    pick = nn.Conv2d(channels, squeezed, 1, bias=False)
    with torch.no_grad():
        pick.weight.copy_(torch.eye(channels)[:squeezed, :, None, None])
    return Insertion(pick, options.gain, "strided")


register_layer(LayerKind("tests_scaled", Options, replacing, first_channels))


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="layer 'tests_scaled' is registered already"):
        register_layer(LayerKind("tests_scaled", Options))
    assert layer_kind("tests_scaled").replacing is replacing


def own_kind():
    def inserted(channels, squeezed, options):
        return first_channels(channels, squeezed, options)

    return LayerKind("tests_run_again", Options, inserted=inserted)


def test_a_cell_run_again_replaces_its_kind(monkeypatch):
    monkeypatch.setattr(layer_kinds, "_KINDS", dict(layer_kinds._KINDS))
    first, again = register_layer(own_kind()), register_layer(own_kind())
    assert first is not again
    assert layer_kind("tests_run_again") is again
    with pytest.raises(ValueError, match="layer 'tests_run_again' is registered already"):
        register_layer(LayerKind("tests_run_again", Options, inserted=first_channels))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pax", r"layer='pax': one of .*'pix', .*'squeeze-conv'.*did you mean 'pix'"),
        (5, "layer=5: the name of a kind of layer is needed"),
        (["pix"], "the name of a kind of layer is needed"),
        ("p" * 10_000, "the name of a kind of layer is needed"),
    ],
)
def test_unknown_kinds_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        layer_kind(name)


def test_options_are_json_with_every_default():
    options = checked_options("tests_scaled", {"slopes": (0.1, 0.2), "names": {"a": (1, 2)}})
    assert options == {"slopes": [0.1, 0.2], "gain": 1.0, "names": {"a": [1, 2]}}
    assert checked_options("tests_scaled", options) == options
    assert checked_options("pix", {})["grouping"] == "contiguous"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slope": 1}, "options={'slope': 1}: of layer 'tests_scaled' there are slopes, gain, names"),
        ({1: 2}, "there are slopes"),
        ([["slopes", [1]]], "there are slopes"),
        (None, "options=None"),
        ({}, "missing 1 required positional argument: 'slopes'"),
        ({"slopes": [], "gain": "2"}, "gain='2': a number is needed"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        checked_options("tests_scaled", options)


def test_kinds_do_what_they_say_they_can():
    register_layer(LayerKind("tests_nowhere", Options))
    with pytest.raises(ValueError, match="'tests_nowhere' takes no convolution's place"):
        Replace("a", "tests_nowhere", (1, 1), {"slopes": []})
    with pytest.raises(ValueError, match="'tests_nowhere' cannot be inserted"):
        InsertBefore("a", "tests_nowhere", (1, 1), 1, {"slopes": []})


@surgery.register_builder("tests_of_layer_kinds")
def net() -> nn.Module:
    return with_statistics(Net("module"))


def test_a_kind_from_elsewhere_saves_and_loads(tmp_path):
    model = net().eval()
    transforms = [
        Replace("blocks.0.conv1", "tests_scaled", (16, 4), {"slopes": (0.1, 0.2), "gain": 2.0}),
        InsertBefore("blocks.0.conv2", "tests_scaled", (4, 4), 2, {"slopes": ()}),
    ]
    apply(model, transforms)
    surgery.save(model, tmp_path / "m", source="tests_of_layer_kinds", input_size=SIZE)
    loaded = surgery.load(tmp_path / "m")
    assert history(loaded) == history(model) == tuple(transforms)
    x = torch.randn(2, *SIZE)
    assert loaded(x).equal(model(x))
