"""Choose one candidate a site, or none, so that enough is saved and least is lost: a multiple-choice knapsack.

Losses are taken to add up. It is solved exactly, as an integer program (HiGHS, by scipy).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from surgery.methods.auto.weighed import Weighed
from surgery.planning.candidate import conflict

GAP = 1e-3  # of the optimum, that may be missed
SECONDS = 20.0
UNKNOWN, LEAST = 1e9, 1e-12  # of what could not be measured; and so that of changes that cost nothing few are made


def solve(options: Sequence[Weighed], losses: Sequence[float], saved: Sequence[float], needed: float) -> list[Weighed]:
    """The options that lose least of those sets that save what is needed; all that can be saved where that is less.

    Args:
        losses, saved: of each option; the former are positive.
        needed: what the chosen ones save together at least.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # of an extra
    from scipy.sparse import csr_array

    if not options or needed <= 0:
        return []
    gains = np.asarray(saved, float)
    scale = max(float(np.abs(gains).max()), 1e-300)
    rows = _exclusions(options)
    exclusive = csr_array(rows) if len(rows) else None
    constraints = [LinearConstraint(gains[None] / scale, needed / scale, np.inf)]
    if exclusive is not None:
        constraints.append(LinearConstraint(exclusive, -np.inf, 1))
    costs = np.nan_to_num(np.asarray(losses, float), nan=UNKNOWN, posinf=UNKNOWN) + LEAST
    common: dict[str, Any] = {
        "integrality": np.ones(len(options)),
        "bounds": Bounds(0, 1),
        "options": {"mip_rel_gap": GAP, "time_limit": SECONDS},
    }
    solution = milp(costs / costs.max(), constraints=constraints, **common)
    if solution.x is None:  # what is needed is more than there is
        solution = milp(-gains / scale, constraints=constraints[1:], **common)
    return [option for option, share in zip(options, solution.x, strict=True) if share > 0.5]


def _exclusions(options: Sequence[Weighed]) -> np.ndarray:
    """A row for each set of options of which one can be carried out at most."""
    sites: dict[tuple[bool, str], list[int]] = {}
    for number, option in enumerate(options):
        sites.setdefault((bool(option.candidate.gone), option.candidate.site), []).append(number)
    groups = [set(numbers) for numbers in sites.values()]
    whole = list(groups)
    for position, one in enumerate(whole):
        for other in whole[:position]:
            if conflict(options[min(one)].candidate, options[min(other)].candidate):
                groups.append(one | other)
    rows = np.zeros((len(groups), len(options)))
    for position, group in enumerate(groups):
        rows[position, list(group)] = 1
    return rows
