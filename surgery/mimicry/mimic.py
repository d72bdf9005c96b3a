"""``surgery.mimic``: gradient steps that match the original's feature maps and its logits, without a label.

The feature map before pooling as in MiR (Wang et al., Compressing Models with Few Samples: Mimicking then Replacing,
CVPR 2022), blocks beside it, from the start that calibration gives.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from surgery.calibration.images import collect
from surgery.core.checked_model import check_model, unwrapped
from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.mimicry.pupil import Pupil
from surgery.mimicry.report import MimicryReport
from surgery.mimicry.settings import MimicrySettings


def mimic(
    model: nn.Module,
    teacher: nn.Module,
    images: Iterable[Any] | Tensor,
    *,
    held: Iterable[Any] | Tensor | None = None,
    settings: MimicrySettings | None = None,
    count: int | None = 2048,
    progress: bool = True,
    **options: Any,
) -> MimicryReport:
    """Train all weights of a converted network, in place, to answer what the original answers.

    The logits and the feature map before pooling are matched by SGD, in eval mode. With 1,024 images or more BatchNorms
    are in training mode meanwhile, and the outputs of the blocks around converted layers are matched too
    (``batch_statistics`` and ``block_weight`` of :class:`MimicrySettings`). The weights of the check that agrees best
    with the original on held-out images are kept, and where none does better than the network as it came, that one; so
    too where it is interrupted or fails on the way.

    Args:
        model: converted and, best, calibrated; changed in place. It is left in the mode it was in.
        teacher: the network that it was converted from; not changed.
        images: as for :func:`surgery.calibrate`; labels are not looked at.
        held: images that judge; best such as calibration has not seen either, since what it was fitted to agrees too
            well. Default: a share of ``images``.
        settings: all settings; or, one by one, in
        **options: fields of :class:`MimicrySettings`, such as ``steps=400``.
        count: at most so many images are drawn.
        progress: show a bar.

    Returns:
        Agreement on held-out images, before, in between and after.

    Raises:
        ValueError, TypeError: images, models or settings that cannot be; the message says what can. ValueError too
            where the loss is not finite at any rate.
    """
    check_extra("calibrate", "surgery.mimic")
    model, teacher = unwrapped(model), unwrapped(teacher)
    for network in (model, teacher):
        check_model(network, weights=True)
    settings = settings or MimicrySettings(**options)
    parts = None if held is None else torch.cat(collect(held, None, progress))
    pupil = Pupil(model, teacher, torch.cat(collect(images, count, progress)), parts, settings)
    with eval_mode(model), eval_mode(teacher), _trainable(model):
        return pupil.learn(progress)


class _trainable:
    """While entered, all parameters of a network want gradients; afterwards they want them as before."""

    def __init__(self, model: nn.Module) -> None:
        self.wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def __enter__(self) -> None:
        for parameter in self.wanted:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter, wanted in self.wanted.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None
