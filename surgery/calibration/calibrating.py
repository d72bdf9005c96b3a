"""Recover a converted network from a few unlabelled images: linear least squares, layer after layer, no gradient."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from surgery.calibration import images as image_batches
from surgery.calibration.absorb import absorb, affine_of, inverse_of, measure_norm, takes_constant
from surgery.calibration.kept_channels import KeptChannels
from surgery.calibration.normal_equations import NormalEquations
from surgery.calibration.patches import at, matrices, sampled
from surgery.calibration.regression import LEAST_FEATURES, Regression
from surgery.calibration.report import Report, Row
from surgery.calibration.targets import Target, targets
from surgery.core.checked_model import check_model, first_weight, unwrapped
from surgery.core.extras import check_extra
from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph import ModelGraph, record
from surgery.planning.sites import Skipped
from surgery.transforms.history import changed_modules, original_modules
from surgery.transforms.reorder import check_same_order, orders

if TYPE_CHECKING:
    from surgery.calibration.passes import Passes


def calibrate(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any] | Tensor,
    *,
    kept: Mapping[str, Sequence[int]] = MappingProxyType({}),
    start: bool = True,
    images: int | None = 1024,
    rows_per_feature: float = 6.0,
    memory: float = 1e9,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Report:
    """Fit, in place, the layers behind a surgery to what the original network computes there.

    Layer after layer, in the order in which they run, with the converted network's own activations as input: the
    weights (and the constant, which goes into the following norm) by which the layer's output is nearest to the
    original's, by ridge regression towards the original's weights. A layer whose output goes into a residual sum is
    fitted to the sum, so that it makes up for what came before. Inference costs what it did.

    Args:
        model: converted; changed in place.
        teacher: the network that it was converted from; not changed.
        batches: unlabelled images (N, C, H, W), of any float dtype, as the networks take them: a tensor, or a loader of
            such tensors or of tuples that begin with one. Neither their order nor their batch size changes the result.
        kept: of layers that were narrowed, which outputs of the original they still have (``Plan.kept_outputs``);
            without it those are not fitted, and only the statistics of their norms are measured. What other layers and
            norms lost with them is found out.
        start: whether layers of the surgery set what is theirs first from what they read (a gate that is
            nearly constant, so that all its inputs are averaged).
        images: at most so many are drawn.
        rows_per_feature: rows of each regression for every feature; big maps are sampled.
        memory: bytes of activations held at once; fewer images take part in early layers of big maps.
        dtype: of the activations: ``torch.float32``, or ``torch.bfloat16`` by autocast. Default: bfloat16 for a float32
            model on a processor or device that computes in it, else the model's own.
        progress: show a bar.

    Returns:
        R² per layer, before and after, on images that were held out.

    Raises:
        ValueError, TypeError: images or models that cannot be; the message says what can.
        TraceError: a forward fails.
    """
    check_extra("calibrate", "surgery.calibrate")
    from surgery.calibration.passes import fast_dtype  # it needs what the extra installs

    model, teacher = unwrapped(model), unwrapped(teacher)
    for network in (model, teacher):
        check_model(network, weights=True)
    _check_teacher(model, teacher)
    check_same_order(model, teacher)
    dtypes = [first_weight(network).dtype for network in (model, teacher)]
    if dtypes[0] != dtypes[1]:
        raise ValueError(f"model computes in {dtypes[0]}, teacher in {dtypes[1]}: one dtype is needed")
    collected = image_batches.collect(batches, images, progress)
    size = tuple(collected[0].shape[1:])
    graphs = record(model, size), record(teacher, size)
    touched, channels = changed_modules(model), KeptChannels(graphs[1], kept)
    settings = FitSettings(start, rows_per_feature, memory, dtype or fast_dtype(model), progress)
    rows, skipped = fit_layers((model, teacher), graphs, touched, channels, collected, settings)
    if not rows and not skipped and not touched:
        raise ValueError(f"{type(model).__name__} has no surgery: convert it first")
    notes = dict.fromkeys(reorder.note for reorder in orders(model))
    return Report(tuple(rows), tuple(skipped), tuple(notes))


@dataclass(frozen=True)
class FitSettings:
    """How layers are fitted; see :func:`calibrate`.

    Attributes:
        most: layers that are treated at most, the first ones; None for all.
    """

    start: bool = True
    rows_per_feature: float = 6.0
    memory: float = 1e9
    dtype: torch.dtype | None = None
    progress: bool = True
    most: int | None = None


def fit_layers(
    networks: tuple[nn.Module, nn.Module],
    graphs: tuple[ModelGraph, ModelGraph],
    touched: Collection[str],
    channels: KeptChannels,
    batches: list[Tensor],
    settings: FitSettings,
) -> tuple[list[Row], list[Skipped]]:
    """What :func:`calibrate` does, of networks, or of one part of both, that are recorded and known to be alike.

    Args:
        networks: the converted one, which is changed in place, and the original.
        graphs: both, recorded.
        touched: names of the modules that surgery changed.
        channels: what a narrowed network still has.
        batches: of what both take.

    Returns:
        A row for each layer, and the layers that cannot be fitted.
    """
    from surgery.calibration.passes import Passes  # it needs what the extra installs

    fit_targets, skipped = targets(*graphs, channels, touched)
    fit_targets = fit_targets[: settings.most]
    rows = []
    with Passes(networks, fit_targets, batches, settings.memory, settings.dtype) as passes:
        bar = tqdm(fit_targets, desc="calibrating", unit="layer", leave=False, disable=not settings.progress)
        for number, target in enumerate(bar):
            bar.set_postfix_str(target.layer, refresh=False)
            if settings.start or target.aim is not None or target.fixed:
                rows.append(_fit(target, number, passes, settings.rows_per_feature, channels))
    return rows, skipped


def _check_teacher(model: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError where a teacher has nothing of what surgery changed: it is another network."""
    names, teachers = original_modules(model), {name for name, _ in teacher.named_modules()}
    if names and teachers.isdisjoint(names):
        raise ValueError(
            f"teacher is a {type(teacher).__name__} without {names[0]!r}, which surgery changed in model: the network "
            "that model was converted from is needed"
        )


