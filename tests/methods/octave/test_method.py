import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

import surgery
from surgery.methods.octave.maps import EachMap, Maps, RegionConv, RegionNorm
from surgery.methods.octave.method import OctaveConfig
from surgery.training.batch_norm_statistics import batch_norms, frozen_statistics
from surgery.training.dynamic_weight_decay import DynamicWeightDecay, scaling_norms

SIZE = 32


def blocky(count, channels=3, side=SIZE):
    """Images of one value in each square of 2 × 2 pixels: what they lose by pooling they have again when enlarged."""
    return torch.randn(count, channels, side // 2, side // 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1, self.act = nn.Conv2d(width, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv2, self.norm2 = nn.Conv2d(6, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        y += x
        return self.act(y)


class Pointwise(nn.Module):
    """1×1 convolutions alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(*(Residual(8) for _ in range(3)))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def pointwise():
    torch.manual_seed(0)
    model = Pointwise()
    for _ in range(3):
        model(torch.randn(8, 3, SIZE, SIZE))  # statistics of their own
    return model.eval()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_what_coarse_maps_can_hold_is_computed_exactly(alpha, pooling):
    model, x = pointwise(), blocky(2)
    converted = surgery.convert(model, "octave", alpha=alpha, pooling=pooling, input_size=SIZE)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)
    assert surgery.cost(converted, SIZE).macs < surgery.cost(model, SIZE).macs


def test_training_mode_measures_the_norms_as_before():
    model, x = pointwise(), blocky(4)
    converted = surgery.convert(model, "octave", input_size=SIZE)
    for network in (model, converted):
        network.train()(x)
    own = converted.blocks[0].norm1
    torch.testing.assert_close(own.running_mean, model.blocks[0].norm1.running_mean, rtol=1e-4, atol=1e-5)
    assert own.num_batches_tracked == model.blocks[0].norm1.num_batches_tracked


def test_weights_are_the_originals_under_their_names():
    model = pointwise()
    converted = surgery.convert(model, "octave", input_size=SIZE)
    own = {name.replace(".base", ""): tensor for name, tensor in converted.state_dict().items()}
    assert own.keys() == model.state_dict().keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    converted.load_state_dict(model.state_dict())  # the original's own is taken too


def test_calibration_measures_the_statistics_anew():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    images = torch.randn(32, 3, SIZE, SIZE)
    converted = surgery.convert(model, "octave", input_size=SIZE, calibrate=images)
    norms = [(name, m) for name, m in converted.named_modules() if isinstance(m, RegionNorm)]
    assert norms
    seen = {}
    handles = [
        m.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]})) for name, m in norms
    ]
    with torch.no_grad():
        converted.eval()(images)
    for handle in handles:
        handle.remove()
    name, norm = norms[0]  # behind the others stand rounding and bfloat16
    means = torch.cat([x.mean((0, 2, 3)) for x in seen[name]])
    torch.testing.assert_close(norm.running_mean, means, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name,regions", [("resnet26", 4), ("mobilenetv2_050", 5), ("vgg11_bn", 3), ("seresnet50", 0)])
def test_regions_end_where_timm_hands_maps_out(name, regions):
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = surgery.plan(model, "octave", input_size=128)
    assert len(plan.decisions) == regions


def test_feature_maps_are_of_the_sizes_that_they_were():
    torch.manual_seed(0)
    model = timm.create_model("resnet26", channels=[8, 8, 8, 8]).eval()
    converted = surgery.convert(model, "octave", input_size=64).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own, others = (network.forward_intermediates(x, intermediates_only=True) for network in (converted, model))
    assert [y.shape for y in own] == [y.shape for y in others]


@pytest.mark.parametrize("size", [33, 47, 64])
def test_any_size_of_image(size):
    torch.manual_seed(0)
    converted = surgery.convert(timm.create_model("test_resnet", num_classes=3), "octave", input_size=64).eval()
    assert converted(torch.randn(1, 3, size, size)).shape == (1, 3)


def test_strided_stage_of_odd_maps():
    torch.manual_seed(0)
    converted = surgery.convert(timm.create_model("resnet26", channels=[8] * 4), "octave", input_size=224).eval()
    assert converted(torch.randn(1, 3, 224, 224)).shape == (1, 1000)  # 7 × 7 at the end


def test_selection():
    with torch.device("meta"):
        model = timm.create_model("resnet26")
    plan = surgery.plan(model, "octave", include="layer2", input_size=64)
    assert [decision.name for decision in plan.decisions] == ["layer2.0"]
    plan = surgery.plan(model, "octave", exclude="layer2.0.conv1", input_size=64)
    assert plan.decisions and "layer2.0" not in [decision.name for decision in plan.decisions]
    with pytest.raises(ValueError, match="include pattern 'stem' matches no site"):
        surgery.plan(model, "octave", include="stem", input_size=64)


def test_skipped_say_why():
    with torch.device("meta"):
        plan = surgery.plan(timm.create_model("seresnet50"), "octave", input_size=64)
    assert any("is not followed" in skipped.reason for skipped in plan.skipped)


@pytest.mark.parametrize("alpha", [0, 1, True, "half", -0.5])
def test_alpha(alpha):
    with pytest.raises(ValueError, match="alpha=.*a share of the channels, above 0 and below 1"):
        OctaveConfig(alpha=alpha)


def test_maps_are_added_map_by_map():
    one, two = Maps([torch.ones(1), torch.zeros(2)]), Maps([torch.ones(1), torch.ones(2)])
    assert [x.tolist() for x in one + two] == [[2.0], [1.0, 1.0]]
    one += two
    assert isinstance(one, Maps) and one[0].tolist() == [2.0]
    with pytest.raises(ValueError, match="zip"):
        one + Maps([torch.ones(1)])


def test_channels_inside_a_region_can_be_pruned(tmp_path):
    torch.manual_seed(0)
    model = surgery.create("cifar_resnet", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    converted = surgery.convert(model, "octave", input_size=SIZE)
    pruned = surgery.convert(converted, "l1", macs=0.8, input_size=SIZE).eval()
    widths = [
        [m.scales.out_channels for m in net.modules() if isinstance(m, RegionConv)] for net in (converted, pruned)
    ]
    assert any(sum(after) < sum(before) for before, after in zip(*widths, strict=True))
    surgery.save(pruned, tmp_path / "m.safetensors")
    x = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(surgery.load(tmp_path / "m.safetensors").eval()(x), pruned(x))


def constant(model, side=8):
    """What a network gives for maps of one value each, which two maps hold exactly."""
    with torch.no_grad():
        return model(torch.ones(2, 3, side, side))


class Doubled(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


def test_modules_that_do_more_are_left_alone():
    model = pointwise()
    for block in model.blocks:
        block.norm2 = Doubled(8).eval()
    assert not surgery.plan(model, "octave", input_size=8).decisions
    model = pointwise()
    model.blocks[1].conv1.register_forward_hook(lambda module, args, y: 2 * y)
    plan = surgery.plan(model, "octave", input_size=8)
    assert all(not decision.name.startswith("blocks.1") for decision in plan.decisions)


class Taps(nn.Module):
    """Hands out what its second block gives."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.Sequential(*(Residual(8) for _ in range(4)))

    def forward(self, x):
        x, outputs = self.stem(x), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs[1], outputs[3]


def test_maps_that_others_read_stay_whole():
    converted = surgery.convert(Taps().eval(), "octave", input_size=8)
    assert [type(y) for y in constant(converted)] == [torch.Tensor, torch.Tensor]
    assert len(converted.surgery_history) == 2


def test_a_backbone_keeps_its_feature_maps():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("mobilenetv2_035", features_only=True)

        def forward(self, x):
            return self.backbone(x)

    model = Detector().eval()
    converted = surgery.convert(model, "octave", alpha=0.25, input_size=64)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert [y.shape for y in converted(x)] == [y.shape for y in model(x)]


class ReadsShape(Residual):
    def forward(self, x):
        return super().forward(x) if x.shape[1] == 8 else x


def test_a_region_that_does_not_run_is_passed_over():
    model = pointwise()
    model.blocks[1] = ReadsShape(8).eval()
    plan = surgery.plan(model, "octave", input_size=8)
    assert any("does not take two maps" in skipped.reason for skipped in plan.skipped)


class DropsInTraining(Residual):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.1) if self.training else x)


