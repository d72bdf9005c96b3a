import copy
import io
import pickle

import pytest
import torch
from torch import nn

import surgery
from surgery.transforms.drop import Drop
from surgery.transforms.history import HISTORY, changed_modules, history, remember
from surgery.transforms.narrow import Narrow
from surgery.transforms.pooled_head import PooledHead
from surgery.transforms.reorder import Reorder
from tests.small_models import Net


def chooser(model):
    raise AssertionError("what is chosen is chosen once")


def test_a_model_without_surgery_has_none():
    assert history(nn.Linear(1, 1)) == changed_modules(nn.Linear(1, 1)) == ()


def test_is_in_order_and_holds_no_chooser():
    model = nn.Linear(1, 1)
    remember(model, Reorder("0"), Narrow({"conv1": [None, 1]}, chooser=chooser))
    remember(model, PooledHead())
    assert history(model) == (Reorder("0"), Narrow({"conv1": [None, 1]}), PooledHead())
    assert history(model)[1].chooser is None


def test_copies_have_histories_of_their_own():
    model = nn.Linear(1, 1)
    remember(model, Reorder("0"))
    copies = [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    remember(model, Reorder("1"))
    assert [history(one) for one in copies] == [(Reorder("0"),)] * 3


@pytest.mark.parametrize("options", [{}, {"zeta": 8}, {"mode": "downscale", "zeta": 2, "insert": "blocks"}])
def test_a_converted_model_can_be_copied_and_pickled(options):
    model = surgery.convert(Net("module", "module"), input_size=(3, 8, 8), **options)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert history(again) == history(model)
        assert again(torch.randn(1, 3, 8, 8)).shape == (1, 5)
    assert history(model)
    assert all(getattr(done, "chooser", None) is None for done in getattr(model, HISTORY))


def test_changed_modules_are_named_once_in_the_order_of_the_model():
    model = Net("module", "module")
    remember(model, Narrow({"blocks.1.conv1": [None, 2], "blocks.0.conv1": [None, 2], "gone": [1, 1]}))
    remember(model, Narrow({"blocks.0.conv1": [None, 1]}), Drop(("blocks.0.bn1",)), Reorder("0"))
    assert changed_modules(model) == ("blocks.0.conv1", "blocks.1.conv1")
