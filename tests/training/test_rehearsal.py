"""What fails later in a job fails before anything starts: in --dry-run, and at the job's beginning."""

import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors import safe_open

import finetune
import surgery
from surgery.training import load_recipe, run
from surgery.training.classification_task import ImageClassification
from surgery.training.recipe import RecipeError, TrainSettings
from surgery.training.rehearsal import _rehearse_first_size
from surgery.training.training_spec import TrainingSpec

LIGHT = "channels: [8, 16, 16, 16], layers: [1, 1, 1, 1]"
SMALL = [
    f"model.kwargs={{{LIGHT}}}",
    "data.image_size=16",
    "data.batch_size=359",
    "baseline.epochs=1",
    "finetune.epochs=1",
    "surgery.calibrate=0",
]


def checkpoint(path, classes=10):
    model = surgery.create("timm/resnet26", num_classes=classes, channels=[8, 16, 16, 16], layers=[1, 1, 1, 1])
    surgery.save(model, path / "w.safetensors")
    return path / "w.safetensors"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["surgery.calibrate=1438"], r"surgery\.calibrate=1438: at most the 1437 training images"),
        (["surgery.images=1438"], r"surgery\.images=1438: at most the 1437 training images"),
        (["surgery.method=l1", "surgery.options={macs: 1.7}"], "zeta"),
        (["surgery.method=taylor", "surgery.zeta=null", "surgery.options={macs: 1.7}"], r"macs=1\.7: a share above 0"),
        (["surgery.options={images: 3}"], r"surgery\.options\.images: surgery\.images is the key"),
        (["finetune.optimizer=fusedadam"], "APEX|CUDA"),
        (["baseline.epochs=0"], r"freshly initialised, would be the untrained teacher"),
        (
            ["baseline.epochs=0", "model.pretrained=true", "model.name=timm/resnet26", "model.kwargs={}"],
            r"baseline\.epochs=0: the new fc\.bias, fc\.weight would be the untrained teacher",
        ),
        (
            ["baseline.epochs=0", "finetune.epochs=0", "model.pretrained=true", "model.kwargs={}"],
            "would be saved untrained",
        ),
        (["output={file}"], "there is a file of that name"),
        (["output={file}/x"], r"output=.*file/x: .*file is a file; a folder"),
        (["output=/proc/foo"], r"output=/proc/foo: nothing can be written to /"),
        (["find_batch_size=true", "baseline.first_size=8"], "images have grown from baseline.first_size=8"),
        (["surgery.options={taw: 0.3}"], "did you mean 'tau'"),
        (
            ["checkpoint_activations=true", "model.name=torchvision/resnet18", "model.kwargs={}"],
            "set_grad_checkpointing",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refused_before_anything_starts(settings, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "surgery.training.job_stages.train", lambda *arguments, **more: pytest.fail("a training has begun")
    )
    (tmp_path / "file").write_text("")
    overrides = [
        f"output={tmp_path / 'out'}",
        *SMALL,
        *(text.replace("{file}", str(tmp_path / "file")) for text in settings),
    ]
    for how in (["--dry-run", *overrides], overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert finetune.main(how) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["ema_decay=0.9", "block_weight=1.0", "keep_best=true"])
def test_what_needs_whole_weights_is_refused_where_they_are_sharded(tmp_path, monkeypatch, capsys, key):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    overrides = [*SMALL, f"output={tmp_path / 'out'}", "finetune.distill_weight=0", "finetune.block_weight=0"]
    for how in (["--dry-run"], []):
        assert finetune.main([*how, *overrides, f"finetune.{key}"]) == 2
        assert "not with FSDP" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class OneSize(torch.nn.Module):
    def forward(self, images, labels):
        if images.shape[2:] != (16, 16):
            raise AssertionError("images of 16 pixels only")  # as timm's patch embeddings do
        return images.mean() + labels.float().mean()


def test_a_network_that_does_not_take_images_of_the_first_size():
    batch = torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64)

    def rehearsed(**settings):
        spec = TrainingSpec(Accelerator(), ImageClassification(10), TrainSettings(**settings))
        _rehearse_first_size(spec, OneSize(), batch)

    rehearsed(epochs=3)
    rehearsed(epochs=1, first_size=8)
    with pytest.raises(RecipeError, match=r"first_size=8: .* of \(8, 8\) pixels \(images of 16 pixels only\)"):
        rehearsed(epochs=3, first_size=8)


