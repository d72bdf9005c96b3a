"""What a method may look at besides a recorded graph: weights, images, labelled images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

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
        """Batches (N, C, H, W); raises ValueError where there are none."""
        if self.batches is None:
            raise ValueError("images=None: batches of images (N, C, H, W) are needed")
        for batch in [self.batches] if isinstance(self.batches, Tensor) else self.batches:
            yield batch[0] if isinstance(batch, tuple | list) else batch

    def labelled_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (N, C, H, W) and of their classes (N,); raises ValueError where there are none."""
        if self.batches is None or isinstance(self.batches, Tensor):
            raise ValueError("images: batches (images, labels) are needed, such as a DataLoader of a dataset gives")
        for batch in self.batches:
            if not isinstance(batch, tuple | list) or len(batch) < 2 or not torch.is_tensor(batch[1]):
                raise ValueError(f"images has a {type(batch).__name__}: pairs (images, labels) are needed")
            yield batch[0], batch[1]


def check_evidence(method: str, needed: Kind, evidence: Evidence) -> None:
    """Raise ValueError where a method needs what is not there."""
    if needed != "none" and any(p.is_meta for p in evidence.model.parameters()):
        raise ValueError(f"method {method!r} looks at weights, and the model is on the meta device: load some first")
    if needed in ("images", "labelled images") and evidence.batches is None:
        kind = "(images, labels)" if needed == "labelled images" else "of images (N, C, H, W)"
        raise ValueError(f"method {method!r} needs {needed}: pass images=, batches {kind}")
