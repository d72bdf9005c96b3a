"""Record one forward pass of a model as a torch.fx graph that knows shapes, modules and dataflow.

The pass runs on fake tensors (no memory, no arithmetic), so a 1-billion-parameter model costs what a small one does.
Compared with symbolic tracing it follows any Python control flow, sees inside blocks that tracers treat as leaves,
and needs no second pass for shapes; ``docs/design.md`` has the measurements. A forward that looks at values is
recorded on real zeros instead.
"""

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from surgery.core.errors import TraceError
from surgery.graph.call_recorder import UNSEEN, CallRecorder
from surgery.graph.generators import generators_kept
from surgery.graph.input_size import InputSize, image_shapes
from surgery.graph.kinds import module_kind
from surgery.graph.scripted import calls_seen
from surgery.graph.skeleton import CopyError, copy_with, meta_copy, tensors
from surgery.graph.trees import shape_tree
from surgery.graph.unsuitable import advice, unsuitable

__all__ = ["UNSEEN", "ModelGraph", "input_shape_of", "record"]

FALLBACK_SIZES = (224, 32)


@dataclass(frozen=True)
class ModelGraph:
    """One recorded forward.

    Every node's ``meta`` holds

    - ``kind`` (see ``graph.kinds``), and ``owner``, the qualified name of the innermost module whose forward made the
      call; for a module call ``module``, its qualified name;
    - ``shapes``, of what the call gives: a value is a tree (a tensor, or lists, dicts and dataclasses of them), and so
      are its shapes, a tuple for each tensor in lists and dicts (``graph.trees.shape_tree``). ``shape`` is the same of
      a single tensor, and None of a tree, whose every tensor has an ``item`` node;
    - ``input_shapes``, of what it takes: of its one argument with tensors, or a list of them where there are several;
    - ``enters``: where its tensor is the first argument of modules that are no leaves, their names.

    The output node has ``shapes`` alone. ``needs_values`` says that the forward looks at values, so that the model
    cannot be recorded on the meta device.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    input_shape: tuple[int, ...]
    calls: Counter[str] = field(default_factory=Counter)
    aliases: Counter[int] = field(default_factory=Counter)
    needs_values: bool = False

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self.graph.nodes)

    def called_once(self, name: str) -> bool:
        """Whether the module runs exactly once in a forward and is registered under one name only."""
        return self.calls[name] == 1 and self.aliases[id(self.modules[name])] == 1


def input_shape_of(model: nn.Module, input_size: InputSize | None = None) -> list[tuple[int, ...]]:
    """Shapes (C, H, W) worth trying as the model's input: the given one, its own configured one, common ones."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    own = tuple(config["input_size"]) if isinstance(config, dict) and config.get("input_size") else ()
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    # the first convolution knows of in_chans=1, where the configuration does not; behind a space-to-depth it is wrong
    channels = dict.fromkeys([*([first.in_channels] if first else []), *own[:1], 3])
    if input_size is not None:
        return [*image_shapes(input_size, list(channels))]
    sizes = [*([own[1:]] if own else []), *((size, size) for size in FALLBACK_SIZES)]
    shapes: list[tuple[int, ...]] = [(count, *size) for size in sizes for count in channels]
    return shapes


def record(model: nn.Module, input_size: InputSize | None = None) -> ModelGraph:
    """Record ``model``'s eval-mode forward on one image.

    The image is a batch (1, C, H, W) or, for a model that takes no batch, a list of one (C, H, W).

    Args:
        input_size: (C, H, W), (H, W) or one side; default: the model's configured size, else 224, else 32 pixels.

    Raises:
        TraceError: the forward fails on such an input; the message says why, and whether a size would help. Or the
            model cannot be copied; the message says what it holds that cannot.
    """
    shapes = input_shape_of(model, input_size)
    attempts = [(shape, False) for shape in shapes]
    attempts += [(shapes[0], True)] if not unsuitable(model) else []
    failures: list[tuple[tuple[int, ...], Exception]] = []
    for shape, listed in attempts:
        for run in (_record_fake, _record_real):
            try:
                with generators_kept():
                    return run(model, shape, listed)
            except Exception as error:  # any forward may raise anything; all of it is reported below
                failures.append((shape, error))
                if isinstance(error, CopyError):
                    meta_copy(model)  # no size would do: unless fake tensors alone are the reason, this raises it
    shape, first = failures[0]
    raise TraceError(
        f"the forward of {type(model).__name__} fails on an input of shape (1, {', '.join(map(str, shape))}): "
        f"{type(first).__name__}: {str(first).partition(chr(10))[0].rstrip('.')}. {advice(model, first)}"
    ) from first


def _record_fake(model: nn.Module, shape: tuple[int, ...], listed: bool) -> ModelGraph:
    with _quiet_fakes(), FakeTensorMode(allow_non_fake_inputs=True):
        skeleton = copy_with(model, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype))
        return _run(model, skeleton, torch.empty((1, *shape), dtype=_float_dtype(model)), listed)


@contextlib.contextmanager
def _quiet_fakes() -> Iterator[None]:
    """Fake tensors log an error besides raising it; the exception alone is what ``record`` reports."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _record_real(model: nn.Module, shape: tuple[int, ...], listed: bool) -> ModelGraph:
    if any(tensor.is_meta for tensor in tensors(model)):
        raise TraceError("the forward looks at values, and the model is on the meta device")
    skeleton = copy_with(model, lambda t: t.detach().cpu().clone())
    graph = _run(model, skeleton, torch.zeros((1, *shape), dtype=_float_dtype(model)), listed)
    return dataclasses.replace(graph, needs_values=True)


def _float_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def record_training(model: nn.Module, input_shape: tuple[int, ...]) -> ModelGraph:
    """Record the forward of training mode on two images (C, H, W), with whatever heads only training uses.

    Raises:
        TraceError: it fails.
    """
    try:
        with generators_kept(), _quiet_fakes(), FakeTensorMode(allow_non_fake_inputs=True):
            skeleton = copy_with(model, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype))
            images = torch.empty((2, *input_shape), dtype=_float_dtype(model))
            return _run(model, skeleton, images, listed=False, training=True)
    except Exception as error:  # any forward may raise anything
        raise TraceError(f"the forward of training mode fails: {type(error).__name__}: {error!s:.200}") from error


def _run(model: nn.Module, skeleton: nn.Module, images: Tensor, listed: bool, training: bool = False) -> ModelGraph:
    skeleton.train(training)
    with unset_fake_temporarily():
        kinds = {name: module_kind(module) for name, module in model.named_modules()}
    recorder = CallRecorder(skeleton, kinds)
    image = images[0] if listed else images
    recorder.bind(image, recorder.graph.placeholder("input"), "input")
    with torch.no_grad(), recorder, calls_seen(recorder.scripted_call):
        output = skeleton([image] if listed else image)
    result = recorder.graph.output(recorder.nodes_of(output))
    result.meta["shapes"] = shape_tree(result.args[0])
    aliases = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return ModelGraph(recorder.graph, dict(model.named_modules()), tuple(images.shape[1:]), recorder.calls, aliases)
