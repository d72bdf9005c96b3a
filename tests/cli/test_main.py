import argparse

import pytest
import torch
from PIL import Image

import finetune
import surgery
from surgery.__main__ import main, parser
from surgery.vision.preprocessing import Preprocessing


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_plan(capsys):
    status, out, _ = run(capsys, "plan", "resnet50", "--zeta", "layer3=8,layer4=4", "--exclude", "layer1")
    assert status == 0
    assert "13 converted" in out
    assert "1024 → 128" in out


def test_convert_then_check_then_cost_then_convert_again(capsys, tmp_path):
    file = str(tmp_path / "m.safetensors")
    kwargs = ["--kwargs", '{"num_classes": 3}']
    status, out, _ = run(capsys, "convert", "resnet26", *kwargs, "--zeta", "4", "--option", "tau=1", "--out", file)
    assert status == 0
    assert "wrote" in out
    status, out, _ = run(capsys, "load-check", file)
    assert status == 0
    assert "made from timm/resnet26 {'num_classes': 3}; 8 edits change 8 modules" in out
    status, out, _ = run(capsys, "cost", file, "--input-size", "3,64,64")
    assert status == 0
    assert "PiX" in out
    again = str(tmp_path / "again.safetensors")
    assert run(capsys, "convert", file, "--mode", "prune", "--out", again)[0] == 0
    assert "edits" in run(capsys, "load-check", again)[1]


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
    methods = [edit.method for edit in surgery.load(tmp_path / "m.safetensors").surgery_edits]
    assert methods[0] == "match"
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


def test_eval_and_predict(capsys, tmp_path):
    file, folder = tmp_path / "m.safetensors", tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (40, 50), (200, 30, 30)).save(folder / name / "0.png")
    model = surgery.create("resnet18", num_classes=2)
    surgery.save(model, file, preprocessing=Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, classes=("cat", "dog")))
    status, out, err = run(capsys, "eval", str(file), str(folder))
    assert (status, out.split(" of ")[0]) == (0, "top-1 50.00 %, top-5 100.00 %"), err
    status, out, err = run(capsys, "predict", str(file), str(folder / "cat" / "0.png"), str(folder / "dog" / "0.png"))
    assert status == 0, err
    assert out.count("cat ") == out.count("dog ") == 2
    assert run(capsys, "predict", str(file), str(tmp_path / "no.png"))[0] == 2
    assert "there is no folder" in run(capsys, "eval", str(file), str(tmp_path / "nowhere"))[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "resnet5"], "there is no model 'resnet5' in timm"),
        (["plan", "resnet50", "--zeta", "2.5"], "zeta=2.5"),
        (["plan", "resnet50", "--zeta", "x"], "zeta='x'"),
        (["plan", "resnet50", "--mode", "sqeeze"], "did you mean 'squeeze'"),
        (["plan", "resnet50", "--option", "tau"], "KEY=VALUE is needed"),
        (["load-check", "nothing.safetensors"], "does not exist"),
        (["cost", "resnet18", "--input-size", "4,64,64"], "fails on an input of shape"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.startswith("surgery: ")


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


def test_random_weights_are_said_to_be_so(capsys, tmp_path):
    file = str(tmp_path / "m.safetensors")
    kwargs = ["--kwargs", '{"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}']
    status, _, err = run(capsys, "convert", "resnet26", *kwargs, "--input-size", "32", "--out", file)
    assert status == 0
    assert err == (
        "surgery: the weights of resnet26 are random, and so are those of the file; --pretrained downloads trained "
        "ones, and a file that surgery wrote may stand in place of the name\n"
    )
    assert run(capsys, "convert", file, "--mode", "prune", "--out", str(tmp_path / "n.safetensors"))[2] == ""
    assert run(capsys, "plan", "resnet26", *kwargs)[2] == ""


def test_projections_are_warned_of_once(capsys, tmp_path):
    arguments = ["mobilenetv2_035", "--input-size", "64"]
    _, out, _ = run(capsys, "plan", *arguments)
    assert out.count("note: 10 of the 10 sites are projections of inverted bottlenecks") == 1
    _, _, err = run(capsys, "convert", *arguments, "--out", str(tmp_path / "m.safetensors"))
    assert err.count("surgery: warning: 10 of the 10 sites are projections of inverted bottlenecks") == 1
    assert "--projections none" in err


@pytest.mark.parametrize("size", ["48", "48,48", "3,48,48"])
def test_image_sizes(capsys, size):
    assert "input 3×48×48" in run(capsys, "cost", "test_resnet", "--input-size", size)[1]


def subcommands(made):
    return next(action for action in made._actions if isinstance(action, argparse._SubParsersAction)).choices


def test_every_help(capsys):
    programs = [[], *([name] for name in subcommands(parser()))]
    calls = [(main, [*name, "--help"], "usage: python -m surgery") for name in programs]
    calls.append((finetune.main, ["--help"], "usage: finetune.py"))
    for program, arguments, usage in calls:
        with pytest.raises(SystemExit) as stopped:
            program(arguments)
        assert stopped.value.code == 0
        assert usage in capsys.readouterr().out


def test_a_folder_of_a_models_name_is_not_taken_for_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert run(capsys, "cost", "resnet18", "--input-size", "32")[0] == 0
    assert "is a folder" in run(capsys, "cost", str(tmp_path / "resnet18"))[2]


@pytest.mark.parametrize(
    "arguments", [["cost", "resnet18", "--input-size", "big"], ["plan", "resnet18", "--kwargs", "[1]"]]
)
def test_arguments_that_do_not_parse(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ('{"pretrained": true}', "--kwargs holds pretrained=True: use --pretrained, or leave it out"),
        ('{"pretrained": false}', "--kwargs holds pretrained=False: use --pretrained, or leave it out"),
        ('{"checkpoint_path": "w.pth"}', "; --pretrained gives it those of its builder"),
    ],
)
def test_weights_come_by_their_own_option(capsys, kwargs, message):
    status, out, err = run(capsys, "cost", "resnet18", "--kwargs", kwargs)
    assert (status, out) == (2, "")
    assert message in err


