"""Images that cannot be read, before a training meets them."""

import json

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

import finetune
from surgery.training import image_scan
from surgery.training.datasets import open_dataset
from surgery.training.image_scan import UnreadableImagesError, check_data, check_headers, leave_out_unreadable
from surgery.training.recipe import DataSettings, RecipeError
from tests.training.test_datasets import SETTINGS as CIFAR
from tests.training.test_datasets import cifar
from tests.training.test_segmentation_datasets import SETTINGS as PIXELS
from tests.training.test_segmentation_datasets import street


def photographs(root, parts=("train", "val")):
    """Four images of each of two classes in each part."""
    generator = np.random.default_rng(0)
    for part in parts:
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(4):
                pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def cut(path):
    """Take a file's last bytes; its header stays whole."""
    path.write_bytes(path.read_bytes()[:-60])


def folder(root, **more):
    return DataSettings(**{"name": "folder", "root": str(root), "image_size": 16, **more})


def test_a_damaged_header_is_an_error_at_the_start(tmp_path):
    root = photographs(tmp_path / "data")
    for index in range(2):
        (root / "train" / "dog" / f"{index}.png").write_bytes(b"no image")
    settings = folder(root)
    with pytest.raises(UnreadableImagesError, match=r"2 of 8 images in train.*dog/0\.png.*dog/1\.png.*--check-data"):
        check_headers(open_dataset(settings), Accelerator())


def small_job(root, output, *more):
    """Arguments of a job that takes seconds, on two classes of :func:`photographs`."""
    network = "model.kwargs={num_classes: 2, channels: [8, 8, 8, 8], layers: [1, 1, 1, 1]}"
    few = ["data.image_size=16", "data.batch_size=4", "baseline.epochs=1", "finetune.epochs=1", "surgery.calibrate=0"]
    return [f"data.root={root}", "data.name=folder", network, f"output={output}", *few, *more]


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
@pytest.mark.parametrize("part", ["train", "val"])  # a batch of either is rehearsed
def test_the_job_ends_with_that_line_before_it_trains(tmp_path, capsys, how, part):
    root = photographs(tmp_path / "data")
    for index in (1, 2):
        (root / part / "cat" / f"{index}.png").write_bytes(b"")
    assert finetune.main([*how, *small_job(root, tmp_path / "out")]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("finetune.py"))
    assert f"2 of 8 images in {'train' if part == 'train' else 'test'} cannot be read" in line
    assert "cat/1.png" in line
    assert "data.skip_unreadable=true leaves them out" in line
    assert not (tmp_path / "out").exists()


def test_a_job_and_its_rehearsal_leave_out_the_same(tmp_path, capsys):
    root, output = photographs(tmp_path / "data"), tmp_path / "out"
    for path in ((root / "train" / "cat" / "1.png"), (root / "val" / "dog" / "0.png")):
        cut(path)
    settings = small_job(root, output, "data.skip_unreadable=true")
    assert finetune.main(["--dry-run", *settings]) == 0
    out = capsys.readouterr().out
    assert "a batch: (4, 3, 16, 16)" in out
    assert "will leave out images that cannot be read" in out
    assert not output.exists()
    assert finetune.main(settings) == 0
    assert "test: 1 of 8 images left out" in capsys.readouterr().out


def test_images_that_are_left_out_count_for_calibration(tmp_path, capsys):
    root = photographs(tmp_path / "data")
    cut(root / "train" / "cat" / "1.png")
    assert finetune.main(small_job(root, tmp_path / "out", "data.skip_unreadable=true", "surgery.calibrate=8")) == 2
    assert "surgery.calibrate=8: at most the 7 training images" in capsys.readouterr().err


def test_a_rehearsal_of_files_most_of_which_are_damaged(tmp_path, capsys):
    root = photographs(tmp_path / "data")
    for path in (root / "train").rglob("*.png"):
        cut(path)
    assert finetune.main(["--dry-run", *small_job(root, tmp_path / "out", "data.skip_unreadable=true")]) == 2
    assert "more than half" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": "STAMP", "unreadable": {"train": [[0]]}}'])
def test_a_damaged_list_is_made_again(tmp_path, monkeypatch, content):
    root = photographs(tmp_path / "data")
    cut(root / "train" / "cat" / "0.png")
    monkeypatch.setattr(image_scan, "_stamp", lambda files: "STAMP")
    (tmp_path / "readable.json").write_text(content)
    settings = folder(root, skip_unreadable=True)
    assert len(leave_out_unreadable(open_dataset(settings), settings, Accelerator(), tmp_path).train) == 7
    assert json.loads((tmp_path / "readable.json").read_text())["unreadable"]["train"][0][0] == 0


