import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import finetune
import surgery
from surgery.checkpoint.source import register_builder
from surgery.cli.main import main
from surgery.training.block_distillation import distillation_options
from surgery.training.damage import Judged, measure_damage
from surgery.training.data_loading import make_loader
from surgery.training.datasets import open_dataset
from surgery.training.recipe import DataSettings, TrainSettings
from surgery.training.saliency_task import MapLoss, SalientObjectDetection
from surgery.training.segmentation_task import SemanticSegmentation
from surgery.training.task import DetailedTask, all_figures
from surgery.vision.saliency import figures, image_scores
from tests.training.test_recipe import RECIPES
from tests.training.test_saliency_datasets import SETTINGS, objects


@register_builder("tests-saliency")
def small_network(width: int = 8, channels: int = 1) -> nn.Module:
    """Logits of the image's size."""
    conv, act = nn.Conv2d, nn.ReLU
    layers = [conv(3, width, 3, padding=1), nn.BatchNorm2d(width), act(), conv(width, width, 3, padding=1), act()]
    return nn.Sequential(*layers, conv(width, channels, 1))


def probability(logits):
    return 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))


def test_loss_is_the_mean_over_pixels_of_soft_masks():
    torch.manual_seed(0)
    main_logits, other, masks = torch.randn(2, 1, 4, 5), torch.randn(2, 1, 4, 5), torch.rand(2, 4, 5)

    def by_hand(logits, target):
        p = probability(logits[:, 0])
        return -(target.numpy() * np.log(p) + (1 - target.numpy()) * np.log(1 - p)).mean()

    loss = MapLoss(auxiliary_weight=0.4, smoothing=0.0)
    assert loss(main_logits, masks).item() == pytest.approx(by_hand(main_logits, masks), rel=1e-5)
    both = by_hand(main_logits, masks) + 0.4 * by_hand(other, masks)
    assert loss((main_logits, other), masks).item() == pytest.approx(both, rel=1e-5)
    smoothed = MapLoss(0.4, 0.1)(main_logits, masks).item()
    assert smoothed == pytest.approx(by_hand(main_logits, 0.9 * masks + 0.05), rel=1e-5)
    assert loss(main_logits.bfloat16(), masks).dtype == torch.float32


def test_distillation_by_hand():
    torch.manual_seed(0)
    teacher, student = small_network().eval(), small_network().eval()
    settings = TrainSettings(distill_weight=0.25, temperature=2.0)
    task, options = SalientObjectDetection(), distillation_options(settings, Accelerator(cpu=True))
    training = task.distillation(student, teacher, blocks=(), criterion=task.criterion(settings), **options)
    images, masks = torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8)
    with torch.no_grad():
        result = training(images, masks)
        p, q = (probability(network(images) / 2) for network in (teacher, student))
        own = nn.functional.binary_cross_entropy(student(images).sigmoid()[:, 0], masks).item()
        same = task.distillation(teacher, teacher, blocks=(), criterion=task.criterion(settings), **options)
        assert same(images, masks)["kd_loss"].item() == pytest.approx(0, abs=1e-6)
    divergence = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert result["loss"].item() == pytest.approx(0.75 * own + 0.25 * divergence, rel=1e-4)
    assert result["kd_loss"].item() == pytest.approx(divergence, rel=1e-4)


@pytest.fixture
def data(tmp_path):
    settings = DataSettings(root=str(objects(tmp_path / "data")), **SETTINGS)
    return open_dataset(settings), settings


def test_figures_are_of_masks_at_their_own_sizes(data):
    torch.manual_seed(0)
    model, task, accelerator = small_network(), SalientObjectDetection(), Accelerator(cpu=True)
    images, settings = data
    plain = make_loader(images.test, settings, training=False)
    loader = accelerator.prepare_data_loader(plain)
    reached = task.figures(accelerator, model, loader)
    scores = []
    for index in range(len(images.test)):
        image, mask = plain.dataset[index]
        with torch.no_grad():
            logits = model.eval()(image[None])
        shares = nn.functional.interpolate(logits.sigmoid(), mask.shape, mode="bilinear")[0, 0]
        scores.append(image_scores((255 * shares).round().byte().numpy(), mask.numpy()))
    assert reached == pytest.approx(figures(scores).by_name(), abs=1e-3)
    assert task.evaluate(accelerator, model, loader) == pytest.approx(reached["max F"])
    assert all_figures(task, accelerator, model, plain) == pytest.approx(reached)
    assert next(iter(reached)) == task.metric


