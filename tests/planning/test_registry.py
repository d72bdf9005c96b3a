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
    with pytest.raises(ValueError, match="registered already"):
        registry.register(Own)


def test_what_a_method_lacks_is_named():
    class Lacking:
        name = "lacking"

    with pytest.raises(ValueError, match="method Lacking has no Config, evidence, changes, where, plan"):
        registry.register(Lacking)
    assert "lacking" not in registry.methods()
