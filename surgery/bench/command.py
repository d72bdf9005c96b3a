"""``python -m surgery bench``: its options, and what they run."""

import argparse
import itertools
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from surgery.bench import report
from surgery.bench.networks import bench_network
from surgery.bench.operators import operator_benchmark
from surgery.core.atomic_file import write_atomically
from surgery.core.errors import check_choice
from surgery.core.extras import check_extra
from surgery.core.run_setting import DTYPES, LAYOUTS, MODES, Setting
from surgery.deploy.engines import check_engine
from surgery.graph.input_size import image_shapes
from surgery.training.shipped_recipes import find_recipe

TRAIN_OPTIONS = ("--train", "--seconds", "--record", "--import")
Pairs = Callable[[], Iterator[tuple[str, nn.Module, nn.Module]]]


def add_options(command: argparse.ArgumentParser) -> None:
    """The options beside the models and the surgery; lists are separated by commas, every combination is run."""
    command.add_argument("--batch", type=_numbers, default=[1, 8], metavar="N,…", help="batch sizes (default: 1,8)")
    command.add_argument(
        "--threads", type=_numbers, default=[None], metavar="N,…", help="CPU threads (default: torch's)"
    )
    command.add_argument("--dtype", type=_names, default=["float32"], metavar="NAME,…", help=", ".join(DTYPES))
    command.add_argument("--layout", type=_names, default=["channels_last"], metavar="NAME,…", help=", ".join(LAYOUTS))
    command.add_argument("--run", type=_names, default=["eager"], metavar="HOW,…", dest="how", help=", ".join(MODES))
    command.add_argument("--training", action="store_true", help="a training step (SGD) instead of inference")
    command.add_argument(
        "--train",
        metavar="RECIPE",
        help="training by a recipe (a file, or the name of one that comes with surgery) against a bare loop over its "
        "network; what follows are its settings, key=value",
    )
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.add_argument("--op", action="store_true", help="the method's operator alone, against bandwidth")
    command.add_argument("--seconds", type=float, default=10.0, help="per setting (default: 10)")
    command.add_argument("--record", metavar="FILE", help="write the results into this Markdown file, with the machine")
    command.add_argument("--plot", metavar="FILE", help="draw the ratios (.png, .svg, .pdf)")


def run(options: argparse.Namespace, pairs: Pairs, arguments: Sequence[str]) -> str:
    """Time what the options ask for; ``pairs`` yields (name, original, converted). Returns the tables."""
    if not options.seconds > 0:
        raise ValueError(f"--seconds {options.seconds}: a positive number is needed")
    _check_places(options)
    if options.train is not None:
        return _train(options, arguments)
    settings = list(_settings(options))
    parts = []
    if options.op:
        timed = operator_benchmark(options.method)
        parts.append(timed.benchmark(_operator_settings(settings), seconds=options.seconds))
    rows = [
        (name, setting, bench_network(original, converted, setting, _size(options, original), seconds=options.seconds))
        for name, original, converted in pairs()
        for setting in settings
    ]
    if rows:
        parts.append(report.network_table(rows))
    where = report.machine(options.device)
    results = "\n\n".join(parts)
    if options.plot and rows:
        write_atomically(options.plot, report.drawn(rows, Path(options.plot).suffix))
    return _reported(options, arguments, where, results)


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> str:
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and not any(allowed.startswith(option) for allowed in TRAIN_OPTIONS):
            raise ValueError(f"{option}: not with --train; the recipe says what is run, and how")
    for setting in options.names:
        if "=" not in setting:
            raise ValueError(f"{setting!r}: --train takes its network from the recipe; what follows is key=value")
    check_extra("train", "bench --train")
    from surgery.bench.training import bench_training  # it imports all that trains, which takes seconds
    from surgery.training.recipe import load_recipe

    result = bench_training(load_recipe(find_recipe(options.train), options.names), seconds=options.seconds)
    return _reported(options, arguments, report.machine(result.device), str(result))


def _reported(options: argparse.Namespace, arguments: Sequence[str], where: str, results: str) -> str:
    if options.record:
        left_out = ("--record", "--plot")
        shown = [a for a, before in zip(arguments, ["", *arguments], strict=False) if not {a, before} & set(left_out)]
        report.record(options.record, f"python -m surgery {shlex.join(shown)}", where, results)
    return f"{where}\n\n{results}"


def _check_places(options: argparse.Namespace) -> None:
    """Raise for files that could not be written, before minutes of measuring are lost to them."""
    for path in (Path(name) for name in (options.record, options.plot) if name):
        if not path.parent.is_dir() or path.is_dir():
            raise OSError(f"cannot write {str(path)!r}: a file in a folder that exists is needed")
    if options.plot:
        check_choice("the suffix of --plot", Path(options.plot).suffix, report.PICTURES)


def _settings(options: argparse.Namespace) -> Iterator[Setting]:
    axes = (options.how, options.dtype, options.layout, options.threads, options.batch)
    for how, dtype, layout, threads, batch in itertools.product(*axes):
        check_engine(how)
        yield Setting(batch, how, dtype, layout, threads, options.device, options.training)


def _operator_settings(settings: list[Setting]) -> list[Setting]:
    """Each once, whatever way the network is run."""
    plain = (Setting(s.batch, "eager", s.dtype, s.layout, s.threads, s.device) for s in settings)
    return list(dict.fromkeys(plain))


def _size(options: argparse.Namespace, model: nn.Module) -> tuple[int, ...]:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    own = tuple(config.get("input_size") or (3, 224, 224))
    return own if options.input_size is None else image_shapes(options.input_size, own[:1])[0]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers such as 1,8 are needed") from None


def _names(text: str) -> list[str]:
    return text.split(",")