def test_dry_run_shows_the_plan_at_the_images_size(capsys):
    assert finetune.main(["--dry-run", *SMALL, "finetune.mixup=0.2", "finetune.ema_decay=0.9"]) == 0
    out = capsys.readouterr().out
    assert "recorded at 3×16×16" in out
    assert "original: timm/resnet26, freshly initialised" in out
    assert "a batch: (359, 3, 16, 16) float32, (359,) int64" in out


@pytest.mark.parametrize("method", ["l1", "random", "sfvr", "taylor", "reconstruction", "dwp"])
def test_dry_run_shows_macs_before_and_after(capsys, method):
    more = [] if method == "dwp" else ["surgery.zeta=null", "surgery.options={macs: 0.5}"]
    assert finetune.main(["--dry-run", *SMALL, f"surgery.method={method}", *more]) == 0
    out = capsys.readouterr().out
    assert f"{method}{', mode squeeze' if method == 'dwp' else ', macs 0.5'}, recorded at 3×16×16" in out
    lines = {name: re.search(rf"^{name} +([\d.]+) k", out, re.MULTILINE) for name in ("original", "converted")}
    before, after = (float(line.group(1)) for line in lines.values())
    assert after < before
    if method != "dwp":  # reconstruction leaves residual streams as they are, and says so
        assert after == pytest.approx(before / 2, rel=0.04) or "macs=0.5 cannot be met within 1 %" in out


def test_dry_run_says_where_pretrained_weights_would_come_from(capsys):
    more = ["model.pretrained=true", "model.kwargs={}", "data.image_size=32", "surgery.zeta=4"]
    assert finetune.main(["--dry-run", *SMALL, *more]) == 0
    out = capsys.readouterr().out
    assert "pretrained weights of timm/resnet26" in out
    assert "pretrained; new for 10 classes: fc.bias, fc.weight" in out


def test_a_users_classes_from_a_plain_file_of_weights(tmp_path, capsys):
    torch.save(surgery.load(checkpoint(tmp_path, classes=7)).state_dict(), tmp_path / "seven.pth")
    rows = run(load_recipe(finetune.QUICKSTART, [f"output={tmp_path}", *SMALL, f"model.weights={tmp_path}/seven.pth"]))
    assert [row.stage for row in rows] == ["original", "after surgery", "after fine-tuning"]
    assert "new for 10 classes: fc.weight, fc.bias, trained here for 1 epochs" in capsys.readouterr().out
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert "seven.pth" not in file.metadata()["surgery"]


def test_a_checkpoint_is_trained_further_where_the_baseline_has_epochs(tmp_path):
    overrides = [f"output={tmp_path}", *SMALL, f"model.checkpoint={checkpoint(tmp_path)}", "model.kwargs={}"]
    run(load_recipe(finetune.QUICKSTART, [*overrides, "finetune.epochs=0"]))
    before, after = (surgery.load(tmp_path / f"{name}.safetensors") for name in ("w", "baseline"))
    assert not torch.equal(before.conv1.weight, after.conv1.weight)


def test_a_checkpoint_that_is_no_better_than_chance_is_a_loud_warning(tmp_path):
    model = surgery.load(checkpoint(tmp_path))
    torch.nn.init.zeros_(model.fc.weight)  # the same class for every image
    surgery.save(model, tmp_path / "w.safetensors")
    overrides = [f"output={tmp_path}", *SMALL, f"model.checkpoint={tmp_path}/w.safetensors", "model.kwargs={}"]
    with pytest.warns(UserWarning, match="is chance for 10 classes.*baseline.epochs=10 trains it first"):
        run(load_recipe(finetune.QUICKSTART, [*overrides, "baseline.epochs=0"]))
