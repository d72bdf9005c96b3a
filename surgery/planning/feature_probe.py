"""Which widths a timm network tells others of, and what they are after a narrowing: seen in forwards without weights.

``num_features`` is read by ``reset_classifier``, ``feature_info`` by decoders; both would be wrong after a narrowing.
Only what a forward shows to be such a width is changed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.checked_model import first_weight
from surgery.core.eval_mode import eval_mode
from surgery.graph import ModelGraph
from surgery.planning.decision import Decision
from surgery.planning.rehearsal import rehearsed_model
from surgery.transforms.feature_widths import NUMBERS, FeatureWidths, feature_info, number

FEATURE_WIDTHS = "feature widths"  # the decision's name
_Shapes = dict[str, tuple[int, ...]]


def feature_decision(graph: ModelGraph, decisions: Iterable[Decision]) -> list[Decision]:
    """A decision that brings the widths up to date which a network tells of; none where they stay."""
    decisions, model = list(decisions), graph.modules[""]
    resizes = any(transform.resized() for decision in decisions for transform in decision.transforms)
    if not resizes or not hasattr(model, "forward_features"):
        return []
    before, after = (_seen(rehearsed_model(graph, done), graph.input_shape) for done in ([], decisions))
    numbers = {}
    for name, shown in NUMBERS.items():
        old = number(model, name)
        new = None if old is None else next((n for key in shown if (n := _new_width(old, key, before, after))), None)
        if new not in (None, old):
            numbers[name] = new
    info = feature_info(model) or []
    channels = [_new_width(e["num_chs"], f"map {i}", before, after) or e["num_chs"] for i, e in enumerate(info)]
    channels = [] if channels == [entry["num_chs"] for entry in info] else channels
    return [Decision(FEATURE_WIDTHS, (FeatureWidths(numbers, tuple(channels)),))] if numbers or channels else []


def _new_width(old: int, key: str, before: _Shapes, after: _Shapes) -> int | None:
    """What a tensor's dimension of that size, channels first or last, has become; None where it has no such dimension.

    Of two that were as large the one that changed: a narrowing leaves the others.
    """
    one, two = before.get(key), after.get(key)
    if one is None or two is None or len(one) != len(two) or len(one) < 2:
        return None
    sizes = [two[dim] for dim in (1, -1) if one[dim] == old]
    return next((size for size in sizes if size != old), sizes[0] if sizes else None)


def _seen(model: nn.Module, size: tuple[int, ...]) -> _Shapes:
    """Shapes of the features, of what the classifier reads and of the maps in ``feature_info``, by these names."""
    shapes: _Shapes = {}
    modules = dict(model.named_modules())

    def note(key: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[key] = tuple(output.shape)

        return hook

    for position, entry in enumerate(feature_info(model) or []):
        if entry.get("module") in modules and entry.get("hook_type", "forward") == "forward":
            modules[entry["module"]].register_forward_hook(note(f"map {position}"))
    weight = first_weight(model)
    image = torch.zeros(1, *size, dtype=weight.dtype, device=weight.device)
    with eval_mode(model), torch.no_grad():
        try:
            features: Any = model.forward_features(image)  # type: ignore[operator]
            note("features")(model, (), features)
            note("pre_logits")(model, (), model.forward_head(features, pre_logits=True))  # type: ignore[operator]
        except Exception:  # methods of that name may take or do anything; what was seen before is seen
            return shapes
    return shapes
