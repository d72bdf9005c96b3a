"""Which objects surgery works on, and what to do with the others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from surgery.core.eval_mode import eval_mode


def check_model(model: object, *, weights: bool = False) -> None:
    """Raise TypeError or ValueError, saying what to do instead, for a model that cannot be operated on.

    Args:
        weights: whether the model must hold weights (not be on the meta device).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: a torch.nn.Module is needed")
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model is a {kind} (TorchScript): convert the nn.Module that it was scripted from")
    if isinstance(model, DataParallel | DistributedDataParallel) or kind.startswith("FullyShardedDataParallel"):
        raise TypeError(f"model is wrapped in {kind}: convert model.module, then wrap the result")
    if hasattr(model, "_orig_mod"):
        raise TypeError("model is compiled: convert model._orig_mod, then compile the result")
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__.split(".") or "quantization" in type(module).__module__.split("."):
            raise TypeError(
                f"model is quantised ({name or 'itself'} is a {type(module).__name__}): convert it before quantising"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(f"{name} is not initialised yet (a lazy module): run one forward first")
        if tensor.is_quantized:
            raise TypeError(f"model is quantised ({name} is {tensor.dtype}): convert it before quantising")
        if weights and tensor.is_meta:
            raise ValueError(
                f"model is on the meta device ({name} has no data): give it weights first, by to_empty() and "
                "load_state_dict()"
            )


def first_weight(model: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that a model computes in; where it has no weights, torch's defaults."""
    floating_point = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    return next(floating_point, torch.empty(0))


def output_for_one_image(model: nn.Module, size: Sequence[int]) -> Any:
    """What a model in eval mode gives for one image of zeros.

    Args:
        size: (C, H, W).

    Raises:
        ValueError: the model does not take one batch of images; with its own error.
    """
    weight = first_weight(model)
    image = torch.zeros(1, *size, dtype=weight.dtype, device=weight.device)
    with eval_mode(model), torch.inference_mode():
        try:
            return model(image)
        except Exception as error:  # a forward may raise anything
            line = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ValueError(
                f"{type(model).__name__} fails on one batch of images {tuple(image.shape)} ({line}): a model that "
                "takes such a batch alone, as a tensor, is needed"
            ) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        else:
            return model
