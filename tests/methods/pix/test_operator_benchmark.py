import re

import pytest

from surgery.bench import Setting
from surgery.bench.operators import operator_benchmark, operator_benchmarks
from surgery.cli.main import main
from surgery.methods.pix import operator_benchmark as pix_benchmark
from surgery.methods.pix.operator_benchmark import bench_operator


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operator(dtype):
    result = bench_operator((16, 4, 6), Setting(2, dtype=dtype, threads=1), seconds=0.1)
    itemsize = 4 if dtype == "float32" else 2
    moved = (2 * 16 * 36 + 2 * 4 * 36 + 4 * 16) * itemsize
    assert result.floor * result.bandwidth == pytest.approx(moved)
    assert result.cold > 0
    assert result.warm > 0


def test_the_method_hands_it_out():
    assert operator_benchmark("pix") is pix_benchmark
    assert operator_benchmarks() == {"pix": pix_benchmark}


def test_command(monkeypatch, capsys):
    monkeypatch.setattr(pix_benchmark, "SIZES", ((16, 4, 6),))
    assert main(["bench", "--op", "--batch", "1", "--threads", "1", "--seconds", "0.1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"PiX: (compiled|composition)", out.splitlines()[0])
    assert re.search(r"^16→4 at 6² +eager, float32, channels_last, batch 1, 1 thread ", out, re.M)
    assert "training / conv+BN+ReLU" in out
