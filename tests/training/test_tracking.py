"""What a job says of itself: log.csv, whole after a resume, and the tracker that is asked for."""

import csv
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import finetune
from surgery.training import load_recipe, run
from surgery.training import trainer as trainer_module
from surgery.training.recipe import RecipeError
from surgery.training.tracking import AVAILABLE

SMALL = [
    "model.kwargs={num_classes: 10, channels: [8, 16, 32, 32], layers: [1, 1, 1, 1]}",
    "data.image_size=16",
    "data.batch_size=359",
    "baseline.epochs=2",
    "finetune.epochs=2",
    "surgery.calibrate=0",
]


def test_log_and_tensorboard_after_a_resume(tmp_path, monkeypatch):
    real, calls = trainer_module.Training._step, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 14:  # of 4 in each epoch: in the fine-tuning's second
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(trainer_module.Training, "_step", interrupted)
    settings = [f"output={tmp_path}", *SMALL, "track=tensorboard"]
    assert finetune.main(settings) == 130
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 3
    assert finetune.main(settings) == 0

    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = json.loads((tmp_path / "results.json").read_text())["curves"]
    expected = [
        {"training": training, **{key: str(value) for key, value in row.items()}}
        for training, name in (("baseline", "original"), ("finetune", "converted"))
        for row in curves[name][0]
    ]
    assert rows == expected

    resumed = max((tmp_path / "surgery").glob("events.*"), key=lambda path: path.stat().st_mtime)
    events = EventAccumulator(str(resumed)).Reload()
    for key in ("epoch", "loss", "lr", "accuracy"):
        assert f"baseline/{key}" in events.Tags()["scalars"]
    logged = [(event.step, event.value) for event in events.Scalars("finetune/loss")]
    assert logged == [(3 + n, pytest.approx(row["loss"])) for n, row in enumerate(curves["converted"][0])]


def test_a_tracker_that_cannot_start(tmp_path, capsys):
    (tmp_path / "surgery").write_text("where TensorBoard's folder would be")
    assert finetune.main([f"output={tmp_path}", *SMALL, "track=tensorboard"]) == 2
    assert "finetune.py: track=tensorboard: " in capsys.readouterr().err


def test_a_tracker_that_is_not_installed(tmp_path):
    absent = [name for name, is_available in AVAILABLE.items() if not is_available()]
    if not absent:
        pytest.skip("all trackers are installed")
    with pytest.raises(RecipeError, match=f"track={absent[0]}: the package is not installed; pip install {absent[0]}"):
        run(load_recipe(finetune.QUICKSTART, [f"output={tmp_path / 'out'}", *SMALL, f"track={absent[0]}"]))
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker():
    with pytest.raises(RecipeError, match="track='tensorbord'.*did you mean 'tensorboard'"):
        load_recipe(finetune.QUICKSTART, ["track=tensorbord"])
