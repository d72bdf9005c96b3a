"""Files with a sound digest and a wrong content: ``surgery.load`` must refuse each, or load it, and do nothing else.

    python -m tests.checkpoint.load_fuzzing --files 50000 --jobs 2

Sound files of every kind, of today's schema and of schema 1 (``tests/golden``), are changed in one to three places
(manifest, tensors, header) and loaded. What is found is printed with the number of the file, which makes it again:
``--first N --files 1``. Found is: any exception but
CheckpointError, more processor time than a file of this size may take, memory that cannot be had, a socket, a process,
a file that is opened besides the one (library code aside).
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torchvision
from torch import nn
from tqdm import tqdm

import surgery
from surgery.checkpoint.builder_arguments import _names as names_of
from surgery.checkpoint.model_file import _digest, _ordered
from surgery.checkpoint.source import _BUILDERS
from surgery.core.errors import CheckpointError
from surgery.methods.fbs.transform import WithWholeBias
from surgery.planning.registry import discover
from surgery.transforms.carry_out import apply
from surgery.transforms.layer_kinds import Insertion, LayerKind, register_layer
from surgery.transforms.modules_by_name import submodule
from surgery.transforms.replace import Replace
from surgery.transforms.transform import _TRANSFORMS, Choice, Transform, transform
from surgery.vision.preprocessing import Preprocessing
from tests.golden import networks
from tests.small_models import Net

SECONDS = 2.0  # of processor time, for the smallest file
PER_MEBIBYTE = 3.0  # and for each of a file's header, where tensors are: some 70 bytes for each
PATIENCE = 60  # seconds after which a load that waits, instead of computing, is ended
MEMORY = 2 << 30  # bytes of address space on top of what the process has when it starts
SIZE = (3, 32, 32)
GOLDEN = Path(networks.__file__).parent


class Hang(BaseException):
    """A load took too long; no library catches it."""


@dataclass
class Sound:
    """A file that loads: its manifest and tensors."""

    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]


@dataclass
class Case:
    """A file on its way: ``text`` replaces the manifest's JSON, ``header`` the file's."""

    manifest: Any
    tensors: dict[str, torch.Tensor]
    text: Callable[[str], str] = field(default=lambda text: text)
    header: Callable[[bytes], bytes] = field(default=lambda header: header)

    def to_bytes(self) -> bytes:
        """The file, with a digest that is right."""
        text = self.text(json.dumps(self.manifest))
        metadata = {"surgery": text, "sha256": _digest(text, self.tensors)}
        content = _ordered(safetensors.torch.save(self.tensors, metadata))
        length = int.from_bytes(content[:8], "little")
        header = self.header(content[8 : 8 + length])
        return len(header).to_bytes(8, "little") + header + content[8 + length :]


@surgery.register_builder("fuzzed_net")
def functional_net(styles: tuple[str, ...] = ("module",), tied: bool = False) -> nn.Module:
    """Bottlenecks with functional and shared activations; with two equal blocks' weights tied."""
    net = Net(*styles, function=nn.functional.silu)
    if tied:
        net.blocks[1].conv3.weight = net.blocks[0].conv3.weight
    return net


