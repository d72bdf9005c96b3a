"""Swap VGG's 4096-wide head for global average pooling and one linear layer."""

from dataclasses import dataclass

from torch import nn

from surgery.core.errors import SurgeryError
from surgery.transforms.transform import CALL, Choice, Transform, transform


@transform("pooled_head")
@dataclass(frozen=True)
class PooledHead(Transform):
    """For timm's and torchvision's VGG, and networks built like them."""

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        width, last = _last_width(model), _last_linear(model)
        if hasattr(model, "pre_logits") and hasattr(model, "head") and hasattr(model.head, "fc"):
            model.pre_logits = nn.Identity()
            model.head.fc = _like(nn.Linear(width, last.out_features), last)
            setattr(model, "head_hidden_size", width)  # noqa: B010 (nn.Module types every attribute as a module)
        elif isinstance(getattr(model, "classifier", None), nn.Sequential) and isinstance(
            getattr(model, "avgpool", None), nn.AdaptiveAvgPool2d
        ):
            model.avgpool = nn.AdaptiveAvgPool2d(1)
            model.classifier = _like(nn.Linear(width, last.out_features), last)
        else:
            raise _no_such_head(model)

    def changed(self) -> tuple[str, ...]:
        return ()  # a new classifier without weights of the old one: nothing of it can be fitted to the original

    def work(self, model: nn.Module) -> int:
        return CALL


def _last_width(model: nn.Module) -> int:
    features = getattr(model, "features", None)
    convs = [] if features is None else [m for m in features.children() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise _no_such_head(model)
    return convs[-1].out_channels


def _last_linear(model: nn.Module) -> nn.Linear:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise _no_such_head(model)
    return linears[-1]


def _no_such_head(model: nn.Module) -> SurgeryError:
    return SurgeryError(f"head='pool' is for VGG-like models; {type(model).__name__} has no such head")


def _like(linear: nn.Linear, other: nn.Linear) -> nn.Linear:
    return linear.to(device=other.weight.device, dtype=other.weight.dtype)
