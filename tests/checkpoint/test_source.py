import pytest
from torch import nn

import surgery
from surgery.checkpoint.source import build, parse_source
from surgery.core.errors import SourceError


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


def test_nothing_is_downloaded_without_pretrained():
    """torchvision's own default for a segmentation network's backbone is a download."""
    model = surgery.create("torchvision/lraspp_mobilenet_v3_large", num_classes=4)
    assert model.surgery_source.kwargs == {"num_classes": 4}
    model = surgery.create("torchvision/lraspp_mobilenet_v3_large", num_classes=4, weights_backbone=None)
    assert model.surgery_source.kwargs == {"num_classes": 4}
    with pytest.raises(SourceError, match=r"kwargs.weights_backbone: what names weights"):
        surgery.create("torchvision/lraspp_mobilenet_v3_large", weights_backbone="DEFAULT")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp", "torchvision/local-dir:/tmp"])
def test_names_come_from_the_registry(name):
    with pytest.raises(SourceError):
        surgery.create(name)


def test_a_registered_builder_has_no_name():
    with pytest.raises(SourceError, match="name='resnet18': a name goes with timm and torchvision only"):
        build(surgery.Source("cifar_resnet", "resnet18"))


@pytest.mark.parametrize(
    "error", [KeyError("a"), IndexError("a"), ZeroDivisionError("a"), OSError("a"), AssertionError()]
)
def test_whatever_a_builder_raises_is_one_error(error):
    def failing():
        raise error

    surgery.register_builder("failing")(failing)
    with pytest.raises(SourceError, match=f"failing cannot be built: {type(error).__name__}") as caught:
        build(surgery.Source("failing"))
    assert caught.value.__cause__ is error


def test_builders_that_take_only_tuples():
    def of_tuples(sizes):
        return nn.Conv2d(3, 4, (1,) + sizes)  # noqa: RUF005 (a list would not do)

    surgery.register_builder("of_tuples")(of_tuples)
    source = surgery.Source("of_tuples", "", {"sizes": (3,)})
    assert source.kwargs == {"sizes": [3]}
    assert build(source).kernel_size == (1, 3)
