import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import fx, nn

import surgery
from surgery.core.errors import NoSitesError
from surgery.methods.pix.layer import PiX
from surgery.transforms.history import history
from surgery.transforms.replace import Replace
from tests.methods.pix.ops.loop_pix import loop_pix
from tests.small_models import Awkward, Bottleneck, LooksAtValues, Net

SIZE = (3, 8, 8)


def expected_bottleneck(block, x, act):
    """The block's forward with PiX written as loops in place of conv1, bn1 and the first activation."""
    y = loop_pix(x, block.conv1.weight, None).float()
    y = act(block.bn2(block.conv2(y)))
    return act(x + block.conv3(y))


@pytest.mark.parametrize(
    ("style", "function", "rewritten"),
    [
        ("module", F.silu, False),
        ("functional", F.relu, False),
        ("functional", F.silu, True),
        ("shared", F.silu, True),
    ],
)
@torch.no_grad()
def test_norm_and_activation_go_away_however_they_are_written(style, function, rewritten):
    torch.manual_seed(0)
    model = Net(style, function=function).eval()
    converted = surgery.convert(model, input_size=SIZE)
    assert isinstance(converted.blocks[0], fx.GraphModule) is rewritten
    x = torch.relu(model.stem(torch.randn(2, *SIZE)))
    act = model.blocks[0].act if style == "shared" else function
    torch.testing.assert_close(converted.blocks[0](x), expected_bottleneck(converted.blocks[0], x, act))
    # the tensors of the original fit by name
    assert set(model.state_dict()) > set(converted.state_dict())
    torch.testing.assert_close(converted.blocks[0].conv1.weight, model.blocks[0].conv1.weight)


def test_a_rewritten_block_follows_train_and_eval():
    torch.manual_seed(0)
    model = Net("functional", function=F.silu)
    converted = surgery.convert(model, input_size=SIZE).train()
    assert isinstance(converted.blocks[0], fx.GraphModule)
    assert converted.blocks[0].bn2.training
    running = converted.blocks[0].bn2.running_mean.clone()
    converted(torch.randn(4, *SIZE))
    assert not torch.equal(running, converted.blocks[0].bn2.running_mean)
    converted.eval()
    x = torch.randn(1, *SIZE)
    torch.testing.assert_close(converted(x), converted(x))


def test_a_block_that_differs_between_train_and_eval_is_left_alone():
    class Dropping(Bottleneck):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.5, self.training))

    model = Net("functional", function=F.silu)
    model.blocks[0] = Dropping("functional", F.silu)
    plan = surgery.plan(model, input_size=SIZE)
    assert plan.sites == ()
    assert "train and eval mode" in {item.name: item.reason for item in plan.skipped}["blocks.0.conv1"]


def test_a_copy_unless_in_place():
    model = Net("module")
    assert surgery.convert(model, input_size=SIZE) is not model
    assert isinstance(model.blocks[0].conv1, nn.Conv2d)
    weight = model.blocks[0].conv1.weight
    assert surgery.convert(model, input_size=SIZE, inplace=True) is model
    assert model.blocks[0].conv1.weight is weight


def test_a_model_whose_forward_looks_at_values():
    assert isinstance(surgery.convert(LooksAtValues(), input_size=SIZE).net.blocks[0].conv1, PiX)


def test_nothing_to_convert_warns_or_raises():
    model = Awkward()
    with pytest.warns(UserWarning, match="Awkward has no site"):
        same = surgery.convert(model, input_size=SIZE)
    x = torch.randn(1, *SIZE)
    assert torch.equal(same(x), model(x))
    with pytest.raises(NoSitesError, match="no site"):
        surgery.convert(model, input_size=SIZE, strict=True)


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.module = inner


def test_refused_models_say_what_to_do():
    model = Net("module")
    with torch.device("meta"):
        on_meta = Net("module")
    quantised = copy.deepcopy(model)
    quantised.fc = torch.ao.nn.quantized.Linear(16, 5)
    cases = [
        (nn.DataParallel(model), TypeError, "convert model.module"),
        (torch.compile(model), TypeError, "convert model._orig_mod"),
        (torch.jit.trace(model.eval(), torch.randn(1, *SIZE)), TypeError, "TorchScript"),
        (quantised, TypeError, "quantised .fc is a Linear"),
        (on_meta, ValueError, "meta device"),
        (nn.Sequential(nn.LazyConv2d(4, 1)), ValueError, "lazy"),
        ("resnet50", TypeError, "model is a str"),
    ]
    for refused, error, message in cases:
        with pytest.raises(error, match=message):
            surgery.convert(refused, zeta=4)


