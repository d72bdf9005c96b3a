import copy
import dataclasses
import json
import pickle
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn

import surgery
from surgery.checkpoint.build_budget import Budget, BudgetError
from surgery.checkpoint.source import _affordable
from surgery.core.errors import CheckpointError
from surgery.methods.fbs.transform import BoostAndSuppress, WithWholeBias
from surgery.methods.octave.transform import OctaveRegion
from surgery.planning.registry import discover
from surgery.transforms.drop import Drop
from surgery.transforms.erase_calls import EraseCalls
from surgery.transforms.feature_widths import FeatureWidths
from surgery.transforms.history import history, remember
from surgery.transforms.insert_before import InsertBefore
from surgery.transforms.insert_behind import InsertBehind
from surgery.transforms.modules_by_name import put
from surgery.transforms.narrow import Narrow
from surgery.transforms.pooled_head import PooledHead
from surgery.transforms.reorder import Reorder
from surgery.transforms.replace import Replace
from surgery.transforms.transform import _TRANSFORMS, UNSTORED, Transform, transform, transform_from_json
from tests.small_models import Net

discover()  # the kinds of layers
SIZE = (3, 8, 8)


@transform("tests_leaky", version=3)
@dataclass(frozen=True)
class Leaky(Transform):
    """A transform from outside the package: a LeakyReLU in a module's place."""

    module: str
    slopes: tuple[float, ...] = (0.1,)
    seen: list[str] = field(default_factory=list, compare=False, metadata=UNSTORED)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slopes", tuple(self.slopes))
        if not all(0 < slope < 1 for slope in self.slopes):
            raise ValueError(f"slopes={self.slopes!r}: numbers between 0 and 1 are needed")

    def apply(self, model: nn.Module, choice: Any = None) -> None:
        put(model, self.module, nn.Sequential(*(nn.LeakyReLU(slope) for slope in self.slopes)))

    def changed(self) -> tuple[str, ...]:
        return (self.module,)


EXAMPLES = [
    Replace("conv1", "pix", (16, 4)),
    Replace("conv1", "pix", (16, 4), {"tau": 0.25, "fusion": "weighted", "grouping": "strided"}),
    Drop(("bn1", "act1")),
    Drop(()),
    EraseCalls("block", "conv1", ((1, "relu"), (2, "ReLU"))),
    InsertBefore("conv1", "pix", (16, 4), 4, {"norm": "after"}),
    InsertBefore("conv1", "squeeze-conv", (16, 4), 4),
    InsertBehind("bn1", "se", 4, {"ratio": 2}),
    BoostAndSuppress("conv1", (16, 4), "bn1", "act1", "conv0", True, {"density": 0.25, "schedule": [1.0, 0.5]}),
    WithWholeBias("conv1", (16, 4), "bn1", "act1"),
    Narrow({"conv1": [None, 4], "bn1": [4, None]}),
    Narrow({}, maps={"conv1": [[3, 2], [4, 1]]}),
    OctaveRegion(
        "layer1", "layer1", ("layer1.0.conv1", "layer1.0.conv2"), ("layer1.0.bn1",), ("layer1.0.act1",), 0.5, 8
    ),
    FeatureWidths({"num_features": 24, "head.in_features": 24}, (8, 24)),
    FeatureWidths(),
    Reorder("0123456789abcdef"),
    Reorder("0123456789abcdef", inside=True),
    PooledHead(),
    Leaky("act", (0.1, 0.2)),
]


def test_there_is_an_example_of_every_transform_of_this_package():
    own = {key for key, cls in _TRANSFORMS.items() if cls.__module__.startswith("surgery.")}
    assert {"replace@1", "drop@1", "erase_calls@1", "insert_before@1", "narrow@1", "reorder@1", "pooled_head@1"} <= own
    assert {f"{example.type}@{example.version}" for example in EXAMPLES} >= own


@pytest.mark.parametrize("example", EXAMPLES, ids=repr)
def test_round_trip_through_json(example):
    again = transform_from_json(json.loads(json.dumps(example.to_json())))
    assert again == example
    assert type(again) is type(example)
    assert hash(again) == hash(example)
    assert again.to_json() == example.to_json()
    assert again == pickle.loads(pickle.dumps(example)) == copy.deepcopy(example)


