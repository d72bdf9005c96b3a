import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.calibration.normal_equations import RIDGES, NormalEquations


def summed(x, t, held, batch=7):
    sums = NormalEquations(x.shape[1], x.shape[2], t.shape[2], torch.device("cpu"))
    for begin in range(0, len(x), batch):
        rows = slice(begin, begin + batch)
        sums.add(x[rows][~held[rows]], t[rows][~held[rows]], held=False)
        sums.add(x[rows][held[rows]], t[rows][held[rows]], held=True)
    return sums


def regression(x, t, prior, ridge, intercept):
    """One group by an augmented least-squares problem, in numpy."""
    mx, mt = (x.mean(0), t.mean(0)) if intercept else (0 * x[0], 0 * t[0])
    a, b = x - mx, t - mt
    shift = ridge * (a**2).mean()
    rows = np.concatenate([a / np.sqrt(len(a)), np.sqrt(shift) * np.eye(a.shape[1])])
    right = np.concatenate([b / np.sqrt(len(a)), np.sqrt(shift) * prior.T])
    weight = np.linalg.lstsq(rows, right, rcond=None)[0].T
    return weight, mt - weight @ mx


@settings(deadline=None, max_examples=40)
@given(
    groups=st.integers(1, 3),
    features=st.integers(1, 6),
    outputs=st.integers(1, 3),
    rows=st.integers(12, 60),
    intercept=st.booleans(),
    seed=st.integers(0, 99),
)
def test_is_the_best_of_the_ridge_regressions(groups, features, outputs, rows, intercept, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(1, 1, (rows, groups, features))
    t = generator.normal(0, 1, (rows, groups, outputs)) + x[..., :1]
    priors = [np.zeros((groups, outputs, features)), generator.normal(0, 1, (groups, outputs, features))]
    held = np.arange(rows) % 5 == 0
    sums = summed(torch.tensor(x), torch.tensor(t), torch.tensor(held))
    solution = sums.solve([torch.tensor(prior) for prior in priors], intercept)
    errors = {}
    for ridge in RIDGES:
        for number, prior in enumerate(priors):
            fits = [regression(x[~held, g], t[~held, g], prior[g], ridge, intercept) for g in range(groups)]
            residuals = [t[held, g] - x[held, g] @ w.T - b for g, (w, b) in enumerate(fits)]
            errors[ridge, number] = sum((r**2).mean(0).sum() for r in residuals)
    chosen = min(
        (number for ridge, number in errors if ridge == solution.ridge), key=lambda n: errors[solution.ridge, n]
    )
    assert errors[solution.ridge, chosen] <= 1.3 * min(errors.values())
    for g in range(groups):
        weight, constant = regression(x[:, g], t[:, g], priors[chosen][g], solution.ridge, intercept)
        np.testing.assert_allclose(solution.weight[g], weight, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(solution.intercept[g], constant, rtol=1e-6, atol=1e-8)
    spread = sum(((t[held, g] - t[held, g].mean(0)) ** 2).mean(0).sum() for g in range(groups))
    assert solution.r2 == pytest.approx(1 - errors[solution.ridge, chosen] / spread, rel=1e-6, abs=1e-6)


def test_batches_do_not_matter():
    x, t, held = torch.randn(50, 2, 4).double(), torch.randn(50, 2, 3).double(), torch.arange(50) % 5 == 0
    one, two = (summed(x, t, held, batch).solve([torch.zeros(2, 3, 4).double()]) for batch in (50, 3))
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [torch.zeros_like, torch.ones_like], ids=["zero", "constant"])
def test_features_that_tell_nothing_give_the_prior(make):
    x, t = make(torch.empty(30, 1, 4).double()), torch.randn(30, 1, 2)
    prior = torch.randn(1, 2, 4).double()
    solution = summed(x, t, torch.arange(30) % 5 == 0).solve([prior])
    torch.testing.assert_close(solution.weight, prior, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solution.intercept[0] + prior[0] @ x[0, 0], t[:, 0].double().mean(0))


def test_directions_without_data_stay_as_the_prior_has_them():
    x = torch.randn(60, 1, 3).double() * torch.tensor([1.0, 1.0, 0.0])
    truth, prior = torch.tensor([[[2.0, -1.0, 9.0]]]).double(), torch.tensor([[[0.0, 0.0, 5.0]]]).double()
    solution = summed(x, x @ truth[0].T, torch.arange(60) % 5 == 0).solve([prior])
    torch.testing.assert_close(solution.weight, torch.tensor([[[2.0, -1.0, 5.0]]]).double(), rtol=1e-3, atol=1e-3)
    assert solution.ridge == RIDGES[0]
    assert solution.r2 == pytest.approx(1, abs=1e-6)


def test_moments_of_what_a_weight_gives():
    x = torch.randn(40, 2, 3).double() + 1
    sums = summed(x, torch.zeros(40, 2, 1), torch.arange(40) % 5 == 0)
    weight = torch.randn(2, 4, 3).double()
    y = torch.einsum("rgd,god->rgo", x, weight)
    mean, variance = sums.mean_and_variance(weight)
    torch.testing.assert_close(mean, y.mean(0))
    torch.testing.assert_close(variance, y.var(0, correction=0))
    assert sums.finite
    sums.add(x[:1] * torch.nan, torch.zeros(1, 2, 1), held=False)
    assert not sums.finite


@pytest.mark.parametrize("parts", [(0, 1), (1,)])
def test_sums_that_rounding_made_indefinite_stay_near_the_prior(parts):
    sums = NormalEquations(1, 4, 3, torch.device("cpu"))
    for held in (False, True):
        sums.add(torch.ones(64, 1, 4), torch.full((64, 1, 3), 2.0), held=held)
    for part in parts:  # an error of one in a million, as other orders of summation have it
        sums.xx[part] -= 64e-6 * torch.eye(4, dtype=torch.float64)
    prior = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sums.solve([prior])
    torch.testing.assert_close(found.weight, prior, rtol=0.2, atol=0.2)
    predicted = found.weight.sum(-1) + found.intercept
    torch.testing.assert_close(predicted, torch.full_like(predicted, 2.0))


@pytest.mark.parametrize("deviation,explained", [(1e-3, True), (1e-10, False)])
def test_features_that_are_nearly_nothing_are_not_amplified(deviation, explained):
    """A weight of 1e10 would be right here, and wrong after the first step of a training."""
    signal = torch.randn(200, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    solution = summed(deviation * signal, signal, torch.arange(200) % 5 == 0).solve([prior])
    assert (solution.r2 > 0.99) == explained
    assert solution.weight.abs().max() < 2 / deviation if explained else (solution.weight - prior).abs().max() < 0.1
