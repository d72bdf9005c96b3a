"""Published weights without a network: every test runs where no server answers."""

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file

import surgery
from surgery.checkpoint.pretrained_weights import from_cache, published
from surgery.core.errors import SourceError

NOWHERE = "http://127.0.0.1:9"  # the port of a service that nobody runs: refused at once


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))


def cached(tmp_path, name):
    """A network, and its weights where the hub's library would have put them."""
    model = timm.create_model(name)
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return model


@pytest.mark.parametrize("name", ["timm/resnet50", "timm/test_resnet.r160_in1k", "pspnet"])
def test_what_cannot_be_downloaded_is_one_line_at_once(name):
    begin = time.monotonic()
    with pytest.raises(SourceError) as caught:
        surgery.create(name, pretrained=True)
    assert time.monotonic() - begin < 10
    message = str(caught.value)
    assert "\n" not in message
    for remedy in ("HF_HUB_CACHE", "model.weights: FILE", "model.pretrained=false", NOWHERE):
        assert remedy in message


def test_offline_by_the_environment(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE forbids a download"):
        surgery.create("timm/resnet50", pretrained=True)


def test_what_the_cache_holds_needs_no_server(tmp_path):
    wanted = cached(tmp_path, "test_resnet")
    assert "in the cache" in str(published("timm", "test_resnet"))
    begin = time.monotonic()
    model = surgery.create("timm/test_resnet", pretrained=True)
    assert time.monotonic() - begin < 10
    assert torch.equal(model.fc.weight, wanted.fc.weight)


def test_a_backbone_is_read_from_the_cache_too(tmp_path):
    wanted = cached(tmp_path, "resnet18")
    begin = time.monotonic()
    model = surgery.create("pspnet", backbone="resnet18", pretrained=True, width=8)
    assert torch.equal(model.backbone.conv1.weight, wanted.conv1.weight)
    assert time.monotonic() - begin < 10
    assert set(from_cache("resnet18")["pretrained_cfg_overlay"]) == {"file"}


class Nothing(BaseHTTPRequestHandler):
    """A server that answers, and has no file."""

    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")  # of the hub's: without it the library tries again
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *arguments):
        """Nothing is printed."""


@pytest.mark.parametrize("name", ["timm/test_resnet", "pspnet"])
def test_a_download_that_fails_on_its_way_says_what_to_do(monkeypatch, name):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", address := f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    try:
        with pytest.raises(SourceError) as caught:
            surgery.create(name, pretrained=True)
    finally:
        server.shutdown()
        server.server_close()
    for remedy in ("HF_HUB_CACHE", "model.weights: FILE", "model.pretrained=false", address):
        assert remedy in str(caught.value)


def test_a_download_from_an_address_that_fails_on_its_way(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(weights._value_, "url", f"{address}/resnet18.pth")
    try:
        with pytest.raises(SourceError, match="set TORCH_HOME to a cache") as caught:
            surgery.create("torchvision/resnet18", pretrained=True)
    finally:
        server.shutdown()
        server.server_close()
    assert address in str(caught.value)


def test_the_hub_s_library_is_not_imported_by_surgery_itself():
    source = Path(sys.modules["surgery.checkpoint.pretrained_weights"].__file__).read_text()
    assert not [line for line in source.splitlines() if line.startswith(("import hugging", "from hugging"))]


def test_torchvision(tmp_path):
    weights = published("torchvision", "resnet18")
    assert (weights.variable, weights.cached, weights.hub) == ("TORCH_HOME", False, False)
    file = tmp_path / "torch" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert published("torchvision", "resnet18").cached


def test_a_network_without_published_weights():
    assert published("timm", "resnet50.no_such_tag") is None
    with pytest.raises(SourceError, match="Invalid pretrained tag"):
        surgery.create("timm/resnet50.no_such_tag", pretrained=True)


def test_a_recipe_on_a_machine_without_a_network_ends_at_once(tmp_path):
    root = Path(surgery.__file__).parents[1]
    settings = [f"output={tmp_path / 'out'}", "model.pretrained=true", "model.name=timm/test_resnet", "model.kwargs={}"]
    environment = {**os.environ, "HF_ENDPOINT": NOWHERE, "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, str(root / "finetune.py"), *settings, "surgery.zeta=2", "surgery.mode=downscale"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "model.weights: FILE" in last
    assert "Traceback" not in done.stderr
