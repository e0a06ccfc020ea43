"""Data of other people: the README's ten-line recipes, column maps, splits, and what is said of what does not fit."""

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText

import modeling_gaze2report  # noqa: F401 - importing it registers the model with the auto classes
from modeling_gaze2report.processing.errors import DataError, ModelError, RecipeError
from modeling_gaze2report.processing.report_labels import FINDINGS
from modeling_gaze2report.training import stages
from modeling_gaze2report.training.data import load_records
from modeling_gaze2report.training.recipe import DataRecipe, load_recipe
from modeling_gaze2report.training.stages import run

from ..tiny_export import REPORTS, export_tiny_model
from .toy import write_phantoms

README = Path(__file__).parents[2] / "README.md"
RECIPES = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Twelve images of six patients and a table with columns of its own."""
    folder = tmp_path_factory.mktemp("foreign") / "films"
    folder.mkdir()
    generator = np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "name", "patient", "text", "gaze"])
        for number in range(12):
            pixels = generator.integers(0, 256, (48, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02}.png")
            gaze = json.dumps(generator.uniform(0.1, 0.9, (5, 3)).round(3).tolist())
            rows.writerow([f"{number:02}.png", f"film {number}", f"patient {number // 2}", REPORTS[number % 3], gaze])
    return folder


@pytest.mark.parametrize("text", RECIPES, ids=[yaml.safe_load(text)["name"] for text in RECIPES])
def test_a_recipe_of_the_readme_fine_tunes_to_foreign_films(text, films, checkpoint, tmp_path):
    assert len(text.splitlines()) <= 10
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    output = tmp_path / "model"
    overrides = [f"data.path={films}", f"model.checkpoint={checkpoint}", f"output={output}", "device=cpu"]

    run(
        load_recipe(
            str(path), [*overrides, "stages.0.max_steps=2", "stages.0.batch_size=4", "data.validation_share=0.4"]
        )
    )

    _, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    log = [json.loads(line) for line in (tmp_path / "model-records" / "training_log.jsonl").read_text().splitlines()]
    losses = yaml.safe_load(text)["stages"][0]["losses"]
    assert any(set(losses) <= set(line) for line in log)


def test_there_are_recipes_with_and_without_gaze():
    columns = [yaml.safe_load(text)["data"]["columns"] for text in RECIPES]

    assert sorted("fixations" in one for one in columns) == [False, True]


MAP = {"image_id": "name", "patient_id": "patient", "report": "text", "fixations": "gaze"}


def test_foreign_columns_become_the_records(films):
    train, validation = load_records(DataRecipe(str(films), columns=MAP, validation_share=0.4))

    record = train[0]
    assert record["image_id"].startswith("film ") and record["report"] in REPORTS
    assert len(record["fixations"]) == 5 and set(record["fixations"][0]) == {"x", "y", "duration_s", "onset_s"}
    # No patient on both sides.
    assert len(train) + len(validation) == 12
    assert not set(train.column("patient_id")) & set(validation.column("patient_id"))


def test_a_column_that_is_not_there_is_named_with_those_that_are(films):
    with pytest.raises(DataError, match=r"data\.columns maps report to 'txt'.*columns are .*text"):
        load_records(DataRecipe(str(films), columns=MAP | {"report": "txt"}, validation_share=0.4))


def test_an_empty_split_is_named(films):
    with pytest.raises(DataError, match="the split validation holds no record"):
        load_records(DataRecipe(str(films), columns=MAP, validation_share=0.0))


# -- fewer normal films -----------------------------------------------------------------------------------------------


def is_normal(record):
    return record["labels"][FINDINGS.index("No Finding")] == 1


def test_fewer_normal_films_take_from_the_normal_ones_alone(tmp_path):
    path = str(write_phantoms(tmp_path, num_train=40))
    everything, validation = load_records(DataRecipe(path))
    normal = {one["image_id"] for one in everything if is_normal(one)}
    others = {one["image_id"] for one in everything} - normal

    kept = {
        share: [one["image_id"] for one in load_records(DataRecipe(path, normal_films=share))[0]] for share in (0, 0.4)
    }
    again, same_validation = load_records(DataRecipe(path, normal_films=0.4))
    streamed, _ = load_records(DataRecipe(path, normal_films=0.4, streaming=True))

    assert len(normal) > 4 and len(others) > 4
    assert set(kept[0]) == others
    assert others < set(kept[0.4]) < others | normal
    assert [one["image_id"] for one in again] == kept[0.4]
    assert {one["image_id"] for one in itertools.islice(streamed, len(again))} == set(kept[0.4])
    assert len(same_validation) == len(validation)


def test_which_normal_films_stay_depends_on_the_seed(tmp_path):
    recipe = DataRecipe(str(write_phantoms(tmp_path, num_train=40)), normal_films=0.4)

    assert len({tuple(one["image_id"] for one in load_records(recipe, seed)[0]) for seed in range(4)}) > 1


@pytest.mark.parametrize("streaming", [False, True])
def test_normal_films_cannot_be_told_without_labels(tmp_path, streaming):
    for split in ("train", "validation"):
        Dataset.from_dict({"image": ["a.png"], "report": ["Clear."]}).to_parquet(tmp_path / f"{split}-00000.parquet")

    with pytest.raises(DataError, match="normal_films needs labels"):
        load_records(DataRecipe(str(tmp_path), normal_films=0.4, streaming=streaming))


def test_nothing_left_is_an_error(tmp_path):
    labels = [1.0] + [0.0] * (len(FINDINGS) - 1)
    for split in ("train", "validation"):
        Dataset.from_dict({"image": ["a.png"], "labels": [labels]}).to_parquet(tmp_path / f"{split}-00000.parquet")

    with pytest.raises(DataError, match="every training film is normal"):
        load_records(DataRecipe(str(tmp_path), normal_films=0.0))


def test_further_folders_follow_the_first(tmp_path):
    first, second = str(write_phantoms(tmp_path)), str(write_phantoms(tmp_path / "second", num_train=5))

    together, validation = load_records(DataRecipe(first, more_paths=[second, first]))
    fewer, _ = load_records(DataRecipe(first, more_paths=[second], max_train_records=2))
    alone = [[one["image_id"] for one in load_records(DataRecipe(path))[0]] for path in (first, second)]

    assert len(alone[1]) == 5
    assert [one["image_id"] for one in together] == alone[0] + alone[1] + alone[0]
    assert [one["image_id"] for one in fewer] == alone[0][:2] + alone[1][:2]
    assert len(validation) == len(load_records(DataRecipe(first))[1])


def test_a_further_folder_of_another_kind_is_named(tmp_path):
    first, other = str(write_phantoms(tmp_path)), tmp_path / "other"
    other.mkdir()
    Dataset.from_dict({"image": [3], "report": ["Clear."]}).to_parquet(other / "train-00000.parquet")

    with pytest.raises(DataError, match="other: its records are of another kind than those of"):
        load_records(DataRecipe(first, more_paths=[str(other)]))


def test_further_folders_are_not_streamed():
    with pytest.raises(RecipeError, match=r"data\.more_paths cannot be read with data\.streaming"):
        load_recipe("finetune", ["data.path=a", "data.more_paths=[b]", "data.streaming=true"])


def recipe_of(films, checkpoint, output, *overrides):
    defaults = [f"data.path={films}", f"model.checkpoint={checkpoint}", f"output={output}", "num_workers=0"]
    columns = [f"data.columns={json.dumps(MAP)}", "data.validation_share=0.4"]
    return load_recipe("finetune", [*defaults, *columns, *overrides])


def test_a_loss_without_its_annotation_is_named_with_its_column(films, checkpoint, tmp_path):
    recipe = recipe_of(films, checkpoint, tmp_path / "model", "stages.0.losses={findings: 1.0}")

    with pytest.raises(DataError, match=r"the loss findings, but none of the first \d+ records of train has labels"):
        run(recipe)


def test_cuda_is_asked_for_where_there_is_none(films, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(stages.torch.cuda, "is_available", lambda: False)
    recipe = recipe_of(films, checkpoint, tmp_path / "model", "device=cuda")

    with pytest.raises(RecipeError, match="no CUDA device here: set device=cpu"):
        run(recipe)


def test_a_checkpoint_of_other_shapes_is_refused(films, checkpoint, tmp_path):
    recipe = recipe_of(films, checkpoint, tmp_path / "model", "model.scanpath={hidden_size: 64}")

    with pytest.raises(ModelError, match=r"model\.checkpoint .*(shape|mismatched)"):
        run(recipe)


def test_no_such_checkpoint(films, tmp_path):
    recipe = recipe_of(films, tmp_path / "nowhere", tmp_path / "model")

    with pytest.raises(ModelError, match=r"model\.checkpoint .*nowhere: it cannot be loaded"):
        run(recipe)


def test_streamed_data_train_like_data_in_memory(checkpoint, tmp_path):
    data = write_phantoms(tmp_path)
    options = [f"data.path={data}", f"model.checkpoint={checkpoint}", f"output={tmp_path / 'model'}", "num_workers=1"]
    options += ["data.streaming=true", "data.normal_films=0.5", "stages.0.max_steps=3", "stages.0.batch_size=4"]
    recipe = load_recipe("finetune", [*options, "device=cpu"])

    assert (run(recipe) / "config.json").is_file()
