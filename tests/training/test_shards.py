"""Tar shards as a user has them: read in any order, by several processes, trained on, and those that will not do."""

import copy
import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import finetune
from surgery.training import load_recipe, run
from surgery.training.data_loading import make_loader
from surgery.training.datasets import open_dataset
from surgery.training.recipe import DataSettings, RecipeError

SIZE = 12


def picture(number, mode="RGB"):
    pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="png"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample(number, label, kind="png"):
    """The members of one sample, among them some that are not for us."""
    return [
        (f"{number:04d}.txt", b"x"),
        (f"{number:04d}.cls", str(label).encode()),
        (f"{number:04d}.{kind}", png(number)),
    ]


def png(number):
    return encoded(picture(number))


def write(root, test="val", classes=3):
    """Two shards of six images for training, one of six for testing."""
    for shard in range(2):
        numbers = range(shard * 6, shard * 6 + 6)
        write_tar(root / f"train/{shard:03d}.tar", [m for n in numbers for m in sample(n, n % classes)])
    write_tar(root / test / "000.tar", [m for n in range(12, 18) for m in sample(n, n % classes)])
    return root


def settings(root, **more):
    return DataSettings(name="shards", root=str(root), image_size=SIZE, batch_size=4, **more)


@pytest.mark.parametrize("test", ["val", "test"])
def test_images_and_labels_in_any_order(tmp_path, test):
    data = open_dataset(settings(write(tmp_path, test)))
    assert (len(data.train), len(data.test), data.classes, data.names) == (12, 6, 3, ())
    for index in (11, 0, 6, 5, 0):
        image, label = data.train[index]
        assert label == index % 3
        assert np.array_equal(np.asarray(image), np.asarray(picture(index)))
    assert data.test[1][1] == 13 % 3
    data.test.transform = lambda image: image.size
    assert data.test[0] == ((SIZE, SIZE), 0)
    assert open_dataset(settings(tmp_path, classes=7)).classes == 7


def test_all_kinds_of_images_and_names(tmp_path):
    grey, png_, webp = (
        encoded(picture(n, mode), kind) for n, mode, kind in ((0, "L", "jpeg"), (1, "P", "png"), (2, "RGB", "webp"))
    )
    members = [("a/x.JPG", grey), ("a/x.cls", b"0\n"), ("a/x.seg.png", b"no"), ("b/x.png", png_), ("b/x.cls", b"1")]
    members += [("b/x.json", b"{}"), ("c.d/y.cls", b"2"), ("c.d/y.webp", webp), ("._y.webp", b"no")]
    for part in ("train", "val"):
        write_tar(tmp_path / part / "0.tar", members)
    data = open_dataset(settings(tmp_path))
    assert [data.train[n][1] for n in range(len(data.train))] == [0, 1, 2]
    assert {data.train[n][0].mode for n in range(3)} == {"RGB"}


def batches(loader):
    loader.sampler.begin(3, first=2)
    return list(loader)


