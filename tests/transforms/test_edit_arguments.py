import pytest
from torch import nn

import surgery
from surgery.checkpoint.build_budget import Budget, BudgetError
from surgery.planning.registry import methods
from surgery.transforms.edit import Edit, apply, history
from surgery.transforms.edit_arguments import affordable, check_arguments
from tests.small_models import Net

OPTIONS = {"tau": 0.5, "fusion": "threshold", "norm": "none"}


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("pix", {"identity": ["bn1", "act1"], "erase": []}),
        ("pix", OPTIONS | {"identity": [], "erase": ["block", "conv1", [[1, "relu"], [2, "ReLU"]]]}),
        ("pix", OPTIONS | {"squeezed": 4}),
        ("pix", {"pool_head": True}),
        ("squeeze-conv", {"squeezed": 4}),
        ("squeeze-conv", {"pool_head": True}),
        ("narrow", {"widths": {"conv1": [None, 4], "bn1": [4, None]}}),
        ("match", {"order": "0123456789abcdef"}),
    ],
)
def test_forms_that_are_written(method, arguments):
    check_arguments(Edit(method, "conv1", arguments=arguments))


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("pix", {}, r"has the arguments \[\]; it takes pool_head; or squeezed"),
        ("pix", {"identity": []}, "it takes pool_head"),
        ("pix", {"squeezed": 4, "identity": [], "erase": []}, "it takes pool_head"),
        ("pix", {"squeezed": 4, "taus": 1}, "it takes pool_head"),
        ("pix", {"squeezed": True}, "squeezed=True: a whole number >= 1"),
        ("pix", {"squeezed": 0}, "squeezed=0"),
        ("pix", {"squeezed": 1.0}, "squeezed=1.0"),
        ("pix", {"squeezed": 10**9}, "squeezed=1000000000"),
        ("pix", {"pool_head": False}, "pool_head=False: true is needed"),
        ("pix", {"pool_head": 1}, "pool_head=1: true is needed"),
        ("pix", {"identity": "bn1", "erase": []}, "identity='bn1': a list of module names"),
        ("pix", {"identity": [""], "erase": []}, "identity="),
        ("pix", {"identity": [], "erase": ["a", "b"]}, "erase="),
        ("pix", {"identity": [], "erase": ["a", "b", []]}, "erase="),
        ("pix", {"identity": [], "erase": ["a", "b", [[10**9, "relu"]]]}, "erase="),
        ("pix", {"identity": [], "erase": ["a", "b", [[1, "relu"]] * 17]}, "erase="),
        ("pix", {"identity": [], "erase": None}, "erase=None"),
        ("pix", {"squeezed": 4, "tau": 7}, "tau=7"),
        ("pix", {"squeezed": 4, "fusion": []}, r"fusion=\[\]"),
        ("pix", {"squeezed": 4, "predictor_norm": 1}, "predictor_norm=1"),
        ("squeeze-conv", {"squeezed": 4, "tau": 0.5}, "it takes pool_head; or squeezed"),
        ("narrow", {"widths": None}, "widths=None: module → "),
        ("narrow", {"widths": {"conv1": [4]}}, "widths="),
        ("narrow", {"widths": {"conv1": [0, 4]}}, "widths="),
        ("narrow", {"widths": {"conv1": [4, True]}}, "widths="),
        ("narrow", {}, "it takes widths"),
        ("match", {"order": 5}, "order=5: a digest"),
    ],
)
def test_others_are_refused(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        check_arguments(Edit(method, "conv1", arguments=arguments))


def test_every_method_declares_its_forms():
    assert all(method.forms for method in methods().values())


def test_edits_cost_what_they_are():
    edits = [Edit("match", "", arguments={"order": "0"})] * 100_000
    with pytest.raises(BudgetError, match="more than a network of 3 tensors"):
        apply(nn.Conv2d(3, 3, 1), affordable(nn.Conv2d(3, 3, 1), edits, Budget(3, 100)))
    model = Net("functional", "functional")
    calls = ["blocks.0", "conv1", [[2, "relu"]]]
    erasing = Edit("pix", "blocks.0.conv1", arguments={"identity": [], "erase": calls})
    modules = len(list(model.blocks[0].modules()))
    budget = Budget(3, 100)
    before = budget.left
    list(affordable(model, [erasing], budget))
    one = before - budget.left
    with pytest.raises(BudgetError):
        list(affordable(model, [erasing] * (before // one + 1), budget))
    assert one > modules * 10_000


def test_a_long_history_is_written_once():
    """A hundred thousand edits take seconds; with the history copied for each of them it was an hour."""
    model = apply(nn.Conv2d(3, 3, 1), (Edit("match", "", arguments={"order": "0"}) for _ in range(100_000)))
    assert len(history(model)) == 100_000
    apply(model, [Edit("match", "", arguments={"order": "1"})])
    assert len(history(model)) == 100_001


def test_edits_before_one_that_fails_are_in_the_history():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(surgery.errors.SurgeryError, match="no module"):
        apply(model, [Edit("match", "", arguments={"order": "0"}), Edit("pix", "x", arguments={})])
    assert [edit.method for edit in history(model)] == ["match"]
