"""The scripts of benchmarks/, as far as they go without the machine they are for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def test_the_published_algorithm_computes_what_pix_is():
    pytest.importorskip("triton")
    command = [sys.executable, str(SCRIPTS / "published_kernel.py"), "--check"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "agree" in done.stdout
