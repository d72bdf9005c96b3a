import argparse
import io
import json
import os
import random
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import surgery
from surgery.checkpoint.source import parse_source
from surgery.training.recipe_errors import RecipeError
from surgery.training.weights_file import class_tensors, load_weights, read_tensors

LIGHT = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1]}


def network(classes=3):
    source = parse_source("timm/resnet26", {**LIGHT, "num_classes": classes})
    return surgery.create("timm/resnet26", **source.kwargs), source


def old(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


FORMS = {
    "plain.pth": lambda tensors, path: torch.save(tensors, path),
    "ordered.pt": lambda tensors, path: torch.save(OrderedDict(tensors), path),
    "nested.pth.tar": lambda tensors, path: torch.save({"state_dict": tensors, "epoch": 3}, path),
    "args.pth": lambda tensors, path: torch.save({"model": tensors, "args": argparse.Namespace(lr=1)}, path),
    "wrapped.bin": lambda tensors, path: torch.save({f"module.{k}": v for k, v in tensors.items()}, path),
    "counters.pth": lambda tensors, path: torch.save(old(tensors), path),
    "half.pth": lambda tensors, path: torch.save({k: v.half() for k, v in tensors.items()}, path),
    "tensors.safetensors": save_file,
}


@pytest.mark.parametrize("name", FORMS)
def test_files_as_they_are_found(name, tmp_path):
    torch.manual_seed(0)
    saved, _ = network(7)
    FORMS[name](saved.state_dict(), tmp_path / name)
    torch.manual_seed(1)
    model, source = network(3)
    before = model.fc.weight.clone()
    assert load_weights(model, source, 3, str(tmp_path / name)).new == ("fc.weight", "fc.bias")
    assert torch.equal(model.fc.weight, before)
    assert torch.allclose(model.layer3[0].conv2.weight, saved.layer3[0].conv2.weight, atol=1e-3)
    assert torch.allclose(model.layer3[0].bn2.running_var, saved.layer3[0].bn2.running_var, atol=1e-3)
    same, source = network(7)
    assert load_weights(same, source, 7, str(tmp_path / name)).new == ()
    assert torch.allclose(same.fc.weight, saved.fc.weight, atol=1e-3)


def test_without_a_head(tmp_path):
    save_file(timm.create_model("resnet26", num_classes=0, **LIGHT).state_dict(), tmp_path / "w.safetensors")
    model, source = network()
    assert load_weights(model, source, 3, str(tmp_path / "w.safetensors")).new == ("fc.weight", "fc.bias")


def test_torchvisions_weights_for_timms_network_and_its_own(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), tmp_path / "w.pth")
    for name in ("torchvision/resnet18", "timm/resnet18"):
        source = parse_source(name, {"num_classes": 3})
        model = surgery.create(name, **source.kwargs)
        assert load_weights(model, source, 3, str(tmp_path / "w.pth")).new == ("fc.weight", "fc.bias")


def test_heads_of_all_kinds():
    backbone = {"backbone": "resnet26", "width": 16, "backbone_kwargs": {"channels": [8, 8, 8, 8]}}
    both = {f"{head}.{part}" for head in ("head.2", "auxiliary.2") for part in ("weight", "bias")}
    assert class_tensors(parse_source("pspnet", backbone), 5) == both
    assert class_tensors(parse_source("torchvision/squeezenet1_1"), 9) == {"classifier.1.weight", "classifier.1.bias"}


def damaged_files():
    """Random bytes behind what files of weights begin with, and real files cut off or with bytes changed."""
    chance = random.Random(0)
    for begin in (
        b"junk",
        b"hello world",
        b"\x80\x02",
        b"\x80\x02junk",
        b"PK\x03\x04",
        b"\x80\x02}q\x00",
        b"\x80\x04\x95",
    ):
        yield begin
        yield from (begin + chance.randbytes(chance.randrange(1, 400)) for _ in range(12))
    for legacy in (False, True):
        written = io.BytesIO()
        torch.save({"weight": torch.zeros(4)}, written, _use_new_zipfile_serialization=not legacy)
        content = written.getvalue()
        yield from (content[: chance.randrange(len(content) - 8)] for _ in range(12))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".tar"])
def test_damaged_files_are_one_line_with_the_kind_of_error(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    for content in damaged_files():
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"^model\.weights=.*: [\w.]*[Ee]rror: .") as caught:
            read_tensors(str(path))
        assert "\n" not in str(caught.value), content


class Harmful:
    def __reduce__(self):
        return os.system, ("touch /tmp/harmed",)


def test_files_that_will_not_do(tmp_path):
    model, source = network()

    def refused(name, message, kind=RecipeError):
        with pytest.raises(kind, match=message) as caught:
            load_weights(model, source, 3, str(tmp_path / name))
        assert "\n" not in str(caught.value)

    refused("none.pth", "there is no such file", FileNotFoundError)
    (tmp_path / "notes.txt").write_text("x")
    refused("notes.txt", r"a file of weights \(\.safetensors")
    for name in ("bad.pth", "bad.safetensors", "empty.pth"):
        (tmp_path / name).write_bytes(b"" if name == "empty.pth" else b"no weights at all")
        refused(name, "model.weights=.*cannot be read as plain weights: [A-Za-z.]*: .")
    torch.save(network()[0], tmp_path / "module.pth")
    refused("module.pth", "cannot be read as plain weights")
    torch.save({"state_dict": Harmful()}, tmp_path / "code.pth")
    refused("code.pth", "cannot be read as plain weights")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    refused("numbers.pth", "holds 'a' where tensors by name are needed")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    refused("list.pth", "cannot be read as plain weights")
    other = timm.create_model("resnet26", channels=[8, 16, 32, 32], layers=[1, 1, 1, 1], num_classes=3)
    torch.save(other.state_dict(), tmp_path / "wider.pth")
    refused("wider.pth", r"does not hold the weights of timm/resnet26.*layer3.* is \(.*\), \(.*\) is needed")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    refused("other.pth", r"is needed; conv1\.0.weight is of no use")
    converted = surgery.convert(network()[0], input_size=(3, 32, 32))
    surgery.save(converted, tmp_path / "converted.safetensors")
    refused("converted.safetensors", "holds a converted network: model.checkpoint")
    own = json.dumps({"schema": 2, "transforms": [], "note": '"edits": [1]'})
    changed = json.dumps({"schema": 2, "transforms": [{"type": "drop@1"}], "note": {"edits": []}})
    older = json.dumps({"schema": 1, "edits": [{}], "transforms": []})
    for manifest, message in (
        (own, None),
        (own.replace(" ", ""), None),
        (changed, "holds a converted network"),
        (older, "holds a converted network"),
        ("[1", "cannot be read as plain weights"),
        ("[]", "cannot be read as plain weights"),
    ):
        save_file(network(5)[0].state_dict(), tmp_path / "manifest.safetensors", {"surgery": manifest})
        if message is None:
            load_weights(model, source, 3, str(tmp_path / "manifest.safetensors"))
        else:
            refused("manifest.safetensors", message)
    surgery.save(network(5)[0], tmp_path / "own.safetensors")
    assert load_weights(model, source, 3, str(tmp_path / "own.safetensors")).new == ("fc.weight", "fc.bias")
