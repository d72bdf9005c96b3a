import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import finetune
from surgery.training import load_recipe
from surgery.training.recipe import DataSettings, RecipeError
from surgery.training.recipe_keys import keys_table
from surgery.training.recipe_text import read_recipe, recipe_text

RECIPES = sorted((Path(finetune.__file__).parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_sound(path):
    assert load_recipe(path).output.startswith("runs/")


def test_overrides_are_typed():
    settings = ["finetune.epochs=3", "finetune.lr=1e-3", "data.scale=[0.5, 1]", "model.checkpoint=a.safetensors"]
    recipe = load_recipe(RECIPES[0], settings)
    assert (recipe.finetune.epochs, recipe.finetune.lr, recipe.data.scale) == (3, 0.001, (0.5, 1.0))
    assert recipe.model.checkpoint == "a.safetensors"
    assert load_recipe(RECIPES[0], ["precision=no"]).precision == "no"


def test_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/somebody")
    recipe = load_recipe(RECIPES[0], ["data.root=~/x", "output=~/y", "model.weights=~/w.pth"])
    expected = ("/home/somebody/x", "/home/somebody/y", "/home/somebody/w.pth")
    assert (recipe.data.root, recipe.output, recipe.model.weights) == expected


def test_a_date_is_a_text():
    assert load_recipe(RECIPES[0], ["output=2026-01-02"]).output == "2026-01-02"


def test_a_number_needs_no_point_before_its_exponent():
    """YAML 1.1 takes 1e-20 for a text, wherever no type says otherwise."""
    options = load_recipe(RECIPES[0], ["surgery.options={threshold: 1e-3, keep: [1E+2, .5e3]}"]).surgery.options
    assert options == {"threshold": 1e-3, "keep": [100.0, 500.0]}


@pytest.mark.parametrize("text", ["1e5", "1.5", "yes", "null", "a: b", "2026-01-02", "1:30", "", "1e"])
def test_texts_stay_texts_when_a_recipe_is_written_and_read(text, tmp_path):
    (tmp_path / "r.yaml").write_text(recipe_text({"model": {"kwargs": {"name": text, "size": 1e-20}}}))
    assert read_recipe(tmp_path / "r.yaml") == {"model": {"kwargs": {"name": text, "size": 1e-20}}}


def test_a_number_beyond_all_numbers_is_none():
    with pytest.raises(RecipeError, match="1e400 is larger than any number"):
        load_recipe(RECIPES[0], ["surgery.options={threshold: 1e400}"])


def test_blocks_fade_to_nothing_in_the_last_of_several_epochs():
    def weights(epochs, fade):
        train = load_recipe(
            RECIPES[0], [f"finetune.epochs={epochs}", "finetune.block_weight=8.0", f"finetune.block_fade={fade}"]
        ).finetune
        return [train.block_weight_in(epoch) for epoch in range(epochs)]

    assert weights(3, "false") == [8.0, 8.0, 8.0]
    assert weights(5, "true") == [8.0, 6.0, 4.0, 2.0, 0.0]
    assert weights(1, "true") == [8.0]


def test_images_grow_until_two_thirds_of_the_epochs():
    def sizes(epochs, whole, first):
        sides = [f"data.image_size={whole}", f"baseline.first_size={first}"]
        train = load_recipe(RECIPES[0], [f"baseline.epochs={epochs}", *sides]).baseline
        return [train.size_in(epoch, whole) for epoch in range(epochs)]

    assert sizes(9, 32, 20) == [20, 20, 24, 24, 28, 28, 32, 32, 32]
    assert sizes(3, 224, 128) == [128, 160, 224]
    assert sizes(2, 32, "null") == [32, 32]
    assert sizes(1, 32, 20) == [32]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.epoch=3", "in finetune: recipe key='epoch'.*did you mean 'epochs'"),
        ("fintune.epochs=3", "in the recipe: recipe key='fintune'.*did you mean 'finetune'"),
        ("finetune.epochs=three", "finetune.epochs='three': a whole number from 0 to 100000 is needed"),
        ("finetune.epochs=true", "finetune.epochs=true: a whole number"),
        ("finetune.epochs=1.5", r"finetune.epochs=1\.5: a whole number"),
        ("finetune.epochs=-1", "finetune.epochs=-1: a whole number from 0"),
        ("finetune.batch_size=1", "finetune.batch_size=1: a whole number from 2"),
        ("baseline.epochs=-1", "baseline.epochs=-1: a whole number from 0"),
        ("baseline.warmup_epochs=500", r"baseline\.warmup_epochs=500: at most baseline\.epochs=\d+ is needed"),
        ("seed=-1", "seed=-1: a whole number from 0 to 2147483647"),
        ("seeds=0", "seeds=0: a whole number from 1 to 1000"),
        ("seeds=1e9", r"seeds=1000000000\.0: a whole number from 1 to 1000"),
        ("seeds=1000000000", "seeds=1000000000: a whole number from 1 to 1000"),
        ("seed=" + "9" * 5000, "is no YAML value: Exceeds the limit"),
        ("seed=0x" + "f" * 5000, "seed=a int of absurd size: a whole number"),
        ("threads=-5", "threads=-5: a whole number from 0"),
        ("output=", "output=null: a text that is not empty"),
        ("output='  '", "output='  ': a text that is not empty"),
        ("output=3", "output=3: a text"),
        ("control=1", "control=1: true or false is needed"),
        ("data.name=", "data.name=null: a text"),
        ("data.image_size=100000000", "data.image_size=100000000: a whole number from 8 to 4096"),
        ("data.workers=-1", "data.workers=-1: a whole number from 0"),
        ("data.hflip=7", "data.hflip=7: a number from 0 to 1 is needed"),
        ("data.color_jitter=-1", "data.color_jitter=-1: a number from 0"),
        ("data.mean=[0.5]", r"^data\.mean=\[0\.5\]: a list \["),
        ("data.mean=[0, 0, 255]", r"data\.mean\[2\]=255: a number from 0 to 1"),
        ("data.std=[0, 1, 1]", r"data\.std\[0\]=0: a number above 0, at most 1"),
        ("data.mean=0.5", r"data\.mean=0\.5: a list"),
        ("finetune.lr=-1", "finetune.lr=-1: a number above 0"),
        ("finetune.lr=.nan", r"finetune\.lr=\.nan: a number above 0"),
        ("finetune.lr=nan", r"finetune\.lr=\.nan: a number above 0"),
        ("finetune.lr=.inf", r"finetune\.lr=\.inf: a number above 0, at most 1000"),
        ("finetune.lr=true", "finetune.lr=true: a number"),
        ("finetune.lr=fast", "finetune.lr='fast': a number"),
        (
            "finetune.optimizer=foo",
            r"^finetune\.optimizer='foo': a name of timm\.optim\.list_optimizers\(\) is needed.{,60}$",
        ),
        ("finetune.optimizer=3", r"^finetune\.optimizer=3: a name of timm\.optim\.list_optimizers\(\) is needed$"),
        ("finetune.optimizer=adamx", r"did you mean 'adam\w*'"),
        ("finetune.optimizer=adahessian", r"finetune\.optimizer='adahessian': a name of"),
        ("finetune.scheduler=plateau", r"finetune\.scheduler='plateau': one of 'cosine'"),
        ("finetune.weight_decay=-1", "finetune.weight_decay=-1: a number from 0"),
        ("finetune.smoothing=5", "finetune.smoothing=5: a number from 0 to below 1"),
        ("baseline.first_size=4096", r"baseline\.first_size=4096: less than data\.image_size="),
        ("finetune.mixup=-0.1", "finetune.mixup=-0.1: a number from 0"),
        ("finetune.ema_decay=3", "finetune.ema_decay=3: a number from 0 to below 1"),
        ("finetune.clip_grad=-1", "finetune.clip_grad=-1: a number from 0"),
        ("finetune.power=-1", "finetune.power=-1: a number from 0"),
        ("finetune.save_minutes=-1", "finetune.save_minutes=-1: a number from 0"),
        ("finetune.temperature=0", "finetune.temperature=0: a number above 0"),
        ("finetune.distill_weight=2", "finetune.distill_weight=2: a number from 0 to 1"),
        ("baseline.distill_weight=0.5", "no teacher"),
        ("baseline.block_weight=0.5", r"baseline\.block_weight: the baseline has no teacher"),
        ("finetune.block_weight=-1", "finetune.block_weight=-1: a number from 0"),
        ("data.scale=[1]", "data.scale"),
        ("data.scale=[0.5, 2]", r"data\.scale=\[0\.5, 2\.0\]: shares of the area, at most 1"),
        ("data.holdout=1.0", r"data\.holdout=1\.0"),
        ("data.crop_pct=0.0", r"data\.crop_pct=0\.0"),
        ("data.interpolation=cubic", r"data\.interpolation='cubic'.*did you mean 'bicubic'"),
        ("data=digits", "data='digits': a group of keys is needed"),
        ("data=", "data=null: a group of keys is needed"),
        ("seed.x=1", "is a value, not a group"),
        ("precision=int8", "precision='int8'"),
        ("track=comet", "track='comet': one of 'tensorboard', 'wandb', 'mlflow'"),
        ("compile=true", r"compile=true: what blocks give.*finetune\.block_weight=0"),
        ("finetune.keep=0", "finetune.keep=0: a whole number from 1"),
        ("finetune.accumulate=0", "finetune.accumulate=0: a whole number from 1"),
        ("data.scale=[0.5, 0.1]", r"data\.scale=\[0\.5, 0\.1\]: the smallest"),
        ("data.classes=1", r"data\.classes=1: a whole number from 2"),
        ("data.ignore=256", r"data\.ignore=256: a whole number from 0 to 255"),
        ("surgery.method=pox", r"surgery\.method='pox': one of .*'pix'.*did you mean 'pix'"),
        ("surgery.mode=all", r"surgery\.mode='all': one of 'squeeze'"),
        ("surgery.calibrate=-1", r"surgery\.calibrate=-1: a whole number"),
        ("surgery.zeta=x", r"surgery\.zeta='x': a whole number from 1"),
        ("surgery.options={zeta: 2}", r"surgery\.options\.zeta: surgery\.zeta is the key"),
        ("model.kwargs={pretrained: true}", r"model\.kwargs\.pretrained: model\.pretrained is the key"),
        ("model={weights: a.pth, checkpoint: b.safetensors}", r"model\.weights='a\.pth' and model\.checkpoint='b"),
        ("epochs", "key=value is needed"),
        ("=5", "key=value is needed"),
        ("finetune..lr=5", "key=value is needed"),
        (".".join("x" * 3000) + "=1", "is longer than any setting"),
        ("seed=[1", "'seed=\\[1': '\\[1' is no YAML value"),
        ("model.kwargs={a: &x 1, b: *x}", "anchors and aliases"),
        ("model.kwargs={a: 1, a: 2}", "the key 'a' occurs twice"),
        ("model.kwargs={1: 2}", "the key '1' is no name"),
        ("model.kwargs=" + "[" * 3000, "nested deeper than 16 levels"),
        ("seed=2026-13-45", "seed='2026-13-45': a whole number"),
        ("seed=1:30", "seed='1:30': a whole number"),
        ("finetune.lr=1:30.5", r"finetune\.lr='1:30\.5': a number"),
        ("seed=true", "seed=true: a whole number"),
        ("finetune=", "finetune=null: a group of keys"),
        ("data.hflip=[null, {a: true}]", r"data\.hflip=\[null, {a: true}\]: a number"),
        ("surgery.options={input_size: 64}", r"surgery\.options\.input_size: data\.image_size is the key"),
        ("model.kwargs={num_classes: .nan}", r"^model\.kwargs\.num_classes=nan: "),
        ("model.name=!!python/name:os.system x", "is no YAML value: could not determine a constructor"),
    ],
    ids=lambda text: text[:40],
)
def test_bad_settings_name_themselves(override, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(RECIPES[0], [override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_all_wrong_keys_are_in_one_message():
    with pytest.raises(RecipeError, match=r"^seeds=0: .*; finetune\.lr=-1: .* is needed$"):
        load_recipe(RECIPES[0], ["finetune.lr=-1", "seeds=0"])
    with pytest.raises(RecipeError, match=r"; and 2 more$"):
        load_recipe(RECIPES[0], [f"finetune.key{number}=1" for number in range(7)])


def test_groups_made_in_python_are_checked_too():
    with pytest.raises(RecipeError, match=r"^data\.batch_size=1: a whole number"):
        DataSettings(batch_size=1)
    with pytest.raises(RecipeError, match="^in data: recipe key='sise'"):
        DataSettings(sise=1)
    settings = DataSettings(image_size=64)
    assert asdict(replace(settings, batch_size=8))["image_size"] == 64
    with pytest.raises(RecipeError, match=r"^data\.batch_size=0"):
        replace(settings, batch_size=0)


def test_the_documented_keys_are_the_declared_ones():
    root = Path(finetune.__file__).parent
    page = (root / "docs" / "recipes.md").read_text()
    # in a process of its own, since tests register methods
    command = [sys.executable, "-m", "surgery.training.recipe_keys"]
    table = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert page.partition("<!-- keys -->\n")[2].partition("<!-- /keys -->")[0] == table


def test_every_key_has_a_meaning_and_every_number_a_range():
    for line in keys_table().splitlines()[2:]:
        key, _, takes, meaning = (cell.strip() for cell in line.strip("|").split("|"))
        if not key.startswith("**"):
            assert meaning, key
            assert "number" not in takes or any(word in takes for word in ("from", "above")), key


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("segmentation.window=-1", "segmentation.window=-1: a whole number from 0"),
        ("segmentation.overlap=1.0", r"segmentation\.overlap=1\.0: a number from 0 to below 1"),
        ("finetune.mixup=0.2", r"finetune\.mixup=0\.2: not for label maps"),
        ("baseline.first_size=64", r"baseline\.first_size=64: not for label maps"),
        ("data.padding=4", r"data\.padding=4: not for data\.name="),
    ],
)
def test_what_cannot_be_with_label_maps(override, message):
    for path in RECIPES:
        if load_recipe(path).data.segments:
            with pytest.raises(RecipeError, match=message):
                load_recipe(path, [override])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1", "a mapping of recipe keys"),
        (b"", "a mapping of recipe keys"),
        (b"a: [", r"is not YAML for recipes: .* \(line 1, column 5\)$"),
        (b"data:\n\tname: digits\n", r"indent with spaces \(line 2, column 1\)$"),
        (b"seed: 1\nseed: 2\n", r"the key 'seed' occurs twice \(line 2, column 1\)$"),
        (b"data: {root: a, root: b}\n", "the key 'root' occurs twice"),
        (b"data: {<<: {root: a}}\n", "the key '<<' is no name"),
        (b"[a]: 1\n", "the key a list or a mapping is no name"),
        (b"seed: 1\nseeds: " + b"9" * 5000, r"Exceeds the limit .* \(line 2, column 8\)$"),
        (b"no: 1\n", "the key 'no' is no name; put it in quotes"),
        (BOMB.encode(), r"anchors and aliases .* \(line 1, column 4\)$"),
        (b"a: " + b"[" * 3000, "nested deeper than 16 levels"),
        (b"a: " + b"{a: " * 3000, "nested deeper than 16 levels"),
        (b"a: 1\n---\nb: 2\n", "is not YAML for recipes"),
        (b"a: \x00", "special characters are not allowed"),
        (b"\x89PNG\r\n\x1a\n", r"is not YAML: it is no text in UTF-8 \(byte 0\)"),
        (b"a: 1 # " + b"x" * (1 << 16), "is larger than 64 KiB"),
        (b"a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_files_that_are_no_recipe(content, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert time.process_time() - begin < 5
    assert "\n" not in str(caught.value)


def test_command_line_reports_in_one_line(capsys, tmp_path):
    assert finetune.main(["nothing.yaml"]) == 2
    assert finetune.main(["finetune.epoch=3"]) == 2
    assert finetune.main([f"output={tmp_path}", "data.name=cifar"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "nothing.yaml" in errors[0]
    assert "did you mean 'epochs'" in errors[1]
    assert "data.name" in errors[2]


def test_dry_run_prints_what_would_be_done(capsys):
    assert finetune.main(["--dry-run", "finetune.epochs=3"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "epochs: 3",
        "layer1.0.conv1",
        "converted   8.85 M",
        "a batch: (64, 3, 24, 24) float32, (64,) int64",
    ):
        assert expected in out
    assert finetune.main(["--dry-run", "surgery.options={taw: 0.3}"]) == 2
    assert "did you mean 'tau'" in capsys.readouterr().err
