"""The command line: ``python -m surgery plan|convert|cost|eval|predict|bench|export|load-check|finetune NAME``."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import surgery
from surgery.bench.command import add_options
from surgery.bench.command import run as bench_command
from surgery.calibration.folder import folder_batches
from surgery.checkpoint.source import MEMORY, build
from surgery.core.errors import NoSitesError, SourceError, SurgeryError
from surgery.core.extras import check_extra
from surgery.core.table import si, table
from surgery.core.user_modules import add_import_option, import_user_modules
from surgery.deploy.formats import FORMATS
from surgery.graph.input_size import InputSize
from surgery.planning.default_method import default_method
from surgery.planning.registry import methods
from surgery.planning.request import HEADS, MODES, PROJECTIONS
from surgery.training.command import main as finetune
from surgery.transforms.changed import changed_modules, is_converted
from surgery.vision import segmentation
from surgery.vision.classification import evaluate, predict, prediction_table

PROGRAM = "python -m surgery"
NOTHING_TO_CONVERT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0, or with one line on stderr 2 (what was asked for cannot be) or 3 (there is nothing to convert).
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed[:1] == ["finetune"]:  # its settings may come before and after options, which no subcommand permits
        return finetune(typed[1:], f"{PROGRAM} finetune")
    given = parser().parse_args(typed)
    given.typed = typed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.showwarning = _show_warning
            import_user_modules(given.imports)
            print(given.run(given))
    except NoSitesError as error:
        print(f"surgery: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return NOTHING_TO_CONVERT
    except BrokenPipeError:  # an OSError: what reads the output, such as head, has seen enough
        return 0
    except (SurgeryError, ValueError, TypeError, OSError) as error:
        print(f"surgery: {error}", file=sys.stderr)
        return 2
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"surgery: warning: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """What the command line may hold."""
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Plan, carry out, count and check model surgery.",
        epilog="NAME is a timm model (resnet50), torchvision/NAME, a builder of yours (--import), or a file that "
        "surgery wrote.",
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for name, about, add_arguments in _COMMANDS:
        add_arguments(commands.add_parser(name, help=about))
    commands.add_parser("finetune", add_help=False, help="what finetune.py does: convert and fine-tune by a recipe")
    return made


def _add_plan(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    _add_surgery(command)
    command.set_defaults(run=_plan)


def _add_conversion(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    _add_surgery(command)
    command.add_argument("--out", required=True, metavar="FILE", help="the safetensors file to write")
    images = command.add_mutually_exclusive_group()
    images.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="recover accuracy with the images below this folder (labels are not needed)",
    )
    images.add_argument(
        "--synthetic", action="store_true", help="the same without images: some are made from the model's BatchNorms"
    )
    command.add_argument(
        "--calibration-images", type=int, metavar="N", help="how many (default: 1024 of a folder, 256 synthetic ones)"
    )
    command.set_defaults(run=_convert)


def _add_cost(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.set_defaults(run=_cost)


def _add_evaluation(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument(
        "data",
        metavar="FOLDER",
        help="holds CLASS/* (or val/CLASS/*, test/CLASS/*); for label maps images/NAME.* and masks/NAME.* (or val/…)",
    )
    command.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32; label maps: one by one")
    command.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images")
    _add_view(command)
    command.set_defaults(run=_eval)


def _add_prediction(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("images", metavar="IMAGE", nargs="+")
    command.add_argument("--out", default=".", metavar="FOLDER", help="where masks go: NAME.mask.png (default: here)")
    _add_view(command)
    command.set_defaults(run=_predict)


def _add_bench(command: argparse.ArgumentParser) -> None:
    _add_model(command, many=True)
    _add_surgery(command)
    add_options(command)
    command.set_defaults(run=_bench)


def _add_export(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("--out", required=True, metavar="FILE", help="the file to write: .onnx or .pt2")
    command.add_argument("--format", help=f"one of: {', '.join(FORMATS)} (default: what the suffix says)")
    command.set_defaults(run=_export)


def _add_load_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="FILE")
    add_import_option(command)
    command.set_defaults(run=_load_check)


_COMMANDS = (
    ("plan", "what would change and why, and why not the rest", _add_plan),
    ("convert", "convert a model and write it to one safetensors file", _add_conversion),
    ("cost", "MACs, FLOPs, parameters and memory, in total and per site", _add_cost),
    ("eval", "accuracy, or mean IoU, on a folder of images", _add_evaluation),
    ("predict", "the five likeliest classes of images, or masks as PNG files", _add_prediction),
    ("bench", "time original, converted and the floor in turn, in one process", _add_bench),
    ("export", "write a model for another runtime, checked against the original", _add_export),
    ("load-check", "load a file and say what it holds; fails where anything is wrong", _add_load_check),
)


def _add_view(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--window", type=int, default=0, metavar="N", help="label maps: look at windows of N×N pixels (default: all)"
    )
    command.add_argument("--overlap", type=float, default=1 / 3, metavar="SHARE", help="of a window (default: 1/3)")
    command.add_argument("--flip", action="store_true", help="label maps: look at the mirror image too")


def _add_model(command: argparse.ArgumentParser, many: bool = False) -> None:
    about = "timm name, torchvision/NAME, a builder of yours (--import), or a file written by surgery"
    if many:
        command.add_argument("names", metavar="NAME", nargs="*", help=about)
    else:
        command.add_argument("name", metavar="NAME", help=about)
    command.add_argument(
        "--kwargs", type=_json, default={}, metavar="JSON", help="builder arguments: '{\"num_classes\": 10}'"
    )
    command.add_argument("--pretrained", action="store_true", help="with the builder's pretrained weights (a download)")
    command.add_argument(
        "--input-size",
        type=_size,
        metavar="C,H,W",
        help="image size to record with: 3,224,224 or 224,224 or 224 (default: the model's)",
    )
    add_import_option(command)


def _add_surgery(command: argparse.ArgumentParser) -> None:
    default = default_method()
    command.add_argument("--method", default=default, help=f"one of: {', '.join(methods())} (default: {default})")
    command.add_argument("--zeta", type=_zeta, help="dominating ratio, such as 4, or per pattern: layer3=8,layer4=8")
    command.add_argument("--mode", default="squeeze", help=f"one of: {', '.join(MODES)} (default: squeeze)")
    command.add_argument(
        "--include", action="append", default=[], metavar="PATTERN", help="only these sites (repeatable)"
    )
    command.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="not these sites (repeatable)"
    )
    command.add_argument(
        "--insert", action="append", default=[], metavar="PATTERN", help="insert before these (repeatable)"
    )
    command.add_argument(
        "--projections", default="residual", help=f"one of: {', '.join(PROJECTIONS)} (default: residual)"
    )
    command.add_argument("--equal-width", action="store_true", default=None, help="include heads that keep the width")
    command.add_argument("--head", default="keep", help=f"one of: {', '.join(HEADS)} (pool: for VGG)")
    command.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the method: tau=0.5")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: a JSON object is needed")
    return value


def _size(text: str) -> InputSize:
    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: C,H,W such as 3,224,224, or one side, is needed") from None
    return size if len(size) > 1 else size[0]


def _number(text: str) -> Any:
    """A JSON value where the text is one, else the text; what it may be is for the library to say."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _zeta(text: str) -> Any:
    if "=" not in text:
        return _number(text)
    return {pattern: _number(value) for pattern, _, value in (part.partition("=") for part in text.split(","))}


