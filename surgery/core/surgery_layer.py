"""What a method's layer tells the rest of the package, so that nothing outside a method asks for its class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class OpCost:
    """Cost of one operation for one image.

    Attributes:
        macs: multiply-accumulates of convolutions and linears.
        flops: everything; a multiply-accumulate counts once.
        memory: elements written; norms and activations work in place and write none.
    """

    macs: int = 0
    flops: int = 0
    memory: int = 0

    def __add__(self, other: "OpCost") -> "OpCost":
        return OpCost(self.macs + other.macs, self.flops + other.flops, self.memory + other.memory)


@dataclass(frozen=True)
class Gates:
    """What a layer decides for each image and output channel.

    Attributes:
        values: (N, C), by which the channels are multiplied.
        states: by name, (N, C) bool: the choices that there are, each channel of an image in exactly one of them.
    """

    values: Tensor
    states: dict[str, Tensor]


@dataclass(frozen=True)
class WeightMaps:
    """Of a layer that is a convolution between several maps: the channels of each, in the order of its weight.

    Attributes:
        in_channels: of each map that goes in: dimension 1 of ``weight``.
        out_channels: of each map that comes out: dimension 0 of ``weight``, and of ``bias`` if there is one.
        per_channel: each channel is treated by itself, as a norm does: all tensors have one dimension, of all channels.
    """

    in_channels: tuple[int, ...]
    out_channels: tuple[int, ...]
    per_channel: bool = False


class SurgeryLayer(nn.Module):
    """Base of the layers that methods put into models: what calibration, training, export and inference ask of one.

    Attributes:
        keeps_sign: a non-negative input gives a non-negative output.
        opaque: a recorded or traced graph shows the layer as one node, which costs what :meth:`cost` says; where it is
            False, graphs show the operations of its forward instead.

    Raises:
        TypeError: an opaque layer that does not say what it costs.
    """

    keeps_sign: bool = False
    opaque: bool = True

    def __init__(self) -> None:
        super().__init__()
        if self.opaque and type(self).cost is SurgeryLayer.cost:
            raise TypeError(f"{type(self).__name__} is opaque, so it needs a method cost(); or set opaque = False")

    def observe(self, x: Tensor) -> Tensor | None:
        """What :meth:`start` needs to know of an input (N, C, H, W), a row for each image; None where it needs nothing.

        Must not depend on what ``start`` sets.
        """
        return None

    def start(self, observed: Tensor) -> None:
        """Set the layer's own parameters from what was observed of all images, before what follows it is fitted.

        Doing so twice must change nothing.
        """

    def auxiliary_loss(self) -> Tensor | None:
        """A scalar that the trainer adds to its loss after each forward, with its weight in it; None for none."""
        return None

    def set_progress(self, share: float) -> None:
        """Told where a training is, from 0 in its first epoch to 1 in its last; what follows a schedule heeds it.

        At 1 the layer is what it is after the training. It is told so whenever the network is judged, and where a
        training has one epoch.
        """

    def gates(self, x: Tensor) -> Gates | None:
        """What the layer decides for inputs (N, C, H, W); None where it decides nothing."""
        return None

    def picked_channels(self, x: Tensor) -> Tensor | None:
        """(N, C_out, H', W') int64: the input channel whose value each output pixel has, −1 where it mixes several.

        None for a layer that picks none.
        """
        return None

    def computed_macs(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Of a layer that computes less for some images: the multiply-accumulates (N,) of a call from ``x`` to ``y``.

        What :meth:`cost` says is then what it computes at most. None: as much for every image.
        """
        return None

    def folded(self) -> nn.Module | None:
        """A module for inference that computes the same in eval mode, with what is constant folded into weights.

        None where there is nothing to fold. The layer itself must not change.
        """
        return None

    def lowered(self) -> nn.Module:
        """A module that computes the same in eval mode by plain PyTorch operators, which every exporter knows.

        The layer itself must not change; where its forward is made of such operators, it is its own lowered form.
        """
        return self

    def specialised(self, observed: Tensor) -> "SurgeryLayer | None":
        """A copy that computes the same, and less, for every input that :meth:`observe` saw; None where none is."""
        return None

    def squeeze_of_runs(self) -> nn.Conv2d | None:
        """A 1×1 convolution with this layer's own parameters, where it reduces runs of neighbouring channels.

        It stands in for the layer while channels are reordered (``surgery/deploy/interleaving.py``): what belongs to
        an input or output channel of the layer belongs to that channel of the convolution. None: leave the layer.
        """
        return None

    def with_chunks(self, conv: nn.Conv2d) -> "SurgeryLayer":
        """A copy with the parameters of ``conv``, whose output i reduces the inputs i, i + C_out, i + 2·C_out, …"""
        raise NotImplementedError(f"{type(self).__name__}.with_chunks()")

    def output_rows(self) -> tuple[int, ...] | None:
        """Of a layer that is a convolution: the channels of each map that it gives, in the order of the rows of its
        ``weight`` and ``bias`` (or None), so that a norm behind it can be folded into these. None for other layers.
        """
        return None

    def without_norm(self) -> nn.Module | None:
        """Of a layer that normalises by ``running_mean``, ``running_var``, ``weight``, ``bias`` and ``eps``: what is
        left to do when the layer in front has taken these in. None for other layers.
        """
        return None

    def weight_maps(self) -> WeightMaps | None:
        """The maps whose channels its weight spans, where any of these may be removed; None where it is no such layer.

        One that has them also has :meth:`narrowed` and, where it mixes channels, :meth:`link_macs`.
        """
        return None

    def link_macs(self, inputs: Any, outputs: Any) -> dict[tuple[int, int], int]:
        """Multiply-accumulates for one image from each map in to each map out, by their positions; shapes as in
        :meth:`cost`.
        """
        raise NotImplementedError(f"{type(self).__name__}.link_macs()")

    def narrowed(self, maps: WeightMaps) -> dict[str, Any]:
        """The attributes to set when its weight has been sliced to these channels."""
        raise NotImplementedError(f"{type(self).__name__}.narrowed()")

    def cost(self, inputs: Any, outputs: Any) -> OpCost:
        """Cost for one image.

        Args:
            inputs: shape of what the layer takes: (N, C, H, W) of one map, a list or dict of shapes, nested as the
                maps are, where its argument is one (``[(N, C, H, W), (N, C, H, W)]``), and a list of these where
                several arguments hold tensors.
            outputs: the same of what it gives.
        """
        raise NotImplementedError(f"{type(self).__name__}.cost()")


def set_progress(network: nn.Module, share: float) -> None:
    """Tell every surgery layer of a network where its training is, 0 to 1: :meth:`SurgeryLayer.set_progress`."""
    for layer in network.modules():
        if isinstance(layer, SurgeryLayer):
            layer.set_progress(share)


def replace_layers(model: nn.Module, form: Callable[[SurgeryLayer], nn.Module]) -> nn.Module:
    """Put in the place of every surgery layer what ``form`` makes of it, in place.

    A layer that is held in several places is replaced by one module.

    Returns:
        The model; for a model that is a surgery layer itself, what took its place.
    """
    return _with_forms(model, form, {})


def _with_forms(
    module: nn.Module, form: Callable[[SurgeryLayer], nn.Module], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    if module not in done:
        done[module] = form(module) if isinstance(module, SurgeryLayer) else module
        for name, child in list(done[module]._modules.items()):
            if child is not None and (replacement := _with_forms(child, form, done)) is not child:
                setattr(done[module], name, replacement)
    return done[module]
