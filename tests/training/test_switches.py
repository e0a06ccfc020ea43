"""Whole runs with each switch of a recipe: mixed precision, checkpointed or compiled towers, readers, workers, LoRA."""

import json
from functools import partialmethod

import pytest
import torch
import yaml
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_gaze2report  # noqa: F401 - importing it registers the model with the auto classes
from modeling_gaze2report.cli import main
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.training.data import ReportCollator
from modeling_gaze2report.training.progress import read_log
from modeling_gaze2report.training.recipe import PARTS, LossWeights, StageRecipe, load_recipe
from modeling_gaze2report.training.stages import LossModel, prepare_model, run

from ..tiny_export import export_tiny_model
from .one_step import UNDRAWN_LOSSES, phantoms, without_dropout
from .toy import write_phantoms

LOSSES = dict.fromkeys(UNDRAWN_LOSSES, 1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # Of each of these films the report says how severe something is: every batch has something for every loss.
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), num_train=4, num_validation=2, seed=50)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


# -- switches ---------------------------------------------------------------------------------------------------------


def losses_of(folder, data, checkpoint, *overrides):
    """Every loss at each of two steps, by name, of a fine-tuning with one stage and all losses."""
    output = folder / "model"
    places = [f"data.path={data}", f"model.checkpoint={checkpoint}", f"output={output}", "num_workers=0", "device=cpu"]
    lengths = ["stages.0.max_steps=2", "stages.0.batch_size=2", "stages.0.logging_steps=1", "stages.0.eval_steps=9"]
    stage = [f"stages.0.losses={json.dumps(LOSSES)}", f"stages.0.trainable={json.dumps(list(PARTS))}"]
    stage.append("stages.0.tasks={report: 0.5, order: 0.5}")
    run(load_recipe("finetune", [*places, *lengths, *stage, *overrides]))
    steps = [line for line in read_log(folder / "model-records" / "training_log.jsonl") if "learning_rate" in line]
    assert [line["step"] for line in steps] == [1, 2]
    return {name: torch.tensor([float(line[name]) for line in steps]) for name in LOSSES}


@pytest.fixture(scope="module")
def plain(data, checkpoint, tmp_path_factory):
    return losses_of(tmp_path_factory.mktemp("plain"), data, checkpoint)


@pytest.mark.parametrize(
    "override, tolerance",
    [
        ("gradient_checkpointing=true", 1e-4),
        ("num_workers=1", 0.0),
        ("compile=true", 1e-4),
        # Eight bits of mantissa in the towers, and two steps of AdamW on what they give.
        ("precision=bf16", 0.05),
    ],
)
def test_a_switch_changes_speed_and_memory_but_not_the_losses(
    override, tolerance, plain, data, checkpoint, tmp_path, monkeypatch
):
    # What torch.compile makes of the towers is run by Python: generating machine code takes minutes on two cores.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))

    losses = losses_of(tmp_path, data, checkpoint, override)

    for name, values in losses.items():
        torch.testing.assert_close(values, plain[name], rtol=tolerance, atol=tolerance, msg=name)


def test_readers_are_told_apart_where_the_model_knows_any(data, checkpoint, plain, tmp_path):
    readers = ["model.scanpath={num_readers: 4}", "stages.0.reader_dropout=0.0"]

    losses = losses_of(tmp_path, data, checkpoint, *readers)

    assert all(values.isfinite().all() for values in losses.values())
    assert not torch.equal(losses["scanpath"], plain["scanpath"])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    start = torch.zeros(model.config.scanpath_config.hidden_size)
    assert model.model.scanpath.reader_embedding.weight.shape == (5, len(start))