def test_they_are_frozen_and_go_into_sets():
    assert len({*EXAMPLES, *map(copy.deepcopy, EXAMPLES)}) == len(EXAMPLES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLES[0].module = "other"


def test_equal_transforms_have_equal_hashes_however_they_are_written():
    one, other = (Replace("conv1", "pix", channels, {"tau": tau}) for channels, tau in (((8, 4), 1), ([8, 4], 1.0)))
    assert one == other
    assert hash(one) == hash(other)
    assert Drop(["a"]) == Drop(("a",))
    assert Replace("conv1", "pix", (8, 4)) == Replace("conv1", "pix", (8, 4), {"tau": 0.5})


NARROW = {"type": "narrow@1", "widths": {"conv1": [None, 4]}}
REPLACE = Replace("conv1", "pix", (16, 4)).to_json()
INSERT = InsertBefore("conv1", "pix", (16, 4), 4).to_json()
ERASE = EraseCalls("block", "conv1", ((1, "relu"),)).to_json()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "None: an object with a type, such as 'narrow@1', is needed"),
        ([], r"\[\]: an object with a type"),
        ({}, r"\{\}: an object with a type"),
        (NARROW | {"type": 1}, "an object with a type"),
        (
            NARROW | {"type": "unheard@1"},
            r"type 'unheard@1' is not registered here \(known: .*drop@1, .*--import MODULE",
        ),
        (NARROW | {"type": "narrow"}, "type 'narrow' is not registered here"),
        (NARROW | {"type": "narrow@0"}, "type 'narrow@0' is not registered here"),
        (NARROW | {"type": "narrow@2"}, "type 'narrow@2': this version reads narrow@1: upgrade"),
        (NARROW | {"type": "tests_leaky@4"}, "type 'tests_leaky@4': this version reads tests_leaky@3: upgrade"),
        (NARROW | {"type": "tests_leaky@2"}, "type 'tests_leaky@2' is not registered here"),
        (
            NARROW | {"chooser": None},
            r"narrow@1 has the keys \['widths', 'chooser'\]; besides type it takes widths, parameters",
        ),
        ({"type": "narrow@1"}, r"narrow@1 has the keys \[\]; besides type it takes widths, parameters"),
        ({"type": "pooled_head@1", "x": 1}, "besides type it takes none"),
        (NARROW | {"widths": None}, "widths=None: an object"),
        (NARROW | {"widths": {"conv1": [4]}}, r"widths\['conv1'\]="),
        (NARROW | {"widths": {"conv1": [0, 4]}}, r"widths\['conv1'\]="),
        (NARROW | {"widths": {"conv1": [4, True]}}, r"widths\['conv1'\]="),
        (NARROW | {"widths": {"conv1": [4, 10**9]}}, "widths="),
        (REPLACE | {"module": ""}, "module='': a module's name is needed"),
        (REPLACE | {"module": 5}, "module=5: a module's name is needed"),
        (REPLACE | {"layer": "unheard"}, "layer='unheard': one of"),
        (REPLACE | {"layer": ["pix"]}, r"layer=\['pix'\]: the name of a kind of layer is needed"),
        (REPLACE | {"layer": "squeeze-conv", "options": {}}, "layer 'squeeze-conv' takes no convolution's place"),
        (REPLACE | {"channels": [16]}, r"channels=\[16\]: two whole numbers"),
        (REPLACE | {"channels": [16, 0]}, "channels=0: a whole number >= 1"),
        (REPLACE | {"channels": [16, True]}, "channels=True: a whole number"),
        (REPLACE | {"channels": "ab"}, "channels='ab': two whole numbers"),
        (REPLACE | {"options": None}, "options=None: of layer 'pix' there are tau, fusion"),
        (REPLACE | {"options": {"taus": 1}}, "options={'taus': 1}: of layer 'pix' there are tau"),
        (REPLACE | {"options": {"tau": 7}}, "tau=7"),
        (REPLACE | {"options": {"tau": None}}, "tau=None"),
        (REPLACE | {"options": {"fusion": []}}, r"fusion=\[\]"),
        (REPLACE | {"options": {"predictor_norm": 1}}, "predictor_norm=1"),
        (REPLACE | {"options": {"norm": {"norm": "none"}}}, "norm={'norm': 'none'}"),
        (INSERT | {"squeezed": True}, "squeezed=True: a whole number >= 1"),
        (INSERT | {"squeezed": 0}, "squeezed=0"),
        (INSERT | {"squeezed": 1.0}, "squeezed=1.0"),
        (INSERT | {"squeezed": 10**9}, "squeezed=1000000000"),
        (INSERT | {"layer": "squeeze-conv", "options": {"tau": 0.5}}, "of layer 'squeeze-conv' there are none"),
        ({"type": "drop@1", "modules": "bn1"}, "modules='bn1': a list of module names"),
        ({"type": "drop@1", "modules": [""]}, "modules='': a module's name"),
        ({"type": "drop@1", "modules": None}, "modules=None"),
        (ERASE | {"block": None}, "block=None: a module's name"),
        (ERASE | {"conv": ""}, "conv='': a module's name"),
        (ERASE | {"calls": []}, r"calls=\[\]: 1 to 16 of \[n, name\]"),
        (ERASE | {"calls": None}, "calls=None"),
        (ERASE | {"calls": [[10**9, "relu"]]}, "calls="),
        (ERASE | {"calls": [[1, "relu"]] * 17}, "calls="),
        (ERASE | {"calls": [[1, ""]]}, "calls="),
        (ERASE | {"calls": [["relu", 1]]}, "calls="),
        ({"type": "reorder@1", "order": 5}, "order=5: a digest"),
        ({"type": "reorder@1", "order": "0" * 129}, "a digest is needed"),
        ({"type": "reorder@1", "order": "0", "inside": 1}, "inside=1: true or false"),
        ({"type": "tests_leaky@3", "module": "a", "slopes": [2]}, r"slopes=\(2,\): numbers between"),
        ({"type": "tests_leaky@3", "module": "a", "slopes": 5}, "tests_leaky@3: 'int' object is not iterable"),
        ({"type": "tests_leaky@3", "module": "a", "seen": []}, "tests_leaky@3 has the keys"),
    ],
)
def test_what_is_none(value, message):
    with pytest.raises(ValueError, match=message):
        transform_from_json(value)


