"""Two processes on gloo: the curve of one with twice the batch, exact evaluation, a clean end and a resume."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.test_saliency_datasets import objects

ROOT = Path(__file__).parents[2]
# no BatchNorm, whose statistics are each process's own
NETWORK = [
    "model.name=timm/nf_resnet26",
    "model.kwargs={num_classes: 10, channels: [32, 64, 64, 64], depths: [1, 1, 1, 1]}",
    "baseline.epochs=1",
    "finetune.epochs=1",
    "surgery.calibrate=0",
]


def command(output, processes, *settings):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, "finetune.py", f"output={output}", *NETWORK, *settings]


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def finish(arguments):
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.usefixtures("on_cpu")
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    # at the recipe's own rate rounding alone, such as another number of threads, grows to 0.3 % of the loss
    gentle = ["baseline.lr=3e-4", "finetune.lr=3e-4", "baseline.epochs=2"]
    assert "logits identical on 360 test images" in finish(command(tmp_path / "two", 2, "data.batch_size=35", *gentle))
    finish(command(tmp_path / "one", 1, "data.batch_size=70", *gentle))
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    for curve in ("original", "converted"):
        for row, expected in zip(two["curves"][curve][0], one["curves"][curve][0], strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=3e-4)
            assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=1.0)  # some images are close calls
    # the network of the same weights is judged on 360 images by either, though 360 is no multiple of 2 × 35
    assert two["rows"][0]["accuracy"] * 3.6 == pytest.approx(round(two["rows"][0]["accuracy"] * 3.6), abs=1e-3)


@pytest.mark.usefixtures("on_cpu")
def test_maps_of_all_sizes_are_judged_exactly(tmp_path):
    objects(tmp_path / "data", count=5)  # no multiple of 2 × 2
    small = "{num_classes: 1, backbone: resnet26, width: 16, backbone_kwargs: {channels: [8, 8, 8, 8]}}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "finetune.py", "recipes/sod.yaml"]
    settings = [f"data.root={tmp_path}/data", "data.workers=0", "data.batch_size=2", "data.image_size=16"]
    settings += ["model.name=pspnet", f"model.kwargs={small}", "baseline.epochs=1", "finetune.epochs=0"]
    settings += ["surgery.method=l1", "surgery.options={macs: 0.7}"]
    finish([sys.executable, *launcher, f"output={tmp_path}/out", *settings, "precision=no"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # after its epoch each process judged a half; the job's stage was judged whole by both
    (curve,) = results["curves"]["original"]
    assert curve[-1]["accuracy"] == pytest.approx(results["rows"][0]["accuracy"], abs=1e-3)


@pytest.mark.usefixtures("on_cpu")
def test_when_one_is_killed_all_end_and_the_same_command_goes_on(tmp_path):
    arguments = command(tmp_path, 2, "data.batch_size=35", "baseline.save_minutes=0")
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pointer = tmp_path / "state" / "baseline" / "state.json"
    deadline = time.monotonic() + 180
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(process.pid)
    assert len(workers) == 2, process.communicate()[1][-2000:]
    os.kill(workers[1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert "logits identical" in finish(arguments)


@pytest.mark.usefixtures("on_cpu")
def test_two_machines_with_a_folder_each(tmp_path):
    for code, error in on_two_machines(tmp_path / "one", tmp_path / "two"):
        assert code == 2
        assert "process 1 does not see what process 0 writes there; it must be one folder" in error


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
def test_two_machines_share_one_folder(tmp_path):
    for code, error in on_two_machines(tmp_path / "shared", tmp_path / "shared"):
        assert code == 0, error[-3000:]
    assert (tmp_path / "shared" / "m.safetensors").exists()
    assert not list((tmp_path / "shared").glob("seen-by-all-*"))


def on_two_machines(*outputs):
    """Exit codes and errors of a job's two processes, as launchers on two machines start them: one on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, output in enumerate(outputs):
        arguments = command(output, 1, "finetune.epochs=0", "data.batch_size=35")
        variables = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in variables.items()}
        processes.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=240)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def children(parent):
    """Process ids of those that a process has started, in order."""
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
