"""The main job on a small network and few epochs: whole, interrupted, resumed, changed."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import finetune
import surgery
from surgery.training import load_recipe, run
from surgery.training import trainer as trainer_module
from surgery.training.non_finite import NonFiniteLossError
from surgery.training.recipe import RecipeError
from surgery.transforms.history import history

SMALL = [
    "model.kwargs={num_classes: 10, channels: [8, 16, 32, 32], layers: [1, 1, 1, 1]}",
    "baseline.epochs=2",
    "finetune.epochs=2",
    "surgery.calibrate=0",
    "data.image_size=16",
]
# torch 2.14 gives NaN gradients in bf16 for a strided 3×3 convolution of a 1×1 map, on processors with AMX
AT_32 = "data.image_size=32"


def recipe(output, *more):
    return load_recipe(finetune.QUICKSTART, [f"output={output}", *SMALL, *more])


def test_leaves_all_that_it_promises(tmp_path, capsys):
    rows = run(recipe(tmp_path))
    out = capsys.readouterr().out
    assert [row.stage for row in rows] == ["original", "after surgery", "after fine-tuning"]
    assert rows[1].macs == rows[2].macs < rows[0].macs
    assert "logits identical on 360 test images" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["reloaded_identical"] is True
    assert [len(history) for history in results["curves"]["converted"]] == [2]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    transforms = history(surgery.load(tmp_path / "m.safetensors"))
    assert [transform.type for transform in transforms].count("replace") == 4


def test_calibrated_before_it_is_fine_tuned(tmp_path, capsys):
    rows = run(recipe(tmp_path, "surgery.calibrate=300", "baseline.epochs=3", "finetune.epochs=1"))
    assert [row.stage for row in rows] == ["original", "after surgery", "after calibration", "after fine-tuning"]
    assert rows[2].accuracy > rows[1].accuracy
    assert "logits identical" in capsys.readouterr().out


@pytest.mark.parametrize(("calibrated", "disjoint"), [(300, True), (1437, False)])
def test_mimicry_is_judged_by_images_that_did_not_calibrate(tmp_path, capsys, monkeypatch, calibrated, disjoint):
    seen, mimic = {}, surgery.mimic

    def watched(model, teacher, images, *, held, **options):
        seen["held"], seen["learnt"] = torch.cat(list(held)), torch.cat(list(images))
        return mimic(model, teacher, [seen["learnt"]], held=held, **options)

    def calibration(network, *arguments, calibrate=None, convert=surgery.convert, **options):
        if calibrate is not None:
            calibrate = seen["calibrated"] = torch.cat(list(calibrate))
        return convert(network, *arguments, calibrate=calibrate, **options)

    monkeypatch.setattr(surgery, "mimic", watched)
    monkeypatch.setattr(surgery, "convert", calibration)
    more = [f"surgery.calibrate={calibrated}", "mimic.steps=2", "mimic.lr=1e-4", "mimic.images=64"]
    rows = run(recipe(tmp_path, *more, "baseline.epochs=1", "finetune.epochs=0"))
    assert [row.stage for row in rows] == ["original", "after surgery", "after calibration", "after mimicry"]
    keys = ("calibrated", "held", "learnt")
    fitted, held, learnt = ({image.numpy().tobytes() for image in seen[key]} for key in keys)
    assert len(seen["held"]) == 8 and not held & learnt
    assert (not held & fitted) == disjoint
    assert ("have been calibrated on, too" in capsys.readouterr().out) != disjoint


def test_control_and_seeds(tmp_path, capsys):
    more = ["seeds=2", "control=true", "baseline.epochs=1", "finetune.epochs=1", "surgery.calibrate=100"]
    rows = {row.stage: row for row in run(recipe(tmp_path, *more))}
    assert [len(row.accuracies) for row in rows.values()] == [1, 1, 2, 2, 2]
    tuned, control = rows["after fine-tuning"], rows["control: original, fine-tuned"]
    assert control.macs == rows["original"].macs > tuned.macs
    assert tuned.deviation == pytest.approx(abs(tuned.accuracies[0] - tuned.accuracies[1]) / 2**0.5)
    assert " ± " in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["curves"]["control"]) == len(written["curves"]["converted"]) == 2


def test_from_scratch(tmp_path):
    rows = run(recipe(tmp_path, "baseline.epochs=0", "finetune.epochs=1", "finetune.distill_weight=0"))
    assert not (tmp_path / "baseline.safetensors").exists()
    assert [row.stage for row in rows] == ["original", "after surgery", "after fine-tuning"]


def test_a_network_with_other_classes_is_refused_at_once(tmp_path):
    with pytest.raises(RecipeError, match=r"gives \(1, 7\) for one image, data digits has 10.*num_classes: 10"):
        run(recipe(tmp_path, "model.kwargs.num_classes=7"))
    assert not list(tmp_path.iterdir())


def test_without_training(tmp_path):
    rows = run(recipe(tmp_path, "baseline.epochs=0", "finetune.epochs=0", "surgery.calibrate=40", "control=true"))
    assert [row.stage for row in rows] == ["original", "after surgery", "after calibration"]
    assert (tmp_path / "m.safetensors").exists()
    assert (tmp_path / "curve.png").exists()


def test_interrupted_and_resumed_gives_the_same_bits(tmp_path, monkeypatch):
    more = [
        "data.hflip=0.5",
        "baseline.batch_size=65",
        "finetune.mixup=0.2",
        "finetune.ema_decay=0.9",
        "model.kwargs.drop_rate=0.2",
    ]
    run(recipe(tmp_path / "whole", *more))
    real, calls = trainer_module.Training._step, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) in (10, 40, 60, 75):  # of 22 in each of the four epochs, some of them more than once
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(trainer_module.Training, "_step", interrupted)
    soon = ["baseline.save_minutes=0.002", "finetune.save_minutes=0"]
    settings = [f"output={tmp_path / 'parts'}", *SMALL, *more, *soon]
    assert [finetune.main(settings) for _ in range(5)] == [130, 130, 130, 130, 0]
    whole, parts = (load_file(tmp_path / name / "m.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts")]
    assert results[0]["curves"] == results[1]["curves"]


def test_other_settings_do_not_mix_with_an_old_state(tmp_path):
    short = ["baseline.epochs=1", "finetune.epochs=1"]
    run(recipe(tmp_path, *short))
    with pytest.raises(RecipeError, match=r"other settings \(different: finetune\).*fresh=true"):
        run(recipe(tmp_path, *short, "finetune.lr=0.01"))
    (tmp_path / "mine.txt").write_text("kept")
    run(recipe(tmp_path, *short, "finetune.lr=0.01", "fresh=true"))
    assert (tmp_path / "mine.txt").exists()


def test_mixup_ema_clipping_bf16_and_a_checkpoint(tmp_path):
    run(recipe(tmp_path / "one", "baseline.epochs=1", "finetune.epochs=0"))
    more = ["finetune.mixup=0.2", "finetune.ema_decay=0.9", "finetune.clip_grad=1.0", "precision=bf16", AT_32]
    checkpoint = f"model.checkpoint={tmp_path / 'one' / 'baseline.safetensors'}"
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = run(recipe(tmp_path / "two", checkpoint, *more))
    assert len(rows) == 3
    assert len(json.loads((tmp_path / "two" / "results.json").read_text())["curves"]["original"][0]) == 2
    assert run(recipe(tmp_path / "two", checkpoint, *more))[2].accuracy == rows[2].accuracy


def test_bf16_autocasts_in_training_only(tmp_path):
    more = ["precision=bf16", "channels_last=true", AT_32]
    assert len(run(recipe(tmp_path, *more))) == 3  # and it is reloaded identical, or an error is raised


def test_learns_from_blocks_without_labels(tmp_path):
    more = ["baseline.epochs=4", "finetune.distill_weight=1.0", "finetune.block_weight=20.0", "control=true"]
    more += ["surgery.calibrate=300"]
    rows = {row.stage: row for row in run(recipe(tmp_path, *more))}
    assert rows["after fine-tuning"].accuracy > rows["after surgery"].accuracy
    history = json.loads((tmp_path / "results.json").read_text())["curves"]
    # blocks compared in another order of the channels would err by more than they vary
    assert history["converted"][0][0]["loss"] < 0.7 * 20
    # the control's blocks are the original's but for the batch statistics of training mode
    assert history["control"][0][0]["loss"] < history["converted"][0][0]["loss"]


def test_blocks_fade_from_epoch_to_epoch_also_after_an_interruption(tmp_path, monkeypatch):
    real, weights = trainer_module.Training._step, []

    def watched(training, step, *batch):
        if step == 0:
            weights.append(getattr(training.objective, "block_weight", None))
            if len(weights) == 5:
                raise KeyboardInterrupt
        return real(training, step, *batch)

    monkeypatch.setattr(trainer_module.Training, "_step", watched)
    more = ["baseline.epochs=1", "finetune.epochs=3", "finetune.block_weight=20.0", "finetune.block_fade=true"]
    settings = [f"output={tmp_path}", *SMALL, *more, "data.batch_size=359", "control=true"]
    assert finetune.main(settings) == 130
    assert finetune.main(settings) == 0
    # the baseline has none; the converted network's three epochs, then the control's, whose first is begun twice
    assert weights == [None, 20.0, 10.0, 0.0, 20.0, 20.0, 10.0, 0.0]


def test_training_images_grow(tmp_path, monkeypatch):
    step, sides = trainer_module.Training._step, []

    def watched(training, number, images, labels):
        sides.append(tuple(images.shape[2:]))
        return step(training, number, images, labels)

    monkeypatch.setattr(trainer_module.Training, "_step", watched)
    more = ["baseline.epochs=3", "baseline.first_size=8", "data.batch_size=359", "finetune.epochs=0"]
    run(recipe(tmp_path, *more))
    assert list(dict.fromkeys(sides)) == [(8, 8), (12, 12), (16, 16)]


def test_a_loss_that_is_not_finite_stops_with_its_place(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"train \d/2: the loss is (nan|inf).* at step"):
        run(recipe(tmp_path, "baseline.lr=1000", "baseline.optimizer=sgd", "baseline.warmup_epochs=0"))


PRUNED = ["surgery.zeta=null", "surgery.options={macs: 0.7}", "baseline.epochs=1", "finetune.epochs=1"]


@pytest.mark.parametrize("method", ["l1", "taylor"])
def test_a_pruned_network_is_trained_saved_and_reloaded(tmp_path, capsys, method):
    more = [f"surgery.method={method}", "surgery.images=100", "finetune.block_weight=1.0", "surgery.match=true"]
    with pytest.warns(UserWarning, match="no blocks are distilled, the logits alone are"):
        rows = run(recipe(tmp_path, *PRUNED, *more))
    assert [row.stage for row in rows] == ["original", "after surgery", "after fine-tuning"]
    assert rows[2].macs == rows[1].macs == pytest.approx(0.7 * rows[0].macs, rel=0.02)
    assert "logits identical on 360 test images" in capsys.readouterr().out
    assert history(surgery.load(tmp_path / "m.safetensors"))[0].type == "narrow"


def test_a_pruned_network_is_calibrated(tmp_path):
    more = ["surgery.method=sfvr", "surgery.calibrate=200", "baseline.epochs=2"]
    rows = run(recipe(tmp_path, *PRUNED, *more))
    assert [row.stage for row in rows] == ["original", "after surgery", "after calibration", "after fine-tuning"]
    assert rows[1].macs == rows[2].macs
    assert rows[2].accuracy > rows[1].accuracy