def test_gaze_keeps_full_precision_under_autocast():
    """Coordinates, likelihoods and boxes are those of float32, given the same patches."""
    model, processor = without_dropout()
    records = phantoms(range(4))
    batch = ReportCollator(processor, recorded_gaze=1.0, predicted_gaze=0.0, with_text=True)(
        [records[index] for index in (0, 2, 3)]
    )
    images = {name: batch[name] for name in ("pixel_values", "film_boxes", "fixations", "fixation_mask")}
    # The same patches for both: what is left is the gaze parts' own.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        patches = model.model.get_patch_features(images["pixel_values"])
    model.model.get_patch_features = lambda pixel_values, **kwargs: patches

    def read():
        features = model.model.get_image_features(**images, soft_gaze=True, return_dict=True)
        return {
            "heat_map": features.heat_map,
            "readout_attention": features.readout_attention,
            "boxes": features.findings.boxes,
            "region_boxes": features.findings.region_boxes,
            "logits": features.findings.logits,
            "likelihood": model.score_scanpath(images["pixel_values"], images["fixations"], images["fixation_mask"]),
            "predicted": model.predict_scanpath(images["pixel_values"]).fixations,
        }

    learner = LossModel(model, StageRecipe("step", list(PARTS), LossWeights(**LOSSES))).eval()
    with torch.no_grad():
        expected, losses = read(), learner(batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found, under_autocast = read(), learner(batch)[0]

    for name, value in expected.items():
        assert value.dtype == found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    for name in set(losses) - {"report", "contrast"}:
        torch.testing.assert_close(under_autocast[name], losses[name], rtol=0, atol=0, msg=name)
    for name in ("report", "contrast"):  # through the language model
        torch.testing.assert_close(under_autocast[name], losses[name], rtol=0.02, atol=0.02, msg=name)


# -- LoRA -------------------------------------------------------------------------------------------------------------


def train_with_lora(data, checkpoint, folder, **changes):
    """`gaze2report train` on a recipe file of two stages; returns the folder that it wrote."""
    output = folder / "model"
    stage = {"batch_size": 2, "max_steps": 2, "eval_steps": 9, "learning_rate": 0.01}
    recipe = {
        "name": "two-stages",
        "output": str(output),
        "device": "cpu",
        "data": {"path": str(data)},
        "model": {"checkpoint": str(checkpoint)},
        "lora": {"rank": 2, "dropout": 0.0},
        "gradient_checkpointing": True,
        "stages": [
            stage | {"name": "perception", "trainable": ["fusion", "perception"], "losses": {"findings": 1.0}},
            stage
            | {
                "name": "report",
                "trainable": ["scanpath", "fusion", "projector", "language_model"],
                "losses": {"report": 1.0, "scanpath": 0.5},
                "soft_gaze": True,
            },
        ],
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["train", str(path)]) == 0
    return output


@pytest.fixture(scope="module")
def adapter(data, checkpoint, tmp_path_factory):
    return train_with_lora(data, checkpoint, tmp_path_factory.mktemp("adapter"))


@torch.no_grad()
def logits_of(model, processor):
    film = generate_phantom(seed=4, index=0, image_size=64)["image"]
    batches = [processor(images=film, return_tensors="pt", gaze=gaze) for gaze in (None, [[0.25, 0.5, 0.2]])]
    return torch.cat([model.eval()(**batch).logits for batch in batches])


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def read_by_adapter(adapter):
    """Processor and logits of the adapter, loaded by the auto class."""
    processor = AutoProcessor.from_pretrained(adapter)
    return processor, logits_of(load(adapter), processor)


def test_a_run_with_lora_leaves_an_adapter_that_loads_in_three_ways(adapter, checkpoint, read_by_adapter):
    processor, expected = read_by_adapter
    base = load(checkpoint)
    untrained = logits_of(base, processor)

    wrapped = logits_of(PeftModel.from_pretrained(load(checkpoint), adapter), processor)
    base.load_adapter(str(adapter))

    assert (adapter / "adapter_model.safetensors").is_file() and not (adapter / "model.safetensors").exists()
    assert "An adapter for a Gaze2Report model" in (adapter / "README.md").read_text()
    assert (expected - untrained).abs().max() > 1e-3
    torch.testing.assert_close(wrapped, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of(base, processor), expected, rtol=0, atol=1e-5)


def test_merged_at_the_end_of_the_run_it_is_the_same_model(data, checkpoint, tmp_path, read_by_adapter):
    processor, expected = read_by_adapter

    merged = train_with_lora(data, checkpoint, tmp_path, lora={"rank": 2, "dropout": 0.0, "merge": True})

    assert not (merged / "adapter_config.json").exists()
    torch.testing.assert_close(logits_of(load(merged), processor), expected, rtol=0, atol=1e-5)


def test_lora_beside_a_bfloat16_language_model(data, checkpoint, tmp_path, read_by_adapter):
    processor, expected = read_by_adapter

    adapter = train_with_lora(data, checkpoint, tmp_path, precision="bf16")

    logits = logits_of(load(adapter), processor)
    assert logits.isfinite().all()
    # Near the run in full precision, and far from the model before it.
    untrained = logits_of(load(checkpoint), processor)
    assert (logits - expected).abs().mean() < 0.5 * (expected - untrained).abs().mean()


# -- a new gaze branch ------------------------------------------------------------------------------------------------


def test_a_new_gaze_branch_stands_between_the_towers_of_the_checkpoint(checkpoint):
    recipe = load_recipe(
        "finetune", [f"model.checkpoint={checkpoint}", "data.path=unused", "model.new_gaze=true", "seed=7"]
    )

    before = AutoModelForImageTextToText.from_pretrained(checkpoint)
    after, _ = prepare_model(recipe, train=None)

    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    towers = ("model.vision_tower.", "model.language_model.", "lm_head.")
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith(towers))
    for name in ("scanpath.start", "fusion.global_node", "projector.linear_1.weight", "perception.order_hidden.weight"):
        assert not torch.equal(old[f"model.{name}"], new[f"model.{name}"]), name
