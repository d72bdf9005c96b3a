"""The last feature map before pooling, where two networks can be compared there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

from surgery.calibration.targets import place_of
from surgery.core.errors import SurgeryError
from surgery.graph import ModelGraph, record
from surgery.graph.place import Place
from surgery.transforms.reorder import check_same_order


def common_feature_map(model: nn.Module, teacher: nn.Module, shape: tuple[int, ...]) -> tuple[Place | None, str]:
    """Where both networks give the map that the teacher pools, or None with the reason.

    Args:
        shape: (C, H, W) of an image.
    """
    try:
        check_same_order(model, teacher)
        graphs = record(teacher, shape), record(model, shape)
    except (ValueError, SurgeryError) as error:
        return None, str(error)
    places = [pooled_map(graph) for graph in graphs]
    if places[0] is None:
        return None, "no map that is pooled was seen in the original"
    if places[1] is None or places[0][0] != places[1][0]:
        return None, "the converted network pools another map"
    if places[0][1] != places[1][1]:
        return None, f"the pooled map has the shape {places[1][1]} in place of {places[0][1]}"
    return places[0][0], ""


def pooled_map(graph: ModelGraph) -> tuple[Place, tuple[int, ...]] | None:
    """Place and shape (C, H, W) of what the last global pooling reads."""
    pools = [node for node in graph if node.meta.get("kind") == "global_pool" and node.all_input_nodes]
    if not pools:
        return None
    source = pools[-1].all_input_nodes[0]
    point, shape = place_of(graph, source), source.meta.get("shape")
    return None if point is None or shape is None else (point, tuple(shape[1:]))


@contextmanager
def watched(network: nn.Module, point: Place | None) -> Iterator[list[Tensor]]:
    """While entered, a list to which every forward appends its tensor at a place."""
    seen: list[Tensor] = []
    if point is None:
        yield seen
        return
    module = network.get_submodule(point.module)
    if point.output:
        handle = module.register_forward_hook(lambda _, args, output: seen.append(output))
    else:
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(cast(Tensor, next(iter((*args, *kwargs.values()))))), with_kwargs=True
        )
    try:
        yield seen
    finally:
        handle.remove()
