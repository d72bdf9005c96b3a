"""The mark that a network's channels are in another order than the original's."""

from dataclasses import dataclass

from torch import nn

from surgery.transforms.history import history
from surgery.transforms.transform import Choice, Transform, transform

THROUGHOUT = "channels reordered: forward_features and forward_intermediates return them in another order"
INSIDE = "channels reordered inside blocks: feature maps keep their order"
LONGEST = 128


@transform("reorder")
@dataclass(frozen=True)
class Reorder(Transform):
    """Changes no structure; by it a teacher is known whose channels are in another order.

    Attributes:
        order: a digest of the order that the channels are in.
        inside: whether feature maps that the network returns keep theirs.
    """

    order: str
    inside: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.order, str) or len(self.order) > LONGEST:
            raise ValueError(f"order={self.order!r:.80}: a digest is needed")
        if not isinstance(self.inside, bool):
            raise ValueError(f"inside={self.inside!r:.80}: true or false is needed")

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        """Nothing: the tensors are in that order already."""

    @property
    def note(self) -> str:
        """For the reader of a report."""
        return INSIDE if self.inside else THROUGHOUT


def orders(model: nn.Module) -> list[Reorder]:
    """The reorderings that a model has seen."""
    return [transform for transform in history(model) if isinstance(transform, Reorder)]


def check_same_order(model: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError where the channels of two networks were reordered in different ways."""
    if [done.order for done in orders(model)] != [done.order for done in orders(teacher)]:
        raise ValueError(
            "model and teacher have their channels in different orders: one was matched (surgery.match) and the other "
            "not, or for another conversion; the teacher must be the network that was converted"
        )
