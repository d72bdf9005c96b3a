"""How a model of timm or torchvision was made, guessed from its attributes; every guess is checked by rebuilding."""

import functools
from collections.abc import Iterator
from itertools import chain, combinations
from typing import Any

import timm
import torchvision
from timm.layers import SelectAdaptivePool2d
from timm.models import FeatureDictNet, FeatureHookNet, FeatureListNet
from timm.models._features import FeatureGetterNet
from torch import nn

Guess = tuple[str, str, dict[str, Any]]  # builder, name, keyword arguments
_STRIDES = (8, 16)


def guesses(model: nn.Module) -> Iterator[Guess]:
    """What may have given this model, the likeliest first."""
    module = type(model).__module__
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, dict) else None
    if module.startswith("timm.") and isinstance(name, str) and timm.is_model(name):
        for kwargs in _timm_kwargs(model):
            yield "timm", name, kwargs
    if module.startswith("torchvision.models"):
        kwargs = _torchvision_kwargs(model)
        for name in torchvision.models.list_models():
            if torchvision.models.get_model_builder(name).__module__ == module:
                yield "torchvision", name, kwargs


def input_size_of(model: nn.Module) -> tuple[int, ...] | None:
    """(C, H, W) where a timm model was made for one image size; None where it says nothing."""
    size = _image_size(model)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (first.in_channels, *size) if size and first is not None else None


def _timm_kwargs(model: nn.Module) -> Iterator[dict[str, Any]]:
    certain = _features_only(model) if _gives_features(model) else _classes(model)
    possible = [{key: value} for key, value in _deviations(model).items()]
    for some in chain.from_iterable(combinations(possible, count) for count in range(len(possible) + 1)):
        yield functools.reduce(lambda kwargs, one: kwargs | one, some, certain)


def _classes(model: nn.Module) -> dict[str, Any]:
    classes = getattr(model, "num_classes", None)
    return {"num_classes": classes} if isinstance(classes, int) else {}


def _deviations(model: nn.Module) -> dict[str, Any]:
    """Arguments whose values the model's attributes tell, where they may not be the builder's defaults."""
    deviations: dict[str, Any] = {}
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        deviations["in_chans"] = first.in_channels
    size = _image_size(model)
    deviations |= {"img_size": list(size)} if size else {}
    if _gives_features(model):
        info: Any = model.feature_info
        reduction = max(info.reduction(), default=0)
        return deviations | ({"output_stride": reduction} if reduction in _STRIDES else {})
    pooling = _global_pool(model)
    return deviations | ({"global_pool": pooling} if pooling is not None else {})


def _gives_features(model: nn.Module) -> bool:
    """Whether a timm model was made with ``features_only=True``; a classifier's feature_info is a plain list."""
    return hasattr(getattr(model, "feature_info", None), "out_indices")


def _features_only(model: nn.Module) -> dict[str, Any]:
    info: Any = model.feature_info
    kwargs: dict[str, Any] = {"features_only": True, "out_indices": [int(index) for index in info.out_indices]}
    if isinstance(model, FeatureGetterNet):
        kwargs["feature_cls"] = "getter"
    elif isinstance(model, FeatureHookNet):
        kwargs["feature_cls"] = "hook"
    elif isinstance(model, FeatureDictNet) and not isinstance(model, FeatureListNet):
        kwargs["feature_cls"] = "dict"
    return kwargs


def _global_pool(model: nn.Module) -> str | None:
    """The kind of pooling in front of the classifier, "" for none; None where the model says nothing of it."""
    for owner in (model, getattr(model, "head", None)):
        pooling = getattr(owner, "global_pool", None)
        if isinstance(pooling, str):
            return pooling
        if isinstance(pooling, SelectAdaptivePool2d):
            return pooling.pool_type
        if isinstance(pooling, nn.Identity):
            return ""
    return None


def _image_size(model: nn.Module) -> tuple[int, int] | None:
    inner = model.model if isinstance(model, FeatureGetterNet) else model
    for owner in (getattr(inner, "patch_embed", None), inner):
        size = getattr(owner, "img_size", None)
        if isinstance(size, int) and not isinstance(size, bool):
            return size, size
        if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(n, int) for n in size):
            return size[0], size[1]
    return None


def _torchvision_kwargs(model: nn.Module) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    outputs = _classifier(model)
    if outputs is not None:
        kwargs["num_classes"] = outputs
    if hasattr(model, "aux_classifier"):
        kwargs["aux_loss"] = model.aux_classifier is not None
    if isinstance(getattr(model, "aux_logits", None), bool):
        kwargs |= {"aux_logits": model.aux_logits, "init_weights": False}
    if isinstance(getattr(model, "transform_input", None), bool):
        kwargs["transform_input"] = model.transform_input
    return kwargs


def _classifier(model: nn.Module) -> int | None:
    """Outputs of a detector's classifier, of the last linear layer, or of the convolution that ends a classifier."""
    scores = getattr(getattr(getattr(model, "roi_heads", None), "box_predictor", None), "cls_score", None)
    if isinstance(scores, nn.Linear):
        return scores.out_features
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if linears:
        return linears[-1].out_features
    convolutions = [m for m in getattr(model, "classifier", nn.Identity()).modules() if isinstance(m, nn.Conv2d)]
    return convolutions[-1].out_channels if convolutions else None
