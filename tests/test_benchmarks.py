"""The scripts of benchmarks/, as far as they go without the machine they are for."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def test_the_published_algorithm_computes_what_pix_is():
    pytest.importorskip("triton")
    command = [sys.executable, str(SCRIPTS / "published_kernel.py"), "--check"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "agree" in done.stdout


@pytest.fixture
def recovery(monkeypatch, tmp_path):
    """The command ``recovery.py``, on a light network and the quickstart's images."""
    monkeypatch.syspath_prepend(SCRIPTS)
    command = importlib.import_module("recovery").main
    light = ["model.kwargs={num_classes: 10, channels: [8, 16, 32, 32], layers: [1, 1, 1, 1]}", "data.image_size=16"]
    light += [
        "data.batch_size=359",
        "baseline.epochs=1",
        "surgery.calibrate=64",
        "finetune.block_weight=1",
        "threads=1",
    ]
    recipe = str(SCRIPTS.parent / "recipes" / "quickstart.yaml")
    return lambda *more: command(["--recipe", recipe, "--output", str(tmp_path), "--seeds", "2", *more, *light])


@pytest.mark.slow
def test_recovery_of_every_variant_against_its_control(recovery, tmp_path, capsys):
    assert recovery("--budgets", "0.2") == 2
    assert capsys.readouterr().err == "recovery.py: --budgets 0.2: less than one of baseline.epochs=1\n"
    assert recovery("--budgets", "1", "--jobs", "2") == 0
    table = (tmp_path / "recovery.md").read_text()
    for name in ("calibrated, distilled", "calibrated", "converted", "scratch"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {name} | 1 | "))
        *_, after, control, difference, _ = (part.strip() for part in row.split("|"))
        assert " ± " in after
        expected = float(after.split()[0]) - float(control.split()[0])
        assert float(difference) == pytest.approx(expected, abs=0.011)
    assert (tmp_path / "recovery.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert recovery("--budgets", "1") == 0  # all of it is there
    assert "==" not in capsys.readouterr().out
    assert (tmp_path / "recovery.md").read_text() == table


@pytest.fixture
def census(monkeypatch, tmp_path):
    """The command ``census.py`` on timm's smallest models; returns the exit status and the lines of the file."""
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("census")
    file = tmp_path / "census.jsonl"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["census.py", "--out", str(file), *arguments])
        status = module.main()
        return status, file.read_text().splitlines()

    return run


def test_census_goes_on_where_it_was_stopped(census, tmp_path, capsys):
    patterns = ["--models", "test_resnet", "--models", "test_efficientnet", "--models", "test_vit"]
    status, lines = census(*patterns, "--limit", "2")
    assert (status, len(lines)) == (0, 2)
    (tmp_path / "census.jsonl").write_text("\n".join([*lines, lines[0][:20]]))  # as a stop leaves it
    capsys.readouterr()
    status, lines = census(*patterns)
    assert (status, len(lines)) == (0, 4)
    printed = capsys.readouterr()
    assert "is passed over" in printed.err
    assert "3 models, 1 with sites: 1 × bottleneck head" in printed.out
    rows = {record["model"]: record for record in map(json.loads, (lines[0], lines[1], lines[3]))}
    assert rows["test_efficientnet"]["sites"] == {"bottleneck head": 1}
    assert rows["test_resnet"]["reasons"]["expands channels"] > 0
    assert rows["test_vit"]["sites"] == {}


def test_census_reports_a_model_that_fails(census, monkeypatch, capsys):
    monkeypatch.setattr("surgery.plan", lambda model: model.no_such_attribute)
    status, lines = census("--models", "test_vit")
    assert status == 1
    assert json.loads(lines[0])["failure"].startswith("AttributeError")
    assert "failed: test_vit: AttributeError" in capsys.readouterr().out


def test_census_of_no_model_says_so(census, capsys):
    with pytest.raises(SystemExit):
        census("--models", "no_such_model")
    assert "--models no_such_model: no model of timm" in capsys.readouterr().err


def test_census_takes_one_model_of_each_family_first(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    pairs = importlib.import_module("census").models(["*"])
    families = {family for _, family in pairs}
    assert {family for _, family in pairs[: len(families)]} == families
    assert len({name for name, _ in pairs}) == len(pairs) == len(timm.list_models())


def test_the_plot_of_recovery_has_one_colour_for_each_network(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    recovery = importlib.import_module("recovery")
    figures = []
    monkeypatch.setattr(recovery, "write_figure", lambda path, figure: figures.append(figure))
    stages = ("original", 90.0), ("after surgery", 10.0), ("after calibration", 80.0), ("after fine-tuning", 85.0)
    rows = [{"stage": stage, "accuracies": [accuracy], "macs": 1, "params": 1} for stage, accuracy in stages]
    curve = [[{"epoch": 1, "accuracy": 85.0}]]
    results = {
        (name, 1): {"rows": rows, "curves": {"converted": curve, "control": curve}} for name in recovery.VARIANTS
    }
    recipe = recovery.load_recipe(recovery.RECIPE)
    recovery._plot(tmp_path / "recovery.png", results, [1], recipe)
    (figure,) = figures
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert len(lines) == len({line.get_color() for line in lines.values()}) == 2 * len(recovery.VARIANTS) + 1
    assert list(lines["calibrated"].get_ydata()) == [80.0, 85.0]
    assert list(lines["calibrated: control"].get_ydata()) == [90.0, 85.0]
    assert figure.get_suptitle() == recipe.title
