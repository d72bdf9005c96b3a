import json

import pytest

from surgery.checkpoint.manifest import parse_manifest
from surgery.transforms import edit_migrations
from surgery.transforms.drop import Drop
from surgery.transforms.edit_migrations import migrates_edit, only_argument

EDIT = {"method": "tests_own", "site": "a", "role": "", "channels": [4, 4], "note": ""}


def test_a_method_from_elsewhere_reads_its_own_edits(monkeypatch):
    monkeypatch.setattr(edit_migrations, "_REWRITES", dict(edit_migrations._REWRITES))

    @migrates_edit("tests_own")
    def own(edit, arguments):
        yield {"type": "drop@1", "modules": [edit["site"], only_argument("tests_own", arguments, "other")]}

    source = {"builder": "timm", "name": "resnet18", "kwargs": {}}
    content = {"schema": 1, "source": source, "aliases": {}, "versions": {}}
    manifest = content | {"edits": [EDIT | {"arguments": {"other": "b"}}]}
    assert parse_manifest(json.dumps(manifest)).transforms == (Drop(("a", "b")),)
    with pytest.raises(ValueError, match="edit 'tests_own' of schema 1 is registered already"):
        migrates_edit("tests_own")(only_argument)
