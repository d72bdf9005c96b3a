"""A network that learns to give what another gives."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.mimicry.augmenting import augmented
from surgery.mimicry.matching import Matching
from surgery.mimicry.report import MimicryReport
from surgery.mimicry.settings import RATES, MimicrySettings
from surgery.sensitivity_analysis.agreement import Agreement, agreement, logits_of

LEAST_IMAGES = 8
WARMUP = 20  # steps in which the rate rises, or a tenth of all, if that is less
State = dict[str, Tensor]


class Pupil:
    """A network that mimics another, on some images.

    Args:
        images: to learn from, (N, C, H, W).
        held: to judge by; None: a share of ``images``.

    Raises:
        ValueError: too few images, or images of different sizes.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, images: Tensor, held: Tensor | None, settings: MimicrySettings
    ) -> None:
        if len(images) < LEAST_IMAGES:
            raise ValueError(f"{len(images)} images: at least {LEAST_IMAGES} are needed to learn from and to judge by")
        if held is None:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
            count = max(2, round(settings.holdout * len(images)))
            held, images = images[order[:count]], images[order[count:]]
        elif held.shape[1:] != images.shape[1:]:
            raise ValueError(f"held has images of {tuple(held.shape[1:])}, images of {tuple(images.shape[1:])}")
        self.model, self.settings = model, settings.for_images(len(images))
        weight = first_weight(model)
        self.held, self.images = held.to(weight), images.to(weight)
        self.matching = Matching(model, teacher, tuple(images.shape[1:]), self.settings)
        with torch.no_grad(), eval_mode(teacher):
            self.originals = [logits_of(teacher(batch)) for batch in self.held.split(settings.batch_size)]

    def learn(self, progress: bool) -> MimicryReport:
        """Search the rate, train, keep the best; returns what happened."""
        settings, begin = self.settings, time.perf_counter()
        first = self.judged()
        self.checks, self.kept, self.best = [(0, first.kl, first.same)], 0, self._state()
        try:
            tried = self._tried(progress) if settings.steps and settings.lr is None else []
            for lr in _downhill(tried) or [settings.lr or settings.first_rate]:
                if self._learn_at(lr, progress):
                    break
        finally:  # also where it is interrupted
            self.model.load_state_dict(self.best)
        features = "" if self.matching.features is None else self.matching.features.module
        return MimicryReport(
            tuple(self.checks),
            lr,
            tuple(tried),
            self.kept,
            features,
            self.matching.note,
            tuple(self.matching.blocks),
            len(self.images),
            len(self.held),
            time.perf_counter() - begin,
        )

    def _learn_at(self, lr: float, progress: bool) -> bool:
        """Train; the best weights of all checks are remembered. False where the rate turned out to be too high.

        Raises:
            ValueError: it did, and it was the setting's.
        """
        settings, waiting = self.settings, 0
        for step, state in self._trained(lr, settings.steps, settings.checks, "mimicking", progress):
            seen = self._judged_with(state)
            better = seen.kl < min(kl for _, kl, _ in self.checks)
            self.checks.append((step, seen.kl, seen.same))
            if better:
                self.kept, self.best, waiting = step, state, 0
            else:
                waiting += 1
            if not math.isfinite(seen.kl) and not self.kept:
                self._check_searched(lr)
                return False
            if waiting == settings.patience or not math.isfinite(seen.kl):
                break
        return True

    def _check_searched(self, lr: float) -> None:
        """Raise ValueError where a rate at which the loss is not finite was the setting's."""
        if self.settings.lr is not None:
            raise ValueError(f"lr={lr:g}: the loss is not finite; a smaller one, or None to search for one, is needed")
        self.model.load_state_dict(self.best)

    def judged(self) -> Agreement:
        """Agreement with the original on the held-out images."""
        with torch.no_grad(), eval_mode(self.model):
            answers = [logits_of(self.model(batch)) for batch in self.held.split(self.settings.batch_size)]
        return agreement(answers, self.originals)

    def _judged_with(self, state: State) -> Agreement:
        own = self._state()
        self.model.load_state_dict(state)
        seen = self.judged()
        self.model.load_state_dict(own)
        return seen

    def _tried(self, progress: bool) -> list[tuple[float, float]]:
        """Rates with the divergence after a short training at each: uphill from the first, else downhill."""
        tried: dict[float, float] = {}
        first = RATES.index(self.settings.first_rate)
        for rates in (RATES[first:], RATES[first - 1 :: -1]):
            for rate in rates:
                best = min(tried.values(), default=math.inf)
                tried.setdefault(rate, self._tried_at(rate, progress))
                if tried[rate] >= best and (math.isfinite(best) or rate >= self.settings.first_rate):
                    break
            if len(tried) > 2:  # a higher rate than the first was better
                break
        if all(math.isinf(kl) for kl in tried.values()):
            raise ValueError("the loss is not finite at any rate: the network that was to learn is broken")
        return sorted(tried.items())

    def _tried_at(self, rate: float, progress: bool) -> float:
        (_, state), *_ = self._trained(rate, self.settings.steps_of_trial, 1, f"trying lr {rate:g}", progress)
        kl = self._judged_with(state).kl
        self.model.load_state_dict(self.best)
        return kl if math.isfinite(kl) else math.inf

    def _trained(self, lr: float, steps: int, checks: int, label: str, progress: bool) -> Iterator[tuple[int, State]]:
        """Train; yields the step and the averaged weights and statistics, ``checks`` times."""
        settings = self.settings
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, nesterov=True)
        generator = torch.Generator().manual_seed(settings.seed + 1)
        average, due = self._state(), {max(1, round((n + 1) * steps / checks)) for n in range(checks)}
        bar = tqdm(range(1, steps + 1), label, leave=False, disable=not progress)
        for step, images in zip(bar, self._batches(generator), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, step / max(1, min(WARMUP, steps // 10))) * (1 - (step - 1) / steps)
            with _learning(self.model, bool(settings.batch_statistics)):
                loss = self.matching.loss(augmented(images, settings.crop, settings.hflip, generator))
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self._follow(average, min(settings.ema_decay, step / (step + 9)))
            if step in due:
                yield step, {name: tensor.clone() for name, tensor in average.items()}

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        size = min(self.settings.batch_size, len(self.images))
        while True:
            order = torch.randperm(len(self.images), generator=generator)
            yield from (self.images[part] for part in order.split(size) if len(part) == size)

    def _state(self) -> State:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    @torch.no_grad()
    def _follow(self, average: State, decay: float) -> None:
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)


def _downhill(tried: list[tuple[float, float]]) -> list[float]:
    """The best rate and those below it, highest first: what diverges in the end is followed by the next lower one."""
    best = min(tried, key=lambda pair: pair[1], default=(0.0, 0.0))[0]
    return [rate for rate in sorted(RATES, reverse=True) if rate <= best]


@contextmanager
def _learning(model: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """BatchNorms in training mode while this is entered, where that is wanted; all else as it was."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and not module.training]
    for norm in norms if batch_statistics else ():
        norm.train()
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()
