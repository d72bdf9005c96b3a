import json

import pytest

from surgery.checkpoint.manifest import _without_duplicates, parse_manifest
from surgery.core.errors import CheckpointError

EDIT = {"method": "match", "site": "", "role": "", "channels": [0, 0], "arguments": {"order": "0a"}, "note": ""}
PREPROCESSING = {"size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "classes": ["a"]}
SOUND = {
    "schema": 1,
    "source": {"builder": "timm", "name": "resnet18", "kwargs": {"layers": [1, 1]}},
    "edits": [EDIT],
    "aliases": {"a": "b"},
    "versions": {"torch": "2"},
    "preprocessing": PREPROCESSING,
}


def changed(**changes):
    return json.dumps(SOUND | changes)


def test_a_sound_one():
    manifest = parse_manifest(json.dumps(SOUND))
    assert manifest.content == SOUND
    assert manifest.source.kwargs == {"layers": [1, 1]}
    assert manifest.edits[0].to_json() == EDIT
    assert manifest.preprocessing.classes == ("a",)
    assert parse_manifest(json.dumps({k: v for k, v in SOUND.items() if k != "preprocessing"})).preprocessing is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "manifest 5: an object of schema 1"),
        ("null", "manifest None: an object"),
        ("[]", r"manifest \[\]: an object"),
        ("", "its manifest is not JSON"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
        ('{"schema": 1, "schema": 1}', "the key 'schema' is there twice"),
        ('{"schema": NaN}', "NaN is no number"),
        ('{"schema": [Infinity]}', "Infinity is no number"),
        ('{"schema": -1e999}', "-1e999 is no number"),
        ('{"schema": ' + "9" * 5000 + "}", "its manifest is not JSON"),
        (changed(schema=True), "schema=True"),
        (changed(schema=1.0), "schema=1.0"),
        (changed(schema=0), "schema=0"),
        (changed(schema=10**40), "upgrade surgery"),
        (changed(more=1), "a manifest of schema 1 has schema, source, edits"),
        ('{"schema": 1}', r"found \['schema'\]"),
    ],
)
def test_what_is_none(text, message):
    with pytest.raises(CheckpointError, match=message):
        parse_manifest(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 5}, "manifest source: it is 5; an object"),
        ({"source": {"builder": "timm"}}, "manifest source: builder, name and kwargs are needed"),
        ({"source": {"builder": 5, "name": "", "kwargs": {}}}, "manifest source: builder=5: a text"),
        ({"source": {"builder": "timm", "name": ["a"], "kwargs": {}}}, r"manifest source: name=\['a'\]: a text"),
        ({"source": {"builder": "timm", "name": "a", "kwargs": [1]}}, "manifest source: kwargs="),
        ({"aliases": {"a": 1}}, "manifest aliases: 'a' is 1; a text"),
        ({"aliases": []}, r"manifest aliases: it is \[\]"),
        ({"versions": {"torch": None}}, "manifest versions: 'torch' is None"),
        ({"edits": [5]}, r"manifest edits: \[0\]: an edit has the keys"),
        ({"edits": [EDIT, EDIT | {"channels": [1]}]}, r"edits: \[1\]: edit channels=\[1\]: two whole numbers"),
        ({"edits": [EDIT | {"channels": [1, True]}]}, "two whole numbers"),
        ({"edits": [EDIT | {"channels": [1, 0.5]}]}, "two whole numbers"),
        ({"edits": [EDIT | {"method": 3}]}, "edit method=3: str is needed"),
        ({"edits": [EDIT | {"method": "unheard"}]}, "method='unheard'"),
        ({"edits": [EDIT | {"arguments": {"order": "0", "x": 1}}]}, r"of 'match' has the arguments \['order', 'x'\]"),
        ({"preprocessing": None}, "manifest preprocessing: it is None"),
        ({"preprocessing": PREPROCESSING | {"classes": [1, 2]}}, r"preprocessing classes=\(1, 2\): a name"),
        ({"preprocessing": PREPROCESSING | {"mean": "abc"}}, "preprocessing mean='abc'"),
        ({"preprocessing": PREPROCESSING | {"mean": ["a", "b", "c"]}}, "preprocessing mean="),
        ({"preprocessing": {"size": [3, 8, 8]}}, r"has \['size'\]"),
    ],
)
def test_each_key_says_what_it_accepts(changes, message):
    with pytest.raises(CheckpointError, match=message):
        parse_manifest(changed(**changes))


@pytest.mark.parametrize("where", [0, -1])
def test_a_doubled_key_among_many_is_found_in_one_pass(where):
    """In C each key is looked at once: counted by comparisons, not by a clock."""
    comparisons = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal comparisons
            comparisons += 1
            return str.__eq__(self, other)

    pairs = [(Name(f"v{index}"), "1") for index in range(2_000)]
    pairs.append((Name(pairs[where][0]), "2"))
    with pytest.raises(ValueError, match=f"the key '{pairs[where][0]}' is there twice"):
        _without_duplicates(pairs)
    assert comparisons < 2 * len(pairs)
