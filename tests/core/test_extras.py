"""What the light install can do, and what it says where an extra is missing."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.core.extras import EXTRAS

LARGE = {"openvino"}  # 180 MB; tests that need it are skipped without it
ROOT = Path(__file__).parents[2]
HIDDEN = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
EXTERNAL = sorted({name for extra in EXTRAS.values() for name in extra} - {"yaml"})  # which comes with timm


def run(code, folder):
    code = HIDDEN.format(names=set(EXTERNAL)) + code
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_the_light_install_does_all_but_calibrate_and_train(tmp_path):
    done = run(
        """
import surgery
from surgery.cli.main import main
model = surgery.create("cifar_resnet", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8], num_classes=3)
print(surgery.plan(model))
model = surgery.convert(model)
print(surgery.cost(model, 32))
surgery.save(model, "m.safetensors")
loaded = surgery.load("m.safetensors")
surgery.optimize_for_inference(loaded)
surgery.export(loaded, "m.pt2", format="torch-export", input_size=32)
for arguments in (["load-check", "m.safetensors"], ["plan", "resnet50"], ["finetune", "--list"]):
    assert main(arguments) == 0, arguments
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.pt2").exists()


def test_what_is_missing_is_named_with_its_extra(tmp_path):
    done = run(
        """
import torch, surgery
from surgery.cli.main import main
model = surgery.create("cifar_resnet", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8], num_classes=3)
images = torch.randn(2, 3, 32, 32)
for use in (
    lambda: surgery.calibrate(surgery.convert(model), model, images),
    lambda: surgery.convert(model, calibrate=images),
    lambda: surgery.match(model),
    lambda: surgery.export(model, "m.onnx", input_size=32),
    lambda: __import__("surgery.training").training.run,
):
    try:
        use()
    except surgery.errors.MissingPackageError as error:
        print(error)
assert main(["finetune"]) == 2
assert main(["bench", "--train", "quickstart"]) == 2
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "surgery.calibrate needs scipy and greenlet: pip install 'surgery[calibrate]'"
    assert lines[1] == "calibrate= needs scipy and greenlet: pip install 'surgery[calibrate]'"
    assert lines[2] == "surgery.match needs scipy: pip install 'surgery[calibrate]'"
    assert lines[3].endswith("needs onnx, onnxscript and onnxruntime: pip install 'surgery[export]'")
    assert lines[4].startswith("surgery.training needs scipy, greenlet, accelerate")
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert all("pip install 'surgery[train]'" in line for line in errors)


def test_importing_surgery_loads_no_package_of_an_extra(tmp_path):
    code = f"import sys, surgery, surgery.__main__; print(sorted(set({EXTERNAL!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("extra", EXTRAS)
def test_setup_asks_for_the_same(extra):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options.extras_require"]

    def resolved(name):
        packages = set()
        for line in required[name].split():
            nested = re.fullmatch(r"surgery\[(\w+)\]", line)
            packages |= resolved(nested[1]) if nested else {re.split("[<>=]", line)[0]}
        return packages

    assert resolved(extra) == set(EXTRAS[extra].values())
    if extra not in LARGE:
        assert resolved(extra) <= resolved("test")
