"""What torch's, torchvision's and timm's own tools do to an unconverted network they do to a converted one."""

import copy
import io
import pickle
import warnings
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from timm.models._features_fx import FeatureGraphNet
from torch import fx, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torchvision.models.feature_extraction import create_feature_extractor

import surgery
from surgery.methods.pix.layer import PiX
from tests.small_models import Net, with_statistics

SIZE = (3, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def converted(**options):
    torch.manual_seed(0)
    model = with_statistics(Net("module", "functional", "shared", function=F.silu))
    return surgery.convert(model, input_size=SIZE, **options).eval()


class Layers(nn.Module):
    """PiX layers of every kind in a row."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            PiX(16, 16, fusion="weighted"),
            PiX(16, 12, grouping="strided", activation="tanh"),
            PiX(12, 8, operator="min", stride=(2, 2)),
            PiX(8, 6, predictor_norm=True, input_norm=True, tau=0.52),
            PiX.from_conv(StdConv2d(6, 3, 1)),
        )
        self.stem = nn.Conv2d(3, 16, 1)

    def forward(self, x):
        return self.layers(self.stem(x))


def layers():
    torch.manual_seed(0)
    return Layers().eval()


def narrowed():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5)
    return surgery.convert(model, mode="downscale", zeta=3, input_size=(3, 32, 32)).eval()


MODELS = [converted, layers, narrowed]


def images(count=2, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_symbolic_trace(make, training):
    model = make().train(training)
    traced = fx.symbolic_trace(model)
    sites = [module for module in model.modules() if isinstance(module, PiX)]
    calls = [node for node in traced.graph.nodes if getattr(node.target, "__name__", "") in ("pix", "pix_fuse")]
    assert len(calls) == len(sites)
    traced = pickle.loads(pickle.dumps(traced)) if make is layers else traced
    x = images()
    torch.testing.assert_close(traced(x), copy.deepcopy(model)(x), rtol=0, atol=0)


@torch.no_grad()
def test_feature_extractors():
    model, x = converted(), images()
    model.feature_info = [{"num_chs": 16, "reduction": 1, "module": "blocks.1"}]  # what timm's networks know
    expected = model.blocks[1](model.blocks[0](torch.relu(model.stem(x))))
    for extractor in (
        create_feature_extractor(model, {"blocks.1": "out"}),
        FeatureGraphNet(copy.deepcopy(model), out_indices=(0,), out_map=["blocks.1"]),
    ):
        features = extractor(x)
        torch.testing.assert_close(features["out"] if isinstance(features, dict) else features[0], expected)


@pytest.mark.parametrize("make", MODELS)
@torch.no_grad()
def test_jit_trace_holds_plain_operators_and_any_batch(make):
    model = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.trace(model, images())
    own = Path(surgery.__file__).parent
    assert not [str(warning.message) for warning in caught if own in Path(warning.filename).parents]
    assert "surgery::" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x = images(3)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))


@pytest.mark.parametrize("make", MODELS)
def test_onnx_export_of_torch_itself(make):
    model, file = make(), io.BytesIO()
    torch.onnx.export(model, (images(),), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    x = images(3)
    (found,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_gradients_per_sample(make):
    model, x = make(), images(side=16)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, image):
        return functional_call(model, weights, (image[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for number in range(len(x)):
        model.zero_grad()
        model(x[number : number + 1]).square().sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name][number], p.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", MODELS)
def test_other_transforms(make):
    model, x = make(), images(side=16)
    tracked = x.clone().requires_grad_()
    model(tracked).sum().backward()
    torch.testing.assert_close(jacrev(lambda t: model(t).sum())(x), tracked.grad, rtol=1e-3, atol=1e-5)
    direction = torch.randn_like(x)
    _, along = jvp(lambda t: model(t).sum(), (x,), (direction,))
    torch.testing.assert_close(along, (tracked.grad * direction).sum(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_ensembles():
    models = [converted() for _ in range(2)]
    for p in models[1].parameters():
        p.add_(0.01)
    parameters, buffers = stack_module_state(models)
    base, x = copy.deepcopy(models[0]).to("meta"), images()
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    for model, output in zip(models, found, strict=True):
        torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)


def test_compiled_gradients_per_sample():
    model, x = layers(), images(side=16)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, image):
        return functional_call(model, weights, (image[None],)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))
    found = torch.compile(per_sample, backend="aot_eager")(parameters, x)
    for name, expected in per_sample(parameters, x).items():
        torch.testing.assert_close(found[name], expected)
