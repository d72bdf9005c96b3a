"""A comparison from the command line: what it runs, runs again, refuses, and reports."""

import json
import re

import pytest

from surgery.cli.main import main
from surgery.comparison.budgets import BudgetSettings
from surgery.comparison.cells import CONTROL, Variant
from surgery.comparison.comparing import best_variants

LIGHT = [
    "model.kwargs={num_classes: 10, channels: [8, 16, 32, 32], layers: [1, 1, 1, 1]}",
    "data.image_size=16",
    "data.batch_size=359",
    "baseline.epochs=1",
    "baseline.warmup_epochs=0",
    "surgery.calibrate=64",
    "finetune.lr_by_damage=false",
    "threads=1",
]


def compare(folder, *more):
    return main(["compare", "quickstart", "--output", str(folder), "--seconds", "0.01", *more, *LIGHT])


METHODS = ["--methods", "dwp,l1,resolution", "--macs", "0.95", "--budgets", "0,1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    assert compare(folder, *METHODS) == 0
    return folder


def rows(folder):
    content = json.loads((folder / "results.json").read_text())["rows"]
    return {(row["variant"]["method"], row["epochs"]): row for row in content}


def test_every_method_and_the_control_before_and_after_training(finished):
    by_method = rows(finished)
    assert {method for method, _ in by_method} == {"control", "dwp", "l1", "resolution"}
    assert {epochs for _, epochs in by_method} == {0, 1}
    for (method, epochs), row in by_method.items():
        assert len(row["tuned"]) == epochs
        assert len(row["calibrated"]) == (method in ("dwp", "l1"))
        assert row["time"][0] > 0
    assert by_method["control", 0]["share"] == 1
    assert by_method["l1", 1]["share"] == pytest.approx(0.95, abs=0.02)
    assert by_method["control", 0]["surgery"] == by_method["control", 1]["surgery"]


def test_table_and_plots_are_written(finished):
    text = (finished / "comparison.md").read_text()
    assert len(re.findall(r"^\| (?:control|dwp|l1|resolution)", text, re.MULTILINE)) == 8
    off = [line for line in text.splitlines() if "*)" in line]
    assert len(off) == sum(abs(row["share"] - row["variant"]["budget"]) > 0.02 for row in rows(finished).values()) > 0
    for name in ("accuracy_macs.png", "accuracy_time.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_run_again_and_what_is_not_is(finished, capsys):
    cells = finished / "cells"
    (cells / "l1-0.95-e1-s0" / "results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*/m.safetensors")}
    table = rows(finished)
    assert compare(finished, *METHODS) == 0
    again = {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert again == {"l1-0.95-e1-s0"}
    assert rows(finished)["l1", 1]["tuned"] == table["l1", 1]["tuned"]
    assert "control" in capsys.readouterr().out


def test_the_longest_fine_tuning_only_for_the_best(finished):
    assert compare(finished, *METHODS[:-1], "0,1,2", "--best", "1", "--seconds", "0") == 0
    after = {epochs: {method for method, length in rows(finished) if length == epochs} for epochs in (1, 2)}
    assert after[1] == {"control", "dwp", "l1", "resolution"}
    tuned = {method: rows(finished)[method, 1]["tuned"] for method in ("dwp", "l1", "resolution")}
    assert after[2] == {"control", max(tuned, key=lambda method: tuned[method])}  # of equal ones the first
    assert "only for the 1 best after the one before" in (finished / "comparison.md").read_text()
    assert json.loads((finished / "results.json").read_text())["best"] == 1


def test_other_settings_in_the_same_folder_are_refused(finished, capsys):
    assert compare(finished, *METHODS, "finetune.lr=0.5") == 2
    assert "finetune.lr=0.002, now 0.5" in capsys.readouterr().err


def test_a_cell_that_fails_stops_no_other_and_is_reported(finished, capsys):
    cells = finished / "cells"
    (cells / "l1-0.7-e1-s0").write_text("a file where the cell's folder is to be")
    failing = ["--methods", "l1,resolution", "--macs", "0.7", "--budgets", "1"]
    assert compare(finished, *failing) == 1
    out = capsys.readouterr().out
    assert re.search(r"^FAILED l1-0.7-e1-s0: .*l1-0.7-e1-s0", out, re.MULTILINE)
    assert ("l1", 1) not in rows(finished)
    smaller = rows(finished)["resolution", 1]
    assert smaller["variant"]["settings"]["image_size"] < 16
    assert smaller["share"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "l2"], "--methods='l2': one of .*'resolution'.* is needed"),
        (["--macs", "0"], "--macs 0: a share of the original's MACs, above 0 and below 1"),
        (["--macs", "2"], "--macs 2: a share"),
        (["--macs", "nan"], "--macs nan: a share"),
        (["--macs", "0.5,0.5"], "--macs 0.5,0.5: one or more, none twice"),
        (["--budgets", "-1"], "--budgets -1: a share of baseline.epochs"),
        (["--budgets", "0.2"], "--budgets 0.2: less than one of baseline.epochs=1"),
        (["--seeds", "0"], "--seeds 0: 1 or more"),
        (["--jobs", "0"], "--jobs 0: 1 or more"),
        (["--best", "0"], "--best 0: 1 or more"),
        (["--best", "1", "--budgets", "0,1"], "--best 1: two lengths above 0 are needed, and --budgets 0,1 has fewer"),
        (["--batch", "0"], "--batch 0: 1 or more"),
        (["--budgets", "0", "--original", "none.safetensors"], "none.safetensors"),
        (["finetune.epoch=3"], "in finetune: recipe key='epoch'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, options, message):
    assert compare(tmp_path, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error)


def test_a_recipe_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare"])
    assert stopped.value.code == 2
    assert "recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_cells_in_processes_of_their_own_give_the_same(finished, tmp_path):
    assert compare(tmp_path, *METHODS, "--jobs", "2") == 0
    for key, row in rows(finished).items():
        assert rows(tmp_path)[key]["tuned"] == row["tuned"]


VARIANTS = ["variants={plain: {}, mean: {tau: 0.0}}", "published={plain: 76.77}"]


def test_variants_that_a_recipe_names_stand_beside_published_figures(tmp_path, capsys):
    assert compare(tmp_path, "--budgets", "0", *VARIANTS) == 0
    lines = [line.split(" | ") for line in (tmp_path / "comparison.md").read_text().splitlines() if line[:2] == "| "]
    assert lines[0][-1] == "published |"
    table = {line[0].removeprefix("| "): line for line in lines[1:]}
    assert table["plain"][1] == "as it is"
    assert table["plain"][-1] == "76.77 |"
    assert table["mean"][1] == "tau=0.0"
    assert table["mean"][-1] == table["control"][-1] == "– |"
    assert "published: the papers' figures" in capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["variant"]["label"] for row in content} == {"", "plain", "mean"}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("{control: {}}", "variants.'control': a name of 1 to 100 of .*, other than baseline and control, is needed"),
        ("{Baseline: {}}", "variants.'Baseline': a name"),
        ("{'': {}}", "variants.'': a name"),
        ("{../mean: {}}", "variants.'../mean': a name"),
        ("{.mean: {}}", "variants.'.mean': a name"),
        ("{mean: {tua: 0.0}}", "variants.mean: option of method 'pix'='tua': one of .*'tau'"),
        ("{mean: {tau: much}}", "variants.mean: tau"),
        ("{mean: {include: 3}}", "variants.mean: include=3"),
        ("{mean: {zeta: 2}}", "variants.mean.zeta: surgery.zeta is the key"),
    ],
)
def test_what_is_wrong_with_variants_is_told_before_anything_is_trained(tmp_path, capsys, variants, message):
    assert compare(tmp_path / "o", "--budgets", "0", f"variants={variants}") == 2
    assert re.search(message, capsys.readouterr().err.strip().splitlines()[-1])
    assert not (tmp_path / "o").exists()


