"""``eval`` and ``predict``."""

from PIL import Image

import surgery
from surgery.vision.preprocessing import Preprocessing
from tests.cli.command_line import run
from tests.models.test_pspnet import SMALL
from tests.training.test_saliency_datasets import objects


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


def test_eval_and_predict_of_saliency(capsys, tmp_path):
    data, file, out_folder = objects(tmp_path / "data"), tmp_path / "m.safetensors", tmp_path / "maps"
    out_folder.mkdir()
    preprocessing = Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3, interpolation="bilinear")
    model, kwargs = surgery.create("pspnet", **{**SMALL, "num_classes": 1}), {**SMALL, "num_classes": 1}
    surgery.save(model, file, source="pspnet", kwargs=kwargs, preprocessing=preprocessing)
    status, out, err = run(capsys, "eval", str(file), str(data))
    assert status == 0, err
    for name in ("max F ", "adaptive F ", "MAE ", " S ", "mean E ", "adaptive E ", "(%) of 3 images"):
        assert name in out
    image = data / "test" / "images" / "1.png"
    status, out, err = run(capsys, "predict", str(file), str(image), "--out", str(out_folder))
    assert status == 0, err
    assert f"{out_folder / '1.saliency.png'}  " in out
    with Image.open(out_folder / "1.saliency.png") as written, Image.open(image) as photograph:
        assert (written.mode, written.size) == ("L", photograph.size)
    assert "looks at the whole image once" in run(capsys, "eval", str(file), str(data), "--flip")[2]
    assert "looks at the whole image once" in run(capsys, "predict", str(file), str(image), "--window", "9")[2]
    assert "does not exist" in run(capsys, "predict", str(file), str(tmp_path / "no.png"), "--out", str(tmp_path))[2]
    assert "there is no folder" in run(capsys, "eval", str(file), str(tmp_path))[2]
