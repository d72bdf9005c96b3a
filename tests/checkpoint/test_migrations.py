import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

import surgery
from surgery.checkpoint.manifest import parse_manifest
from surgery.checkpoint.migrations import migrated
from surgery.checkpoint.model_file import _digest
from surgery.core.errors import CheckpointError
from surgery.planning.registry import discover
from surgery.transforms.drop import Drop
from surgery.transforms.erase_calls import EraseCalls
from surgery.transforms.history import history
from surgery.transforms.insert_before import InsertBefore
from surgery.transforms.narrow import Narrow
from surgery.transforms.pooled_head import PooledHead
from surgery.transforms.reorder import INSIDE, THROUGHOUT, Reorder
from surgery.transforms.replace import Replace
from tests.golden import networks

discover()  # the kinds of layers
GOLDEN = Path(networks.__file__).parent
OPTIONS = {"tau": 0.25, "fusion": "threshold", "operator": "max", "activation": "tanh"}
OPTIONS |= {"predictor_norm": False, "norm": "none", "grouping": "strided"}
OLDER = {name: value for name, value in OPTIONS.items() if name != "grouping"}
PIX = {"method": "pix", "site": "a.conv1", "role": "head", "channels": [16, 4], "note": ""}
SQUEEZE_CONV = PIX | {"method": "squeeze-conv", "site": "a.conv2", "role": "spatial"}
OTHER = {"role": "", "site": "", "channels": [0, 0], "note": ""}
ERASE = ["a", "conv1", [[1, "relu"], [2, "ReLU"]]]
SITE = ("a.conv1", "pix", (16, 4))


def manifest(*edits):
    return {
        "schema": 1,
        "source": {"builder": "timm", "name": "resnet18", "kwargs": {}},
        "edits": list(edits),
        "aliases": {},
        "versions": {},
    }


def transforms_of(*edits):
    return list(parse_manifest(json.dumps(manifest(*edits))).transforms)


@pytest.mark.parametrize(
    ("edit", "transforms"),
    [
        (PIX | {"arguments": {"identity": [], "erase": []}}, [Replace(*SITE)]),
        (PIX | {"arguments": OPTIONS | {"identity": [], "erase": []}}, [Replace(*SITE, OPTIONS)]),
        (
            PIX | {"arguments": OPTIONS | {"identity": ["a.bn1", "a.act1"], "erase": []}},
            [Replace(*SITE, OPTIONS), Drop(("a.bn1", "a.act1"))],
        ),
        (
            PIX | {"arguments": OPTIONS | {"identity": ["a.bn1"], "erase": ERASE}},
            [Replace(*SITE, OPTIONS), Drop(("a.bn1",)), EraseCalls("a", "conv1", ((1, "relu"), (2, "ReLU")))],
        ),
        (
            PIX | {"arguments": OLDER | {"identity": [], "erase": ERASE}},
            [Replace(*SITE, OLDER | {"grouping": "contiguous"}), EraseCalls("a", "conv1", ((1, "relu"), (2, "ReLU")))],
        ),
        (PIX | {"arguments": OPTIONS | {"squeezed": 4}}, [InsertBefore(*SITE, 4, OPTIONS)]),
        (PIX | {"arguments": OLDER | {"squeezed": 4}}, [InsertBefore(*SITE, 4, OLDER)]),
        (PIX | {"arguments": {"squeezed": 4}}, [InsertBefore(*SITE, 4)]),
        (OTHER | {"method": "pix", "arguments": {"pool_head": True}}, [PooledHead()]),
        (OTHER | {"method": "squeeze-conv", "arguments": {"pool_head": True}}, [PooledHead()]),
        (SQUEEZE_CONV | {"arguments": {"squeezed": 8}}, [InsertBefore("a.conv2", "squeeze-conv", (16, 4), 8)]),
        (
            OTHER | {"method": "narrow", "arguments": {"widths": {"a": [None, 4], "b": [4, None]}}},
            [Narrow({"a": [None, 4], "b": [4, None]})],
        ),
        (OTHER | {"method": "match", "arguments": {"order": "0a"}, "note": THROUGHOUT}, [Reorder("0a")]),
        (OTHER | {"method": "match", "arguments": {"order": "0a"}, "note": INSIDE}, [Reorder("0a", inside=True)]),
        (OTHER | {"method": "match", "arguments": {"order": "0a"}}, [Reorder("0a")]),
    ],
)
def test_every_form_of_an_edit(edit, transforms):
    assert transforms_of(edit) == transforms


def test_edits_keep_their_order():
    edits = [
        OTHER | {"method": "match", "arguments": {"order": "0a"}},
        PIX | {"arguments": {"identity": ["a.bn1"], "erase": []}},
        SQUEEZE_CONV | {"arguments": {"squeezed": 8}},
    ]
    types = ["reorder", "replace", "drop", "insert_before"]
    assert [transform.type for transform in transforms_of(*edits)] == types
    assert transforms_of() == []


def test_what_is_rewritten_stays_as_it_was():
    content = manifest(PIX | {"arguments": OPTIONS | {"identity": ["a.bn1"], "erase": ERASE}})
    before = json.dumps(content)
    assert migrated(content, 2)["schema"] == 2
    assert json.dumps(content) == before