def test_check_data_of_small_images_lists_all_of_both_parts(tmp_path, capsys):
    parts = cifar(tmp_path) / "cifar10"
    for label in range(6):
        (parts / "train" / f"class{label}" / "0.png").write_bytes(b"no image")
    Image.new("RGB", (16, 16)).save(parts / "test" / "class1" / "1.png")
    for more in ([], ["data.skip_unreadable=true"]):
        assert finetune.main(["--check-data", "data.name=cifar10", f"data.root={tmp_path}", *more]) == 2
        out = capsys.readouterr().out
        assert [f"train/class{label}/0.png" in out for label in range(7)] == [True] * 6 + [False]
        assert "train: 20 images, 6 of them unreadable" in out
        assert "test: 20 images, 1 of them unreadable" in out
        assert "16×16, 32×32 is needed" in out


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("parts", [("train", "val"), ("",)])
def test_unreadable_ones_are_left_out_by_key_and_counted_once(tmp_path, capsys, monkeypatch, workers, parts):
    root, output = photographs(tmp_path / "data", parts), tmp_path / "out"
    output.mkdir()
    cut(root / parts[0] / "dog" / "1.png")
    settings = folder(root, skip_unreadable=True, workers=workers, holdout=0.0 if len(parts) == 2 else 0.25)
    before = open_dataset(settings)
    data = leave_out_unreadable(before, settings, Accelerator(), output)
    count = len(data.train) + len(data.test)
    assert count == len(before.train) + len(before.test) - 1
    assert all(data.train[index][1] in (0, 1) for index in range(len(data.train)))
    assert "1 of " in (output_text := capsys.readouterr().out)
    assert "dog/1.png" in output_text
    monkeypatch.setattr(image_scan, "_unreadable", None)  # nothing is decoded a second time
    assert len(leave_out_unreadable(before, settings, Accelerator(), output).train) == len(data.train)


def test_other_files_are_decoded_again(tmp_path):
    root, output = photographs(tmp_path / "data"), tmp_path / "out"
    output.mkdir()
    settings = folder(root, skip_unreadable=True)
    assert len(leave_out_unreadable(open_dataset(settings), settings, Accelerator(), output).test) == 8
    cut(root / "val" / "cat" / "0.png")
    assert len(leave_out_unreadable(open_dataset(settings), settings, Accelerator(), output).test) == 7
    (((index, reason),),) = (json.loads((output / "readable.json").read_text())["unreadable"]["test"],)
    assert (index, "cat/0.png" in reason) == (0, True)


def test_more_than_half_is_no_accident(tmp_path):
    root = photographs(tmp_path)
    for path in (root / "train").rglob("*.png"):
        cut(path)
    settings = folder(root, skip_unreadable=True)
    with pytest.raises(UnreadableImagesError, match="8 of 8 images in train.* and 5 more .*more than half"):
        leave_out_unreadable(open_dataset(settings), settings, Accelerator(), tmp_path)


def test_of_images_with_label_maps_both_files_count(tmp_path):
    street(street(tmp_path, "train", count=4), "val")
    cut(tmp_path / "train" / "images" / "0.png")
    cut(tmp_path / "train" / "masks" / "1.png")
    settings = DataSettings(root=str(tmp_path), skip_unreadable=True, **PIXELS)
    data = leave_out_unreadable(open_dataset(settings), settings, Accelerator(), tmp_path)
    assert [image.name for image, _ in data.train.pairs] == ["2.png", "3.png"]


def test_small_images_that_are_decoded_at_the_start(tmp_path, capsys):
    cifar(tmp_path)
    (tmp_path / "cifar10" / "train" / "class3" / "0.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImagesError, match=r"1 of 20 images in train cannot be read: .*class3/0\.png"):
        open_dataset(DataSettings(root=str(tmp_path), **CIFAR))
    settings = DataSettings(root=str(tmp_path), skip_unreadable=True, **CIFAR)
    data = leave_out_unreadable(open_dataset(settings), settings, Accelerator(), tmp_path)
    assert len(data.train) == len(data.train.labels) == 19


def test_only_for_files_in_folders(tmp_path):
    class Rows:
        def __len__(self):
            return 1

    settings = DataSettings(name="hfds/mine", skip_unreadable=True)
    data = open_dataset(DataSettings())
    object.__setattr__(data, "train", Rows())
    with pytest.raises(RecipeError, match=r"skip_unreadable=true: not for data\.name=hfds/mine"):
        leave_out_unreadable(data, settings, Accelerator(), tmp_path)


def test_headers_that_take_too_long_are_left_to_check_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_scan, "HEADERS_S", -1.0)
    monkeypatch.setattr(image_scan, "SAMPLE", 2)
    root = photographs(tmp_path)
    (root / "train" / "dog" / "3.png").write_bytes(b"")
    settings = folder(root)
    check_headers(open_dataset(settings), Accelerator())
    assert "--check-data reads all" in capsys.readouterr().out


def test_check_data_lists_every_file_with_its_reason(tmp_path, capsys):
    root = photographs(tmp_path)
    cut(root / "train" / "cat" / "3.png")
    (root / "val" / "dog" / "0.png").write_bytes(b"")
    settings = ["--check-data", f"data.root={root}", "data.name=folder", f"output={tmp_path / 'out'}"]
    assert finetune.main(settings) == 2
    out = capsys.readouterr().out
    for expected in ("cat/3.png", "dog/0.png", "train: 8 images, 1 of them", "test: 8 images, 1 of them"):
        assert expected in out
    assert not (tmp_path / "out").exists()
    assert finetune.main(["--check-data"]) == 0  # the quickstart's


def test_check_data_looks_at_labels_too(tmp_path, capsys):
    street(street(tmp_path, "train"), "val")
    settings = DataSettings(root=str(tmp_path), **{**PIXELS, "classes": 2})
    assert check_data(open_dataset(settings), settings, print) == 6
    assert "holds the value 2" in capsys.readouterr().out
