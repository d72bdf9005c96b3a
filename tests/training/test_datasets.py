import numpy as np
import pytest
import torch
from PIL import Image

from surgery.training.data_loading import calibration_images, make_loader
from surgery.training.datasets import open_dataset
from surgery.training.recipe import DataSettings, RecipeError

SETTINGS = {"name": "cifar10", "image_size": 32, "batch_size": 8}


def cifar(folder, size=32, classes=10, suffix="png"):
    """Two images of each class and part, in the layout of the real thing."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(classes):
            class_folder = folder / "cifar10" / part / f"class{label}"
            class_folder.mkdir(parents=True)
            for index in range(2):
                pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(class_folder / f"{index}.{suffix}")
    return folder


def replaced(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


def test_cifar_from_a_folder(tmp_path, monkeypatch):
    cifar(tmp_path)
    data = open_dataset(DataSettings(root=str(tmp_path), **SETTINGS))
    assert (len(data.train), len(data.test), data.classes) == (20, 20, 10)
    image, label = data.train[3]
    assert label == 1
    with Image.open(tmp_path / "cifar10/train/class1/1.png") as file:
        assert np.array_equal(np.asarray(image), np.asarray(file))
    monkeypatch.setenv("SURGERY_DATA", str(tmp_path))
    assert len(open_dataset(DataSettings(**SETTINGS)).train) == 20
    assert len(open_dataset(DataSettings(root=str(tmp_path / "cifar10"), **SETTINGS)).train) == 20


def test_batches_are_augmented_normalised_and_for_calibration_plain(tmp_path):
    settings = DataSettings(root=str(cifar(tmp_path)), padding=4, mean=(0.0,) * 3, std=(1.0,) * 3, **SETTINGS)
    data = open_dataset(settings)
    padded = next(iter(make_loader(data.train, settings, training=True)))[0]
    assert padded.shape == (8, 3, 32, 32)
    assert (padded[:, :, [0, -1]] == 0).any()
    (first, *_), labels = next(iter(make_loader(data.test, settings, training=False)))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.allclose(first.permute(1, 2, 0).numpy() * 255, data.test.pixels[0], atol=1e-3)
    chosen = list(calibration_images(data.train, settings, 12, seed=0))
    assert [len(batch) for batch in chosen] == [8, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"data\.root=.*there is no cifar10/\{train,test\}"),
        (lambda folder: cifar(folder, classes=3), "has 3 class folders, 10 are needed"),
        (lambda folder: cifar(folder, size=16), "16×16, 32×32 is needed"),
        (
            lambda folder: (cifar(folder) / "cifar10/test/class0/1.png").write_text("no"),
            r"1\.png. is no image that can be read",
        ),
        (
            lambda folder: replaced(cifar(folder) / "cifar10/test/class0/1.png", b"IDAT", b"IDBT"),
            r"1\.png. is no image that can be read",
        ),
    ],
)
def test_folders_that_will_not_do(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_dataset(DataSettings(root=str(tmp_path), **SETTINGS))


def folder_settings(root, **more):
    return DataSettings(name="folder", root=str(root), batch_size=8, **more)


def test_a_users_folders(tmp_path):
    parts = cifar(tmp_path) / "cifar10"
    data = open_dataset(folder_settings(parts))
    assert (len(data.train), len(data.test), data.classes) == (20, 20, 10)
    with pytest.raises(RecipeError, match=r"has no folders train and val.*data\.holdout=0\.1"):
        open_dataset(folder_settings(parts / "train"))
    halves = open_dataset(folder_settings(parts / "train", holdout=0.25))
    assert (len(halves.train), len(halves.test)) == (15, 5)
    pixels_of_images = [
        tuple(np.asarray(part[i][0]).ravel()[:20]) for part in (halves.train, halves.test) for i in range(len(part))
    ]
    assert len(set(pixels_of_images)) == 20
    batch, _ = next(iter(make_loader(halves.test, folder_settings(parts, crop_pct=0.5), training=False)))
    assert batch.shape == (5, 3, 32, 32)
    assert halves.train.transform is None
    with pytest.raises(RecipeError, match="leaves none to train on"):
        open_dataset(folder_settings(parts / "train", holdout=0.99))


def test_users_folders_that_will_not_do(tmp_path):
    with pytest.raises(RecipeError, match=r"data\.root=.*nothing: with data\.name=folder a folder"):
        open_dataset(folder_settings(tmp_path / "nothing"))
    for name in ("a", "b"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(RecipeError, match="is no folder of images"):
        open_dataset(folder_settings(tmp_path / "empty", holdout=0.5))
    parts = cifar(tmp_path) / "cifar10"
    (parts / "test" / "class3").rename(parts / "test" / "cat")
    with pytest.raises(RecipeError, match="do not have the same classes: cat, class3"):
        open_dataset(folder_settings(parts))
    (parts / "train/class0/0.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"class0/0\.png. is no image that can be read"):
        open_dataset(folder_settings(parts / "train", holdout=0.5)).train.images[0]


def test_imagenet_has_a_thousand_classes(tmp_path):
    cifar(tmp_path)
    (tmp_path / "cifar10").rename(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "test").rename(tmp_path / "imagenet" / "val")
    with pytest.raises(RecipeError, match="has 10 class folders, 1000 are needed"):
        open_dataset(DataSettings(name="imagenet", root=str(tmp_path)))


def test_no_folder_given(monkeypatch):
    monkeypatch.delenv("SURGERY_DATA", raising=False)
    with pytest.raises(RecipeError, match=r"set data\.root, or SURGERY_DATA, to where cifar10/"):
        open_dataset(DataSettings(**SETTINGS))


def test_images_are_normalised_the_same_in_batches_and_alone(tmp_path):
    settings = DataSettings(
        root=str(cifar(tmp_path)), scale=(1.0, 1.0), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), **SETTINGS
    )
    data = open_dataset(settings)
    plain = make_loader(data.train, settings, training=False).dataset
    loader = make_loader(data.train, settings, training=True)
    keys = list(loader.sampler)
    images, _ = next(iter(loader))
    for image, key in zip(images, keys, strict=False):
        assert torch.equal(image, plain[key % len(plain)][0])


def test_what_programs_leave_beside_images_is_no_class(tmp_path):
    parts = cifar(tmp_path, classes=3) / "cifar10"
    for name in ("__MACOSX", ".ipynb_checkpoints", ".hidden", "@eaDir"):
        (parts / "train" / name).mkdir()
        (parts / "train" / name / "0.png").write_bytes((parts / "train/class0/0.png").read_bytes())
    inner = parts / "train/class1/.ipynb_checkpoints"
    inner.mkdir()
    (inner / "0-checkpoint.png").write_bytes((parts / "train/class0/0.png").read_bytes())
    (parts / "train/class1/._0.png").write_bytes(b"of a Mac")
    data = open_dataset(folder_settings(parts))
    assert data.names == ("class0", "class1", "class2")
    assert (len(data.train), len(data.test)) == (6, 6)


def test_a_part_is_missing(tmp_path):
    parts = cifar(tmp_path) / "cifar10"
    (parts / "test").rename(tmp_path / "aside")
    with pytest.raises(
        RecipeError, match=r"no folder val or test: data\.holdout=0\.1 would test on a tenth of .*train"
    ):
        open_dataset(folder_settings(parts))
    data = open_dataset(folder_settings(parts, holdout=0.2))
    assert (len(data.train), len(data.test), data.classes) == (16, 4, 10)
    (parts / "train").rename(parts / "val")
    with pytest.raises(RecipeError, match="has a folder val but no train"):
        open_dataset(folder_settings(parts, holdout=0.2))
    (parts / "val").rename(parts / "training")
    with pytest.raises(RecipeError, match="has one class folder, 'training'"):
        open_dataset(folder_settings(parts, holdout=0.2))
    (tmp_path / "aside").rename(parts / "validation")
    with pytest.raises(RecipeError, match="has folders training, validation, which are no classes"):
        open_dataset(folder_settings(parts, holdout=0.2))


def test_datasets_are_not_taken_for_classes(tmp_path, monkeypatch):
    cifar(tmp_path)
    (tmp_path / "birds" / "train").mkdir(parents=True)
    monkeypatch.setenv("SURGERY_DATA", str(tmp_path))
    with pytest.raises(RecipeError, match=r"data\.root=null: .*CLASS/\*.*\(SURGERY_DATA is for named datasets\)"):
        open_dataset(DataSettings(name="folder", batch_size=8, holdout=0.1))
    (tmp_path / "birds" / "train" / "0.png").write_bytes((tmp_path / "cifar10/train/class0/0.png").read_bytes())
    with pytest.raises(RecipeError, match=r"birds is no class: it has parts of its own \(train\)"):
        open_dataset(folder_settings(tmp_path, holdout=0.1))
    for part in ("images", "masks"):
        (tmp_path / "pixels" / part).mkdir(parents=True)
        (tmp_path / "pixels" / part / "0.png").write_bytes((tmp_path / "cifar10/train/class0/0.png").read_bytes())
    with pytest.raises(RecipeError, match=r"holds images, masks: .*data\.name=segmentation_folder"):
        open_dataset(folder_settings(tmp_path / "pixels", holdout=0.1))