def test_a_file_is_one_for_all_that_ask(capsys, tmp_path, monkeypatch):
    """A folder's name that only looks like a model's is loaded, and so is never said to have random weights."""
    monkeypatch.setattr(surgery, "load", lambda name: surgery.create("resnet26", channels=[8, 8, 8, 8]))
    arguments = ["--input-size", "32", "--out", str(tmp_path / "m.safetensors")]
    status, _, err = run(capsys, "convert", str(tmp_path), *arguments)
    assert (status, err) == (0, "")


def test_an_output_that_is_closed_is_no_error(capsys, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(surgery, "cost", closed)
    assert run(capsys, "cost", "test_resnet") == (0, "", "")


@pytest.fixture
def no_images(monkeypatch):
    def made(*_, **__):
        raise AssertionError("images are made")

    monkeypatch.setattr(surgery, "synthetic_images", made)
    monkeypatch.setattr("surgery.__main__.folder_batches", made)


@pytest.mark.parametrize("images", [["--synthetic"], ["--calibrate", "."]])
@pytest.mark.usefixtures("no_images")
def test_no_images_are_made_in_vain(capsys, tmp_path, monkeypatch, images):
    out = ["--out", str(tmp_path / "m.safetensors")]
    assert run(capsys, "convert", "resnet18", "--input-size", "32", *images, *out)[0] == 3
    monkeypatch.setattr("surgery.core.extras._is_installed", lambda package: package != "scipy")
    status, _, err = run(capsys, "convert", "resnet26", "--input-size", "32", *images, *out)
    assert status == 2
    assert f"{images[0]} needs scipy: pip install 'surgery[calibrate]'" in err
