"""Options of methods on the command line: how much stays, and which images a method looks at."""

import re

import pytest
import torch
from PIL import Image

import surgery
from surgery.cli.main import main
from surgery.transforms.history import history
from tests.cli.command_line import run

KWARGS = ["--kwargs", '{"num_classes": 3, "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}']
SMALL = ["cifar_resnet", *KWARGS, "--input-size", "3,32,32"]


@pytest.fixture
def folder(tmp_path):
    """Four images in each of three class folders."""
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            noise = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(noise.numpy()).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def widths(text):
    return {name: (int(a), int(b)) for name, a, b in re.findall(r"^(\S+) .*?(\d+) → (\d+)", text, re.MULTILINE)}


def macs(path):
    return surgery.cost(surgery.load(path), (3, 32, 32)).macs


def test_macs_and_params_are_shares(capsys, tmp_path):
    original = surgery.create("cifar_resnet", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    whole = surgery.cost(original, (3, 32, 32))
    for option in ("macs", "params"):
        file = tmp_path / f"{option}.safetensors"
        status, out, err = run(capsys, "convert", *SMALL, "--method", "l1", f"--{option}", "0.6", "--out", str(file))
        assert status == 0, err
        assert "wrote" in out
        left = getattr(surgery.cost(surgery.load(file), (3, 32, 32)), option)
        assert left == pytest.approx(0.6 * getattr(whole, option), rel=0.03)


def test_keep_is_a_share_or_shares_by_pattern(capsys):
    status, everywhere, err = run(capsys, "plan", *SMALL, "--method", "l1", "--keep", "0.5")
    assert status == 0, err
    assert all(after == before // 2 for before, after in widths(everywhere).values())
    arguments = ["--method", "random", "--keep", "layer3*conv1=0.5,layer4*conv1=0.25", "--option", "seed=3"]
    status, out, err = run(capsys, "plan", *SMALL, *arguments)
    assert status == 0, err
    assert {name.split(".")[0]: after / before for name, (before, after) in widths(out).items()} == {
        "layer3": 0.5,
        "layer4": 0.25,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "l1", "--macs", "x"], "macs='x': a share, such as 0.7, is needed"),
        (["--method", "l1", "--macs", "1.5"], "macs=1.5: a share above 0 and up to 1 is needed"),
        (["--method", "l1", "--keep", "layer9=0.5"], "layer9"),
        (["--method", "l1"], "how much stays is not said: macs=0.7"),
        (["--method", "pix", "--macs", "0.7"], "option of method 'pix'='macs': one of 'zeta'"),
        (["--method", "l1", "--zeta", "4"], "option of method 'l1'='zeta': one of 'keep', 'macs', 'params'"),
        (["--method", "l1", "--macs", "0.7", "--head", "pool"], "option of method 'l1'='head': one of 'keep'"),
        (["--method", "taylor", "--macs", "0.7"], "needs labelled images: --images FOLDER with CLASS/* is needed"),
        (["--method", "reconstruction", "--macs", "0.7"], "needs images: --images FOLDER is needed"),
        (["--method", "sfvr", "--macs", "0.7", "--images", "/nowhere"], "--images /nowhere: there is no such folder"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_what_cannot_be_is_one_line(capsys, tmp_path, command, arguments, message):
    out = ["--out", str(tmp_path / "m.safetensors")] if command == "convert" else []
    status, printed, err = run(capsys, command, *SMALL, *arguments, *out)
    assert (status, printed) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "m.safetensors").exists()


def test_a_plan_names_what_stays_and_few_of_many_layers(capsys):
    _, out, _ = run(capsys, "plan", "test_vit", "--method", "l1", "--keep", "patch_embed=0.5,blocks.0.mlp.fc1=0.25")
    assert "l1, keep patch_embed=0.5,blocks.0.mlp.fc1=0.25, recorded at 3×160×160" in out
    assert widths(out) == {"patch_embed.proj": (64, 32), "blocks.0.mlp.fc1": (192, 48)}
    assert "with blocks.0.attn.proj, blocks.0.mlp.fc2, blocks.1.attn.proj and 9 more" in out


def test_images_without_labels_and_with(capsys, folder):
    for method in ("sfvr", "reconstruction", "taylor"):
        arguments = ["plan", *SMALL, "--method", method, "--macs", "0.7", "--images", str(folder)]
        status, out, err = run(capsys, *arguments)
        assert status == 0, err
        assert f"{method}, macs 0.7, recorded at 3×32×32" in out
        assert widths(out)
        status, _, err = run(capsys, *arguments, "--image-count", "0")
        assert status == 2
        assert "--image-count 0: at least 1 is needed" in err


def test_class_folders_must_fit_the_model(capsys, folder):
    (folder / "ant").rename(folder / "bee" / "ant")
    status, _, err = run(capsys, "plan", *SMALL, "--method", "taylor", "--macs", "0.7", "--images", str(folder))
    assert status == 2
    assert "2 class folders, the model 3 outputs" in err


@pytest.mark.parametrize("method", ["l1", "sfvr", "reconstruction", "taylor"])
def test_images_to_calibrate_with_are_looked_at_too(capsys, tmp_path, folder, method):
    file = tmp_path / "m.safetensors"
    arguments = ["convert", *SMALL, "--method", method, "--macs", "0.7", "--calibrate", str(folder), "--out", str(file)]
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    assert "wrote" in out
    assert history(surgery.load(file))[0].type == "narrow"


def test_bench_prunes_too(capsys, folder):
    arguments = ["--method", "taylor", "--macs", "0.7", "--images", str(folder), "--seconds", "0.1", "--batch", "1"]
    status, out, err = run(capsys, "bench", *SMALL, *arguments)
    assert status == 0, err
    assert "cifar_resnet" in out


def test_help_says_which_methods_have_an_option(capsys):
    for command in ("plan", "convert", "bench"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = re.sub(r"(?<=\w)- (?=\w)", "-", " ".join(capsys.readouterr().out.split()))  # where a line ended
        assert "share of the MACs that stays: 0.7 (" in text
        pruning, squeezing = (
            re.search(rf"{option}.*?\((.*?)\)", text).group(1) for option in ("stays: 0.7", "such as 4,")
        )
        assert {"l1", "random", "sfvr", "taylor"} <= set(pruning.split(", "))
        assert {"dwp", "pix", "squeeze-conv"} <= set(squeezing.split(", "))
        assert "random: rule, normalise, round_to, least, least_share, steps, seed" in text
