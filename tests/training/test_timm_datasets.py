"""torchvision's and Hugging Face's datasets, from files in their real layout."""

import hashlib
import pickle
import shutil
import struct
import sys

import numpy as np
import pytest
import torchvision
from PIL import Image

import finetune
from surgery.training import load_recipe
from surgery.training.batch_augmentation import BatchedImages
from surgery.training.data_loading import make_loader
from surgery.training.datasets import open_dataset
from surgery.training.images_in_memory import ImagesInMemory
from surgery.training.recipe import DataSettings, RecipeError


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


def settings(name, root=None, **more):
    return DataSettings(name=name, root=None if root is None else str(root), image_size=28, batch_size=4, **more)


def fashion_mnist(root, count=6):
    """FashionMNIST's four files, uncompressed as torchvision leaves them."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, number in (("train", count), ("t10k", count - 2)):
        images, labels = pixels(number, 28, 28), np.arange(number, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, number, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, number) + labels.tobytes())
    return root


def cifar10(root, monkeypatch):
    """CIFAR-10's pickles, with ten images in each, whose checksums torchvision is then told."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    batch = {"data": pixels(10, 3072), "labels": list(range(10))}
    of = torchvision.datasets.CIFAR10
    for key in ("train_list", "test_list"):
        monkeypatch.setattr(of, key, [[name, write(name, batch)] for name, _ in getattr(of, key)])
    meta = {"label_names": [f"class{n}" for n in range(10)]}
    monkeypatch.setattr(of, "meta", of.meta | {"md5": write("batches.meta", meta)})
    return root, batch


def folders(root, parts=("train", "test"), classes=("cat", "dog")):
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for index in range(2):
                Image.fromarray(pixels(28, 28)).save(root / part / name / f"{index}.png")
    return root


def test_grey_images_come_as_rgb(tmp_path):
    chosen = settings("torch/fashion_mnist", fashion_mnist(tmp_path))
    data = open_dataset(chosen)
    assert (len(data.train), len(data.test), data.classes, data.names[8]) == (6, 4, 10, "Bag")
    image, label = data.train[5]
    assert (image.mode, label) == ("RGB", 5)
    assert np.array_equal(np.asarray(image)[:, :, 1], pixels(6, 28, 28)[5])
    inputs, labels = next(iter(make_loader(data.train, chosen, training=True)))
    assert (inputs.shape, data.train.transform) == ((4, 3, 28, 28), None)
    assert labels.dtype.is_floating_point is False


def test_images_whose_batches_are_augmented_are_held_in_memory(tmp_path):
    root = fashion_mnist(tmp_path)
    plain = open_dataset(settings("torch/fashion_mnist", root))
    chosen = settings("torch/fashion_mnist", root, padding=2)
    data = open_dataset(chosen)
    assert isinstance(data.train, ImagesInMemory)
    assert (data.classes, data.names) == (plain.classes, plain.names)
    for part, source in ((data.train, plain.train), (data.test, plain.test)):
        assert [label for _, label in part] == [label for _, label in source]
        assert all(np.array_equal(np.asarray(a[0]), np.asarray(b[0])) for a, b in zip(part, source, strict=True))
    assert isinstance(make_loader(data.train, chosen, training=True).dataset, BatchedImages)


def test_cifar10(tmp_path, monkeypatch):
    root, batch = cifar10(tmp_path, monkeypatch)
    data = open_dataset(settings("torch/cifar10", root))
    assert (len(data.train), len(data.test), data.classes, data.names[3]) == (50, 10, 10, "class3")
    image, label = data.test[3]
    assert label == 3
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1).ravel(), batch["data"][3])


