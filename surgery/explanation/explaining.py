"""Pictures and statistics of a converted network on some images, written to a folder."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgery.core.atomic_file import write_atomically
from surgery.core.checked_model import check_model
from surgery.core.errors import is_whole
from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.core.surgery_layer import SurgeryLayer
from surgery.core.table import table
from surgery.explanation import pictures
from surgery.explanation.class_activation import best_classes, class_activation, map_layer
from surgery.explanation.explained_images import ExplainedImages, read_images
from surgery.explanation.layer_gates import LayerGates, layer_gates
from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.methods.planners.pruning.sfvr import sfvr
from surgery.transforms.history import history
from surgery.transforms.narrow import Narrow
from surgery.vision.preprocessing import Preprocessing, preprocessing_of

HEADER = ("layer", "channels", "mean gate", "states", "in one state always", "spread over classes")
KEPT = "kept"  # the state of a channel that is computed


@dataclass(frozen=True)
class ExplanationSettings:
    """How much is looked at.

    Attributes:
        count: images at most.
        batch_size: of a forward.
        layer: name of the module for Grad-CAM; None: the one that gives the map which is pooled.

    Raises:
        ValueError: naming the option, its value and what would be accepted.
    """

    count: int = 64
    batch_size: int = 16
    layer: str | None = None

    def __post_init__(self) -> None:
        for name in ("count", "batch_size"):
            if not is_whole(getattr(self, name), 1):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= 1 is needed")


@dataclass
class Explanation:
    """What was written, and what there is to say. Prints as a table.

    Attributes:
        files: names, in the folder.
        statistics: what ``explanation.json`` holds.
        notes: why some pictures are not there.
    """

    folder: Path
    files: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.folder / name, content)
        self.files.append(name)

    def __str__(self) -> str:
        rows = [_cells(layer) for layer in self.statistics.get("gates", [])]
        parts = [table(HEADER, rows, right=(1, 2, 4, 5))] if rows else []
        return "\n".join([*parts, *self.notes, f"{self.folder}: {', '.join(self.files)}"])


def _cells(layer: dict[str, Any]) -> tuple[str, ...]:
    spread = layer["spread_over_classes"]
    states = ", ".join(f"{state} {share:.2f}" for state, share in layer["shares"].items())
    return (
        layer["layer"],
        str(layer["channels"]),
        f"{layer['mean']:.3f}",
        states,
        f"{layer['dead']:.2f}",
        "–" if spread is None else f"{spread:.2f}",
    )


def explain(
    model: nn.Module,
    paths: Sequence[str | Path],
    folder: str | Path,
    *,
    original: nn.Module | None = None,
    structure: nn.Module | None = None,
    settings: ExplanationSettings | None = None,
) -> Explanation:
    """Draw what a converted classifier does on images.

    Grad-CAM (FACS, Fig. 5); gates by layer and class (Fig. 4 of its supplement); which channel is picked where; which
    channels are kept for which class; widths, and channels' shares in the variance of what reads them, before and after
    a pruning (SFVR supplement, Fig. 2 and 3). What does not apply is left out, and the reason noted.

    Args:
        model: converted, with weights.
        paths: files and folders of images; a folder's subfolders are classes.
        folder: receives the pictures and ``explanation.json``; made where it is not there.
        original: what the model was converted from, with weights: drawn beside it.
        structure: the same without weights, for the widths; default: ``original``.

    Raises:
        MissingPackageError: the extra ``explain`` is not installed.
        ValueError, TypeError, OSError: models or images that cannot be; the message says what can.
    """
    check_extra("explain", "explain")
    check_model(model, weights=True)
    chosen = settings or ExplanationSettings()
    preprocessing = preprocessing_of(model)
    _check_classifies(model, preprocessing)
    layer = map_layer(model, tuple(preprocessing.size), chosen.layer)
    images = read_images(paths, preprocessing, chosen.count)
    Path(folder).mkdir(parents=True, exist_ok=True)
    made = Explanation(Path(folder), statistics={"images": list(images.files), "labels": list(images.labels)})
    _draw_activation(made, model, original, images, (layer, chosen.batch_size, preprocessing.classes))
    gates = layer_gates(model, images.tensors, chosen.batch_size)
    _draw_gates(made, gates, images)
    _draw_picked(made, model, images)
    _draw_pruning(made, model, original, structure if original is None else original, images.tensors)
    made.write("explanation.json", json.dumps(made.statistics, indent=1).encode())
    return made


def _check_classifies(model: nn.Module, preprocessing: Preprocessing) -> None:
    with eval_mode(model), torch.no_grad():
        output = model(torch.zeros(1, *preprocessing.size).to(next(model.parameters())))
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(f"{type(model).__name__} gives no (N, classes): a classifier is needed")


def _draw_activation(
    made: Explanation,
    model: nn.Module,
    original: nn.Module | None,
    images: ExplainedImages,
    how: tuple[str, int, tuple[str, ...]],
) -> None:
    layer, batch_size, names = how
    shown = images.tensors[: pictures.MOST_IMAGES]
    judge = model if original is None else original
    classes = [
        names.index(label) if label in names else best
        for label, best in zip(images.labels, best_classes(judge, shown, batch_size), strict=False)
    ]
    columns, rows = {}, {}
    for name, network in (("original", original), ("converted", model)):
        if network is not None:
            maps, probabilities = class_activation(network, shown, classes, layer)
            titles = [f"{names[c] if names else c} {p:.2f}" for c, p in zip(classes, probabilities, strict=True)]
            columns[name], rows[name] = (maps, titles), probabilities
    made.write("grad_cam.png", pictures.activation_picture(shown, columns))
    made.statistics["grad_cam"] = {"layer": layer, "classes": classes, "probabilities": rows}
    if original is None:
        made.notes.append("Grad-CAM of the converted network alone: --original has the other's weights")


def _draw_gates(made: Explanation, gates: list[LayerGates], images: ExplainedImages) -> None:
    if not gates:
        made.notes.append("no layer decides anything by the image: no picture of gates")
        return
    made.statistics["gates"] = [layer.to_json(images.labels) for layer in gates]
    made.write("gates.png", pictures.gates_picture(gates, images.labels))
    skipping = [layer for layer in gates if KEPT in layer.states and layer.shares[KEPT] < 1]
    if skipping:
        picture = pictures.channels_by_class_picture(skipping, images.labels, KEPT)
        made.write("channels_by_class.png", picture)


def _draw_picked(made: Explanation, model: nn.Module, images: ExplainedImages) -> None:
    """Of one image, the last four layers that pick."""
    seen: dict[str, tuple[Tensor, int]] = {}

    def note(name: str, layer: SurgeryLayer, x: Tensor) -> None:
        picked = layer.picked_channels(x)
        if picked is not None and min(picked.shape[2:]) > 1:
            seen[name] = picked[0].cpu(), x.shape[1]

    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: note(name, layer, args[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, SurgeryLayer) and type(layer).picked_channels is not SurgeryLayer.picked_channels
    ]
    try:
        with eval_mode(model), torch.no_grad():
            model(images.tensors[:1].to(next(model.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    if seen:
        made.write(
            "picked.png",
            pictures.picked_picture(images.tensors[0], dict(list(seen.items())[:: max(1, len(seen) // 4)])),
        )


def _draw_pruning(
    made: Explanation, model: nn.Module, original: nn.Module | None, structure: nn.Module | None, images: Tensor
) -> None:
    narrowed = dict.fromkeys(
        name
        for change in history(model)
        if isinstance(change, Narrow)
        for name, (_, out) in change.widths.items()
        if out
    )
    if not narrowed:
        return
    if structure is None:
        made.notes.append("the network before surgery cannot be built: no picture of widths")
        return
    widths = _widths(structure, model, narrowed)
    made.statistics["widths"] = [{"layer": n, "before": b, "after": a} for n, b, a in widths]
    made.write("widths.png", pictures.widths_picture(widths))
    if original is None:
        made.notes.append("SFVR before and after needs the original's weights: --original")
        return
    scores = {name: _sfvr(network, images) for name, network in (("before", original), ("after", model))}
    made.statistics["sfvr"] = {name: np.quantile(values, [0.05, 0.5, 0.95]).tolist() for name, values in scores.items()}
    made.write("sfvr.png", pictures.scores_picture(scores, "SFVR"))


def _widths(before: nn.Module, after: nn.Module, names: Iterable[str]) -> list[tuple[str, int, int]]:
    """(name, output channels before, after) of the layers with filters."""
    layers = [dict(network.named_modules()) for network in (before, after)]
    rows = []
    for name in names:
        own, narrow = (modules.get(name) for modules in layers)
        if isinstance(own, nn.Conv2d | nn.Linear) and isinstance(narrow, nn.Conv2d | nn.Linear):
            rows.append((name, int(own.weight.shape[0]), int(narrow.weight.shape[0])))
    return rows


def _sfvr(network: nn.Module, images: Tensor) -> np.ndarray:
    """Of every class of channels that a layer reads, measured on the images."""
    coupling = couple(record(network, tuple(images.shape[1:])))
    scores = sfvr(network, coupling, [images.to(next(network.parameters()))])
    return scores[scores > 0]
