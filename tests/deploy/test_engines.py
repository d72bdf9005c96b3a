"""Engines against the eager model, on images and on feature maps."""

import pytest
import torch
from torch import nn

import surgery
from surgery.core.errors import MissingPackageError
from surgery.core.run_setting import Setting
from surgery.deploy import engines
from surgery.deploy.engines import prepared
from surgery.methods.pix.layer import PiX
from tests.small_models import Net

FILES = [
    Setting(mode="onnxruntime", threads=1),
    Setting(mode="openvino", threads=1),
    Setting(mode="openvino", dtype="bfloat16", threads=1),
]


def tensor(output):
    return output if isinstance(output, torch.Tensor) else torch.from_numpy(output[0])


@pytest.mark.parametrize(
    "setting", [Setting(), Setting(mode="optimized"), *FILES], ids=lambda setting: f"{setting.mode}-{setting.dtype}"
)
@pytest.mark.parametrize("kind", ["network", "layer"])
def test_engines_agree_with_the_model_in_eval_mode(setting, kind, tmp_path):
    if setting.mode == "openvino":
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    model = surgery.convert(Net("module", "module")) if kind == "network" else PiX(12, 4, stride=(2, 2))
    x = torch.randn(3, *((3, 32, 32) if kind == "network" else (12, 9, 7)), dtype=torch.float64)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    output = tensor(prepared(model, x, setting, tmp_path)())
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    expected = model.eval()(x.float())
    tolerance = 0.1 if setting.dtype == "bfloat16" else 1e-4
    assert (output.float() - expected).abs().max() <= tolerance * expected.abs().max()
    assert not list(tmp_path.iterdir())


def test_threads_are_those_of_the_setting_while_it_runs(tmp_path):
    class Counting(nn.Module):
        def forward(self, x):
            counts.append(torch.get_num_threads())
            return x

    counts, before = [], torch.get_num_threads()
    step = prepared(Counting(), torch.zeros(1, 1, 1, 1), Setting(threads=before + 1), tmp_path)
    step()
    assert counts[-1] == before + 1
    assert torch.get_num_threads() == before


def test_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="training=True"):
        prepared(nn.ReLU(), torch.zeros(1, 1, 1, 1), Setting(training=True), tmp_path)


def test_a_missing_engine_is_named_with_its_extra(monkeypatch):
    def missing(extra, user, packages=()):
        raise MissingPackageError(f"{user}: {extra}")

    monkeypatch.setattr(engines, "check_extra", missing)
    engines.check_engine("eager")
    for mode, extra in (("onnxruntime", "export"), ("openvino", "openvino")):
        with pytest.raises(MissingPackageError, match=f"'{mode}': {extra}"):
            engines.check_engine(mode)