def _fit(target: Target, number: int, passes: "Passes", rows_per_feature: float, channels: KeptChannels) -> Row:
    """Fit one layer of the converted network to the original."""
    if target.fixed:
        return _measure(target, number, passes, rows_per_feature)
    if target.aim is None:
        return _start(cast(SurgeryLayer, passes.networks[0].get_submodule(target.layer)), target, number, passes)
    layer, own = (network.get_submodule(target.layer) for network in passes.networks)
    norms = zip(passes.networks, (target.norm, target.own_norm if target.norm else None), strict=True)
    norm, own_norm = (cast(_BatchNorm, n.get_submodule(name)) if name else None for n, name in norms)
    after = None if own_norm is own else own_norm
    regression = Regression(layer, own, after, target, channels)
    regression.collect(passes, number, rows_per_feature)
    _check_finite(regression.sums, target)
    scale, shift = regression.after
    before = regression.sums.r2(*_current(layer, None if norm is layer else norm, scale, shift))
    solution = regression.sums.solve(regression.priors(), takes_constant(layer, norm))
    absorb(layer, norm, solution.weight, solution.intercept, (scale, shift), regression.sums)
    aim = "output" if target.addends is None else "sum"
    return Row(target.layer, aim, sum(regression.sums.rows), solution.ridge, before, solution.r2)


def _check_finite(sums: NormalEquations, target: Target) -> None:
    if not sums.finite:
        raise ValueError(f"calibration met NaN or infinity at {target.layer!r}: finite activations are needed")


def _measure(target: Target, number: int, passes: "Passes", rows_per_feature: float) -> Row:
    """Set a norm's running statistics to those of what it reads."""
    norm = cast(_BatchNorm, passes.networks[0].get_submodule(target.layer))
    sums = NormalEquations(norm.num_features, 1, 1, cast(Tensor, norm.running_mean).device)
    count = math.ceil(rows_per_feature * LEAST_FEATURES / passes.images(number))
    generator = torch.Generator().manual_seed(number)
    for seen in passes.at(target, number):
        rows = at(seen.reads, sampled(seen.reads, count, generator))
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))[..., None]
        sums.add(x, torch.zeros_like(x), held=False)
    _check_finite(sums, target)
    measure_norm(norm, norm, sums)
    return Row(target.layer, "statistics", sum(sums.rows), note=target.fixed)


def _start(layer: SurgeryLayer, target: Target, number: int, passes: "Passes") -> Row:
    """Let a surgery layer set itself from what it reads."""
    with torch.no_grad():
        observed = [layer.observe(reads) for reads in (seen.reads for seen in passes.at(target, number))]
    rows = [row for row in observed if row is not None]
    if rows:
        layer.start(torch.cat(rows))
    note = f"{type(layer).__name__} set from what it reads" if rows else "as it was"
    return Row(target.layer, "start", passes.images(number), note=note)


def _current(layer: nn.Module, norm: _BatchNorm | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The layer with the norm behind it as it is, as (weight, intercept) in front of ``scale`` and ``shift``."""
    weight = matrices(layer)
    if isinstance(layer, _BatchNorm):
        return weight, affine_of(layer, scale)[1]
    bias = cast("Tensor | None", getattr(layer, "bias", None))
    constant = torch.zeros_like(scale) if bias is None else bias.detach().double().reshape(scale.shape)
    if norm is None:
        return weight, constant
    own_scale, own_shift = affine_of(norm, scale)
    inverse = inverse_of(scale)
    ratio = own_scale * inverse
    return ratio[..., None] * weight, ratio * constant + (own_shift - shift) * inverse
