"""Files of the version before: their saliency.bias is the whole constant."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import surgery
from surgery.checkpoint.model_file import _digest

SIZE = 32


def written(folder, method, **options):
    torch.manual_seed(0)
    model = surgery.create("cifar_resnet", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    converted = surgery.convert(model, method, input_size=SIZE, **options).eval()
    for name, parameter in converted.named_parameters():
        if name.endswith("saliency.bias"):
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    surgery.save(converted, folder / "today.safetensors")
    return converted, folder / "today.safetensors"


def as_before(path, change):
    """The same network as the version before wrote it."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors = {key: tensor + 1 if key.endswith("saliency.bias") else tensor for key, tensor in tensors.items()}
    manifest, earlier = change(metadata["surgery"]), path.with_name("earlier.safetensors")
    assert manifest != metadata["surgery"]
    save_file(tensors, earlier, metadata | {"surgery": manifest, "sha256": _digest(manifest, tensors)})
    return earlier


@pytest.mark.parametrize(
    "method,change",
    [
        ("fbs", lambda text: text.replace("boost_and_suppress@2", "boost_and_suppress@1")),
        (
            "fbs-squeeze",
            lambda text: text.replace(json.dumps({"constant": 1.0}), "{}").replace('{"constant":1.0}', "{}"),
        ),
    ],
)
def test_they_compute_what_they_did(method, change, tmp_path):
    converted, path = written(tmp_path, method)
    earlier = surgery.load(as_before(path, change)).eval()
    x = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(earlier(x), converted(x), rtol=1e-4, atol=1e-5)
    surgery.save(earlier, tmp_path / "again.safetensors")
    with torch.no_grad():
        assert torch.equal(surgery.load(tmp_path / "again.safetensors").eval()(x), earlier(x))
    biases = [p for name, p in earlier.named_parameters() if name.endswith("saliency.bias")]
    assert biases and all(bias.mean() > 0.5 for bias in biases)
