"""Which images are looked at, and what class they belong to."""

import pytest
import torch

from surgery.explanation.explained_images import read_images
from tests.explanation.networks import preprocessing, write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def test_images_are_drawn_in_turn_from_every_class(folder):
    images = read_images([folder], preprocessing(), 5)
    assert images.labels == ("ant", "bee", "cat", "ant", "bee")
    assert len(set(images.files)) == 5
    assert images.tensors.shape == (5, 3, 32, 32)
    torch.testing.assert_close(images.pixels, images.tensors * 0.25 + 0.5)


def test_the_seed_decides_which(folder):
    drawn = {seed: read_images([folder], preprocessing(), 2, seed).files for seed in range(8)}
    assert drawn[3] == read_images([folder], preprocessing(), 2, 3).files
    assert len(set(drawn.values())) > 1


def test_files_have_the_class_of_their_folder_where_the_network_knows_it(folder, tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes((folder / "cat" / "1.png").read_bytes())
    assert read_images([folder / "cat" / "1.png"], preprocessing(), 5).labels == ("cat",)
    assert read_images([folder / "cat"], preprocessing(), 2).labels == ("cat", "cat")
    assert read_images([file, tmp_path], preprocessing(), 5).labels == ("",)


def test_the_held_out_part_of_a_data_set_is_taken(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        write_images(tmp_path / part, 1)
    images = read_images([tmp_path], preprocessing(), 9)
    assert images.labels == ("ant", "bee", "cat")
    assert all("val" in file for file in images.files)


def test_no_image_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"images=\[\]"):
        read_images([], preprocessing(), 5)
    with pytest.raises(FileNotFoundError, match="no image"):
        read_images([tmp_path], preprocessing(), 5)


def test_a_missing_path_is_an_error_even_where_it_is_not_drawn(folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png' does not exist"):
        read_images([folder, folder / "nowhere.png"], preprocessing(), 1)


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png' is no image"):
        read_images([tmp_path], preprocessing(), 5)
