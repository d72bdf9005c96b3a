"""What an operation is: the vocabulary in which sites are described, for modules by class, for functions by name."""

import torchvision
from timm.layers import (
    BlurPool2d,
    DropBlock2d,
    DropPath,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from torch import nn

from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph.probes import bends, probed_kind

STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)  # weights standardised at call time
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    torchvision.ops.misc.FrozenBatchNorm2d,
)
ACTIVATIONS = {
    *("relu", "relu6", "silu", "gelu", "leaky_relu", "elu", "celu", "selu", "sigmoid", "tanh", "mish", "prelu"),
    *("hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "logsigmoid", "clamp", "threshold"),
}
_FUNCTIONS = {
    "add": "add sub",
    "mul": "mul div truediv",
    "cat": "cat concat concatenate stack",
    "split": "split chunk tensor_split unbind split_with_sizes getitem narrow select",
    "conv": "conv2d",
    "conv_transpose": "conv_transpose2d",
    "linear": "linear",
    "matmul": "matmul bmm mm addmm scaled_dot_product_attention einsum",
    "norm": "batch_norm layer_norm group_norm instance_norm rms_norm",
    "pool": "max_pool2d avg_pool2d lp_pool2d fractional_max_pool2d",
    "global_pool": "adaptive_avg_pool2d adaptive_max_pool2d mean amax max sum avg_pool",
    "pad": "pad",
    "upsample": "interpolate upsample upsample_nearest upsample_bilinear",
    "identity": "dropout dropout2d alpha_dropout feature_dropout contiguous clone to type_as float half detach",
    "reshape": "flatten view reshape permute transpose unflatten squeeze unsqueeze expand expand_as",
}
FUNCTION_KINDS = {name: kind for kind, names in _FUNCTIONS.items() for name in names.split()}


def function_kind(name: str) -> str:
    """Kind of a function by its name; in-place and operator spellings count as the plain one."""
    plain = name.strip("_")
    if plain in ACTIVATIONS:
        return "act"
    if plain not in FUNCTION_KINDS and plain[:1] in "ir":
        plain = plain[1:]  # __iadd__, __rmul__
    return FUNCTION_KINDS.get(plain, "other")


def has_activation_module(norm: nn.Module) -> bool:
    """Whether a normalisation holds its activation as a module ``act`` (timm's BatchNormAct2d and the like)."""
    act = getattr(norm, "act", None)
    return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


def norm_has_activation(module: nn.Module) -> bool:
    """Whether a normalisation also applies an activation: as a module ``act``, or in its arithmetic (EvoNorm)."""
    if has_activation_module(module):
        return True
    return not isinstance(module, (*NORMS, nn.Identity)) and bends(module)


def module_kind(module: nn.Module) -> str:
    """Kind of a module that is recorded as one call; what its class does not tell is tried out."""
    if isinstance(module, SurgeryLayer):
        return "surgery" if module.opaque else "other"
    tables: list[tuple[tuple[type, ...], str]] = [
        ((nn.Conv2d,), "conv"),
        ((nn.ConvTranspose2d,), "conv_transpose"),
        ((nn.Linear,), "linear"),
        (NORMS, "norm"),
        ((nn.Identity, nn.modules.dropout._DropoutNd, DropPath, DropBlock2d, nn.Sequential), "identity"),
        ((torchvision.ops.StochasticDepth,), "identity"),
        ((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, BlurPool2d), "pool"),
        ((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), "global_pool"),
        ((nn.modules.padding._ConstantPadNd, nn.ReflectionPad2d, nn.ReplicationPad2d), "pad"),
        ((nn.Upsample,), "upsample"),
        ((nn.Flatten, nn.Unflatten), "reshape"),
        ((nn.PReLU,), "act"),
    ]
    for types, kind in tables:
        if isinstance(module, types):
            return kind
    return probed_kind(module)


__all__ = ["ACTIVATIONS", "function_kind", "has_activation_module", "module_kind", "norm_has_activation"]
