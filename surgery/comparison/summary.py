"""What a comparison has found out, as rows, a table, Markdown and JSON."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.comparison.budgets import TOLERANCE
from surgery.comparison.cells import CONTROL, Variant
from surgery.core.atomic_file import write_atomically
from surgery.core.table import si, table

HEADER = ("method", "by", "MACs", "params", "time", "epochs", "after surgery", "calibrated", "fine-tuned", "− control")
RIGHT = (2, 3, 4, 5, 6, 7, 8, 9)


@dataclass(frozen=True)
class Row:
    """A variant after so many epochs; accuracies in percent, one for each seed that has ended.

    Attributes:
        macs, params: of its network, for one image.
        share: of the original's MACs.
        time: time of a forward ÷ the original's, with the quartiles of the rounds' ratios; None: not measured.
    """

    variant: Variant
    epochs: int
    macs: int
    params: int
    share: float
    surgery: tuple[float, ...] = ()
    calibrated: tuple[float, ...] = ()
    tuned: tuple[float, ...] = ()
    time: tuple[float, float, float] | None = None

    @property
    def final(self) -> tuple[float, ...]:
        """What it ends with after its epochs."""
        return self.tuned or self.calibrated or self.surgery

    @property
    def off_budget(self) -> bool:
        return not self.variant.label and abs(self.share - self.variant.budget) > TOLERANCE


def make_row(
    variant: Variant,
    epochs: int,
    results: Sequence[dict[str, Any]],
    original: dict[str, Any],
    time: tuple[float, float, float] | None,
) -> Row:
    """A row from the results of its cells, one for each seed.

    Args:
        results: as ``results.json`` has them; of a longer training where ``epochs`` is 0.
        original: ``original`` among the rows of the baseline's results.
    """
    stages = [{row["stage"]: row for row in result["rows"]} for result in results]
    last = [list(by_stage.values())[-1] for by_stage in stages]
    start = "after surgery" if "after surgery" in stages[0] else "original"
    return Row(
        variant,
        epochs,
        last[0]["macs"],
        last[0]["params"],
        last[0]["macs"] / original["macs"],
        _accuracies(stages, start),
        _accuracies(stages, "after calibration"),
        _accuracies(stages, "after fine-tuning") if epochs else (),
        time,
    )


def _accuracies(stages: Sequence[dict[str, Any]], stage: str) -> tuple[float, ...]:
    return tuple(by_stage[stage]["accuracies"][0] for by_stage in stages if stage in by_stage)


def shown(values: Sequence[float]) -> str:
    """Mean ± standard deviation (n − 1)."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def cells_of(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The cells of the table."""
    controls = {row.epochs: statistics.fmean(row.final) for row in rows if row.variant.method == CONTROL}
    return [_cells(row, controls.get(row.epochs)) + _published(row, rows) for row in rows]


def header_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Of the table: with a column of published figures where any row has one."""
    return (*HEADER, "published") if _any_published(rows) else HEADER


def _any_published(rows: Sequence[Row]) -> bool:
    return any(row.variant.published is not None for row in rows)


def _published(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    if not _any_published(rows):
        return ()
    return ("–" if row.variant.published is None else f"{row.variant.published:.2f}",)


def _cells(row: Row, control: float | None) -> tuple[str, ...]:
    variant = row.variant
    behind = "–" if control is None or variant.method == CONTROL else f"{statistics.fmean(row.final) - control:+.2f}"
    return (
        variant.title,
        variant.settings.how,
        f"{si(row.macs)} ({row.share:.3f}{'*' if row.off_budget else ''})",
        si(row.params),
        "–" if row.time is None else f"{row.time[0]:.3f}",
        str(row.epochs),
        shown(row.surgery),
        shown(row.calibrated),
        shown(row.tuned),
        behind,
    )


def notes(rows: Sequence[Row], seeds: int, failed: dict[str, str]) -> list[str]:
    """What a reader of the table must know."""
    over = "1 seed" if seeds == 1 else f"{seeds} seeds"
    lines = [
        f"accuracies in percent, mean ± standard deviation over {over}; time: of a forward ÷ the original's; "
        "control: the original, trained as long"
    ]
    if _any_published(rows):
        lines.append("published: the papers' figures, of other networks, images and trainings")
    if any(row.off_budget for row in rows):
        lines.append(f"* more than {100 * TOLERANCE:g} points of the original's MACs from its budget")
    short = [f"{row.variant.name} after {row.epochs} epochs" for row in rows if len(row.surgery) < seeds]
    if short:
        lines.append(f"fewer seeds than asked for: {', '.join(short)}")
    return lines + [f"FAILED {name}: {error}" for name, error in failed.items()]


def as_text(rows: Sequence[Row]) -> str:
    header = header_of(rows)
    return table(header, cells_of(rows), _right(header))


def _right(header: Sequence[str]) -> tuple[int, ...]:
    return (*RIGHT, *range(len(HEADER), len(header)))


def as_markdown(rows: Sequence[Row]) -> str:
    header = header_of(rows)
    right = _right(header)
    lines = [header, tuple("---:" if i in right else "---" for i in range(len(header))), *cells_of(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, rows: Sequence[Row], failed: dict[str, str], **more: Any) -> None:
    """All numbers, with whatever else is to be kept."""
    content = {"rows": [dataclasses.asdict(row) for row in rows], "failed": failed, **more}
    write_atomically(path, json.dumps(content, indent=1).encode())
