"""``overhead``: what it prints and writes, and that bad input stops it before it measures."""

import json

import pytest

from tests.cli.command_line import run

QUICK = ("--seconds", "0.01", "--threads", "1")
MODULES = ["CBAM", "FBS", "PiX", "SE"]


def table_rows(out, size):
    return [line.split() for line in out.splitlines() if line.startswith(size)]


def test_published_figures_stand_beside_the_counted_ones(capsys):
    status, out, _ = run(capsys, "overhead", "--sizes", "28", *QUICK)
    assert status == 0
    rows = {row[1]: row for row in table_rows(out, "512×28×28")}
    assert sorted(rows) == MODULES
    assert rows["FBS"][2:6] == ["3.074", "3.0", "3.215360", "3.215360"]
    assert rows["SE"][2:6] == ["0.837", ".837", "1.609856", "1.609856"]
    assert all(float(ms) > 0 and float(peak) >= 4 * 512 * 28 * 28 / 1e6 for *_, ms, peak in rows.values())


def test_other_maps_have_no_published_figures(capsys):
    out = run(capsys, "overhead", "--channels", "16", "--sizes", "8,4", *QUICK)[1]
    assert "torch " in out.splitlines()[0], "the machine comes first"
    for size in ("16×8×8", "16×4×4"):
        assert [(row[1], row[3], row[5]) for row in table_rows(out, size)] == [(name, "–", "–") for name in MODULES]


def test_files(tmp_path, capsys):
    files = ("--json", str(tmp_path / "o.json"), "--plot", str(tmp_path / "o.svg"))
    out = run(capsys, "overhead", "--channels", "16", "--sizes", "8", *QUICK, *files)[1]
    rows = json.loads((tmp_path / "o.json").read_text())
    printed = [(row[1], row[6], row[7]) for row in table_rows(out, "16×8×8")]
    assert [(r["module"], f"{r['milliseconds']:.3f}", f"{r['peak_megabytes']:.6f}") for r in rows] == printed
    assert "<svg" in (tmp_path / "o.svg").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--channels", "15"), "--channels 15: a whole number >= 16, and at most 1048576, is needed"),
        (("--sizes", "8,0"), "--sizes 8,0: whole numbers >= 1 such as 112,56, and at most 1048576, are needed"),
        (("--seconds", "nan"), "--seconds nan: a positive number is needed"),
        (("--plot", "nowhere/o.png"), "--plot 'nowhere/o.png': cannot be written; a file in a folder"),
        (("--json", "."), "--json '.': cannot be written; a file in a folder"),
        (("--plot", "o"), "the suffix of --plot='': one of '.png', '.svg', '.pdf' is needed"),
    ],
)
def test_bad_input_stops_it_before_it_measures(monkeypatch, capsys, options, message):
    monkeypatch.setattr("surgery.cli.overhead.measure_overheads", lambda _: pytest.fail("measured"))
    status, out, err = run(capsys, "overhead", *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"surgery: {message}")


def test_a_folder_that_may_not_be_written_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever runs the tests may be allowed everything
    path = str(tmp_path / "o.png")
    assert run(capsys, "overhead", "--plot", path)[2].startswith(f"surgery: --plot {path!r}: cannot be written")
