"""What an explanation has written, and what it prints."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.core.atomic_file import write_atomically
from surgery.core.table import table

HEADER = ("layer", "channels", "mean gate", "states", "in one state always", "spread over classes")
JSON = "explanation.json"


@dataclass
class Explanation:
    """What was written, and what there is to say. Prints as a table.

    Attributes:
        files: names, in the folder.
        statistics: what ``explanation.json`` holds.
        notes: why some pictures are not there.
    """

    folder: Path
    files: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all; raises OSError."""
        write_atomically(self.folder / name, content)
        self.files.append(name)

    def leave_out(self, name: str, reason: str) -> None:
        """Note why a picture is not there; one of an earlier run goes. Raises OSError."""
        (self.folder / name).unlink(missing_ok=True)
        self.notes.append(f"no {name}: {reason}")

    def write_statistics(self) -> None:
        """The JSON file, with the notes."""
        self.write(JSON, json.dumps({**self.statistics, "notes": self.notes}, indent=1, ensure_ascii=False).encode())

    def __str__(self) -> str:
        rows = [_cells(layer) for layer in self.statistics.get("gates", [])]
        parts = [table(HEADER, rows, right=(1, 2, 4, 5))] if rows else []
        return "\n".join([*parts, *self.notes, f"{self.folder}: {', '.join(self.files)}"])


def _cells(layer: dict[str, Any]) -> tuple[str, ...]:
    states = ", ".join(f"{state} {share:.2f}" for state, share in layer["shares"].items())
    shares = (_share(layer[key]) for key in ("dead", "spread_over_classes"))
    return (layer["layer"], str(layer["channels"]), f"{layer['mean']:.3f}", states or "–", *shares)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
