"""Signals during a training, and outside of one."""

import os
import signal
import time

import pytest

from surgery.training import stopping
from surgery.training.stopping import Stopped, stop_requests


@pytest.fixture(autouse=True)
def _default_handlers():
    """As a program has them that no shell started in the background; afterwards they are back."""
    before = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for signum, handler in before:
        signal.signal(signum, handler)


def send(signum):
    os.kill(os.getpid(), signum)
    for _ in range(100):  # the handler runs between two instructions
        pass


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_at_once_outside_of_a_training(signum, status):
    with pytest.raises(Stopped, match=f"stopped by {signum.name}") as caught, stop_requests():
        send(signum)
    assert caught.value.status == status
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_kept_within_a_training_until_it_looks():
    with stop_requests() as stop, stop.deferred():
        send(signal.SIGTERM)
        send(signal.SIGINT)  # a launcher passes on what the terminal has sent already
        assert stop.signum == signal.SIGTERM
        with pytest.raises(Stopped, match="stopped by SIGTERM"), stop.deferred(False):
            pytest.fail("what was kept is raised where signals are not kept")
        with pytest.raises(Stopped, match="the state at step 3 is written"):
            stop.raise_deferred("step 3")


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    with stop_requests() as stop, stop.deferred():
        send(signal.SIGINT)
        send(signal.SIGINT)  # the same one, by way of a launcher
        monkeypatch.setattr(stopping, "SECOND_S", -1.0)
        with pytest.raises(Stopped):
            send(signal.SIGINT)


def test_signals_that_are_ignored_stay_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # by nohup, or in the background
    with stop_requests() as stop:
        send(signal.SIGINT)
    assert stop.signum is None


def test_a_process_that_loads_images_outlives_one_sigterm_and_not_two():
    child = os.fork()
    if not child:
        stopping.leave_signals_to_parent(0)
        send(signal.SIGINT)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        os._exit(7)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 0
