"""``surgery.mimic``: gradient steps towards the original, judged on images held out."""

import copy
import math

import pytest
import torch
from torch import nn

import surgery
from surgery.mimicry import MimicrySettings
from surgery.mimicry.augmenting import augmented
from surgery.mimicry.matching import Matching
from surgery.mimicry.pupil import Pupil
from surgery.mimicry.settings import RATES

SIZE = (3, 32, 32)


def images(count=48):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    network = surgery.create("cifar_resnet", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    with torch.no_grad():
        for _ in range(10):
            network.train()(images())
        network.fc.weight.mul_(20)  # answers that differ from image to image
    return network.eval()


def damaged(teacher):
    torch.manual_seed(0)
    model = surgery.convert(teacher, calibrate=images(), match=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return model


def test_it_comes_nearer_on_images_that_it_has_not_seen(teacher):
    model = damaged(teacher)
    report = surgery.mimic(model, teacher, images(), steps=40, batch_size=16, lr=3e-3, block_weight=1.0, progress=False)
    before, after = report.checks[0][1], min(kl for _, kl, _ in report.checks)
    assert after < 0.7 * before
    assert report.features == "layer4.0.act3" and not report.note
    assert (report.images, report.held) == (41, 7)
    assert report.kept in {step for step, _, _ in report.checks[1:]}
    for part in ("4 blocks, the output of 'layer4", "are kept", "lr 0.003"):
        assert part in str(report)
    assert report._repr_html_()


def test_statistics_of_the_batch_and_blocks_come_nearer_too(teacher):
    model = damaged(teacher)
    report = surgery.mimic(
        model, teacher, images(), steps=60, batch_size=16, lr=1e-2, batch_statistics=True, crop=1.0, progress=False
    )
    assert report.kept and len(report.blocks) == 4
    assert min(kl for _, kl, _ in report.checks) < report.checks[0][1]
    assert not any(module.training for module in model.modules())


def test_the_teacher_is_asked_in_eval_mode_and_stays_as_it_is(teacher):
    training = copy.deepcopy(teacher).train()
    reports = [
        surgery.mimic(damaged(teacher), own, images(), steps=2, batch_size=16, lr=1e-3, checks=1, progress=False)
        for own in (teacher, training)
    ]
    assert reports[0].checks == reports[1].checks
    assert training.training
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in training.state_dict().items())


def test_the_search_goes_on_to_a_rate_at_which_something_is_finite(teacher, monkeypatch):
    monkeypatch.setattr(Pupil, "_tried_at", lambda self, rate, progress: 1 - rate if rate < 2e-4 else math.inf)
    report = surgery.mimic(damaged(teacher), teacher, images(), steps=1, batch_size=16, progress=False)
    assert report.lr == max(rate for rate in RATES if rate < 2e-4)


def test_a_searched_rate_that_diverges_in_the_end_is_followed_by_a_lower_one(teacher, monkeypatch):
    monkeypatch.setattr("surgery.mimicry.pupil.RATES", (1e-3, 1e12))
    monkeypatch.setattr(Pupil, "_tried", lambda self, progress: [(1e12, 0.1)])
    model = damaged(teacher)
    report = surgery.mimic(model, teacher, images(), steps=4, batch_size=16, checks=1, progress=False)
    assert report.lr == 1e-3
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_the_weights_that_did_best_are_kept(teacher):
    model = damaged(teacher)
    held = MimicrySettings(steps=20, batch_size=16, lr=1e-3, checks=4, patience=4)
    report = surgery.mimic(model, teacher, images(), settings=held, progress=False)
    again = surgery.mimic(model, teacher, images(), steps=0, progress=False)
    assert again.checks[0][1] == pytest.approx(min(kl for _, kl, _ in report.checks), rel=1e-4)


def test_a_network_that_cannot_be_bettered_stays_as_it_was(teacher):
    model = copy.deepcopy(teacher)
    report = surgery.mimic(model, teacher, images(), steps=4, lr=0.01, checks=2, progress=False)
    assert report.kept == 0 and "no step was better" in str(report)
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_rate_that_is_far_too_high_is_named_and_changes_nothing(teacher):
    model = surgery.convert(teacher, match=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="lr=1e\\+12: the loss is not finite; a smaller one"):
        surgery.mimic(model, teacher, images(), steps=4, lr=1e12, checks=2, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("lr", [None, 0.05])  # in the search, in the training
def test_an_interruption_leaves_the_best_so_far(teacher, monkeypatch, lr):
    model = surgery.convert(teacher, calibrate=images(), match=False).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps = iter(range(6))

    def interrupted(self, batch, loss=Matching.loss):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(Matching, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        surgery.mimic(model, teacher, images(), steps=20, checks=1, lr=lr, batch_size=16, progress=False)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_neighbouring_rates_are_tried_until_one_is_worse(teacher):
    report = surgery.mimic(damaged(teacher), teacher, images(), steps=2, trial_steps=4, batch_size=16, progress=False)
    rates = [rate for rate, _ in report.tried]
    first = RATES.index(rates[0])
    assert len(rates) >= 2 and tuple(rates) == RATES[first : first + len(rates)]
    assert report.lr == min(report.tried, key=lambda pair: pair[1])[0]
    assert "rates tried" in str(report)


def test_it_is_the_same_every_time_and_leaves_all_else_alone(teacher):
    state = torch.random.get_rng_state()
    results = []
    for _ in range(2):
        model = damaged(teacher).train()
        model.conv1.weight.requires_grad_(False)
        torch.random.set_rng_state(state)
        surgery.mimic(model, teacher, images(), steps=3, batch_size=16, lr=1e-3, progress=False)
        assert model.training and not model.conv1.weight.requires_grad and model.fc.weight.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        results.append(model.state_dict())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_statistics_of_norms_follow_or_stay(teacher, batch_statistics):
    model = damaged(teacher)
    before = model.bn1.running_mean.clone()
    settings = MimicrySettings(batch_statistics=batch_statistics, batch_size=16, ema_decay=0.0)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    ((_, state),) = Pupil(model, teacher, images(), None, settings)._trained(1e-5, 2, 1, "", False)
    assert torch.equal(state["bn1.running_mean"], before) != batch_statistics
    assert not any(module.training for module in model.modules())


def test_where_maps_differ_the_logits_alone_are_matched(teacher):
    narrower = surgery.convert(teacher, "l1", keep={"layer4": 0.5}, input_size=SIZE)
    report = surgery.mimic(narrower, teacher, images(), steps=1, lr=1e-4, progress=False)
    assert report.features == "" and "in place of" in report.note
    matched = surgery.convert(teacher, calibrate=images(), match=True)
    report = surgery.mimic(matched, teacher, images(), steps=1, lr=1e-4, progress=False)
    assert report.features == "" and "different orders" in report.note
    report = surgery.mimic(matched, teacher, images(), steps=1, lr=1e-4, block_weight=1.0, progress=False)
    assert not report.blocks and "no block: " in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"crop": 0}, "crop=0"),
        ({"lr": 0}, "lr=0"),
        ({"holdout": 1.0}, "holdout=1.0"),
        ({"feature_weight": -1}, "feature_weight=-1"),
        ({"block_weight": float("inf")}, "block_weight=inf"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"trial_steps": 0}, "trial_steps=0"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        MimicrySettings(**options)


def test_bad_input(teacher):
    with pytest.raises(ValueError, match="4 images: at least 8"):
        surgery.mimic(damaged(teacher), teacher, images(4), steps=1)
    with pytest.raises(TypeError, match="torch.nn.Module"):
        surgery.mimic("model", teacher, images())
    broken = damaged(teacher)
    nn.init.constant_(broken.fc.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite at any rate"):
        surgery.mimic(broken, teacher, images(), steps=2, trial_steps=1, progress=False)


def test_augmented_images_are_crops_and_mirrored():
    x = torch.arange(8.0).expand(64, 3, 8, 8).contiguous()
    generator = torch.Generator().manual_seed(0)
    mirrored = augmented(x, 1.0, True, generator)
    flipped = (mirrored == x.flip(3)).all(3).all(2).all(1)
    assert ((mirrored == x).all(3).all(2).all(1) | flipped).all() and 16 < int(flipped.sum()) < 48
    assert torch.equal(augmented(x, 1.0, False, generator), x)
    cropped = augmented(x, 0.25, False, generator)
    assert cropped.shape == x.shape
    spread = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    assert 3 < float(spread.min()) < 5 and float(spread.max()) <= 7  # a quarter of the area is half of each side
