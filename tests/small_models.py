"""Small networks with what real users' models hold: shared, padded, functional, tied, data-dependent."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
