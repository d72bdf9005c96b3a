"""What an operation is: the vocabulary in which sites are described, for modules by class, for functions by name."""

import copy

import torch
import torchvision
from timm.layers import BlurPool2d, DropBlock2d, DropPath
from torch import nn

from surgery.layers import SurgeryLayer

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
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


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises (with or without an activation of its own, as timm's fused ones)."""
    return isinstance(module, NORMS)


def norm_has_activation(module: nn.Module) -> bool:
    """Whether a normalisation also applies an activation (timm's BatchNormAct2d and the like)."""
    act = getattr(module, "act", None)
    return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


def is_elementwise(module: nn.Module) -> bool:
    """Whether a childless, weightless module of unknown class acts on each element alone.

    Tried on a random map: such a function commutes with any permutation of the elements; a channel shuffle, a softmax
    or a pooling does not.
    """
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return False
    probe = copy.deepcopy(module).eval()
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(1, 8, 4, 4, generator=generator, device="cpu")
    order = torch.randperm(x.numel(), generator=generator, device="cpu")
    with torch.no_grad():
        try:
            straight, shuffled = probe(x.clone()), probe(x.flatten()[order].reshape(x.shape))
        except Exception:  # a module that does not take one map is no activation, whatever it raises
            return False
    if not isinstance(straight, torch.Tensor) or straight.shape != x.shape:
        return False
    return torch.allclose(straight.flatten()[order], shuffled.flatten(), rtol=1e-4, atol=1e-6)


def module_kind(module: nn.Module, elementwise: bool) -> str:
    """Kind of a leaf module; ``elementwise`` is what :func:`is_elementwise` found."""
    tables: list[tuple[tuple[type, ...], str]] = [
        ((SurgeryLayer,), "surgery"),
        ((nn.Conv2d,), "conv"),
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
    return "act" if elementwise else "other"


__all__ = ["ACTIVATIONS", "function_kind", "is_elementwise", "is_norm", "module_kind", "norm_has_activation"]
