"""Damaged image files, and such as claim more pixels than there is memory for: one line, whatever reads them."""

import struct
import zlib

import pytest
from PIL import Image

import surgery
from surgery.cli.main import main
from surgery.vision.image_files import check_header, open_image
from surgery.vision.preprocessing import Preprocessing


def claiming(path, width, height):
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("read", [open_image, check_header])
def test_too_many_pixels(tmp_path, read):
    with pytest.raises(ValueError, match=r"bomb\.png' has too many pixels: .*3600000000.*MAX_IMAGE_PIXELS"):
        read(claiming(tmp_path / "bomb.png", 60_000, 60_000))


def test_a_header_is_read_without_its_pixels(tmp_path):
    path = tmp_path / "cut.png"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:-40])
    check_header(path)
    with pytest.raises(ValueError, match=r"cut\.png' is no image that can be read"):
        open_image(path)


@pytest.mark.parametrize("error", [struct.error("unpack"), ZeroDivisionError(), EOFError(), MemoryError(), KeyError(1)])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png")

    def fails(*arguments):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fails)
    with pytest.raises(ValueError, match=r"odd\.png' is no image that can be read: \w+"):
        open_image(tmp_path / "odd.png")


@pytest.mark.parametrize("command", ["eval", "predict", "convert"])
def test_a_bomb_in_a_folder_is_one_line(tmp_path, capsys, command):
    file, folder = str(tmp_path / "m.safetensors"), tmp_path / "images"
    model = surgery.create("timm/resnet26", num_classes=2, channels=[8, 8, 8, 8], layers=[1, 1, 1, 1])
    surgery.save(model, file, preprocessing=Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, classes=("a", "b")))
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / name / "0.png")
    bomb = claiming(folder / "a" / "bomb.png", 60_000, 60_000)
    out = tmp_path / "out.safetensors"
    arguments = {
        "eval": ["eval", file, str(folder)],
        "predict": ["predict", file, str(bomb)],
        "convert": ["convert", file, "--calibrate", str(folder), "--out", str(out)],
    }
    assert main(arguments[command]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("surgery:")]
    assert len(lines) == 1
    assert "bomb.png' has too many pixels" in lines[0]
    assert not out.exists()
