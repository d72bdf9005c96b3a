"""What a calibration did, layer by layer."""

from dataclasses import dataclass

from surgery.core.table import html_table, table
from surgery.planning.sites import Skipped

HEADER = ("layer", "fitted to", "rows", "ridge", "R² before", "R² after", "note")
RIGHT = (2, 3, 4, 5)
CAPTION = "calibration; R² on images that were held out"


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        aim: ``output`` (of the layer), ``sum`` (the residual sum that it goes into), ``statistics`` (only the norm
            behind it was measured) or ``start`` (a surgery layer that set itself).
        rows: of the regression; images, where there was none.
        ridge: share of the features' mean variance.
        before, after: R² on held-out images.
    """

    layer: str
    aim: str
    rows: int
    ridge: float = 0.0
    before: float = float("nan")
    after: float = float("nan")
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Rows in the order in which layers were fitted; ``skipped`` says which could not be, and why.

    ``notes`` say what else its user should know of the network, a sentence each.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def _rows(self) -> list[tuple[object, ...]]:
        cells: list[tuple[object, ...]] = []
        for row in self.rows:
            fitted = ("", "", "") if row.note else (f"{row.ridge:.0e}", f"{row.before:.3f}", f"{row.after:.3f}")
            cells.append((row.layer, row.aim, row.rows, *fitted, row.note))
        return cells

    def _lines(self) -> list[str]:
        """What follows the table."""
        lines = [f"not fitted: {item.name}: {item.reason}" for item in self.skipped]
        return lines + [f"note: {note}" for note in self.notes]

    def __str__(self) -> str:
        return "\n".join([table(HEADER, self._rows(), right=RIGHT), *self._lines()])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(HEADER, self._rows(), right=RIGHT, caption=CAPTION, lines=self._lines())
