from dataclasses import dataclass

import pytest
from torch import nn

import surgery
from surgery.transforms.carry_out import apply
from surgery.transforms.drop import Drop
from surgery.transforms.history import history, remember
from surgery.transforms.narrow import Narrow
from surgery.transforms.reorder import Reorder
from surgery.transforms.transform import Transform, transform


@transform("tests_failing")
@dataclass(frozen=True)
class Failing(Transform):
    def apply(self, model, choice=None):
        raise KeyboardInterrupt


def test_a_long_history_is_written_once(monkeypatch):
    """A hundred thousand transforms take a second; with the history copied for each of them it was minutes."""
    written = []
    monkeypatch.setattr(
        "surgery.transforms.carry_out.remember",
        lambda model, *done: (written.append(len(done)), remember(model, *done)),
    )
    model = nn.Conv2d(3, 3, 1)
    apply(model, (Reorder("0") for _ in range(100_000)))
    assert len(history(model)) == 100_000
    apply(model, [Reorder("1")])
    assert len(history(model)) == 100_001
    assert written == [100_000, 1]


@pytest.mark.parametrize(
    ("failing", "error"), [(Drop(("x",)), surgery.errors.SurgeryError), (Failing(), KeyboardInterrupt)]
)
def test_transforms_before_one_that_fails_are_in_the_history(failing, error):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    with pytest.raises(error):
        apply(model, [Reorder("0"), Drop(("1",)), failing, Reorder("1")])
    assert history(model) == (Reorder("0"), Drop(("1",)))
    assert isinstance(model[1], nn.Identity)


def test_a_generator_that_fails_keeps_what_was_done():
    def planned():
        yield Reorder("0")
        raise ValueError("no more")

    model = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="no more"):
        apply(model, planned())
    assert history(model) == (Reorder("0"),)


def test_choices_are_made_only_where_asked_for():
    def keep(*indices):
        return lambda model: {("0", "weight"): {0: list(indices)}}

    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    weight = model[0].weight.detach().clone()
    two = [Narrow({"0": [None, 3]}, chooser=keep(1, 2, 3)), Narrow({"0": [None, 2]}, chooser=keep(0, 2))]
    assert apply(model, two, choosing=True) == {"0": [1, 3]}
    assert model[0].weight.equal(weight[[1, 3]])
    assert apply(model, [Narrow({"0": [None, 1]}, chooser=keep(1))]) == {}
    assert model[0].weight.equal(weight[[1]])
