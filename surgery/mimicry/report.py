"""What a mimicry did."""

from dataclasses import dataclass

from surgery.core.table import html_table, table

HEADER = ("step", "KL", "same class")


@dataclass(frozen=True)
class MimicryReport:
    """Agreement with the original on held-out images, check after check. Prints as a table.

    Attributes:
        checks: (step, Kullback-Leibler divergence in nats, share of the images on which both hold the same class for
            the likeliest).
        lr: learning rate that was used.
        tried: (rate, divergence after the trial), of each that was tried.
        kept: step whose weights the network has; 0 where none was better than none.
        features: name of the module whose output was matched; "" where none was.
        note: why no such output, or no block, was matched; else "".
        blocks: names of the modules whose outputs were matched as well.
        images, held: that were trained on, and that judged.
        seconds: that it took.
    """

    checks: tuple[tuple[int, float, float], ...]
    lr: float
    tried: tuple[tuple[float, float], ...]
    kept: int
    features: str
    note: str
    blocks: tuple[str, ...]
    images: int
    held: int
    seconds: float

    def _rows(self) -> list[tuple[str, ...]]:
        return [(str(step), f"{kl:.4f}", f"{100 * same:.1f} %") for step, kl, same in self.checks]

    def _lines(self) -> list[str]:
        matched = f"the output of {self.features!r} and the logits" if self.features else "the logits"
        if self.blocks:
            matched = f"{len(self.blocks)} blocks, {matched}"
        if self.note:
            matched = f"{matched} ({self.note})"
        tried = ", ".join(f"{rate:g}: {kl:.4f}" for rate, kl in self.tried)
        kept = f"the weights of step {self.kept} are kept" if self.kept else "no step was better: all is as it was"
        lines = [f"matched: {matched}, on {self.images} images; {self.held} others judged", f"lr {self.lr:g}; {kept}"]
        return lines + ([f"rates tried, with the divergence after each: {tried}"] if tried else [])

    def __str__(self) -> str:
        return "\n".join([table(HEADER, self._rows(), right=(0, 1, 2)), *self._lines()])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(HEADER, self._rows(), right=(0, 1, 2), caption="mimicry", lines=self._lines())
