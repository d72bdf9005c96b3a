import pytest
import timm
import torch
import torchvision
from torch.nn.utils import prune

from surgery.graph import record
from surgery.planning.sites import HEAD, PROJECTION, TRANSITION, squeeze_sites
from tests.small_models import Awkward, Fire, ScaledProjection, Squeezed, TwoOutputs, Wrapped


def found(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    return squeeze_sites(record(model))


def test_awkward_convolutions_are_passed_over_with_their_reason():
    sites, skipped = squeeze_sites(record(Awkward(), (3, 8, 8)))
    reasons = {item.name: item.reason for item in skipped}
    assert sites == []
    assert "shared" in reasons["shared"]
    assert "tied" in reasons["tied"]
    assert "tied" in reasons["twin"]
    assert "padded" in reasons["padded"]
    assert "grouped" in reasons["grouped"]
    assert "F.conv2d" in reasons[" (F.conv2d)"]
    assert "not called" in reasons["unused"]


@pytest.mark.parametrize(
    ("name", "heads", "projections"),
    [
        ("resnet50", 16, 0),
        ("resnetv2_50", 16, 0),
        ("res2net50_26w_4s", 15, 0),
        ("resnest50d", 16, 0),
        ("nfnet_f0", 11, 0),
        ("inception_v3", 21, 0),
        ("mobilenetv2_100", 0, 10),
        ("efficientnet_b0", 0, 9),
        ("resnet18", 0, 0),
        ("convnext_tiny", 0, 0),
        ("vgg16_bn", 0, 0),
    ],
)
def test_heads_and_residual_projections(name, heads, projections):
    roles = [site.role for site in found(name)[0]]
    assert (roles.count(HEAD), roles.count(PROJECTION)) == (heads, projections)


def test_every_pointwise_convolution_is_listed_once():
    sites, skipped = found("seresnet50")
    with torch.device("meta"):
        model = timm.create_model("seresnet50")
    pointwise = {n for n, m in model.named_modules() if getattr(m, "kernel_size", None) == (1, 1)}
    listed = [item.name for item in (*sites, *skipped)]
    assert sorted(listed) == sorted(pointwise)


def test_gates_shortcuts_and_stems_are_never_sites():
    reasons = {item.name: item.reason for item in found("seresnet50")[1]}
    assert "pooled descriptor" in reasons["layer1.0.se.fc1"]
    with torch.device("meta"):
        googlenet = torchvision.models.googlenet(init_weights=False)
    reasons = {item.name: item.reason for item in squeeze_sites(record(googlenet))[1]}
    assert reasons["conv2.conv"] == "part of the stem"
    assert "not called" in reasons["aux1.conv.conv"]


def test_mobilenet_transitions_are_told_from_residual_projections():
    sites = found("mobilenetv2_100")[0]
    assert {s.ratio for s in sites if s.role == PROJECTION} == {6.0}
    assert sum(s.role == TRANSITION for s in sites) == 7


class Head(torch.nn.Module):
    """A narrowing 1×1, something behind it, and a 3×3, in a residual block."""

    def __init__(self, behind, wrap=lambda conv: conv):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.squeeze = wrap(torch.nn.Conv2d(16, 8, 1))
        self.behind = behind
        self.spatial = torch.nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return x + self.spatial(self.behind(self.squeeze(x)))


class Centred(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)


class Doubled(torch.nn.Module):
    def forward(self, x):
        return torch.tanh(2 * x)


@pytest.mark.parametrize(
    ("behind", "is_site"),
    [(torch.nn.ChannelShuffle(2), False), (torch.nn.Softmax(1), False), (Centred(), False), (Doubled(), True)],
)
def test_only_elementwise_modules_count_as_activations(behind, is_site):
    sites, _ = squeeze_sites(record(Head(behind), (3, 8, 8)))
    assert (len(sites) == 1) is is_site
    assert all(site.after.act is not None for site in sites)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
)
def test_computed_weights_are_left_alone(wrap):
    sites, skipped = squeeze_sites(record(Head(torch.nn.ReLU(), wrap), (3, 8, 8)))
    assert sites == []
    assert "computed from others" in {item.name: item.reason for item in skipped}["squeeze"]