def test_folders_by_torchvision(tmp_path):
    folders(tmp_path)
    data = open_dataset(settings("torch/image_folder", tmp_path, splits=("train", "test")))
    assert (len(data.train), data.classes, data.names) == (4, 2, ("cat", "dog"))
    (tmp_path / "test/cat/0.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"torch/image_folder, split test: image 0: .*cannot identify"):
        data.test[0]
    with pytest.raises(RecipeError, match=r"data\.splits=\['train', 'validation'\]: there is no folder validation in"):
        open_dataset(settings("torch/image_folder", tmp_path))
    folders(tmp_path, parts=("val",), classes=("bird", "dog"))
    with pytest.raises(RecipeError, match="do not have the same classes: bird, cat"):
        open_dataset(settings("torch/image_folder", tmp_path))


def test_inaturalist_names_its_categories(tmp_path):
    kinds = [f"{n:05d}_Animalia_Chordata_Aves_Order_Family_Genus_kind{n}" for n in range(3)]
    folders(tmp_path, parts=("2021_train", "2021_valid"), classes=kinds)
    data = open_dataset(settings("torch/inaturalist", tmp_path))
    assert (len(data.train), data.classes, data.names) == (6, 3, tuple(kinds))
    assert data.test[5][1] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "torch/fashion_mnst"}, "data.name='torch/fashion_mnst'.*did you mean 'torch/fashion_mnist'"),
        ({"name": "torch/"}, "data.name='torch/'.*'torch/NAME', 'hfds/NAME'"),
        ({"name": "tfds/mnist"}, "data.name='tfds/mnist'.*'hfds/NAME'"),
        (
            {"name": "torch/cifar10"},
            r"data\.name=torch/cifar10, split train: torchvision\.datasets\.CIFAR10.*not found",
        ),
        ({"name": "torch/imagenet"}, r"split train: torchvision\.datasets\.ImageNet"),
        ({"splits": ("trian", "test")}, "data.splits='trian'.*did you mean 'train'"),
        ({"classes": 7}, r"data\.classes=7: torch/fashion_mnist has 10 classes"),
        ({"root": None}, r"set data\.root, or SURGERY_DATA"),
    ],
)
def test_torchvision_sets_that_will_not_do(tmp_path, monkeypatch, change, message):
    monkeypatch.delenv("SURGERY_DATA", raising=False)
    chosen = {"name": "torch/fashion_mnist", "root": fashion_mnist(tmp_path)} | change
    with pytest.raises(RecipeError, match=message):
        open_dataset(settings(**chosen))


