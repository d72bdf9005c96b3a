"""How a training is run: what must not change its outcome, what makes it fit, what of it is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import finetune
import surgery
from surgery.training import load_recipe, run
from surgery.training import trainer as trainer_module
from surgery.training.classification_task import ImageClassification
from surgery.training.data_loading import make_loader
from surgery.training.datasets import open_dataset
from surgery.training.original_network import make_original
from surgery.training.recipe import RecipeError
from surgery.training.trainer import BatchTooLargeError, train
from surgery.training.training_spec import Execution, TrainingSpec
from surgery.training.training_state import TrainingState

ROOT = Path(__file__).parents[2]
SIZES = "num_classes: 10, channels: [8, 16, 32, 32]"
NETWORK = f"model.kwargs={{{SIZES}, layers: [1, 1, 1, 1]}}"
WITHOUT_BATCH_NORM = ["model.name=timm/nf_resnet26", f"model.kwargs={{{SIZES}, depths: [1, 1, 1, 1]}}"]
LIMITED = ["model.name=tests_limited", "baseline.epochs=1"]


@surgery.register_builder("tests_limited")
def limited(limit):
    """A network whose training needs more memory than there is for more than ``limit`` images."""
    network = timm.create_model("resnet26", num_classes=10, channels=(8, 16, 32, 32), layers=(1, 1, 1, 1))

    def check(module, inputs):
        if torch.is_grad_enabled() and len(inputs[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.register_forward_pre_hook(check)
    return network


@pytest.fixture(scope="module", autouse=True)
def _digits(tmp_path_factory):
    """Fewer of them than the quickstart's, for short epochs: 352 to learn from, 11 batches, and 128 to judge by."""
    root, bunch = tmp_path_factory.mktemp("digits"), load_digits()
    for index, (image, label) in enumerate(zip(bunch.images[:480], bunch.target, strict=False)):
        folder = root / ("train" if index < 352 else "val") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(folder / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_DIGITS", str(root))
        yield


def settings(output, *more):
    data = ["data.name=folder", f"data.root={os.environ['TESTS_DIGITS']}", "data.image_size=16", "data.batch_size=32"]
    job = [NETWORK, "baseline.epochs=2", "finetune.epochs=0", "surgery.calibrate=0"]
    return [f"output={output}", *data, *job, *more]


def recipe(output, *more):
    return load_recipe(finetune.QUICKSTART, settings(output, *more))


def train_baseline(output, *more):
    """A recipe's baseline alone: its network and its curve."""
    job_recipe = recipe(output, *more)
    data, baseline = open_dataset(job_recipe.data), job_recipe.baseline
    set_seed(job_recipe.seed)
    network = make_original(job_recipe, data.classes)
    loaders = make_loader(data.train, job_recipe.data, True), make_loader(data.test, job_recipe.data, False)
    execution = Execution(compile=job_recipe.compile, checkpoint_activations=job_recipe.checkpoint_activations)
    state = TrainingState(output / "state", {}, baseline.keep)
    spec = TrainingSpec(Accelerator(), ImageClassification(10), baseline, execution=execution)
    return train(spec, network, loaders, state)


def curve(output, name="original"):
    return json.loads((output / "results.json").read_text())["curves"][name][0]


def losses(output, name="original"):
    return [row["loss"] for row in curve(output, name)]


def weights(output, name="m"):
    return load_file(output / f"{name}.safetensors")


def same_bits(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def interrupt(monkeypatch, *steps):
    """Ctrl-C at these of all steps that are begun from now on."""
    real, calls = trainer_module.Training._step, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) in steps:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(trainer_module.Training, "_step", interrupted)


def test_two_batches_a_step_are_one_of_twice_the_size(tmp_path):
    constant = ["baseline.scheduler=step", "baseline.warmup_epochs=0", *WITHOUT_BATCH_NORM]
    one, whole = train_baseline(tmp_path / "one", *constant)
    two, parts = train_baseline(tmp_path / "two", "data.batch_size=16", "baseline.accumulate=2", *constant)
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], rel=1e-3)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_last_step_of_an_epoch_may_have_fewer_batches(tmp_path):
    plain = ["baseline.optimizer=sgd", "baseline.lr=0.1", "baseline.epochs=1", "baseline.warmup_epochs=0"]
    plain += ["baseline.scheduler=step", *WITHOUT_BATCH_NORM]
    one, _ = train_baseline(tmp_path / "one", "data.batch_size=352", *plain)
    parts, _ = train_baseline(tmp_path / "parts", "data.batch_size=32", "baseline.accumulate=16", *plain)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), parts.parameters(), strict=True))


