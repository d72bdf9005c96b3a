"""``explain`` as it is typed."""

import json

import pytest

import surgery
from tests.cli.command_line import run
from tests.explanation.networks import write_images, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return written(tmp_path_factory.mktemp("files"), "pix", "fbs", "l1")


def test_no_original_is_needed(files, folder, tmp_path, capsys):
    options = ["--count", "4", "--out", str(tmp_path)]
    status, printed, _ = run(capsys, "explain", str(files / "l1.safetensors"), str(folder), *options)
    assert status == 0
    assert "--original" in printed
    assert "no gates.png: " in printed
    assert printed.splitlines()[-1].endswith("grad_cam.png, widths.png, explanation.json")
    rows = json.loads((tmp_path / "explanation.json").read_text())["widths"]
    assert any(row["after"] < row["before"] for row in rows)
    assert not (tmp_path / "sfvr.png").exists()


def test_an_original_is_drawn_beside(files, folder, tmp_path, capsys):
    options = ["--original", str(files / "original.safetensors"), "--count", "4", "--out", str(tmp_path)]
    status, printed, _ = run(capsys, "explain", str(files / "fbs.safetensors"), str(folder), *options)
    assert status == 0
    assert "kept 0.50, suppressed 0.50" in printed
    assert "original" in json.loads((tmp_path / "explanation.json").read_text())["grad_cam"]["probabilities"]


def test_an_original_that_is_named_has_pretrained_weights(files, folder, tmp_path, capsys, monkeypatch):
    asked = {}

    def create(name, **options):
        asked.update(options, name=name)
        return surgery.load(files / "original.safetensors")

    monkeypatch.setattr(surgery, "create", create)
    options = ["--original", "resnet50", "--count", "2", "--out", str(tmp_path)]
    assert run(capsys, "explain", str(files / "pix.safetensors"), str(folder), *options)[0] == 0
    assert asked == {"name": "resnet50", "pretrained": True}


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("nowhere.png", [], "nowhere.png' does not exist"),
        ("", ["--count", "0"], "count=0: a whole number >= 1"),
        ("", ["--layer", "nothing"], "--layer 'nothing': a module"),
        ("", ["--batch-size", "0"], "batch_size=0: a whole number >= 1"),
        ("", ["--seed", "-1"], "seed=-1: a whole number >= 0"),
        ("", ["--original", "nothing.safetensors"], "nothing.safetensors"),
    ],
)
def test_bad_input_is_one_line(files, folder, tmp_path, capsys, images, options, message):
    named = str(folder / images) if images else str(folder)
    command = ["explain", str(files / "pix.safetensors"), named, *options, "--out", str(tmp_path / "o")]
    status, _, error = run(capsys, *command)
    assert status == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()
