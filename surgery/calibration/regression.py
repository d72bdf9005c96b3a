"""The regression of one layer: rows of what it reads, and what it is to give for them."""

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.calibration.absorb import affine_of, inverse_of
from surgery.calibration.kept_channels import KeptChannels
from surgery.calibration.normal_equations import NormalEquations
from surgery.calibration.patches import at, matrices, patches, sampled
from surgery.calibration.targets import Target

if TYPE_CHECKING:
    from surgery.calibration.passes import Passes, Seen

HOLD_OUT = 5  # one image in five judges the ridge
LEAST_FEATURES = 2048  # rows of fewer would be cheap, but they are what small layers are fitted from


class Regression:
    """Of a layer that is fitted to the original's.

    Args:
        layer, own: the layer, and the same of the original.
        norm: the original's BatchNorm behind it, or None.
        channels: what a narrowed network still has.

    Attributes:
        sums: the normal equations.
        after: (scale, shift), which map the layer's output to what it is fitted to.
    """

    def __init__(
        self, layer: nn.Module, own: nn.Module, norm: _BatchNorm | None, target: Target, channels: KeptChannels
    ) -> None:
        self.layer, self.own, self.target, self.channels = layer, own, target, channels
        self.groups, self.outputs, self.features = matrices(layer).shape
        self.device = cast(Tensor, layer.weight).device
        self.kept = slice(None) if target.outputs is None else torch.tensor(target.outputs)
        self.sums = self._equations()
        scale, shift = affine_of(norm, self.sums.t[0], self.kept)
        self.after = scale.to(self.device), shift.to(self.device)
        # in the original: what it computed from all inputs, by those that are left
        self.own_sums = self._equations() if target.own_reads is not None else None

    def _equations(self) -> NormalEquations:
        return NormalEquations(self.groups, self.features, self.outputs, self.device)

    def collect(self, passes: "Passes", number: int, rows_per_feature: float) -> None:
        """Add the rows of all images."""
        images, first = passes.images(number), 0
        count = math.ceil(rows_per_feature * max(self.features, LEAST_FEATURES) / images)
        generator = torch.Generator().manual_seed(number)
        for seen in passes.at(self.target, number):
            maps = max(1, len(seen.parts[0]) // seen.images)  # of each image: windows, for example
            places = sampled(seen.parts[0], math.ceil(count / maps), generator, isinstance(self.layer, nn.Linear))
            image = places[0] // maps + first if images >= HOLD_OUT else torch.arange(len(places[0]))
            held = (image % HOLD_OUT == 0).to(places[0].device)
            _add(self.sums, patches(self.layer, seen.reads, places), self._targets_at(seen, places), held)
            if self.own_sums is not None and seen.own_reads is not None:
                _add(self.own_sums, *self._own_rows(seen.own_reads, places), held)
            first += seen.images

    def _targets_at(self, seen: "Seen", places: tuple[Tensor, ...]) -> Tensor:
        """(R, groups, outputs): the original's there, and what its and the converted network's addends differ by."""
        own, *addends = (at(part, places).to(torch.promote_types(part.dtype, torch.float32)) for part in seen.parts)
        t = own[:, self.kept]
        if not addends:
            return t.reshape(-1, self.groups, self.outputs)
        scale, shift = self.after
        t = (t + addends[0][:, self.kept] - addends[1]).reshape(-1, self.groups, self.outputs)
        return (t - shift) * inverse_of(scale)

    def _own_rows(self, reads: Tensor, places: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What the original's layer reads of the inputs that are left, and what it gives without its constant."""
        rows = patches(self.own, reads, places).double()
        outputs = torch.einsum("rgd,god->rgo", rows, matrices(self.own).to(rows.device)).flatten(1)[:, self.kept]
        inputs = self.channels.inputs(self.target.layer, cast(Tensor, self.layer.weight).shape[1])
        own_inputs = cast(Tensor, self.own.weight).shape[1]
        left = rows.unflatten(2, (own_inputs, -1))[:, :, list(cast("tuple[int, ...]", inputs))].flatten(2)
        return left, outputs.reshape(-1, self.groups, self.outputs)

    def priors(self) -> list[Tensor]:
        """What the weights may be drawn towards: zero, and what the original has where the layer still has it.

        Where it reads fewer channels than it did, those that are left take over what they can of the others.
        """
        weight = matrices(self.layer)
        priors = [torch.zeros_like(weight)]
        if (own := self._own_weight(weight.shape)) is not None:
            own = own.to(weight.device)
            priors.append(own if self.own_sums is None else self.own_sums.solve([own]).weight)
        return priors

    def _own_weight(self, shape: torch.Size) -> Tensor | None:
        """The original's matrices, or what the layer still has of them; None where that is not known."""
        own, outputs = matrices(self.own), self.target.outputs
        if own.shape == shape:
            return own
        if isinstance(self.layer, _BatchNorm):
            return None if outputs is None else own[list(outputs)]
        part = self.channels.slice_of(self.target.layer, cast(Tensor, self.layer.weight).shape)
        return None if part is None else part.double().reshape(shape)


def _add(sums: NormalEquations, x: Tensor, t: Tensor, held: Tensor) -> None:
    sums.add(x[~held], t[~held], held=False)
    sums.add(x[held], t[held], held=True)
