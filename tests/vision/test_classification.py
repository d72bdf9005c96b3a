import numpy as np
import pytest
import timm
import torch
from PIL import Image

import surgery
from surgery.vision.classification import evaluate, labelled_batches, predict
from surgery.vision.preprocessing import Preprocessing

NAMES = ("ant", "bee", "cat")


def photographs(folder, names=NAMES, per_class=3):
    generator = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def classifier(names=(), outputs=3):
    torch.manual_seed(0)
    model = surgery.create("resnet18", num_classes=outputs).eval()
    model.surgery_preprocessing = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, classes=names)
    return model


def test_accuracy_is_that_of_predictions_one_by_one(tmp_path):
    folder, model = photographs(tmp_path / "x"), classifier(NAMES).train()
    paths = sorted(folder.rglob("*.png"))
    predictions = predict(model, paths, top=2)
    assert all(prediction.probabilities[0] >= prediction.probabilities[1] for prediction in predictions)
    right = [path.parent.name == prediction.classes[0] for path, prediction in zip(paths, predictions, strict=True)]
    accuracy = evaluate(model, folder, batch_size=4, progress=False)
    assert accuracy.images == 9
    assert model.training
    assert accuracy.top1 == pytest.approx(100 * np.mean(right), abs=1e-3)
    assert accuracy.top5 == 100
    assert "top-5 100.00 % of 9 images" in str(accuracy)


def test_classes_are_matched_by_name(tmp_path):
    model = classifier(NAMES)
    whole = evaluate(model, photographs(tmp_path / "whole"), progress=False)
    parts = [evaluate(model, photographs(tmp_path / name / "val", [name]).parent, progress=False) for name in NAMES]
    assert len(parts) == 3
    assert whole.images == sum(part.images for part in parts)
    with pytest.raises(ValueError, match=r"has folders \['dog'\]; the model's classes are ant, bee, cat"):
        evaluate(model, photographs(tmp_path / "other", ["ant", "dog"]))


def test_labelled_batches_are_mixed_and_labelled_by_the_models_own_order(tmp_path):
    names = ("cat", "ant", "bee")
    folder = photographs(tmp_path / "x" / "train", per_class=4).parent
    batches = list(labelled_batches(folder, classifier(names), 6, input_size=16))
    assert [tuple(images.shape) for images, _ in batches] == [(6, 3, 16, 16)]
    labels = batches[0][1]
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert labels.tolist() != sorted(labels.tolist())
    transform = Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3).transform()
    files = {name: [transform(Image.open(path)) for path in (folder / "train" / name).iterdir()] for name in names}
    for image, label in zip(batches[0][0], labels.tolist(), strict=True):
        assert any(torch.equal(image, known) for known in files[names[label]])


def test_labelled_batches_that_cannot_be(tmp_path):
    folder = photographs(tmp_path / "x")
    with pytest.raises(ValueError, match="has 3 class folders, the model 4 outputs"):
        next(labelled_batches(folder, classifier(outputs=4)))
    with pytest.raises(ValueError, match="0 labelled images: at least 1"):
        next(labelled_batches(folder, classifier(), 0))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        next(labelled_batches(tmp_path / "none", classifier()))


def test_what_cannot_be_judged(tmp_path):
    folder = photographs(tmp_path / "x")
    with pytest.raises(ValueError, match="has 3 class folders, the model 4 outputs and no names"):
        evaluate(classifier(outputs=4), folder)
    with pytest.raises(ValueError, match="gives 4 outputs and was saved with 3 names"):
        evaluate(classifier(NAMES, outputs=4), folder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        evaluate(classifier(), tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"ResNet is no classifier: it gives \(1, 512, 7, 7\)"):
        predict(timm.create_model("resnet18", num_classes=0, global_pool=""), [folder / "ant" / "0.png"])
    (folder / "ant" / "0.png").write_text("no")
    with pytest.raises(ValueError, match="is no image that can be read"):
        predict(classifier(), [folder / "ant" / "0.png"])
    assert predict(classifier(), [folder / "ant" / "1.png"])[0].classes[0] in "012"


class Pair(torch.nn.Module):
    """Takes two images."""

    def __init__(self):
        super().__init__()
        self.net = timm.create_model("test_resnet", num_classes=3)

    def forward(self, one, two):
        return self.net(one) + self.net(two)


def test_networks_in_float64_and_of_two_inputs(tmp_path):
    photographs(tmp_path, per_class=1)
    image = tmp_path / "ant" / "0.png"
    model = timm.create_model("test_resnet", num_classes=3).double()
    assert len(predict(model, [image])[0].classes) == 3
    assert evaluate(model, tmp_path, progress=False).images == 3
    for use in (lambda: predict(Pair(), [image]), lambda: evaluate(Pair(), tmp_path)):
        with pytest.raises(ValueError, match=r"Pair fails on one batch .*missing 1 required.*that takes such"):
            use()
