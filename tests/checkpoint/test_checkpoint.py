import copy
import json
import os
import resource
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.checkpoint.model_file import _digest
from surgery.core.errors import CheckpointError, SourceError
from surgery.planning.registry import method_named
from surgery.transforms.history import history, remember
from surgery.transforms.reorder import Reorder
from tests.checkpoint.load_fuzzing import guard
from tests.small_models import LooksAtValues, Net

SIZE = (3, 8, 8)


@surgery.register_builder("tests_net")
def small_net(count=1):
    return Net(*["module"] * count)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return surgery.convert(small_net(2), input_size=SIZE).eval()


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "m.safetensors"
    surgery.save(model, path, source="tests_net", kwargs={"count": 2}, input_size=SIZE)
    return path


def rewrite(path, **changes):
    """The file again with its manifest changed and its digest made right."""
    with safetensors.safe_open(path, framework="pt") as opened:
        manifest = json.loads(opened.metadata()["surgery"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors |= changes.pop("tensors", {})
    for name in changes.pop("without", []):
        tensors.pop(name)
    text = json.dumps(manifest | changes, sort_keys=True)
    digest = _digest(text, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"surgery": text, "sha256": digest}))


def test_round_trip_is_exact(model, file):
    loaded = surgery.load(file)
    x = torch.randn(3, *SIZE)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    assert history(loaded) == history(model)
    assert history(model)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_equal_models_give_equal_bytes(model, file, tmp_path):
    for number in range(8):  # safetensors' own order of three pieces of metadata would agree by chance at times
        path = tmp_path / f"{number}.safetensors"
        surgery.save(model, path, source="tests_net", kwargs={"count": 2}, input_size=SIZE)
        assert path.read_bytes() == file.read_bytes()


def test_a_loaded_model_saves_and_converts_again(file, tmp_path):
    loaded = surgery.load(file)
    surgery.save(loaded, tmp_path / "again.safetensors", input_size=SIZE)
    again = surgery.convert(surgery.load(tmp_path / "again.safetensors"), mode="prune", input_size=SIZE)
    surgery.save(again, tmp_path / "third.safetensors", input_size=SIZE)
    x = torch.randn(1, *SIZE)
    assert torch.equal(surgery.load(tmp_path / "third.safetensors")(x), again.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(model, tmp_path, dtype):
    surgery.save(
        copy.deepcopy(model).to(dtype), tmp_path / "m", source="tests_net", kwargs={"count": 2}, input_size=SIZE
    )
    assert surgery.load(tmp_path / "m").fc.weight.dtype == dtype


def test_trained_weights_of_wrapped_models(model, tmp_path):
    compiled = torch.compile(model)
    surgery.save(compiled, tmp_path / "m", source="tests_net", kwargs={"count": 2}, input_size=SIZE)
    assert torch.equal(surgery.load(tmp_path / "m").fc.weight, model.fc.weight)


def test_timm_model_is_inferred_with_its_classes_and_channels(tmp_path):
    model = timm.create_model("resnet26", num_classes=3, in_chans=1, drop_path_rate=0.1)
    surgery.save(model, tmp_path / "m")
    assert surgery.load(tmp_path / "m").conv1.in_channels == 1


def test_a_model_made_with_unknown_arguments_is_refused_until_they_are_given(tmp_path):
    model = timm.create_model("resnet26", output_stride=8)
    with pytest.raises(SourceError, match=r"rebuilding gives another network.*Pass source="):
        surgery.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    surgery.save(model, tmp_path / "m", source="timm/resnet26", kwargs={"output_stride": 8})
    assert surgery.load(tmp_path / "m").layer4[1].conv2.dilation == (4, 4)


def test_unknown_origin_says_what_to_pass(tmp_path):
    with pytest.raises(SourceError, match="register_builder"):
        surgery.save(Net("module"), tmp_path / "m", input_size=SIZE)


def test_arguments_that_are_not_json_are_refused(model, tmp_path):
    with pytest.raises(SourceError, match="cannot be written as JSON"):
        surgery.save(model, tmp_path / "m", source="tests_net", kwargs={"count": nn.ReLU})


def test_tied_weights_come_back_tied_in_value(tmp_path):
    @surgery.register_builder("tied_net")
    def tied_net():
        net = Net("module", "module")
        net.blocks[1].conv3.weight = net.blocks[0].conv3.weight
        return net

    model = tied_net().eval()
    surgery.save(model, tmp_path / "m", source="tied_net", input_size=SIZE)
    x = torch.randn(1, *SIZE)
    assert torch.equal(surgery.load(tmp_path / "m")(x), model(x))


def test_a_model_whose_forward_looks_at_values(tmp_path):
    surgery.register_builder("tests_values")(LooksAtValues)
    model = surgery.convert(LooksAtValues(), input_size=SIZE).eval()
    surgery.save(model, tmp_path / "m", source="tests_values", input_size=SIZE)
    x = torch.randn(1, *SIZE)
    assert torch.equal(surgery.load(tmp_path / "m")(x), model(x))


def test_non_persistent_buffers_are_made_again(tmp_path):
    model = timm.create_model("resnetblur50", num_classes=2).eval()
    surgery.save(surgery.convert(model, zeta=4), tmp_path / "m")
    loaded = surgery.load(tmp_path / "m")
    assert not any(t.is_meta for t in (*loaded.buffers(), *loaded.parameters()))
    assert loaded(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.99])
