"""The embedded recipe from records to a Hub folder, at toy size."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_gaze2report  # noqa: F401 - importing it registers the model with the auto classes
from modeling_gaze2report.cli import main
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.errors import DataError, InputError, RecipeError
from modeling_gaze2report.training import stages
from modeling_gaze2report.training.recipe import load_recipe
from modeling_gaze2report.training.stages import PARTS, freeze_all_but, part, run

from ..tiny_export import build_tiny_model
from .toy import TOY, write_phantoms


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder of eight phantoms to learn from and four to check."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


def parts_of(model):
    """A copy of every part's weights and statistics."""
    return {name: {key: value.clone() for key, value in part(model, name).state_dict().items()} for name in PARTS}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The recipe's run: folder, recipe, and for every stage the names of the parts that changed."""
    output = tmp_path_factory.mktemp("run") / "model"
    recipe = load_recipe("embedded", [*TOY, f"data.path={data}", f"output={output}"])
    changed = {}
    run_stage = stages.run_stage

    def watched(recipe, stage, model, *arguments):
        before = parts_of(model)
        history = run_stage(recipe, stage, model, *arguments)
        after = parts_of(model)
        changed[stage.name] = {
            name for name in PARTS if any(not torch.equal(before[name][key], after[name][key]) for key in before[name])
        }
        return history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "run_stage", watched)
        folder = run(recipe)
    return folder, recipe, changed


def test_what_is_frozen_does_not_change_and_the_rest_does(trained):
    _, recipe, changed = trained

    assert changed == {stage.name: set(stage.trainable) for stage in recipe.stages}


def test_the_trained_model_loads_whole_and_writes(trained):
    folder, _, _ = trained

    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder)

    assert not any(info.values()), info
    film = generate_phantom(seed=4, index=0, image_size=64)["image"]
    inputs = processor(images=film, return_tensors="pt")
    (report,) = processor.batch_decode_report(model.generate(**inputs, max_new_tokens=8))
    assert isinstance(report, str)


def test_the_log_holds_the_recipe_and_every_loss(trained):
    folder, recipe, _ = trained

    log = json.loads((folder / "training_log.json").read_text())

    assert log["recipe"]["seed"] == 1 and log["recipe"]["stages"][0]["epochs"] == 1.0
    for stage in recipe.stages:
        entries = [entry for entry in log["history"] if entry["stage"] == stage.name]
        weighted = {name for name, weight in vars(stage.losses).items() if weight}
        evaluated = {key: value for entry in entries for key, value in entry.items() if key.startswith("eval_")}
        # None of the four validation films draws the task that the order is learned from.
        assert {f"eval_{name}" for name in weighted - {"order"}} <= set(evaluated)
        assert all(torch.tensor(float(value)).isfinite() for value in evaluated.values())


def test_training_leaves_nothing_beside_the_model_but_its_records(trained):
    folder, _, _ = trained

    assert {entry.name for entry in folder.parent.iterdir()} == {"model", "model-records"}


def test_an_unknown_part_is_refused():
    model, _ = build_tiny_model()

    with pytest.raises(RecipeError, match="unknown trainable part 'fusoin'; the parts are vision_tower"):
        freeze_all_but(model, ["fusoin"])


def test_tied_weights_learn_with_either_owner():
    model, _ = build_tiny_model()

    freeze_all_but(model, ["lm_head"])

    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.lm_head.weight.requires_grad
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 1


def test_missing_data_are_said_before_anything_else(tmp_path):
    recipe = load_recipe("embedded", [*TOY, f"data.path={tmp_path}", f"output={tmp_path / 'model'}"])

    with pytest.raises(DataError, match="gaze2report prepare"):
        run(recipe)


def test_an_output_that_would_replace_other_files_is_refused_before_training(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    recipe = load_recipe("embedded", [*TOY, f"data.path={data}", f"output={tmp_path}"])

    with pytest.raises(InputError, match="holds files and no model"):
        run(recipe)


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.vision.model_type=retina", "retina"),
        ("model.grid_size=0", "grid_size"),
        ("stages.0.losses.detail_maps=1", "stage perception: the loss detail_maps .*detail_hidden_size .48 is usual"),
        ("stages.0.losses.severities=1", "stage perception: the loss severities .*num_severities = 0: set .* to 4"),
        ("stages.2.losses.views=1", "stage report: the loss views teaches PA, AP, .*num_views = 0: set .* to 2"),
        ("model.fusion.num_heads=3", r"unknown key model\.fusion\.num_heads; .* model\.fusion\.num_attention_heads"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_recipe_error(data, tmp_path, override, message):
    recipe = load_recipe("embedded", [*TOY, f"data.path={data}", f"output={tmp_path / 'model'}", override])

    with pytest.raises(RecipeError, match=message):
        run(recipe)


def test_a_mistake_in_a_recipe_is_one_line_on_the_command_line(capsys):
    assert main(["train", "embedded", "data.pth=x"]) == 2

    assert capsys.readouterr().err == ("error: embedded.yaml: unknown key data.pth; the nearest one is data.path.\n")
