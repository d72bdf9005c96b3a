"""What a job draws."""

import matplotlib.figure
import pytest

from surgery.planning.cost import Cost
from surgery.training import load_recipe, outcome
from surgery.training.outcome import COLOURS, Outcome, plot_curves
from tests.training.test_recipe import RECIPES


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The axes of a plot of two seeds with a control."""
    figures = []
    monkeypatch.setattr(outcome, "write_figure", lambda path, figure: figures.append(figure))
    result = Outcome("top-1 accuracy")
    stages = ("original", 98.0), ("after surgery", 10.0), ("after calibration", 96.0), ("after calibration", 97.0)
    for stage, accuracy in (*stages, ("after fine-tuning", 98.0)):
        result.add(stage, accuracy, Cost(1, 2, 3, 4, (), (3, 32, 32)))
    result.add_curve("original", [{"epoch": n, "accuracy": 90.0 + n} for n in (1, 2, 3)])
    for name, before in (("converted", 96.0), ("converted", 97.0), ("control", 98.0), ("control", 98.0)):
        result.add_curve(name, [{"epoch": n, "accuracy": before + n / 10} for n in (1, 2)])
    plot_curves(tmp_path / "curve.png", result, "resnet on digits")
    (figure,) = figures
    assert isinstance(figure, matplotlib.figure.Figure)
    return figure.axes[0]


def line(axes, label):
    (matching,) = (artist for artist in axes.lines if artist.get_label() == label)
    return matching


def test_a_fine_tuning_begins_with_epoch_0(drawn):
    converted, control, original = (line(drawn, name) for name in ("converted", "control", "original"))
    assert list(converted.get_xdata()) == list(control.get_xdata()) == [0, 1, 2]
    assert converted.get_ydata()[0] == 96.5  # after calibration, the mean of two seeds
    assert control.get_ydata()[0] == 98.0
    assert list(original.get_xdata()) == [1, 2, 3]


def test_each_network_has_one_colour_and_lines_that_of_theirs(drawn):
    colours = {str(artist.get_label()): artist.get_color() for artist in drawn.lines}
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert colours["converted"] == COLOURS["converted"]
    assert colours["control"] == COLOURS["control"]
    assert colours["original"] == colours["original: 98.00 %"] == COLOURS["original"]
    assert colours["after surgery: 10.00 %"] == colours["after calibration: 96.50 ± 0.71 %"] == COLOURS["converted"]
    assert drawn.get_title() == "resnet on digits"


def test_the_title_names_model_dataset_and_conversion():
    (path,) = (path for path in RECIPES if path.stem == "quickstart")
    assert load_recipe(path).title == "timm/resnet26 on digits, converted to pix, zeta = 4"
    assert load_recipe(path, ["surgery.zeta=null"]).title == "timm/resnet26 on digits, converted to pix"
    pruned = ["surgery.method=l1", "surgery.zeta=null", "surgery.options={macs: 0.7}"]
    assert load_recipe(path, pruned).title == "timm/resnet26 on digits, converted to l1, macs = 0.7"