class FinishedCell:
    finished = True

    def __init__(self, accuracy):
        self.accuracy = accuracy

    def read(self):
        return {"rows": [{"accuracies": [self.accuracy]}]}


@pytest.mark.parametrize("control", [99.0, 1.0, None])
def test_the_control_goes_on_and_takes_no_place_of_the_best(control):
    variants = [Variant(CONTROL, 1.0, BudgetSettings("the original"))]
    variants += [Variant("pix", 1.0, BudgetSettings(), label) for label in ("plain", "mean", "max")]
    accuracies = {"plain": 50.0, "mean": 70.0, "max": 60.0} | ({} if control is None else {CONTROL: control})
    jobs = {(v.name, 1): [FinishedCell(accuracies[v.name])] if v.name in accuracies else [] for v in variants}
    assert [variant.name for variant in best_variants(variants, jobs, 1, 2)] == [CONTROL, "mean", "max"]


def test_variants_and_methods_exclude_each_other(tmp_path, capsys):
    assert compare(tmp_path, "--methods", "dwp", *VARIANTS) == 2
    assert "--methods dwp: the recipe names its variants" in capsys.readouterr().err


def test_a_method_that_skips_is_counted_by_what_it_computed(tmp_path):
    assert compare(tmp_path, "--methods", "fbs", "--macs", "0.5", "--budgets", "0") == 0
    row = rows(tmp_path)["fbs", 0]
    assert 0.3 < row["share"] <= 0.51
    assert row["variant"]["settings"]["how"] == "macs=0.5"
