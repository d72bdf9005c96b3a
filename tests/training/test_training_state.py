"""States of a training where they cannot be written."""

import json

import pytest
from accelerate import Accelerator

import finetune
from surgery.training import trainer as trainer_module
from surgery.training.recipe import RecipeError
from surgery.training.training_state import TrainingState
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

    def judged(training, finished):
        if finished.epoch == 1:
            size = (states / "0001-0000000" / "model.safetensors").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (round(part * size), before[1]))
        return real(training, finished)

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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"folder": "0001-0000000"'])
@pytest.mark.parametrize("name", ["state.json", "batch.json"])
def test_damaged_files_are_named_with_the_remedy(tmp_path, name, content):
    state = TrainingState(tmp_path, {"seed": 0})
    (tmp_path / name).write_text(content)
    with pytest.raises(RecipeError, match=rf"{name} is damaged \(.*\): fresh=true starts over"):
        state.fitting_batch(8, 1) if name == "batch.json" else state.load(Accelerator(), None)


def test_a_damaged_state_is_one_line_and_fresh_starts_over(tmp_path, capsys):
    settings = [f"output={tmp_path}", *SHORT, "finetune.epochs=1"]
    assert finetune.main(settings) == 0
    weights = tmp_path / "state" / "finetune" / "0001-0000000" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    pointer = tmp_path / "state" / "finetune" / "state.json"
    for damage, named in ((lambda: None, "0001-0000000"), (lambda: pointer.write_text(""), "state.json")):
        damage()
        capsys.readouterr()
        assert finetune.main(settings) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("finetune.py"))
        assert f"{named} is damaged" in line
        assert "fresh=true" in line
    assert finetune.main([*settings, "fresh=true"]) == 0
