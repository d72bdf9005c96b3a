"""Ctrl-C on the real program, and the same command again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.test_job import SMALL

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _obey_ctrl_c():
    """A shell that starts the tests in the background makes what they start ignore Ctrl-C, unless they handle it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_obey_ctrl_c")
def test_ctrl_c_leaves_a_state_from_which_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "finetune.py", f"output={tmp_path}", *SMALL, "finetune.epochs=5"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    pointer = tmp_path / "state" / "finetune" / "state.json"
    deadline = time.monotonic() + 120
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "goes on from the last whole epoch" in errors
    assert not (tmp_path / "m.safetensors").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fine-tune 1/5" not in again.stderr
    assert "fine-tune 5/5" in again.stderr
    assert "logits identical" in again.stdout
