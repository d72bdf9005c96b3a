import math
import re

import pytest
import torch
from torch import nn

import surgery
from surgery.bench import Setting, bench_network, report
from surgery.bench.networks import Free, _slice_steps, with_free_sites
from surgery.cli.main import main
from surgery.core.timing import Timing
from surgery.methods.pix.layer import PiX
from tests.small_models import Net, narrowed_alone


def test_free_sites_give_what_the_sites_gave_once():
    model = surgery.convert(Net("module", "module")).eval()
    x = torch.randn(2, 3, 32, 32)
    free = with_free_sites(model, x)
    assert not any(isinstance(m, PiX) for m in free.modules())
    assert sum(isinstance(m, Free) for m in free.modules()) == sum(isinstance(m, PiX) for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(free(x), model(x))
    sliced = with_free_sites(model, x, sliced=True)
    assert sliced(x).shape == model(x).shape


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="no converted site"):
        with_free_sites(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4))


def test_what_another_method_put_in_is_free_whole():
    options = {"mode": "downscale", "zeta": 2, "insert": "*conv2", "input_size": 32}
    model = surgery.convert(Net("module", "module"), "squeeze-conv", **options).eval()
    x = torch.randn(2, 3, 32, 32)
    free, sliced = with_free_sites(model, x), with_free_sites(model, x, sliced=True)
    assert [type(block.conv2.squeeze) for block in free.blocks] == [Free, Free]
    with torch.no_grad():
        torch.testing.assert_close(free(x), model(x))
        half = [block.conv2.squeeze(x[:, :1].expand(-1, 4, -1, -1)) for block in sliced.blocks]
    assert [tuple(map_.shape) for map_ in half] == [(2, 2, 32, 32)] * 2


@pytest.mark.filterwarnings("ignore::surgery.core.errors.ConversionWarning")
def test_a_network_that_was_only_narrowed_has_no_floor(tmp_path):
    original, x = Net("module", "module"), torch.randn(1, 3, 32, 32)
    narrowed = narrowed_alone(original, zeta=8, input_size=32)
    assert with_free_sites(narrowed, x) is None
    timing = bench_network(Net("module", "module"), narrowed, Setting(), (3, 32, 32), seconds=0.05)
    assert set(timing.seconds) == {"original", "converted"}
    head, *_ = report.network_table([("net", Setting(), timing)]).splitlines()
    assert "converted/original" in head
    assert "free" not in head
    both = report.network_table([*rows(), ("narrowed", Setting(), timing)])
    assert both.splitlines()[-1].split()[-1] == "–"
    assert report.drawn([*rows(), ("narrowed", Setting(), timing)]).startswith(b"\x89PNG")
    assert report.drawn([("narrowed", Setting(), timing)]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [((8, 7, 7), (2, 4, 7), (2, 1)), ((8, 8, 8), (8, 8, 8), (1, 1)), ((8, 7, 7), (2, 3, 3), (3, 3))],
)
def test_slices_of_the_shape_of_what_they_stand_for(before, after, steps):
    given, output = torch.randn(2, *before), torch.randn(2, *after)
    assert _slice_steps(given, output) == steps
    assert Free(output, steps)(given).shape == output.shape


@pytest.mark.parametrize("after", [(9, 7, 7), (2, 5, 7), (2,)])
def test_what_no_slice_can_stand_for(after):
    assert _slice_steps(torch.randn(2, 8, 7, 7), torch.randn(2, *after)) is None


@pytest.mark.parametrize("setting", [Setting(2), Setting(2, training=True), Setting(1, dtype="bfloat16", threads=1)])
def test_network(setting):
    threads = torch.get_num_threads()
    original = Net("module", "module")
    timing = bench_network(original, surgery.convert(original), setting, (3, 32, 32), seconds=0.05)
    assert set(timing.seconds) == {"original", "converted", "free"}
    assert all(math.isfinite(v) and v > 0 for name in timing.seconds for v in timing.seconds[name])
    assert torch.get_num_threads() == threads
    assert original.training


def rows():
    timing = Timing({"original": [1.0, 1.1, 1.2], "converted": [0.8, 0.8, 0.9], "free": [0.7, 0.7, 0.7]})
    return [("net", Setting(), timing)]


def test_recorded_results_replace_their_own_and_keep_the_rest(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\n## By hand\nkept\n")
    report.record(path, "bench a", "M1", "first")
    report.record(path, "bench b", "M1", "other")
    report.record(path, "bench a", "M1", "second")
    report.record(path, "bench a", "M2", "elsewhere")
    text = path.read_text()
    assert "first" not in text
    assert [text.count(part) for part in ("second", "other", "elsewhere", "kept")] == [1, 1, 1, 1]
    assert len(re.findall("^## ", text, re.M)) == 4


def test_plot_is_a_picture():
    assert report.drawn(rows()).startswith(b"\x89PNG")
    assert b"<svg" in report.drawn(rows(), ".svg")


def test_command(tmp_path, capsys):
    common = ["--batch", "1", "--threads", "1", "--seconds", "0.1", "--input-size", "3,32,32"]
    table, picture = tmp_path / "r.md", tmp_path / "p.png"
    status = main(["bench", "resnet26", *common, "--record", str(table), "--plot", str(picture)])
    out = capsys.readouterr().out
    assert status == 0
    assert "converted/original" in out
    assert "PiX: " in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "python -m surgery bench resnet26 --batch 1 --threads 1" in table.read_text()
    assert str(tmp_path) not in table.read_text()


def test_command_on_a_file_times_what_the_file_was_made_from(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    surgery.save(surgery.convert(surgery.create("resnet26", num_classes=10)), path)
    assert main(["bench", str(path), "--batch", "1", "--seconds", "0.1", "--input-size", "3,32,32"]) == 0
    assert "converted/free" in capsys.readouterr().out


def test_command_on_a_file_of_another_method(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    model = surgery.create("test_resnet", num_classes=5)
    surgery.save(surgery.convert(model, "squeeze-conv", mode="downscale", zeta=2, input_size=32), path)
    assert main(["bench", str(path), "--batch", "1", "--seconds", "0.1", "--input-size", "3,32,32"]) == 0
    assert "converted/free" in capsys.readouterr().out


def test_command_on_a_network_without_sites(capsys):
    assert main(["bench", "resnet18"]) == 3
    assert "no site" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "name of a model, or --op"),
        (["bench", "--op", "--method", "squeeze-conv"], "'squeeze-conv' has no operator of its own; those with one: "),
        (["bench", "--op", "--method", "magic"], "method='magic': one of "),
        (["bench", "resnet26", "--run", "fast"], "mode='fast'"),
        (["bench", "resnet26", "--seconds", "0"], "--seconds 0"),
        (["bench", "resnet26", "--plot", "x.foo"], "'.foo': one of '.png'"),
        (["bench", "resnet26", "--record", "no/such.md"], "cannot write 'no/such.md'"),
    ],
)
def test_command_on_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