def test_cut_file(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        surgery.load(file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_anywhere(file, share, bit):
    whole = bytearray(file.read_bytes())
    damaged = whole.copy()
    damaged[int(share * len(whole))] ^= 1 << bit
    target = file.with_name("damaged")
    target.write_bytes(damaged)
    try:
        loaded = surgery.load(target)
    except CheckpointError:
        return
    # harmless places (such as the unused "format" entry) may still load, and then to the very same weights
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in surgery.load(file).state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema 3; this version reads up to 2: upgrade"),
        ({"schema": "one"}, "schema='one': a number from 1 to 2"),
        ({"schema": 1}, "manifest of schema 1 has"),
        ({"transforms": "none"}, "manifest transforms: it is 'none'; a list of transforms"),
        ({"edits": []}, "manifest of schema 2 has"),
        ({"extra": 1}, "manifest of schema 2 has"),
        ({"source": {"builder": "nobody", "name": "", "kwargs": {}}}, "'nobody' is not registered here"),
        ({"source": {"builder": "timm", "name": "resnet18", "kwargs": {"pretrained": True}}}, "never downloads"),
        ({"source": {"builder": "timm", "name": "resnet0", "kwargs": {}}}, "cannot be rebuilt"),
        ({"source": {"builder": "tests_net", "name": "", "kwargs": {"count": 1}}}, "no module 'blocks.1.conv1'"),
        ({"transforms": []}, "does not fit its model: lacks"),
        ({"transforms": [{"type": "replace@1"}]}, r"replace@1 has the keys \[\]"),
        ({"tensors": {"fc.bias": torch.zeros(6)}}, r"'fc.bias' has shape \(6,\), \(5,\) is needed"),
        ({"tensors": {"fc.bias": torch.zeros(5, dtype=torch.int64)}}, "'fc.bias' is torch.int64"),
        ({"without": ["fc.bias"]}, "lacks \\['fc.bias'\\]"),
        ({"tensors": {"more": torch.zeros(1)}}, "has besides \\['more'\\]"),
    ],
)
def test_manifests_and_tensors_that_do_not_fit(file, changes, message):
    rewrite(file, **changes)
    with pytest.raises(CheckpointError, match=message):
        surgery.load(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"type": "unheard@1"}, "type 'unheard@1' is not registered here"), ({"layer": "unheard"}, "layer='unheard'")],
)
def test_unknown_transforms_and_layers(file, changes, message):
    transforms = [transform.to_json() for transform in history(surgery.load(file))]
    rewrite(file, transforms=[transforms[0] | changes, *transforms[1:]])
    with pytest.raises(CheckpointError, match=message):
        surgery.load(file)


