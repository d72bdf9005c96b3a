import copy

import pytest
import timm
import torch
from torch import nn

import surgery
from tests.small_models import Net


def trained_like(model, seed=0):
    """Norms with statistics and scales of their own, as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, low, high in (("running_mean", -0.3, 0.3), ("running_var", 0.5, 2), ("weight", 0.5, 1.5)):
                getattr(module, name).data.uniform_(low, high, generator=generator)
    return model.eval()


def small(name="resnet26", **kwargs):
    torch.manual_seed(0)
    return trained_like(timm.create_model(name, num_classes=7, **kwargs))


def images(count=24, size=32, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


NARROW = {"channels": (16, 24, 32, 48), "stem_width": 16}


@torch.no_grad()
def error(model, teacher, x):
    return float(((model(x) - teacher(x)) ** 2).mean() / teacher(x).var())


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "kwargs", "convert"),
    [
        ("resnet26", NARROW, {"zeta": 4}),
        ("resnet26", NARROW, {"zeta": 8}),
        ("resnext50_32x4d", {"channels": (16, 32, 32, 32), "layers": (1, 1, 1, 1)}, {}),
        ("seresnet50", NARROW | {"layers": (1, 2, 1, 1)}, {}),
        ("densenet121", {"growth_rate": 8, "block_config": (6, 2, 2, 2)}, {}),
        ("mobilenetv2_050", {}, {"norm": "after"}),
        ("mobilenetv2_050", {}, {}),
        ("resnet26", NARROW, {"mode": "prune", "zeta": 2}),
    ],
    ids=str,
)
def test_real_networks_come_nearer_to_the_original(name, kwargs, convert):
    teacher = small(name, **kwargs)
    size = 32 if name.startswith(("resnet", "mobile", "vgg")) else 64
    x = images(size=size)
    decided = surgery.plan(teacher, input_size=(3, size, size), **convert)
    model = surgery.convert(teacher, input_size=(3, size, size), **convert).train()
    before = error(copy.deepcopy(model).eval(), teacher, images(size=size, seed=2))
    original = copy.deepcopy(teacher.state_dict())
    report = surgery.calibrate(model, teacher, x, kept=decided.kept_outputs(teacher), progress=False)
    fitted = [row for row in report.rows if not row.note]
    assert fitted
    assert sum(row.after for row in fitted) > sum(row.before for row in fitted)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (model, teacher) for m in net.modules())
    assert all(torch.equal(tensor, original[key]) for key, tensor in teacher.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert error(model.eval(), teacher, images(size=size, seed=2)) < before


def test_a_second_time_changes_nothing_and_order_and_batches_do_not_matter():
    teacher, x = small(**NARROW), images(40)
    one, two = (surgery.convert(teacher, zeta=4) for _ in range(2))
    surgery.calibrate(one, teacher, x, progress=False)
    surgery.calibrate(two, teacher, x[torch.randperm(40)].split(7), progress=False)
    assert same(one, two)
    surgery.calibrate(two, teacher, x, progress=False)
    assert same(one, two)


def test_little_memory_takes_fewer_images_in_early_layers():
    teacher = small(**NARROW)
    model = surgery.convert(teacher, zeta=4)
    report = surgery.calibrate(model, teacher, images(96), progress=False, memory=8e6, dtype=torch.float32)
    taking = [row.rows for row in report.rows if row.aim == "start"]
    assert taking == sorted(taking)
    assert taking[0] < 96 == report.rows[-1].rows


def test_training_mode_starts_where_eval_mode_ends():
    """Norms hold the statistics of what they read now, so a fine-tuning begins at the fitted function."""
    teacher, x = small(**NARROW), images(64)
    model = surgery.convert(teacher, zeta=4)
    surgery.calibrate(model, teacher, x, progress=False, rows_per_feature=1e6, dtype=torch.float32)
    norm, seen = model.layer1[0].bn2, []
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, seen[0].var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)


def test_what_a_block_lacks_is_made_up_for_where_it_joins_the_stream():
    teacher = small(**NARROW)
    model = surgery.convert(teacher, zeta=4)
    report = surgery.calibrate(model, teacher, images(), progress=False)
    aims = {row.layer: row.aim for row in report.rows}
    assert aims["layer1.1.conv3"] == aims["layer2.0.downsample.0"] == "sum"
    assert aims["layer1.1.conv2"] == aims["layer2.0.conv3"] == aims["fc"] == "output"
    assert aims["layer1.1.conv1"] == "start"
    assert str(report).count("\n") == len(report.rows) + 1


def test_the_start_can_be_left_out():
    teacher = small(**NARROW)
    model = surgery.convert(teacher, zeta=4)
    weight = model.layer1[1].conv1.weight.clone()
    report = surgery.calibrate(model, teacher, images(), start=False, progress=False)
    assert "start" not in {row.aim for row in report.rows}
    assert torch.equal(model.layer1[1].conv1.weight, weight)


def test_convert_does_it_all_and_the_file_holds_it(tmp_path):
    teacher, x = small(**NARROW), images()
    for zeta in (4, 8):
        plain, recovered = surgery.convert(teacher, zeta=zeta), surgery.convert(teacher, zeta=zeta, calibrate=x)
        fresh = images(seed=2)
        assert error(recovered.eval(), teacher, fresh) < error(plain.eval(), teacher, fresh)
        kwargs = {"num_classes": 7, **{name: list(v) if isinstance(v, tuple) else v for name, v in NARROW.items()}}
        surgery.save(recovered, tmp_path / "m.safetensors", source="timm/resnet26", kwargs=kwargs)
        assert torch.equal(surgery.load(tmp_path / "m.safetensors").eval()(fresh), recovered(fresh))


def test_modules_with_bias_and_without_norm():
    torch.manual_seed(0)
    teacher = trained_like(Net("module", "shared"))
    model = surgery.convert(teacher)
    surgery.calibrate(model, teacher, images(), progress=False)
    assert error(model.eval(), teacher, images(seed=2)) < error(
        surgery.convert(teacher).eval(), teacher, images(seed=2)
    )


@pytest.mark.parametrize("count", [1, 3])
def test_constant_and_few_images_are_no_error(count):
    teacher = small(**NARROW)
    model = surgery.convert(teacher, zeta=4)
    surgery.calibrate(model, teacher, torch.zeros(count, 3, 32, 32), progress=False)
    assert torch.isfinite(model(images(2))).all()


def test_what_cannot_be_calibrated():
    teacher = small(**NARROW)
    model = surgery.convert(teacher, zeta=4)
    with pytest.raises(ValueError, match="has no surgery: convert it first"):
        surgery.calibrate(teacher, teacher, images())
    with pytest.raises(ValueError, match="different orders"):
        surgery.calibrate(surgery.convert(teacher, zeta=4, match=True), teacher, images())
    with pytest.raises(TypeError, match="teacher|model is a str"):
        surgery.calibrate(model, "resnet26", images())
    with pytest.raises(ValueError, match=r"teacher is a Sequential without 'layer1\.0\.conv1', which surgery changed"):
        surgery.calibrate(model, nn.Sequential(nn.Conv2d(3, 4, 3)), images())
    with pytest.raises(ValueError, match="calibration images"):
        surgery.calibrate(model, teacher, [])
    broken = copy.deepcopy(teacher)
    broken.layer1[0].conv2.weight.data[0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"NaN or infinity at 'layer1\.0\.conv2'"):
        surgery.calibrate(model, broken, images(), progress=False)
    changed = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])]
    assert all(key.startswith("layer1.0.conv1") for key in changed)


def test_layers_that_cannot_be_fitted_are_named():
    torch.manual_seed(0)
    teacher = timm.create_model("nf_resnet26", channels=(16, 24, 32, 48)).eval()
    report = surgery.calibrate(surgery.convert(teacher), teacher, images(4, 64), progress=False)
    assert any("its weight is not what it multiplies with" in item.reason for item in report.skipped)
    assert "not fitted: stages.0.0" in str(report)


def test_an_interrupted_calibration_leaves_no_hooks():
    teacher = small(**NARROW)
    model = surgery.convert(teacher, zeta=4)

    def fail(module, args):
        if len(args[0]) > 1:
            raise ZeroDivisionError

    handle = teacher.layer3.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        surgery.calibrate(model, teacher, images(), progress=False)
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (model, teacher) for m in net.modules())
