import pytest
import timm
import torch

import surgery
from surgery.transforms.changed import added_modules, changed_layers, is_converted
from surgery.transforms.history import changed_modules
from tests.small_models import Net, narrowed_alone

pytestmark = pytest.mark.filterwarnings("ignore::surgery.core.errors.ConversionWarning")
SIZE = (3, 8, 8)


def net():
    return Net("module", "functional")


def test_nothing_changed():
    for model in (net(), surgery.match(net(), input_size=SIZE)):  # an order of channels is no change of structure
        assert not is_converted(model)
        assert changed_modules(model) == ()


def test_replaced():
    model = surgery.convert(net(), input_size=SIZE)
    assert is_converted(model)
    assert changed_modules(model) == ("blocks.0.conv1", "blocks.1.conv1") == added_modules(model)


def test_resized_and_replaced_in_the_order_of_the_model():
    model = surgery.convert(net(), zeta=8, include="blocks.0", input_size=SIZE)
    resized = tuple(f"blocks.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2", "conv3"))
    assert changed_modules(model) == resized
    assert added_modules(model) == ("blocks.0.conv1",)
    assert changed_layers(model) == ("blocks.0.conv1", *resized[1:])
    assert changed_layers(narrowed_alone(net(), zeta=8, include="blocks.0", input_size=SIZE)) == resized


@pytest.mark.parametrize("options", [{"method": "squeeze-conv"}, {"norm": "after"}])
def test_inserted(options):
    model = surgery.convert(net(), mode="downscale", zeta=2, insert="*conv2", input_size=SIZE, **options)
    assert changed_modules(model) == ("blocks.0.conv2", "blocks.1.conv2")
    assert added_modules(model) == changed_layers(model) == ("blocks.0.conv2.squeeze", "blocks.1.conv2.squeeze")


def test_of_what_was_changed_within_an_inserted_module_the_outermost_is_added():
    model = surgery.convert(net(), "squeeze-conv", mode="downscale", zeta=2, insert="*conv2", input_size=SIZE)
    model = surgery.convert(model, include="*squeeze.conv", input_size=SIZE)
    assert set(changed_modules(model)) >= {"blocks.0.conv2.squeeze.conv", "blocks.1.conv2.squeeze.conv"}
    assert added_modules(model) == ("blocks.0.conv2.squeeze", "blocks.1.conv2.squeeze")


def test_a_head_that_was_pooled_is_surgery_though_it_names_no_layer():
    model = timm.create_model("vgg11", num_classes=5)
    model = surgery.convert(model, "squeeze-conv", mode="prune", exclude="*", head="pool", input_size=32)
    assert is_converted(model)
    assert changed_modules(model) == added_modules(model) == ()


def test_names_that_are_gone_are_left_out():
    model = surgery.convert(net(), input_size=SIZE)
    model.blocks = torch.nn.Sequential(model.blocks[0])
    assert changed_modules(model) == ("blocks.0.conv1",)
