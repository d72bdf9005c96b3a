"""``sfvr``: which rule it takes by default."""

import pytest
import timm
import torch

import surgery


@pytest.mark.parametrize(("images", "rule"), [(None, "uniform"), (torch.randn(4, 3, 64, 64), "global")])
def test_the_rule_depends_on_what_variances_are_known_from(images, rule):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    widths = [
        list(surgery.plan(model, "sfvr", macs=0.6, images=images, **options).sites)
        for options in ({}, {"rule": rule}, {"rule": {"uniform": "global", "global": "uniform"}[rule]})
    ]
    assert widths[0] == widths[1] != widths[2]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule='best'.*auto.*uniform.*global"):
        surgery.plan(timm.create_model("test_resnet"), "sfvr", macs=0.6, rule="best")
    with pytest.raises(ValueError, match="rule='auto'"):
        surgery.plan(timm.create_model("test_resnet"), "l1", macs=0.6, rule="auto")
