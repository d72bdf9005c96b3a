import copy
import itertools
import json
import os
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.core import extras
from surgery.core.errors import ExportError, MissingPackageError, TraceError
from surgery.core.surgery_layer import SurgeryLayer
from surgery.deploy import export as exporting
from surgery.deploy import formats
from surgery.deploy.checking import TOLERANCE
from surgery.methods.pix.layer import PiX
from surgery.methods.pix.lowering import ComposedPiX
from surgery.methods.pix.ops import reference
from surgery.vision.preprocessing import Preprocessing
from tests.small_models import LooksAtValues, Net

SIZE = (3, 16, 16)
REDUCTIONS = [("max+avg", "threshold"), ("max+avg", "weighted"), ("max", "threshold"), ("avg", "threshold")]
REDUCTIONS += [("min", "threshold")]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return surgery.convert(Net("module", "functional"), input_size=SIZE).eval()


class EveryPiX(nn.Module):
    """One layer of each kind beside one another, so that one export tests them all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList()
        for widths, (operator, fusion), grouping in itertools.product((4, 5), REDUCTIONS, ("contiguous", "strided")):
            self.layers.append(PiX(16, widths, operator=operator, fusion=fusion, grouping=grouping))
        self.layers.append(PiX(16, 16, activation="tanh"))
        self.layers.append(PiX(16, 1, tau=1, bias=False))
        self.layers.append(PiX(16, 4, tau=0, stride=(2, 2), predictor_norm=True))
        self.layers.append(PiX(16, 4, grouping="strided", stride=(2, 1), input_norm=True))
        self.layers.append(PiX(16, 4, standardize=(1e-5, 0.5), activation="tanh", predictor_norm=True))
        self.layers.append(self.layers[0])
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x):
        x = self.stem(x)
        return [layer(x) for layer in self.layers]


class FixedSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 16 * 16, 5)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {"image": x.numpy()})]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet50", "regnety_002"])
def test_real_networks_as_onnx(tmp_path, name):
    torch.manual_seed(0)
    # with the last norm of each block at zero, as timm makes ResNets, nothing that a block computes would show
    arguments = {"layers": [1, 1, 1, 1], "zero_init_last": False} if name == "resnet50" else {}
    model = surgery.convert(timm.create_model(name, **arguments), input_size=(3, 64, 64)).eval()
    surgery.export(model, tmp_path / "m.onnx", input_size=(3, 64, 64))
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert_same(run_onnx(tmp_path / "m.onnx", x), [model(x)])
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_onnx_holds_standard_operators_and_named_dimensions_only(model, tmp_path):
    surgery.export(model, tmp_path / "m.onnx", input_size=SIZE)
    written = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert {node.domain for node in written.graph.node} == {""}
    assert [entry.domain for entry in written.opset_import] == [""]
    assert not written.functions
    shape = written.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, "height", "width"]
    assert os.fsencode(os.path.dirname(surgery.__file__)) not in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_every_variant(tmp_path, name):
    torch.manual_seed(1)
    model = EveryPiX().eval()
    path = tmp_path / name
    surgery.export(model, path, format="onnx" if name == "m.onnx" else "torch-export", input_size=(3, 9, 7))
    x = torch.randn(2, 3, 8, 11)
    run = formats.FORMATS["onnx"].load(path) if name == "m.onnx" else torch.export.load(path).module()
    with torch.no_grad():
        assert_same(run(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_variant_composed_in_other_dtypes(dtype):
    torch.manual_seed(2)
    x = torch.randn(2, 16, 5, 7).to(dtype)
    for layer in EveryPiX().eval().to(dtype).layers:
        with torch.no_grad():
            expected, found = layer(x), exporting.lowered(layer)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_sums_of_half_floats_do_not_overflow():
    x = torch.full((1, 16, 2, 2), 3e4, dtype=torch.float16)
    layer = PiX(16, 4, grouping="strided", operator="avg", tau=0).eval().half()
    assert exporting.lowered(layer)(x).isfinite().all()


def test_infinite_maps_stay_what_they_are():
    x = torch.randn(1, 16, 2, 2)
    x[:, 3] = torch.inf
    for grouping in ("contiguous", "strided"):
        layer = PiX(16, 4, grouping=grouping).eval()
        p = torch.rand(1, 4, 1, 1)
        composed = ComposedPiX(layer)
        composed._predict = lambda x, p=p: p
        expected = reference.fuse(x, p.flatten(1), reference.SiteSpec(grouping=grouping))
        torch.testing.assert_close(composed(x), expected)


def test_a_program_runs_without_surgery(model, tmp_path):
    surgery.export(model, tmp_path / "m.pt2", format="torch-export", input_size=SIZE)
    x = torch.randn(2, *SIZE)
    torch.save(x, tmp_path / "x.pt")
    program = (
        "import sys; sys.modules['surgery'] = None\n"
        "import torch\n"
        "program = torch.export.load('m.pt2')\n"
        "names = {str(n.target).split('.')[0] for n in program.graph.nodes if n.op == 'call_function'}\n"
        "assert not any('surgery' in str(n.target) for n in program.graph.nodes), names\n"
        "torch.save(program.module()(torch.load('x.pt', weights_only=True)), 'y.pt')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    with torch.no_grad():
        assert_same([torch.load(tmp_path / "y.pt", weights_only=True)], [model(x)])


def test_a_compiled_package(model, tmp_path):
    surgery.export(model, tmp_path / "m.pt2", format="aotinductor", input_size=SIZE)
    x = torch.randn(5, *SIZE)
    with torch.no_grad():
        assert_same([torch._inductor.aoti_load_package(str(tmp_path / "m.pt2"))(x)], [model(x)])


def test_the_model_stays_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = surgery.convert(Net("module"), input_size=SIZE).train()
    model.fc.bias.requires_grad_(False)
    kinds = [type(module) for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    surgery.export(torch.compile(model), tmp_path / "m.pt2", format="torch-export", input_size=SIZE)
    assert all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == kinds
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["fc.bias"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_that_computes_something_else_is_not_kept(model, tmp_path, monkeypatch):
    path = tmp_path / "m.pt2"
    path.write_bytes(b"the file before")
    form = formats.FORMATS["torch-export"]
    wrong = formats.Format(form.suffix, form.write, lambda file: lambda x: [form.load(file)(x)[0] + 0.25])
    monkeypatch.setitem(formats.FORMATS, "torch-export", wrong)
    with pytest.raises(ExportError, match=r"differ from the model's by up to 0\.25, where the model's go up to"):
        surgery.export(model, path, format="torch-export", input_size=SIZE)
    assert path.read_bytes() == b"the file before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


def test_a_rewrite_that_is_wrong_is_found(model, tmp_path, monkeypatch):
    """Max in place of mean in every layer: the smallest mistake that a formulation can make."""
    monkeypatch.setattr(ComposedPiX, "_total", ComposedPiX._extreme)
    with pytest.raises(ExportError, match="differ from the model's"):
        surgery.export(model, tmp_path / "m.pt2", format="torch-export", input_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_model_of_one_image_size(tmp_path):
    with pytest.warns(
        UserWarning, match=r"fixed in this export of FixedSize .* takes images \(batch, 3, 16, 16\) only"
    ):
        surgery.export(FixedSize(), tmp_path / "m.onnx", input_size=SIZE)
    assert run_onnx(tmp_path / "m.onnx", torch.randn(4, *SIZE))[0].shape == (4, 5)
    with pytest.raises(
        ExportError, match=r"FixedSize cannot be exported to torch-export for images \(batch, 3, height"
    ):
        surgery.export(FixedSize(), tmp_path / "m.pt2", format="torch-export", input_size=SIZE, dynamic_size=True)


def test_a_fixed_batch(model, tmp_path):
    surgery.export(model, tmp_path / "m.onnx", input_size=SIZE, batch_size=1, dynamic_size=False, opset=21)
    written = onnx.load(tmp_path / "m.onnx")
    assert [dim.dim_value for dim in written.graph.input[0].type.tensor_type.shape.dim] == [1, *SIZE]
    assert written.opset_import[0].version == 21


def test_outputs_of_several_tensors_in_half_precision(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", features_only=True, zero_init_last=False).eval().half()
    surgery.export(model, tmp_path / "m.onnx", input_size=(3, 32, 32))
    found = run_onnx(tmp_path / "m.onnx", torch.randn(1, 3, 32, 32).half())
    assert [array.dtype for array in found] == [torch.float16] * 5


def test_what_the_runtime_cannot_do_is_said_in_one_line(model, tmp_path):
    import copy

    with pytest.raises(ExportError, match=r"Net cannot be exported to onnx for images .*NotImplemented") as raised:
        surgery.export(copy.deepcopy(model).double(), tmp_path / "m.onnx", input_size=SIZE)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None
    assert not list(tmp_path.iterdir())


def test_a_forward_that_looks_at_values_cannot_be_exported(tmp_path):
    with pytest.raises(ExportError, match="LooksAtValues cannot be exported to torch-export") as raised:
        surgery.export(LooksAtValues(), tmp_path / "m.pt2", format="torch-export", input_size=SIZE)
    assert "\n" not in str(raised.value)


def test_a_model_whose_outputs_are_not_finite(model, tmp_path):
    import copy

    broken = copy.deepcopy(model)
    nn.init.constant_(broken.fc.bias, torch.nan)
    with pytest.raises(ExportError, match="not finite"):
        surgery.export(broken, tmp_path / "m.pt2", format="torch-export", input_size=SIZE)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("m.tflite", {}, ValueError, r"'.*m\.tflite' names no format: one of \.onnx \(onnx\)"),
        ("m.pt2", {}, ValueError, "pass format='torch-export' or 'aotinductor'"),
        ("m.onnx", {"format": "onxx"}, ValueError, "format='onxx'.*did you mean 'onnx'"),
        ("m.onnx", {"format": "aotinductor"}, ValueError, r"a file of format 'aotinductor' ends in \.pt2"),
        ("m.onnx", {"batch_size": 0}, ValueError, "batch_size=0: a whole number >= 1"),
        ("m.onnx", {"batch_size": True}, ValueError, "batch_size=True: a whole number >= 1"),
        ("m.onnx", {"opset": 9}, ValueError, "opset=9: a whole number >= 18"),
        ("m.onnx", {"dynamic_size": "yes"}, ValueError, "dynamic_size='yes': True, False or None"),
        ("m.pt2", {"format": "torch-export", "opset": 20}, ValueError, "opset=20 belongs to format 'onnx'"),
        ("m.onnx", {"input_size": (3, 0)}, ValueError, r"input_size=\(3, 0\): a side in pixels"),
        ("m.onnx", {"input_size": (4, 16, 16)}, TraceError, "fails on an input of shape"),
        ("no/m.onnx", {}, FileNotFoundError, "there is no folder"),
        ("folder.onnx", {}, IsADirectoryError, "is a folder"),
    ],
)
def test_bad_input(model, tmp_path, name, arguments, error, message):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(error, match=message):
        surgery.export(model, tmp_path / name, **{"input_size": SIZE} | arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.onnx"]


def test_what_is_no_model_with_weights(tmp_path):
    with pytest.raises(TypeError, match="model is a dict"):
        surgery.export({}, tmp_path / "m.onnx")
    with torch.device("meta"), pytest.raises(ValueError, match="meta device"):
        surgery.export(timm.create_model("resnet18"), tmp_path / "m.onnx")


def test_a_missing_package_is_named_with_what_installs_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(MissingPackageError, match=r"needs onnxscript: pip install 'surgery\[export\]'"):
        surgery.export(model, tmp_path / "m.onnx")


def test_a_model_that_cannot_be_copied(tmp_path):
    model = Net("module")
    model.kept = model.fc.weight * 2
    with pytest.raises(ExportError, match="Net cannot be copied"):
        surgery.export(model, tmp_path / "m.onnx", input_size=SIZE)


def test_a_reason_is_one_short_line():
    error = RuntimeError("wrapped\nadvice")
    error.__cause__ = ValueError("\n  the cause itself " + "x" * 30 + " long" * 100 + "\nmore")
    text = exporting._reason(error)
    assert text.startswith("ValueError: the cause itself")
    assert len(text) < 200


def test_of_the_command_line(tmp_path, capsys):
    from surgery.__main__ import main

    path = str(tmp_path / "m.onnx")
    assert main(["export", "resnet10t", "--out", path, "--input-size", "3,32,32"]) == 0
    assert "checked against the model" in capsys.readouterr().out
    assert run_onnx(path, torch.randn(1, 3, 32, 32))[0].isfinite().all()
    assert main(["export", "resnet10t", "--out", path, "--format", "pt"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("surgery: format='pt'")


def names_and_metadata(model, path, **options):
    surgery.export(model, path, input_size=SIZE, dynamic_size=False, progress=False, **options)
    session = onnxruntime.InferenceSession(str(path))
    meta = session.get_modelmeta().custom_metadata_map
    return [value.name for value in session.get_outputs()], {key: json.loads(value) for key, value in meta.items()}


def test_onnx_names_its_output_and_says_how_images_are_prepared(model, tmp_path):
    file, path = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    known = Preprocessing((3, 16, 16), (0.1, 0.2, 0.3), (0.5,) * 3, classes=("cat", "dög"))
    small = surgery.create("test_resnet", num_classes=2)
    surgery.save(small, file, preprocessing=known)
    names, metadata = names_and_metadata(surgery.load(file), path)
    assert names == ["output"]
    assert metadata == {
        "size": [3, 16, 16],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "classes": ["cat", "dög"],
    }
    assert names_and_metadata(model, path) == (["output"], {})
    assert names_and_metadata(small, path)[1]["mean"] == list(small.pretrained_cfg["mean"])


class Outputs(nn.Module):
    """The same logits, held in something."""

    def __init__(self, net, hold):
        super().__init__()
        self.net, self.hold = net, hold

    def forward(self, x):
        return self.hold(self.net(x))


@pytest.mark.parametrize(
    ("hold", "names"),
    [
        (lambda y: {"logits": y, "image": 2 * y, "count": 3}, ["logits", "image_"]),
        (lambda y: (y, [2 * y, None]), ["output_0", "output_1_0"]),
    ],
)
def test_onnx_names_outputs_by_what_holds_them(model, tmp_path, hold, names):
    assert names_and_metadata(Outputs(model, hold), tmp_path / "m.onnx")[0] == names


def test_float64_in_onnx_says_what_to_do(model, tmp_path):
    with pytest.raises(ExportError, match=r"no convolution in float64: export model.float\(\), or to format"):
        surgery.export(copy.deepcopy(model).double(), tmp_path / "m.onnx", input_size=SIZE, dynamic_size=False)


def test_steps_are_shown(model, tmp_path, capsys):
    surgery.export(model, tmp_path / "m.pt2", format="torch-export", input_size=SIZE, dynamic_size=False)
    shown = capsys.readouterr().err
    assert all(f"exporting to torch-export: {step}" in shown for step in ("tracing", "writing", "comparing"))
    surgery.export(
        model, tmp_path / "m.pt2", format="torch-export", input_size=SIZE, dynamic_size=False, progress=False
    )
    assert "exporting" not in capsys.readouterr().err


class Looked(SurgeryLayer):
    """A method's layer, whose forward no exporter can take: its path depends on values."""

    opaque = False

    def forward(self, x):
        return 2 * x if x.sum() == x.sum() else x

    def lowered(self):
        return Plain()


class Plain(nn.Module):
    def forward(self, x):
        return x + x


def test_a_layer_of_a_method_is_exported_as_it_says(tmp_path):
    shared = Looked()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 4, 1), shared).eval()
    surgery.export(model, tmp_path / "m.pt2", format="torch-export", input_size=SIZE, dynamic_size=False)
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(x), model(x))
    assert model[1] is model[3] is shared
    plain = exporting.lowered(copy.deepcopy(model))
    assert type(plain[1]) is Plain
    assert plain[1] is plain[3]
