import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


def in_a_process(name, *options, **variables):
    """Number of tests that passed there; none may fail."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-p", "no:cacheprovider", str(FOLDER / name), *options]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=FOLDER.parents[1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return int(re.search(r"(\d+) passed", done.stdout).group(1))


def test_kernels_on_a_device_or_in_the_interpreter():
    variables = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    assert in_a_process("triton_checks.py", **variables) >= 60


def test_kernels_compile_without_a_device():
    assert in_a_process("triton_compiles.py") == 4


@pytest.mark.slow
def test_every_kernel_compiles_for_every_dtype_without_a_device():
    assert in_a_process("triton_compiles.py", "-m", "slow") >= 20
