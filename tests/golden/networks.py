"""The networks of the golden files: what wrote them is in README.md."""

import torch
from torch import Tensor, nn

import surgery


class PlainNet(nn.Module):
    """VGG in small: convolutions, pooling, and a head of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)]
        self.features = nn.Sequential(
            *(part for conv in convs[:2] for part in (conv, nn.ReLU())), nn.MaxPool2d(2), convs[2], nn.ReLU()
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class FunctionalBottlenecks(nn.Module):
    """Two bottlenecks whose activation is a function, so that surgery rewrites their forward; one weight is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(FunctionalBottleneck(), FunctionalBottleneck())
        self.head = nn.Linear(16, 5)
        self.auxiliary = nn.Linear(16, 5)
        self.auxiliary.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.blocks(torch.relu(self.stem(x))).mean((2, 3))
        return self.head(pooled) + self.auxiliary(pooled)


class FunctionalBottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.conv3 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.silu(self.bn1(self.conv1(x)))
        return x + self.conv3(torch.tanh(self.conv2(y)))


@surgery.register_builder("golden-plain")
def plain() -> nn.Module:
    """A :class:`PlainNet`."""
    return PlainNet()


@surgery.register_builder("golden-functional")
def functional() -> nn.Module:
    """A :class:`FunctionalBottlenecks`."""
    return FunctionalBottlenecks()
