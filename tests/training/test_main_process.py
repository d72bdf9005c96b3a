"""Two processes on gloo: what fails in one is raised in both, and a signal to one is obeyed by both or by none."""

import os
import subprocess
import sys
from pathlib import Path

from tests.training.test_image_scan import photographs

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FAILURES = """
import sys
from pathlib import Path
from accelerate import Accelerator
from surgery.training.image_scan import leave_out_unreadable
from surgery.training.output_folder import opened_output
from surgery.training.datasets import open_dataset
from surgery.training.main_process import in_all, on_main
from surgery.training.recipe import DataSettings, RecipeError
from surgery.training.training_state import Progress, TrainingState

accelerator, folder = Accelerator(), Path(sys.argv[1])
assert on_main(accelerator, lambda: accelerator.process_index) == 0
settings = DataSettings(name="folder", root=str(folder / "images"), skip_unreadable=True, image_size=16)

def only_in_the_second():
    if accelerator.process_index == 1:
        raise OSError(28, "full")

def open_output():
    with opened_output(accelerator, folder / "file" / "x", False):
        pass

for action, message in (
    (lambda: in_all(only_in_the_second), "full"),
    (open_output, "Not a directory"),
    (lambda: leave_out_unreadable(open_dataset(settings), settings, accelerator, folder / "nothing"), "readable.json"),
    (lambda: TrainingState(folder / "file", {}).save(accelerator, None, Progress()), "cannot write the state"),
):
    try:
        action()
    except (OSError, RecipeError) as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
accelerator.wait_for_everyone()
accelerator.print("all failed alike")
"""
SIGNAL_TO_THE_SECOND = """
import signal, sys
from surgery.training import load_recipe, run, trainer

real = trainer.Training._judge

def judged(training, whole):  # one that comes after the last step, too late for all to hear of it
    if training.accelerator.process_index == 1:
        training.stop.signum = signal.SIGTERM
    return real(training, whole)

trainer.Training._judge = judged
run(load_recipe(sys.argv[1], sys.argv[2:]))
"""


def launched(folder, code, *arguments):
    (folder / "program.py").write_text(code)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*LAUNCHER, str(folder / "program.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_errors_of_one_process_are_raised_in_both(tmp_path):
    (tmp_path / "file").write_text("")
    photographs(tmp_path / "images")
    done = launched(tmp_path, FAILURES, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "all failed alike"


def test_a_signal_to_one_process_after_the_last_step(tmp_path):
    settings = ["baseline.epochs=1", "finetune.epochs=0", "surgery.calibrate=0", "data.batch_size=200"]
    network = "model.kwargs={num_classes: 10, channels: [8, 8, 8, 8], layers: [1, 1, 1, 1]}"
    recipe = ROOT / "recipes" / "quickstart.yaml"
    done = launched(tmp_path, SIGNAL_TO_THE_SECOND, recipe, f"output={tmp_path / 'out'}", network, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("logits identical") == 1
