"""What layers of methods add to a training's loss."""

from typing import Any

from torch import Tensor, nn

from surgery.core.surgery_layer import SurgeryLayer


def whole_loss(objective: Any, images: Tensor, labels: Tensor) -> Tensor:
    """The loss of one of timm's tasks on a batch, and the auxiliary losses of its network's layers; a scalar.

    Raises:
        ValueError: a layer's auxiliary loss is no scalar.
    """
    loss: Tensor = objective(images, labels)["loss"]
    return sum(auxiliary_losses(objective.trainable_module).values(), loss)


def auxiliary_losses(network: nn.Module) -> dict[str, Tensor]:
    """The auxiliary losses (float32 scalars) that layers have after the forward just made, by the layers' names.

    Raises:
        ValueError: one is no scalar.
    """
    losses: dict[str, Tensor] = {}
    for name, layer in network.named_modules():
        value = layer.auxiliary_loss() if isinstance(layer, SurgeryLayer) else None
        if value is None:
            continue
        if value.ndim:
            raise ValueError(
                f"{name!r}: auxiliary_loss() of {type(layer).__name__} gives a tensor of shape {tuple(value.shape)}; "
                "a scalar is needed"
            )
        losses[name] = value.float()
    return losses