def test_read_gives_the_manifest_and_every_tensor(model, file):
    manifest, tensors = surgery.checkpoint.read(file)
    assert manifest["schema"] == 2
    assert manifest["source"] == {"builder": "tests_net", "name": "", "kwargs": {"count": 2}}
    assert manifest["transforms"] == [transform.to_json() for transform in history(model)]
    assert tensors.keys() == model.state_dict().keys()


def test_a_history_that_no_file_can_hold_is_not_written(model, tmp_path):
    class Unregistered(Reorder):
        """Without a name of its own."""

    remember(broken := copy.deepcopy(model), Unregistered("0"))
    with pytest.raises(CheckpointError, match="Unregistered is not registered"):
        surgery.save(broken, tmp_path / "m", source="tests_net", kwargs={"count": 2}, input_size=SIZE)
    assert not (tmp_path / "m").exists()


def test_foreign_safetensors_file(tmp_path):
    safetensors.torch.save_file({"w": torch.zeros(2)}, str(tmp_path / "f.safetensors"))
    with pytest.raises(CheckpointError, match="without a surgery manifest"):
        surgery.load(tmp_path / "f.safetensors")


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "f.pt")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        surgery.load(tmp_path / "f.pt")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        surgery.load(tmp_path / "nothing.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        surgery.load(tmp_path)


def test_paths_that_cannot_be_written(model, tmp_path):
    arguments = {"source": "tests_net", "kwargs": {"count": 2}, "input_size": SIZE}
    with pytest.raises(FileNotFoundError, match="cannot write"):
        surgery.save(model, tmp_path / "no" / "m.safetensors", **arguments)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        surgery.save(model, tmp_path, **arguments)
    with pytest.raises(NotADirectoryError, match="cannot write"):
        (tmp_path / "a_file").touch()
        surgery.save(model, tmp_path / "a_file" / "m.safetensors", **arguments)


def test_full_disk_leaves_the_old_file_whole(file):
    """A write that fails half-way, made to fail by a limit on file size in a process of its own."""
    before = file.read_bytes()
    program = (
        "import resource, signal, sys, torch, surgery, tests.checkpoint.test_checkpoint as t\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "model = surgery.load(sys.argv[1])\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    surgery.save(model, sys.argv[1], input_size=t.SIZE)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    run = subprocess.run(
        [sys.executable, "-c", program, file], capture_output=True, text=True, env=os.environ, check=True
    )
    assert "cannot write" in run.stdout
    assert "File too large" in run.stdout
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_meta_model_has_nothing_to_save(tmp_path):
    with torch.device("meta"), pytest.raises(ValueError, match="meta device"):
        surgery.save(timm.create_model("resnet18"), tmp_path / "m")


def test_methods_are_known_by_name():
    assert method_named("pix").name == "pix"
    with pytest.raises(ValueError, match="'pix', .*'squeeze-conv'"):
        method_named("pox")


def plain(builder, name="", **kwargs):
    return {"source": {"builder": builder, "name": name, "kwargs": kwargs}, "transforms": []}


def timm_model(name, **kwargs):
    return plain("timm", name, **kwargs)


REORDER = {"type": "reorder@1", "order": "0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (timm_model("hf-hub:timm/resnet18.a1_in1k"), "the name of a model that timm lists"),
        (timm_model("hf_hub:timm/resnet18"), "the name of a model that timm lists"),
        (timm_model("local-dir:/etc"), "the name of a model that timm lists"),
        (timm_model("resnet18", checkpoint_path="/etc/passwd"), "kwargs.checkpoint_path: what names weights"),
        (timm_model("resnet18", pretrained_cfg={"url": "x"}), "kwargs.pretrained_cfg: what names weights"),
        (timm_model("resnet18", pretrained_cfg_overlay={"file": "x"}), "kwargs.pretrained_cfg_overlay: what names"),
        (timm_model("resnet18", cache_dir="x"), "kwargs.cache_dir: what names weights"),
        (timm_model("resnet18", colour="red"), "unexpected keyword argument 'colour'"),
        (timm_model("resnet18", act_layer="/etc/passwd"), "names no file and no address"),
        (plain("torchvision", "resnet18", weights="DEFAULT"), "kwargs.weights: what names weights"),
        (plain("torchvision", "fcn_resnet50", weights_backbone="DEFAULT"), "kwargs.weights_backbone: what names"),
        (plain("torchvision", "fcn_resnet50"), "does not fit its model"),
        (plain("torchvision", "fasterrcnn_resnet50_fpn"), "does not fit its model"),
        (plain("pspnet", backbone="hf-hub:timm/resnet18"), "names no file and no address"),
        (plain("pspnet", backbone="resnet26", backbone_kwargs={"checkpoint_path": "w"}), "what names weights"),
        (plain("pspnet", bins=[1] * 10**5), "at most 1000 values"),
        (plain("cifar_resnet", layers=[10**9, 1, 1, 1]), "fits such a network"),
        (plain("cifar_resnet", layers=[30_000, 1, 1, 1]), "more (than a network of|parameters than the) .* tensors"),
        (timm_model("resnet26", layers=[30_000, 1, 1, 1]), "more (than a network of|parameters than the) .* tensors"),
        (timm_model("resnet26", output_stride=7), "cannot be built: AssertionError"),
        (timm_model("resnet26", layers=[]), "does not fit|cannot be built"),
        (timm_model(5), "name=5: a text is needed"),
        (plain(["timm"], "resnet18"), r"builder=\['timm'\]: a text is needed"),
        ({"transforms": [REORDER] * 100_000}, "a manifest of [0-9]* characters; at most"),
        ({"transforms": [REORDER] * 17_000}, "more than a network of .* tensors"),
        ({"transforms": [REORDER | {"more": 1}]}, "reorder@1 has the keys"),
        ({"aliases": {"fc.bias": "fc.weight"}}, "aliases: 'fc.bias' → 'fc.weight'"),
        ({"aliases": {"a": "nothing"}}, "aliases: 'a' → 'nothing'"),
        ({"aliases": {"a": ["fc.bias"]}}, "aliases: 'a' is"),
        (
            {"preprocessing": {"size": [3, 200_000, 200_000], "mean": [0.5] * 3, "std": [0.5] * 3}},
            "at most 16384 a side",
        ),
        ({"tensors": {"fc.bias": torch.zeros(5, dtype=torch.bool)}}, "'fc.bias' is torch.bool"),
        ({"tensors": {"fc.bias": torch.zeros(5, dtype=torch.complex64)}}, "'fc.bias' is torch.complex64"),
    ],
)
def test_what_a_file_asks_for_besides_its_model(file, changes, message):
    """With a digest that is right: no network is asked, no other file is opened, nothing hangs."""
    rewrite(file, **changes)
    with guard().watching(str(file)) as seen, pytest.raises(CheckpointError, match=message):
        surgery.load(file)
    assert seen == []


def test_arguments_that_are_tuples(tmp_path):
    model = timm.create_model("resnet26", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=2).eval()
    kwargs = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "num_classes": 2}
    surgery.save(model, tmp_path / "m", source="timm/resnet26", kwargs=kwargs)
    loaded = surgery.load(tmp_path / "m")
    assert loaded.surgery_source.kwargs["layers"] == [1, 1, 1, 1]
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))


@surgery.register_builder("tests_pooled")
def pooled_net(kernel=(2, 2)):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(kernel))


@pytest.mark.parametrize("kernel", [(2, 2), [2, 2]])
def test_lists_and_tuples_are_the_same_network(tmp_path, kernel):
    surgery.save(pooled_net(kernel), tmp_path / "m", source="tests_pooled", kwargs={"kernel": kernel}, input_size=SIZE)
    assert isinstance(surgery.load(tmp_path / "m"), nn.Sequential)


def test_a_file_that_load_would_refuse_is_not_written(tmp_path):
    model = timm.create_model("resnet26", layers=(1, 1, 1, 1), num_classes=2)
    with pytest.raises(SourceError, match="names weights, a file or an address"):
        surgery.save(model, tmp_path / "m", source="timm/resnet26", kwargs={"checkpoint_path": str(tmp_path / "w.pth")})
    assert not (tmp_path / "m").exists()
