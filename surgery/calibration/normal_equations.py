"""Ridge regression from sums alone: rows come in batches, only their second moments stay (float64)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean variance of the features
FIT, HELD = 0, 1
JUDGED = 64  # outputs that a ridge is chosen by
FIRMER = 4  # times a ridge may grow a hundredfold: from rounding to the size of what is summed
NOTHING = 1e-8  # features of a smaller mean variance say nothing: what they were multiplied by would amplify any change
PRECISION = 1e-7  # of sums of float32 products: a variance below it, as a share of the square, is rounding


@dataclass(frozen=True)
class Solution:
    """Of one layer.

    Attributes:
        weight: (groups, outputs, features); intercept: (groups, outputs). float64.
        ridge: the one with the least error on held-out images, a share of the mean variance of the features.
        r2: share of the target's variance that it explains on held-out images.
    """

    weight: Tensor
    intercept: Tensor
    ridge: float
    r2: float


class NormalEquations:
    """Sums over rows x (R, groups, features) and targets t (R, groups, outputs), apart for fitting and for holding out.

    Memory: 16 · groups · features² bytes. Products are taken in float32 (float64 for float64) and added in float64.
    """

    def __init__(self, groups: int, features: int, outputs: int, device: torch.device) -> None:
        def sums(*shape: int) -> Tensor:
            return torch.zeros((2, groups, *shape), dtype=torch.float64, device=device)

        self.xx, self.xt, self.tt = sums(features, features), sums(features, outputs), sums(outputs)
        self.x, self.t = sums(features), sums(outputs)
        self.rows = [0, 0]

    def add(self, x: Tensor, t: Tensor, held: bool) -> None:
        """Add rows; ``held`` says that they only judge the ridge."""
        part = HELD if held else FIT
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        x, t = x.to(exact).transpose(0, 1), t.to(exact).transpose(0, 1)
        self.xx[part] += x.mT @ x
        self.xt[part] += x.mT @ t
        self.x[part] += x.sum(1, dtype=torch.float64)
        self.t[part] += t.sum(1, dtype=torch.float64)
        self.tt[part] += (t.double() ** 2).sum(1)
        self.rows[part] += x.shape[1]

    @property
    def finite(self) -> bool:
        """Whether no NaN or infinity was among the rows."""
        return bool(torch.isfinite(self.x).all() and torch.isfinite(self.tt).all())

    def mean_and_variance(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``x @ weight.mT`` over all rows: (groups, outputs) each."""
        count = max(1, sum(self.rows))
        mean = torch.einsum("god,gd->go", weight, self.x.sum(0) / count)
        squares = sum(((weight @ part) * weight).sum(-1) for part in self.xx) / count
        return mean, (squares - mean**2).clamp(min=0)

    def r2(self, weight: Tensor, intercept: Tensor) -> float:
        """Share of the held-out targets' variance that ``x @ weight.mT + intercept`` explains."""
        everything = torch.arange(weight.shape[1], device=weight.device)
        return 1 - self._error(weight, intercept, everything) / max(self._spread(), 1e-300)

    def solve(self, priors: list[Tensor], intercept: bool = True) -> Solution:
        """Least squares with the ridge, towards one of ``priors``, that does best on the held-out rows.

        The choice is made on up to 64 outputs of each group, and the search stops where more ridge makes it worse.

        Args:
            priors: (groups, outputs, features) each; rank-deficient rows give the solution nearest to a prior.
            intercept: whether the layer has a constant of its own.
        """
        some = torch.arange(0, self.xt.shape[3], max(1, self.xt.shape[3] // JUDGED), device=self.xt.device)
        best = (math.inf, 0.0, 0)
        worse = 0
        for ridge in RIDGES:
            fits = self._ridge([FIT], [prior[:, some] for prior in priors], ridge, intercept, some)
            errors = [(self._error(*fit, some), ridge, number) for number, fit in enumerate(fits)]
            least = min((e for e in errors if math.isfinite(e[0])), default=best)
            worse = worse + 1 if least[0] >= best[0] and math.isfinite(best[0]) else 0
            best = min(best, least)
            if worse == 2:
                break
        _, ridge, number = best
        everything = torch.arange(self.xt.shape[3], device=self.xt.device)
        (fitted,) = self._ridge([FIT], [priors[number]], ridge, intercept, everything, firm=True)
        ((weight, constant),) = self._ridge([FIT, HELD], [priors[number]], ridge, intercept, everything, firm=True)
        return Solution(weight, constant, ridge=ridge, r2=self.r2(*fitted))

    def _ridge(
        self,
        parts: list[int],
        priors: list[Tensor],
        ridge: float,
        intercept: bool,
        outputs: Tensor,
        firm: bool = False,
    ) -> list[tuple[Tensor, Tensor]]:
        """Weight and intercept of some outputs for each prior, of these outputs too.

        With too little ridge for the precision of the sums they are infinite; ``firm`` adds as much as is needed.
        """
        xx, xt, x, t = self._raw(parts, outputs)
        least = PRECISION * torch.diagonal(xx, dim1=-2, dim2=-1).mean(-1)
        if intercept:
            xx -= x[:, :, None] * x[:, None]
            xt -= x[:, :, None] * t[:, None]
        diagonal = torch.diagonal(xx, dim1=-2, dim2=-1)
        variance = diagonal.mean(-1)
        floor = torch.where(variance < NOTHING, NOTHING, 1e-30)
        shift = (ridge * variance).maximum(floor).maximum(least)[:, None]
        diagonal += shift
        factor, failed = torch.linalg.cholesky_ex(xx)
        for _ in range(FIRMER if firm else 0):
            if not failed.any():
                break
            more = torch.where(failed[:, None] > 0, 99 * shift, 0.0)
            diagonal += more
            shift = shift + more
            factor, failed = torch.linalg.cholesky_ex(xx)
        right = torch.cat([xt + shift[..., None] * prior.mT for prior in priors], dim=2)
        # too little ridge for the precision of the sums: a solution that no other is worse than
        solved = torch.cholesky_solve(right, factor).masked_fill((failed > 0)[:, None, None], torch.inf)
        weights = solved.mT.split(xt.shape[2], dim=1)
        return [(w, t - torch.einsum("god,gd->go", w, x) if intercept else torch.zeros_like(t)) for w in weights]

    def _raw(self, parts: list[int], outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of the products and of the values, in tensors of their own."""
        count = max(1, sum(self.rows[part] for part in parts))
        chosen = (self.xx, self.xt[..., outputs], self.x, self.t[..., outputs])
        xx, xt, x, t = (s[parts].sum(0).div_(count) if len(parts) > 1 else s[parts[0]] / count for s in chosen)
        return xx, xt, x, t

    def _error(self, weight: Tensor, intercept: Tensor, outputs: Tensor) -> float:
        """Mean squared error on the held-out rows, summed over some outputs."""
        xx, xt, x, t = self._raw([HELD], outputs)
        tt = self.tt[HELD][..., outputs] / max(1, self.rows[HELD])
        predicted = torch.einsum("god,gd->go", weight, x)
        squares = ((weight @ xx) * weight).sum(-1) + 2 * intercept * predicted + intercept**2
        cross = torch.einsum("god,gdo->go", weight, xt) + intercept * t
        return float((squares - 2 * cross + tt).sum())

    def _spread(self) -> float:
        count = max(1, self.rows[HELD])
        return float((self.tt[HELD] / count - (self.t[HELD] / count) ** 2).sum())
