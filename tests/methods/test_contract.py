"""What every method must be able to do, with its smallest settings; also one that only tests define."""

import copy
import pickle
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from torch.nn import functional as F

import surgery
from surgery.bench.networks import with_free_sites
from surgery.core.errors import ConversionWarning
from surgery.graph import record
from surgery.graph.operation_cost import graph_cost
from surgery.planning.registry import methods
from surgery.planning.rehearsal import rehearsed_graph
from surgery.planning.sites import spatial_sites
from surgery.training.block_distillation import BlockDistillationTask, distilled_blocks
from surgery.training.recipe import TrainSettings
from surgery.transforms.history import changed_modules, history
from tests.methods import centre_tap

SIZE = (3, 32, 32)


def images(count=24, seed=0):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def labelled_images():
    return [(batch, torch.arange(len(batch)) % 5) for batch in images().split(8)]


@dataclass
class Case:
    """A method with its smallest settings."""

    method: str
    options: dict = field(default_factory=dict)

    def __str__(self):
        return self.method

    @property
    def arguments(self):
        evidence = {"images": images().split(8), "labelled images": labelled_images()}
        needed = methods()[self.method].evidence
        images_argument = {"images": evidence[needed]} if needed in evidence else {}
        return {"method": self.method, "input_size": SIZE, **images_argument, **self.options}


