import contextlib
import copy
import json
import random
import socket
import time

import pytest
from torch import nn

import surgery
from surgery.transforms.transform import _TRANSFORMS
from tests.checkpoint import load_fuzzing
from tests.checkpoint.load_fuzzing import (
    HOSTILE,
    TEXTS,
    TRANSFORMS,
    Case,
    arguments_of,
    fields_of,
    fuzzed,
    run,
    sound_files,
    verdict,
)

OF_THIS_PACKAGE = {
    key
    for key, cls in _TRANSFORMS.items()
    if cls.__module__.startswith("surgery.") and key == f"{cls.type}@{cls.version}"
}
FILES = 300  # the long run is ``python -m tests.checkpoint.load_fuzzing``


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return sound_files(tmp_path_factory.mktemp("sound"))


def test_wrong_files_are_refused_and_nothing_else_is_touched(sound, tmp_path, monkeypatch):
    load_fuzzing.warm_up(tmp_path, sound)
    wrong = {}
    # thirty times what the slowest takes: only what no budget holds back takes that, on a slow machine too
    monkeypatch.setattr(load_fuzzing, "SECONDS", 30.0)
    monkeypatch.setattr(load_fuzzing, "PATIENCE", 300)
    for number, outcome in run(range(FILES), tmp_path, sound):
        if outcome not in ("loaded", "refused"):
            wrong[number] = outcome
    assert wrong == {}


def test_the_sound_files_are_of_every_kind(sound):
    assert {file.manifest["schema"] for file in sound} == {1, 2}
    transforms = [transform for file in sound for transform in file.manifest.get("transforms", [])]
    assert {transform["type"] for transform in transforms} >= OF_THIS_PACKAGE
    edits = [edit for file in sound for edit in file.manifest.get("edits", [])]
    assert {"pix", "narrow", "match", "squeeze-conv"} <= {edit["method"] for edit in edits}
    arguments = [edit["arguments"] for edit in edits]
    assert all(any(entry.get(name) for entry in arguments) for name in ("identity", "erase", "squeezed", "pool_head"))
    assert any(file.manifest["aliases"] for file in sound)
    assert any("preprocessing" in file.manifest for file in sound)
    assert {file.manifest["source"]["builder"] for file in sound} >= {"timm", "torchvision", "pspnet", "cifar_resnet"}


def test_every_field_of_every_transform_is_fuzzed(sound):
    assert {transform["type"] for transform in TRANSFORMS if isinstance(transform["type"], str)} >= OF_THIS_PACKAGE
    transforms = {item["type"]: item for file in sound for item in file.manifest.get("transforms", [])}
    whole, touched = list(transforms.values()), set()
    for number in range(4_000):
        case = Case({"transforms": copy.deepcopy(whole)}, {})
        load_fuzzing._field(case, random.Random(number), sound)
        for old, new in zip(whole, case.manifest["transforms"], strict=True):
            touched |= {(old["type"], name) for name in {*old, *new} if old.get(name) != new.get(name)}
    assert touched >= {(key, name) for key in OF_THIS_PACKAGE for name in fields_of(key)}


def test_a_number_gives_the_same_file_again(sound):
    numbers = range(40)
    assert [fuzzed(sound, number) for number in numbers] == [fuzzed(sound, number) for number in numbers]


def offend(what):
    if what == "open":
        with contextlib.suppress(OSError), open("somewhere.txt"):
            pass
    elif what == "connect":
        socket.socket().close()
    elif what == "compute":
        end = time.process_time() + 4 * load_fuzzing.SECONDS
        while time.process_time() < end:
            pass
    elif what == "memory":
        raise MemoryError("can't allocate memory")
    return nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("what", "message"),
    [("open", "opened 'somewhere.txt'"), ("connect", "socket."), ("compute", "hang"), ("memory", "too much memory")],
)
def test_the_guard_sees(tmp_path, monkeypatch, what, message):
    if what == "compute":
        monkeypatch.setattr(load_fuzzing, "SECONDS", 0.3)
    else:
        monkeypatch.setattr(load_fuzzing, "SECONDS", 30.0)
    surgery.register_builder("fuzzed_offender")(offend)
    manifest = {
        "schema": 2,
        "source": {"builder": "fuzzed_offender", "name": "", "kwargs": {"what": what}},
        "transforms": [],
        "aliases": {},
        "versions": {},
    }
    path = tmp_path / "m.safetensors"
    path.write_bytes(Case(manifest, dict(nn.Linear(1, 1).state_dict())).to_bytes())
    assert message in verdict(path)
    monkeypatch.setattr(load_fuzzing, "SECONDS", 30.0)
    manifest["source"]["kwargs"]["what"] = "nothing"
    path.write_bytes(Case(manifest, dict(nn.Linear(1, 1).state_dict())).to_bytes())
    assert verdict(path) == "loaded"


def test_any_other_exception_is_seen(tmp_path, monkeypatch):
    def load(path):
        raise KeyError("edits")

    monkeypatch.setattr(surgery, "load", load)
    assert verdict(tmp_path / "m.safetensors") == "raised KeyError: 'edits'"


def test_arguments_are_those_of_the_builder_itself():
    assert {"window_sizes", "resolution", "embed_dims"} <= set(arguments_of("timm", "tiny_vit_5m_224"))
    assert {"groups", "width_per_group"} <= set(arguments_of("torchvision", "resnet18"))
    assert {"layers", "channels"} <= set(arguments_of("cifar_resnet", ""))
    assert arguments_of("timm", "hf-hub:timm/resnet18") == arguments_of("os.system", "") == list(HOSTILE)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_refused(sound, tmp_path, monkeypatch, text, schema):
    monkeypatch.setattr(load_fuzzing, "SECONDS", 30.0)
    chosen = next(file for file in sound if file.manifest["schema"] == schema)
    path = tmp_path / "m.safetensors"
    path.write_bytes(Case(chosen.manifest, chosen.tensors, text).to_bytes())
    changes_nothing = text(json.dumps(chosen.manifest)) == json.dumps(chosen.manifest)
    assert verdict(path) == ("loaded" if changes_nothing else "refused")
