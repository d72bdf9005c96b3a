"""Table 1 of the PiX supplement, to the digit and the byte; measured memory; the command."""

import json
from types import SimpleNamespace

import pytest
import torch

from surgery.bench.overhead import cut, overheads, peak_bytes
from surgery.cli.main import main

TABLE_1 = {  # million FLOPs and MB, as printed
    "SE": (("12.8", 25.694336), ("3.2", 6.426752), (".837", 1.609856)),
    "CBAM": (("38.6", 51.639424), ("9.6", 12.916096), ("2.4", 3.235264)),
    "FBS": (("45.2", 51.384320), ("11.5", 12.849152), ("3.0", 3.215360)),
    "PiX": (("6.6", 25.694208), ("1.8", 6.426624), ("0.6", 1.609728)),
}
TOTALS = {  # as the supplement sums them up: FLOPs, numbers written
    "SE": lambda c, p: (2 * c * p + 0.125 * c * c + 65 / 16 * c, c * p + 33 / 16 * c),
    "CBAM": lambda c, p: (6 * c * p + 0.125 * c * c + 81 / 16 * c + 6 * p, 2 * c * p + 5 * p + 65 / 16 * c),
    "FBS": lambda c, p: (7 * c * p + c * c + 4 * c, 2 * c * p + 2 * c),
    "PiX": lambda c, p: (c * p + c * c + 4 * c, c * p + 2 * c),
}


def test_all_four_have_one():
    assert {overhead.label for overhead in overheads()} == set(TABLE_1)


@pytest.mark.parametrize("overhead", overheads(), ids=lambda overhead: overhead.label)
def test_table_1(overhead):
    for side, (flops, megabytes) in zip((112, 56, 28), TABLE_1[overhead.label], strict=True):
        cost = overhead.cost(512, side, side)
        decimals = len(flops.partition(".")[2])
        assert cut(cost.flops / 1e6, decimals).removeprefix("0" if flops[0] == "." else "") == flops
        assert 4 * cost.memory == round(megabytes * 1e6)
        assert overhead.published[512, side, side] == (flops, megabytes)


@pytest.mark.parametrize("overhead", overheads(), ids=lambda overhead: overhead.label)
@pytest.mark.parametrize("size", [(64, 7, 9), (16, 1, 1), (512, 14, 14)])
def test_terms_add_up_to_the_published_totals(overhead, size):
    cost = overhead.cost(*size)
    assert (cost.flops, cost.memory) == TOTALS[overhead.label](size[0], size[1] * size[2])


def test_only_without_its_ranking_is_the_row_of_fbs_as_published():
    cost = next(overhead.cost for overhead in overheads() if overhead.label == "FBS")
    ranking = sum(512 - i for i in range(1, 256 + 1))  # equation 45, k = C/2
    for side, with_ranking in ((112, "45.3"), (56, "11.6"), (28, "3.1")):
        assert cut((cost(512, side, side).flops + ranking) / 1e6, 1) == with_ranking


@pytest.mark.parametrize("overhead", overheads(), ids=lambda overhead: overhead.label)
def test_convolutions_and_linears_make_the_multiply_accumulates(overhead):
    macs = {"SE": 2 * 64 * 4, "CBAM": 2 * 64 * 4 + 2 * 7 * 9, "FBS": 64 * 64, "PiX": 64 * 64}
    assert overhead.cost(64, 7, 9).macs == macs[overhead.label]


@pytest.mark.parametrize("overhead", overheads(), ids=lambda overhead: overhead.label)
def test_the_measured_peak_is_near_what_is_counted(overhead):
    layer, x = overhead.layer(64).eval(), torch.randn(1, 64, 48, 48)
    with torch.no_grad():
        assert layer(x).shape == x.shape
        peak = peak_bytes(lambda: layer(x))
    counted = 4 * overhead.cost(64, 48, 48).memory
    assert 4 * x.numel() <= peak <= 1.1 * counted


def test_the_peak_is_what_is_held_at_once():
    def twice():
        for _ in range(3):
            torch.empty(1000, dtype=torch.float64)
        return torch.empty(3000), torch.empty(500)

    assert 14_000 <= peak_bytes(twice) <= 14_500


@pytest.mark.parametrize(
    ("registered", "error", "message"),
    [
        ({"mine": SimpleNamespace(overhead=3)}, TypeError, "method 'mine': overhead=3: a surgery"),
        ({"mine": SimpleNamespace()}, ValueError, "mine have none"),
    ],
)
def test_what_methods_do_not_give_is_named(monkeypatch, registered, error, message):
    monkeypatch.setattr("surgery.bench.overhead.methods", lambda: registered)
    with pytest.raises(error, match=message):
        overheads()


def test_the_command(tmp_path, capsys):
    small = ["--channels", "16", "--sizes", "6,3", "--seconds", "0.01", "--threads", "1"]
    files = ["--json", str(tmp_path / "o.json"), "--plot", str(tmp_path / "o.png")]
    assert main(["overhead", *small, *files]) == 0
    printed = capsys.readouterr().out
    assert printed.count("16×6×6") == printed.count("16×3×3") == 4
    rows = json.loads((tmp_path / "o.json").read_text())
    assert {row["module"] for row in rows} == set(TABLE_1)
    assert all(row["published"] is None and row["milliseconds"] > 0 for row in rows)
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channels", "0"], "--channels 0: a whole number >= 16"),
        (["--sizes", "0"], "--sizes 0: whole numbers"),
        (["--seconds", "-1"], "--seconds -1.0: a positive number"),
        (["--threads", "0"], "--threads 0"),
        (["--threads", "100000000000"], "--threads 100000000000: a whole number >= 1, and at most 1024, is needed"),
        (["--sizes", f"{10**30}"], "whole numbers >= 1 such as 112,56, and at most 1048576, are needed"),
        (["--sizes", "1000000"], "--sizes 1000000 with --channels 512: needs more memory than can be had"),
        (["--plot", "o.jpeg"], "the suffix of --plot"),
        (["--json", "nowhere/o.json"], "--json 'nowhere/o.json': cannot be written"),
    ],
)
def test_bad_input_is_one_line(options, message, capsys):
    assert main(["overhead", *options]) == 2
    assert message in capsys.readouterr().err
