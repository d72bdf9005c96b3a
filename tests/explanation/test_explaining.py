"""The pictures and statistics of converted networks on images in files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import surgery
from surgery.cli.main import main
from surgery.explanation import ExplanationSettings, explain
from surgery.explanation.explained_images import read_images
from surgery.explanation.layer_gates import LayerGates, layer_gates
from surgery.vision.preprocessing import Preprocessing, preprocessing_of

CLASSES = ("ant", "bee", "cat")
SETTINGS = ExplanationSettings(count=9, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir()
        for image in range(4):
            pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            pixels[..., number] //= 4
            Image.fromarray(pixels).save(root / name / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return surgery.create("cifar_resnet", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 12, 16, 16]).eval()


def preprocessing():
    return Preprocessing((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 1.0, "bilinear", CLASSES)


def saved(model, path):
    surgery.save(model, path, preprocessing=preprocessing())
    return surgery.load(path)


@pytest.fixture(scope="module")
def networks(original, tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    made = {"original": saved(original, files / "original.safetensors")}
    for method, options in (("pix", {}), ("fbs", {"density": 0.5}), ("l1", {"macs": 0.6})):
        calibrated = surgery.convert(
            original, method, calibrate=torch.randn(32, 3, 32, 32), images=32, input_size=32, **options
        )
        made[method] = saved(calibrated, files / f"{method}.safetensors")
    return made, files


PICTURES = {
    "pix": {"grad_cam.png", "gates.png", "picked.png"},
    "fbs": {"grad_cam.png", "gates.png", "channels_by_class.png"},
    "l1": {"grad_cam.png", "widths.png", "sfvr.png"},
}


@pytest.mark.parametrize("method", PICTURES)
def test_what_applies_is_drawn(networks, method, folder, tmp_path):
    made, _ = networks
    explanation = explain(made[method], [folder], tmp_path, original=made["original"], settings=SETTINGS)
    assert set(explanation.files) == {*PICTURES[method], "explanation.json"} == {p.name for p in tmp_path.iterdir()}
    for name in PICTURES[method]:
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 1
    statistics = json.loads((tmp_path / "explanation.json").read_text())
    assert len(statistics["images"]) == 9
    assert statistics["labels"].count("bee") == 3
    assert statistics["grad_cam"]["classes"] == [CLASSES.index(label) for label in statistics["labels"][:8]]
    assert set(statistics["grad_cam"]["probabilities"]) == {"original", "converted"}


def test_probabilities_are_those_of_the_networks(networks, folder, tmp_path):
    made, _ = networks
    statistics = explain(made["pix"], [folder], tmp_path, original=made["original"], settings=SETTINGS).statistics
    images = read_images([folder], preprocessing_of(made["pix"]), 9)
    with torch.no_grad():
        expected = made["pix"](images.tensors[:8]).softmax(1)[range(8), statistics["grad_cam"]["classes"]]
    torch.testing.assert_close(torch.tensor(statistics["grad_cam"]["probabilities"]["converted"]), expected)


def test_gates_are_collected_over_batches(networks):
    model, images = networks[0]["fbs"], torch.randn(7, 3, 32, 32)
    collected = {gates.name: gates for gates in layer_gates(model, images, 3)}
    assert list(collected) == [name for name, m in model.named_modules() if type(m).__name__ == "FBSConv2d"]
    expected = model.get_submodule("conv1").gates(images)
    torch.testing.assert_close(collected["conv1"].values, expected.values.detach())
    assert torch.equal(collected["conv1"].states["kept"], expected.states["kept"])
    assert not model.conv1._forward_pre_hooks


def test_statistics_of_gates():
    values = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.7, 0.2], [0.0, 0.5, 1.0], [0.0, 0.7, 0.2]])
    kept = values > 0.4
    gates, labels = LayerGates("a", values, {"kept": kept, "suppressed": ~kept}), ("x", "y", "x", "y")
    assert gates.shares == {"kept": 0.5, "suppressed": 0.5}
    assert gates.dead == pytest.approx(2 / 3)  # the last one alone changes
    assert gates.saturated == pytest.approx((4 + 2) / 12)
    assert gates.spread_over_classes(labels) == pytest.approx(2 / 3)  # classes say all of two channels, one is constant
    assert gates.spread_over_classes(("x", "y", "", "")) is None
    assert gates.kept_by_class(labels, "kept")["x"].tolist() == [0, 1, 1]


def test_images_are_drawn_in_turn_from_every_class(folder):
    images = read_images([folder], preprocessing(), 5)
    assert images.labels == ("ant", "bee", "cat", "ant", "bee")
    one = read_images([folder / "cat" / "1.png"], preprocessing(), 5)
    assert one.labels == ("",)
    assert one.classes == []


def test_the_command_needs_no_original(networks, folder, tmp_path, capsys):
    _, files = networks
    assert main(["explain", str(files / "l1.safetensors"), str(folder), "--count", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "--original" in printed
    widths = json.loads((tmp_path / "explanation.json").read_text())["widths"]
    assert any(row["after"] < row["before"] for row in widths)
    assert not (tmp_path / "sfvr.png").exists()


def test_the_command_with_an_original(networks, folder, tmp_path, capsys):
    _, files = networks
    options = ["--original", str(files / "original.safetensors"), "--count", "4", "--out", str(tmp_path)]
    assert main(["explain", str(files / "fbs.safetensors"), str(folder), *options]) == 0
    assert "suppressed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("nowhere.png", [], "nowhere.png"),
        ("", ["--count", "0"], "count=0"),
        ("", ["--layer", "nothing"], "--layer 'nothing'"),
        ("", ["--batch-size", "0"], "batch_size=0"),
    ],
)
def test_bad_input_is_one_line(networks, folder, tmp_path, capsys, images, options, message):
    _, files = networks
    named = str(folder / images) if images else str(folder)
    assert main(["explain", str(files / "pix.safetensors"), named, *options, "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_network_that_labels_pixels_is_refused(folder, tmp_path):
    class Pixels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.conv(x)

    with pytest.raises(ValueError, match="a classifier is needed"):
        explain(Pixels(), [folder], tmp_path / "o")
