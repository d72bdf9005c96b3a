"""How a method comes to a budget: by its own option, by how many sites it takes, by its ratio, by the image size."""

import bisect
import dataclasses
import functools
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tqdm import tqdm

import surgery
from surgery.core.errors import ConversionWarning, SurgeryError
from surgery.planning.plan import SHARES
from surgery.planning.registry import method_named
from surgery.training.datasets import open_dataset
from surgery.training.evidence_images import evidence_images
from surgery.training.recipe import Recipe

TOLERANCE = 0.02  # of the original's MACs; what ends further from its budget is marked
MOST_ZETA = 64
WHOLE = "all sites at their own ratio"
STEPS = 1000  # into which the original's MACs are divided where sites are chosen


@dataclass(frozen=True)
class BudgetSettings:
    """Settings by which a budget is reached, and in words how.

    Attributes:
        options: of ``surgery.options``.
        zeta, mode: of ``surgery``; None: the method's own.
        image_size: side of the images in pixels; None: the recipe's.
    """

    how: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    zeta: int | dict[str, int] | None = None
    mode: str | None = None
    image_size: int | None = None


def method_budget(recipe: Recipe, original: nn.Module, method: str, budget: float) -> BudgetSettings:
    """What a registered method needs for ``budget``, a share of the original's MACs.

    Raises:
        ValueError, SurgeryError: the method has nothing to convert, or an option of the recipe's is not for it.
    """
    fields = {item.name for item in dataclasses.fields(method_named(method).Config)}
    options = {
        name: value
        for name, value in recipe.surgery.options.items()
        if name not in SHARES and (name in fields or name in ("include", "exclude"))
    }
    if "macs" in fields:
        return BudgetSettings(f"macs={budget:g}", {**options, "macs": budget})
    return _Search(recipe, original, method, options, fields).settings(budget)


class _Search:
    """Looks for the sites, or the ratio, with which a method without a budget comes nearest to one."""

    def __init__(
        self, recipe: Recipe, original: nn.Module, method: str, options: dict[str, Any], fields: set[str]
    ) -> None:
        self.original, self.method, self.options = original, method, options
        self.size = (3, recipe.data.image_size, recipe.data.image_size)
        modes: tuple[str, ...] = getattr(method_named(method).Config, "modes", tuple)()
        self.zeta = recipe.surgery.zeta if "zeta" in fields else None
        self.mode = recipe.surgery.mode if recipe.surgery.mode in modes else None
        self.has_zeta = "zeta" in fields
        own = dataclasses.replace(recipe, surgery=dataclasses.replace(recipe.surgery, method=method))
        self.images = evidence_images(own, open_dataset(recipe.data).train, recipe.seed)
        self.total = surgery.cost(original, self.size).macs

    def settings(self, budget: float) -> BudgetSettings:
        whole = self._share(zeta=self.zeta)
        if whole > budget + TOLERANCE and self.has_zeta:
            return self._by_zeta(budget, whole)
        if whole >= budget - TOLERANCE:
            return self._made(WHOLE, self.zeta, self.options)
        return self._by_sites(budget)

    def _arguments(self, zeta: Any, options: dict[str, Any]) -> dict[str, Any]:
        chosen = {"zeta": zeta, "mode": self.mode}
        named = {name: value for name, value in chosen.items() if value is not None}
        return {"input_size": self.size, "images": self.images, **named, **options}

    def _share(self, zeta: Any, **options: Any) -> float:
        arguments = self._arguments(zeta, {**self.options, **options})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConversionWarning)  # of a trial
            converted = surgery.convert(self.original, self.method, strict=True, match=False, **arguments)
        return surgery.cost(converted, self.size).macs / self.total

    def _made(self, how: str, zeta: Any, options: dict[str, Any]) -> BudgetSettings:
        return BudgetSettings(how, options, zeta, self.mode)

    def _by_zeta(self, budget: float, whole: float) -> BudgetSettings:
        """The whole number for which the network's own ratio is raised until it is as narrow as the budget asks."""
        first = self.zeta if isinstance(self.zeta, int) else 1
        share = functools.cache(lambda zeta: whole if zeta == first else self._share_or_none(zeta))
        target = max(budget, share(MOST_ZETA))
        zetas = range(first, MOST_ZETA + 1)  # shares fall, in steps
        position = bisect.bisect_left(zetas, -target, key=lambda zeta: -share(zeta))
        best = min(zetas[max(0, position - 1) : position + 1], key=lambda zeta: (abs(share(zeta) - budget), zeta))
        if best == first:
            return self._made(WHOLE, self.zeta, self.options)
        return self._made(f"all sites, zeta={best}", best, self.options)

    def _share_or_none(self, zeta: int) -> float:
        """0 where the network would become too narrow for some layer."""
        try:
            return self._share(zeta=zeta)
        except (SurgeryError, ValueError):
            return 0.0

    def _by_sites(self, budget: float) -> BudgetSettings:
        planned = surgery.plan(self.original, self.method, **self._arguments(self.zeta, self.options))
        names = list(dict.fromkeys(row.site for row in planned.sites))
        saved = {}
        for name in tqdm(names, f"sites of {self.method}", leave=False):
            try:
                saved[name] = 1 - self._share(zeta=self.zeta, include=[name])
            except (SurgeryError, ValueError):  # not without another site
                continue
        chosen = nearest_subset(saved, 1 - budget)
        if not chosen:
            raise ValueError(f"macs={budget:g}: {self.method} has no site that saves so little")
        options = {**self.options, "include": chosen}
        return self._made(f"{len(chosen)} of {len(names)} sites", self.zeta, options)


def nearest_subset(saved: dict[str, float], wanted: float) -> list[str]:
    """Names whose shares add up nearest to ``wanted``, of equally near ones those that save most at a time."""
    sums: dict[int, tuple[str, ...]] = {0: ()}
    for name in sorted(saved, key=lambda name: -saved[name]):
        for total, names in list(sums.items()):
            sums.setdefault(total + round(saved[name] * STEPS), (*names, name))
    best = min(sums, key=lambda total: abs(total - wanted * STEPS))
    return [name for name in saved if name in sums[best]]


def resolution_budget(recipe: Recipe, original: nn.Module, budget: float) -> BudgetSettings:
    """The side of the smaller images whose MACs come nearest to the budget."""
    side = recipe.data.image_size
    total = surgery.cost(original, (3, side, side)).macs
    nearest, least = side, 1.0
    for smaller in range(side - 1, 7, -1):
        try:
            share = surgery.cost(original, (3, smaller, smaller)).macs / total
        except surgery.errors.TraceError:  # too small for the network
            break
        if abs(share - budget) < abs(least - budget):
            nearest, least = smaller, share
        if share < budget:
            break
    return BudgetSettings(f"images of {nearest}×{nearest}", image_size=nearest)
