"""docs/methods has a page on every method, which says what the code does; pages name files that there are."""

import ast
import dataclasses
import pkgutil
import re
from pathlib import Path

import pytest
import timm
import torch

import surgery
from surgery.planning.registry import methods
from tests.methods import centre_tap

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
OWN = {name: method for name, method in methods().items() if type(method).__module__.startswith("surgery.")}
HEADINGS = ["Equations", "What `convert` does", "Options", "Example", "Measured", "When not to use it"]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("surgery", "tests", "benchmarks", "recipes", "docs")
ROOMS = ("", "surgery", "surgery/methods", "surgery/methods/pix", "surgery/methods/pix/ops", "docs")
RECIPE_KEYS = {"surgery.options.macs"}
USERS_OWN = {"my_method.py", "nets.py"}  # files that pages speak of as the reader's


def page(name):
    return (FOLDER / f"{name}.md").read_text()


def options(text):
    """Options of a page's table: default and meaning by name."""
    section = text.partition("## Options\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \|$", section, re.MULTILINE)
    return {name: (ast.literal_eval(default), meaning) for name, default, meaning in rows}


def code_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", OWN)
def test_a_page_has_the_same_parts_as_the_others(name):
    text = page(name)
    assert text.startswith(f"# {name}: ")
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == HEADINGS
    assert f"[{name}]({name}.md)" in page("README")


@pytest.mark.parametrize("name", OWN)
def test_a_page_says_what_the_method_says_of_itself(name):
    method, text = OWN[name], page(name)
    for part, says in (
        ("needs", method.evidence),
        ("what it changes", method.changes),
        ("where it may go", method.where),
    ):
        assert f"| {part} | {says} |" in text


@pytest.mark.parametrize("name", OWN)
def test_a_page_names_every_option_with_its_default(name):
    declared = {field.name: field.default for field in dataclasses.fields(OWN[name].Config)}
    assert {option: default for option, (default, _) in options(page(name)).items()} == declared


def test_an_option_of_pruning_means_the_same_on_every_page():
    prunes = [options(page(name)) for name in OWN if "rule" in options(page(name))]
    assert len(prunes) > 1
    for option in set.intersection(*map(set, prunes)):
        assert len({table[option][1] for table in prunes}) == 1


@pytest.mark.parametrize("name", OWN)
def test_the_example_runs(name):
    [example] = code_blocks(page(name))
    assert len(example.strip().splitlines()) <= 6
    variables: dict = {}
    exec(example.replace('"resnet18"', '"test_resnet"').replace('"resnet50"', '"resnet26"'), variables)
    assert variables["model"].surgery_history


def test_the_count_of_dwp_is_what_comes_out():
    with torch.device("meta"):
        model = timm.create_model("resnet50")
    cost = surgery.cost(surgery.plan(model, "dwp", operator="avg").apply(model))
    assert f"# {cost.macs} {cost.params}" in page("dwp")
    assert f"{cost.macs / 1e9:.3f} GMACs and {cost.params / 1e6:.1f} M parameters" in page("dwp")


def test_the_count_of_octave_is_what_comes_out():
    with torch.device("meta"):
        model = timm.create_model("resnet50")
    original = surgery.cost(model).macs
    assert f"# {surgery.cost(surgery.plan(model, 'octave').apply(model)).macs} of {original}" in page("octave")


def test_the_method_of_ones_own_is_that_of_the_tests():
    own, use = code_blocks(page("README"))
    assert own == (ROOT / "tests" / "methods" / "centre_tap.py").read_text()
    assert "centre-tap" not in OWN
    model = surgery.create("cifar_resnet", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 12, 16, 16])
    variables = {"surgery": surgery, "model": model, "CentreTapConfig": centre_tap.CentreTapConfig}
    exec(use, variables)
    assert surgery.cost(variables["model"], 32).macs < surgery.cost(model, 32).macs
    assert variables["model"](torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_every_method_is_in_the_readme():
    table = (ROOT / "README.md").read_text()
    for name, method in OWN.items():
        assert f"| [`{name}`](docs/methods/{name}.md) | {method.evidence} | {method.changes} |" in table


def files_named(text):
    """Paths of source files in a text, in prose or in code."""
    return set(re.findall(r"(?<![\w/.])[\w/.*-]*\w\.(?:py|cpp|h|yaml|yml)\b", text)) - USERS_OWN


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(path):
    missing = {name for name in files_named(path.read_text()) if not _exists(name)}
    assert not missing


def _exists(name):
    """Whether there is a path below a room or the repository; without a folder, any file of that name."""
    if "/" in name:
        return any((ROOT / room / name).exists() or list((ROOT / room).glob(name)) for room in ROOMS)
    return (ROOT / name).exists() or any(any((ROOT / folder).rglob(name)) for folder in FOLDERS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", path.read_text())
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_the_package_are_there(path):
    names = set(re.findall(r"\bsurgery(?:\.[A-Za-z_]\w*){2,}", path.read_text()))
    for name in names - RECIPE_KEYS:
        pkgutil.resolve_name(name)
