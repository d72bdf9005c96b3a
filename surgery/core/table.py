"""Tables for a terminal and for a notebook."""

from collections.abc import Sequence
from html import escape


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Columns aligned to their widest cell; the columns numbered in ``right`` to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[int] = (),
    caption: str = "",
    lines: Sequence[str] = (),
) -> str:
    """The same table as HTML, for notebooks, with a caption above and lines of text below; all text is escaped."""

    def row(tag: str, cells: Sequence[object]) -> str:
        aligned = (f"text-align:{'right' if i in right else 'left'}" for i in range(len(cells)))
        parts = (
            f'<{tag} style="{style}">{escape(str(cell))}</{tag}>' for cell, style in zip(cells, aligned, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    parts = [f'<caption style="text-align:left">{escape(caption)}</caption>'] if caption else []
    parts.append(f"<thead>{row('th', header)}</thead>")
    parts.append(f"<tbody>{''.join(row('td', cells) for cells in rows)}</tbody>")
    below = f'<pre style="white-space:pre-wrap">{escape(chr(10).join(lines))}</pre>' if lines else ""
    return f"<div><table>{''.join(parts)}</table>{below}</div>"


def si(number: float, unit: str = "") -> str:
    """A number with four digits and a unit prefix: 4.089 G."""
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.4g} {prefix}{unit}"
    return f"{number:g} {unit}".rstrip()
