import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import relu
from torch.utils.data import DataLoader, TensorDataset

from surgery.models.csnet import csnet
from surgery.training.classification_task import ImageClassification
from surgery.training.dynamic_weight_decay import DynamicWeightDecay
from surgery.training.objective import make_optimizer
from surgery.training.recipe import Recipe, RecipeError, TrainSettings
from surgery.training.sampling_order import EpochSampler, SeededDataset
from surgery.training.trainer import train
from surgery.training.training_spec import TrainingSpec
from surgery.training.training_state import TrainingState


class ManyActs(nn.Module):
    """Norms with an activation of their own, with a shared one, with a function, and with none."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4 if i else 3, 4, 1) for i in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.own, self.shared = nn.PReLU(4), nn.ReLU(inplace=True)
        self.watched = []

    def forward(self, x):
        first = self.own(self.norms[0](self.convs[0](x)))
        second = self.shared(self.norms[1](self.convs[1](first)))
        third = self.shared(self.norms[2](self.convs[2](second)))
        fourth = relu(self.norms[3](self.convs[3](third)))
        fifth = self.norms[4](self.convs[4](fourth))
        self.watched = [first, second, third, fourth, fifth]
        return fifth.mean((2, 3))


def network():
    torch.manual_seed(0)
    model = ManyActs()
    for norm in model.norms:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return model


@pytest.mark.parametrize("batch", [1, 3])
def test_loss_is_half_of_mean_output_times_squared_scale(batch):
    model = network()
    decay = DynamicWeightDecay(model, 3.0)
    model(torch.randn(batch, 3, 5, 6))
    expected = 0.0
    for y, norm in zip(model.watched, model.norms, strict=True):
        for c in range(4):
            pooled = [abs(y[n, c].mean().item()) for n in range(batch)]
            expected += 3.0 * sum(0.5 * value * norm.weight[c].item() ** 2 for value in pooled) / batch
    assert decay.loss().item() == pytest.approx(expected, rel=1e-5)


def test_gradient_reaches_the_scales_alone():
    model = network()
    decay = DynamicWeightDecay(model, 1.0)
    model(torch.randn(2, 3, 4, 4))
    decay.loss().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {f"norms.{i}.weight" for i in range(5)}


def test_evaluation_is_not_watched():
    model = network()
    decay = DynamicWeightDecay(model, 1.0)
    model(torch.randn(2, 3, 4, 4))
    expected = decay.loss()
    model(torch.randn(2, 3, 4, 4))
    model.eval()(torch.randn(2, 3, 4, 4) + 5)
    assert decay.loss().isfinite() and expected.isfinite()


def test_every_norm_of_csnet_is_watched_behind_its_activation():
    model = csnet(0.5)
    decay = DynamicWeightDecay(model, 1.0)
    model(torch.randn(2, 3, 16, 16))
    assert set(decay._means) == {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert sum(1 for m in model.modules() if isinstance(m, nn.PReLU) and m._forward_hooks) == len(decay.norms)


@pytest.mark.parametrize("decay_all", [False, True])
def test_scales_have_no_other_weight_decay(decay_all):
    model = network()
    settings = TrainSettings(dynamic_weight_decay=3.0, decay_all=decay_all, weight_decay=0.1, optimizer="adam")
    by_parameter = {
        id(p): group["weight_decay"] for group in make_optimizer(model, settings).param_groups for p in group["params"]
    }
    assert set(by_parameter) == {id(p) for p in model.parameters()}
    assert all(by_parameter[id(norm.weight)] == 0 for norm in model.norms)
    assert all(by_parameter[id(conv.weight)] == 0.1 for conv in model.convs)
    assert all(by_parameter[id(conv.bias)] == (0.1 if decay_all else 0) for conv in model.convs)


def test_betas_reach_adam_and_are_refused_elsewhere():
    model = network()
    assert make_optimizer(model, TrainSettings(optimizer="adam", betas=(0.9, 0.99))).param_groups[0]["betas"] == (
        0.9,
        0.99,
    )
    with pytest.raises(RecipeError, match=r"betas=\[0.9, 0.99\]: optimizer='sgd' has none"):
        make_optimizer(model, TrainSettings(optimizer="sgd", betas=(0.9, 0.99)))


def trained(folder, strength):
    model = nn.Sequential(network(), nn.Linear(4, 5))
    torch.manual_seed(1)
    images = TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 5)
    loaders = DataLoader(SeededDataset(images, 16), 8, sampler=EpochSampler(16, 8)), DataLoader(images, 8)
    settings = TrainSettings(
        epochs=20, lr=0.05, optimizer="sgd", warmup_epochs=0, weight_decay=0, dynamic_weight_decay=strength
    )
    spec = TrainingSpec(Accelerator(cpu=True), ImageClassification(5), settings)
    model, _ = train(spec, model, loaders, TrainingState(folder, {"strength": strength}))
    return sum(norm.weight.abs().sum().item() for norm in model[0].norms)


def test_training_makes_scales_smaller(tmp_path):
    assert trained(tmp_path / "with", 3.0) < 0.5 * trained(tmp_path / "without", 0.0)


def test_network_without_norms_is_refused():
    with pytest.raises(RecipeError, match="dynamic_weight_decay=3: Linear has no BatchNorm with scales"):
        DynamicWeightDecay(nn.Linear(2, 2), 3.0)


def test_not_with_a_compiled_network():
    with pytest.raises(RecipeError, match="compile=true: .*finetune.dynamic_weight_decay=0"):
        Recipe(compile=True, finetune=TrainSettings(dynamic_weight_decay=1.0))


def test_norms_are_watched_past_what_does_nothing():
    """timm's blocks have an Identity between norm and activation."""
    model = timm.create_model("test_resnet")
    decay = DynamicWeightDecay(model, 1.0)
    watched = [m for m in model.modules() if isinstance(m, nn.ReLU) and m._forward_hooks]
    assert len(watched) > 2
    decay.close()
    assert not any(m._forward_hooks for m in model.modules())


class FunctionalPReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.slope = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return nn.functional.prelu(self.norm(self.conv(self.norm_input(x))), self.slope)

    def norm_input(self, x):
        return x


def test_activations_with_parameters_of_their_own_are_not_applied_again():
    model = FunctionalPReLU()
    decay = DynamicWeightDecay(model, 1.0)
    model(torch.randn(2, 3, 4, 4))
    assert decay.loss().isfinite()


def test_frozen_norms_do_not_decay():
    model = network()
    decay = DynamicWeightDecay(model, 1.0)
    for norm in model.norms:
        norm.eval()
    model(torch.randn(2, 3, 4, 4))
    assert decay.loss() == 0


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        nn.init.ones_(self.norm.bias)

    def forward(self, x):
        return self.norm(x) + self.norm(2 * x)


def test_a_norm_that_runs_twice_counts_with_the_mean_of_its_calls():
    model = Twice()
    decay = DynamicWeightDecay(model, 2.0)
    model(torch.randn(3, 4, 5, 5))
    assert decay.loss().item() == pytest.approx(4.0, rel=1e-4)  # 2 · ½ · 4 channels of mean 1


def test_what_checkpointing_computes_again_does_not_count():
    model = timm.create_model("test_resnet", num_classes=3)
    model.set_grad_checkpointing()
    decay = DynamicWeightDecay(model.train(), 1.0)
    x = torch.randn(4, 3, 32, 32)
    logits = model(torch.rand(4, 3, 32, 32))
    decay.loss()
    logits.sum().backward()  # which runs the blocks once more
    model(x)
    after_steps = decay.loss()
    model(x)
    torch.testing.assert_close(decay.loss(), after_steps)
