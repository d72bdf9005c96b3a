"""Time a network before and after surgery, and with what surgery put in for free: the floor of any kernel."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.core.run_setting import FILE_MODES, Setting, threads_set_to
from surgery.core.timing import Timing, interleaved
from surgery.deploy.engines import captured, placed, placed_copy, prepared
from surgery.transforms.changed import added_modules, is_converted


class Free(nn.Module):
    """Stands for a module and costs nothing: hands out what the module gave once, or a slice of its input.

    The slice is for engines of files, which would compute ahead all that follows a constant.

    Args:
        output: a feature map (N, C, H, W), or any tree of tensors.
        steps: of the slice, along H and W, where the module gives one map; None to hand out ``output``.
    """

    def __init__(self, output: Any, steps: tuple[int, int] | None = None) -> None:
        super().__init__()
        maps, self.structure = pytree.tree_flatten(output)
        self.count, self.steps, self.channels = len(maps), steps, maps[0].shape[1]
        for number, tensor in enumerate(maps):
            self.register_buffer(f"output{number}", tensor.detach().clone(), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.steps is not None:
            return args[0][:, : self.channels, :: self.steps[0], :: self.steps[1]]
        maps = [self.get_buffer(f"output{number}") for number in range(self.count)]
        return pytree.tree_unflatten(maps, self.structure)


def bench_network(
    original: nn.Module,
    converted: nn.Module,
    setting: Setting,
    input_size: tuple[int, ...] = (3, 224, 224),
    *,
    seconds: float = 10.0,
) -> Timing:
    """Time ``original``, ``converted`` and ``free`` in turn in this process.

    ``free`` is left out where surgery put no module into the network, as where it only made layers narrower.

    Args:
        original, converted: with weights; copied, so neither changes.
        input_size: (C, H, W).
        seconds: for all rounds together.

    Raises:
        ValueError: ``converted`` is not converted.
    """
    with threads_set_to(setting.threads):
        x = placed(torch.randn(setting.batch, *input_size), setting)
        models = {
            name: placed_copy(model, setting) for name, model in (("original", original), ("converted", converted))
        }
        free = with_free_sites(models["converted"], x, sliced=setting.mode in FILE_MODES)
        models |= {} if free is None else {"free": free}
        with tempfile.TemporaryDirectory() as folder:
            steps = {name: _step(model, x, setting, Path(folder)) for name, model in models.items()}
            label = f"batch {setting.batch} {setting.mode} {setting.dtype}"
            return interleaved(steps, seconds=seconds, device=setting.device, label=label)


def with_free_sites(model: nn.Module, x: Tensor, sliced: bool = False) -> nn.Module | None:
    """A copy of a converted model in which what surgery replaced or inserted is :class:`Free`.

    Args:
        x: the model is run once on it, to see what the modules give.
        sliced: hand out slices of their inputs.

    Returns:
        None where the model's history names no such module, or one gives something that ``Free`` cannot hand out.

    Raises:
        ValueError: the model is not converted.
    """
    if not is_converted(model):
        raise ValueError("the model has no converted site: there is nothing to compare")
    calls = _calls(model, added_modules(model), x)
    free = copy.deepcopy(model)
    for name, (argument, output) in calls.items():
        steps = _slice_steps(argument, output) if sliced else None
        if sliced and steps is None:
            return None
        free.set_submodule(name, Free(output, steps))
    return free if calls else None


def _calls(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, tuple[Any, Any]]:
    """(First argument, output) of the last call of each named module in a forward on ``x``."""
    calls: dict[str, tuple[Any, Any]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, arguments, output, name=name: calls.update({name: (next(iter(arguments), None), output)})
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _slice_steps(argument: Any, output: Any) -> tuple[int, int] | None:
    """Steps along H and W of the slice of one map that has another's shape; None where no slice has it."""
    if not (isinstance(argument, Tensor) and isinstance(output, Tensor) and argument.ndim == output.ndim == 4):
        return None
    sides = list(zip(argument.shape[2:], output.shape[2:], strict=True))
    height, width = (-(-before // after) for before, after in sides)
    reached = tuple(-(-before // step) for (before, _), step in zip(sides, (height, width), strict=True))
    fits = output.shape[1] <= argument.shape[1] and reached == tuple(output.shape[2:])
    return (height, width) if fits else None


def _step(model: nn.Module, x: Tensor, setting: Setting, folder: Path) -> Callable[[], object]:
    if not setting.training:
        return prepared(model, x, setting, folder)
    run = torch.compile(model) if setting.mode == "compile" else model
    step = _training_step(run, model, x)
    return captured(step) if setting.mode == "cudagraph" else step


def _training_step(run: Callable[[Tensor], Any], model: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with torch.no_grad():
        classes = model(x).shape[-1]
    target = torch.randint(classes, (len(x),), device=x.device)

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(run(x).float(), target).backward()
        return optimizer.step()

    return step
