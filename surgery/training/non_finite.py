"""Where a NaN or an infinity came from."""

from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; training stopped at that step."""


def first_non_finite(model: nn.Module, images: Tensor) -> str:
    """In words, the first place of a forward on ``images`` that holds a NaN or an infinity.

    Parameters come first: one that is not finite was made so by an earlier step.
    """
    if not torch.isfinite(images).all():
        return "the images themselves are not finite"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name} is not finite since an earlier step"
    descriptions: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not descriptions and isinstance(output, Tensor) and not torch.isfinite(output).all():
                layer = f"{name} ({type(module).__name__})" if name else type(module).__name__
                descriptions.append(f"{layer} is the first layer whose output is not finite")

        return hook

    # a module's hook is called after those of the modules in it
    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiled networks leave hooks out
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return descriptions[0] if descriptions else "every layer's output is finite; the loss itself is not"
