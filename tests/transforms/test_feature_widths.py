import pytest
import timm
import torch
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.transforms.carry_out import apply
from surgery.transforms.feature_widths import FeatureWidths, feature_info, number
from surgery.transforms.transform import transform_from_json


@pytest.fixture
def model():
    with torch.device("meta"):
        return timm.create_model("test_convnext")


def test_it_sets_numbers_and_leaves_the_rest_of_an_entry(model):
    before = feature_info(model)
    apply(model, [FeatureWidths({"num_features": 40, "head.in_features": 41}, tuple(range(1, len(before) + 1)))])
    assert (number(model, "num_features"), number(model, "head.in_features")) == (40, 41)
    assert [entry["num_chs"] for entry in model.feature_info] == list(range(1, len(before) + 1))
    assert [{**entry, "num_chs": 0} for entry in model.feature_info] == [{**entry, "num_chs": 0} for entry in before]
    assert before[0]["num_chs"] != 1  # the list is a new one: others may hold the old


@pytest.mark.parametrize(
    "change",
    [FeatureWidths({"embed_dim": 4}), FeatureWidths({"num_features": 4}, (1,)), FeatureWidths({"head.hidden_size": 4})],
    ids=repr,
)
def test_nothing_changes_in_a_network_that_does_not_tell_such_a_width(model, change):
    before = vars(model).copy()
    with pytest.raises(SurgeryError, match="has no"):
        change.apply(model)
    assert vars(model) == before


def test_a_layer_is_not_told_its_own_width():
    model = nn.Module()
    model.head = nn.Linear(4, 2)
    assert number(model, "head.in_features") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"numbers": {"forward": 3}},
        {"numbers": {"head.training": 1}},
        {"numbers": {"num_features": 0}},
        {"numbers": {"num_features": 2.5}},
        {"numbers": []},
        {"channels": 3},
        {"channels": [True]},
        {"channels": [10**9]},
    ],
)
def test_files_cannot_set_anything_else(fields):
    with pytest.raises(ValueError, match="needed"):
        transform_from_json({"type": "feature_widths@1", **fields})