def test_a_damaged_file_of_torchvision(tmp_path):
    raw = fashion_mnist(tmp_path) / "FashionMNIST/raw"
    for content in (b"", b"no", (raw / "train-images-idx3-ubyte").read_bytes()[:-9]):
        (raw / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(RecipeError, match=r"torch/fashion_mnist, split train: torchvision\.datasets\.FashionMNIST"):
            open_dataset(settings("torch/fashion_mnist", tmp_path))


@pytest.fixture
def library():
    return pytest.importorskip("datasets")


def hugging_face(tmp_path, name=None, **more):
    """Settings for a local folder, with the cache in a folder of the test."""
    more = {"splits": ("train", "test")} | more
    return settings(name or f"hfds/{tmp_path / 'Pets'}", tmp_path / "cache", **more)


def test_a_local_folder_of_hugging_face(tmp_path, library):
    folders(tmp_path / "Pets")
    data = open_dataset(hugging_face(tmp_path))
    assert (len(data.train), len(data.test), data.classes, data.names) == (4, 4, 2, ("cat", "dog"))
    image, label = data.test[3]
    assert (image.mode, label) == ("RGB", 1)
    assert np.array_equal(np.asarray(image)[:, :, 2], pixels(28, 28))
    halves = open_dataset(hugging_face(tmp_path, splits=("train[:75%]", "train[75%:]")))
    assert (len(halves.train), len(halves.test)) == (3, 1)
    alone, helped = (
        next(iter(make_loader(data.train, hugging_face(tmp_path, workers=workers), training=True)))
        for workers in (0, 1)
    )
    assert all(one.equal(two) for one, two in zip(alone, helped, strict=True))


def parquet(folder, library, images, labels, kind=None):
    folder.mkdir(parents=True)
    features = library.Features({"img": library.Image(), "number": kind or library.Value("int64")})
    for part in ("train", "test"):
        rows = library.Dataset.from_dict({"img": images, "number": labels}, features)
        rows.to_parquet(folder / f"{part}.parquet")


def test_parquet_files(tmp_path, library):
    images = [{"bytes": b"no"}, Image.fromarray(pixels(28, 28, 3)), None]
    parquet(tmp_path / "Pets", library, images, [0, 2, 1])
    columns = ("img", "number")
    with pytest.raises(RecipeError, match=r"data\.columns=\['image', 'label'\]: hfds/.*has the columns img, number"):
        open_dataset(hugging_face(tmp_path))
    with pytest.raises(RecipeError, match=r"does not say how many classes it has: data\.classes is needed"):
        open_dataset(hugging_face(tmp_path, columns=columns))
    with pytest.raises(
        RecipeError, match=r"column 'number' holds 2: integers from 0 to 1 are needed \(data.classes=2\)"
    ):
        open_dataset(hugging_face(tmp_path, columns=columns, classes=2))
    data = open_dataset(hugging_face(tmp_path, columns=columns, classes=3))
    assert (len(data.train), data.classes, data.names, data.train[1][1]) == (3, 3, (), 2)
    for index, message in ((0, "the file is no image that can be read"), (2, "there is no image in this row")):
        with pytest.raises(ValueError, match=f"split test: image {index}: {message}"):
            data.test[index]


def test_labels_that_are_words_or_missing(tmp_path, library):
    image = Image.fromarray(pixels(28, 28))
    parquet(tmp_path / "Pets", library, [image], ["cat"], library.Value("string"))
    with pytest.raises(RecipeError, match=r"column 'number' holds 'cat': integers"):
        open_dataset(hugging_face(tmp_path, columns=("img", "number"), classes=3))
    parquet(tmp_path / "More", library, [image], [-1], library.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(RecipeError, match=r"split train: column 'number' holds -1: integers from 0 to 1"):
        open_dataset(hugging_face(tmp_path, f"hfds/{tmp_path / 'More'}", columns=("img", "number")))


def test_from_the_cache_but_never_from_the_hub(tmp_path, library):
    folders(tmp_path / "Pets")
    open_dataset(hugging_face(tmp_path))
    with pytest.raises(
        RecipeError, match=r"data\.name=hfds/me/pets is no folder and not in the cache.*load_dataset\('me"
    ):
        open_dataset(hugging_face(tmp_path, "hfds/me/pets"))
    prepared = next((tmp_path / "cache").rglob("dataset_info.json")).parent
    shutil.copytree(prepared, tmp_path / "cache/me___pets/default/0.0.0/hash")
    for file in (tmp_path / "cache/me___pets").rglob("*.arrow"):
        file.rename(file.with_name(file.name.replace("imagefolder", "pets")))
    assert open_dataset(hugging_face(tmp_path, "hfds/me/pets")).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ("train", "validation")}, r"split validation: Unknown split.*\['train', 'test'\]"),
        ({"name": "hfds//no/such/folder"}, r"data\.name=hfds//no/such/folder, split train: Couldn't find any data"),
        ({"classes": 3}, r"data\.classes=3: hfds/.* has 2 classes"),
    ],
)
def test_hugging_face_sets_that_will_not_do(tmp_path, library, change, message):
    folders(tmp_path / "Pets")
    with pytest.raises(RecipeError, match=message):
        open_dataset(hugging_face(tmp_path, **change))


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError, match=r"data\.name=hfds/.*needs a package: pip install datasets"):
        open_dataset(hugging_face(tmp_path))


def test_dry_run_on_a_named_set(tmp_path, capsys):
    chosen = ["data.name=torch/fashion_mnist", f"data.root={fashion_mnist(tmp_path)}", "data.batch_size=4"]
    assert finetune.main(["--dry-run", *chosen, "surgery.calibrate=0", "data.splits=[train, test]"]) == 0
    assert "training: 6 images, 10 classes" in capsys.readouterr().out


def test_splits_are_two_words():
    assert load_recipe(finetune.QUICKSTART, ["data.splits=[train, test]"]).data.splits == ("train", "test")
    for wrong in ("[train]", "[train, 1]", "train"):
        with pytest.raises(RecipeError, match=r"data\.splits(\[1\])?="):
            load_recipe(finetune.QUICKSTART, [f"data.splits={wrong}"])
