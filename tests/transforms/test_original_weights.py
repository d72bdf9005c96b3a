import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import surgery
from surgery.methods.pix.layer import PiX
from surgery.transforms.history import history
from tests.small_models import Net, with_statistics

SIZE = (3, 8, 8)


@surgery.register_builder("net-of-original-weights")
def build():
    return Net("module", "functional", "module", function=F.silu)


def networks(**options):
    torch.manual_seed(0)
    original = with_statistics(build())
    converted = surgery.convert(original, input_size=SIZE, **options)
    for p in converted.parameters():
        nn.init.zeros_(p)
    return original.eval(), converted.eval()


def loaded(tmp_path, converted):
    surgery.save(converted, tmp_path / "m.safetensors", source="net-of-original-weights", input_size=SIZE)
    return surgery.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("way", ["itself", "deepcopy", "pickle", "load", "wrapped"])
def test_the_originals_state_dict_loads_strictly_and_says_what_is_left_out(way, tmp_path):
    original, model = networks()
    state = original.state_dict()
    expected = surgery.convert(original, input_size=SIZE)
    if way == "deepcopy":
        model = copy.deepcopy(copy.deepcopy(model))
    elif way == "pickle":
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        model = torch.load(file, weights_only=False)
    elif way == "load":
        model = loaded(tmp_path, model)
    target = nn.ModuleDict({"net": model}) if way == "wrapped" else model
    if way == "wrapped":
        state = {f"net.{name}": tensor for name, tensor in state.items()}
    before = dict(state)
    with pytest.warns(UserWarning, match=r"its 15 entries of modules that surgery removed \(blocks\.0\.bn1, blocks\.1"):
        result = target.load_state_dict(state, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert state.keys() == before.keys()
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected.eval()(x), rtol=0, atol=0)


def test_other_foreign_entries_are_refused_as_ever():
    original, model = networks()
    state = {**original.state_dict(), "blocks.0.bn3.weight": torch.ones(3), "blocks.0.bn1x.weight": torch.ones(3)}
    with pytest.raises(RuntimeError, match="Unexpected key") as caught, pytest.warns(UserWarning):
        model.load_state_dict(state)
    assert "bn3" in str(caught.value)
    assert "bn1x" in str(caught.value)
    assert "blocks.0.bn1.weight" not in str(caught.value)


def test_its_own_state_dict_needs_no_word():
    _, model = networks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(copy.deepcopy(model).state_dict())


def test_what_was_put_in_the_place_of_a_removed_module_is_loaded():
    original, model = networks()
    model.blocks[0].bn1 = nn.BatchNorm2d(4)
    with pytest.warns(UserWarning, match="its 10 entries"):
        model.load_state_dict(original.state_dict())
    assert torch.equal(model.blocks[0].bn1.running_mean, original.blocks[0].bn1.running_mean)


def test_a_matched_network_is_told_of_the_order():
    original, model = networks(match=True)
    with pytest.warns(UserWarning, match="original's order again"):
        model.load_state_dict(original.state_dict())


@pytest.mark.parametrize("options", [{"zeta": 8}, {"mode": "downscale", "zeta": 2, "insert": "blocks"}])
def test_other_widths_are_explained(options):
    original, model = networks(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"surgery changed the widths of \d+ layers.*convert that with the same"):
            model.load_state_dict(original.state_dict())


def test_one_hook_however_often_a_model_is_converted():
    original, model = networks(include="blocks.0")
    model = surgery.convert(model, include="blocks.2", input_size=SIZE)
    assert len(model._load_state_dict_pre_hooks) == 1
    assert isinstance(model.blocks[2].conv1, PiX)
    assert pickle.loads(pickle.dumps(history(model))) == history(model)
    with pytest.warns(UserWarning, match=r"its 10 entries of modules that surgery removed \(blocks\.0\.bn1, blocks\.2"):
        model.load_state_dict(original.state_dict())


def test_the_warning_points_to_the_line_that_loads():
    original, model = networks()
    for target, state in (
        (model, original.state_dict()),
        (nn.Sequential(model), {f"0.{name}": tensor for name, tensor in original.state_dict().items()}),
    ):
        with pytest.warns(UserWarning, match="are left out") as warned:
            target.load_state_dict(state)
        assert warned[0].filename == __file__
