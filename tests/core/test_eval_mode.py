import pytest
from torch import nn

from surgery.core.eval_mode import eval_mode


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3)))
    model[1].eval()
    with pytest.raises(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, False]
