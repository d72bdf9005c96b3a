"""Images for those who have none: noise shaped like photographs, drawn towards what the network's norms remember."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from surgery.core.checked_model import check_model, unwrapped
from surgery.core.eval_mode import eval_mode
from surgery.graph import record
from surgery.graph.input_size import InputSize

ROUGHNESS = 1e-2  # weight of the differences between neighbouring pixels, against the norms' part of the loss


def synthetic_images(
    model: nn.Module,
    count: int = 256,
    *,
    input_size: InputSize | None = None,
    steps: int = 200,
    lr: float = 0.05,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Images on which the batch statistics in front of every BatchNorm are near the running ones of ``model``.

    They start as noise whose amplitude falls with the frequency, as in photographs, and are changed by gradient descent
    (after DeepInversion, Yin et al. 2020, equation 4, without its labels). Calibration on them is worse than on real
    images (docs/recovery.md says by how much).

    Args:
        model: the network to convert, with trained norms; not changed.
        input_size: (C, H, W), (H, W) or one side; default as for :func:`surgery.plan`.
        steps: of Adam for every batch; 0 gives the noise itself.
        batch_size: images whose statistics are matched together; the last batch may be smaller.

    Returns:
        (count, C, H, W) float32 on the CPU, as the network takes them: zero mean, unit variance about.

    Raises:
        ValueError: count, steps, lr or batch_size cannot be; or steps above 0 and no BatchNorm with running statistics.
    """
    if count < 1 or steps < 0 or batch_size < 2 or not lr > 0:
        raise ValueError(
            f"count={count}, steps={steps}, batch_size={batch_size}, lr={lr}: ≥ 1, ≥ 0, ≥ 2 and > 0 are needed"
        )
    model = unwrapped(model)
    check_model(model, weights=True)
    shape = record(model, input_size).input_shape
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if steps and not norms:
        raise ValueError(
            f"{type(model).__name__} has no BatchNorm that remembers statistics: steps=0 gives plain noise"
        )
    generator = torch.Generator().manual_seed(seed)
    noise = _photographic_noise((count, *shape[-3:]), generator)
    if not steps:
        return noise
    bar = tqdm(total=steps * -(-count // batch_size), desc="images from statistics", leave=False, disable=not progress)
    with bar, _frozen(model):
        return torch.cat([_drawn(model, norms, batch, steps, lr, bar) for batch in noise.split(batch_size)])


def _photographic_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise (N, C, H, W) with amplitude 1/frequency, mostly the same in all channels; zero mean, unit variance."""
    count, channels, height, width = shape
    vertical = torch.fft.fftfreq(height)[:, None] * height
    horizontal = torch.fft.rfftfreq(width)[None] * width
    falling = 1 / (vertical.square() + horizontal.square()).sqrt().clamp(min=1.0)
    white = torch.randn(count, channels + 1, height, width, generator=generator)
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) * falling, s=(height, width))
    images = smooth[:, :1] + 0.4 * smooth[:, 1:]
    return (images - images.mean()) / images.std()


def _drawn(model: nn.Module, norms: list[_BatchNorm], noise: Tensor, steps: int, lr: float, bar: tqdm) -> Tensor:
    first = next(model.parameters())
    images = noise.to(first).requires_grad_()
    descent = torch.optim.Adam([images], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    for _ in range(steps):
        loss = _distance(model, norms, images) + ROUGHNESS * _differences(images)
        descent.zero_grad()
        (images.grad,) = torch.autograd.grad(loss, images)
        descent.step()
        schedule.step()
        bar.update()
    return images.detach().float().cpu()


def _distance(model: nn.Module, norms: list[_BatchNorm], images: Tensor) -> Tensor:
    """Over all norms, how far the mean and the spread of what they read are from what they remember, in their units."""
    distances: list[Tensor] = []

    def compare(norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        read = args[0].transpose(0, 1).flatten(1).float()
        mean, deviation = read.mean(1), (read.var(1, correction=0) + norm.eps).sqrt()
        assert norm.running_mean is not None and norm.running_var is not None
        remembered = (norm.running_var.float() + norm.eps).sqrt()
        shift, spread = (mean - norm.running_mean.float()) / remembered, deviation / remembered - 1
        distances.append((shift.square() + spread.square()).mean())

    handles = [norm.register_forward_pre_hook(compare) for norm in norms]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(distances).mean()


def _differences(images: Tensor) -> Tensor:
    return images.diff(dim=-1).square().mean() + images.diff(dim=-2).square().mean()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients for parameters; both as before afterwards."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.requires_grad_(False)
        with eval_mode(model):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
