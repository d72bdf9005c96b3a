"""States of a training where they cannot be written."""

import json

import pytest

import finetune
from surgery.training import trainer as trainer_module
from tests.training.test_job import SMALL

resource = pytest.importorskip("resource")
SHORT = [
    *SMALL,
    "baseline.epochs=0",
    "finetune.distill_weight=0",
    "finetune.epochs=2",
    "data.batch_size=700",
    "data.image_size=8",
]


@pytest.mark.parametrize("part", [0.5, 1.2])  # of the network's file: safetensors fails, then torch.save
def test_a_full_disk_is_one_line_and_the_state_before_stays(tmp_path, monkeypatch, capsys, part):
    settings, states = [f"output={tmp_path}", *SHORT], tmp_path / "state" / "finetune"
    real, before = trainer_module.Training._judge, resource.getrlimit(resource.RLIMIT_FSIZE)

    def judged(training, whole):
        if whole.epoch == 1:
            size = (states / "0001-0000000" / "model.safetensors").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (round(part * size), before[1]))
        return real(training, whole)

    monkeypatch.setattr(trainer_module.Training, "_judge", judged)
    try:
        status = finetune.main(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("finetune.py"))
    assert status == 2
    assert "cannot write the state" in line
    assert "still valid" in line
    assert sorted(path.name for path in states.iterdir()) == ["0001-0000000", "state.json"]
    assert json.loads((states / "state.json").read_text())["progress"]["epoch"] == 1
    monkeypatch.undo()
    assert finetune.main(settings) == 0
    assert "fine-tune 2/2" in capsys.readouterr().err
