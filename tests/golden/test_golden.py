"""Files that earlier versions wrote load to the logits that they had then."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import surgery
from tests.golden import networks

FOLDER = Path(__file__).parent
LOGITS = json.loads((FOLDER / "logits.json").read_text())


@pytest.mark.parametrize("name", LOGITS)
def test_a_file_of_schema_1_loads_to_its_logits(name):
    assert networks.PlainNet
    model = surgery.load(FOLDER / f"{name}.safetensors")
    with torch.no_grad():
        logits = model(load_file(FOLDER / "images.safetensors")["images"]).double().flatten(1)[:, :8]
    torch.testing.assert_close(logits, torch.tensor(LOGITS[name], dtype=torch.float64), rtol=1e-3, atol=1e-4)


def test_every_file_has_its_logits():
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == {*LOGITS, "images"}
