"""Ctrl-C, SIGTERM and kill -9 on the real program, and the same command again."""

import json
import os
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


COMMAND = [sys.executable, "finetune.py", *SMALL, "finetune.epochs=3"]
AFTER_EVERY_STEP = "finetune.save_minutes=0"  # how often states are written changes nothing in what is trained


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run that nothing stops."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run([*COMMAND, f"output={output}"], cwd=ROOT, capture_output=True, check=True)
    return output / "m.safetensors"


def stop_in_the_middle(command, output, send):
    """Send a signal within the second epoch of fine-tuning; returns (status, what was written to stderr)."""
    arguments = [*command, AFTER_EVERY_STEP]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    pointer = output / "state" / "finetune" / "state.json"
    deadline = time.monotonic() + 120
    while not within_an_epoch(pointer) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    send(process.pid)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def within_an_epoch(pointer):
    """Whether the last state is of a step within the second epoch or a later one."""
    progress = json.loads(pointer.read_text())["progress"] if pointer.exists() else {"epoch": 0}
    return progress["epoch"] > 0 and progress["step"] > 0


def to_it(signum):
    return lambda pid: os.kill(pid, signum)


def to_all(signum):
    return lambda pid: os.killpg(pid, signum)


@pytest.mark.usefixtures("_obey_ctrl_c")
@pytest.mark.parametrize(
    ("send", "status", "more"),
    [
        (to_it(signal.SIGINT), 130, []),
        (to_all(signal.SIGTERM), 143, ["data.workers=1"]),  # as a batch system does: to those that load images too
        (to_it(signal.SIGKILL), -signal.SIGKILL, []),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_the_same_command_goes_on_to_the_same_bits(tmp_path, whole, send, status, more):
    command = [*COMMAND, f"output={tmp_path}", *more]
    returned, errors = stop_in_the_middle(command, tmp_path, send)
    assert returned == status, errors
    assert "Traceback" not in errors
    assert ("is written; the same command goes on from the last state" in errors) == (status > 0)
    assert not (tmp_path / "m.safetensors").exists()
    assert (tmp_path / ".lock").exists() == (status < 0)
    reached = json.loads((tmp_path / "state" / "finetune" / "state.json").read_text())["progress"]
    assert reached["step"], "the state of an epoch's end is not that of a signal"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fine-tune 3/3" in again.stderr
    assert "logits identical" in again.stdout
    assert (tmp_path / "m.safetensors").read_bytes() == whole.read_bytes()
