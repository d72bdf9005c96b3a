"""``auto``: mixtures at a budget."""

import json
import warnings

import pytest
import torch

import surgery
from surgery.graph import record
from surgery.methods.auto import AutoConfig
from surgery.methods.planners.pruning.candidates import together
from surgery.planning.candidate import candidates_of, conflict
from surgery.planning.cost import graph_cost
from surgery.planning.evidence import Evidence
from surgery.planning.registry import methods
from surgery.planning.rehearsal import rehearsed_graph
from surgery.planning.selection import Selection

SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = surgery.create("cifar_resnet", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
        for _ in range(10):
            network.train()(images())
    return network.eval()


def images(count=32):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


def plan(model, **options):
    return surgery.plan(model, "auto", images=[images()], input_size=SIZE, **{"finalists": 1, **options})


@pytest.mark.parametrize(("budget", "share"), [("macs", 0.8), ("params", 0.7)])
def test_the_budget_is_met(model, budget, share):
    planned = plan(model, **{budget: share})
    changed = surgery.convert(model, planned, match=False)
    before, after = surgery.cost(model, SIZE), surgery.cost(changed, SIZE)
    left = getattr(after, budget) / getattr(before, budget)
    assert abs(left - share) < 0.01
    assert f"leave {left:.3f} of the {budget}" in str(planned)


def test_only_methods_that_were_named_are_mixed(model):
    (verb,) = {row.verb for row in plan(model, macs=0.85, methods="pix").sites}
    assert verb == "converted"


def test_prunings_and_replacements_are_carried_out_together(model):
    graph, selection, evidence = record(model, SIZE), Selection(), Evidence(model, [images()])
    pix, l1 = (methods()[name] for name in ("pix", "l1"))
    converted = candidates_of(pix, graph, selection, pix.Config(), evidence)
    narrowed = candidates_of(l1, graph, selection, l1.Config(keep=1.0), evidence, (0.5,))
    chosen = [converted[0]]
    for candidate in narrowed:
        if not any(conflict(candidate, other) for other in chosen):
            chosen.append(candidate)
    assert 3 < len(chosen) <= len(narrowed)
    decisions = together(graph, chosen)
    assert [decision.name for decision in decisions] == ["widths", converted[0].site]
    left = graph_cost(rehearsed_graph(graph, decisions)).macs
    assert left < min(graph_cost(rehearsed_graph(graph, [c.decision])).macs for c in chosen)


def test_the_best_of_the_finalists_is_chosen_and_the_others_are_told(model, tmp_path):
    front = tmp_path / "front.png"
    planned = plan(model, macs=0.8, finalists=4, front=str(front))
    text = str(planned)
    told = [float(line.partition("KL ")[2].partition(",")[0]) for line in text.splitlines() if "KL " in line]
    assert len(told) > 1 and told[0] == min(told)
    assert "reconstruction alone" in text
    written = json.loads(front.with_suffix(".json").read_text())
    shares = [point["share"] for point in written["front"]]
    assert shares == sorted(shares, reverse=True) and len(shares) > 5
    assert {item["name"] for item in written["carried out"]} >= {"reconstruction alone"}
    assert front.read_bytes().startswith(b"\x89PNG")


def test_single_methods_that_are_not_mixed_are_compared_too(model):
    labels = torch.arange(32) % 5
    with_labels = str(surgery.plan(model, "auto", images=[(images(), labels)], input_size=SIZE, macs=0.5))
    without = str(surgery.plan(model, "auto", images=[images()], input_size=SIZE, macs=0.5))
    for text, labelled in ((with_labels, True), (without, False)):
        assert "l1 alone" in text and "sfvr alone" in text
        assert ("taylor alone" in text) == labelled
    named = str(plan(model, macs=0.5, methods="reconstruction", finalists=7))
    assert "l1 alone" not in named


def test_a_latency_is_measured(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    text = str(plan(model, latency=0.9, threads=1, methods="reconstruction"))
    assert "of the latency, measured (predicted 0." in text


def test_it_goes_on_from_its_file(model, tmp_path):
    file = str(tmp_path / "rows.json")
    first = plan(model, macs=0.8, file=file, methods="reconstruction")
    assert str(plan(model, macs=0.8, file=file, methods="reconstruction")) == str(first)
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) > 5


def test_what_cannot_be_met_is_said(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned = plan(model, macs=0.05, methods="pix")
    assert "macs=0.05 is not met" in planned.notes[0]
    assert planned.sites


def test_images_are_needed(model):
    with pytest.raises(ValueError, match="needs images"):
        surgery.plan(model, "auto", macs=0.8)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "one of macs=0.77, latency=0.8 and params=0.7"),
        ({"macs": 0.8, "latency": 0.8}, ValueError, "macs and latency are set"),
        ({"macs": 1.5}, ValueError, "macs=1.5"),
        ({"macs": True}, TypeError, "macs=True"),
        ({"macs": 0.8, "engine": "tensorrt"}, ValueError, "engine='tensorrt'"),
        ({"macs": 0.8, "count": 5}, ValueError, "count=5"),
        ({"macs": 0.8, "round_to": 0}, ValueError, "round_to=0"),
        ({"macs": 0.8, "dtype": "int8"}, ValueError, "dtype='int8'"),
    ],
)
def test_options_that_cannot_be(options, kind, message):
    with pytest.raises(kind, match=message):
        AutoConfig(**options)


def test_a_method_that_is_none(model):
    with pytest.raises(ValueError, match="methods='pyx'.*did you mean 'pix'"):
        plan(model, macs=0.8, methods="pyx")
    with pytest.raises(ValueError, match="methods='auto'"):
        plan(model, macs=0.8, methods="auto")


def test_a_front_that_cannot_be_written_is_refused_first(model):
    with pytest.raises(ValueError, match="suffix of front"):
        plan(model, macs=0.8, front="front.txt")
    with pytest.raises(OSError, match="its folder does not exist"):
        plan(model, macs=0.8, front="/no/such/folder/front.png")