IN_BATCHES = ["data.name=digits", "data.root=null", "data.padding=2", "data.hflip=0.5", "data.batch_size=130"]


@pytest.mark.parametrize("data", [[], [*IN_BATCHES, "baseline.scheduler=linear"]], ids=["one by one", "in batches"])
def test_interrupted_within_an_accumulation(data, tmp_path, monkeypatch):
    more = ["baseline.accumulate=3", "baseline.ema_decay=0.9", *data]  # 11 batches: 3, 3, 3, 2
    whole, history = train_baseline(tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        interrupt(patch, 3, 13)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train_baseline(tmp_path / "parts", *more, "baseline.save_minutes=0")
    parts, resumed = train_baseline(tmp_path / "parts", *more)
    assert history == resumed
    assert same_bits(whole.state_dict(), parts.state_dict())


def test_poly_learning_rate(tmp_path):
    more = ["baseline.scheduler=poly", "baseline.power=0.5", "baseline.warmup_epochs=0"]
    assert [row["lr"] for row in train_baseline(tmp_path, *more)[1]] == pytest.approx([0.002 * 0.5**0.5, 0])


def test_checkpointed_activations_change_nothing(tmp_path):
    stored, history = train_baseline(tmp_path / "kept")
    recomputed, losses = train_baseline(tmp_path / "again", "checkpoint_activations=true")
    assert history == losses
    assert same_bits(stored.state_dict(), recomputed.state_dict())  # running statistics too


def test_checkpointed_activations_of_another_library(tmp_path):
    overrides = ["model.name=torchvision/resnet18", "model.kwargs={num_classes: 10}", "checkpoint_activations=true"]
    with pytest.raises(RecipeError, match="checkpoint_activations=true: ResNet has no set_grad_checkpointing"):
        run(recipe(tmp_path, "baseline.epochs=0", *overrides))


@pytest.mark.slow
def test_compiled(tmp_path):
    more = ["baseline.epochs=1", "finetune.epochs=2", "finetune.ema_decay=0.9", "finetune.keep_best=true"]
    run(recipe(tmp_path / "eager", *more))
    run(recipe(tmp_path / "compiled", "compile=true", *more))  # and it is reloaded identical, or an error is raised
    for name in ("original", "converted"):
        assert losses(tmp_path / "compiled", name) == pytest.approx(losses(tmp_path / "eager", name), rel=0.02)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "compiled", "best").keys()


@pytest.mark.slow
def test_statistics_shared_by_cpus_are_refused(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *launcher, "finetune.py", *settings(tmp_path, "sync_bn=true")]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "finetune.py: sync_bn=true: torch's SyncBatchNorm needs GPUs; false is needed on CPUs" in done.stderr


def test_a_batch_too_large_says_what_would_fit(tmp_path, capsys):
    assert finetune.main(settings(tmp_path, *LIMITED, "model.kwargs={limit: 20}")) == 2
    error = capsys.readouterr().err
    assert "finetune.py: train: a batch of 32 images of 16×16 needs more memory than there is" in error
    assert "batch_size=16 with accumulate=2 learns the same, find_batch_size=true finds what fits" in error


def test_memory_that_the_cpu_does_not_have(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module.Training, "_step", lambda *arguments: torch.empty(1 << 55))
    with pytest.raises(BatchTooLargeError, match="a batch of 32 images"):
        train_baseline(tmp_path)


