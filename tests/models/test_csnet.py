import os
from pathlib import Path

import pytest
import torch
from torch import nn

import surgery
from surgery.core.errors import CheckpointError
from surgery.models.csnet import CSNetWidths, csnet
from surgery.models.csnet_weights import load_published_csnet

NARROW = {
    "blocks": [
        [[3, 2], [2, 2], [2, 3], [2, 2]],
        [[4, 3], [3, 3], [2, 4], [5]],
        [[4, 4], [3, 4], [4, 3], [2, 2], [3, 3], [6]],
        [[4, 5], [3, 3], [4, 2], [7]],
    ],
    "fused": [3, 4, 5],
    "dilated": [[1, 1, 1, 1, 2], [0, 2, 1, 1, 1], [1, 0, 0, 2, 1]],
    "head": 6,
}


@pytest.mark.parametrize("k,params", [(1, 210_985), (2, 788_631)])
def test_published_sizes(k, params):
    """The paper says 211 thousand for ×1."""
    network = csnet(k)
    assert sum(p.numel() for p in network.parameters()) == params


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1), (5, 64)])
def test_logits_have_the_size_of_the_image(size):
    network = csnet(0.5).eval()
    assert network(torch.randn(2, 3, *size)).shape == (2, 1, *size)


def test_narrow_form_is_rebuilt_from_its_file(tmp_path):
    network = surgery.create("csnet", widths=NARROW).eval()
    surgery.save(network, tmp_path / "narrow.safetensors")
    x = torch.randn(1, 3, 40, 24)
    torch.testing.assert_close(surgery.load(tmp_path / "narrow.safetensors").eval()(x), network(x))


def test_learns_in_training_mode():
    network = csnet(0.5)
    logits = network(torch.randn(2, 3, 32, 32))
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"k": 0}, "k=0: a factor"),
        ({"k": True}, "k=True"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"k": 2, "widths": NARROW}, "k=2 and widths"),
        ({"widths": {"blocks": []}}, "an object with blocks, dilated, fused, head"),
        ({"widths": NARROW | {"blocks": NARROW["blocks"][:3]}}, r"\(4, 4, 6, 4\) blocks of the four stages"),
        ({"widths": NARROW | {"fused": [3, 4]}}, r"fused=\(3, 4\)"),
        ({"widths": NARROW | {"dilated": [[0, 0, 0, 0, 0]] * 3}}, "not all 0"),
        ({"widths": NARROW | {"head": 0}}, "head=0"),
    ],
)
def test_impossible_widths(arguments, message):
    with pytest.raises(ValueError, match=message):
        csnet(**arguments)


def test_widths_of_a_factor():
    widths = CSNetWidths.of_factor(1)
    assert widths.blocks[0] == ((10, 10),) * 4
    assert [blocks[-1] for blocks in widths.blocks[1:]] == [(40,), (80,), (80,)]
    assert widths.dilated[0] == (2, 2, 2, 2, 5) and widths.head == 65


def published_form(network):
    """The tensors of a CSNet as its authors store them, by names written down here by hand."""
    names = {}
    for stage, blocks in enumerate(network.widths.blocks):
        for block, widths in enumerate(blocks):
            theirs = f"stage{stage + 1}.{block}" if stage else ("stage0.0" if block == 0 else f"stage1.{block - 1}")
            for number, conv in enumerate(("conv1x1", "conv3x3_1", "conv3x3_2")):
                ours = f"stages.{stage}.{block}.{number}"
                convs = [f"convs.{m}.weight" for m in range(len(widths))] if number else ["conv.weight"]
                names |= {f"{ours}.{key}": f"{theirs}.{conv}.{key}" for key in convs}
                names |= scaled_names(f"{ours}.norm_acts", f"{theirs}.{conv}", len(widths))
    names |= scaled_names("fuse.norm_acts", "oct_fuse.fuse", 3) | scaled_names("merge.norm_acts", "oct_fuse.fuse1x1", 1)
    names |= {"fuse.conv.weight": "oct_fuse.fuse.conv.weight", "merge.conv.weight": "oct_fuse.fuse1x1.conv.weight"}
    names |= {"classifier.weight": "cls_layer.weight", "classifier.bias": "cls_layer.bias"}
    for m, widths in enumerate(network.widths.dilated):
        present = [n for n, width in enumerate(widths) if width]
        theirs = f"oct_fuse.ms.convs.{m}"
        names |= {f"dilated.{m}.convs.{i}.weight": f"{theirs}.msconv.{n}.weight" for i, n in enumerate(present)}
        names |= {f"dilated.{m}.norm.{key}": f"{theirs}.bn.{key}" for key in NORM_KEYS}
        names[f"dilated.{m}.act.weight"] = f"{theirs}.prelu.weight"
    tensors = {}
    for name, value in network.state_dict().items():
        hundredth = ".convs." in name
        tensors[names[name]] = value / 100 if hundredth else value
    return tensors


NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def scaled_names(ours, theirs, maps):
    names = {f"{ours}.acts.{m}.weight": f"{theirs}.prelus.{m}.weight" for m in range(maps)}
    return names | {f"{ours}.norms.{m}.{key}": f"{theirs}.bns.{m}.{key}" for m in range(maps) for key in NORM_KEYS}


def test_published_layout_is_read(tmp_path):
    network = surgery.create("csnet", widths=NARROW).eval()
    path = tmp_path / "csnet.pth.tar"
    torch.save({"epoch": 1, "arch": "csnet", "state_dict": published_form(network)}, path)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load_published_csnet(path)(x), network(x))


def test_files_that_are_no_published_csnet(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_published_csnet(tmp_path / "none.pth.tar")
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match="no published CSNet"):
        load_published_csnet(tmp_path / "linear.pth")
    torch.save({"state_dict": nn.Linear(2, 2)}, tmp_path / "module.pth")  # which would have to be unpickled
    with pytest.raises(CheckpointError, match="no file of tensors alone"):
        load_published_csnet(tmp_path / "module.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="no file of tensors alone"):
        load_published_csnet(tmp_path / "text.pth")


@pytest.mark.parametrize(
    "tensors",
    [
        {"stage0.0.conv1x1.bns.0.weight": torch.tensor(1.0)},
        {1: torch.ones(2)},
        {"stage0.0.conv1x1.bns.0.weight": torch.ones(1).expand(2**17)},
    ],
)
def test_tensors_of_no_network(tensors, tmp_path):
    torch.save({"state_dict": tensors}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match="wrong.pth"):
        load_published_csnet(tmp_path / "wrong.pth")


def test_widths_that_no_tensor_has_allocate_nothing(tmp_path):
    tensors = published_form(surgery.create("csnet", widths=NARROW))
    wide = {k: torch.ones(2**16) if k.startswith("stage0.0.conv1x1.bns.") else t for k, t in tensors.items()}
    torch.save({"state_dict": wide}, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match="its tensors are not those of a network of its widths"):
        load_published_csnet(tmp_path / "wide.pth")


@pytest.mark.parametrize("name,values,params", [("csnet-L-x1", 98_027, 93_647), ("csnet-L-x2", 146_418, 140_894)])
def test_published_weights(name, values, params):
    """The files themselves, where the data folder has them: ``SURGERY_DATA/weights/csnet-L-x1.pth.tar``."""
    path = Path(os.environ.get("SURGERY_DATA", "")) / "weights" / f"{name}.pth.tar"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    network = load_published_csnet(path)
    assert sum(t.numel() for t in network.state_dict().values()) == values
    assert sum(p.numel() for p in network.parameters()) == params
