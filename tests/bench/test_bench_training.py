import multiprocessing
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

import finetune
from surgery.bench import training as bench
from surgery.bench.training import TrainingResult, bench_training
from surgery.cli.main import main
from surgery.core.timing import Timing
from surgery.training import load_recipe
from surgery.training.trainer import BatchTooLargeError, Training

SMALL = [
    "model.kwargs={num_classes: 10, channels: [8, 8, 8, 8], layers: [1, 1, 1, 1]}",
    "data.batch_size=8",
    "data.image_size=16",
]


def result(output, *more, network=SMALL):
    recipe = load_recipe(finetune.QUICKSTART, [f"output={output}", *network, *more])
    return bench_training(recipe, seconds=0.05)


def check(measured, stage):
    assert measured.stage == stage
    assert set(measured.timing.seconds) == {"trainer", "bare"}
    assert measured.timing.ratio("bare", "trainer")[0] == pytest.approx(
        measured.rate("trainer") / measured.rate("bare")
    )
    assert 0 < measured.waiting < 1


def test_command_prints_both_rates_and_their_quotient_and_writes_nothing_else(tmp_path, capsys):
    record = tmp_path / "RESULTS.md"
    settings = [f"output={tmp_path / 'out'}", *SMALL]
    options = ["--seconds", "0.05", "--record", str(record)]
    assert main(["bench", "--train", str(finetune.QUICKSTART), *settings, *options]) == 0
    out = capsys.readouterr().out
    assert "baseline, batch 8: " in out
    rates = [float(re.search(rf"^{name} +([\d.]+)", out, re.M).group(1)) for name in ("trainer", "bare loop")]
    ratio = float(re.search(r"trainer/bare: ([\d.]+) \[", out).group(1))
    assert ratio == pytest.approx(rates[0] / rates[1], rel=1e-3 / ratio + 0.1 / min(rates))  # rounding
    assert re.search(r"waiting for the loader: [\d.]+ % of the trainer's time \(data.workers=0\)", out)
    assert "waiting for the loader" in record.read_text()
    assert list(tmp_path.iterdir()) == [record]


def test_distilling_fine_tuning_of_the_converted_network(tmp_path):
    more = ["baseline.epochs=0", "finetune.block_weight=1.0", "finetune.ema_decay=0.9", "finetune.mixup=0.2"]
    # at 16 pixels a strided 3×3 convolution reads 1×1 maps, whose bfloat16 weight gradients torch may make NaN
    more += ["finetune.accumulate=2", "precision=bf16", "channels_last=true", "data.image_size=32"]
    check(result(tmp_path / "out", *more), "finetune")
    assert not (tmp_path / "out").exists()


def test_label_maps(tmp_path):
    for part in ("train", "val"):
        for kind, shape in (("images", (24, 24, 3)), ("masks", (24, 24))):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng(number).integers(0, 3, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / kind / f"{number}.png")
    data = ["data.name=segmentation_folder", f"data.root={tmp_path}", "data.classes=3", "data.batch_size=2"]
    backbone = "backbone: resnet26, backbone_kwargs: {channels: [8, 8, 8, 8], layers: [1, 1, 1, 1]}"
    network = [
        *data,
        "data.image_size=32",
        "model.name=pspnet",
        f"model.kwargs={{num_classes: 3, width: 8, {backbone}}}",
    ]
    check(result(tmp_path / "out", network=network), "baseline")


def test_workers_stand_still_while_the_bare_loop_runs(tmp_path, monkeypatch):
    real, sent = bench._Loading._send, []

    def recorded(loading, name):
        sent.append((len(loading.workers), name))
        real(loading, name)

    monkeypatch.setattr(bench._Loading, "_send", recorded)
    measured = result(tmp_path / "out", "data.workers=2")
    check(measured, "baseline")
    assert measured.steps >= 2
    untimed = 2
    assert sent == [(2, "SIGSTOP"), (2, "SIGCONT")] * (untimed + len(measured.timing.seconds["bare"]))


def test_workers_go_on_after_an_error_in_the_bare_loop():
    process = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
    process.start()
    with pytest.raises(KeyboardInterrupt), bench._Loading([process]).paused():
        raise KeyboardInterrupt
    process.terminate()  # one that stands still would not end by this
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


def test_bare_loop_takes_steps_of_a_copy(tmp_path):
    recipe = load_recipe(finetune.QUICKSTART, [f"output={tmp_path}", *SMALL, "baseline.accumulate=2"])
    setup = bench._set_up(recipe, bench.Accelerator())
    before = {name: value.clone() for name, value in setup.network.state_dict().items()}
    steps = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        step = bench._bare(setup)
        for _ in range(4):
            step()
    finally:
        hook.remove()
    assert len(steps) == 2
    assert all(torch.equal(value, before[name]) for name, value in setup.network.state_dict().items())


def test_what_is_printed():
    timing = Timing({"trainer": [0.5, 0.5, 0.5], "bare": [0.4, 0.4, 0.4]})
    text = str(TrainingResult("baseline", 10, 2, timing, 0.125, 3, "cpu"))
    assert re.search(r"^trainer +40\.0 +250\.00 ms$", text, re.M)
    assert re.search(r"^bare loop +50\.0 +200\.00 ms$", text, re.M)
    assert "trainer/bare: 0.800 [0.800 0.800]\nwaiting for the loader: 12.5 % of the trainer's time" in text


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("no/such.yaml", [], "there is no recipe 'no/such.yaml'"),
        (None, ["resnet50"], "'resnet50': --train takes its network from the recipe"),
        (None, ["finetune.epoch=3"], "did you mean 'epochs'"),
        (None, ["finetune.lr=[1"], "no YAML value"),
        (None, ["baseline.epochs=0", "finetune.epochs=0"], "no training to time"),
        (None, ["model.kwargs.num_classes=7"], "data digits has 10 classes"),
        (None, ["--batch=8"], "--batch: not with --train"),
        (None, ["--op"], "--op: not with --train"),
        (None, ["--seconds", "0"], "--seconds 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(recipe, more, message, capsys):
    assert main(["bench", "--train", recipe or str(finetune.QUICKSTART), *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_batch_that_does_not_fit_is_one_line(tmp_path, monkeypatch, capsys):
    def too_large(*arguments):
        raise BatchTooLargeError("needs more memory than there is")

    monkeypatch.setattr(Training, "_step", too_large)
    settings = [f"output={tmp_path / 'out'}", *SMALL]
    assert main(["bench", "--train", str(finetune.QUICKSTART), *settings]) == 2
    assert "surgery: needs more memory than there is\n" in capsys.readouterr().err
