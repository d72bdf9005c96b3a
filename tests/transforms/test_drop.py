import pytest
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.transforms.drop import Drop
from tests.small_models import Net


def test_modules_become_identities_in_the_same_mode():
    model = Net("module").eval()
    done = Drop(("blocks.0.bn1", "blocks.0.act1"))
    done.apply(model)
    assert type(model.blocks[0].bn1) is type(model.blocks[0].act1) is nn.Identity
    assert not model.blocks[0].bn1.training
    assert isinstance(model.blocks[0].bn2, nn.BatchNorm2d)
    assert done.removed() == ("blocks.0.bn1", "blocks.0.act1")
    assert done.changed() == done.resized() == ()


def test_a_module_that_is_not_there():
    with pytest.raises(SurgeryError, match="Net has no module 'blocks.7.bn1'"):
        Drop(("blocks.7.bn1",)).apply(Net("module"))