def pix(**arguments):
    return PIX | {"arguments": arguments}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            pix() | {"method": "mine"},
            r"edits: \[0\]: method 'mine': of schema 1, one of match, narrow, pix, squeeze-conv",
        ),
        (pix(), r"edit of 'pix' has the arguments \[\]; it takes squeezed; or identity, erase; or pool_head"),
        (pix(identity=[]), "it takes squeezed; or identity, erase"),
        (pix(squeezed=4, identity=[], erase=[]), "it takes squeezed; or identity, erase"),
        (pix(squeezed=4, taus=1), "it takes squeezed; or identity, erase"),
        (pix(pool_head=True, tau=0.5), "it takes squeezed; or identity, erase"),
        (pix(squeezed=True), "squeezed=True: a whole number >= 1"),
        (pix(squeezed=0), "squeezed=0"),
        (pix(squeezed=10**9), "squeezed=1000000000"),
        (pix(pool_head=False), "pool_head=False: true is needed"),
        (pix(pool_head=1), "pool_head=1: true is needed"),
        (pix(identity="bn1", erase=[]), "modules='bn1': a list of module names"),
        (pix(identity=[""], erase=[]), "modules='': a module's name"),
        (pix(identity=None, erase=[]), "modules=None"),
        (pix(identity=[], erase=["a", "b"]), "edit argument erase="),
        (pix(identity=[], erase=None), "edit argument erase=None"),
        (pix(identity=[], erase=["a", "b", []]), "calls="),
        (pix(identity=[], erase=["a", "b", [[10**9, "relu"]]]), "calls="),
        (pix(identity=[], erase=["a", "b", [[1, "relu"]] * 17]), "calls="),
        (pix(identity=[], erase=[5, "b", [[1, "relu"]]]), "block=5"),
        (pix(squeezed=4, tau=7), "tau=7"),
        (pix(squeezed=4, fusion=[]), r"fusion=\[\]"),
        (pix(squeezed=4, predictor_norm=1), "predictor_norm=1"),
        (pix(squeezed=4) | {"site": ""}, "module='': a module's name"),
        (pix(squeezed=4) | {"channels": [0, 0]}, "channels=0: a whole number >= 1"),
        (pix(squeezed=4) | {"channels": [4]}, r"edit channels=\[4\]: two whole numbers"),
        (SQUEEZE_CONV | {"arguments": {"squeezed": 4, "tau": 0.5}}, "'squeeze-conv' has the arguments .*or pool_head"),
        (SQUEEZE_CONV | {"arguments": {"identity": [], "erase": []}}, "it takes squeezed, or pool_head"),
        (OTHER | {"method": "narrow", "arguments": {}}, r"'narrow' has the arguments \[\]; it takes widths"),
        (OTHER | {"method": "narrow", "arguments": {"widths": {"a": [0, 4]}}}, r"widths\['a'\]="),
        (OTHER | {"method": "match", "arguments": {"order": 5}}, "order=5: a digest"),
        (OTHER | {"method": "match", "arguments": {"order": "0"}, "channels": [-1, 0]}, "two whole numbers"),
        (OTHER | {"method": "match", "arguments": [["order", "0"]]}, "edit arguments=.*: dict is needed"),
    ],
)
def test_unsound_edits_are_refused(edit, message):
    with pytest.raises(CheckpointError, match=message):
        transforms_of(edit)


def rewritten(path, target, **changes):
    """A file with its manifest changed and its digest made right."""
    with safe_open(path, framework="pt") as opened:
        content = json.loads(opened.metadata()["surgery"])
    tensors = load_file(path)
    text = json.dumps(content | changes)
    target.write_bytes(save(tensors, {"surgery": text, "sha256": _digest(text, tensors)}))
    return content


def test_a_user_s_own_method_of_schema_1_is_named(tmp_path):
    content = rewritten(GOLDEN / "squeeze.safetensors", tmp_path / "m")
    own = content["edits"][-1] | {"method": "my-method"}
    rewritten(GOLDEN / "squeeze.safetensors", tmp_path / "m", edits=[*content["edits"][:-1], own])
    with pytest.raises(CheckpointError, match=r"edits: \[\d+\]: method 'my-method': of schema 1, one of"):
        surgery.load(tmp_path / "m")


@pytest.mark.parametrize("schema", [0, 3, True, "1", None])
def test_other_schemas_are_refused(tmp_path, schema):
    rewritten(GOLDEN / "squeeze.safetensors", tmp_path / "m", schema=schema)
    message = "schema 3; this version reads up to 2: upgrade surgery" if schema == 3 else f"schema={schema!r}"
    with pytest.raises(CheckpointError, match=message):
        surgery.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["options", "narrowed", "erased", "downscale", "squeeze_conv"])
def test_saved_again_it_is_of_today_s_schema_and_the_same_network(tmp_path, name):
    model = surgery.load(GOLDEN / f"{name}.safetensors")
    surgery.save(model, tmp_path / "again.safetensors", input_size=(3, 16, 16))
    with safe_open(tmp_path / "again.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["surgery"])["schema"] == 2
    again = surgery.load(tmp_path / "again.safetensors")
    assert history(again) == history(model)
    assert history(model)
    images = load_file(GOLDEN / "images.safetensors")["images"]
    with torch.no_grad():
        assert again(images).equal(model(images))


def test_read_gives_today_s_schema():
    content, tensors = surgery.checkpoint.read(GOLDEN / "erased.safetensors")
    assert content["schema"] == 2
    assert "edits" not in content
    assert {transform["type"] for transform in content["transforms"]} >= {"replace@1", "drop@1", "erase_calls@1"}
    assert content["aliases"].keys() <= tensors.keys()
