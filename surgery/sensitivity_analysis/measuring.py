"""Measure candidates, part after part, in the order in which the parts run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from surgery.calibration.calibrating import FitSettings
from surgery.core.checked_model import first_weight
from surgery.core.errors import SurgeryError
from surgery.core.eval_mode import eval_mode
from surgery.graph import ModelGraph
from surgery.planning.candidate import Candidate
from surgery.sensitivity_analysis.agreement import Agreement, agreement, logits_of
from surgery.sensitivity_analysis.call_log import CallLog
from surgery.sensitivity_analysis.fitted_part import FittedPart, Part, fitted_part, relative_error
from surgery.sensitivity_analysis.images import Images
from surgery.sensitivity_analysis.result import SensitivityRow
from surgery.sensitivity_analysis.resuming import Resumable
from surgery.sensitivity_analysis.saved_seconds import SavedSeconds

Done = Callable[[Candidate], SensitivityRow | None]


@dataclass
class Measurement:
    """What measuring candidates needs, and what came of it.

    Attributes:
        model: not changed.
        fit, judge: images for fitting and for judging.
        settings: of the fitting.
        saved_seconds: what a changed part saves in one forward; None where nobody asks.
        done: a row that was measured before.
        take: is told every row as it is there.
        skipped: what could not be measured, with the reason.
    """

    model: nn.Module
    graph: ModelGraph
    fit: Images
    judge: Images
    settings: FitSettings
    saved_seconds: SavedSeconds | None = None
    done: Done = lambda candidate: None
    take: Callable[[SensitivityRow], None] = lambda row: None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def rows(self, candidates: Sequence[Candidate]) -> list[SensitivityRow]:
        """A row for each candidate that can be measured, in the order in which the parts run."""
        batches = [batch.to(first_weight(self.model)) for batch in (*self.fit.batches, *self.judge.batches)]
        log = CallLog(self.model, batches[0][:1])
        parts = {number: log.part_around(candidate.changed) for number, candidate in enumerate(candidates)}
        order = sorted(parts, key=lambda number: (log.calls[parts[number]].begin, number))
        resumable = Resumable(self.model, self.graph, log, batches)
        rows = []
        with (
            torch.no_grad(),
            eval_mode(self.model),
            tqdm(total=len(candidates), desc="sensitivity", leave=False) as bar,
        ):
            originals = [logits_of(resumable.run(number)) for number in self._judging()]
            for number in order:
                candidate = candidates[number]
                bar.set_postfix_str(f"{candidate.site} {candidate.label}", refresh=False)
                row = self.done(candidate) or self._row(candidate, parts[number], log, resumable, originals)
                if row is not None:
                    rows.append(row)
                    self.take(row)
                bar.update()
        return rows

    def _judging(self) -> range:
        return range(len(self.fit.batches), len(self.fit.batches) + len(self.judge.batches))

    def _row(
        self, candidate: Candidate, name: str, log: CallLog, resumable: Resumable, originals: list[Tensor]
    ) -> SensitivityRow | None:
        try:
            part, changed = self._changed(candidate, name, log, resumable)
        except SurgeryError as error:
            self.skipped.append((candidate.site, f"{candidate.label}: {error!s:.200}"))
            return None
        seen = self._agreement(changed, resumable, originals)
        squared = relative_error(part, changed.module, resumable.inputs[len(self.fit.batches) :])
        timed = self.saved_seconds is not None and self.saved_seconds.wants(candidate)
        seconds = self.saved_seconds(part, changed.module) if self.saved_seconds is not None and timed else None
        return SensitivityRow(
            candidate.method,
            candidate.site,
            candidate.keep,
            part.name,
            seen.kl,
            seen.same,
            seen.accuracy,
            squared,
            changed.macs,
            changed.params,
            seconds,
        )

    def _changed(self, candidate: Candidate, name: str, log: CallLog, resumable: Resumable) -> tuple[Part, FittedPart]:
        """The candidate in its part; in the next one around where the part does not run by itself."""
        resumable.move_to(name)
        try:
            part = Part.of(self.model, name, resumable.inputs[0].shape[1:])
            inputs = resumable.inputs[: len(self.fit.batches)]
            return part, fitted_part(self.model, part, candidate, inputs, self.settings)
        except SurgeryError:
            if not name:
                raise
        return self._changed(candidate, log.parent(name), log, resumable)

    def _agreement(self, changed: FittedPart, resumable: Resumable, originals: list[Tensor]) -> Agreement:
        with eval_mode(changed.module):
            answers = [logits_of(resumable.run(number, changed.module)) for number in self._judging()]
        return agreement(answers, originals, self.judge.all_labels)
