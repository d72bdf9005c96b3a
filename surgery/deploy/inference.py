"""Prepare a trained model for deployment in PyTorch: fold what is constant, choose layout and dtype, compile."""

import copy
import warnings
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, fx, nn

from surgery.core.checked_model import check_model, first_weight
from surgery.core.errors import SurgeryError
from surgery.core.eval_mode import eval_mode
from surgery.core.norm_folding import norm_folded
from surgery.core.surgery_layer import SurgeryLayer, replace_layers
from surgery.deploy.scaled_norms import fold_scaled, scaled_pairs
from surgery.deploy.whole_map_conv import WholeMapConv2d, covering_convs
from surgery.graph import ModelGraph, record
from surgery.graph.dataflow import sole_user
from surgery.graph.input_size import InputSize
from surgery.transforms.squeezed_conv import SqueezedConv2d

_STANDARDISED = {
    StdConv2d: nn.Conv2d,
    ScaledStdConv2d: nn.Conv2d,
    StdConv2dSame: Conv2dSame,
    ScaledStdConv2dSame: Conv2dSame,
}
_FOLDABLE = (nn.Conv2d, Conv2dSame, SqueezedConv2d)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the largest output; half precisions are not compared


def optimize_for_inference(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    compile: bool = False,
    input_size: InputSize | None = None,
) -> nn.Module:
    """A copy of a trained model that computes the same faster: save the model itself, this copy is for running.

    Folds every BatchNorm that follows one convolution into it, what surgery layers say of themselves can be folded, and
    weights that are standardised at call time into plain ones. A convolution whose kernel covers its map becomes a
    product of matrices.

    Args:
        model: converted or not, with weights; it is not changed.
        dtype: such as ``torch.bfloat16``; default: as it is.
        channels_last: keep maps with channels innermost, which the kernels and oneDNN, cuDNN like best.
        compile: return ``torch.compile`` of the result.
        input_size: (C, H, W), (H, W) or one side to record the model with; default: its configured one, else 224
            pixels.

    Raises:
        SurgeryError: the folded model's output differs from the model's on a random image.
        ValueError, TypeError, TraceError: as :func:`surgery.plan`.
    """
    check_model(model, weights=True)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype={dtype!r}: a floating torch dtype such as torch.bfloat16 is needed")
    shape = record(model, input_size).input_shape
    folded = replace_layers(copy.deepcopy(model), _folded_layer).eval()
    graph = record(folded, shape)
    pairs, between_maps = _pairs(graph), scaled_pairs(graph)
    for name, module in list(folded.named_modules()):
        _fold_weights(folded, name, module)
    for conv, norm in pairs:
        _fold_norm(folded, conv, norm)
    for pair in between_maps:
        fold_scaled(folded, pair)
    for name in covering_convs(record(folded, shape)):
        folded.set_submodule(name, WholeMapConv2d.wrap(folded.get_submodule(name)))  # type: ignore[arg-type]
    _check_same(model, folded, shape)
    folded.requires_grad_(False)
    if channels_last:
        folded = folded.to(memory_format=torch.channels_last)
    folded = folded.to(dtype=dtype)
    return cast(nn.Module, torch.compile(folded)) if compile else folded


def _pairs(graph: ModelGraph) -> list[tuple[str, str]]:
    """Names of convolutions and of the BatchNorm that alone reads each; both run once in a forward."""
    pairs = []
    for node in graph:
        conv, user = node.meta.get("module"), sole_user(node)
        norm = None if user is None else user.meta.get("module")
        if conv is None or norm is None or node.meta.get("kind") != "conv":
            continue
        if graph.called_once(conv) and graph.called_once(norm) and _fits(graph, conv, cast(fx.Node, user), norm):
            pairs.append((conv, norm))
    return pairs


def _fits(graph: ModelGraph, conv: str, user: fx.Node, norm: str) -> bool:
    conv_module, norm_module = graph.modules[conv], graph.modules[norm]
    plain = type(conv_module) in _FOLDABLE or type(conv_module) in _STANDARDISED
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (conv_module, norm_module))
    kind = type(norm_module) in (nn.BatchNorm2d, BatchNormAct2d) and user.meta.get("kind") == "norm"
    return plain and kind and not hooked and getattr(norm_module, "running_mean", None) is not None


def _fold_norm(model: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    conv.weight, conv.bias = norm_folded(cast(Tensor, conv.weight), cast("Tensor | None", conv.bias), norm)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    model.set_submodule(norm_name, rest)


def _folded_layer(layer: SurgeryLayer) -> nn.Module:
    folded = layer.folded()
    return layer if folded is None else folded


def _fold_weights(model: nn.Module, name: str, module: nn.Module) -> None:
    """Weights that a layer computes anew in each call become what they come to."""
    if type(module) in _STANDARDISED and not (module._forward_hooks or module._forward_pre_hooks):
        conv = cast(nn.Conv2d, module)
        plain = _STANDARDISED[type(module)]
        padding = (0, 0) if plain is Conv2dSame else conv.padding
        built = plain(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
            bias=conv.bias is not None,
        )
        built.weight = nn.Parameter(_effective_weight(conv))
        built.bias = conv.bias
        model.set_submodule(name, built.train(conv.training))


def _effective_weight(conv: nn.Conv2d) -> Tensor:
    """What timm's weight-standardised convolutions convolve with."""
    gain = cast("Tensor | None", getattr(conv, "gain", None))
    weight = None if gain is None else (gain * float(getattr(conv, "scale", 1.0))).view(-1)
    flat = conv.weight.reshape(1, conv.out_channels, -1)
    eps = float(conv.eps)  # type: ignore[arg-type]
    return (
        F.batch_norm(flat, None, None, weight=weight, training=True, momentum=0.0, eps=eps)
        .reshape_as(conv.weight)
        .detach()
    )


def _check_same(model: nn.Module, folded: nn.Module, input_shape: tuple[int, ...]) -> None:
    parameter = first_weight(model)
    tolerance = _TOLERANCE.get(parameter.dtype)
    if tolerance is None:
        warnings.warn(
            f"a model in {parameter.dtype} is not compared with its folded copy: fold first, then pass dtype=",
            stacklevel=3,
        )
        return
    x = torch.randn(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    expected, folded_outputs = _outputs(model, x), _outputs(folded, x)
    for a, b in zip(expected, folded_outputs, strict=True):
        worst, scale = (a - b).abs().max().item(), a.abs().max().item()
        if not worst <= tolerance * max(scale, 1e-6):
            raise SurgeryError(
                f"folding {type(model).__name__} changes its output by {worst:.3g} where {scale:.3g} is the largest "
                f"value ({tolerance:g} of it is allowed)"
            )


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with eval_mode(model), torch.no_grad():
        result = cast(Callable[[Tensor], object], model)(x)
    outputs = (
        result if isinstance(result, (list, tuple)) else list(result.values()) if isinstance(result, dict) else [result]
    )
    return [t for t in outputs if isinstance(t, Tensor)]
