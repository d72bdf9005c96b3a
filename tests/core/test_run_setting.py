import pytest
import torch

from surgery.core.run_setting import Setting


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode='fast': one of 'eager'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"batch": 0}, "batch=0"),
        ({"threads": 0}, "threads=0"),
        ({"mode": "cudagraph"}, "device='cuda'"),
        ({"mode": "onnx", "training": True}, "inference in float32"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Setting(**options)


def test_cuda_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        Setting(device="cuda")
