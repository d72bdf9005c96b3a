import pytest

import surgery
from surgery.errors import SourceError
from surgery.source import parse_source


def test_names():
    assert str(parse_source("resnet50")) == "timm/resnet50"
    assert str(parse_source("timm/resnet50", {"num_classes": 2})) == "timm/resnet50 {'num_classes': 2}"
    assert str(parse_source("torchvision/resnet50")) == "torchvision/resnet50"


@pytest.mark.parametrize("name", ["resnet5", "torchvision/resnet5", "nowhere/resnet50"])
def test_unknown_names_list_near_ones(name):
    with pytest.raises(SourceError, match="there is no model"):
        parse_source(name)


def test_create_remembers():
    assert surgery.create("resnet26", num_classes=2).surgery_source == surgery.Source(
        "timm", "resnet26", {"num_classes": 2}
    )


def test_bad_builder_arguments():
    with pytest.raises(SourceError, match="cannot be built"):
        surgery.create("resnet26", colour="red")


@pytest.mark.parametrize("name", ["timm", "a/b", ""])
def test_builder_names_that_cannot_be(name):
    with pytest.raises(ValueError, match="builder name"):
        surgery.register_builder(name)


def test_a_builder_name_is_taken_once():
    surgery.register_builder("taken_once")(parse_source)
    surgery.register_builder("taken_once")(parse_source)
    with pytest.raises(ValueError, match="registered already"):
        surgery.register_builder("taken_once")(surgery.create)
