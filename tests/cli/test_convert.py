"""``convert`` and what it writes."""

import numpy as np
import pytest
import torch
from PIL import Image

import surgery
from surgery.transforms.history import history
from tests.cli.command_line import run


def test_convert_then_check_then_cost_then_convert_again(capsys, tmp_path):
    file = str(tmp_path / "m.safetensors")
    kwargs = ["--kwargs", '{"num_classes": 3}']
    status, out, _ = run(capsys, "convert", "resnet26", *kwargs, "--zeta", "4", "--option", "tau=1", "--out", file)
    assert status == 0
    assert "wrote" in out
    status, out, _ = run(capsys, "load-check", file)
    assert status == 0
    assert "made from timm/resnet26 {'num_classes': 3}; 16 transforms change 8 modules" in out
    status, out, _ = run(capsys, "cost", file, "--input-size", "3,64,64")
    assert status == 0
    assert "PiX" in out
    again = str(tmp_path / "again.safetensors")
    assert run(capsys, "convert", file, "--mode", "prune", "--out", again)[0] == 0
    assert "transforms change" in run(capsys, "load-check", again)[1]


def test_convert_with_images_of_a_folder(capsys, tmp_path):
    for name in ("b/2.png", "a/1.jpg", "a/deeper/3.webp"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(
            0, 256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(len(name))
        )
        Image.fromarray(noise.numpy()).save(path)
    torch.manual_seed(0)
    kwargs = '{"num_classes": 3, "channels": [16, 24, 32, 48]}'
    model = ["resnet26", "--kwargs", kwargs, "--zeta", "4", "--input-size", "3,32,32"]
    status, out, err = run(
        capsys, "convert", *model, "--calibrate", str(tmp_path / "images"), "--out", str(tmp_path / "m.safetensors")
    )
    assert status == 0, err
    assert "wrote" in out
    methods = [transform.type for transform in history(surgery.load(tmp_path / "m.safetensors"))]
    assert methods[0] == "reorder"
    (tmp_path / "images" / "broken.png").write_text("no image")
    for folder, message in ((tmp_path / "images", "is no image that can be read"), (tmp_path / "none", "no image (")):
        status, _, err = run(
            capsys, "convert", *model, "--calibrate", str(folder), "--out", str(tmp_path / "n.safetensors")
        )
        assert status == 2
        assert message in err
        assert not (tmp_path / "n.safetensors").exists()


def test_convert_without_images(capsys, tmp_path):
    file = str(tmp_path / "m.safetensors")
    arguments = ["convert", "cifar_resnet", "--kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}']
    status, out, err = run(capsys, *arguments, "--synthetic", "--calibration-images", "4", "--out", file)
    assert status == 0, err
    assert "wrote" in out
    with pytest.raises(SystemExit):
        run(capsys, *arguments, "--synthetic", "--calibrate", str(tmp_path), "--out", file)


def test_nothing_to_convert_is_status_3_with_what_to_try(capsys, tmp_path):
    file = tmp_path / "m.safetensors"
    status, out, err = run(capsys, "convert", "resnet18", "--out", str(file))
    assert (status, out, file.exists()) == (3, "", False)
    assert "no site" in err
    assert "--mode downscale --zeta 2" in err
    assert len(err.splitlines()) == 1
    status, out, _ = run(capsys, "plan", "regnety_016")
    assert status == 0
    assert "--equal-width" in out
    assert run(capsys, "convert", "regnety_016", "--out", str(file), "--input-size", "64")[0] == 3
    assert run(capsys, "convert", "regnety_016", "--out", str(file), "--input-size", "64", "--equal-width")[0] == 0


def test_projections_are_warned_of_once(capsys, tmp_path):
    arguments = ["mobilenetv2_035", "--input-size", "64"]
    _, out, _ = run(capsys, "plan", *arguments)
    assert out.count("note: 10 of the 10 sites are projections of inverted bottlenecks") == 1
    _, _, err = run(capsys, "convert", *arguments, "--out", str(tmp_path / "m.safetensors"))
    assert err.count("surgery: warning: 10 of the 10 sites are projections of inverted bottlenecks") == 1
    assert "--projections none" in err


@pytest.fixture
def no_images(monkeypatch):
    def made(*_, **__):
        raise AssertionError("images are made")

    monkeypatch.setattr(surgery, "synthetic_images", made)
    monkeypatch.setattr("surgery.cli.convert.folder_batches", made)


@pytest.mark.parametrize("images", [["--synthetic"], ["--calibrate", "."]])
@pytest.mark.usefixtures("no_images")
def test_no_images_are_made_in_vain(capsys, tmp_path, monkeypatch, images):
    out = ["--out", str(tmp_path / "m.safetensors")]
    assert run(capsys, "convert", "resnet18", "--input-size", "32", *images, *out)[0] == 3
    monkeypatch.setattr("surgery.core.extras._is_installed", lambda package: package != "scipy")
    status, _, err = run(capsys, "convert", "resnet26", "--input-size", "32", *images, *out)
    assert status == 2
    assert f"{images[0]} needs scipy: pip install 'surgery[calibrate]'" in err


def image_folder(folder, count=24):
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return str(folder)


SMALL = ["cifar_resnet", "--kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}', "--input-size", "32"]


def test_a_mixture_is_found_calibrated_and_made_to_mimic(capsys, tmp_path):
    file, folder = tmp_path / "m.safetensors", image_folder(tmp_path / "images")
    mixture = ["--method", "auto", "--macs", "0.85", "--option", "finalists=1", "--option", 'methods=["pix"]']
    status, out, err = run(
        capsys, "convert", *SMALL, *mixture, "--calibrate", folder, "--mimic", "2", "--out", str(file)
    )
    assert status == 0, err
    assert "of the macs, counted" in out
    assert "18 images; 6 others judged" in out
    assert surgery.load(file)


def test_mimicry_needs_images(capsys, tmp_path):
    out = ["--out", str(tmp_path / "m.safetensors")]
    status, _, err = run(capsys, "convert", *SMALL, "--mimic", "5", *out)
    assert status == 2 and "--mimic 5: goes with --calibrate FOLDER" in err
    status, _, err = run(capsys, "convert", *SMALL, "--calibrate", str(tmp_path), "--mimic", "-1", *out)
    assert status == 2 and "steps=-1" in err