def test_a_class_s_own_failure_is_a_value_that_cannot_be():
    @transform("tests_fragile")
    @dataclass(frozen=True)
    class Fragile(Transform):
        items: dict

        def __post_init__(self):
            self.items["needed"]

        def apply(self, model, choice=None):
            pass

    with pytest.raises(ValueError, match="tests_fragile@1: KeyError 'needed'"):
        transform_from_json({"type": "tests_fragile@1", "items": {}})


def run_again():
    @transform("tests_run_again")
    @dataclass(frozen=True)
    class RunAgain(Transform):
        number: int = 0

        def apply(self, model, choice=None):
            pass

    return RunAgain


def test_a_cell_run_again_replaces_its_transform(monkeypatch):
    monkeypatch.setattr(sys.modules[Transform.__module__], "_TRANSFORMS", dict(_TRANSFORMS))
    first, again = run_again(), run_again()
    assert type(transform_from_json({"type": "tests_run_again@1"})) is again
    assert first(3).to_json() == {"type": "tests_run_again@1", "number": 3}, "of a model made before"


def test_names_are_taken_once_but_versions_stand_side_by_side():
    @dataclass(frozen=True)
    class Later(Transform):
        def apply(self, model, choice=None):
            pass

    with pytest.raises(ValueError, match="'tests_leaky@3' is registered already, by Leaky"):
        transform("tests_leaky", version=3)(Later)
    assert _TRANSFORMS["tests_leaky@3"] is Leaky
    later = transform("tests_leaky", version=30)(Later)
    assert type(transform_from_json({"type": "tests_leaky@30"})) is later
    assert type(transform_from_json({"type": "tests_leaky@3", "module": "a"})) is Leaky


