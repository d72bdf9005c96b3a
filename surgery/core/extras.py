"""Packages that only some of this package needs: what an extra installs, and one clear message where it is missing."""

from importlib.util import find_spec

from surgery.core.errors import MissingPackageError

# by extra, the names to import with the names to install; setup.cfg asks for the same
_CALIBRATE = {"scipy": "scipy", "greenlet": "greenlet"}
_EXPORT = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
EXTRAS: dict[str, dict[str, str]] = {
    "calibrate": _CALIBRATE,
    "train": {
        **_CALIBRATE,
        "accelerate": "accelerate",
        "torchmetrics": "torchmetrics",
        "sklearn": "scikit-learn",
        "matplotlib": "matplotlib",
        "yaml": "PyYAML",
        "pydantic": "pydantic",
        "annotated_types": "annotated-types",
        "psutil": "psutil",
        "py_sod_metrics": "pysodmetrics",
    },
    "export": _EXPORT,
    "explain": {"pytorch_grad_cam": "grad-cam", "matplotlib": "matplotlib"},
    "openvino": {**_EXPORT, "openvino": "openvino"},
}


def check_extra(extra: str, user: str, packages: tuple[str, ...] = ()) -> None:
    """Raise unless what an extra installs can be imported.

    Args:
        extra: its name in ``pip install 'surgery[extra]'``.
        user: what needs it, as the message says.
        packages: those of the extra, by the names to import, that ``user`` needs; default: all of them.

    Raises:
        MissingPackageError: naming what is missing and the command that installs it.
    """
    install_names = EXTRAS[extra]
    missing = [install_names[name] for name in packages or install_names if not _is_installed(name)]
    if missing:
        listed = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
        raise MissingPackageError(f"{user} needs {listed}: pip install 'surgery[{extra}]'")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a finder that refuses the name; a module without a spec
        return False