def _is_file(name: str) -> bool:
    """Whether NAME means what surgery wrote, rather than a builder's model (a folder may be called resnet50 too)."""
    path = Path(name)
    return path.suffix == ".safetensors" or path.is_file() or (path.is_dir() and path.name != name)


def _model(given: argparse.Namespace) -> nn.Module:
    if _is_file(given.name):
        return surgery.load(given.name)
    if "pretrained" in given.kwargs:
        raise ValueError(f"--kwargs holds pretrained={given.kwargs['pretrained']!r}: use --pretrained, or leave it out")
    try:
        return surgery.create(given.name, pretrained=given.pretrained, **given.kwargs)
    except SourceError as error:
        if "load_state_dict() gives it weights" not in str(error):
            raise
        raise SourceError(f"{error}; --pretrained gives it those of its builder") from error


def _say_random(given: argparse.Namespace, model: nn.Module, consequence: str) -> None:
    """One line on stderr where a model was made by a builder that gave it random weights."""
    source = getattr(model, MEMORY, None)
    if given.pretrained or _is_file(given.name) or source is None or source.builder not in ("timm", "torchvision"):
        return
    print(
        f"surgery: the weights of {given.name} are random, {consequence}; --pretrained downloads trained ones, and "
        "a file that surgery wrote may stand in place of the name",
        file=sys.stderr,
    )