def test_finds_the_batch_that_fits_and_goes_on_with_it(tmp_path, capsys, monkeypatch):
    more = [*LIMITED, "model.kwargs={limit: 10}", "find_batch_size=true"]
    with monkeypatch.context() as patch:
        interrupt(patch, 17)  # the first two do not fit
        assert finetune.main(settings(tmp_path / "parts", *more, "baseline.save_minutes=0")) == 130
    out = capsys.readouterr().out
    assert "train: too large a batch; going on with 16 images, 2 batches a step" in out
    assert "train: too large a batch; going on with 8 images, 4 batches a step" in out
    assert json.loads((tmp_path / "parts" / "state" / "baseline" / "state.json").read_text())["progress"]["step"] == 12
    assert finetune.main(settings(tmp_path / "parts", *more, "find_batch_size=false")) == 0
    assert "too large" not in capsys.readouterr().out
    run(recipe(tmp_path / "given", *more, "data.batch_size=8", "baseline.accumulate=4"))
    assert same_bits(weights(tmp_path / "given"), weights(tmp_path / "parts"))
    assert curve(tmp_path / "given") == curve(tmp_path / "parts")


def test_a_batch_found_for_other_settings_is_forgotten(tmp_path):
    state, other = (TrainingState(tmp_path, {"data": {"batch_size": size}}) for size in (32, 24))
    assert state.fitting_batch(32, 1) == {"batch_size": 32, "accumulate": 1}
    state.remember_batch(16, 2)
    assert state.fitting_batch(32, 1) == {"batch_size": 16, "accumulate": 2}
    assert other.fitting_batch(24, 1) == {"batch_size": 24, "accumulate": 1}


def test_what_was_learnt_is_not_given_up_for_a_smaller_batch(tmp_path, monkeypatch):
    more = ["find_batch_size=true", "baseline.save_minutes=0"]
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        assert finetune.main(settings(tmp_path, *more)) == 130
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Training, "_step", lambda *arguments: torch.empty(1 << 55))
        with pytest.raises(BatchTooLargeError, match="a batch of 32 images"):
            run(recipe(tmp_path, *more))
    assert json.loads((tmp_path / "state" / "baseline" / "state.json").read_text())["progress"]["step"] == 4


def test_states_that_are_kept(tmp_path):
    train_baseline(tmp_path, "baseline.keep=3", "baseline.epochs=1", "baseline.save_minutes=0")
    folders = sorted(path.name for path in (tmp_path / "state").glob("*-*"))
    assert folders == ["0000-0000009", "0000-0000010", "0001-0000000"]


def test_goes_on_whatever_is_kept_and_however_often(tmp_path, monkeypatch):
    more = ["baseline.epochs=1", "baseline.save_minutes=0"]
    interrupt(monkeypatch, 9)
    assert finetune.main(settings(tmp_path, *more)) == 130
    assert finetune.main(settings(tmp_path, *more, "baseline.save_minutes=5", "baseline.keep=2")) == 0


def test_the_best_epoch_is_kept(tmp_path):
    rising = ["baseline.epochs=3", "finetune.epochs=3", "finetune.warmup_epochs=3", "finetune.lr=0.3"]
    for seed in range(6):  # until the last epoch is not the best, which rounding decides
        AcceleratorState._reset_state(reset_partial_state=True)
        output = tmp_path / str(seed)
        job_recipe = recipe(output, *rising, "finetune.keep_best=true", f"seed={seed}")
        run(job_recipe)
        accuracies = [row["accuracy"] for row in curve(output, "converted")]
        loader = make_loader(open_dataset(job_recipe.data).test, job_recipe.data, training=False)
        best = surgery.load(output / "best.safetensors")
        assert ImageClassification(10).evaluate(Accelerator(), best, loader) == pytest.approx(max(accuracies))
        if max(accuracies) > accuracies[-1]:
            return
    pytest.fail("the last epoch was the best of every training: it would have done")


def test_the_best_of_a_baseline_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="baseline.keep_best=true: best.safetensors is of the fine-tuning"):
        recipe(tmp_path, "baseline.keep_best=true")


def test_a_teacher_of_another_library(tmp_path):
    more = ["baseline.epochs=1", "finetune.epochs=1", "finetune.block_weight=1.0", "data.batch_size=176"]
    run(
        recipe(tmp_path, "model.name=torchvision/resnet50", "model.kwargs={num_classes: 10, width_per_group: 4}", *more)
    )
    assert not hasattr(surgery.load(tmp_path / "m.safetensors"), "pretrained_cfg")
