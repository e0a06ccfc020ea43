"""Recipes: what is read, what may be overridden, and what a mistake is told."""

import pytest
import yaml

from modeling_gaze2report.processing.errors import RecipeError
from modeling_gaze2report.training.recipe import RECIPE_FOLDER, LossWeights, load_recipe, recipe_values

SMALL = {
    "name": "small",
    "output": "out",
    "data": {"path": "phantoms"},
    "model": {"vision": {"model_type": "vit"}, "text": {"model_type": "llama"}},
    "stages": [{"name": "one", "trainable": ["fusion"], "losses": {"findings": 1}}],
}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with changed parts and reads it back."""

    def read(*overrides, **changes):
        path = tmp_path / "small.yaml"
        values = {key: value for key, value in (SMALL | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load_recipe(str(path), list(overrides))

    return read


def test_a_recipe_is_read_with_its_defaults(recipe):
    read = recipe()

    assert (read.name, read.data.path, read.data.train_split, read.seed) == ("small", "phantoms", "train", 0)
    assert read.stages[0].losses == LossWeights(findings=1.0)
    assert isinstance(read.stages[0].losses.findings, float)  # a whole number passes for one


@pytest.mark.parametrize("path", sorted(RECIPE_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_goes_by_its_name(path):
    assert load_recipe(path.stem).name == path.stem


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded").mkdir()

    assert load_recipe("embedded").name == "embedded"


def test_overrides_reach_every_depth(recipe):
    read = recipe("seed=3", "data.path=elsewhere", "stages.0.epochs=2", "model.vision.patch_size=8")

    assert (read.seed, read.data.path, read.stages[0].epochs) == (3, "elsewhere", 2.0)
    assert read.model.vision == {"model_type": "vit", "patch_size": 8}


def test_an_override_may_open_a_part_that_was_not_there(recipe):
    assert recipe("tokenizer.vocab_size=300").tokenizer.vocab_size == 300


def test_recipe_values_read_back_as_the_recipe(recipe):
    read = recipe("seed=5")

    assert recipe(**recipe_values(read)) == read


MISTAKES = [
    ({"overrides": ["data.pth=x"]}, r"unknown key data\.pth; the nearest one is data\.path"),
    (
        {"overrides": ["stages.0.learning_rat=1.0"]},
        r"unknown key stages\.0\.learning_rat.*stages\.0\.learning_rate",
    ),
    ({"overrides": ["seed=one"]}, "seed = 'one' must be of type int"),
    ({"overrides": ["seed=1.5"]}, "seed = 1.5 must be of type int"),
    ({"overrides": ["seed=true"]}, "seed = True must be of type int"),
    ({"overrides": ["stages.0.epochs=many"]}, r"stages\.0\.epochs = 'many' must be of type float"),
    ({"overrides": ["stages.0.learning_rate=1e-3"]}, "write 1.0e-3"),
    ({"overrides": ["stages.0.trainable=fusion"]}, r"stages\.0\.trainable must be a list"),
    ({"overrides": ["stages.0.trainable=[1]"]}, r"stages\.0\.trainable\.0 = 1 must be of type str"),
    ({"overrides": ["data.max_train_records=few"]}, "must be of type int or nothing"),
    ({"overrides": ["data.normal_films=1.5"]}, r"data\.normal_films = 1\.5 is a share"),
    ({"overrides": ["stages.0.texts_per_film=0"]}, r"stages\.0\.texts_per_film = 0 must be at least 1"),
    ({"overrides": ["stages.0.losses.order=1.0"]}, r"give it a share in stages\.0\.tasks"),
    ({"overrides": ["model.new_gaze=true"]}, r"model\.new_gaze needs model\.checkpoint"),
    ({"overrides": ["stages.7.epochs=1"]}, "the recipe has no such place"),
    ({"overrides": ["stages.last.epochs=1"]}, "the recipe has no such place"),
    ({"overrides": ["name.first=x"]}, "the recipe has no such place"),
    ({"overrides": ["seed=[1"]}, "not readable as YAML"),
    ({"overrides": ["seed"]}, "write key=value"),
    ({"data": None}, "the key data is missing"),
    ({"data": {}}, r"the key data\.path is missing"),
    ({"data": "phantoms"}, r"data\. must be a mapping"),
    ({"stages": [{"name": "one", "losses": {}}]}, r"the key stages\.0\.trainable is missing"),
    ({"modle": {}}, "unknown key modle; the nearest one is model"),
]


@pytest.mark.parametrize("mistake, message", MISTAKES, ids=[str(mistake) for mistake, _ in MISTAKES])
def test_a_mistake_is_named_with_its_place(recipe, mistake, message):
    changes = dict(mistake)

    with pytest.raises(RecipeError, match=message):
        recipe(*changes.pop("overrides", []), **changes)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_what_is_no_mapping_is_no_recipe(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=r"odd\.yaml: the recipe must be a mapping"):
        load_recipe(str(path), ["seed=1"])


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00"])
def test_a_file_that_is_no_yaml_is_named(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)

    with pytest.raises(RecipeError, match=r"odd\.yaml: not readable as YAML"):
        load_recipe(str(path))


def test_an_unknown_recipe_names_the_shipped_ones():
    with pytest.raises(RecipeError, match=r"no such recipe file.*embedded"):
        load_recipe("nowhere")
