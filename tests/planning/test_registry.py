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
        name = "own-of-registry"

    registry.register(Own)
    assert isinstance(registry.method_named("own-of-registry"), Own)
    assert "own-of-registry" in registry.methods()
    assert not listings
    with pytest.raises(ValueError, match="registered already"):
        registry.register(Own)
