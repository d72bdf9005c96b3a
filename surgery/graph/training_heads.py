"""Layers that run in training only, such as auxiliary classifiers: they read channels that a plain forward shows."""

import dataclasses

import numpy as np
from torch import nn

from surgery.core.errors import TraceError
from surgery.graph.channel_classes import Coupling
from surgery.graph.coupling import couple
from surgery.graph.recorder import ModelGraph, record_training


def couple_all(graph: ModelGraph, model: nn.Module) -> Coupling:
    """Follow every channel through a recorded graph, and through what runs in training only.

    Layers of training alone have no multiply-accumulates.
    """
    coupling = couple(graph)
    idle = [name for name, module in graph.modules.items() if _is_layer(module) and not graph.calls[name]]
    if not idle:
        return coupling
    try:
        training = couple(record_training(model, graph.input_shape))
    except TraceError as error:
        return _all_frozen(coupling, f"{idle[0]} runs in training only, and {error}")
    if not set(coupling.layers) <= set(training.layers):
        return _all_frozen(coupling, f"{idle[0]} runs in training only, and other layers do not run there")
    macs = {name: layer.macs for name, layer in coupling.layers.items()}
    training.layers = {
        name: dataclasses.replace(layer, macs=macs.get(name, 0)) for name, layer in training.layers.items()
    }
    return training


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _all_frozen(coupling: Coupling, reason: str) -> Coupling:
    classes = np.unique(np.concatenate([layer.writes for layer in coupling.layers.values()])).tolist()
    coupling.frozen |= dict.fromkeys([number for number in classes if number not in coupling.frozen], reason)
    return coupling
