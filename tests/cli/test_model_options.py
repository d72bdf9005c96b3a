"""The model that a command line stands for."""

import pytest

import surgery
from surgery.cli.main import main
from tests.cli.command_line import run


def test_random_weights_are_said_to_be_so(capsys, tmp_path):
    file = str(tmp_path / "m.safetensors")
    kwargs = ["--kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}']
    status, _, err = run(capsys, "convert", "resnet26", *kwargs, "--input-size", "32", "--out", file)
    assert status == 0
    assert err == (
        "surgery: the weights of resnet26 are random, and so are those of the file; --pretrained downloads trained "
        "ones, and a file that surgery wrote may stand in place of the name\n"
    )
    assert run(capsys, "convert", file, "--mode", "prune", "--out", str(tmp_path / "n.safetensors"))[2] == ""
    assert run(capsys, "plan", "resnet26", *kwargs)[2] == ""


def test_a_folder_of_a_models_name_is_not_taken_for_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert run(capsys, "cost", "resnet18", "--input-size", "32")[0] == 0
    assert "is a folder" in run(capsys, "cost", str(tmp_path / "resnet18"))[2]


@pytest.mark.parametrize(
    "arguments", [["cost", "resnet18", "--input-size", "big"], ["plan", "resnet18", "--kwargs", "[1]"]]
)
def test_arguments_that_do_not_parse(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ('{"pretrained": true}', "--kwargs holds pretrained=True: use --pretrained, or leave it out"),
        ('{"pretrained": false}', "--kwargs holds pretrained=False: use --pretrained, or leave it out"),
        ('{"checkpoint_path": "w.pth"}', "; --pretrained gives it those of its builder"),
    ],
)
def test_weights_come_by_their_own_option(capsys, kwargs, message):
    status, out, err = run(capsys, "cost", "resnet18", "--kwargs", kwargs)
    assert (status, out) == (2, "")
    assert message in err


def test_a_file_is_one_for_all_that_ask(capsys, tmp_path, monkeypatch):
    """A folder's name that only looks like a model's is loaded, and so is never said to have random weights."""
    monkeypatch.setattr(surgery, "load", lambda name: surgery.create("resnet26", channels=[8, 8, 8, 8]))
    arguments = ["--input-size", "32", "--out", str(tmp_path / "m.safetensors")]
    status, _, err = run(capsys, "convert", str(tmp_path), *arguments)
    assert (status, err) == (0, "")
