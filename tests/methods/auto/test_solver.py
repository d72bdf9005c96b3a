"""The integer program against trying all sets."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.methods.auto.solver import solve
from surgery.methods.auto.weighed import Weighed, weighed
from surgery.planning.candidate import Candidate, conflict
from surgery.planning.decision import Decision
from surgery.sensitivity_analysis.result import SensitivityRow
from surgery.transforms.drop import Drop


def option(site, number, loss, saved, taken=""):
    """One that prunes a site, or (with ``taken``) removes a module, which nothing else may then change."""
    transforms = (Drop((taken,)),) if taken else ()
    candidate = Candidate("m", site, Decision(site, transforms), 1.0, () if taken else (number,))
    return Weighed(candidate, loss, loss, saved, saved, saved)


@st.composite
def problems(draw):
    numbers = st.integers(1, 20)
    options = [option(f"site{draw(st.integers(0, 3))}", n, draw(numbers), draw(numbers)) for n in range(6)]
    options += [option("a", 9, draw(numbers), draw(numbers), "a"), option("b", 9, draw(numbers), draw(numbers), "a")]
    return options, draw(st.integers(1, 60))


@given(problems())
@settings(max_examples=40, deadline=None)
def test_no_set_that_saves_enough_loses_less(problem):
    options, needed = problem
    losses, saved = [o.kl for o in options], [o.macs for o in options]
    sets = [
        chosen
        for count in range(len(options) + 1)
        for chosen in itertools.combinations(range(len(options)), count)
        if not any(conflict(options[a].candidate, options[b].candidate) for a, b in itertools.combinations(chosen, 2))
    ]
    enough = [sum(losses[n] for n in chosen) for chosen in sets if sum(saved[n] for n in chosen) >= needed]
    chosen = [options.index(o) for o in solve(options, losses, saved, needed)]
    assert tuple(sorted(chosen)) in sets
    if enough:
        assert sum(saved[n] for n in chosen) >= needed
        assert sum(losses[n] for n in chosen) <= min(enough) * 1.002
    else:
        assert sum(saved[n] for n in chosen) == max(sum(saved[n] for n in chosen) for chosen in sets)


def test_nothing_is_chosen_where_nothing_is_needed():
    assert solve([option("a", 0, 1, 1)], [1], [1], 0) == []
    assert solve([], [], [], 5) == []


def row(keep, kl, macs, seconds=None):
    return SensitivityRow("m", "a", keep, "", kl, 1.0, None, kl, macs, macs, seconds)


def test_strengths_between_two_that_were_measured_are_read_off():
    candidates = [Candidate("m", "a", Decision("a", ()), keep, (1,)) for keep in (0.75, 0.5, 0.625, 0.25, 0.9375)]
    rows = [row(0.75, 0.01, 25, 1.0), row(0.5, 0.04, 50)]  # a square law
    found = weighed(candidates, rows)
    assert [option.measured for option in found] == [True, True, False, False, False]
    np.testing.assert_allclose([o.kl for o in found], [0.01, 0.04, 0.0225, 0.09, 0.000625], rtol=1e-6)
    np.testing.assert_allclose([o.macs for o in found], [25, 50, 37.5, 75, 6.25])
    np.testing.assert_allclose([o.seconds for o in found], [1.0, 2.0, 1.5, 3.0, 0.25])


def test_a_site_of_which_nothing_is_known_is_no_option():
    assert weighed([Candidate("m", "b", Decision("b", ()), 0.5, (1,))], [row(0.5, 1, 1)]) == []
