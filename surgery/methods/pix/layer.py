"""The PiX layer: a squeeze 1×1 convolution's weights, applied to the pooled descriptor (PiX Eq. 1-3)."""

import copy
import math

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.core.errors import check_choice
from surgery.core.norm_folding import norm_folded
from surgery.core.surgery_layer import Gates, OpCost, SurgeryLayer
from surgery.graph.kinds import STANDARDISED
from surgery.methods.pix.lowering import HALF, ComposedPiX
from surgery.methods.pix.ops import pix, pix_fuse, reference
from surgery.methods.pix.ops.shapes import check_stride
from surgery.transforms.subsets import subset_members

SPREAD = 0.05  # standard deviation of the logits that a calibration starts from
STEADY = 0.08  # and that of p which it leaves as it is
# a site is one call in what fx traces, as in what this package records: symbolic_trace, feature extractors
torch.fx.wrap("pix")
torch.fx.wrap("pix_fuse")


class PiX(SurgeryLayer):
    """Pick-or-Mix: each output channel is p · max or p · mean of its subset of input channels.

    Parameters carry the names and shapes of the convolution that the layer replaces (``weight`` (C_out, C, 1, 1),
    ``bias`` (C_out,), and ``gain`` for scaled weight standardisation), so that convolution's checkpoint fits.

    Args:
        in_channels: C.
        out_channels: C_out <= C. A contiguous subset i holds channels ⌊i·C/C_out⌋ … ⌊(i+1)·C/C_out⌋ − 1.
        stride: grid on which the map is fused; the descriptor is pooled over all of the input.
        bias: whether the predictor has one.
        tau: threshold of Eq. 2: max where p <= tau, mean where p > tau.
        fusion: ``threshold`` (Eq. 2) or ``weighted`` (Eq. 3).
        operator: ``max+avg``, or one reduction alone: ``max``, ``avg``, ``min`` (ablation E3).
        activation: ``sigmoid`` or ``tanh``, which is 0.5 · (1 + tanh) (ablation E0).
        grouping: ``contiguous`` (the paper's) or ``strided``: subset i holds channels i, i + C_out, i + 2·C_out, …
        predictor_norm: a BatchNorm between predictor and activation (ablation E1).
        input_norm: a BatchNorm on the input (FACS Table 5, "Pre").
        standardize: (eps, scale) where the weight is standardised at call time, as in timm's StdConv2d.

    Shape: (N, C, H, W) → (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉), any floating dtype.

    Raises:
        ValueError: for a choice that is not listed, a stride below 1, or C_out > C.
    """

    keeps_sign = True
    weight: nn.Parameter
    bias: nn.Parameter | None
    gain: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: tuple[int, int] = (1, 1),
        bias: bool = True,
        tau: float = 0.5,
        fusion: reference.Fusion = "threshold",
        operator: reference.Operator = "max+avg",
        activation: reference.Activation = "sigmoid",
        grouping: reference.Grouping = "contiguous",
        predictor_norm: bool = False,
        input_norm: bool = False,
        standardize: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (in_channels, out_channels))
        if not whole or not 1 <= out_channels <= in_channels:
            raise ValueError(
                f"in_channels={in_channels!r}, out_channels={out_channels!r}: whole numbers, 1 <= out_channels <= "
                "in_channels, are needed"
            )
        if not isinstance(stride, tuple | list) or not all(isinstance(step, int) for step in stride):
            raise ValueError(f"stride={stride!r}: two whole numbers >= 1 are needed")
        check_stride(stride)
        check_fusion(fusion, operator, activation, tau, grouping)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.tau, self.fusion, self.operator, self.activation = float(tau), fusion, operator, activation
        self.grouping, self.standardize = grouping, standardize
        predictor = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.weight = nn.Parameter(predictor.weight.detach())
        self.bias = nn.Parameter(predictor.bias.detach()) if predictor.bias is not None else None
        self.gain = None
        self.predictor_norm = nn.BatchNorm2d(out_channels) if predictor_norm else None
        self.input_norm = nn.BatchNorm2d(in_channels) if input_norm else None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **arguments: object) -> "PiX":
        """A PiX that owns the parameters (the same objects) of a 1×1 convolution; ``arguments`` as for the class."""
        standardize = None
        if isinstance(conv, STANDARDISED):
            standardize = (float(conv.eps), float(getattr(conv, "scale", 1.0)))
        stride = (int(conv.stride[0]), int(conv.stride[1]))
        layer = cls(conv.in_channels, conv.out_channels, stride=stride, standardize=standardize, **arguments)  # type: ignore[arg-type]
        layer.to(device=conv.weight.device, dtype=conv.weight.dtype)
        for name, parameter in conv.named_parameters(recurse=False):
            setattr(layer, name, parameter)
        if conv.bias is None:
            layer.bias = None
        return layer.train(conv.training)

    @property
    def zeta(self) -> float:
        """C / C_out."""
        return self.in_channels / self.out_channels

    def effective_weight(self) -> Tensor:
        """The predictor's weight (C_out, C, 1, 1): as it is, or standardised per filter as timm's convolutions do."""
        if self.standardize is None:
            return self.weight
        eps, scale = self.standardize
        gain = None if self.gain is None else (self.gain * scale).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=eps).reshape_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_norm is not None:
            x = self.input_norm(x)
        weight = self.effective_weight()
        if self.predictor_norm is None:
            return pix(
                x,
                weight,
                self.bias,
                tau=self.tau,
                fusion=self.fusion,
                operator=self.operator,
                activation=self.activation,
                stride=self.stride,
                grouping=self.grouping,
            )[0]
        logits = self.predictor_norm(F.conv2d(x.mean((2, 3), keepdim=True), weight, self.bias))
        p = reference.activate(logits.flatten(1), self.activation)
        return pix_fuse(
            x,
            p,
            tau=self.tau,
            fusion=self.fusion,
            operator=self.operator,
            stride=self.stride,
            grouping=self.grouping,
        )

    def observe(self, x: Tensor) -> Tensor | None:
        """The descriptor (N, C), in float64; None for a predictor that normalises and so cannot be set."""
        if self.predictor_norm is not None or self.standardize is not None:
            return None
        return (x if self.input_norm is None else self.input_norm(x)).float().mean((2, 3)).double()

    @torch.no_grad()
    def start(self, observed: Tensor) -> None:
        """Let p vary little around a value at which every image has the mean.

        A p that jumps between max and mean from image to image, or scales channels up and down, is noise to layers that
        were trained without it (docs/recovery.md). What the weights say of an image is kept, but small: the rows are
        scaled down, and shifted by a constant, which is the bias, or, where there is none, the linear function of the
        descriptor that is nearest to one. Training may make of it what it wants.
        """
        if self._settled(observed) or not bool((observed != 0).any()):
            return
        constant = _almost_one(observed)
        weight = self.weight.double().flatten(1)
        bias = 0.0 if self.bias is None else self.bias.double()
        logits = observed @ weight.T + bias
        shrink = (SPREAD / (logits.std(0, correction=0) ** 2).mean().sqrt().clamp(min=1e-12)).clamp(max=1.0)
        for margin in (4.0, 8.0, 16.0, 32.0, 64.0):
            wanted = self._least_logit() + margin * SPREAD
            if self.bias is not None:
                self.weight.copy_((shrink * weight).reshape(self.weight.shape))
                self.bias.copy_(wanted - shrink * (logits.mean(0) - bias))
            else:
                shift = (wanted - shrink * logits.mean(0))[:, None]
                self.weight.copy_((shrink * weight + shift * constant).reshape(self.weight.shape))
            if self._settled(observed):
                return

    def _settled(self, observed: Tensor) -> bool:
        """Whether every image has the mean, and p varies little."""
        bias = 0.0 if self.bias is None else self.bias.double()
        logits = observed @ self.weight.double().flatten(1).T + bias
        spread = (reference.activate(logits, self.activation).std(0, correction=0) ** 2).mean().sqrt()
        return bool((logits > self._least_logit()).all()) and bool(spread <= STEADY)

    def _least_logit(self) -> float:
        """Above it a channel takes the mean; where nothing but the size of p depends on it, that of p = 0.5."""
        if self.fusion != "threshold" or self.operator != "max+avg" or not 0 < self.tau < 1:
            return -16 * SPREAD
        return math.log(self.tau / (1 - self.tau)) / (1 if self.activation == "sigmoid" else 2)

    def gates(self, x: Tensor) -> Gates:
        """p (PiX Eq. 1), and which channels have the extreme of their subset (Eq. 2) and which a mixture of it."""
        p = self._probabilities(x)
        picks = (
            p <= self.tau if self._chooses else torch.full_like(p, self.operator in ("max", "min"), dtype=torch.bool)
        )
        if self.fusion == "weighted":
            picks = torch.zeros_like(picks)
        return Gates(p, {"picks": picks, "mixes": ~picks})

    @property
    def _chooses(self) -> bool:
        return self.fusion == "threshold" and self.operator == "max+avg"

    def _probabilities(self, x: Tensor) -> Tensor:
        """p (N, C_out)."""
        if self.input_norm is not None:
            x = self.input_norm(x)
        logits = F.conv2d(x.mean((2, 3), keepdim=True), self.effective_weight(), self.bias)
        if self.predictor_norm is not None:
            logits = self.predictor_norm(logits)
        return reference.activate(logits.flatten(1), self.activation)

    def picked_channels(self, x: Tensor) -> Tensor:
        """(N, C_out, ⌈H / stride⌉, ⌈W / stride⌉): which channel is its subset's extreme, −1 if mixed."""
        picks = self.gates(x).states["picks"]
        if self.input_norm is not None:
            x = self.input_norm(x)
        x = x[:, :, :: self.stride[0], :: self.stride[1]]
        channels = []
        for members in subset_members(self.in_channels, self.out_channels, self.grouping):
            subset = x[:, members]
            index = subset.argmin(1) if self.operator == "min" else subset.argmax(1)
            channels.append(torch.tensor(members, device=x.device)[index])
        picked = torch.stack(channels, 1)
        return picked.where(picks[:, :, None, None], -1)

    def folded(self) -> "PiX | None":
        """A copy with its weight standardised once and for all, and the predictor's norm in the predictor."""
        if self.standardize is None and self.predictor_norm is None:
            return None
        layer = copy.deepcopy(self)
        layer.weight = nn.Parameter(self.effective_weight().detach())
        layer.standardize, layer.gain = None, None
        if layer.predictor_norm is not None:
            layer.weight, layer.bias = norm_folded(layer.weight, layer.bias, layer.predictor_norm)
            layer.predictor_norm = None
        return layer

    def lowered(self) -> ComposedPiX:
        """Reductions, a convolution and a choice between them."""
        return ComposedPiX(self)

    @torch.no_grad()
    def specialised(self, observed: Tensor) -> "PiX | None":
        """A copy with one reduction, where every subset of every image has the same."""
        if self.fusion != "threshold" or self.operator != "max+avg":
            return None
        bias = 0.0 if self.bias is None else self.bias.double()
        p = reference.activate(observed @ self.weight.double().flatten(1).T + bias, self.activation)
        has_max = p <= self.tau
        if has_max.any() and not has_max.all():
            return None
        layer = copy.deepcopy(self)
        layer.operator = "max" if has_max.any() else "avg"
        return layer

    def squeeze_of_runs(self) -> nn.Conv2d | None:
        """The predictor, at the layer's stride. Of half floats the sums of chunks overflow where means do not."""
        if self.grouping != "contiguous" or self.input_norm is not None or self.weight.dtype in HALF:
            return None
        layer = self.folded() or self
        has_bias = layer.bias is not None
        conv = nn.Conv2d(layer.in_channels, layer.out_channels, 1, layer.stride, bias=has_bias)
        conv.weight, conv.bias = layer.weight, layer.bias
        return conv.train(self.training)

    def with_chunks(self, conv: nn.Conv2d) -> "PiX":
        layer = copy.deepcopy(self.folded() or self)
        layer.weight, layer.bias, layer.grouping = nn.Parameter(conv.weight), None, "strided"
        if conv.bias is not None:
            layer.bias = nn.Parameter(conv.bias)
        return layer

    def cost(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> OpCost:
        """PiX supplement D.4 (with C.6's ζ − 1): pooling, predictor, activation, fusion on the strided grid."""
        channels, pixels = in_shape[1], in_shape[2] * in_shape[3]
        out, out_pixels = out_shape[1], out_shape[2] * out_shape[3]
        predictor = channels * out
        reductions = 2 if self.fusion == "weighted" else 1
        flops = channels * pixels + predictor + 4 * out + reductions * (channels - out) * out_pixels
        if self.predictor_norm is not None:
            flops += 4 * out
        if self.input_norm is not None:
            flops += 4 * channels * pixels
        return OpCost(predictor, flops, channels + out + out * out_pixels)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, tau={self.tau}, fusion={self.fusion}, operator={self.operator}"
        )
        text += f", activation={self.activation}, bias={self.bias is not None}"
        if self.grouping != "contiguous":
            text += f", grouping={self.grouping}"
        if self.stride != (1, 1):
            text += f", stride={self.stride}"
        return text if self.standardize is None else f"{text}, standardize={self.standardize}"


def _almost_one(observed: Tensor) -> Tensor:
    """A vector (C,) whose product with every row (N, C) is near 1, and 1 in the mean (ridge regression)."""
    square = observed.T @ observed
    ridge = 1e-3 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    vector = torch.linalg.solve(square + ridge, observed.sum(0))
    return vector / (observed @ vector).mean()


def check_fusion(fusion: str, operator: str, activation: str, tau: float, grouping: str = "contiguous") -> None:
    """Raise ValueError for a choice that does not exist or a combination that means nothing."""
    check_choice("fusion", fusion, reference.FUSIONS)
    check_choice("operator", operator, reference.OPERATORS)
    check_choice("activation", activation, reference.ACTIVATIONS)
    check_choice("grouping", grouping, reference.GROUPINGS)
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 <= tau <= 1:
        raise ValueError(f"tau={tau!r}: a number from 0 (always mean) to 1 (always max) is needed")
    if fusion == "weighted" and operator != "max+avg":
        raise ValueError(f"fusion='weighted' mixes max and mean (Eq. 3); operator={operator!r} has nothing to mix")
