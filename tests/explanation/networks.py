"""Small converted networks that know three classes, and images of these classes in files."""

import numpy as np
import torch
from PIL import Image

import surgery
from surgery.vision.preprocessing import Preprocessing

CLASSES = ("ant", "bee", "cat")


def write_images(root, each=4):
    """``each`` PNG files of every class, of which one colour is dark."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir()
        for image in range(each):
            pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            pixels[..., number] //= 4
            Image.fromarray(pixels).save(root / name / f"{image}.png")
    return root


def preprocessing():
    return Preprocessing((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 1.0, "bilinear", CLASSES)


def original():
    torch.manual_seed(0)
    return surgery.create("cifar_resnet", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 12, 16, 16]).eval()


def converted(network, method):
    """By ``pix`` as it is, some of whose subsets pick and some mix; by the others calibrated."""
    options = {"pix": {}, "fbs": {"density": 0.5}, "l1": {"macs": 0.6}}[method]
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calibrate = {} if method == "pix" else {"calibrate": images, "images": 32}
    return surgery.convert(network, method, input_size=32, **calibrate, **options)


def written(folder, *methods):
    """Folder with ``original.safetensors`` and a file of each method."""
    network = original()
    for name in ("original", *methods):
        model = network if name == "original" else converted(network, name)
        surgery.save(model, folder / f"{name}.safetensors", preprocessing=preprocessing())
    return folder