def test_ddp_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Net("module")
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(TypeError, match="DistributedDataParallel: convert model.module"):
            surgery.convert(wrapped)
        converted = nn.parallel.DistributedDataParallel(surgery.convert(model, input_size=SIZE))
        converted(torch.randn(2, *SIZE)).sum().backward()
        unused = [n for n, p in converted.named_parameters() if p.grad is None]
        assert unused == []
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "weighted"},
        {"operator": "min"},
        {"activation": "tanh"},
        {"predictor_norm": True},
        {"tau": 1.0},
        {"norm": "before"},
        {"norm": "after"},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [{}, {"mode": "downscale", "zeta": 2, "insert": "blocks"}, {"mode": "prune"}], ids=str)
def test_every_variant_trains_a_step_and_reloads(options, mode, tmp_path):
    @surgery.register_builder("variant_net")
    def variant_net():
        return Net("module", "module")

    torch.manual_seed(0)
    converted = surgery.convert(variant_net(), input_size=SIZE, **mode, **options).train()
    optimizer = torch.optim.SGD(converted.parameters(), 0.1)
    before = {k: v.clone() for k, v in converted.named_parameters()}
    F.cross_entropy(converted(torch.randn(8, *SIZE)), torch.arange(8) % 5).backward()
    optimizer.step()
    moved = [k for k, v in converted.named_parameters() if not torch.equal(v, before[k])]
    assert any("conv1" in name for name in moved)
    surgery.save(converted, tmp_path / "m.safetensors", source="variant_net", input_size=SIZE)
    x = torch.randn(2, *SIZE)
    assert torch.equal(converted.eval()(x), surgery.load(tmp_path / "m.safetensors")(x))


@torch.no_grad()
def test_norm_after_keeps_the_norm_and_drops_a_fused_activation():
    model = timm.create_model("densenet121").eval()
    converted = surgery.convert(model, norm="after")
    norm = converted.features.denseblock1.denselayer3.norm2
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(norm.act, nn.Identity)


@torch.no_grad()
def test_pruning_with_zeta_one_changes_nothing_before_training():
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    pruned = surgery.convert(model, mode="prune").eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, PiX) for m in pruned.modules()) == 16


def test_downscale_of_a_residual_network():
    model = timm.create_model("resnet18")
    plan = surgery.plan(model, mode="downscale", zeta=2)
    # the second convolution of each block, and the first where it neither strides nor opens the network
    assert {row.site for row in plan.sites} == {
        *(f"layer{i}.{j}.conv2" for i in range(1, 5) for j in range(2)),
        *(f"layer{i}.1.conv1" for i in range(1, 5)),
    }
    converted = surgery.convert(model, mode="downscale", zeta=2)
    assert converted.layer2[1].conv1.weight.shape == (128, 64, 3, 3)
    converted(torch.randn(2, 3, 64, 64)).sum().backward()


@torch.no_grad()
def test_squeeze_conv_starts_as_a_mean_over_subsets():
    torch.manual_seed(0)
    model = Net("module").eval()
    converted = surgery.convert(
        model, "squeeze-conv", mode="downscale", zeta=2, insert="blocks.0.conv2", input_size=SIZE
    ).eval()
    x = torch.rand(2, 4, 5, 5)
    x[:, 1], x[:, 3] = x[:, 0], x[:, 2]  # where the channels of a subset agree, nothing is lost
    close = {"rtol": 1e-3, "atol": 1e-3}  # the new BatchNorm's eps
    torch.testing.assert_close(converted.blocks[0].conv2(x), model.blocks[0].conv2(x), **close)


def test_edits_stack():
    model = timm.create_model("vgg11_bn", num_classes=4)
    squeezed = surgery.convert(model, "squeeze-conv", mode="downscale", zeta=2, head="pool")
    pix = surgery.convert(squeezed, zeta=4)
    assert [t.type for t in history(pix)].count("insert_before") == 3
    assert [t.type for t in history(pix)].count("replace") == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = surgery.convert(pix, zeta=4)
    assert history(again) == history(pix)


def test_pooled_head_on_another_model_is_refused():
    with pytest.raises(surgery.errors.SurgeryError, match="VGG-like"):
        surgery.convert(timm.create_model("resnet18"), mode="downscale", zeta=2, head="pool")


def test_stays_a_timm_model(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet26", num_classes=7)
    converted = surgery.convert(model, zeta=4)
    assert type(converted) is type(model)
    assert converted.default_cfg == model.default_cfg
    x = torch.randn(2, 3, 64, 64)
    assert converted.forward_features(x).shape == model.forward_features(x).shape
    converted.reset_classifier(3)
    assert converted(x).shape == (2, 3)
    assert converted.num_classes == 3
    ema = timm.utils.ModelEmaV3(converted)
    ema.update(converted)
    converted.load_state_dict(surgery.convert(timm.create_model("resnet26", num_classes=3)).state_dict())
    assert converted.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).shape == (2, 3)
    # the original's checkpoint fits by name: all it lacks is what surgery removed
    converted.reset_classifier(7)
    missing, unexpected = converted.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert all(".bn1." in name for name in unexpected)


