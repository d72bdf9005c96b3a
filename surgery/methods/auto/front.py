"""The Pareto front that the measurements promise: what is lost at every budget, if losses add up."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from surgery.core.atomic_file import write_atomically
from surgery.core.errors import check_choice
from surgery.core.extras import check_extra
from surgery.methods.auto.solver import solve
from surgery.methods.auto.weighed import Weighed

PICTURES = (".png", ".svg", ".pdf")
SHARES = tuple(n / 40 for n in range(39, 11, -1))


@dataclass(frozen=True)
class FrontPoint:
    """A mixture on the front.

    Attributes:
        share: of the budget that is left, by the sum of what was measured one by one.
        kl: the sum of the divergences.
        changes: site and what is done there.
    """

    share: float
    kl: float
    changes: tuple[tuple[str, str], ...]


def front_of(
    options: Sequence[Weighed], loss: Callable[[Weighed], float], budget: str, total: float
) -> list[FrontPoint]:
    """A point for every budget that can be met, from the largest to the smallest."""
    losses, saved = [loss(option) for option in options], [option.saved(budget) for option in options]
    points: dict[float, FrontPoint] = {}
    for share in SHARES:
        chosen = solve(options, losses, saved, (1 - share) * total)
        left = 1 - sum(option.saved(budget) for option in chosen) / total
        if left > share + 0.01:
            break
        changes = tuple((option.candidate.site, option.candidate.label) for option in chosen)
        points.setdefault(round(left, 4), FrontPoint(left, sum(option.kl for option in chosen), changes))
    return list(points.values())


def check_front(path: str | Path) -> None:
    """Raise ValueError or OSError for a place where no front could be drawn, before minutes are lost to it."""
    check_extra("train", "front=", ("matplotlib",))
    check_choice("the suffix of front", Path(path).suffix, PICTURES)
    if not Path(path).parent.is_dir():
        raise OSError(f"cannot write {str(path)!r}: its folder does not exist")


def write_front(
    path: str | Path, points: Sequence[FrontPoint], reached: Sequence[tuple[str, float, float]], budget: str
) -> None:
    """Draw the front, and write it as JSON beside the picture.

    Args:
        reached: name, share and divergence of each mixture that was carried out and calibrated.
    """
    written = {
        "budget": budget,
        "front": [asdict(point) for point in points],
        "carried out": [{"name": name, "share": share, "kl": kl} for name, share, kl in reached],
    }
    write_atomically(Path(path).with_suffix(".json"), json.dumps(written, indent=1).encode())
    write_atomically(path, _drawn(points, reached, budget, Path(path).suffix))


def _drawn(
    points: Sequence[FrontPoint], reached: Sequence[tuple[str, float, float]], budget: str, suffix: str
) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([p.share for p in points], [p.kl for p in points], marker=".", label="predicted, losses added up")
    for name, share, kl in reached:
        axes.plot([share], [kl], marker="o", linestyle="", label=f"{name}, calibrated")
    axes.set_yscale("log")
    axes.set_xlabel(f"share of the original's {budget} that is left")
    axes.set_ylabel("divergence from the original's answers (KL, nats)")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format=suffix.removeprefix("."), dpi=130)
    return picture.getvalue()
