"""The command line as a whole: help texts, errors, exit statuses."""

import argparse

import pytest

import finetune
import surgery
from surgery.cli.main import main, parser
from tests.cli.command_line import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "resnet5"], "there is no model 'resnet5' in timm"),
        (["plan", "resnet50", "--zeta", "2.5"], "zeta=2.5"),
        (["plan", "resnet50", "--zeta", "x"], "zeta='x'"),
        (["plan", "resnet50", "--mode", "sqeeze"], "did you mean 'squeeze'"),
        (["plan", "resnet50", "--option", "tau"], "KEY=VALUE is needed"),
        (["load-check", "nothing.safetensors"], "does not exist"),
        (["cost", "resnet18", "--input-size", "4,64,64"], "fails on an input of shape"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.startswith("surgery: ")


def subcommands(command_line):
    return next(action for action in command_line._actions if isinstance(action, argparse._SubParsersAction)).choices


def test_every_help(capsys):
    programs = [[], *([name] for name in subcommands(parser()))]
    calls = [(main, [*name, "--help"], "usage: python -m surgery") for name in programs]
    calls.append((finetune.main, ["--help"], "usage: finetune.py"))
    for program, arguments, usage in calls:
        with pytest.raises(SystemExit) as stopped:
            program(arguments)
        assert stopped.value.code == 0
        assert usage in capsys.readouterr().out


def test_an_output_that_is_closed_is_no_error(capsys, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(surgery, "cost", closed)
    assert run(capsys, "cost", "test_resnet") == (0, "", "")
