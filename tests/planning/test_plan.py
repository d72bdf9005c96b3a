import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.core.errors import SurgeryError
from surgery.models.cifar_resnet import cifar_resnet
from surgery.planning.decision import Decision
from surgery.planning.plan import Plan
from surgery.transforms.narrow import Narrow, SameChannels
from surgery.transforms.transform import transform_from_json


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        return timm.create_model("resnet50")


def test_prints_sites_and_reasons(resnet50):
    text = str(surgery.plan(resnet50, zeta=4))
    assert "16 converted, 20 passed over" in text
    assert "layer1.1.conv1  bottleneck head  256 → 64" in text
    assert "expands 64 to 256 channels: " in text


def test_small_zeta_never_widens_and_says_so(resnet50):
    plan = surgery.plan(resnet50, zeta=2)
    assert [row.channels for row in plan.sites] == [row.channels for row in surgery.plan(resnet50).sites]
    assert "zeta=2 is below the network's 4" in plan.sites[1].note


def test_zeta_by_pattern_narrows_there_only(resnet50):
    channels = {row.site: row.channels for row in surgery.plan(resnet50, zeta={"layer3": 8}).sites}
    assert channels["layer3.1.conv1"] == (1024, 128)
    assert channels["layer2.1.conv1"] == (512, 128)


def test_the_longest_pattern_decides(resnet50):
    channels = {row.site: row.channels for row in surgery.plan(resnet50, zeta={"layer3": 8, "layer3.2*": 4}).sites}
    assert (channels["layer3.1.conv1"], channels["layer3.2.conv1"]) == ((1024, 128), (1024, 256))


@pytest.mark.parametrize("name", ["resnet14t", "resnest14d", "resnet26", "resnetv2_50"])
def test_zeta_four_is_the_ratio_of_every_resnet_however_few_blocks_it_has(name):
    """Squeezes of first blocks read a narrower stream than their block writes; in short networks they are the most."""
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = surgery.plan(model, zeta=4)
    assert plan.transforms == surgery.plan(model).transforms
    assert plan.notes == ()


@pytest.mark.parametrize(("name", "own"), [("darknet21", 2), ("cspresnet50", 2), ("resnext26ts", 4), ("dpn48b", 1)])
def test_a_zeta_above_the_networks_own_ratio_is_said_with_both_macs(name, own):
    with torch.device("meta"):
        model = timm.create_model(name)
    before = surgery.cost(model).macs
    asked, kept = (surgery.cost(_on_meta(model, zeta=zeta)).macs for zeta in (2 * own, own))
    plan = surgery.plan(model, zeta=2 * own)
    (note,) = plan.notes
    assert note in str(plan)
    assert f"zeta={2 * own} is above this network's own ratio {own} " in note
    assert f": {asked / before:.2f} of " in note
    assert note.endswith(f"zeta={own} (or none) keeps all widths and leaves {kept / before:.2f}")
    assert kept > asked


def _on_meta(model, **arguments):
    return surgery.plan(model, **arguments).apply(copy.deepcopy(model))


