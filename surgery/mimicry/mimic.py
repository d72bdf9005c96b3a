"""``surgery.mimic``: gradient steps that match the original's last feature map and its logits, without a label.

The feature map before pooling as in MiR (Wang et al., Compressing Models with Few Samples: Mimicking then Replacing,
CVPR 2022), from the start that calibration gives.
"""

import copy
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from surgery.calibration.images import collect
from surgery.core.bfloat16 import computes_in_bfloat16
from surgery.core.checked_model import check_model, first_weight, unwrapped
from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.mimicry.augmenting import augmented
from surgery.mimicry.feature_map import common_feature_map, watched
from surgery.mimicry.report import MimicryReport
from surgery.mimicry.settings import RATES, MimicrySettings
from surgery.sensitivity_analysis.agreement import Agreement, agreement, logits_of

LEAST_IMAGES = 8
Weights = dict[str, Tensor]


def mimic(
    model: nn.Module,
    teacher: nn.Module,
    images: Iterable[Any] | Tensor,
    *,
    held: Iterable[Any] | Tensor | None = None,
    settings: MimicrySettings | None = None,
    count: int | None = 1024,
    progress: bool = True,
    **options: Any,
) -> MimicryReport:
    """Train all weights of a converted network, in place, to answer what the original answers.

    Normalisations stay in eval mode: calibration has set their statistics, and their scale and shift are trained. The
    weights of the check that agrees best with the original on held-out images are kept, and where none does better
    than the network as it came, that one; so too where it is interrupted or fails on the way.

    Args:
        model: converted and, best, calibrated; changed in place. It is left in the mode it was in.
        teacher: the network that it was converted from; not changed.
        images: as for :func:`surgery.calibrate`; labels are not looked at.
        held: images that judge; best such as calibration has not seen either, since what it was fitted to agrees too
            well. Default: a share of ``images``.
        settings: all settings; or, one by one, in
        **options: fields of :class:`MimicrySettings`, such as ``steps=400``.
        count: at most so many images are drawn.
        progress: show a bar.

    Returns:
        Agreement on held-out images, before, in between and after.

    Raises:
        ValueError, TypeError: images, models or settings that cannot be; the message says what can. ValueError too
            where the loss is not finite at any rate.
    """
    check_extra("calibrate", "surgery.mimic")
    model, teacher = unwrapped(model), unwrapped(teacher)
    for network in (model, teacher):
        check_model(network, weights=True)
    settings = settings or MimicrySettings(**options)
    parts = None if held is None else torch.cat(collect(held, None, progress))
    pupil = Pupil(model, teacher, torch.cat(collect(images, count, progress)), parts, settings)
    with eval_mode(model), eval_mode(teacher), _trainable(model):
        return pupil.learn(progress)