@pytest.mark.parametrize(("name", "version"), [("", 1), ("a@b", 1), (None, 1), ("a", 0), ("a", "1"), ("a", True)])
def test_names_and_versions_that_are_none(name, version):
    with pytest.raises(ValueError, match="a name without '@' and a number >= 1 are needed"):
        transform(name, version)


def test_classes_that_no_file_can_hold():
    class Plain(Transform):
        def apply(self, model, choice=None):
            pass

    @dataclass
    class Thawed(Plain):
        pass

    @dataclass(frozen=True)
    class Typed(Plain):
        type: str = "a"

    @dataclass(frozen=True)
    class Unknown(Plain):
        chooser: object = field(metadata=UNSTORED)

    for cls in (Plain, Thawed, nn.Module, 5):
        with pytest.raises(TypeError, match=r"with @dataclass\(frozen=True\) below @transform, is needed"):
            transform("tests_none")(cls)
    with pytest.raises(ValueError, match="has the field 'type'"):
        transform("tests_none")(Typed)
    with pytest.raises(ValueError, match=r"Unknown\.chooser is not stored; it needs a default"):
        transform("tests_none")(Unknown)
    assert "tests_none@1" not in _TRANSFORMS
    with pytest.raises(ValueError, match="Unknown is not registered"):
        Unknown(None).to_json()


def test_what_is_stored_is_what_a_file_gives_back():
    narrow = Narrow({"conv1": [None, 4]}, chooser=lambda model: {})
    assert narrow.as_stored() == narrow
    assert narrow.as_stored().chooser is None
    assert "chooser" not in narrow.to_json()
    assert Leaky("a", seen=["x"]).as_stored().seen == []
    drop = Drop(("a",))
    assert drop.as_stored() is drop


@surgery.register_builder("tests_of_transforms")
def net() -> nn.Module:
    return Net("module")


def test_a_transform_from_elsewhere_saves_and_loads(tmp_path):
    model = net()
    done = Leaky("blocks.0.act1", (0.1, 0.2), seen=["x"])
    done.apply(model)
    remember(model, done)
    surgery.save(model, tmp_path / "m", source="tests_of_transforms", input_size=SIZE)
    loaded = surgery.load(tmp_path / "m")
    assert history(loaded) == (Leaky("blocks.0.act1", (0.1, 0.2)),)
    assert [act.negative_slope for act in loaded.blocks[0].act1] == [0.1, 0.2]


def test_a_field_that_is_no_json_is_not_written(tmp_path):
    @transform("tests_held")
    @dataclass(frozen=True)
    class Held(Transform):
        thing: object

        def apply(self, model, choice=None):
            pass

    model = net()
    remember(model, Held({1, 2}))
    with pytest.raises(CheckpointError, match="cannot be written as JSON: Object of type set"):
        surgery.save(model, tmp_path / "m", source="tests_of_transforms", input_size=SIZE)
    assert not (tmp_path / "m").exists()


def affordable(model, transforms, budget):
    return list(_affordable(model, transforms, budget))


def test_transforms_cost_what_they_are():
    with pytest.raises(BudgetError, match="more than a network of 3 tensors"):
        affordable(nn.Conv2d(3, 3, 1), [Reorder("0")] * 100_000, Budget(3, 100))
    model = Net("functional", "functional")
    erasing = EraseCalls("blocks.0", "conv1", ((2, "relu"),))
    budget = Budget(3, 100)
    before = budget.left
    affordable(model, [erasing], budget)
    one = before - budget.left
    with pytest.raises(BudgetError):
        affordable(model, [erasing] * (before // one + 1), budget)
    assert one > len(list(model.blocks[0].modules())) * 10_000


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (Drop(("a",)), Drop(("a",) * 100)),
        (Narrow({"a": [1, 1]}), Narrow({"a": [1, 100_000]})),
        (Narrow({"a": [None, 1]}), Narrow({"a": [1, 1]})),
        (InsertBefore("a", "pix", (3, 3), 1), InsertBefore("a", "pix", (3, 3), 100_000)),
    ],
    ids=repr,
)
def test_more_work_costs_more(small, large):
    assert large.work(nn.Module()) > small.work(nn.Module()) >= 0
