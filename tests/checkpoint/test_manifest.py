import json

import pytest

from surgery.checkpoint.manifest import _without_duplicates, parse_manifest
from surgery.core.errors import CheckpointError

REORDER = {"type": "reorder@1", "order": "0a", "inside": False}
REPLACE = {"type": "replace@1", "module": "conv1", "layer": "pix", "channels": [8, 4], "options": {"tau": 0.25}}
EDIT = {"method": "match", "site": "", "role": "", "channels": [0, 0], "arguments": {"order": "0a"}, "note": ""}
PREPROCESSING = {"size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "classes": ["a"]}
SOUND = {
    "schema": 2,
    "source": {"builder": "timm", "name": "resnet18", "kwargs": {"layers": [1, 1]}},
    "transforms": [REORDER],
    "aliases": {"a": "b"},
    "versions": {"torch": "2"},
    "preprocessing": PREPROCESSING,
}
SOUND_1 = {name: value for name, value in SOUND.items() if name != "transforms"} | {"schema": 1, "edits": [EDIT]}


def changed(**changes):
    return json.dumps(SOUND | changes)


def changed_1(**changes):
    return json.dumps(SOUND_1 | changes)


@pytest.mark.parametrize("text", [json.dumps(SOUND), json.dumps(SOUND_1)], ids=["schema 2", "schema 1"])
def test_a_sound_one(text):
    manifest = parse_manifest(text)
    assert manifest.content == SOUND
    assert manifest.source.kwargs == {"layers": [1, 1]}
    assert [transform.to_json() for transform in manifest.transforms] == [REORDER]
    assert manifest.preprocessing.classes == ("a",)


@pytest.mark.parametrize("sound", [SOUND, SOUND_1], ids=["schema 2", "schema 1"])
def test_preprocessing_may_be_absent(sound):
    text = json.dumps({k: v for k, v in sound.items() if k != "preprocessing"})
    assert parse_manifest(text).preprocessing is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "manifest 5: an object of schema 2"),
        ("null", "manifest None: an object"),
        ("[]", r"manifest \[\]: an object"),
        ("", "its manifest is not JSON"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
        ('{"schema": 2, "schema": 2}', "the key 'schema' is there twice"),
        ('{"schema": NaN}', "NaN is no number"),
        ('{"schema": [Infinity]}', "Infinity is no number"),
        ('{"schema": -1e999}', "-1e999 is no number"),
        ('{"schema": ' + "9" * 5000 + "}", "its manifest is not JSON"),
        (changed(schema=True), "schema=True: a number from 1 to 2 is needed"),
        (changed(schema="1"), "schema='1': a number from 1 to 2 is needed"),
        (changed(schema=1.0), "schema=1.0"),
        (changed(schema=0), "schema=0: a number from 1 to 2 is needed"),
        (changed(schema=-1), "schema=-1"),
        (changed(schema=3), "schema 3; this version reads up to 2: upgrade surgery"),
        (changed(schema=10**40), "upgrade surgery"),
        (changed(schema=1), "manifest of schema 1 has schema, source, edits"),
        (changed_1(schema=2), "a manifest of schema 2 has schema, source, transforms"),
        (changed(more=1), "a manifest of schema 2 has schema, source, transforms"),
        (changed_1(more=1), "manifest of schema 1 has schema, source, edits"),
        (changed_1(transforms=[]), "manifest of schema 1 has schema, source, edits"),
        ('{"schema": 2}', r"found \['schema'\]"),
        ('{"schema": 1}', r"found \['schema'\]"),
        ("{}", "manifest schema=None: a number from 1 to 2"),
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
        ({"transforms": {}}, r"manifest transforms: it is \{\}; a list"),
        ({"transforms": [5]}, r"manifest transforms: \[0\]: 5: an object with a type"),
        ({"transforms": [{"order": "0a"}]}, r"transforms: \[0\]: .*: an object with a type"),
        (
            {"transforms": [REORDER, REPLACE | {"channels": [1]}]},
            r"transforms: \[1\]: channels=\[1\]: two whole numbers",
        ),
        ({"transforms": [REPLACE | {"channels": [1, True]}]}, "channels=True: a whole number"),
        ({"transforms": [REPLACE | {"channels": [0, 1]}]}, "channels=0: a whole number >= 1"),
        ({"transforms": [REPLACE | {"channels": [1, 0.5]}]}, "channels=0.5: a whole number"),
        ({"transforms": [REPLACE | {"type": 3}]}, "an object with a type"),
        ({"transforms": [REPLACE | {"type": "unheard@1"}]}, "type 'unheard@1' is not registered here.*--import"),
        ({"transforms": [REPLACE | {"type": "replace@2"}]}, "type 'replace@2': this version reads replace@1: upgrade"),
        ({"transforms": [REPLACE | {"type": "replace"}]}, "type 'replace' is not registered"),
        ({"transforms": [REPLACE | {"layer": "unheard"}]}, "layer='unheard': one of .*'pix'"),
        (
            {"transforms": [REPLACE | {"options": {"unheard": 1}}]},
            "options={'unheard': 1}: of layer 'pix' there are tau",
        ),
        ({"transforms": [REORDER | {"x": 1}]}, r"reorder@1 has the keys \['order', 'inside', 'x'\]"),
        ({"transforms": [{"type": "reorder@1"}]}, r"reorder@1 has the keys \[\]"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edits": "none"}, "manifest edits: it is 'none'; a list of edits"),
        ({"edits": None}, "manifest edits: it is None; a list of edits"),
        ({"edits": [5]}, r"manifest edits: \[0\]: an edit has the keys"),
        ({"edits": [EDIT | {"more": 1}]}, "an edit has the keys"),
        ({"edits": [EDIT, EDIT | {"channels": [1]}]}, r"edits: \[1\]: edit channels=\[1\]: two whole numbers"),
        ({"edits": [EDIT | {"channels": [1, True]}]}, "two whole numbers"),
        ({"edits": [EDIT | {"channels": [1, 0.5]}]}, "two whole numbers"),
        ({"edits": [EDIT | {"channels": [-1, 1]}]}, "two whole numbers"),
        ({"edits": [EDIT | {"method": 3}]}, "edit method=3: str is needed"),
        ({"edits": [EDIT | {"note": None}]}, "edit note=None: str is needed"),
        ({"edits": [EDIT | {"role": ["a"]}]}, r"edit role=\['a'\]: str is needed"),
        ({"edits": [EDIT | {"method": "unheard"}]}, "method 'unheard': of schema 1, one of match, narrow, pix, squ"),
        ({"edits": [EDIT | {"arguments": {"order": "0", "x": 1}}]}, r"of 'match' has the arguments \['order', 'x'\]"),
        ({"edits": [EDIT | {"arguments": {"order": 5}}]}, r"transforms \(rewritten from schema 1\): \[0\]: order=5"),
        ({"aliases": []}, r"manifest aliases \(rewritten from schema 1\): it is \[\]"),
    ],
)
def test_schema_1_says_what_it_accepts(changes, message):
    with pytest.raises(CheckpointError, match=message):
        parse_manifest(changed_1(**changes))


def test_messages_stay_short():
    with pytest.raises(CheckpointError) as caught:
        parse_manifest(changed(transforms=[REPLACE | {"module": "m" * 500_000, "layer": "l" * 500_000}]))
    assert len(str(caught.value)) < 1_200


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
