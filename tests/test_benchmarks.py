"""The scripts of benchmarks/, as far as they go without the machine they are for."""

import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import surgery
from tests.training.test_saliency_datasets import objects

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


@pytest.mark.slow
def test_both_decays_at_every_share(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    command = importlib.import_module("decay").main
    objects(tmp_path / "data", count=4)
    light = [f"data.root={tmp_path / 'data'}", "data.batch_size=2", "data.image_size=32", "model.kwargs={k: 0.5}"]
    light += ["baseline.epochs=1", "baseline.warmup_epochs=0", "baseline.lr=0.02", "surgery.options={threshold: 0.99}"]
    light += ["finetune.epochs=1", "surgery.calibrate=4", "threads=1"]
    arguments = ["--output", str(tmp_path / "out"), "--seeds", "2", "--shares", "0.5", *light]
    nothing = [*arguments, "surgery.options={threshold: 1e-9}", f"--output={tmp_path / 'nothing'}", "--seeds=1"]
    assert command(nothing) == 1
    assert "decay.py: dynamic-gap-s0: " in capsys.readouterr().err
    table = (tmp_path / "nothing" / "decay.md").read_text()
    assert "| plain | 0.5 |" in table
    assert "gap |" not in table
    assert command(arguments) == 0
    table = (tmp_path / "out" / "decay.md").read_text()
    parameters = {}
    for decay, left in itertools.product(("dynamic", "plain"), ("all", "gap", "0.5")):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {decay} | {left} | "))
        parameters[decay, left] = int(row.split("|")[4].replace(",", ""))
        assert row.count(" ± ") == 2
    assert parameters["plain", "0.5"] == pytest.approx(0.5 * parameters["plain", "all"], rel=0.01)
    assert parameters["dynamic", "gap"] < parameters["dynamic", "all"] == parameters["plain", "all"]
    assert (tmp_path / "out" / "decay.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert command(arguments) == 0  # all of it is there
    assert (tmp_path / "out" / "decay.md").read_text() == table


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


@pytest.fixture
def pruning_curve(monkeypatch, tmp_path):
    """The command ``pruning_curve.py`` on two light networks and images of noise."""
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("pruning_curve")
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = surgery.create("cifar_resnet", layers=[1, 1, 1, 1], channels=[4, 4, 8, 8], num_classes=2)
        files.append(str(tmp_path / f"{seed}.safetensors"))
        surgery.save(network, files[-1])
    noise = np.random.default_rng(0)
    for part, name, number in itertools.product(("train", "test"), "ab", range(6)):
        folder = tmp_path / "images" / part / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    fixed = ["--data", str(tmp_path / "images"), "--output", str(tmp_path / "curve"), "--shares", "0.7"]
    return module, lambda *more: module.main(["--networks", *files, *fixed, "--rules", "global", *more])


def test_the_pruning_curve_goes_on_where_it_was_stopped(pruning_curve, monkeypatch, tmp_path, capsys):
    module, command = pruning_curve
    assert command("--images", "8", "--norms", "--methods", "taylor") == 0
    command = functools.partial(command, "--methods", "taylor", "random")
    assert command("--images", "8") == 0
    content = json.loads((tmp_path / "curve" / "pruning_curve.json").read_text())
    points = [module.Point(**point) for point in content["points"]]
    assert len(points) == 2 * (1 + 2 + module.DRAWS)  # the original, taylor without and with new statistics, random
    assert all(abs(point.macs - point.share) < 0.02 for point in points)
    table = (tmp_path / "curve" / "pruning_curve.md").read_text()
    for method in ("taylor", "random"):
        of_method = [p.accuracy for p in points if (p.method, p.recovery) == (method, "")]
        assert f"| {method} | global | nothing | {sum(of_method) / len(of_method):.1f} ± " in table
    assert "| taylor | global | norms | " in table
    assert (tmp_path / "curve" / "pruning_curve.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(module, "accuracy", None)  # nothing is measured again
    assert command("--images", "8") == 0
    capsys.readouterr()
    assert command("--images", "4") == 2
    assert "was measured with other networks, images or patterns" in capsys.readouterr().err


def test_the_pruning_curve_has_one_value_a_network(pruning_curve):
    module, _ = pruning_curve
    draws = [(0, 0, 10.0), (0, 1, 20.0), (1, 0, 31.0), (1, 1, 29.0)]
    points = [module.Point(network, "random", "global", draw, "", 0.5, 0.5, value) for network, draw, value in draws]
    mean, deviation = module.summary(points)["random", "global", ""][0.5]
    assert (mean, deviation) == (22.5, pytest.approx(112.5**0.5))  # of 15 and 30, not of the four draws
