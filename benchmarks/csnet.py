"""The published weights of CSNet: sizes, costs, and figures on images with masks; tiles of some of them.

python benchmarks/csnet.py FOLDER csnet-L-x1.pth.tar csnet-L-x2.pth.tar --tiles tiles.png

FOLDER holds {images,masks}/NAME.* or test/ with them. Tiles: columns of an image, its mask and the networks' maps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import surgery
from surgery.models.csnet import CSNet
from surgery.models.csnet_weights import load_published_csnet
from surgery.vision.class_folders import held_out_part
from surgery.vision.saliency_maps import evaluate, mask_pairs, predict

SIDE = 128  # of a tile


def tiles(networks: Sequence[CSNet], folder: Path, count: int, path: Path) -> None:
    """Draw evenly chosen images, their masks and the networks' maps."""
    pairs = mask_pairs(held_out_part(folder) or folder)
    chosen = [pairs[round(position)] for position in np.linspace(0, len(pairs) - 1, count)]
    sheet = Image.new("RGB", (count * SIDE, (2 + len(networks)) * SIDE))
    with TemporaryDirectory() as out:
        for number, network in enumerate(networks):
            for column, (image, _) in enumerate(chosen):
                predict(network, [image], out)
                _paste(sheet, Path(out) / f"{image.stem}.saliency.png", column, 2 + number)
    for column, pair in enumerate(chosen):
        for row, file in enumerate(pair):
            _paste(sheet, file, column, row)
    sheet.quantize(64).save(path)


def _paste(sheet: Image.Image, file: Path, column: int, row: int) -> None:
    with Image.open(file) as picture:
        sheet.paste(picture.convert("RGB").resize((SIDE, SIDE)), (column * SIDE, row * SIDE))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("weights", metavar="FILE", nargs="+")
    parser.add_argument("--tiles", metavar="PNG", type=Path, help="draw images, masks and maps there")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="images to draw (default: 8)")
    args = parser.parse_args(arguments)
    networks = [load_published_csnet(path) for path in args.weights]
    for path, network in zip(args.weights, networks, strict=True):
        cost = surgery.cost(network, (3, 224, 224))
        values = sum(tensor.numel() for tensor in network.state_dict().values())
        print(f"{path}: {values:,} values, {cost.params:,} parameters, {cost.macs / 1e6:.1f} M MACs at 224×224")
        print(evaluate(network, args.folder))
    if args.tiles:
        tiles(networks, args.folder, args.count, args.tiles)
    return 0


if __name__ == "__main__":
    sys.exit(main())
