"""What every candidate costs in agreement, and what it saves."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.core.atomic_file import write_atomically
from surgery.core.table import html_table, si, table

HEADER = ("site", "change", "KL", "same class", "top-1", "error", "MACs saved", "params saved", "ms saved")
RIGHT = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class SensitivityRow:
    """One candidate, carried out alone and fitted in closed form within its part of the network.

    Attributes:
        method, site, keep: see :class:`surgery.planning.candidate.Candidate`.
        part: name of the smallest module that holds the change and what reads it; "" is the whole network.
        kl: Kullback-Leibler divergence of the logits from the original's, in nats, mean over held-out images.
        same: share of these on which both answer the same class.
        accuracy: share of these that are answered right; None without labels.
        error: squared error of what the part gives, as a share of its variance.
        macs, params: saved, of one image; negative where there is more.
        seconds: saved of one forward of the part, measured; None where it was not.
    """

    method: str
    site: str
    keep: float
    part: str
    kl: float
    same: float
    accuracy: float | None
    error: float
    macs: int
    params: int
    seconds: float | None = None

    @property
    def label(self) -> str:
        """What is done, in a word or two."""
        return self.method if self.keep == 1 else f"{self.method} {self.keep:g}"

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        accuracy = "" if self.accuracy is None else f"{100 * self.accuracy:.1f} %"
        seconds = "" if self.seconds is None else f"{1e3 * self.seconds:.3f}"
        return (
            self.site,
            self.label,
            f"{self.kl:.4f}",
            f"{100 * self.same:.1f} %",
            accuracy,
            f"{self.error:.4f}",
            si(self.macs),
            si(self.params),
            seconds,
        )


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`surgery.sensitivity` measured. Prints as a table, the sites in the order in which they run.

    Attributes:
        macs, params: of the whole network, for one image.
        accuracy: the original's, on the same held-out images; None without labels.
        fitted, judged: images that parts were fitted on, and that judged.
        setting: how times were measured, in words; "" where they were not.
        skipped: sites that could not be measured, with the reason.
    """

    rows: tuple[SensitivityRow, ...]
    macs: int
    params: int
    accuracy: float | None
    fitted: int
    judged: int
    setting: str = ""
    skipped: tuple[tuple[str, str], ...] = ()

    def row(self, method: str, site: str, keep: float = 1.0) -> SensitivityRow:
        """The row of a candidate; raises KeyError where it was not measured."""
        for row in self.rows:
            if (row.method, row.site, row.keep) == (method, site, keep):
                return row
        raise KeyError(f"{method!r} at {site!r} with keep={keep:g} was not measured")

    def _lines(self) -> list[str]:
        right = "" if self.accuracy is None else f"; the original is right on {100 * self.accuracy:.1f} %"
        images = f"on {self.fitted} images and judged on {self.judged} others"
        lines = [f"each change alone, fitted within its part {images}{right}"]
        lines += [f"milliseconds: {self.setting}"] if self.setting else []
        return lines + [f"not measured: {name}: {reason}" for name, reason in self.skipped]

    def _shown(self) -> list[tuple[str, ...]]:
        return [row.cells() for row in self.rows]

    def __str__(self) -> str:
        return "\n".join([table(HEADER, self._shown(), right=RIGHT), *self._lines()])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(HEADER, self._shown(), right=RIGHT, caption="sensitivity", lines=self._lines())

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Sensitivity":
        """The opposite of :meth:`to_json`; raises ValueError for anything else."""
        try:
            rows = tuple(SensitivityRow(**row) for row in value["rows"])
            skipped = tuple((str(name), str(reason)) for name, reason in value["skipped"])
            return cls(**{**value, "rows": rows, "skipped": skipped})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no sensitivity of this version of surgery: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write it as a JSON file."""
        write_atomically(path, json.dumps(self.to_json(), indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> "Sensitivity":
        """Read a file of :meth:`save`; raises OSError or ValueError."""
        return cls.from_json(json.loads(Path(path).read_text()))
