from pathlib import Path

import pytest

import finetune
from surgery.training import load_recipe
from surgery.training.recipe import RecipeError

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


def test_blocks_fade_to_nothing_in_the_last_of_several_epochs():
    def weights(epochs, fade):
        train = load_recipe(
            RECIPES[0], [f"finetune.epochs={epochs}", "finetune.block_weight=8.0", f"finetune.block_fade={fade}"]
        ).finetune
        return [train.block_weight_in(epoch) for epoch in range(epochs)]

    assert weights(3, "false") == [8.0, 8.0, 8.0]
    assert weights(5, "true") == [8.0, 6.0, 4.0, 2.0, 0.0]
    assert weights(1, "true") == [8.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.epoch=3", "in finetune: recipe key='epoch'.*did you mean 'epochs'"),
        ("fintune.epochs=3", "in the recipe: recipe key='fintune'"),
        ("finetune.epochs=three", "finetune.epochs='three': int is needed, not str"),
        ("finetune.epochs=true", "finetune.epochs=True: int is needed"),
        ("finetune.epochs=-1", "finetune.epochs=-1: at least 0"),
        ("finetune.batch_size=1", "finetune.batch_size=1: at least 2"),
        ("baseline.epochs=-1", "baseline.epochs=-1: at least 0"),
        ("seeds=0", "seeds=0: at least 1"),
        ("control=1", "control=1: bool is needed"),
        ("data.mean=[0.5]", "data.mean"),
        ("finetune.lr=-1", "finetune.lr=-1.0"),
        ("finetune.distill_weight=2", "a share from 0 to 1"),
        ("baseline.distill_weight=0.5", "no teacher"),
        ("baseline.block_weight=0.5", r"baseline\.block_weight: the baseline has no teacher"),
        ("finetune.block_weight=-1", "at least 0 is needed"),
        ("data.scale=[1]", "data.scale"),
        ("data.holdout=1.0", r"data\.holdout=1\.0"),
        ("data.crop_pct=0.0", r"data\.crop_pct=0\.0"),
        ("data.interpolation=cubic", "did you mean 'bicubic'"),
        ("data=digits", "a group of keys is needed"),
        ("seed.x=1", "is a value, not a group"),
        ("precision=int8", "precision='int8'"),
        ("track=comet", "track='comet': one of 'tensorboard', 'wandb', 'mlflow'"),
        ("compile=true", r"compile=true: what blocks give.*finetune\.block_weight=0"),
        ("finetune.keep=0", "finetune.keep=0: at least 1"),
        ("finetune.accumulate=0", "finetune.accumulate=0: at least 1"),
        ("data.scale=[0.5, 0.1]", r"data\.scale=\[0\.5, 0\.1\]: the smallest"),
        ("data.classes=1", r"data\.classes=1: at least 2"),
        ("epochs", "key=value is needed"),
        ("seed=[1", "'seed=\\[1': '\\[1' is no YAML value"),
    ],
)
def test_bad_settings_name_themselves(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(RECIPES[0], [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("segmentation.window=-1", "segmentation: window=-1"),
        ("segmentation.overlap=1.0", r"segmentation: window=\d+, overlap=1\.0"),
        ("finetune.mixup=0.2", r"finetune\.mixup=0\.2: not for label maps"),
        ("data.padding=4", r"data\.padding=4: not for data\.name="),
    ],
)
def test_what_cannot_be_with_label_maps(override, message):
    for path in RECIPES:
        if load_recipe(path).data.segments:
            with pytest.raises(RecipeError, match=message):
                load_recipe(path, [override])


def test_files_that_are_no_recipe(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="a mapping of recipe keys"):
        load_recipe(tmp_path / "list.yaml")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(tmp_path / "broken.yaml")


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
        "converted  11.85 M",
        "a batch: (64, 3, 32, 32) float32, (64,) int64",
    ):
        assert expected in out
    assert finetune.main(["--dry-run", "surgery.options={taw: 0.3}"]) == 2
    assert "did you mean 'tau'" in capsys.readouterr().err
