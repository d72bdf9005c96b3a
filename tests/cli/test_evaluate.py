"""``eval`` and ``predict``."""

from PIL import Image

import surgery
from surgery.vision.preprocessing import Preprocessing
from tests.cli.command_line import run


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
