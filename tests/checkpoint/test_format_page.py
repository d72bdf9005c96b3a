"""docs/format.md says what the code does."""

import re
from pathlib import Path

import torch
from torch import nn

import surgery
from surgery.checkpoint.build_budget import FLOOR, PER_ELEMENT, PER_TENSOR
from surgery.checkpoint.manifest import SCHEMA
from surgery.planning.registry import discover
from surgery.transforms.carry_out import apply
from surgery.transforms.history import changed_modules
from surgery.transforms.layer_kinds import _KINDS
from surgery.transforms.replace import Replace
from surgery.transforms.transform import _TRANSFORMS, CALL, _stored

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def test_every_transform_is_in_the_table_with_its_fields():
    discover()
    own = {key: cls for key, cls in _TRANSFORMS.items() if cls.__module__.startswith("surgery.")}
    rows = {row.split("`")[1]: row.split("|")[2] for row in PAGE.splitlines() if re.match(r"\| `\w+@\d+` \|", row)}
    assert rows.keys() == own.keys()
    for key, cls in own.items():
        assert re.findall(r"`(\w+)`", rows[key]) == [field.name for field in _stored(cls)]


def test_every_kind_of_layer_is_named_with_its_options():
    discover()
    own = [kind for kind in _KINDS.values() if kind.Options.__module__.startswith("surgery.")]
    for kind in own:
        assert f"`{kind.name}` (" in PAGE
        assert all(re.search(rf"`{name}`\s", PAGE) for name in kind.Options.__dataclass_fields__)


def test_numbers():
    assert f"# File format, schema {SCHEMA}" in PAGE
    assert f"({FLOOR // CALL:,}, and {PER_TENSOR // CALL} for each tensor" in PAGE
    assert f"elements written ({PER_ELEMENT} for each in the file" in PAGE


@surgery.register_builder("tests_of_the_page")
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3))


def test_the_example_saves_and_loads(tmp_path):
    example = {"__name__": "an_example"}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], example)
    model = net().eval()
    apply(model, [Replace("0", "gated", (3, 4), {"slope": 0.3}), example["Smooth"]("1")])
    surgery.save(model, tmp_path / "m", source="tests_of_the_page", input_size=(3, 8, 8))
    loaded = surgery.load(tmp_path / "m")
    x = torch.randn(1, 3, 8, 8)
    assert loaded(x).equal(model(x))
    assert changed_modules(loaded) == ("0", "1")