def test_hooks_are_not_lost():
    model = Head(torch.nn.ReLU())
    model.squeeze.register_forward_hook(lambda module, inputs, output: None)
    assert "hooks" in squeeze_sites(record(model, (3, 8, 8)))[1][0].reason


def reasons_of(model, size=(3, 16, 16)):
    sites, skipped = squeeze_sites(record(model, size))
    return {site.name: site.role for site in sites}, {item.name: item.reason for item in skipped}


def test_a_stem_ends_at_the_first_head():
    sites, reasons = reasons_of(TwoOutputs())
    assert sites == {"chain.2": HEAD, "chain.8": HEAD}
    assert reasons == {}


def test_what_comes_before_the_first_head_is_the_stem():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 1), Forking())
    assert reasons_of(model) == ({"2.squeeze": HEAD}, {"1": "part of the stem"})


class Forking(torch.nn.Module):
    """A 3×3, a head, a 3×3, and two readers."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(16, 16, 3)
        self.squeeze = torch.nn.Conv2d(16, 8, 1)
        self.last = torch.nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = self.last(self.squeeze(self.first(x)))
        return x.mean((2, 3)) + x.amax((2, 3))


def test_a_squeeze_may_be_read_by_a_1x1_beside_a_3x3():
    assert reasons_of(Wrapped(Fire()))[0] == {"block.squeeze": HEAD}
    both_narrow = Fire()
    both_narrow.expand3 = torch.nn.Conv2d(4, 8, 1)
    assert reasons_of(Wrapped(both_narrow))[1]["block.squeeze"] == "no spatial convolution reads it"


class TransposedFunction(Squeezed):
    """The transposed convolution is a bare call."""

    def forward(self, x):
        y = self.behind(self.norm(self.squeeze(x)))
        return x + torch.nn.functional.conv_transpose2d(y, self.reads.weight.transpose(0, 1), padding=1)


@pytest.mark.parametrize(
    ("block", "is_site"),
    [
        (Squeezed(reads=torch.nn.ConvTranspose2d(8, 16, 3, padding=1)), True),
        (TransposedFunction(), True),
        (Squeezed(reads=torch.nn.ConvTranspose2d(8, 16, 1)), False),
    ],
    ids=["module", "function", "1×1"],
)
def test_a_transposed_convolution_is_spatial(block, is_site):
    sites, reasons = reasons_of(Wrapped(block))
    assert ("block.squeeze" in sites) is is_site
    if not is_site:
        assert reasons["block.squeeze"] == "no spatial convolution alone reads it (read by: ConvTranspose2d)"


@pytest.mark.parametrize(
    ("behind", "name"),
    [
        (torch.nn.Softmax(1), "Softmax"),
        (torch.nn.ChannelShuffle(2), "ChannelShuffle"),
        (torch.nn.AvgPool2d(3, 1, 1), "pool"),
        (torch.nn.LocalResponseNorm(2), "LocalResponseNorm"),
    ],
)
def test_a_reason_names_the_operation(behind, name):
    sites, reasons = reasons_of(Wrapped(Squeezed(behind)))
    assert sites == {}
    assert reasons["block.squeeze"] == f"no spatial convolution alone reads it (read by: {name})"


class Gated(Squeezed):
    def forward(self, x):
        y = self.squeeze(x)
        return x + self.reads(y * torch.sigmoid(y.mean((2, 3), keepdim=True)))


class Summed(Squeezed):
    def forward(self, x):
        return x + self.reads(torch.cumsum(self.squeeze(x), 1))


def test_gates_and_functions_are_named_too():
    assert "attention gate reads it" in reasons_of(Wrapped(Gated()))[1]["block.squeeze"]
    assert "read by: cumsum" in reasons_of(Wrapped(Summed()))[1]["block.squeeze"]


class ActThenNorm(torch.nn.Module):
    """ConvMixer's: an activation before the norm; then a sum and a depth-wise convolution read it."""

    def __init__(self):
        super().__init__()
        self.point = torch.nn.Conv2d(16, 16, 1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x):
        x = self.norm(torch.nn.functional.gelu(self.point(x)))
        return x + self.depthwise(x)


