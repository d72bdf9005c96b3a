"""What stands behind a site goes or stays as it should: convert, forward, backward, save, load, the same logits."""

import pytest
import timm
import torch
import torchvision
from timm.layers import LayerScale2d
from torch import nn

import surgery
from surgery.methods.pix.layer import PiX
from surgery.planning.sites import HEAD, PROJECTION
from surgery.transforms.history import changed_modules
from tests.small_models import (
    DividedByItsSize,
    Fire,
    ScaledProjection,
    Squeezed,
    Swish,
    TwoOutputs,
    Wrapped,
    scripted_swish,
)

SIZE = (3, 16, 16)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class FunctionBehind(Squeezed):
    """The activation is a scripted function, called from the block's own forward."""

    def __init__(self):
        super().__init__(nn.Identity())

    def forward(self, x):
        return x + self.reads(scripted_swish(self.norm(self.squeeze(x))))


class CalledTwice(FunctionBehind):
    def forward(self, x):
        return scripted_swish(super().forward(x))


class ActThenNorm(Squeezed):
    def forward(self, x):
        return x + self.reads(self.norm(self.behind(self.squeeze(x))))


def traced_swish():
    return torch.jit.trace(Swish(), torch.randn(1, 8, 4, 4))


BLOCKS = {
    "fire": (Fire, {"block.squeeze": HEAD}),
    "own norm": (lambda: Squeezed(nn.Identity(), norm=DividedByItsSize(8)), {"block.squeeze": HEAD}),
    "scripted module": (lambda: Squeezed(torch.jit.script(Swish())), {"block.squeeze": HEAD}),
    "traced module": (lambda: Squeezed(traced_swish()), {"block.squeeze": HEAD}),
    "scripted function": (FunctionBehind, {"block.squeeze": HEAD}),
    "activation before the norm": (ActThenNorm, {"block.squeeze": HEAD}),
    "transposed": (
        lambda: Squeezed(reads=nn.ConvTranspose2d(8, 16, 3, padding=1)),
        {"block.squeeze": HEAD},
    ),
    "layer scale": (ScaledProjection, {"block.project": PROJECTION}),
    "partial residual": (lambda: ScaledProjection(24), {"block.project": PROJECTION}),
}


@surgery.register_builder("removal_net")
def removal_net(block: str) -> nn.Module:
    return Wrapped(BLOCKS[block][0]())


@surgery.register_builder("two_outputs")
def two_outputs() -> nn.Module:
    return TwoOutputs()


@surgery.register_builder("evonorm_resnet")
def evonorm_resnet() -> nn.Module:
    widths = (128, 128, 256, 256)  # EvoNorm works on 32 groups
    return timm.create_model("resnetv2_50d_evos", layers=(1, 1, 1, 1), channels=widths, stem_chs=64)


def round_trip(model, expected, path, size=SIZE, **source):
    """Returns the converted model, in eval mode."""
    converted = surgery.convert(model, input_size=size)
    assert {row.site: row.role for row in surgery.plan(model, input_size=size).sites} == expected
    assert set(changed_modules(converted)) == set(expected)
    assert all(isinstance(converted.get_submodule(name), PiX) for name in expected)
    converted.train()(torch.randn(2, *size)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())
    surgery.save(converted, path, input_size=size, **source)
    x = torch.randn(1, *size)
    with torch.no_grad():
        assert torch.equal(surgery.load(path)(x), converted.eval()(x))
    return converted


@pytest.mark.parametrize("block", BLOCKS)
def test_every_new_kind_of_site_converts(block, tmp_path):
    torch.manual_seed(0)
    model, expected = removal_net(block), BLOCKS[block][1]
    round_trip(model, expected, tmp_path / "m.safetensors", source="removal_net", kwargs={"block": block})


def test_a_chain_without_a_stem_converts_from_its_first_head(tmp_path):
    expected = {"chain.2": HEAD, "chain.8": HEAD}
    round_trip(TwoOutputs(), expected, tmp_path / "m.safetensors", source="two_outputs")


def test_what_is_removed_and_what_stays():
    own = surgery.convert(removal_net("own norm"), input_size=SIZE).block
    assert isinstance(own.norm, nn.Identity)
    scripted = surgery.convert(removal_net("scripted module"), input_size=SIZE).block
    assert isinstance(scripted.behind, nn.Identity)
    scaled = surgery.convert(removal_net("layer scale"), input_size=SIZE).block
    assert isinstance(scaled.norm, nn.Identity)
    assert isinstance(scaled.scale, LayerScale2d)


def test_norm_after_keeps_a_norm_whose_activation_is_in_its_arithmetic():
    model = evonorm_resnet()
    block = surgery.convert(model, norm="after", input_size=(3, 32, 32)).stages[0].blocks[0]
    assert isinstance(block.conv1, PiX)
    assert type(block.norm2).__name__ == "EvoNorm2dS0"


def test_evonorm_network(tmp_path):
    model = evonorm_resnet()
    expected = {f"stages.{i}.blocks.0.conv1": HEAD for i in range(4)}
    converted = round_trip(model, expected, tmp_path / "m.safetensors", (3, 64, 64), source="evonorm_resnet")
    assert isinstance(converted.stages[0].blocks[0].norm2, nn.Identity)


def test_squeezenet(tmp_path):
    model = torchvision.models.squeezenet1_1()
    expected = {f"features.{i}.squeeze": HEAD for i in (3, 4, 6, 7, 9, 10, 11, 12)}
    round_trip(model, expected, tmp_path / "m.safetensors", (3, 64, 64))


def test_rexnet(tmp_path):
    kwargs = {"width_mult": 0.5, "depth_mult": 0.5}
    model = timm.create_model("rexnet_100", **kwargs)
    sites = [row.site for row in surgery.plan(model).sites]
    # a block that neither strides nor is the first adds its input to the first of its channels
    assert sites == [
        f"features.{i}.conv_pwl.conv"
        for i in range(len(model.features))
        if getattr(model.features[i], "use_shortcut", False)
    ]
    path = tmp_path / "m.safetensors"
    round_trip(model, dict.fromkeys(sites, PROJECTION), path, (3, 64, 64), source="timm/rexnet_100", kwargs=kwargs)


def test_a_block_that_goes_on_calling_a_scripted_function_is_left_alone():
    plan = surgery.plan(Wrapped(CalledTwice()), input_size=SIZE)
    reasons = {item.name: item.reason for item in plan.skipped}
    assert plan.sites == ()
    assert reasons["block.squeeze"] == (
        "'block' also calls the scripted function 'swish' elsewhere, which a rewritten forward cannot hold"
    )
    torch.fx.symbolic_trace(Wrapped(Squeezed()))  # and fx is left as it was
