import copy

import pytest
from torch import nn

from surgery.transforms.carry_out import apply
from surgery.transforms.drop import Drop
from surgery.transforms.reorder import INSIDE, THROUGHOUT, Reorder, check_same_order, orders


def test_changes_no_structure():
    model = nn.Conv2d(3, 3, 1)
    before = copy.deepcopy(model.state_dict())
    apply(model, [Reorder("0"), Drop(()), Reorder("1", inside=True)])
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert orders(model) == [Reorder("0"), Reorder("1", inside=True)]
    assert Reorder("0").changed() == ()


def test_notes_say_which_feature_maps_are_in_another_order():
    assert Reorder("0").note == THROUGHOUT
    assert Reorder("0", inside=True).note == INSIDE


def test_a_teacher_in_another_order_is_refused():
    model, teacher = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    apply(model, [Reorder("0"), Drop(())])
    with pytest.raises(ValueError, match="channels in different orders"):
        check_same_order(model, teacher)
    apply(teacher, [Reorder("0", inside=True)])
    check_same_order(model, teacher)
    apply(teacher, [Reorder("0")])
    with pytest.raises(ValueError, match="channels in different orders"):
        check_same_order(model, teacher)
