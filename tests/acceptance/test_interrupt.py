"""Ctrl-C and kill -9 on the real program, and the same command again."""

import json
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


COMMAND = [sys.executable, "finetune.py", *SMALL, "finetune.epochs=3", "finetune.save_minutes=0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run that nothing stops."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run([*COMMAND, f"output={output}"], cwd=ROOT, capture_output=True, check=True)
    return output / "m.safetensors"


def stop_in_the_middle(command, output, sent):
    """Send a signal within an epoch of fine-tuning; returns (status, what was written to stderr)."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    pointer = output / "state" / "finetune" / "state.json"
    deadline = time.monotonic() + 120
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.usefixtures("_obey_ctrl_c")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_same_command_goes_on_to_the_same_bits(tmp_path, whole, sent, status):
    command = [*COMMAND, f"output={tmp_path}"]
    returned, errors = stop_in_the_middle(command, tmp_path, sent)
    assert returned == status, errors
    assert ("goes on from the last state" in errors) == (status == 130)
    assert not (tmp_path / "m.safetensors").exists()
    reached = json.loads((tmp_path / "state" / "finetune" / "state.json").read_text())["progress"]
    assert reached["epoch"] or reached["step"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fine-tune 3/3" in again.stderr
    assert "logits identical" in again.stdout
    assert (tmp_path / "m.safetensors").read_bytes() == whole.read_bytes()
