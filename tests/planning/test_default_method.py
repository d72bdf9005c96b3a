from surgery.cli.main import parser
from surgery.planning import registry
from surgery.planning.default_method import default_method
from surgery.training.recipe import SurgerySettings


def test_the_default_is_what_a_method_says_of_itself(monkeypatch):
    assert SurgerySettings().method == default_method()
    assert parser().parse_args(["plan", "resnet50"]).method == default_method()

    class Own:
        name, default = "own", True

    monkeypatch.setattr(registry, "_METHODS", {"own": Own()})
    assert default_method() == "own"