class SmallVGG(nn.Module):
    """Four convolutions and the hidden layer that ``head="pool"`` takes away."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise((3, *widths))):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if index % 2 else [])]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(4 * widths[-1], 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@surgery.register_builder("fuzzed_vgg")
def small_vgg(widths: tuple[int, ...] = (8, 8, 16, 16)) -> nn.Module:
    """A VGG for small images."""
    return SmallVGG(widths)


@transform("fuzzed_widen", version=2)
@dataclass(frozen=True)
class Unchecked(Transform):
    """A transform from elsewhere whose fields nobody checks."""

    module: str
    factors: tuple[float, ...] = ()

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        submodule(model, self.module).factor = math.prod(self.factors) / len(self.factors)

    def work(self, model: nn.Module) -> int:
        return 100 * len(self.factors)


@dataclass(frozen=True)
class ScaledOptions:
    """Options of a layer from elsewhere; only one is checked."""

    factor: float = 1.0
    names: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.factor < 10:
            raise ValueError(f"factor={self.factor!r}: a number from 0 to 10 is needed")


def _scaled(conv: nn.Conv2d, options: ScaledOptions) -> nn.Module:
    if not sum(options.limits.values()) < 10:
        raise ValueError(f"limits={options.limits!r:.80}: a sum below 10 is needed")
    return nn.Sequential(conv, *(nn.Identity() for _ in options.names))


register_layer(LayerKind("fuzzed", ScaledOptions, _scaled, lambda channels, squeezed, _: Insertion(nn.Identity())))


def sound_files(folder: Path) -> list[Sound]:
    """One file of each kind that ``save`` writes, read back; and those of schema 1."""
    return [*_written(folder), *(_read(path) for path in sorted(GOLDEN.glob("*.safetensors")) if path.stem != "images")]


def _written(folder: Path) -> list[Sound]:
    torch.manual_seed(0)
    create, convert = surgery.create, partial(surgery.convert, input_size=SIZE)
    small = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "num_classes": 3}
    pspnet = {"backbone": "resnet26", "num_classes": 3, "width": 8, "backbone_kwargs": {k: small[k] for k in small}}
    del pspnet["backbone_kwargs"]["num_classes"]
    prepared = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, 0.9, "bilinear", ("a", "b", "c"), 7, ("#00ff00",) * 3)
    functional = create("fuzzed_net", styles=["functional", "shared"])
    foreign = create("fuzzed_vgg")
    options = {"factor": 2.0, "names": ["a"], "limits": {"a": 1}}
    apply(foreign, [Unchecked("features.0", (1.0, 2.0)), Replace("features.0", "fuzzed", (3, 8), options)])
    earlier = create("cifar_resnet", **small)
    apply(earlier, [WithWholeBias("layer1.0.conv1", (64, 8), "layer1.0.bn1", "layer1.0.act1")])
    models: list[tuple[nn.Module, Preprocessing | None]] = [
        (create("timm/test_resnet", num_classes=3), None),
        (create("timm/resnetblur50", **small), None),  # buffers that no state dict holds
        (create("timm/resnet26", features_only=True, out_indices=[1, 3], layers=[1] * 4, channels=[8] * 4), None),
        (convert(create("cifar_resnet", **small), match=True), prepared),
        (convert(create("cifar_resnet", **small), zeta=8, tau=0.3, norm="before"), prepared),
        (convert(create("cifar_resnet", **small), mode="prune"), None),
        (convert(functional), None),
        (surgery.convert(create("timm/test_convnext", num_classes=3), "l1", macs=0.6, input_size=(3, 64, 64)), None),
        (create("fuzzed_net", styles=["module", "module"], tied=True), None),
        (convert(create("fuzzed_vgg"), mode="downscale", zeta=2, head="pool"), prepared),
        (convert(create("fuzzed_vgg"), "squeeze-conv", mode="downscale", zeta=2), None),
        (surgery.convert(create("pspnet", **pspnet), zeta=4, input_size=(3, 64, 64)), prepared),
        (create("torchvision/squeezenet1_1", num_classes=3), None),
        (foreign, None),
        (earlier, None),
        (convert(create("cifar_resnet", **small), "fbs", schedule=[1, 0.8]), None),
        (convert(create("cifar_resnet", **small), "se", ratio=4), None),
        (convert(create("cifar_resnet", **small), "octave"), None),
        (convert(create("csnet", k=0.25), "l1", macs=0.6), None),
    ]
    return [_sound(folder / f"{index}.safetensors", *model) for index, model in enumerate(models)]


def _sound(path: Path, model: nn.Module, preprocessing: Preprocessing | None) -> Sound:
    surgery.save(model, path, preprocessing=preprocessing, input_size=(3, 64, 64))
    surgery.load(path)
    return _read(path)


def _read(path: Path) -> Sound:
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return Sound(json.loads(file.metadata()["surgery"]), tensors)


def fuzzed(sound: list[Sound], number: int) -> bytes:
    """The file of a number."""
    draw = random.Random(number)
    chosen = draw.choice(sound)
    case = Case(copy.deepcopy(chosen.manifest), dict(chosen.tensors))
    for _ in range(draw.choice((1, 1, 2, 3))):
        change = draw.choices(_CHANGES, _WEIGHTS)[0]
        change(case, draw, sound)
    return case.to_bytes()


# -- changes ----------------------------------------------------------------------------------------------------------


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ADDRESSES = (
    "hf-hub:timm/resnet18.a1_in1k",
    "hf_hub:timm/resnet18",
    "local-dir:/etc",
    "/etc/passwd",
    "../secret.pth",
    "weights.safetensors",
    "https://example.org/w.pth",
    "file:///etc/passwd",
    "DEFAULT",
    "IMAGENET1K_V1",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    17,
    255,
    1000,
    65_536,
    200_000,
    10**6,
    10**9,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.5,
    1e-300,
    1e300,
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "a", "é\x00", "x" * 5_000, [], {}, [1], [[1]], {"a": 1}, [None] * 4, "0", "resnet18"),
    *(*ADDRESSES, *NUMBERS, [10**9, 1, 1, 1], [1] * 5_000, [[10**9, "ReLU"]], _nested(60), {"a": {"b": {"c": [1]}}}),
)
WORK: tuple[Any, ...] = (  # what a loop may run over, alone and for each of four stages
    *(150, 255, 256, 1_000, 1_024, 8_000, 32_000, [150] * 4, [255] * 4, [1, 30_000, 1, 1], [256, 256], [1_000] * 3),
    *([1_000, 1_000], [32_000] * 2, [[150, 150]] * 4, [255, 1], 100_000.0),
)
HOSTILE: dict[str, tuple[Any, ...]] = {
    "checkpoint_path": ("/etc/passwd", "w.pth"),
    "pretrained": (True, 1, "yes"),
    "pretrained_cfg": ({"url": "https://example.org/w.pth"}, {"file": "/etc/passwd"}, "a1_in1k"),
    "pretrained_cfg_overlay": ({"file": "/etc/passwd"}, {"hf_hub_id": "timm/resnet18"}),
    "pretrained_model_args": ({},),
    "cache_dir": ("/tmp/cache",),
    "weights": ("DEFAULT", None),
    "weights_backbone": ("DEFAULT", None, "IMAGENET1K_V1"),
    "backbone_kwargs": ({"checkpoint_path": "/etc/passwd"}, {"layers": [10**9, 1, 1, 1]}, {"features_only": False}, []),
    "backbone": ("hf-hub:timm/resnet18", "local-dir:/etc", "vit_base_patch16_224", "vgg11", "efficientnet_b0"),
    "bins": ([1] * 10**5, [10**6], [], "ab", [1.5], [True]),
    "layers": ([10**9, 1, 1, 1], [1], "3463", [3, 4, 6, 300], [0, 0, 0, 0], [-1, 1, 1, 1], [100_000, 1, 1, 1]),
    "channels": ([1], [10**9] * 4, [0] * 4, [1.5] * 4, ["a"] * 4, [100_000, 1, 1, 1]),
    "output_stride": (7, 8, 16, 0, "8"),
    "num_classes": (0, -1, 10**9, "3", 10**12, 130_000),
    "in_chans": (0, 1, 10**9, -3),
    "img_size": (0, 10**6, [32, 32], 30_000, [130_000, 1], 2_000),
    "global_pool": ("", "max", "nothing", 3),
    "features_only": (True, 1, "yes"),
    "feature_cls": ("fx", "hook", "getter", "dict", "eval", "list"),
    "out_indices": ([9], [-1], [], 2, "all", [0] * 900),
    "block_args": ({"attn_layer": "se"}, {"act_layer": 1}, {"weights": "DEFAULT"}, _nested(7)),
    "act_layer": ("relu", "nothing", 3),
    "norm_layer": ("batchnorm2d", "eval", 3),
    "cardinality": (0, 3, 10**9),
    "base_width": (0, 10**9, 1e9, 100_000),
    "depth_multiplier": (1e5, 1e9, 0),
    "drop_path_rate": (2, -1, 1e300),
    "depths": ([130_000, 1, 1, 1], [10**9]),
    "embed_dim": (100_000, 0),
    "depth": (100_000, -1),
    "window_size": (1_000, 0, 300),
    "scriptable": (True,),
    "styles": (["module"] * 900, "module", [1], None),
    "widths": ([10**9] * 4, [1], [0] * 4),
}
EDITS: tuple[dict[str, Any], ...] = (
    {"method": "match", "site": "", "arguments": {"order": "0"}},
    {"method": "narrow", "site": "", "arguments": {"widths": {"conv1": [None, 10**9]}}},
    {"method": "narrow", "site": "", "arguments": {"widths": {"conv1": [None, 1], "bn1": [1, None]}}},
    {"method": "narrow", "site": "", "arguments": {"widths": None}},
    {"method": "pix", "site": "conv1", "channels": [3, 64], "arguments": {"identity": ["bn1"], "erase": []}},
    {"method": "pix", "site": "", "arguments": {"pool_head": True}},
    {"method": "pix", "site": "conv1", "channels": [3, 64], "arguments": {"squeezed": float("inf")}},
    {"method": "pix", "site": "x", "arguments": {"identity": [], "erase": ["layer1", "0.conv1", [[10**9, "relu"]]]}},
    {"method": "pix", "site": "blocks.0.conv1", "channels": [16, 4], "arguments": {"identity": [""], "erase": ["", 1]}},
    {"method": "squeeze-conv", "site": "conv1", "channels": [3, 64], "arguments": {"squeezed": 10**9}},
    {"method": "squeeze-conv", "site": "conv1", "channels": [3, 64], "arguments": {"squeezed": 1, "tau": 0.5}},
    {"method": "__init__", "site": "__class__"},
)


def _octave(**fields: Any) -> dict[str, Any]:
    whole = {"first": "layer1", "last": "layer1", "convs": ["layer1.0.conv1"], "norms": [], "others": []}
    return {"type": "octave_region@1", **whole, "alpha": 0.5, "channels": 8, **fields}


TRANSFORMS: tuple[dict[str, Any], ...] = (
    {"type": "reorder@1", "order": "0"},
    {"type": "reorder@1", "order": "0", "inside": 1},
    {"type": "reorder@1", "order": "0", "reorder": True},
    {"type": "narrow@1", "widths": {"conv1": [None, 10**9]}},
    {"type": "narrow@1", "widths": {"conv1": [None, 1], "bn1": [1, None]}},
    {"type": "narrow@1", "widths": {"": [1, 1]}},
    {"type": "narrow@1", "widths": {"fc": [1, 1]}, "chooser": None},
    {"type": "narrow@2", "widths": {"conv1": [None, 1]}},
    {"type": "narrow@0", "widths": {}},
    {"type": "narrow", "widths": {}},
    {"type": "narrow@1", "widths": {}, "parameters": {"fc.weight": [-1, 10**9]}},
    {"type": "feature_widths@1", "numbers": {"num_features": 8, "__class__": 1}},
    {"type": "feature_widths@1", "numbers": {"num_features": 10**9}, "channels": [1] * 9},
    {"type": "replace@1", "module": "conv1", "layer": "pix", "channels": [3, 64]},
    {"type": "replace@1", "module": "", "layer": "pix", "channels": [3, 64]},
    {"type": "replace@1", "module": "x", "layer": "squeeze-conv", "channels": [3, 64], "options": {}},
    {"type": "replace@1", "module": "features.0", "layer": "fuzzed", "channels": [3, 8], "options": {"names": 5}},
    {"type": "replace@1", "module": "stem", "layer": "pix", "channels": [3, 16], "options": {"norm": "before"}},
    {"type": "insert_before@1", "module": "conv1", "layer": "pix", "channels": [3, 64], "squeezed": float("inf")},
    {"type": "insert_before@1", "module": "conv1", "layer": "squeeze-conv", "channels": [3, 16], "squeezed": 100_000},
    {"type": "insert_before@1", "module": "stem", "layer": "squeeze-conv", "channels": [3, 16], "squeezed": 4},
    {"type": "insert_before@1", "module": "stem", "layer": "fuzzed", "channels": [3, 16], "squeezed": 1},
    {"type": "insert_behind@1", "module": "bn1", "layer": "se", "channels": 2**17, "options": {"ratio": 1}},
    {"type": "insert_behind@1", "module": "", "layer": "cbam", "channels": 3},
    {
        "type": "insert_behind@1",
        "module": "conv1",
        "layer": "cbam",
        "channels": 2**17,
        "options": {"kernel": 10**9 + 1},
    },
    {"type": "boost_and_suppress@1", "module": "conv1", "channels": [3, 64], "norm": "bn1", "act": "layer1"},
    {"type": "boost_and_suppress@1", "module": "layer1.0.conv1", "channels": [8, 8], "norm": "bn1", "act": "layer1"},
    {"type": "boost_and_suppress@1", "module": "conv1", "channels": [3, 64], "producer": "conv1", "norm": "conv1"},
    {"type": "boost_and_suppress@1", "module": "stem", "channels": [3, 16], "options": {"density": 1e-300}},
    {"type": "boost_and_suppress@2", "module": "conv1", "channels": [3, 64], "norm": "bn1", "act": "layer1"},
    {"type": "boost_and_suppress@2", "module": "stem", "channels": [3, 16], "options": {"density": 0.5}},
    _octave(),
    _octave(first="conv1", last="bn1"),
    _octave(first="", last="layer1"),
    _octave(first="layer1", last="layer1.0"),
    _octave(convs=["conv1"] * 1_000),
    _octave(convs=["bn1"], norms=["conv1"], others=["", "layer1"]),
    _octave(alpha=1e-300, channels=10**9),
    _octave(others=["layer1"] * 1_000),
    {"type": "narrow@1", "widths": {}, "maps": {"conv1": [[1], [1]]}},
    {"type": "narrow@1", "widths": {}, "maps": {"layer1.0.conv1": [[10**9, 1], []]}},
    {"type": "drop@1", "modules": ["bn1"] * 1_000},
    {"type": "drop@1", "modules": [""]},
    {"type": "drop@1", "modules": []},
    {"type": "drop@1", "modules": ["_modules.bn1", "blocks", "training"]},
    {"type": "erase_calls@1", "block": "", "conv": "conv1", "calls": [[1, "relu"]]},
    {"type": "erase_calls@1", "block": "layer1", "conv": "0.conv1", "calls": [[10**9, "relu"]]},
    {"type": "erase_calls@1", "block": "blocks.0", "conv": "conv1", "calls": [[1, "BatchNorm2d"], [2, "silu"]]},
    {"type": "erase_calls@1", "block": "blocks", "conv": "0.conv1", "calls": [[1, "BatchNorm2d"]] * 16},
    {"type": "pooled_head@1"},
    {"type": "pooled_head@1", "head": "pool"},
    {"type": "fuzzed_widen@2", "module": "stem", "factors": []},
    {"type": "fuzzed_widen@2", "module": "stem", "factors": 0.5},
    {"type": "fuzzed_widen@3", "module": "stem"},
    {"type": "__init__@1"},
    {"type": ["reorder@1"], "order": "0"},
)
OPTIONS: tuple[Any, ...] = (
    *({"tau": 7}, {"tau": True}, {"tau": "0.5"}, {"tau": 10**400}, {"fusion": []}, {"norm": None}, {"grouping": "x"}),
    *({"predictor_norm": 1}, {"unheard": {"tau": 0.5}}, {"fusion": "weighted", "operator": "max"}, {"": 1}),
    *({"tau": {"tau": {"tau": 1}}}, {"factor": "2"}, {"limits": [1]}, {"limits": {"a": "b"}}, {"names": [[[]]]}, []),
    *({"factor": 10**400}, {"limits": {"a": 10**30}}, {"names": "x" * 3_000}, {"names": [None]}, {"limits": {"a": 0}}),
)


def _repeated(count: int) -> str:
    """Entries of an object; the last key is there twice."""
    return "".join(f'"k{index}": "", ' for index in (*range(count), count - 1))


_DEEP = '{"a":' * 60_000 + "1" + "}" * 60_000


def _with_schema(value: str) -> Callable[[str], str]:
    return lambda text: re.sub(r'"schema": \d+', f'"schema": {value}', text)


TEXTS: tuple[Callable[[str], str], ...] = (
    lambda text: "5",
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: "[" * 200_000 + "]" * 200_000,
    lambda text: text.replace('"schema": ', '"schema": 1, "schema": '),
    lambda text: text.replace('"versions": {', '"versions": {' + _repeated(20_000)),
    _with_schema("true"),
    _with_schema("9" * 5_000),
    _with_schema("3"),
    _with_schema("0"),
    _with_schema('"1"'),
    lambda text: text.replace('"kwargs": {', '"kwargs": {"a": NaN, '),
    lambda text: text.replace('"tau": 0.5', '"tau": 1e999'),
    lambda text: text.replace("0.5", "NaN"),
    lambda text: re.sub('"(edits|transforms)": \\[', f'"edits": {_DEEP}, "b": [', text),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def _replace(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    if (path := _place(case, draw)) is not None:
        _parent(case.manifest, path)[path[-1]] = copy.deepcopy(draw.choice(VALUES))


def _nudge(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """Another number in a number's place, another kind in a value's."""
    if (path := _place(case, draw)) is None:
        return
    parent = _parent(case.manifest, path)
    value = parent[path[-1]]
    near = [str(value), [value], {"a": value}, float("nan")]
    if isinstance(value, int | float):
        near += [value + 1, value - 1, value * 2, -value, value * 10**9, value / 2, bool(value)]
    if isinstance(value, list):
        near += [value[::-1], value[1:], value * 2, dict(enumerate(map(str, value)))]
    parent[path[-1]] = draw.choice(near)


def _delete(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    if (path := _place(case, draw)) is not None:
        del _parent(case.manifest, path)[path[-1]]


def _place(case: Case, draw: random.Random) -> tuple[Any, ...] | None:
    places = list(_places(case.manifest))
    return draw.choice(places) if places else None


def _argument(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """An argument for the builder."""
    source = case.manifest.get("source")
    if isinstance(source, dict) and isinstance(source.get("kwargs"), dict):
        source["kwargs"] |= _arguments(draw, source.get("builder"), source.get("name"), 1)


def _builder(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """Another builder and name, and some arguments."""
    builder, names = draw.choice(_names())
    name = draw.choice(names)
    kwargs = _arguments(draw, builder, name, draw.choice((0, 1, 2)))
    case.manifest["source"] = {"builder": builder, "name": name, "kwargs": kwargs}


def _arguments(draw: random.Random, builder: Any, name: Any, count: int) -> dict[str, Any]:
    """Hostile values for arguments that the builder has, or that are hostile by their name."""
    own = arguments_of(str(builder), str(name))
    names = [draw.choice(draw.choice((own, list(HOSTILE)))) for _ in range(count)]
    values = {key: draw.choice((*HOSTILE.get(key, ()), *WORK, draw.choice(VALUES))) for key in names}
    return copy.deepcopy(values)


@cache
def arguments_of(builder: str, name: str) -> list[str]:
    """Arguments in the signatures that a builder's are checked against; of no known builder, the hostile ones."""
    if builder == "timm" and timm.is_model(name):
        function = timm.model_entrypoint(name)
    elif builder == "torchvision" and name in torchvision.models.list_models():
        function = torchvision.models.get_model_builder(name)
    elif builder in _BUILDERS:
        function = _BUILDERS[builder]
    else:
        return list(HOSTILE)
    return sorted(names_of(function, shared=builder in ("timm", "torchvision")) or HOSTILE)