def test_a_norm_may_follow_the_activation():
    assert "goes into a sum" in reasons_of(Wrapped(ActThenNorm()))[1]["block.point"]


class Reparametrised(torch.nn.Module):
    """RepGhost's: a 1×1 whose output goes through a norm into a sum with a depth-wise convolution of it."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(16, 8, 1)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = torch.nn.BatchNorm2d(8)
        self.identity = torch.nn.Identity()
        self.last = torch.nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        return self.last(self.depthwise(y) + self.norm(self.identity(y))) + x


def test_reasons_look_through_identities_and_norms_of_branches():
    assert "goes into a sum" in reasons_of(Wrapped(Reparametrised()))[1]["block.first"]


class ScaledByParameter(ScaledProjection):
    """LayerScale written as a product."""

    def forward(self, x):
        y = self.norm(self.project(self.depthwise(self.expand(x)))) * self.scale.gamma.view(1, -1, 1, 1)
        return self.rejoin(y + x)


def test_a_scaled_projection_is_a_projection_and_keeps_its_scale():
    for block in (ScaledProjection(), ScaledByParameter()):
        graph = record(Wrapped(block), (3, 16, 16))
        (site,) = squeeze_sites(graph)[0]
        assert (site.name, site.role) == ("block.project", PROJECTION)
        assert site.after.norm.meta["module"] == "block.norm"
        assert site.after.act is None


@pytest.mark.parametrize(("width", "role"), [(24, PROJECTION), (32, PROJECTION), (40, TRANSITION)])
def test_a_residual_over_half_of_the_channels_or_more_makes_a_projection(width, role):
    block = ScaledProjection(width)
    block.expand, block.depthwise = torch.nn.Conv2d(16, 48, 1), torch.nn.Conv2d(48, 48, 3, padding=1, groups=48)
    block.project = torch.nn.Conv2d(48, width, 1)
    assert reasons_of(Wrapped(block))[0]["block.project"] == role


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_convolutions_inside_a_scripted_module_are_listed_with_the_true_reason():
    model = torch.nn.Sequential(Wrapped(Squeezed()).stem, torch.jit.script(Fire()), Squeezed(), torch.nn.ReLU())
    sites, reasons = reasons_of(model)
    assert sites == {"2.squeeze": HEAD}
    assert set(reasons) == {"1.squeeze", "1.expand1"}
    assert all("inside a scripted module" in reason for reason in reasons.values())


class Attending(torch.nn.Module):
    """Keys of an attention, narrowed behind a depth-wise convolution or without one."""

    def __init__(self, strided):
        super().__init__()
        self.near = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16) if strided else torch.nn.Identity()
        self.key = torch.nn.Conv2d(16, 8, 1)

    def forward(self, x):
        keys = self.key(self.near(x)).flatten(2) * 0.5
        return x * (keys.transpose(1, 2) @ keys).mean()


@pytest.mark.parametrize("strided", [True, False])
def test_keys_of_an_attention_are_no_projections(strided):
    sites, reasons = reasons_of(Wrapped(Attending(strided)))
    assert sites == {}
    assert reasons == {"block.key": "attention reads it (queries, keys or values)"}


class Halved(Squeezed):
    """A product that is no scale stands behind the squeeze: with itself, or a division of a parameter by it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return x + self.reads(self.function(self.squeeze(x), self.norm.weight.view(1, -1, 1, 1)))


@pytest.mark.parametrize(
    ("function", "is_site"),
    [
        (lambda y, w: y * w, True),
        (lambda y, w: 0.5 * y, True),
        (lambda y, w: y * y, False),
        (lambda y, w: w / y, False),
        (lambda y, w: y * w.sum().sigmoid(), False),
    ],
)
def test_products_with_numbers_and_parameters_are_scales(function, is_site):
    assert ("block.squeeze" in reasons_of(Wrapped(Halved(function)))[0]) is is_site


@pytest.mark.parametrize("name", ["resnet26", "seresnet50", "mobilenetv3_small_050"])
def test_images_so_small_that_strides_leave_one_pixel_have_the_same_sites(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    (small, passed), (large, left) = (squeeze_sites(record(model, (3, side, side))) for side in (32, 224))
    assert [site.name for site in small] == [site.name for site in large] != []
    assert passed == left