def test_convert_warns_of_narrower_blocks():
    model = cifar_resnet(layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    with pytest.warns(UserWarning, match="own ratio 4 .* MACs are left; zeta=4 "):
        surgery.convert(model, zeta=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surgery.convert(model, zeta=4)


def test_include_and_exclude(resnet50):
    names = [row.site for row in surgery.plan(resnet50, include=["layer3", "layer4"], exclude="*.0.conv1").sites]
    assert len(names) == 7
    assert all(name.startswith(("layer3", "layer4")) and ".0." not in name for name in names)


def test_equal_width_heads_only_where_the_network_narrows():
    with torch.device("meta"):
        regnet = timm.create_model("regnety_016")
    assert surgery.plan(regnet).sites == ()
    assert "narrows nowhere" in str(surgery.plan(regnet))
    assert len(surgery.plan(regnet, equal_width=True).sites) == 23


def test_projections_argument():
    with torch.device("meta"):
        mobilenet = timm.create_model("mobilenetv2_100")
    counts = [len(surgery.plan(mobilenet, projections=p).sites) for p in ("residual", "all", "none")]
    assert counts == [10, 17, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"zeta": 0}, ValueError, "zeta=0"),
        ({"zeta": -1}, ValueError, "zeta=-1"),
        ({"zeta": 2.5}, ValueError, "zeta=2.5"),
        ({"zeta": float("nan")}, ValueError, "zeta=nan"),
        ({"zeta": "x"}, TypeError, "zeta='x'"),
        ({"zeta": True}, TypeError, "zeta=True"),
        ({"zeta": {}}, ValueError, "zeta={}"),
        ({"zeta": {"layer3": 0}}, ValueError, r"zeta\['layer3'\]=0"),
        ({"zeta": {"layer9": 4}}, ValueError, "zeta pattern 'layer9' matches no site"),
        ({"zeta": [4]}, TypeError, r"zeta=\[4\]"),
        ({"include": 3}, TypeError, "include=3: name patterns"),
        ({"include": "nothing"}, ValueError, "include pattern 'nothing' matches no site"),
        ({"exclude": ["nothing"]}, ValueError, "exclude pattern 'nothing' matches no site"),
        ({"insert": "*"}, ValueError, "goes with mode='downscale'"),
        ({"mode": "squeez"}, ValueError, "did you mean 'squeeze'"),
        ({"mode": "downscale"}, ValueError, "needs a zeta"),
        ({"projections": "some"}, ValueError, "projections='some'"),
        ({"importance": "l7"}, ValueError, "importance='l7'"),
        ({"head": "pool"}, ValueError, "goes with mode='downscale'"),
        ({"tua": 0.5}, ValueError, "did you mean 'tau'"),
        ({"method": "pixx"}, ValueError, "did you mean 'pix'"),
        ({"method": "squeeze-conv", "mode": "squeeze"}, ValueError, "one of 'downscale', 'prune' is needed"),
        ({"method": "squeeze-conv"}, ValueError, "needs a zeta"),
    ],
)
def test_bad_arguments_name_themselves(resnet50, arguments, error, message):
    with pytest.raises(error, match=message):
        surgery.plan(resnet50, **arguments)


@pytest.mark.parametrize("arguments", [{"zeta": 8}, {"zeta": np.int64(8)}, {"mode": "prune", "zeta": np.int64(2)}])
def test_transforms_are_json(resnet50, arguments):
    for transform in surgery.plan(resnet50, **arguments).transforms:
        assert transform_from_json(json.loads(json.dumps(transform.to_json()))) == transform


@pytest.mark.parametrize("name", ["tresnet_m", "lowformer_e3"])
@pytest.mark.parametrize("zeta", [4, 12])
def test_stems_that_rearrange_pixels_and_consumers_that_are_no_convolutions(name, zeta):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert surgery.plan(model, zeta=zeta).sites


@pytest.mark.parametrize("arguments", [{"method": "l1", "macs": 0.6}, {"zeta": 8}], ids=["l1", "zeta"])
def test_a_plan_is_not_carried_out_on_a_network_of_other_widths(arguments):
    """Of the same class and names; the channels that were planned to stay are there, and others besides."""
    planned, wider = (cifar_resnet(layers=(1, 1, 1, 1), channels=(width,) * 4) for width in (8, 16))
    plan = surgery.plan(planned, input_size=32, **arguments)
    before = {name: tensor.clone() for name, tensor in wider.state_dict().items()}
    for use in (plan.apply, plan.kept_outputs):
        with pytest.raises(SurgeryError, match=r"is of shape \(16, .* made for a model where it is of shape \(8, "):
            use(wider)
    assert all(tensor.equal(before[name]) for name, tensor in wider.state_dict().items())
    with pytest.raises(SurgeryError, match="made for"):
        plan.apply(plan.apply(planned))


@pytest.mark.parametrize("arguments", [{"method": "l1", "macs": 0.6}, {"zeta": 8}], ids=["l1", "zeta"])
@torch.no_grad()
def test_a_plan_is_kept_in_a_pickle(arguments):
    model = cifar_resnet(layers=(1, 1, 1, 1), channels=(8,) * 4).eval()
    plan = surgery.plan(model, input_size=32, **arguments)
    again = pickle.loads(pickle.dumps(plan))
    assert (again, str(again)) == (plan, str(plan))
    x = torch.randn(1, 3, 32, 32)
    one, two = (p.apply(copy.deepcopy(model)) for p in (plan, again))
    assert torch.equal(one(x), two(x))


def test_outputs_kept_by_two_steps_are_those_of_the_first_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    steps = [
        Narrow({"0": [None, len(kept)], "1": [len(kept), None]}, chooser=SameChannels(_keep(kept)))
        for kept in ([1, 2, 3], [0, 2])
    ]
    plan = Plan((Decision("one", (steps[0],)), Decision("two", (steps[1],))), (), (3, 8, 8), "own", None)
    assert plan.kept_outputs(model)["0"] == [1, 3]
    assert model[0].out_channels == 4


def _keep(kept):
    return {("0", "weight"): {0: kept}, ("1", "weight"): {1: kept}}
