"""Pictures and statistics of a converted network on some images, written to a folder."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from surgery.core.checked_model import check_model, first_weight, output_for_one_image
from surgery.core.errors import is_whole
from surgery.core.extras import check_extra
from surgery.explanation import pictures
from surgery.explanation.class_activation import best_classes, class_activation, map_layer
from surgery.explanation.explained_images import ExplainedImages, read_images
from surgery.explanation.gate_pictures import channels_by_class_picture, gates_picture
from surgery.explanation.layer_gates import LayerGates, layer_gates
from surgery.explanation.picked import most_picked
from surgery.explanation.pruned_channels import channel_scores, narrowed_layers, widths
from surgery.explanation.report import Explanation
from surgery.vision.preprocessing import Preprocessing, preprocessing_of

KEPT = "kept"  # the state of a channel that is computed
MOST_IMAGES = 8  # that are shown


@dataclass(frozen=True)
class ExplanationSettings:
    """How much is looked at.

    Attributes:
        count: images at most.
        batch_size: of a forward.
        layer: name of the module for Grad-CAM; None: the one that gives the map which is pooled.
        seed: which images are drawn where there are more.

    Raises:
        ValueError: naming the option, its value and what would be accepted.
    """

    count: int = 64
    batch_size: int = 16
    layer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("batch_size", 1), ("seed", 0)):
            if not is_whole(getattr(self, name), least):
                raise ValueError(f"{name}={getattr(self, name)!r}: a whole number >= {least} is needed")


@dataclass(frozen=True)
class _Looked:
    """Who is looked at, on which images.

    Attributes:
        networks: the original, where there is one with weights, and the converted, by these names, in this order.
        layers: of each, the module for Grad-CAM.
        classes: names of the outputs; empty where they are not known.
    """

    networks: dict[str, nn.Module]
    layers: dict[str, str]
    images: ExplainedImages
    classes: tuple[str, ...]
    batch_size: int

    @property
    def model(self) -> nn.Module:
        return self.networks["converted"]


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
    channels are kept for which class; widths, and channels' shares in the variance of what reads them, before and
    after a pruning (SFVR supplement, Fig. 2 and 3). What does not apply is left out, and the reason noted.

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
    looked = _looked(model, original, paths, settings or ExplanationSettings())
    gates = layer_gates(looked.model, looked.images.tensors, looked.batch_size)
    Path(folder).mkdir(parents=True, exist_ok=True)
    files, labels = list(looked.images.files), list(looked.images.labels)
    made = Explanation(Path(folder), statistics={"images": files, "labels": labels})
    _draw_activation(made, looked)
    _draw_gates(made, looked, gates)
    _draw_picked(made, looked)
    _draw_widths(made, looked, structure if original is None else original)
    _draw_scores(made, looked)
    made.write_statistics()
    return made


def _looked(
    model: nn.Module, original: nn.Module | None, paths: Sequence[str | Path], settings: ExplanationSettings
) -> _Looked:
    networks = {"converted": model} if original is None else {"original": original, "converted": model}
    networks = {name: _in_float32(network) for name, network in networks.items()}
    preprocessing = preprocessing_of(model)
    outputs = {name: _outputs(network, preprocessing) for name, network in networks.items()}
    if len(set(outputs.values())) > 1:
        raise ValueError(f"{outputs} outputs: an original with as many outputs as the converted network is needed")
    shape = tuple(preprocessing.size)
    layers = {name: map_layer(network, shape, settings.layer) for name, network in networks.items()}
    images = read_images(paths, preprocessing, settings.count, settings.seed)
    return _Looked(networks, layers, images, preprocessing.classes, settings.batch_size)


def _in_float32(model: nn.Module) -> nn.Module:
    """A copy of a network in half precision, which images, Grad-CAM and pictures are not in; another one as it is."""
    check_model(model, weights=True)
    return model if first_weight(model).dtype in (torch.float32, torch.float64) else copy.deepcopy(model).float()


def _outputs(model: nn.Module, preprocessing: Preprocessing) -> int:
    output = output_for_one_image(model, preprocessing.size)
    if not isinstance(output, Tensor) or output.ndim != 2:
        actual = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{type(model).__name__} gives {actual} for one image: a classifier is needed, which gives (1, classes)"
        )
    return int(output.shape[1])


def _draw_activation(made: Explanation, looked: _Looked) -> None:
    images, names = looked.images, looked.classes
    shown = images.tensors[:MOST_IMAGES]
    judge = next(iter(looked.networks.values()))
    best = best_classes(judge, shown, looked.batch_size)
    classes = [
        names.index(label) if label in names else number for label, number in zip(images.labels, best, strict=False)
    ]
    columns, rows = {}, {}
    for name, network in looked.networks.items():
        maps, rows[name] = class_activation(network, shown, classes, looked.layers[name])
        titles = [f"{names[c] if names else c} {p:.2f}" for c, p in zip(classes, rows[name], strict=True)]
        columns[name] = maps, titles
    made.write("grad_cam.png", pictures.activation_picture(images.pixels[:MOST_IMAGES], columns))
    made.statistics["grad_cam"] = {"layer": looked.layers["converted"], "classes": classes, "probabilities": rows}
    if len(columns) == 1:
        made.notes.append("grad_cam.png shows the converted network alone: --original gives it the other")


def _draw_gates(made: Explanation, looked: _Looked, gates: Sequence[LayerGates]) -> None:
    labels = looked.images.labels
    if gates:
        made.statistics["gates"] = [layer.to_json(labels) for layer in gates]
        made.write("gates.png", gates_picture(gates, labels))
    else:
        made.leave_out("gates.png", "no layer says what it decides (those that se and cbam put in are not asked)")
    skipping = [layer for layer in gates if KEPT in layer.states and layer.shares[KEPT] < 1]
    if skipping:
        made.write("channels_by_class.png", channels_by_class_picture(skipping, labels, KEPT))
    else:
        made.leave_out("channels_by_class.png", "no layer leaves out channels by the image")


def _draw_picked(made: Explanation, looked: _Looked) -> None:
    picked = most_picked(looked.model, looked.images.tensors[:MOST_IMAGES])
    if picked is None:
        made.leave_out("picked.png", "no layer picks a channel on the images that are shown")
        return
    made.statistics["picked"] = {"image": looked.images.files[picked.image], "layers": list(picked.positions)}
    made.write("picked.png", pictures.picked_picture(looked.images.pixels[picked.image], picked))


def _draw_widths(made: Explanation, looked: _Looked, structure: nn.Module | None) -> None:
    if structure is None or not narrowed_layers(looked.model):
        unknown = "the network before surgery is not at hand"
        made.leave_out("widths.png", unknown if narrowed_layers(looked.model) else "no layer was made narrower")
        return
    rows = widths(structure, looked.model)
    made.statistics["widths"] = [{"layer": name, "before": before, "after": after} for name, before, after in rows]
    made.write("widths.png", pictures.widths_picture(rows))


def _draw_scores(made: Explanation, looked: _Looked) -> None:
    if not narrowed_layers(looked.model):
        made.leave_out("sfvr.png", "no layer was made narrower")
        return
    if "original" not in looked.networks:
        made.leave_out("sfvr.png", "the scores before need the original's weights: --original")
        return
    scores = {
        name: channel_scores(looked.networks[network], looked.images.tensors, looked.batch_size)
        for name, network in (("before", "original"), ("after", "converted"))
    }
    if not all(len(values) for values in scores.values()):
        made.leave_out("sfvr.png", "there is no channel that can go")
        return
    made.statistics["sfvr"] = {name: np.quantile(values, [0.05, 0.5, 0.95]).tolist() for name, values in scores.items()}
    made.write("sfvr.png", pictures.scores_picture(scores, "SFVR"))
