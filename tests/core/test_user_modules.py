import sys

import pytest

import surgery
from surgery.cli.main import main
from surgery.core.errors import UserModuleError
from surgery.core.user_modules import import_user_modules

OWN = """
import torch
import surgery
from torch import nn


@surgery.register_builder("{name}")
def own(width: int = 16) -> nn.Module:
    conv, act = nn.Conv2d, nn.ReLU
    return nn.Sequential(
        conv(3, width, 3, padding=1), act(), conv(width, width // 4, 1), act(), conv(width // 4, width, 3, padding=1),
        act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder whose modules can be imported; nothing of it stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


def test_modules_of_the_current_folder(folder):
    (folder / "own_module_a.py").write_text("VALUE = 3")
    import_user_modules(["own_module_a"])
    assert sys.modules["own_module_a"].VALUE == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"module 'own_module_b' cannot be imported: there is no such module in"),
        ("import nothing_like_this", r"No module named 'nothing_like_this' \(own_module_b.py, line 1\)"),
        ("x = 1\nraise RuntimeError('two\\nlines')", r"RuntimeError: two lines \(own_module_b.py, line 2\)"),
        ("def f(:", "SyntaxError"),
        ("import sys\nsys.exit(0)", r"SystemExit: 0 \(own_module_b.py, line 2\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(folder, capsys, text, message):
    if text is not None:
        (folder / "own_module_b.py").write_text(text)
    with pytest.raises(UserModuleError, match=message) as raised:
        import_user_modules(["own_module_b"])
    assert "\n" not in str(raised.value)
    for command in (["plan", "resnet18"], ["finetune"]):
        assert main([*command, "--import", "own_module_b"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_own_networks_reach_every_command(folder, capsys):
    (folder / "own_module_c.py").write_text(OWN.format(name="own-c"))
    own, file = ["--import", "own_module_c"], "m.safetensors"
    name = ["own-c", "--kwargs", '{"width": 32}', "--input-size", "16"]
    assert main(["plan", *name, *own]) == 0
    assert "32 → 8" in capsys.readouterr().out
    assert main(["convert", *name, *own, "--out", file]) == 0
    assert main(["load-check", file, *own]) == 0
    assert main(["cost", file, *own, "--input-size", "16"]) == 0
    assert main(["bench", file, *own, "--input-size", "16", "--batch", "1", "--seconds", "0.1"]) == 0
    assert main(["export", file, *own, "--input-size", "16", "--out", "m.pt2", "--format", "torch-export"]) == 0
    assert "random" not in capsys.readouterr().err


def test_own_networks_reach_recipes(folder, capsys):
    (folder / "own_module_d.py").write_text(OWN.format(name="own-d"))
    (folder / "r.yaml").write_text("imports: [own_module_d]\nmodel: {name: own-d, kwargs: {width: 32}}\n")
    assert main(["finetune", "r.yaml", "--dry-run"]) == 0
    assert "32 → 8" in capsys.readouterr().out
    (folder / "own_module_e.py").write_text(OWN.format(name="own-e"))
    (folder / "r.yaml").write_text("model: {name: own-e, kwargs: {width: 32}}\n")
    assert main(["finetune", "r.yaml", "--dry-run", "--import", "own_module_e"]) == 0


def test_a_file_of_an_unknown_builder_says_what_to_import(tmp_path, capsys, monkeypatch):
    surgery.register_builder("own-f")(lambda: surgery.create("test_resnet", num_classes=3))
    model = surgery.create("own-f")
    surgery.save(model, tmp_path / "m.safetensors", source="own-f")
    monkeypatch.setattr("surgery.checkpoint.source._BUILDERS", {})
    assert main(["load-check", str(tmp_path / "m.safetensors")]) == 2
    assert "--import MODULE" in capsys.readouterr().err