def _arguments(given: argparse.Namespace) -> dict[str, Any]:
    options = {}
    for option in given.option:
        key, separator, value = option.partition("=")
        if not separator:
            raise ValueError(f"--option {option!r}: KEY=VALUE is needed, such as tau=0.5")
        options[key] = _number(value)
    names = ("zeta", "mode", "include", "exclude", "insert", "projections", "equal_width", "head", "input_size")
    return {name: getattr(given, name) for name in names} | options


def _plan(given: argparse.Namespace) -> str:
    return str(surgery.plan(_model(given), given.method, **_arguments(given)))


def _convert(given: argparse.Namespace) -> str:
    model = _model(given)
    before = surgery.cost(model, given.input_size)
    converted = surgery.convert(
        model,
        given.method,
        inplace=True,
        strict=True,
        calibrate=_calibration_images(given, model),
        **_arguments(given),
    )
    _say_random(given, model, "and so are those of the file")
    after = surgery.cost(converted, given.input_size)
    surgery.save(converted, given.out, input_size=given.input_size)
    rows = [
        (name, si(cost.macs), si(cost.params), si(cost.memory, "B"))
        for name, cost in (("before", before), ("after", after))
    ]
    size = si(Path(given.out).stat().st_size, "B")
    return f"{table(('', 'MACs', 'params', 'memory written'), rows, right=(1, 2, 3))}\nwrote {given.out} ({size})"


def _calibration_images(given: argparse.Namespace, model: nn.Module) -> Iterable[Tensor] | None:
    """What to calibrate with; None also where there is nothing to convert, before minutes go into images."""
    if not given.calibrate and not given.synthetic:
        return None
    check_extra("calibrate", "--calibrate" if given.calibrate else "--synthetic")
    if not surgery.plan(model, given.method, **_arguments(given)).edits:
        return None
    count = given.calibration_images
    if given.calibrate:
        return folder_batches(given.calibrate, model, 1024 if count is None else count, given.input_size)
    return surgery.synthetic_images(model, 256 if count is None else count, input_size=given.input_size)


def _cost(given: argparse.Namespace) -> str:
    return str(surgery.cost(_model(given), given.input_size))


def _eval(given: argparse.Namespace) -> str:
    model = _model(given)
    _say_random(given, model, "so it can only guess")
    if segmentation.segments(model):
        return str(segmentation.evaluate(model, given.data, _view(given)))
    return str(evaluate(model, given.data, batch_size=given.batch_size, workers=given.workers))


def _predict(given: argparse.Namespace) -> str:
    model = _model(given)
    _say_random(given, model, "so it can only guess")
    if segmentation.segments(model):
        return segmentation.label_table(model, segmentation.predict(model, given.images, given.out, _view(given)))
    return prediction_table(predict(model, given.images))


def _view(given: argparse.Namespace) -> segmentation.View:
    return segmentation.View(given.window, given.overlap, given.flip)


def _bench(given: argparse.Namespace) -> str:
    if not given.names and not given.op and given.train is None:
        raise ValueError("bench needs the name of a model, or --op for the operator alone, or --train RECIPE")
    return bench_command(given, lambda: _pairs(given), given.typed)


def _pairs(given: argparse.Namespace) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(name, original, converted): a converted file's original is built anew, anything else is converted here."""
    for name in given.names:
        model = _model(argparse.Namespace(**{**vars(given), "name": name}))
        if is_converted(model):
            source = surgery.Source(**surgery.checkpoint.read(name)[0]["source"])
            yield name, build(source), model
        else:
            yield name, model, surgery.convert(model, given.method, strict=True, **_arguments(given))


def _export(given: argparse.Namespace) -> str:
    model = _model(given)
    _say_random(given, model, "and so are those of the file")
    surgery.export(model, given.out, format=given.format, input_size=given.input_size)
    return f"wrote {given.out} ({si(Path(given.out).stat().st_size, 'B')}), checked against the model"


def _load_check(given: argparse.Namespace) -> str:
    manifest, tensors = surgery.checkpoint.read(given.name)
    model = surgery.load(given.name)
    source = surgery.Source(**manifest["source"])
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    edits = f"{len(manifest['edits'])} edits change {len(changed_modules(model))} modules"
    return (
        f"{given.name}: sound\n  made from {source}; {edits}; {len(tensors)} tensors\n"
        f"  written by {versions}\n"
        f"  loads as {type(model).__name__} with {si(sum(p.numel() for p in model.parameters()))} parameters"
    )


if __name__ == "__main__":
    sys.exit(main())
