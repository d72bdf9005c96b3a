"""``surgery.sensitivity``: what each method costs and saves at each site."""

import copy
import json

import pytest
import torch

import surgery
from surgery.core.run_setting import Setting
from surgery.sensitivity_analysis.measuring import Measurement
from surgery.sensitivity_analysis.result import Sensitivity

SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = surgery.create("cifar_resnet", num_classes=5, layers=[1, 2, 1, 1], channels=[8, 8, 12, 12])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
        for _ in range(10):
            network.train()(images())
    return network.eval()


def images(count=32):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def measured(model):
    labels = model(images()).argmax(1)
    return surgery.sensitivity(model, [(images(), labels)], ["pix", "l1", "reconstruction"], strengths=(0.75, 0.5))


def test_every_site_of_every_method_has_its_rows(model, measured):
    sites = {row.site for row in measured.rows if row.method == "pix"}
    assert sites == {row.site for row in surgery.plan(model).sites}
    for method in ("l1", "reconstruction"):
        by_site = {}
        for row in measured.rows:
            if row.method == method:
                by_site.setdefault(row.site, []).append(row.keep)
        assert by_site and all(set(keeps) <= {0.75, 0.5} for keeps in by_site.values())
    assert not measured.skipped
    assert (measured.fitted, measured.judged) == (24, 8)


def test_what_a_row_saves_is_what_the_change_saves(model, measured):
    before = surgery.cost(model, SIZE)
    for row in measured.rows:
        if row.method == "pix":
            after = surgery.cost(surgery.convert(model, include=row.site), SIZE)
        elif row.method == "l1" and row.keep == 0.5:
            after = surgery.cost(surgery.convert(model, "l1", keep={row.site: row.keep}, input_size=SIZE), SIZE)
        else:
            continue
        assert (row.macs, row.params) == (before.macs - after.macs, before.params - after.params), row


def test_more_that_goes_costs_more(measured):
    for row in measured.rows:
        assert row.kl >= 0 and 0 <= row.same <= 1 and row.error >= 0
        if row.keep == 0.75:
            half = [r for r in measured.rows if (r.method, r.site, r.keep) == (row.method, row.site, 0.5)]
            assert all(r.macs > row.macs for r in half)
    means = {keep: sum(r.error for r in measured.rows if r.keep == keep) for keep in (0.75, 0.5)}
    assert means[0.5] > means[0.75] > 0


def test_accuracy_is_told_where_there_are_labels(model, measured):
    assert measured.accuracy == 1.0  # the labels are the model's own answers
    assert all(row.accuracy == row.same for row in measured.rows)
    unlabelled = surgery.sensitivity(model, images(), "pix", include="layer4*")
    assert unlabelled.accuracy is None and all(row.accuracy is None for row in unlabelled.rows)


def test_the_model_is_left_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    surgery.sensitivity(model, images(), "dwp")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_goes_on_from_its_file(model, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    first = surgery.sensitivity(model, images(), "dwp", file=file)
    held = json.loads(file.read_text())
    file.write_text(json.dumps({**held, "rows": held["rows"][:2]}))
    rows = []
    monkeypatch.setattr(Measurement, "_row", lambda self, candidate, *_: rows.append(candidate.site))
    surgery.sensitivity(model, images(), "dwp", file=file)
    assert rows == [row.site for row in first.rows[2:]]
    with pytest.raises(ValueError, match="another network, other images"):
        surgery.sensitivity(model, images() + 1, "dwp", file=file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="holds no rows of a sensitivity"):
        surgery.sensitivity(model, images(), "dwp", file=file)


def test_time_is_measured_and_remembered(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    setting = Setting(threads=1)
    timed = surgery.sensitivity(model, images(), "dwp", setting=setting)
    again = surgery.sensitivity(model, images(), "dwp", setting=setting)
    assert [row.seconds for row in timed.rows] == [row.seconds for row in again.rows]
    assert all(isinstance(row.seconds, float) for row in timed.rows)
    assert "1 thread" in str(timed)
    (cache,) = tmp_path.iterdir()
    assert len(json.loads(cache.read_text())) == len({row.seconds for row in timed.rows})


def test_it_prints_and_is_written(measured, tmp_path):
    text = str(measured)
    assert "reconstruction 0.5" in text and "24 images and judged on 8 others" in text
    assert measured._repr_html_()
    measured.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == measured
    row = measured.rows[0]
    assert measured.row(row.method, row.site, row.keep) is row
    with pytest.raises(KeyError, match="was not measured"):
        measured.row("pix", "layer9")
    (tmp_path / "other.json").write_text('{"rows": 1}')
    with pytest.raises(ValueError, match="no sensitivity"):
        Sensitivity.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": "pyx"}, "methods?='pyx'.*did you mean 'pix'"),
        ({"images": torch.randn(4, *SIZE)}, "4 images: at least 8"),
        ({"count": 3}, "count=3"),
        ({"include": "layer9"}, "matches no site"),
        ({"methods": "taylor"}, "labels"),
    ],
)
def test_bad_input(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        surgery.sensitivity(model, arguments.pop("images", images()), **arguments)


def test_a_network_of_another_dtype_takes_the_same_images(model, measured):
    double = surgery.sensitivity(copy.deepcopy(model).double(), images(), "pix")
    for row in double.rows:
        assert row.kl == pytest.approx(measured.row("pix", row.site).kl, rel=0.2, abs=1e-3)
