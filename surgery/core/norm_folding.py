"""A BatchNorm in eval mode as part of the convolution in front of it."""

from typing import cast

from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights


def norm_folded(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """The weight (C_out, …) and bias (C_out,) of a convolution that computes what it and the norm behind it compute.

    Args:
        norm: a BatchNorm with running statistics.
    """
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale, shift = (cast("Tensor | None", getattr(norm, name)) for name in ("weight", "bias"))
    return fuse_conv_bn_weights(weight, bias, mean, variance, float(norm.eps), scale, shift)  # type: ignore[arg-type]
