import warnings

import pytest
import timm
import torch

import surgery
from surgery.core.errors import ConversionWarning, NoSitesError
from tests.small_models import Net


def built(name):
    with torch.device("meta"):
        return timm.create_model(name)


def test_projections_are_noted_and_warned_of():
    model = timm.create_model("mobilenetv2_035")
    (note,) = surgery.plan(model, input_size=64).notes
    assert note.startswith("10 of the 10 sites are projections")
    assert "projections='none'" in note
    with pytest.warns(ConversionWarning, match="trained for long"):
        surgery.convert(model, input_size=64)


def test_bottlenecks_have_no_note():
    assert surgery.plan(Net("module", "module")).notes == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surgery.convert(Net("module", "module"))


@pytest.mark.parametrize(
    ("name", "arguments", "tries"),
    [
        ("resnet18", {}, "mode='downscale', zeta=2"),
        ("regnety_016", {}, "equal_width=True (--equal-width) converts"),
        ("mobilenetv2_100", {"projections": "none"}, "projections='residual' or 'all'"),
        ("resnet50", {"include": "layer3", "exclude": "layer3"}, "other include= or exclude= patterns"),
    ],
)
def test_what_to_try_where_nothing_is_converted(name, arguments, tries):
    plan = surgery.plan(built(name), **arguments)
    assert plan.transforms == ()
    assert tries in plan.notes[0]
    assert f"note: {plan.notes[0]}" in str(plan)


def test_convert_says_what_to_try():
    with pytest.warns(ConversionWarning, match="mode='downscale'"):
        surgery.convert(timm.create_model("resnet18"), input_size=32)
    with pytest.raises(NoSitesError, match="mode='downscale'"):
        surgery.convert(timm.create_model("resnet18"), strict=True, input_size=32)