def test_compiles_and_exports_whole():
    torch.manual_seed(0)
    model = surgery.convert(timm.create_model("resnet26"), zeta=4).eval()
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    dynamic = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, (x,), dynamic_shapes=dynamic).module()
    other = torch.randn(3, 3, 96, 64)
    torch.testing.assert_close(exported(other), model(other))


def test_autocast_trains():
    model = surgery.convert(timm.create_model("resnet26"), zeta=4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 64, 64)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_plan_that_cannot_be_carried_out_leaves_the_model_alone():
    model = timm.create_model("resnet18")
    before = list(model.state_dict())
    with pytest.raises(surgery.errors.SurgeryError, match="VGG-like"):
        surgery.convert(model, mode="downscale", zeta=2, head="pool", inplace=True)
    assert list(model.state_dict()) == before
    assert not history(model)


@pytest.mark.slow
def test_inductor_trains_a_converted_network():
    torch.manual_seed(0)
    model = surgery.convert(timm.create_model("resnet26"), zeta=4)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(2, 3, 64, 64)
    compiled(x).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
def test_inserted_squeeze_reads_the_filters_of_its_own_subsets(grouping):
    """Where a subset's channels agree, a downscaled convolution gives what it gave before."""
    conv = torch.nn.Conv2d(8, 6, 3, padding=1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), conv).eval()
    converted = surgery.convert(model, mode="downscale", zeta=2, insert="2", grouping=grouping).eval()
    x = torch.rand(2, 4, 5, 5)
    x = x.repeat_interleave(2, 1) if grouping == "contiguous" else x.repeat(1, 2, 1, 1)
    torch.testing.assert_close(converted[2](x), conv(x))


def test_strided_grouping_is_kept_in_the_file(tmp_path):
    model = surgery.convert(surgery.create("resnet26"), grouping="strided").eval()
    surgery.save(model, tmp_path / "m.safetensors")
    loaded = surgery.load(tmp_path / "m.safetensors")
    assert loaded.layer2[1].conv1.grouping == "strided"
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_an_option_that_a_file_does_not_name_has_its_default():
    assert Replace("conv1", "pix", (8, 4), {"tau": 0.25}).options["grouping"] == "contiguous"


def test_unknown_grouping_is_refused():
    with pytest.raises(ValueError, match="grouping='random'"):
        surgery.plan(surgery.create("resnet26"), grouping="random")


def test_with_batches_to_plan_with_all_of_those_to_calibrate_with_are_drawn():
    torch.manual_seed(0)
    model = surgery.create("cifar_resnet", num_classes=3, layers=[1, 1, 1, 1], channels=[4, 4, 4, 4]).eval()
    drawn = []

    def batches():
        for number in range(5):
            drawn.append(number)
            yield torch.randn(256, 3, 8, 8)

    labelled = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 3)]
    surgery.convert(model, "taylor", keep=0.5, input_size=8, images=labelled, calibrate=batches())
    assert drawn == list(range(5))


def test_a_target_that_is_missed_is_warned_of():
    model = Net("module")
    with pytest.warns(surgery.errors.ConversionWarning, match=r"macs=1e-09 cannot be met within 1 %: the nearest"):
        surgery.convert(model, "l1", macs=1e-9, input_size=16)
    assert "note: macs=1e-09 cannot be met within 1 %" in str(surgery.plan(model, "l1", macs=1e-9, input_size=16))
    with pytest.raises(NoSitesError, match=r"macs=0\.5 cannot be met within 1 %: the nearest share is 1\.000"):
        surgery.convert(nn.Sequential(nn.Conv2d(3, 8, 3)), "l1", macs=0.5, input_size=16, strict=True)


def test_optimizers_that_cannot_be_repaired_are_refused():
    model, other = Net("module"), Net("module")
    arguments = {"macs": 0.5, "input_size": 16, "inplace": True}
    with pytest.raises(TypeError, match=r"optimizers=SGD\(…\): a sequence of optimizers is needed"):
        surgery.convert(model, "l1", optimizers=torch.optim.SGD(model.parameters(), 0.1), **arguments)
    with pytest.raises(ValueError, match="optimizers has SGD, which holds no parameter of Net"):
        surgery.convert(model, "l1", optimizers=[torch.optim.SGD(other.parameters(), 0.1)], **arguments)
    assert not history(model)
