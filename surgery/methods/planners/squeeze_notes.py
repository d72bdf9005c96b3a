"""What a reader should know before squeezes are carried out, a sentence each."""

from collections.abc import Sequence

from surgery.planning.decision import Decision
from surgery.planning.sites import PROJECTION, TRANSITION, Skipped

INCLUDABLE = {  # what reasons for passing over say of the argument that would include such sites
    "equal_width=True": "equal_width=True (--equal-width)",
    "projections='all'": "projections='all' (--projections all)",
}


def squeeze_notes(
    decisions: Sequence[Decision], skipped: Sequence[Skipped], mode: str, has_squeeze: bool
) -> tuple[str, ...]:
    """Notes on what a plan converts, or on what to try where it converts nothing.

    Args:
        has_squeeze: whether the method has a mode ``squeeze``.
    """
    rows = [row for decision in decisions for row in decision.rows]
    if not decisions:
        return (_what_to_try(skipped, mode, has_squeeze),)
    projections = sum(row.role in (PROJECTION, TRANSITION) for row in rows)
    if not projections:
        return ()
    return (
        f"{projections} of the {len(rows)} sites are projections of inverted bottlenecks: "
        "with these converted a network falls to chance and stays there until it has been trained for long "
        "(calibration alone does not bring it back); projections='none' (--projections none) leaves them as they are",
    )


def _what_to_try(skipped: Sequence[Skipped], mode: str, has_squeeze: bool) -> str:
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
    elif has_squeeze:
        choices.append("mode='squeeze' (--mode squeeze) converts what squeezes already")
    return f"there is nothing to convert; to try: {'; '.join(choices) or 'another method or mode'}"
