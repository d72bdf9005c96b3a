import pytest
import torch

import finetune
import surgery
from surgery.checkpoint.source import MEMORY
from surgery.training import load_recipe
from surgery.training.original_network import find_original
from surgery.training.recipe import RecipeError

LIGHT = "channels: [8, 16, 16, 16], layers: [1, 1, 1, 1]"


def recipe(*settings):
    return load_recipe(finetune.QUICKSTART, [f"model.kwargs={{{LIGHT}}}", "data.image_size=16", *settings])


def weights(tmp_path, classes):
    model = surgery.create("timm/resnet26", num_classes=classes, channels=[8, 16, 16, 16], layers=[1, 1, 1, 1])
    torch.save(model.state_dict(), tmp_path / "w.pth")
    surgery.save(model, tmp_path / "w.safetensors")
    return model


def test_weights_of_a_file_with_a_new_head_and_the_path_not_in_the_manifest(tmp_path):
    trained = weights(tmp_path, 7)
    original = find_original(recipe(f"model.weights={tmp_path / 'w.pth'}"), 10)
    assert original.new == ("fc.weight", "fc.bias")
    assert "new for 10 classes: fc.weight, fc.bias" in original.origin
    assert torch.equal(original.network.conv1.weight, trained.conv1.weight)
    surgery.save(original.network, tmp_path / "saved.safetensors")
    assert str(tmp_path).encode() not in (tmp_path / "saved.safetensors").read_bytes()
    assert getattr(surgery.load(tmp_path / "saved.safetensors"), MEMORY).kwargs["num_classes"] == 10


def test_the_number_of_classes_is_the_datasets_where_nothing_else_is_said():
    assert find_original(recipe(), 10).network.num_classes == 10
    with pytest.raises(RecipeError, match=r"gives \(1, 7\) for one image, data digits has 10 classes"):
        find_original(recipe("model.kwargs.num_classes=7"), 10)


def test_a_checkpoint_knows_its_arguments(tmp_path):
    weights(tmp_path, 10)
    checkpoint = f"model.checkpoint={tmp_path / 'w.safetensors'}"
    same = f"model.kwargs={{num_classes: 10, {LIGHT}}}"
    for kwargs in ("model.kwargs={}", same, f"model.kwargs={{{LIGHT}}}"):
        assert "w.safetensors (timm/resnet26 {" in find_original(recipe(checkpoint, kwargs), 10).origin
    with pytest.raises(RecipeError, match=r"model\.kwargs has \{'drop_rate': 0\.1.*model\.kwargs=\{\} is needed"):
        find_original(recipe(checkpoint, same, "model.kwargs.drop_rate=0.1"), 10)


def test_a_checkpoint_of_other_classes_says_how(tmp_path):
    weights(tmp_path, 7)
    settings = [f"model.checkpoint={tmp_path / 'w.safetensors'}", "model.kwargs={}"]
    with pytest.raises(RecipeError, match=r"gives \(1, 7\) for one image.*model\.weights=FILE \(its head is made anew"):
        find_original(recipe(*settings), 10)


def test_published_weights_of_other_classes_have_a_new_head():
    settings = ["model.pretrained=true", "model.kwargs={}", "model.name=timm/test_resnet"]
    assert find_original(recipe(*settings), 10, download=False).new == ("fc.bias", "fc.weight")
    assert find_original(recipe(*settings), 1000, download=False).new == ()
