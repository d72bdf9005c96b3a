"""Small networks with what real users' models hold: shared, padded, functional, tied, data-dependent."""

import warnings

import torch
import torch.nn.functional as F
from timm.layers import LayerScale2d
from torch import Tensor, nn

import surgery
from surgery.transforms.carry_out import apply
from surgery.transforms.narrow import Narrow


class Bottleneck(nn.Module):
    """16 → 4 → 16 with an activation of the caller's choice: a module of its own, shared, or functional."""

    def __init__(self, style: str = "module", function=F.relu) -> None:
        super().__init__()
        self.style, self.function = style, function
        self.conv1 = nn.Conv2d(16, 4, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 16, 1)
        self.act = nn.SiLU()
        self.act1 = nn.ReLU()
        self.drop = nn.Dropout(0.5)

    def _act(self, x: Tensor) -> Tensor:
        return self.act(x) if self.style == "shared" else self.function(x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        y = self.act1(y) if self.style == "module" else self._act(y)
        y = self._act(self.bn2(self.conv2(y)))
        return self._act(x + self.conv3(y))


class Net(nn.Module):
    """A stem and bottlenecks, with a classifier."""

    def __init__(self, *styles: str, function=F.relu) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(Bottleneck(style, function) for style in styles)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class Awkward(nn.Module):
    """1×1 convolutions that are no sites: shared, tied, padded, grouped, functional, never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.fork = nn.Conv2d(16, 16, 3, padding=1)
        self.shared = nn.Conv2d(16, 4, 1)
        self.tied = nn.Conv2d(16, 4, 1)
        self.twin = nn.Conv2d(16, 4, 1)
        self.twin.weight = self.tied.weight
        self.padded = nn.Conv2d(16, 4, 1, padding=1)
        self.grouped = nn.Conv2d(16, 4, 1, groups=2)
        self.bare = nn.Parameter(torch.randn(4, 16, 1, 1))
        self.unused = nn.Conv2d(16, 4, 1)
        self.after = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.fork(x)
        parts = [self.shared(x), self.shared(2 * x), self.tied(x), self.twin(x), self.padded(x), self.grouped(x)]
        parts.append(F.conv2d(x, self.bare))
        return sum(conv(part).mean((2, 3)) for conv, part in zip(self.after, parts, strict=True))


class LooksAtValues(nn.Module):
    """A forward whose path depends on what the tensors hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net("module")

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = x / 2
        return self.net(x)


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with BatchNorm statistics and affine parameters that are not the trivial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return model


def narrowed_alone(model: nn.Module, **arguments) -> nn.Module:
    """The model itself, carried out on it what a plan of those arguments narrows, and nothing else."""
    transforms = [t for decision in surgery.plan(model, **arguments).decisions for t in decision.transforms]
    apply(model, [transform for transform in transforms if isinstance(transform, Narrow)], choosing=True)
    return model


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and users' models have it
    scripted_swish = torch.jit.script(swish)


class Swish(nn.Module):
    """An activation that timm and users script as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class DividedByItsSize(nn.Module):
    """A norm of a user's own: each channel divided by its root mean square, then a soft threshold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))
        self.floor = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.gain * x / (x.square().mean((2, 3), keepdim=True) + 1e-5).sqrt(), self.floor)


class Squeezed(nn.Module):
    """Residual, 16 → 8 → 16: a 1×1, what is ``behind`` it (a module or a function), and what ``reads`` it."""

    def __init__(self, behind=None, reads: nn.Module | None = None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(16, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.behind = nn.ReLU() if behind is None else behind
        self.reads = nn.Conv2d(8, 16, 3, padding=1) if reads is None else reads

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reads(self.behind(self.norm(self.squeeze(x))))


class Fire(nn.Module):
    """SqueezeNet's: a squeeze that a 1×1 and a 3×3 read."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand1 = nn.Conv2d(4, 8, 1)
        self.expand3 = nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.expand1(x), self.expand3(x)], 1)


class ScaledProjection(nn.Module):
    """An inverted bottleneck that ends in a LayerScale, or adds to its first channels only."""

    def __init__(self, out: int = 16) -> None:
        super().__init__()
        self.expand = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project = nn.Conv2d(32, out, 1)
        self.norm = nn.BatchNorm2d(out)
        self.scale = LayerScale2d(out, 0.1)
        self.rejoin = nn.Conv2d(out, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(self.norm(self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))))
        return self.rejoin(torch.cat([y[:, :16] + x, y[:, 16:]], 1) if y.shape[1] > 16 else y + x)


class Wrapped(nn.Module):
    """A stem that forks at its end, one block of 16 channels, and a classifier."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = block
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.fc(self.block(x + torch.sigmoid(x)).mean((2, 3)))


def darknet(*widths: int) -> nn.Sequential:
    """A plain chain of 3×3 and 1×1 convolutions, the 1×1 narrowing by half."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), nn.LeakyReLU(0.1)]
    for width in widths:
        layers += [nn.Conv2d(width, width // 2, 1), nn.BatchNorm2d(width // 2), nn.LeakyReLU(0.1)]
        layers += [nn.Conv2d(width // 2, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class TwoOutputs(nn.Module):
    """A chain that forks only at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = darknet(16, 16)
        self.box, self.label = nn.Linear(16, 4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.chain(x).mean((2, 3))
        return torch.cat([self.box(x), self.label(x)], 1)