def test_the_control_needs_no_network(data):
    controls = SalientObjectDetection().controls(data[0])
    assert list(controls["mean training mask"]) == ["max F", "MAE"]
    assert controls["mean training mask"]["max F"] > 80  # all objects are where they were in training


def test_other_tasks_have_their_metric_alone():
    assert not isinstance(SemanticSegmentation(), DetailedTask)
    assert isinstance(SalientObjectDetection(), DetailedTask)


def test_a_guess_is_one_of_two(data):
    model, batches = small_network(), [(torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8).round())]
    judged = Judged(model, batches)
    damage = measure_damage(Accelerator(cpu=True), SalientObjectDetection(), judged, judged, 1)
    assert damage.guessing == pytest.approx(np.log(2))


def arguments(tmp_path, *more):
    recipe = next(path for path in RECIPES if path.stem == "sod")
    settings = [f"output={tmp_path}/out", f"data.root={tmp_path}/data", "data.workers=0", "data.batch_size=4"]
    settings += ["data.image_size=16", "model.name=tests-saliency", "model.kwargs={}", "baseline.epochs=8"]
    settings += ["baseline.lr=0.02", "finetune.epochs=1", "precision=no", "baseline.dynamic_weight_decay=0"]
    settings += ["surgery.method=l1", "surgery.options={macs: 0.7}", *more]
    return [str(recipe), *settings]


def test_from_the_first_training_to_maps(tmp_path, capsys):
    objects(tmp_path / "data", count=8)
    more = ["seeds=2", "finetune.keep_best=true"]
    assert finetune.main(arguments(tmp_path, *more)) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    header, *lines = (line for line in out.splitlines() if "max F" in line)
    assert header.split() == ["max", "F", "adaptive", "F", "MAE", "S", "mean", "E", "adaptive", "E", "MACs", "params"]
    assert len(lines) == 1
    assert lines[0].startswith("control: mean training mask: max F ")
    assert "logits identical on 8 test images" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["stage"]: row for row in results["rows"]}
    tuned = rows["after fine-tuning"]
    assert results["metric"] == "max F"
    assert rows["original"]["accuracy"] > 90
    assert list(tuned["figures"]) == ["adaptive F", "MAE", "S", "mean E", "adaptive E"]
    assert [len(values) for values in tuned["figures"].values()] == [2] * 5
    assert len(tuned["accuracies"]) == 2
    assert list(results["controls"]) == ["mean training mask"]
    file = str(tmp_path / "out" / "m.safetensors")
    assert main(["eval", file, str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"max F {tuned['accuracies'][0]:.2f}, adaptive F {tuned['figures']['adaptive F'][0]:.2f}")


def test_a_network_with_another_output_is_refused(tmp_path, capsys):
    objects(tmp_path / "data")
    assert finetune.main(arguments(tmp_path, "model.kwargs={channels: 2}", "--dry-run")) == 2
    error = capsys.readouterr().err
    assert "gives (1, 2, 16, 16) for one image, data sod has masks: (1, 1, 16, 16) is needed" in error


def test_masks_that_differ_in_size_are_one_line(tmp_path, capsys):
    objects(tmp_path / "data")
    (tmp_path / "data" / "train" / "masks" / "0.png").write_bytes(
        (tmp_path / "data" / "train" / "masks" / "1.png").read_bytes()
    )
    assert finetune.main(arguments(tmp_path)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "finetune.py" in line]
    assert len(errors) == 1
    assert "0.png' is 20×26, its mask 21×30" in errors[0]


def test_labels_are_not_classes(tmp_path, capsys):
    objects(tmp_path / "data")
    assert finetune.main(arguments(tmp_path, "surgery.method=taylor", "--dry-run")) == 2
    assert "surgery.method=taylor needs images with a class each" in capsys.readouterr().err


def test_the_light_check_names_the_package(monkeypatch):
    monkeypatch.setattr("surgery.core.extras._is_installed", lambda name: name != "py_sod_metrics")
    with pytest.raises(surgery.errors.MissingPackageError, match=r"needs pysodmetrics: pip install 'surgery\[train\]'"):
        image_scores(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
