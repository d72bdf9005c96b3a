"""What channels are worth: against definitions, and SFVR's properties."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.methods.planners.pruning.moments import Moments, through
from surgery.methods.planners.pruning.scores import l1, random, taylor
from surgery.methods.planners.pruning.sfvr import CORRELATION, contributed, gain, sfvr, sfvr_from_norms
from tests.small_models import Net, with_statistics


def chain(norms: bool = True) -> nn.Sequential:
    """Convolutions of all kinds: strided, padded, depth-wise, grouped, 1×1, and a linear layer."""
    norm = nn.BatchNorm2d if norms else lambda width: nn.Identity()
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), norm(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, stride=2, padding=1), norm(12), nn.ReLU()),
        *(nn.Conv2d(12, 8, 1, groups=2), norm(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    return with_statistics(model).double().eval()


def coupled(model):
    graph = record(model, (3, 12, 12))
    return graph, couple(graph)


IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_l1_is_the_share_of_a_filter_added_over_the_layers():
    model = Net("module")
    _, coupling = coupled(model)
    scores = l1(model, coupling)
    norms = [layer.weight.detach().abs().flatten(1).sum(1) for layer in (model.stem, model.blocks[0].conv3)]
    wanted = sum(norm / norm.mean() for norm in norms)
    np.testing.assert_allclose(scores[coupling.layers["stem"].writes], wanted, rtol=1e-5)


def test_random_is_seeded():
    model = Net("module")
    _, coupling = coupled(model)
    np.testing.assert_array_equal(random(model, coupling, seed=3), random(model, coupling, seed=3))
    assert not np.array_equal(random(model, coupling, seed=3), random(model, coupling, seed=4))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 5]), "label 5: the model has classes 0 to 4"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), "label -1: the model has classes 0 to 4"),
        (torch.eye(6, 5).long(), r"labels of shape \(6, 5\), torch.int64, where the model gives \(6, 5\)"),
        (torch.zeros(6), r"labels of shape \(6,\), torch.float32"),
    ],
)
def test_taylor_names_labels_that_do_not_fit(labels, message):
    model = chain()
    _, coupling = coupled(model)
    with pytest.raises(ValueError, match=message):
        taylor(model, coupling, [(IMAGES, labels)])


def test_taylor_names_a_model_without_class_scores():
    model = Net("module").double()
    _, coupling = coupled(model)
    model.register_forward_hook(lambda module, inputs, output: [output])
    with pytest.raises(ValueError, match="the model gives a list: taylor needs one that gives class scores"):
        taylor(model, coupling, [(IMAGES, torch.zeros(6, dtype=torch.int64))])


def test_taylor_takes_probabilities_and_leaves_out_what_has_no_label():
    model = chain()
    _, coupling = coupled(model)
    labels = torch.tensor([0, 1, 2, 3, 4, -100])
    np.testing.assert_allclose(
        taylor(model, coupling, [(IMAGES, labels)]), taylor(model, coupling, [(IMAGES[:5], labels[:5])]), rtol=1e-8
    )
    np.testing.assert_allclose(
        taylor(model, coupling, [(IMAGES[:5], nn.functional.one_hot(labels[:5]).double())]),
        taylor(model, coupling, [(IMAGES[:5], labels[:5])]),
        rtol=1e-8,
    )


def test_taylor_is_activation_times_gradient():
    model = chain().requires_grad_(False)
    _, coupling = coupled(model)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    scores = taylor(model, coupling, [(IMAGES, labels), (IMAGES[:2], labels[:2])])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    wanted = []
    for count in (6, 2):
        read = model[:6](IMAGES[:count]).requires_grad_(True)
        nn.functional.cross_entropy(model[6:](read), labels[:count]).backward()
        wanted.append((read * read.grad).sum((0, 2, 3)).abs())
    np.testing.assert_allclose(scores[coupling.layers["6"].reads], sum(wanted).detach() / 2, rtol=1e-8)
    with pytest.raises(ValueError, match="needs batches of labelled images"):
        taylor(model, coupling, [])


def test_measured_sfvr_is_its_definition():
    """Var(M_ji) / Var(Y_j) of the maps themselves, one channel at a time."""
    model = chain()
    _, coupling = coupled(model)
    scores = sfvr(model, coupling, [IMAGES[:2], IMAGES[2:]])
    with torch.no_grad():
        for name, index in (("6", 6), ("9", 9), ("14", 14)):
            layer, x = model[index], model[:index](IMAGES)
            weight = copy.deepcopy(layer)
            weight.bias = None
            wanted = []
            for channel in range(x.shape[1]):
                only = torch.zeros_like(x)
                only[:, channel] = x[:, channel]
                parts, outputs = (t.transpose(0, 1).flatten(1).var(1, correction=0) for t in (weight(only), layer(x)))
                wanted.append((parts / outputs).sum().item())
            reads = coupling.layers[name].reads
            np.testing.assert_allclose(scores[reads], np.bincount(reads, wanted)[reads], rtol=1e-6)


def scaled_filters(model, factor):
    """BN(K X) = BN(α K X): the statistics follow."""
    with torch.no_grad():
        for conv, norm in ((model[0], model[1]), (model[6], model[7])):
            factors = factor[: conv.out_channels]
            conv.weight *= factors[:, None, None, None]
            conv.bias *= factors
            norm.running_mean *= factors
            norm.running_var *= factors**2


def scaled_channels(model, factor, norms):
    """K ReLU(γ Z + β) = K/α ReLU(α γ Z + α β), or the same of the convolution where there is no BatchNorm."""
    with torch.no_grad():
        for index, reader in ((3, 6), (6, 9)):
            writer = model[index + 1] if norms else model[index]
            factors = factor[: len(writer.weight)]
            writer.weight *= factors.reshape(-1, *[1] * (writer.weight.dim() - 1))
            writer.bias *= factors
            layer = model[reader]
            blocks = layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])
            blocks /= factors.view(layer.groups, 1, -1, 1, 1)


FACTORS = st.lists(st.floats(0.1, 10), min_size=12, max_size=12).map(lambda f: torch.tensor(f, dtype=torch.float64))


@pytest.mark.parametrize("how", ["images", "norms"])
@given(factors=FACTORS)
@settings(max_examples=8, deadline=None)
def test_sfvr_is_unchanged_by_network_equivalent_transformations(how, factors):
    model = chain()
    graph, coupling = coupled(model)
    score = partial(sfvr, images=[IMAGES]) if how == "images" else partial(sfvr_from_norms, graph=graph)
    before, logits = score(model, coupling), model(IMAGES)
    scaled_filters(model, factors)
    scaled_channels(model, factors, norms=True)
    torch.testing.assert_close(model(IMAGES), logits)
    np.testing.assert_allclose(score(model, coupling), before, rtol=1e-6)
    assert (before[coupling.layers["6"].reads] > 0).all()


@given(factors=FACTORS)
@settings(max_examples=8, deadline=None)
def test_sfvr_is_unchanged_without_norms_too(factors):
    model = chain(norms=False)
    _, coupling = coupled(model)
    before, logits = sfvr(model, coupling, [IMAGES]), model(IMAGES)
    scaled_channels(model, factors, norms=False)
    torch.testing.assert_close(model(IMAGES), logits)
    np.testing.assert_allclose(sfvr(model, coupling, [IMAGES]), before, rtol=1e-6)
    magnitudes = l1(model, coupling)
    assert magnitudes.shape == before.shape


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(3, 50), noise=st.floats(1e-3, 0.99))
@settings(max_examples=200, deadline=None)
def test_proposition_1(seed, size, noise):
    """0 ≤ 1 − r² ≤ (σε²/σy²) / (1 − σε/σy)², ε = y − x."""
    draws = np.random.default_rng(seed)
    y, epsilon = draws.normal(size=size), draws.normal(size=size)
    epsilon *= noise * y.std() / epsilon.std()
    x = y - epsilon
    loss = 1 - np.corrcoef(x, y)[0, 1] ** 2
    ratio = epsilon.std() / y.std()
    assert -1e-9 <= loss <= ratio**2 / (1 - ratio) ** 2 + 1e-9


def test_without_images_the_values_that_a_kernel_reads_are_equally_correlated():
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    covariance = torch.full((9, 9), CORRELATION, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(gain(weight).T, contributed(weight, 1, covariance.expand(3, 9, 9)))
    linear = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(gain(linear), linear.square())


def test_without_norms_images_are_needed():
    model = chain(norms=False)
    graph, coupling = coupled(model)
    with pytest.raises(ValueError, match="sfvr needs images=: no BatchNorm says what variance"):
        sfvr_from_norms(model, coupling, graph)
    with pytest.raises(ValueError, match="there are none"):
        sfvr(model, coupling, [])


def test_moments_behind_activations():
    normal = Moments(np.array([0.0, 1.0, -3.0]), np.array([1.0, 4.0, 0.25]))
    rectified = through(nn.ReLU(), normal)
    np.testing.assert_allclose(rectified.mean[0], 1 / np.sqrt(2 * np.pi), rtol=1e-3)
    np.testing.assert_allclose(rectified.variance[0], 0.5 - 0.5 / np.pi, rtol=1e-3)
    samples = np.random.default_rng(0).normal(size=(400_000, 3)) * np.sqrt(normal.variance) + normal.mean
    for function in (nn.ReLU6(), nn.SiLU(), nn.Identity()):
        values = function(torch.from_numpy(samples)).numpy()
        moments = through(function, normal)
        np.testing.assert_allclose(moments.mean, values.mean(0), atol=0.02)
        np.testing.assert_allclose(moments.variance, values.var(0), rtol=0.02, atol=1e-4)
