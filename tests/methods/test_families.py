"""The dynamic and inserted methods on real families: they fit, cost what was predicted, and come back from a file."""

import warnings

import pytest
import timm
import torch

import surgery
from surgery.core.errors import NoSitesError
from surgery.graph import record
from surgery.graph.operation_cost import graph_cost
from surgery.planning.rehearsal import rehearsed_graph

SMALLER = {"densenet121": {"block_config": [2, 2, 2, 2]}, "vgg11_bn": {"mlp_ratio": 1 / 64}}
FAMILIES = ["resnet26", "mobilenetv2_050", "efficientnet_lite0", "densenet121", "regnetx_002", "vgg11_bn"]
WITHOUT_SITES = {("fbs-squeeze", "vgg11_bn"), ("octave", "densenet121")}
SIZE = 64


@pytest.fixture(scope="module", params=FAMILIES)
def original(request):
    torch.manual_seed(0)
    return request.param, timm.create_model(request.param, num_classes=4, **SMALLER.get(request.param, {})).eval()


@pytest.mark.parametrize("method", ["fbs", "fbs-squeeze", "octave", "se", "cbam"])
def test_it_works_on_the_family(original, method, tmp_path):
    name, model = original
    source = surgery.Source("timm", name, {"num_classes": 4, **SMALLER.get(name, {})})
    if (method, name) in WITHOUT_SITES:
        with pytest.raises(NoSitesError):
            surgery.convert(model, method, strict=True, input_size=SIZE)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = surgery.plan(model, method, input_size=SIZE)
        converted = surgery.convert(model, plan).eval()
    predicted = graph_cost(rehearsed_graph(record(model, SIZE), plan.decisions))
    assert graph_cost(record(converted, SIZE)) == predicted
    x = torch.randn(2, 3, SIZE, SIZE)
    converted.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())
    surgery.save(converted.eval(), tmp_path / "m.safetensors", source=source, input_size=SIZE)
    with torch.no_grad():
        assert torch.equal(surgery.load(tmp_path / "m.safetensors")(x), converted(x))


@pytest.mark.parametrize("placement", ["output", "norm_scale"])
def test_density_1_is_the_network_that_it_was(original, placement):
    _, model = original
    x = torch.randn(2, 3, SIZE, SIZE)
    converted = surgery.convert(model, "fbs", density=1.0, placement=placement, input_size=SIZE)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)
