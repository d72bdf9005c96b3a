"""The FBS layer: a convolution with its norm and activation, that computes some channels for each image."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from surgery.core.norm_folding import norm_folded
from surgery.core.surgery_layer import Gates, OpCost, SurgeryLayer
from surgery.methods.fbs.execution import Execution, computed, may_skip
from surgery.methods.fbs.saliency_start import fitted_saliency
from surgery.methods.fbs.skipping import WORTH_GATHERING, Filters, Link, scattered
from surgery.methods.fbs.winner_take_all import (
    kept_count,
    mean_magnitude,
    mean_saliency,
    saliencies,
    winner_take_all,
)

PLACEMENTS = ("output", "norm_scale")
# calls in what fx traces, as of other layers of this package: symbolic_trace, feature extractors
torch.fx.wrap("mean_magnitude")
torch.fx.wrap("saliencies")
torch.fx.wrap("mean_saliency")
torch.fx.wrap("shifted")


class FBSConv2d(SurgeryLayer):
    """A convolution whose ⌈d·C⌉ most salient output channels are computed and boosted, and whose others are zero.

    Saliency g = ReLU(W · mean|x| + b) of every output channel (FBS, Eq. 5), in float32 at least; the winners of each
    image are kept (Eq. 6, of equal ones the first). ``placement`` says what they are multiplied by, and where:

    - ``output``, of the PyTorch port: y = act(norm(conv(x))) · t, with t = mask · g / mean(g). Neutral: W = 0, b = 1;
      ``saliency.bias`` is b − 1, which half precisions keep.
    - ``norm_scale``, of the authors (Eq. 4): g stands for the norm's γ, y = mask · act(g · norm(conv(x)) + β), where
      the norm has no γ and β of its own. Neutral: W = 0, b = γ; filters with a negative γ change their sign.

    In eval mode without gradients, inactive channels are not computed: see :mod:`surgery.methods.fbs.execution`.

    Args:
        conv: its ``weight`` and ``bias`` become the layer's own, the same objects.
        norm: a BatchNorm2d that follows, or None.
        act: what follows that, with f(0) = 0 and no parameters, or None.
        density: d in (0, 1].
        placement: see above.
        l1: weight of the sum of saliencies, mean over the images, in the loss.
        schedule: densities of the training before it reaches ``density``, each for an equal share of it; of a training
            with fewer epochs than these are some, and always ``density`` in the last.
        non_negative: the input is, so that |x| is x.

    Shape: (N, C, H, W) → (N, C_out, H', W') as of ``conv``, or both without N; any floating dtype.
    """

    groups, padding_mode = 1, "zeros"  # of the convolution that it stands for
    weight: nn.Parameter
    bias: nn.Parameter | None
    beta: nn.Parameter | None

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
        act: nn.Module | None = None,
        *,
        density: float = 0.5,
        placement: str = "output",
        l1: float = 1e-8,
        schedule: tuple[float, ...] = (),
        non_negative: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        self.density, self.placement, self.l1, self.schedule = density, placement, l1, schedule
        self.non_negative = non_negative
        self.constant = 1.0 if placement == "output" else 0.0  # of the saliency, besides its bias
        self.present_density, self.count = density, kept_count(density, conv.out_channels)
        self.reads: Link | None = None
        self.gives: Link | None = None
        self.compact = False
        self._execution = Execution()
        self._last_saliency: Tensor | None = None
        self.register_parameter("weight", cast(nn.Parameter, conv.weight))
        self.register_parameter("bias", cast("nn.Parameter | None", conv.bias))
        self.norm, inner = _without_activation(norm)
        acts = [module for module in (*inner, act) if module is not None and not isinstance(module, nn.Identity)]
        self.act = acts[0] if len(acts) == 1 else nn.Sequential(*acts)
        self.saliency = nn.Linear(self.in_channels, self.out_channels, device=conv.weight.device)
        self.saliency.to(conv.weight.dtype)
        self.register_parameter("beta", None)
        with torch.no_grad():
            self.saliency.weight.zero_()
            self.saliency.bias.fill_(1.0 - self.constant)
            if placement == "norm_scale":
                self._take_scale()

    def _take_scale(self) -> None:
        """Let the saliency stand for the norm's scale: γ becomes its constant, β a parameter of the layer."""
        if self.norm is None:
            self.beta, self.bias = self.bias, None
            return
        if self.norm.affine:
            sign = torch.where(self.norm.weight < 0, -1.0, 1.0).to(self.weight)
            self.weight.mul_(sign[:, None, None, None])
            if self.bias is not None:
                self.bias.mul_(sign)
            if self.norm.running_mean is not None:
                self.norm.running_mean.mul_(sign)
            self.saliency.bias.copy_(self.norm.weight.abs())
            self.beta = self.norm.bias
            self.norm.affine, self.norm.weight, self.norm.bias = False, None, None  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:  # named as a convolution's
        if not isinstance(input, Tensor):  # a proxy that is traced: a map with all its channels
            return self._gated(input, None)
        if input.ndim == 3:
            return self.forward(input[None])[0]
        inputs = self.reads.take() if self.reads is not None and input.shape[1] != self.in_channels else None
        return self._gated(input, inputs)

    def _gated(self, x: Tensor, inputs: Tensor | None) -> Tensor:
        pooled = self._pooled(x, inputs)
        saliency = self._saliency(pooled)
        if self.training and self.l1:
            self._keep(saliency)
        if may_skip(self, x):
            return computed(self, x, inputs, pooled, saliency)
        mask = winner_take_all(saliency, self.count)
        return self.dense(x, inputs, mask, self.factors(saliency, mask))

    def _keep(self, saliency: Tensor) -> None:
        """For the auxiliary loss; not what a backward computes again, which would hold its whole graph."""
        if torch.compiler.is_compiling() or (isinstance(saliency, Tensor) and torch._C._current_graph_task_id() < 0):
            self._last_saliency = saliency

    def _pooled(self, x: Tensor, inputs: Tensor | None) -> Tensor:
        """mean|x| of all input channels (N, C); those that a compact map leaves out are zero."""
        pooled = mean_magnitude(x, self.non_negative)
        if inputs is None:
            return pooled
        return pooled.new_zeros((len(x), self.in_channels)).scatter_(1, inputs, pooled)

    def _saliency(self, pooled: Tensor) -> Tensor:
        return saliencies(pooled, self.saliency.weight, self.saliency.bias, self.constant)

    def factors(self, saliency: Tensor, mask: Tensor) -> Tensor:
        """What all channels are multiplied by, (N, C_out)."""
        return saliency if self.placement == "norm_scale" else saliency * mask / mean_saliency(saliency)

    def dense(self, x: Tensor, inputs: Tensor | None, mask: Tensor, factors: Tensor) -> Tensor:
        """All channels computed, then masked: the definition, and what is trained and exported."""
        if inputs is not None:
            x = scattered(x, inputs, self.in_channels)
        y = self.activated(self.filters(x), factors)
        return y * mask.to(y.dtype)[:, :, None, None] if self.placement == "norm_scale" else y

    @property
    def filters(self) -> Filters:
        """The convolution alone."""
        stride, dilation = cast(tuple[int, int], self.stride), cast(tuple[int, int], self.dilation)
        return Filters(self.weight, self.bias, stride, self.padding, dilation)

    def activated(self, y: Tensor, factors: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Norm, activation and boosting of what the convolution gives, (N, k, H', W'); all channels, or ``outputs``."""
        y = self._normed(y, outputs)
        factors = factors.to(y.dtype)[:, :, None, None]
        if self.placement == "output":
            y = self.act(y)
            return y * factors if outputs is None else y.mul_(factors)
        y = y * factors
        if self.beta is not None:
            y = shifted(y, self.beta if outputs is None else self.beta[outputs])
        return self.act(y)

    def _normed(self, y: Tensor, outputs: Tensor | None) -> Tensor:
        norm = self.norm
        if norm is None or outputs is None:
            return y if norm is None else norm(y)
        mean, variance, scale, shift = (
            None if tensor is None else tensor[outputs]
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return F.batch_norm(y, mean, variance, scale, shift, False, 0.0, norm.eps)

    def link(self, producer: "FBSConv2d") -> None:
        """Say that this layer alone reads what ``producer`` gives, channel by channel."""
        self.reads = producer.gives = Link()

    def set_progress(self, share: float) -> None:
        densities = (*self.schedule, self.density)
        stage = int(share * len(densities) + 1e-9)  # rounding may leave a quotient just below a whole number
        self.present_density = densities[min(stage, len(densities) - 1)]
        self.count = kept_count(self.present_density, self.out_channels)

    def auxiliary_loss(self) -> Tensor | None:
        saliency, self._last_saliency = self._last_saliency, None
        return None if saliency is None else self.l1 * saliency.float().sum(1).mean()

    def observe(self, x: Tensor) -> Tensor | None:
        """The pooled input beside the mean magnitude of every output channel, (N, C + C_out)."""
        if self.placement != "output":
            return None
        x = x.to(self.weight.dtype)
        ones = x.new_ones((len(x), self.out_channels))
        return torch.cat([mean_magnitude(x), mean_magnitude(self.activated(self.filters(x), ones))], 1)

    def start(self, observed: Tensor) -> None:
        """Let saliency rank channels by what they were seen to give, and boost nearly none of them."""
        pooled, magnitudes = observed.double().split([self.in_channels, self.out_channels], 1)
        weight, bias = fitted_saliency(pooled, magnitudes)
        with torch.no_grad():
            self.saliency.weight.copy_(weight)
            self.saliency.bias.copy_(bias - self.constant)

    def folded(self) -> nn.Module | None:
        """A copy whose norm is folded into its filters, and which hands compact maps on where it is linked."""
        layer = copy.deepcopy(self, {id(link): link for link in (self.reads, self.gives)})
        layer.compact = True
        norm = layer.norm
        if norm is not None and norm.running_mean is not None and self.placement == "output":
            layer.weight, layer.bias = norm_folded(layer.weight, layer.bias, norm)
            layer.norm = None
        return layer

    def gates(self, x: Tensor) -> Gates:
        """Saliencies, and which channels are kept.

        Raises:
            ValueError: ``x`` comes from a layer that hands on what it computed alone, in a copy for inference.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"{x.shape[1]} of {self.in_channels} channels come in: a copy that optimize_for_inference made tells "
                "no gates; the model that it was made of is needed"
            )
        saliency = self._saliency(self._pooled(x, None))
        kept = winner_take_all(saliency, self.count)
        return Gates(self.factors(saliency, kept), {"kept": kept, "suppressed": ~kept})

    def computed_macs(self, x: Tensor, y: Tensor) -> Tensor:
        """Multiply-accumulates (N,) of a call from (N, C, H, W) to (N, C_out, H', W'); zero inputs are left out."""
        active = (mean_magnitude(x) > 0).sum(1)
        if self.reads is not None or self.count == self.out_channels:
            active = active.new_full(active.shape, self._most_inputs)
        else:
            active = active.where(active <= WORTH_GATHERING * self.in_channels, self.in_channels)
        return self.count * active * self.weight[0, 0].numel() * y.shape[2] * y.shape[3] + self.saliency.weight.numel()

    @property
    def _most_inputs(self) -> int:
        """Input channels that it convolves: those that a linked layer computes; all where it skips none of its own."""
        if self.reads is None or self.count == self.out_channels:
            return self.in_channels
        return kept_count(self.present_density, self.in_channels)

    def cost(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> OpCost:
        """Of the kept channels, from the kept channels of a layer that is linked to; saliency and pooling included."""
        places = out_shape[2] * out_shape[3]
        active = self._most_inputs
        predictor = self.in_channels * self.out_channels
        macs = self.count * active * self.weight[0, 0].numel() * places + predictor
        pooling = active * in_shape[2] * in_shape[3]
        behind = (6 if self.norm is not None else 2) * self.count * places  # norm, activation, boosting
        ranking = sum(self.out_channels - i for i in range(1, self.count + 1))
        written = out_shape[1] * places + self.in_channels + self.out_channels
        return OpCost(macs, macs + pooling + behind + ranking, written)

    def __getstate__(self) -> dict[str, Any]:
        """Neither what the last forward left, nor what was measured on this machine."""
        return {**self.__dict__, "_last_saliency": None, "_execution": Execution()}

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shown}, density={self.density:g}, placement={self.placement}"


def shifted(y: Tensor, beta: Tensor) -> Tensor:
    """A map (N, C, H, W) with a constant (C,) added to its channels."""
    return y + beta[:, None, None]


def _without_activation(norm: nn.BatchNorm2d | None) -> tuple[nn.BatchNorm2d | None, list[nn.Module]]:
    """A norm, and what timm's BatchNormAct2d holds besides; parameters stay the same objects."""
    if not isinstance(norm, BatchNormAct2d):
        return norm, []
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for store in ("_parameters", "_buffers"):
        cast(Mapping[str, Any], getattr(plain, store)).update(getattr(norm, store))  # type: ignore[attr-defined]
    plain.train(norm.training)
    return plain, [norm.drop, norm.act]