@cache
def _names() -> list[tuple[str, list[Any]]]:
    return [
        ("timm", timm.list_models()),
        ("timm", timm.list_models(pretrained=True)),
        ("timm", [*ADDRESSES, 5, None, ["resnet18"], "resnet18.nothing", "../resnet18"]),
        ("torchvision", [*torchvision.models.list_models(), *ADDRESSES]),
        *((name, ["", "resnet18"]) for name in ("pspnet", "cifar_resnet", "fuzzed_net", "fuzzed_vgg", "os.system", "")),
    ]


def _changes(case: Case) -> tuple[str, list[Any]] | None:
    """The changes of the model that a manifest lists, with their key; None where there is no list of them."""
    return next(((key, case.manifest[key]) for key in _KEYS if isinstance(case.manifest.get(key), list)), None)


def _listed(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """Edits or transforms inserted, taken from another file, repeated, or in another order."""
    if (listed := _changes(case)) is None:
        return
    key, changes = listed
    others = [change for other in sound for change in other.manifest.get(key, [])]
    kind = draw.randrange(4)
    if kind == 0:
        changes.insert(draw.randint(0, len(changes)), _hostile(key, draw))
    elif kind == 1:
        changes.insert(draw.randint(0, len(changes)), copy.deepcopy(draw.choice(others)))
    elif kind == 2 and changes:
        changes[:] = (changes * draw.choice((2, 10, 1_000)))[:100_000]
    else:
        draw.shuffle(changes)


def _hostile(key: str, draw: random.Random) -> dict[str, Any]:
    whole = {"method": "pix", "site": "", "role": "", "channels": [0, 0], "arguments": {}, "note": ""}
    return copy.deepcopy(draw.choice(TRANSFORMS) if key == "transforms" else whole | draw.choice(EDITS))


def _field(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """A field of a transform, or an argument of an edit, that it does not have, or not so."""
    listed = _changes(case)
    changes = [change for change in listed[1] if isinstance(change, dict)] if listed else []
    if not changes:
        return
    change = draw.choice(changes)
    if isinstance(change.get("arguments"), dict):
        change, names = change["arguments"], ARGUMENTS
    else:
        names = tuple({*change, *draw.choice((fields_of(change.get("type")), _every_field()))})
    key = draw.choice(sorted(names))
    if key == "type":
        change[key] = draw.choice((*_TRANSFORMS, "narrow@2", "narrow@0", "@", "replace@1@1", "unheard@1", *VALUES))
    elif key == "options":
        options = change.get(key)
        options = options if isinstance(options, dict) else {}
        change[key] = copy.deepcopy(draw.choice((options | _mapping(draw), draw.choice(OPTIONS))))
    else:
        change[key] = copy.deepcopy(draw.choice((*VALUES, *OPTIONS)))


def _mapping(draw: random.Random) -> dict[str, Any]:
    """One option with any value."""
    name = draw.choice(("tau", "fusion", "operator", "norm", "predictor_norm", "factor", "names", "limits", "unheard"))
    return {name: draw.choice(VALUES)}


def fields_of(key: Any) -> tuple[str, ...]:
    """Fields of a type of transform, those included that files do not hold."""
    cls = _TRANSFORMS.get(key) if isinstance(key, str) else None
    fields = () if cls is None else dataclasses.fields(cls)  # type: ignore[arg-type]
    return ("type", "unheard", *(field.name for field in fields))


def _every_field() -> tuple[str, ...]:
    return tuple(name for key in _TRANSFORMS for name in fields_of(key))


def _schema(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """Another schema, or what another schema has."""
    if draw.random() < 0.5:
        case.manifest["schema"] = draw.choice((1, 2, 3, 0, True, "1", None, 10**30))
    if draw.random() < 0.5 and (listed := _changes(case)) is not None:
        key, changes = listed
        del case.manifest[key]
        case.manifest[draw.choice(_KEYS)] = changes


_KEYS = ("edits", "transforms")
ARGUMENTS = ("identity", "erase", "squeezed", "pool_head", "tau", "fusion", "norm", "widths", "order", "unheard")


def _many(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """A hundred thousand of something."""
    count = draw.choice((1_000, 100_000))
    match = {"method": "match", "site": "", "role": "", "channels": [0, 0], "arguments": {"order": "0"}, "note": ""}
    first = next(iter(case.tensors), "")
    many: dict[str, Any] = {
        "edits": [match] * count,
        "transforms": [{"type": "reorder@1", "order": "0"}] * count,
        "aliases": {f"a{index}": first for index in range(count)},
        "versions": {f"v{index}": "1" for index in range(count)},
    }
    key = draw.choice((*many, "keys", "tensors", "layers"))
    if key in _KEYS and (listed := _changes(case)) is not None:
        key = listed[0]
    if key in many:
        case.manifest[key] = many[key]
    elif key == "keys":
        case.text = lambda text: text.replace('"versions": {', '"versions": {' + _repeated(count))
    else:
        size = draw.choice((0, 0, 1))
        case.tensors |= {f"t{index}": torch.zeros(size) for index in range(min(count, 20_000))}
    if key == "layers":
        case.manifest["source"] = {"builder": "timm", "name": "resnet50", "kwargs": {"layers": [30_000, 1, 1, 1]}}


def _tensors(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """A tensor renamed, reshaped, of another type, taken away or added; an alias."""
    name = draw.choice(list(case.tensors) or [""])
    tensor = case.tensors.pop(name, torch.zeros(1))
    kinds = (torch.float16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8)
    kind = draw.randrange(6)
    if kind == 0:
        case.tensors[draw.choice((name + "x", "", "a.b", name.upper(), "x" * 1_000, "__class__"))] = tensor
    elif kind == 1:
        case.tensors[name] = draw.choice(
            (tensor.flatten()[:0], tensor.flatten(), tensor[None], torch.zeros(0, 10**6))
        ).contiguous()
    elif kind == 2:
        case.tensors[name] = tensor.to(draw.choice(kinds))
    elif kind == 3:
        case.tensors |= {name: tensor, "more.weight": torch.zeros(3, 3)}
    elif kind == 4 and isinstance(case.manifest.get("aliases"), dict):
        case.manifest["aliases"][draw.choice((name, "", "a"))] = draw.choice((*case.tensors, name, "nothing"))
        case.tensors |= {name: tensor} if draw.random() < 0.5 else {}


def _text(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    case.text = draw.choice(TEXTS)


def _header(case: Case, draw: random.Random, sound: list[Sound]) -> None:
    """The header's own JSON: bytes changed, numbers exchanged."""
    place, byte = draw.random(), draw.randrange(256)
    old, new = draw.choice(((b"F32", b"F64"), (b"[0,", b"[9,"), (b"shape", b"shapf"), (b"F32", b"F4"), (b"]", b",1]")))

    def changed(header: bytes) -> bytes:
        if place < 0.5:
            return header.replace(old, new, 1)
        damaged = bytearray(header)
        damaged[int((2 * place - 1) * len(damaged))] = byte
        return bytes(damaged)

    case.header = changed


_CHANGES = (
    *(_replace, _nudge, _delete, _argument, _builder, _listed, _field, _schema, _many, _tensors, _text, _header),
)
_WEIGHTS = (20, 12, 5, 16, 16, 10, 20, 2, 1, 8, 4, 6)


# -- loading ----------------------------------------------------------------------------------------------------------


class Guard:
    """Writes down what a load does besides reading its file; once made, it stays for the life of the process."""

    _EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "urllib.", "pickle.")
    _LIBRARIES = tuple({*sysconfig.get_paths().values(), str(Path(surgery.__file__).parent)})

    def __init__(self) -> None:
        self.target: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.target is None:
            return
        if event == "open":
            path = os.fspath(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else arguments[0]
            if path != self.target and not str(path).startswith(self._LIBRARIES):
                self.seen.append(f"opened {path!r}")
        elif event.startswith(self._EVENTS):
            self.seen.append(f"{event} {arguments!r:.200}")

    @contextlib.contextmanager
    def watching(self, target: str) -> Iterator[list[str]]:
        """What was seen while entered."""
        self.target, self.seen = target, []
        try:
            yield self.seen
        finally:
            self.target = None


@cache
def guard() -> Guard:
    """The guard of this process."""
    return Guard()


def verdict(path: Path) -> str:
    """``loaded``, ``refused``, or what is wrong with how the file was loaded."""
    allowed = _seconds(path)
    outcome, start = "loaded", time.process_time()
    with guard().watching(str(path)) as seen, _alarm(allowed):
        try:
            surgery.load(path)
        except CheckpointError as error:
            outcome = _refusal(error)
        except Hang:
            outcome = "hang"
        except Exception as error:
            outcome = f"raised {type(error).__name__}: {error!s:.300}"
    seconds = time.process_time() - start
    if seen:
        return "; ".join(seen)
    return f"took {seconds:.1f} s" if seconds > allowed and outcome in ("loaded", "refused") else outcome


def _seconds(path: Path) -> float:
    """Processor time that a file may take: in proportion to it."""
    size = path.stat().st_size if path.exists() else 0
    header = 0
    if size:
        with path.open("rb") as file:
            header = min(size, int.from_bytes(file.read(8), "little"))
    return SECONDS + PER_MEBIBYTE * header / 2**20


def _refusal(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return f"asked for too much memory: {cause!s:.300}"
        cause = cause.__cause__
    return "refused"


@contextlib.contextmanager
def _alarm(allowed: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hang

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, 2 * allowed), (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE))
    before = [signal.signal(number, ring) for number, _, _ in clocks]
    try:
        for _, clock, seconds in clocks:
            signal.setitimer(clock, seconds)
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


def run(numbers: range, folder: Path, sound: list[Sound]) -> Iterator[tuple[int, str]]:
    """Verdicts by file number."""
    path = folder / f"{os.getpid()}.safetensors"
    for number in numbers:
        path.write_bytes(fuzzed(sound, number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield number, verdict(path)


# -- command ----------------------------------------------------------------------------------------------------------

_STATE: dict[str, Any] = {}


def _start(folder: Path, sound: list[Sound]) -> None:
    torch.set_num_threads(1)
    _STATE.update(folder=folder, sound=sound)
    warm_up(folder, sound)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def warm_up(folder: Path, sound: list[Sound]) -> None:
    """Import, outside the guard, what loading imports when it first needs it."""
    torchvision.models.list_models()
    discover()
    path = folder / f"{os.getpid()}.safetensors"
    for chosen in sound:
        path.write_bytes(Case(chosen.manifest, chosen.tensors).to_bytes())
        surgery.load(path)


def _work(numbers: range) -> list[tuple[int, str]]:
    return list(run(numbers, _STATE["folder"], _STATE["sound"]))


def main() -> int:
    """Fuzz; the exit status is 1 where something was found."""
    parser = argparse.ArgumentParser(description="Load files that are wrong in every way; see the module.")
    parser.add_argument("--files", type=int, default=50_000, metavar="N", help="default: 50000")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of the first: goes on where one ended"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        sound = sound_files(Path(folder))
        ranges = [
            range(n, min(n + 50, options.first + options.files))
            for n in range(options.first, options.first + options.files, 50)
        ]
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.jobs, _start, (Path(folder), sound)) as pool, tqdm(total=options.files) as bar:
            for verdicts in pool.imap(_work, ranges):
                for number, outcome in verdicts:
                    counts[outcome if outcome in ("loaded", "refused") else "FOUND"] += 1
                    if outcome not in ("loaded", "refused"):
                        bar.write(f"file {number}: {outcome}")
                bar.update(len(verdicts))
                bar.set_postfix(counts)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["FOUND"] else 0


if __name__ == "__main__":
    sys.exit(main())
