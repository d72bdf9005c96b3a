"""One job at a time in an output folder."""

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import finetune
from surgery.training import output_lock
from surgery.training.output_lock import OutputInUseError, locked
from tests.training.test_job import SMALL


def hold(folder, connection):
    """The other process: it has the lock until it is killed."""
    with locked(folder):
        connection.send("locked")
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process with the lock."""
    context = multiprocessing.get_context("fork")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, child_end))
    process.start()
    assert parent_end.recv() == "locked"
    yield process
    process.kill()
    process.join()


def test_a_second_job_is_told_of_the_first_and_may_begin_once_that_was_killed(tmp_path, holder, capsys):
    settings = [f"output={tmp_path}", *SMALL, "baseline.epochs=0", "finetune.epochs=0", "fresh=true"]
    (tmp_path / "results.json").write_text("of the first job")
    assert finetune.main(settings) == 2
    assert f"another job writes there: process {holder.pid} on {socket.gethostname()}" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == "of the first job"
    holder.kill()
    holder.join()
    assert (tmp_path / ".lock").exists()
    assert finetune.main(settings) == 0
    assert not (tmp_path / ".lock").exists()


def test_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_not_twice_in_one_process(tmp_path):
    with locked(tmp_path):
        with pytest.raises(OutputInUseError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()


def test_what_another_host_left_is_not_taken_over(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "yesterday"}))
    with (
        pytest.raises(OutputInUseError, match=r"process 1 on elsewhere, since yesterday.*remove .*\.lock"),
        locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_file_that_was_not_written_to_its_end_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with locked(tmp_path):
        pass


def test_where_the_system_has_neither_record_locks_nor_removal_of_open_files(tmp_path, monkeypatch):
    """As Windows: no fcntl, pread and pwrite; a file that is open cannot be removed."""
    monkeypatch.setattr(output_lock, "fcntl", None)
    for name in ("pread", "pwrite"):
        monkeypatch.delattr(os, name, raising=False)
    real, lock = Path.unlink, tmp_path / ".lock"

    def unlink(path, missing_ok=False):
        status = os.stat(path)
        for descriptor in range(256):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), status):
                    raise AssertionError(f"{path} is open")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with locked(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "since": "now"}))
    with pytest.raises(OutputInUseError, match=f"process {os.getppid()}"), locked(tmp_path):
        pass


def test_without_locks_in_the_file_system_the_process_number_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "_record_lock", lambda descriptor: None)
    left = {"host": socket.gethostname(), "pid": os.getppid(), "since": "now"}
    (tmp_path / ".lock").write_text(json.dumps(left))
    with pytest.raises(OutputInUseError, match=f"process {os.getppid()}"), locked(tmp_path):
        pass
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    (tmp_path / ".lock").write_text(json.dumps(left | {"pid": ended.pid}))
    with locked(tmp_path):
        pass
