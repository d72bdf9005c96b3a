"""Published weights of timm's and torchvision's networks: where they are, and at once what to do where they are not.

The libraries' own way without a network is a minute of repeated attempts and a message about the hub. Here the cache is
looked into first; what it holds is read without a look at the network, and for what it lacks the server is asked once.
"""

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
import torchvision
from timm.models import PretrainedCfg

from surgery.core.errors import SourceError

SECONDS = 5.0  # that a server may take to answer
FILES = ("model.safetensors", "pytorch_model.bin")  # of a network on the hub, as timm looks for them


@dataclass(frozen=True)
class Published:
    """Weights of a network.

    Attributes:
        name: of the network, or of its repository on the hub.
        server: the address they are downloaded from.
        cache, variable: the folder that is looked into first, and the environment's variable for it.
        cached: whether they are there.
        hub: whether the server is Hugging Face's hub.
    """

    name: str
    server: str
    cache: str
    variable: str
    cached: bool
    hub: bool

    def __str__(self) -> str:
        if self.cached:
            return f"pretrained weights of {self.name}: in the cache {self.cache}"
        return f"pretrained weights of {self.name}: not in the cache {self.cache}; to be downloaded from {self.server}"


def published(builder: str, name: str) -> Published | None:
    """The weights that ``pretrained=True`` loads for a network of timm or torchvision; None where none are known."""
    if builder == "timm":
        return _of_timm(name)
    if builder == "torchvision":
        return _of_torchvision(name)
    return None


def from_cache(name: str) -> dict[str, Any]:
    """Arguments with which timm reads the hub's weights from the cache; without, it asks for a newer version first.

    Empty where the weights are not there, or not the hub's.
    """
    config = _config(name)
    file = _cached_file(config) if config is not None and config.hf_hub_id else None
    return {} if file is None else {"pretrained_cfg_overlay": {"file": file}}


def _of_timm(name: str) -> Published | None:
    config = _config(name)
    if config is None:
        return None
    if config.hf_hub_id:
        from huggingface_hub import constants

        repository = str(config.hf_hub_id).partition("@")[0]
        cached = _cached_file(config) is not None
        cache = str(constants.HF_HUB_CACHE)
        return Published(repository, constants.ENDPOINT, cache, "HF_HUB_CACHE", cached, hub=True)
    return _of_address(name, str(config.url))


def _config(name: str) -> PretrainedCfg | None:
    """Where timm has a network's weights from; None where it has none, or not from a server."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag; timm's own message says which there are
        return None
    return None if config is None or not config.has_weights or config.file or config.state_dict else config


def _cached_file(config: PretrainedCfg) -> str | None:
    """The file in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = str(config.hf_hub_id).partition("@")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else FILES
    paths = (try_to_load_from_cache(repository, name, revision=revision or None) for name in names)
    return next((path for path in paths if isinstance(path, str)), None)


def _of_torchvision(name: str) -> Published | None:
    try:
        weights = torchvision.models.get_model_weights(name)
    except ValueError:
        return None
    return _of_address(name, weights["DEFAULT"].url)


def _of_address(name: str, address: str) -> Published:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    parts = urlsplit(address)
    cached = (folder / os.path.basename(parts.path)).is_file()
    return Published(name, f"{parts.scheme}://{parts.netloc}", str(folder), "TORCH_HOME", cached, hub=False)


@contextmanager
def weights_at_hand(builder: str, name: str, wanted: bool = True) -> Iterator[None]:
    """While inside, a network may be built with ``pretrained=True``; a download that fails is one line with advice.

    Args:
        wanted: whether it is; else nothing is done.

    Raises:
        SourceError: the weights are neither in the cache nor can they be downloaded, with what to do.
    """
    if not wanted:
        yield
        return
    weights = published(builder, name)
    if weights is not None and not weights.cached:
        _check_server(weights)
    try:
        yield
    except (OSError, SourceError) as error:
        reason = error.__cause__ if isinstance(error, SourceError) else error
        if not isinstance(reason, OSError):  # of the hub's, urllib's and the disk's
            raise
        raise SourceError(_advice(weights, f"{builder}/{name}" if name else builder, _first_line(reason))) from reason


def _check_server(weights: Published) -> None:
    """Ask the server for any answer, once."""
    if weights.hub and _is_offline():
        raise SourceError(_advice(weights, weights.name, "HF_HUB_OFFLINE forbids a download"))
    request = urllib.request.Request(weights.server, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return
    except urllib.error.HTTPError:
        return  # an answer
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", error), ssl.SSLError):
            return  # it is there; the library that downloads may know its certificate
        raise SourceError(_advice(weights, weights.name, _first_line(error))) from error


def _advice(weights: Published | None, name: str, reason: str) -> str:
    remedy = "in a recipe, model.weights: FILE reads them from a file and model.pretrained=false does without"
    if weights is None:
        return f"the pretrained weights of {name} cannot be had ({reason}); HF_HUB_CACHE names the cache; {remedy}"
    return (
        f"the pretrained weights of {weights.name} are not in {weights.variable}'s cache ({weights.cache}), and "
        f"{weights.server} cannot give them ({reason}); set {weights.variable} to a cache that has them; {remedy}"
    )


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "reason", "") or error).strip() or type(error).__name__
    return text.splitlines()[0]


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
