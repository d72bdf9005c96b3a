"""What ``plan`` and ``cost`` print."""

import pytest

from tests.cli.command_line import run


def test_plan(capsys):
    status, out, _ = run(capsys, "plan", "resnet50", "--zeta", "layer3=8,layer4=4", "--exclude", "layer1")
    assert status == 0
    assert "13 converted" in out
    assert "1024 → 128" in out


@pytest.mark.parametrize("size", ["48", "48,48", "3,48,48"])
def test_image_sizes(capsys, size):
    assert "input 3×48×48" in run(capsys, "cost", "test_resnet", "--input-size", size)[1]
