"""Time gOctConv against the plain convolution and against a convolution for each link, and CSNet against MobileNet-v2.

python benchmarks/octave.py layers                              # α = 0.25, 0.5, 0.75
python benchmarks/octave.py saliency --weights csnet-L-x1.pth.tar
"""

import argparse
import sys
from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from surgery.core.timing import Timing, interleaved
from surgery.methods.octave import GOctConv
from surgery.methods.octave.resampling import larger, smaller
from surgery.methods.octave.scales import split_channels
from surgery.models.csnet_weights import load_published_csnet

ALPHAS = (0.25, 0.5, 0.75)
SHAPES = ((64, 256, 1, 56), (256, 64, 1, 56), (64, 64, 3, 56), (128, 128, 3, 28), (256, 256, 3, 14), (512, 512, 3, 7))


def link_by_link(layer: GOctConv, maps: Sequence[Tensor]) -> list[Tensor]:
    """The same by one convolution for each pair of maps."""
    outputs: list[Tensor] = []
    for j in range(len(layer.scales.out_channels)):
        total: Tensor | None = None
        for i, x in enumerate(maps):
            weight = layer.weight[slice(*layer.scales.rows(j)), slice(*layer.scales.columns(i))]
            shift = layer.scales.shift((i, j))
            y = conv2d(smaller(x, max(0, shift), layer.shape.pooling), weight, padding=layer.shape.padding)
            size = (maps[j].shape[-2], maps[j].shape[-1])
            y = larger(y, max(0, -shift), size, layer.shape.upsampling)
            total = y if total is None else total + y
        outputs.append(total)  # type: ignore[arg-type]
    return outputs


def time_layers(seconds: float, batch: int) -> None:
    for inputs, outputs, kernel, side in SHAPES:
        plain = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False).to(
            memory_format=torch.channels_last
        )
        x = torch.randn(batch, inputs, side, side).to(memory_format=torch.channels_last)
        for alpha in ALPHAS:
            layer = GOctConv.vanilla(split_channels(inputs, alpha), split_channels(outputs, alpha), kernel)
            layer = layer.to(memory_format=torch.channels_last)
            maps = [part.contiguous(memory_format=torch.channels_last) for part in x.split(layer.scales.in_channels, 1)]
            maps[1] = smaller(maps[1], 1, "average")
            joined, links = layer(maps), link_by_link(layer, maps)
            assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(joined, links, strict=True))
            timing = interleaved(
                {
                    "plain": lambda plain=plain, x=x: plain(x),
                    "links": lambda layer=layer, maps=maps: link_by_link(layer, maps),
                    "joined": lambda layer=layer, maps=maps: layer(maps),
                },
                seconds=seconds,
            )
            name = f"{inputs} → {outputs}, {kernel}×{kernel}, {side}², α = {alpha}"
            print(
                f"{name:38s} joined ÷ plain {ratio(timing, 'joined', 'plain')}, "
                f"÷ a convolution for each link {ratio(timing, 'joined', 'links')}"
            )


def ratio(timing: Timing, name: str, base: str) -> str:
    middle, low, high = timing.ratio(name, base)
    return f"{middle:.2f} [{low:.2f} {high:.2f}]"


class MobileNetSaliency(nn.Module):
    """MobileNet-v2's maps at strides 2 to 32, each through a 1×1 convolution, added from the coarsest to the finest."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.backbone = timm.create_model("mobilenetv2_100", features_only=True)
        self.laterals = nn.ModuleList(nn.Conv2d(n, width, 1) for n in self.backbone.feature_info.channels())
        self.classifier = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [lateral(y) for lateral, y in zip(self.laterals, self.backbone(x), strict=True)]
        merged = maps[-1]
        for finer in reversed(maps[:-1]):
            merged = finer + interpolate(merged, finer.shape[-2:], mode="bilinear", align_corners=False)
        return interpolate(self.classifier(merged), x.shape[-2:], mode="bilinear", align_corners=False)


def time_saliency(weights: str, seconds: float, batch: int) -> None:
    networks = {"MobileNet-v2": MobileNetSaliency().eval(), "CSNet": load_published_csnet(weights)}
    x = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
    for network in networks.values():
        network.to(memory_format=torch.channels_last)
    timing = interleaved({name: lambda n=n: n(x) for name, n in networks.items()}, seconds=seconds)
    for name in networks:
        print(f"{name}: {1e3 * timing.median(name):.1f} ms")
    print(f"CSNet ÷ MobileNet-v2, 224×224, batch {batch}: {ratio(timing, 'CSNet', 'MobileNet-v2')}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "saliency"))
    parser.add_argument("--weights", metavar="FILE", help="for saliency: published weights of CSNet")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison (default: 2)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="default: 1")
    args = parser.parse_args(arguments)
    with torch.inference_mode():
        if args.what == "layers":
            time_layers(args.seconds, args.batch)
        elif args.weights is None:
            parser.error("saliency needs --weights FILE")
        else:
            time_saliency(args.weights, args.seconds, args.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
