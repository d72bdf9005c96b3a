"""Rows in a file as they are measured, so that a sensitivity that was interrupted goes on."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.atomic_file import write_atomically
from surgery.planning.candidate import Candidate
from surgery.sensitivity_analysis.result import SensitivityRow


class Store:
    """The rows of one network, one set of images and one setting.

    Args:
        path: of the JSON file; None keeps nothing.
        digest: of all that decides what a row holds.

    Raises:
        ValueError: the file holds the rows of something else, or is none of these.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path | None, digest: str) -> None:
        self.path, self.digest = None if path is None else Path(path), digest
        self.rows: dict[tuple[str, str, float], SensitivityRow] = {}
        if self.path is not None and self.path.exists():
            for row in self._read(self.path):
                self.rows[row.method, row.site, row.keep] = row

    def _read(self, path: Path) -> list[SensitivityRow]:
        try:
            held = json.loads(path.read_text())
            rows = [SensitivityRow(**row) for row in held["rows"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} holds no rows of a sensitivity ({error}): name another file") from error
        if held.get("digest") != self.digest:
            raise ValueError(
                f"{str(path)!r} holds the sensitivity of another network, other images or another setting: name "
                "another file, or delete it"
            )
        return rows

    def done(self, candidate: Candidate) -> SensitivityRow | None:
        """The row of a candidate that was measured before."""
        return self.rows.get((candidate.method, candidate.site, candidate.keep))

    def take(self, row: SensitivityRow) -> None:
        """Keep a row."""
        key = row.method, row.site, row.keep
        if self.rows.get(key) == row:
            return
        self.rows[key] = row
        if self.path is not None:
            rows = [dataclasses.asdict(row) for row in self.rows.values()]
            write_atomically(self.path, json.dumps({"digest": self.digest, "rows": rows}, indent=1).encode())


def digest_of(model: nn.Module, images: Iterable[Tensor], *settings: Any) -> str:
    """Of a network's weights, of images, and of whatever else decides a measurement."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_content(tensor))
    for batch in images:
        digest.update(_content(batch))
    return digest.hexdigest()


def _content(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