def same(one, two):
    return len(one) == len(two) and all(
        a.equal(b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_the_same_batches_from_any_number_of_workers(tmp_path):
    data = open_dataset(settings(write(tmp_path)))
    data.train[0]  # leaves a file open that the workers must not share
    alone, helped = (
        batches(
            make_loader(data.train, settings(tmp_path, workers=workers, hflip=0.5, color_jitter=0.4), training=True)
        )
        for workers in (0, 2)
    )
    assert [len(labels) for _, labels in alone] == [4, 4]
    assert same(alone, helped)


def test_open_files_are_not_pickled(tmp_path):
    data = open_dataset(settings(write(tmp_path)))
    data.train[0]
    again = copy.deepcopy(data.train)  # as pickling, it asks __reduce__
    assert again._reader._file is None
    assert again[7][1] == data.train[7][1]


def test_a_forked_process_opens_the_file_anew(tmp_path, monkeypatch):
    train = open_dataset(settings(write(tmp_path))).train
    first, _ = train[0], train[1]
    file = train._reader._file
    assert train[0][1] == first[1]
    assert train._reader._file is file
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert np.array_equal(np.asarray(train[0][0]), np.asarray(first[0]))
    assert train._reader._file is not file


@pytest.mark.slow
def test_workers_that_are_spawned(tmp_path):
    data = open_dataset(settings(write(tmp_path)))
    data.train[0]
    data.train.transform = np.array
    alone, spawned = (
        list(DataLoader(data.train, 4, num_workers=workers, multiprocessing_context="spawn" if workers else None))
        for workers in (0, 2)
    )
    assert same(alone, spawned)


def test_training_on_shards(tmp_path, capsys):
    write(tmp_path / "data")
    network = "model.kwargs={num_classes: 3, channels: [8, 16, 16, 16], layers: [1, 1, 1, 1]}"
    data = [f"data={{name: shards, root: {tmp_path / 'data'}, image_size: 16, batch_size: 6}}"]
    more = ["baseline.epochs=0", "finetune.epochs=1", "finetune.distill_weight=0", "surgery.calibrate=0"]
    rows = run(load_recipe(finetune.QUICKSTART, [f"output={tmp_path / 'out'}", *data, network, *more]))
    assert [row.stage for row in rows] == ["original", "after surgery", "after fine-tuning"]
    assert "logits identical on 6 test images" in capsys.readouterr().out


def test_a_damaged_image_is_named(tmp_path):
    write(tmp_path)
    good = png(0)
    for number, bad in enumerate((b"no", good[:-30], good.replace(b"IDAT", b"IDBT"))):
        write_tar(tmp_path / "val/000.tar", [*sample(1, 0), ("bad.png", bad), ("bad.cls", b"1")])
        data = open_dataset(settings(tmp_path))
        with pytest.raises(ValueError, match=r"val.000\.tar: bad\.png: the image is no image that can be read"):
            data.test[1]
        assert data.test[0][1] == 0, number


def replaced(path, change):
    path.write_bytes(change(path.read_bytes()))


def members_of(data):
    """Where the headers of a tar's members begin."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset for member in tar]


TAR, GOOD = "train/001.tar", b"7"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: write_tar(root / TAR, [("a.png", GOOD)]), r"001\.tar: the image a has no a\.cls"),
        (lambda root: write_tar(root / TAR, [("a.cls", b"1")]), r"001\.tar: a\.cls has no image a\.\{jpg,"),
        (
            lambda root: write_tar(root / TAR, [("a.cls", b"cat")]),
            r"001\.tar: a\.cls holds 'cat': an integer is needed",
        ),
        (lambda root: write_tar(root / TAR, [("a.cls", b"-1")]), r"a\.cls holds '-1'.*at least 0"),
        (lambda root: write_tar(root / TAR, [("a.cls", b"")]), r"a\.cls holds ''"),
        (lambda root: write_tar(root / TAR, [("a.cls", b"1" * 30)]), r"a\.cls holds '111"),
        (lambda root: write_tar(root / TAR, [("a.png", GOOD), ("a.jpg", GOOD)]), r"a\.jpg is a second image or label"),
        (lambda root: replaced(root / TAR, lambda data: data[:-12000]), r"001\.tar is no whole, uncompressed tar file"),
        (
            lambda root: replaced(root / TAR, lambda data: data[: members_of(data)[4]]),
            r"001\.tar is no whole.*it is cut",
        ),
        (lambda root: replaced(root / TAR, lambda data: data[: members_of(data)[4] + 9]), r"no whole.*it is cut"),
        (lambda root: replaced(root / TAR, lambda data: b""), r"001\.tar is no whole.*empty"),
        (lambda root: replaced(root / TAR, lambda data: b"\x1f\x8b" + data), r"001\.tar is no whole, uncompressed"),
        (
            lambda root: [path.unlink() for path in (root / "val").iterdir()],
            r"val: there is no \*\.tar \(uncompressed\)",
        ),
        (lambda root: write_tar(root / "val/000.tar", [("a.gif", GOOD)]), r"val/\*\.tar: there is no NAME\.\{jpg"),
        (
            lambda root: (root / "val").rename(root / "held"),
            r"data\.root=.*there is no \{train,val\}/\*\.tar \(or test",
        ),
        (
            lambda root: write_tar(root / "val/000.tar", sample(20, 3)),
            r"000\.tar: 0020\.png has label 3, but the largest in .*train is 2: data\.classes is needed, larger",
        ),
    ],
)
def test_shards_that_will_not_do(tmp_path, change, message):
    change(write(tmp_path))
    with pytest.raises(RecipeError, match=message):
        open_dataset(settings(tmp_path))


def test_more_classes_in_training_than_given(tmp_path):
    with pytest.raises(RecipeError, match=r"train.000\.tar: 0002\.png has label 2, but data\.classes=2"):
        open_dataset(settings(write(tmp_path), classes=2))


def test_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SURGERY_DATA", raising=False)
    with pytest.raises(RecipeError, match=r"data\.root=.*nothing is no folder"):
        open_dataset(settings(tmp_path / "nothing"))
    with pytest.raises(RecipeError, match=r"set data\.root, or SURGERY_DATA"):
        open_dataset(DataSettings(name="shards"))
    monkeypatch.setenv("SURGERY_DATA", str(write(tmp_path)))
    assert len(open_dataset(DataSettings(name="shards")).train) == 12
