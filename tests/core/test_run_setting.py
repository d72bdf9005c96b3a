import pytest
import torch

from surgery.core.run_setting import Setting, describe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode='fast': one of 'eager'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"batch": 0}, "batch=0"),
        ({"threads": 0}, "threads=0"),
        ({"mode": "cudagraph"}, "device='cuda'"),
        ({"mode": "onnx", "training": True}, "inference in float32 on the CPU, not for training"),
        ({"mode": "onnxruntime", "dtype": "bfloat16"}, "inference in float32 on the CPU"),
        ({"mode": "openvino", "dtype": "float16"}, "inference in float32 or bfloat16 on the CPU"),
        ({"mode": "openvino", "training": True}, "mode='openvino' is for inference"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Setting(**options)


def test_onnx_is_another_name_of_onnxruntime():
    assert Setting(mode="onnx") == Setting(mode="onnxruntime")
    assert describe(Setting(mode="openvino", dtype="bfloat16", threads=1)) == "openvino, bfloat16, batch 1, 1 thread"


def test_cuda_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        Setting(device="cuda")
