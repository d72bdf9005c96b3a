"""What a method may look at besides a recorded graph: weights, images, labelled images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.core.image_batches import read_batches

Kind = Literal["none", "weights", "images", "labelled images"]
KINDS: tuple[Kind, ...] = ("none", "weights", "images", "labelled images")


@dataclass(frozen=True)
class Evidence:
    """A model and, where there are some, batches of images.

    Attributes:
        model: the network to change, as it is; not to be changed.
        batches: as they were passed: a tensor (N, C, H, W), or an iterable of such tensors or of tuples that begin with
            one; None where there are none.
    """

    model: nn.Module
    batches: Iterable[Any] | Tensor | None = None

    def images(self) -> Iterator[Tensor]:
        """Batches (N, C, H, W), in the dtype that the model computes in.

        Raises:
            ValueError, TypeError: there are none, or they are nothing that the model takes; the message says what.
        """
        for images, _ in self._read("of images (N, C, H, W)"):
            yield images

    def labelled_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (N, C, H, W) and of what they show: classes (N,) int64, or more for a network that labels
        pixels; probabilities (N, classes) of a floating dtype are left as they are.

        Raises:
            ValueError, TypeError: as :meth:`images`; and for labels that are missing, or not one for each image.
        """
        for number, (images, further) in enumerate(self._read("(images, labels)")):
            labels = further[0] if further else None
            if not isinstance(labels, Tensor) or labels.ndim == 0 or len(labels) != len(images):
                shown = (
                    f"of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
                )
                raise ValueError(
                    f"batch {number} of images= has {len(images)} images, and its labels are {shown}: pairs (images, "
                    "labels), such as a DataLoader of a dataset gives, with a tensor of as many labels, are needed"
                )
            yield images, labels if labels.is_floating_point() else labels.long()

    def _read(self, needed: str) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
        """Batches, the first of each shape tried on the model."""
        if self.batches is None:
            raise ValueError(f"images=None: batches {needed} are needed")
        dtype, tried = first_weight(self.model).dtype, set()
        for tensor, further in read_batches(self.batches, "images"):
            images = tensor.to(dtype)
            if images.shape[1:] not in tried:
                _check_taken(self.model, images[:1])
                tried.add(images.shape[1:])
            yield images, further


def _check_taken(model: nn.Module, image: Tensor) -> None:
    """Raise ValueError where a model fails on a batch (1, C, H, W)."""
    with eval_mode(model), torch.inference_mode():
        try:
            model(image.to(first_weight(model).device))
        except Exception as error:  # a forward may raise anything
            line = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ValueError(
                f"{type(model).__name__} fails on an image of images=, of shape {tuple(image.shape[1:])} ({line}): "
                "prepare them as the network takes them"
            ) from error


def check_evidence(method: str, needed: Kind, evidence: Evidence) -> None:
    """Raise ValueError where a method needs what is not there."""
    if needed != "none" and any(p.is_meta for p in evidence.model.parameters()):
        raise ValueError(f"method {method!r} looks at weights, and the model is on the meta device: load some first")
    if needed in ("images", "labelled images") and evidence.batches is None:
        kind = "(images, labels)" if needed == "labelled images" else "of images (N, C, H, W)"
        raise ValueError(f"method {method!r} needs {needed}: pass images=, batches {kind}")
