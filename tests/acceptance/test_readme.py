"""The README's commands and code, as written (installation is what .ci/run does before it comes here)."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SMALL = [
    "model.kwargs={channels: [8, 16, 16, 32], layers: [1, 1, 1, 1]}",
    "data.image_size=16",
    "surgery.calibrate=64",
]
INSTALLS = [line for line in COMMANDS if "venv" in line]


def run(arguments, folder):
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_there_are_two_install_commands():
    assert len(INSTALLS) == 2
    assert INSTALLS[0].endswith("finetune.py")
    assert INSTALLS[1].endswith("pytest")
    assert "grep -F \"'.[test]'\" README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("index", range(len([kind for kind, _ in BLOCKS if kind == "python"])))
def test_python_blocks(index, tmp_path):
    code = [block for kind, block in BLOCKS if kind == "python"][index]
    run([sys.executable, "-c", code.replace("pretrained=True", "pretrained=False")], tmp_path)
    assert list(tmp_path.glob("*.safetensors"))


def shortened(line):
    """What a command is given besides, to take less time: the last of two settings counts."""
    if " bench " in line:
        return ["--seconds", "0.2", "--threads", "1", "--input-size", "64"]
    return SMALL if "quickstart" in line else []


def test_commands_in_order(tmp_path):
    (tmp_path / "finetune.py").symlink_to(ROOT / "finetune.py")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for line in COMMANDS:
        if line not in INSTALLS:
            run([sys.executable, *shlex.split(line)[1:], *shortened(line)], tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"m.safetensors", "vgg.safetensors"}
    assert (tmp_path / "runs" / "short" / "m.safetensors").exists()


def test_the_main_job(tmp_path):
    """finetune.py with no argument: the accuracy comes back, and the file gives the same logits."""
    (tmp_path / "finetune.py").symlink_to(ROOT / "finetune.py")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    out = run([sys.executable, "finetune.py"], tmp_path)
    accuracy = [float(value) for value in re.findall(r"^\S.*? ([\d.]+) %", out, re.M)]
    assert len(accuracy) == 4
    original, after_surgery, after_calibration, after_tuning = accuracy
    assert original > 95
    assert after_surgery < after_calibration
    assert after_tuning > original - 1
    assert "logits identical on 360 test images" in out
    assert {p.name for p in (tmp_path / "runs" / "quickstart").iterdir()} >= {
        "m.safetensors",
        "curve.png",
        "results.json",
    }