SETTINGS = {
    "auto": {"macs": 0.8, "finalists": 1, "methods": ["pix", "reconstruction"]},
    "cbam": {},
    "fbs": {"density": 0.75},
    "fbs-squeeze": {},
    "octave": {},
    "pix": {},
    "se": {},
    "squeeze-conv": {"zeta": 2},
    "dwp": {},
    "gamma": {"macs": 0.6},
    "l1": {"macs": 0.6},
    "random": {"macs": 0.6},
    "reconstruction": {"macs": 0.8},
    "sfvr": {"macs": 0.6},
    "taylor": {"macs": 0.6},
    centre_tap.CentreTapMethod.name: {},
}
CASES = [Case(name, options) for name, options in SETTINGS.items()]


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = surgery.create("cifar_resnet", num_classes=5, layers=[1, 2, 1, 1], channels=[8, 12, 16, 16])
    with torch.no_grad():  # as if it were trained: branches that add something, statistics of their own
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
        for _ in range(20):
            model.train()(images(32, seed=3))
    return model.eval()


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def converted(original, case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        return surgery.convert(original, strict=True, **case.arguments).eval()


def test_every_method_has_a_case():
    assert set(SETTINGS) == set(methods())


def test_a_plan_says_what_happens_where(original, case):
    plan = surgery.plan(original, **case.arguments)
    assert plan.sites
    text = str(plan)
    assert case.method in text
    for row in plan.sites:
        assert row.site in text
        original.get_submodule(row.site)
    assert plan._repr_html_()


def test_what_was_reviewed_is_what_is_done(original, case, converted):
    plan = surgery.plan(original, **case.arguments)
    applied = plan.apply(copy.deepcopy(original))
    assert [done.to_json() for done in history(applied)] == [done.to_json() for done in plan.transforms]
    assert history(applied) == history(converted)
    with torch.no_grad():
        torch.testing.assert_close(applied(images()), converted(images()))


def test_a_config_object_stands_for_name_and_options(original, case):
    config = methods()[case.method].Config(**case.options)
    arguments = {name: value for name, value in case.arguments.items() if name not in (*case.options, "method")}
    assert surgery.plan(original, config, **arguments).transforms == surgery.plan(original, **case.arguments).transforms


def test_the_cost_is_what_the_rehearsal_said(original, case, converted):
    plan = surgery.plan(original, **case.arguments)
    predicted = graph_cost(rehearsed_graph(record(original, SIZE), plan.decisions))
    assert graph_cost(record(converted, SIZE)) == predicted
    assert surgery.cost(converted, SIZE).macs == predicted.macs


def test_it_says_which_modules_changed(original, converted):
    assert changed_modules(original) == ()
    changed = changed_modules(converted)
    assert changed
    assert all(converted.get_submodule(name) is not None for name in changed)


def test_it_learns(converted):
    model = copy.deepcopy(converted).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, labels = images(), torch.arange(24) % 5
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_calibration_brings_it_nearer(original, case, converted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        calibrated = surgery.convert(original, strict=True, calibrate=images(96), match=False, **case.arguments).eval()
    unseen = images(64, seed=9)
    with torch.no_grad():
        before, after = (F.mse_loss(model(unseen), original(unseen)) for model in (converted, calibrated))
    assert after < before or (before < 1e-12 and after < 1e-3)  # what is inserted may be the identity at first


def test_calibrating_later_knows_what_changed(original, converted):
    model = copy.deepcopy(converted)
    report = surgery.calibrate(model, original, images(48), progress=False)
    assert report.rows


def test_blocks_are_distilled(original, case, converted):
    student, teacher = copy.deepcopy(converted), copy.deepcopy(original)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        blocks = distilled_blocks(TrainSettings(block_weight=3.0), student, teacher, SIZE, torch.device("cpu"))
    narrowed = all(row.verb == "narrowed" for row in surgery.plan(original, **case.arguments).sites)
    assert blocks or (narrowed and "no blocks are distilled" in str(caught[-1].message))
    options = {"criterion": torch.nn.CrossEntropyLoss(), "task_loss_weight": 0.5, "distill_loss_weight": 0.5}
    task = BlockDistillationTask(student, teacher, blocks=blocks, block_weight=3.0, verbose=False, **options).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        result = task(images(), torch.arange(24) % 5)
        assert ("block_loss" in result) == bool(blocks)
        losses.append(result["loss"].item())
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
    assert losses[1] < losses[0]


def test_a_file_brings_it_back(original, converted, tmp_path):
    surgery.save(converted, tmp_path / "m.safetensors", input_size=SIZE)
    loaded = surgery.load(tmp_path / "m.safetensors")
    assert history(loaded) == history(converted)
    with torch.no_grad():
        assert torch.equal(loaded(images()), converted(images()))


def test_further_surgery_goes_on_top(converted, case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        further = {"method": "squeeze-conv", "zeta": 2, "insert": "*conv2*"}
        if not spatial_sites(record(converted, SIZE))[0]:  # all of them have become layers of the method
            further = {"method": "l1", "macs": 0.9} if case.method == "octave" else {"method": "se"}
        twice = surgery.convert(converted, strict=True, input_size=SIZE, **further).eval()
    assert len(history(twice)) > len(history(converted))
    surgery.save(twice, tmp_path / "twice.safetensors", input_size=SIZE)
    with torch.no_grad():
        assert torch.equal(surgery.load(tmp_path / "twice.safetensors")(images(2)), twice(images(2)))


def test_it_is_exported(converted, tmp_path):
    surgery.export(converted, tmp_path / "m.onnx", input_size=SIZE, dynamic_size=False, progress=False)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    name = session.get_inputs()[0].name
    for count in (1, 3):
        with torch.no_grad():
            expected = converted(images(count))
        logits = torch.from_numpy(session.run(None, {name: images(count).numpy()})[0])
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_it_is_traced_whole(converted):
    compiled = torch.compile(copy.deepcopy(converted), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(2)), converted(images(2)), rtol=1e-3, atol=1e-4)


def test_it_is_prepared_for_inference(converted):
    folded = surgery.optimize_for_inference(converted, input_size=SIZE)
    with torch.no_grad():
        torch.testing.assert_close(folded(images(2)), converted(images(2)), rtol=1e-3, atol=1e-3)


def test_the_floor_of_bench_is_the_network_with_its_sites_for_free(converted):
    free = with_free_sites(converted, images(2))
    if free is not None:
        with torch.no_grad():
            assert free(images(2)).shape == (2, 5)


def test_copies_and_pickles_are_the_same_network(converted):
    for again in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert history(again) == history(converted)
        with torch.no_grad():
            assert torch.equal(again(images(2)), converted(images(2)))


def test_the_original_is_left_alone(original, case):
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    surgery.convert(original, **case.arguments)
    assert not history(original)
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())


def test_an_unknown_option_is_named(original, case):
    with pytest.raises(ValueError, match=f"option of method '{case.method}'='unheard_of'"):
        surgery.plan(original, case.method, unheard_of=1)
