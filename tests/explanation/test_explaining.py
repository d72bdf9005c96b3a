"""The pictures and statistics of converted networks on images in files."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

import surgery
from surgery.explanation import ExplanationSettings, explain
from surgery.explanation.explained_images import read_images
from surgery.vision.preprocessing import preprocessing_of
from tests.explanation.networks import CLASSES, write_images, written

SETTINGS = ExplanationSettings(count=9, batch_size=4)
ONE = ExplanationSettings(count=1)
PICTURES = {
    "pix": {"grad_cam.png", "gates.png", "picked.png"},
    "fbs": {"grad_cam.png", "gates.png", "channels_by_class.png"},
    "l1": {"grad_cam.png", "widths.png", "sfvr.png"},
}
EVERY = set().union(*PICTURES.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    files = written(tmp_path_factory.mktemp("files"), *PICTURES)
    return {name: surgery.load(files / f"{name}.safetensors") for name in ("original", *PICTURES)}


@pytest.mark.parametrize("method", PICTURES)
def test_what_applies_is_drawn_and_the_rest_explained(networks, method, folder, tmp_path):
    explanation = explain(networks[method], [folder], tmp_path, original=networks["original"], settings=SETTINGS)
    assert set(explanation.files) == {*PICTURES[method], "explanation.json"} == {p.name for p in tmp_path.iterdir()}
    for name in PICTURES[method]:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 1
    assert {note.split(":")[0] for note in explanation.notes} == {f"no {name}" for name in EVERY - PICTURES[method]}
    statistics = json.loads((tmp_path / "explanation.json").read_text())
    assert statistics["notes"] == explanation.notes
    assert len(statistics["images"]) == 9
    assert statistics["labels"].count("bee") == 3
    assert statistics["grad_cam"]["classes"] == [CLASSES.index(label) for label in statistics["labels"][:8]]
    assert set(statistics["grad_cam"]["probabilities"]) == {"original", "converted"}


@pytest.mark.parametrize("method", ["pix", "fbs"])
def test_probabilities_are_those_of_the_networks(networks, method, folder, tmp_path):
    statistics = explain(networks[method], [folder], tmp_path, settings=SETTINGS).statistics
    images = read_images([folder], preprocessing_of(networks[method]), 9)
    with torch.no_grad():
        expected = networks[method](images.tensors[:8]).softmax(1)[range(8), statistics["grad_cam"]["classes"]]
    torch.testing.assert_close(torch.tensor(statistics["grad_cam"]["probabilities"]["converted"]), expected)


def test_statistics_are_those_of_the_layers(networks, folder, tmp_path):
    statistics = explain(networks["fbs"], [folder], tmp_path, settings=SETTINGS).statistics
    images = read_images([folder], preprocessing_of(networks["fbs"]), 9)
    with torch.no_grad():
        gates = networks["fbs"].conv1.gates(images.tensors)
    row = next(row for row in statistics["gates"] if row["layer"] == "conv1")
    assert row["channels"] == gates.values.shape[1]
    assert row["mean"] == pytest.approx(float(gates.values.mean()), rel=1e-5)
    assert row["sd"] == pytest.approx(float(gates.values.std(correction=0)), rel=1e-5)
    assert row["shares"]["kept"] == pytest.approx(0.5)
    changes = (gates.states["kept"] != gates.states["kept"][:1]).any(0)
    assert row["dead"] == pytest.approx(1 - float(changes.float().mean()))


def test_widths_are_those_of_both_networks(networks, folder, tmp_path):
    rows = explain(networks["l1"], [folder], tmp_path, structure=networks["original"], settings=SETTINGS).statistics[
        "widths"
    ]
    for row in rows:
        assert row["before"] == networks["original"].get_submodule(row["layer"]).out_channels
        assert row["after"] == networks["l1"].get_submodule(row["layer"]).out_channels < row["before"]
    names = [name for name, _ in networks["l1"].named_modules()]
    assert [row["layer"] for row in rows] == sorted((row["layer"] for row in rows), key=names.index)


def test_what_is_missing_for_a_pruned_network_is_said(networks, folder, tmp_path):
    explanation = explain(networks["l1"], [folder], tmp_path, settings=SETTINGS)
    assert "no widths.png: the network before surgery is not at hand" in explanation.notes
    assert any(note.startswith("no sfvr.png") and "--original" in note for note in explanation.notes)


def test_a_network_is_left_as_it_was(networks, folder, tmp_path):
    model = networks["pix"]
    frozen, weight = list(model.parameters())[:2]
    frozen.requires_grad_(False)
    weight.grad = torch.ones_like(weight)
    explain(model, [folder], tmp_path, settings=SETTINGS)
    assert not frozen.requires_grad
    assert frozen.grad is None
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_half_precision_is_explained_by_a_copy(networks, folder, tmp_path):
    model = copy.deepcopy(networks["original"]).bfloat16()
    drawn = explain(model, [folder], tmp_path, settings=ONE).statistics["grad_cam"]
    image = read_images([folder], preprocessing_of(model), 1).tensors
    with torch.no_grad():
        expected = copy.deepcopy(model).float()(image).softmax(1)[0, drawn["classes"][0]]
    assert drawn["probabilities"]["converted"] == [pytest.approx(float(expected), abs=1e-5)]
    assert next(model.parameters()).dtype == torch.bfloat16


def test_pictures_of_an_earlier_run_go_and_other_files_stay(networks, folder, tmp_path):
    for name in ("notes.txt", *EVERY):
        (tmp_path / name).write_bytes(b"of an earlier run")
    explain(networks["original"], [folder], tmp_path, settings=ONE)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "explanation.json", "grad_cam.png"}


@pytest.mark.parametrize("method", ["se", "cbam"])
def test_layers_that_say_nothing_of_their_gates_are_named(networks, method, folder, tmp_path):
    model = surgery.convert(networks["original"], method, input_size=32)
    notes = explain(model, [folder], tmp_path, settings=ONE).notes
    assert "no gates.png: no layer says what it decides (those that se and cbam put in are not asked)" in notes


def test_a_copy_for_inference_is_refused_and_nothing_is_written(networks, folder, tmp_path):
    fast = surgery.optimize_for_inference(networks["fbs"], input_size=32)
    with pytest.raises(ValueError, match="a copy that optimize_for_inference made"):
        explain(fast, [folder], tmp_path / "o", settings=SETTINGS)
    assert not (tmp_path / "o").exists()


def test_a_network_that_labels_pixels_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 2, 224, 224\).*a classifier is needed"):
        explain(torch.nn.Conv2d(3, 2, 1), [folder], tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_original_with_other_outputs_is_refused(networks, folder, tmp_path):
    other = surgery.create("cifar_resnet", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 12, 16, 16])
    with pytest.raises(ValueError, match="'original': 5"):
        explain(networks["pix"], [folder], tmp_path, original=other, settings=SETTINGS)


@pytest.mark.parametrize("option", ["count", "batch_size", "seed"])
def test_bad_settings_are_named(option):
    with pytest.raises(ValueError, match=f"{option}=-1: a whole number >= "):
        ExplanationSettings(**{option: -1})