class Pupil:
    """A network that mimics another, on some images."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module, images: Tensor, held: Tensor | None, settings: MimicrySettings
    ) -> None:
        if len(images) < LEAST_IMAGES:
            raise ValueError(f"{len(images)} images: at least {LEAST_IMAGES} are needed to learn from and to judge by")
        self.model, self.teacher, self.settings = model, teacher, settings
        weight = first_weight(model)
        if held is None:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
            count = max(2, round(settings.holdout * len(images)))
            held, images = images[order[:count]], images[order[count:]]
        elif held.shape[1:] != images.shape[1:]:
            raise ValueError(f"held has images of {tuple(held.shape[1:])}, images of {tuple(images.shape[1:])}")
        self.held, self.images = held.to(weight), images.to(weight)
        self.features, self.note = common_feature_map(model, teacher, tuple(images.shape[1:]))
        self.fast = weight.dtype == torch.float32 and computes_in_bfloat16(weight.device)
        with torch.no_grad():
            self.originals = [logits_of(teacher(batch)) for batch in self.held.split(settings.batch_size)]

    def learn(self, progress: bool) -> MimicryReport:
        """Search the rate, train, keep the best; returns what happened."""
        settings, begin = self.settings, time.perf_counter()
        first = self.judged()
        self.checks, self.kept, self.best = [(0, first.kl, first.same)], 0, self._weights()
        try:
            tried = self._tried(self.best, progress) if settings.steps and settings.lr is None else []
            lr = settings.lr or min(tried, key=lambda pair: pair[1], default=(RATES[0], 0.0))[0]
            self._learn_at(lr, progress)
        finally:  # also where it is interrupted
            self._set(self.best)
        features = "" if self.features is None else self.features.module
        return MimicryReport(
            tuple(self.checks),
            lr,
            tuple(tried),
            self.kept,
            features,
            self.note,
            len(self.images),
            len(self.held),
            time.perf_counter() - begin,
        )

    def _learn_at(self, lr: float, progress: bool) -> None:
        """Train; the best weights of all checks are remembered."""
        settings, waiting = self.settings, 0
        for step, weights in self._trained(lr, settings.steps, settings.checks, "mimicking", progress):
            seen = self._judged_with(weights)
            better = seen.kl < min(kl for _, kl, _ in self.checks)
            self.checks.append((step, seen.kl, seen.same))
            if better:
                self.kept, self.best, waiting = step, weights, 0
            else:
                waiting += 1
            if not math.isfinite(seen.kl):
                self._check_learnt(lr)
            if waiting == settings.patience or not math.isfinite(seen.kl):
                break

    def _check_learnt(self, lr: float) -> None:
        """Raise ValueError where a loss that is not finite leaves nothing that was learnt before."""
        if not self.kept:
            raise ValueError(f"lr={lr:g}: the loss is not finite; a smaller one, or None to search for one, is needed")

    def judged(self) -> Agreement:
        """Agreement with the original on the held-out images."""
        with torch.no_grad(), eval_mode(self.model):
            answers = [logits_of(self.model(batch)) for batch in self.held.split(self.settings.batch_size)]
        return agreement(answers, self.originals)

    def _judged_with(self, weights: Weights) -> Agreement:
        own = self._weights()
        self._set(weights)
        seen = self.judged()
        self._set(own)
        return seen

    def _tried(self, start: Weights, progress: bool) -> list[tuple[float, float]]:
        """Rates with the divergence after a few steps at each; from the lowest, until one is worse than the last."""
        tried: list[tuple[float, float]] = []
        for rate in RATES:
            (_, weights), *_ = self._trained(rate, self.settings.trial_steps, 1, f"trying lr {rate:g}", progress)
            kl = self._judged_with(weights).kl
            self._set(start)
            tried.append((rate, kl if math.isfinite(kl) else math.inf))
            if len(tried) > 1 and tried[-1][1] > tried[-2][1]:
                break
        if all(math.isinf(kl) for _, kl in tried):
            raise ValueError("the loss is not finite at any rate: the network that was to learn is broken")
        return tried

    def _trained(self, lr: float, steps: int, checks: int, label: str, progress: bool) -> Iterator[tuple[int, Weights]]:
        """Train; yields the step and the averaged weights, ``checks`` times."""
        settings = self.settings
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=lr)
        generator = torch.Generator().manual_seed(settings.seed + 1)
        average, due = self._weights(), {max(1, round((n + 1) * steps / checks)) for n in range(checks)}
        bar = tqdm(range(1, steps + 1), label, leave=False, disable=not progress)
        for step, images in zip(bar, self._batches(generator), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            loss = self._loss(augmented(images, settings.crop, settings.hflip, generator))
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self._follow(average, min(settings.ema_decay, step / (step + 9)))
            if step in due:
                yield step, copy.deepcopy(average)

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        size = min(self.settings.batch_size, len(self.images))
        while True:
            order = torch.randperm(len(self.images), generator=generator)
            yield from (self.images[part] for part in order.split(size) if len(part) == size)

    def _loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            own_logits, own_map = self._forward(self.teacher, images)
        logits, feature_map = self._forward(self.model, images)
        loss = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(own_logits, 1), reduction="none", log_target=True)
        total = loss.sum(1).mean()
        if own_map is not None and feature_map is not None and self.settings.feature_weight:
            error = (feature_map - own_map).square().mean() / own_map.var().clamp(min=1e-12)
            total = total + self.settings.feature_weight * error
        return total

    def _forward(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and the feature map, float32."""
        with watched(network, self.features) as seen, torch.autocast(images.device.type, torch.bfloat16, self.fast):
            output = network(images)
        logits = output if isinstance(output, Tensor) else logits_of(output)
        return logits.float(), seen[-1].float() if seen else None

    def _weights(self) -> Weights:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def _set(self, weights: Weights) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])

    @torch.no_grad()
    def _follow(self, average: Weights, decay: float) -> None:
        for name, parameter in self.model.named_parameters():
            average[name].lerp_(parameter, 1 - decay)


class _trainable:
    """While entered, all parameters of a network want gradients; afterwards they want them as before."""

    def __init__(self, model: nn.Module) -> None:
        self.wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def __enter__(self) -> None:
        for parameter in self.wanted:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter, wanted in self.wanted.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None
