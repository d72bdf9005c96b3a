"""What an ONNX file calls a model's outputs, and what it says of the images that it takes."""

import json
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.graph.input_size import InputSize
from surgery.vision.preprocessing import MEMORY, Preprocessing, preprocessing_of

INPUT, OUTPUT = "image", "output"


def output_names(output: Any) -> list[str]:
    """Names of the tensors in what a model returns, in order: ``output``, ``output_0``, …, or a dict's own keys."""
    leaves = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(output)[0] if isinstance(leaf, Tensor)]
    names: list[str] = []
    for path, _ in leaves:
        keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        name = "_".join([*([] if keys and not keys[0].isdigit() else [OUTPUT]), *keys])
        while name in (INPUT, *names):
            name += "_"
        names.append(name)
    return names


def preprocessing_metadata(model: nn.Module, input_size: InputSize) -> dict[str, str]:
    """How images are prepared for a model, as strings of JSON; nothing where the model does not carry it.

    Keys: ``size`` [C, H, W], ``mean`` and ``std`` per channel of pixels from 0 to 1, ``crop_pct``, ``interpolation``;
    ``classes``, the names of the outputs, where these are known.
    """
    carried = getattr(model, MEMORY, None)
    configured = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(carried, Preprocessing) and not (isinstance(configured, dict) and configured.get("mean")):
        return {}
    preprocessing = preprocessing_of(model, input_size).to_json()
    return {
        key: json.dumps(value, ensure_ascii=False)
        for key, value in preprocessing.items()
        if value not in (None, [], ())
    }