def test_a_region_that_does_not_train_is_passed_over():
    model = pointwise()
    model.blocks[1] = DropsInTraining(8).eval()
    assert not surgery.plan(model, "octave", input_size=8).decisions


def test_images_are_dropped_on_both_maps():
    torch.manual_seed(0)
    layer = EachMap(DropPath(0.5)).train()
    fine, coarse = layer(Maps([torch.ones(32, 1, 2, 2), torch.ones(32, 1, 1, 1)]))
    assert torch.equal(fine[:, 0, 0, 0], coarse[:, 0, 0, 0]) and 0 < (fine[:, 0, 0, 0] > 0).sum() < 32


def test_stages_keep_their_length_and_blocks_their_attributes():
    model = timm.create_model("resnet18")
    state = torch.get_rng_state()
    converted = surgery.convert(model, "octave", input_size=64)
    assert torch.equal(state, torch.get_rng_state())
    assert len(converted.layer1) == 2
    assert isinstance(converted.layer1[0].conv1, RegionConv)
    with pytest.raises(AttributeError, match="no attribute 'conv9'"):
        _ = converted.layer1[0].conv9


class WithBase(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(Residual(8), Residual(8))

    def forward(self, x):
        return self.base(x)


def test_the_originals_state_is_taken_where_a_module_is_called_base():
    model = pointwise()
    model.blocks = WithBase().eval()
    converted = surgery.convert(model, "octave", input_size=8)
    converted.load_state_dict(model.state_dict())
    torch.testing.assert_close(constant(converted), constant(model), rtol=1e-4, atol=1e-5)


def test_a_step_that_computes_activations_again_counts_once():
    converted = surgery.convert(timm.create_model("resnet18"), "octave", input_size=64).train()
    converted.set_grad_checkpointing()
    loss = converted(torch.randn(2, 3, 96, 96)).square().mean()
    with frozen_statistics(batch_norms(converted)):
        loss.backward()
    assert {value.item() for name, value in converted.named_buffers() if "num_batches" in name} == {1}


def test_gamma_and_dynamic_weight_decay_know_norms_of_two_maps():
    model = timm.create_model("resnet18")
    converted = surgery.convert(model, "octave", input_size=64)
    assert len(scaling_norms(converted)) == len(scaling_norms(model))
    decay = DynamicWeightDecay(converted, 1.0)
    converted.train()(torch.randn(2, 3, 96, 96))
    decay.loss().backward()
    decay.close()
    assert converted.layer1[0].bn1.weight.grad.abs().sum() > 0
    for module in converted.modules():
        if isinstance(module, RegionNorm):
            nn.init.zeros_(module.weight[:3].data)
    assert surgery.plan(converted, "gamma", input_size=96).sites
