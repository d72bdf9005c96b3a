import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from surgery.cli.main import main as surgery_main
from surgery.training.command import main
from surgery.training.shipped_recipes import find_recipe, shipped_recipes
from surgery.training.tracking import AVAILABLE

ROOT = Path(__file__).parents[2]
SMALL = ["model.kwargs={num_classes: 10, channels: [8, 8, 8, 8]}", "data.image_size=16"]


def test_recipes_by_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert surgery_main(["finetune", "quickstart", *SMALL[:1], "--dry-run", *SMALL[1:]]) == 0
    assert "a batch: (64, 3, 16, 16)" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart") == ROOT / "recipes" / "quickstart.yaml"
    (tmp_path / "quickstart").write_text("seed: 1")
    assert find_recipe("quickstart") == Path("quickstart")


def test_the_list_has_every_recipe(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(shipped_recipes())
    assert set(shipped_recipes()) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["quickstrat"],
            "there is no recipe 'quickstrat': a YAML file, or one of ablations, cifar10, .* mean 'quickstart'",
        ),
        (["no/such.yaml"], "there is no recipe 'no/such.yaml'"),
        (["quickstart", "nonsense=1"], "recipe key='nonsense'"),
        (["quickstart", "imports=[no_such_module]"], "module 'no_such_module' cannot be imported"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    for program, name in (
        (main, "finetune.py"),
        (lambda a: surgery_main(["finetune", *a]), "python -m surgery finetune"),
    ):
        assert program(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{name}: ")
        assert len(error.splitlines()) == 1
        assert re.search(message, error)


def test_notes_of_the_conversion_are_said_at_the_start(tmp_path, capsys):
    settings = [f"output={tmp_path / 'out'}", "model.name=timm/mobilenetv2_035", "model.kwargs={num_classes: 10}"]
    settings += ["baseline.epochs=0", "finetune.epochs=0", "surgery.calibrate=0", "surgery.zeta=null"]
    assert main([*settings, "finetune.block_weight=0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("note: 10 of the 10 sites are projections of inverted bottlenecks")
    assert "ConversionWarning" not in captured.err


def test_help_does_not_wait_for_what_trains():
    code = "import sys; from surgery.training.command import parser; parser('x').format_help(); "
    code += "print([name for name in ('accelerate', 'sklearn', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("modes", [["--check-data", "--dry-run"], ["--list", "--check-data"]])
def test_one_mode_at_a_time(modes, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(modes)
    assert "not allowed with argument" in capsys.readouterr().err


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "more"),
    [
        ("surgery.training.describe", ["--dry-run"]),
        ("surgery.training.image_scan.check_data", ["--check-data"]),
        ("surgery.training.job.rehearse", []),
    ],
)
def test_ctrl_c_promises_no_state_where_there_is_none(where, more, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(where, interrupt)
    assert main([*more, *SMALL, f"output={tmp_path}"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize(("more", "same"), [([], "command"), (["fresh=true"], "command without fresh=true")])
def test_ctrl_c_says_how_to_go_on_from_a_state(more, same, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("surgery.training.job.rehearse", interrupt)
    (tmp_path / "state" / "baseline").mkdir(parents=True)
    (tmp_path / "state" / "baseline" / "state.json").write_text("{}")
    assert main([*SMALL, *more, f"output={tmp_path}"]) == 130
    assert capsys.readouterr().err.strip() == f"stopped; the same {same} goes on from the last state"


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_tracker_that_is_lacking_is_one_line(more, tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.setitem(AVAILABLE, "wandb", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*more, *SMALL, "track=wandb", f"output={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "finetune.py: track=wandb: the package is not installed; pip install wandb"
    ]
    assert not [warning for warning in recwarn if "wandb" in str(warning.message)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("surgery.training.rehearsal._check_output", lambda recipe: None)  # it was made meanwhile
    assert main([*SMALL, "surgery.calibrate=0", f"output={tmp_path / 'file' / 'x'}"]) == 2
    assert re.fullmatch(r"finetune\.py: output=.*file/x: Not a directory; a folder .*", capsys.readouterr().err.strip())
