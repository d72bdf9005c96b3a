import pkgutil

import pytest

from surgery.planning import registry


def test_methods_are_discovered_once_and_later_ones_are_seen(monkeypatch):
    registry.method_named("pix")
    listings = []
    listed = pkgutil.iter_modules
    monkeypatch.setattr(pkgutil, "iter_modules", lambda *given: listings.append(given) or listed(*given))
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    class Own:
        name, evidence, changes, where, Config = "own-of-registry", "none", "nothing", "nowhere", object

        def plan(self, graph, selection, config, evidence):
            return registry.Proposal([], [])

    registry.register(Own)
    assert isinstance(registry.method_named("own-of-registry"), Own)
    assert "own-of-registry" in registry.methods()
    assert not listings


def own_method():
    class Own:
        name, evidence, changes, where, Config = "own-of-registry", "none", "nothing", "nowhere", object

        def plan(self, graph, selection, config, evidence):
            return registry.Proposal([], [])

    return Own


def test_a_cell_run_again_replaces_its_method_and_another_class_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    first, again = registry.register(own_method()), registry.register(own_method())
    assert first is not again
    assert type(registry.method_named("own-of-registry")) is again
    other = own_method()
    other.__qualname__ = "Other"
    with pytest.raises(ValueError, match="method 'own-of-registry' is registered already"):
        registry.register(other)
    elsewhere = own_method()
    elsewhere.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="method 'own-of-registry' is registered already"):
        registry.register(elsewhere)
    assert type(registry.method_named("own-of-registry")) is again


def test_what_a_method_lacks_is_named():
    class Lacking:
        name = "lacking"

    with pytest.raises(ValueError, match="method Lacking has no Config, evidence, changes, where, plan"):
        registry.register(Lacking)
    assert "lacking" not in registry.methods()
