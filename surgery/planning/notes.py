"""What a reader should know before a plan is carried out, a sentence each."""

from collections.abc import Sequence

from surgery.planning.sites import PROJECTION, TRANSITION, Skipped
from surgery.transforms.edit import Edit

INCLUDABLE = {  # what reasons for passing over say of the argument that would include such sites
    "equal_width=True": "equal_width=True (--equal-width)",
    "projections='all'": "projections='all' (--projections all)",
}


def notes_of(edits: Sequence[Edit], skipped: Sequence[Skipped], method: str, mode: str) -> tuple[str, ...]:
    """Notes on what a plan converts, or on what to try where it converts nothing."""
    if not edits:
        return (_what_to_try(skipped, method, mode),)
    projections = sum(edit.role in (PROJECTION, TRANSITION) for edit in edits)
    if not projections:
        return ()
    return (
        f"{projections} of the {sum(bool(edit.site) for edit in edits)} sites are projections of inverted bottlenecks: "
        "with these converted a network falls to chance and stays there until it has been trained for long "
        "(calibration alone does not bring it back); projections='none' (--projections none) leaves them as they are",
    )


def _what_to_try(skipped: Sequence[Skipped], method: str, mode: str) -> str:
    reasons = [item.reason for item in skipped]
    choices = []
    for argument, spelled in INCLUDABLE.items():
        count = sum(argument in reason for reason in reasons)
        if count:
            choices.append(f"{spelled} converts {count}")
    if any("projections='none'" in reason for reason in reasons):
        choices.append("projections='residual' or 'all' (--projections) includes those of inverted bottlenecks")
    if any(reason.startswith(("not in include=", "in exclude=")) for reason in reasons):
        choices.append("other include= or exclude= patterns")
    if mode == "squeeze":
        choices.append("mode='downscale', zeta=2 (--mode downscale --zeta 2) inserts before spatial convolutions")
    elif method == "pix":
        choices.append("mode='squeeze' (--mode squeeze) converts what squeezes already")
    return f"there is nothing to convert; to try: {'; '.join(choices) or 'another method or mode'}"
