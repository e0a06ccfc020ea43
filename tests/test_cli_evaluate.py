"""`gaze2report evaluate` on a tiny untrained model and a dozen phantoms, from the command line to the files."""

import json

import pytest

from modeling_gaze2report.cli import main
from modeling_gaze2report.hub_space.export import export_model
from modeling_gaze2report.processing.datasets.source_phantom import PhantomSource
from modeling_gaze2report.processing.datasets.writing import prepare
from modeling_gaze2report.training.assemble import build_model, build_tokenizer
from modeling_gaze2report.training.recipe import ModelRecipe

NUM_FILMS = 12


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    prepare(PhantomSource(num_films=NUM_FILMS, image_size=64, seed=3), folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    tokenizer = build_tokenizer(["The heart is enlarged. No pleural effusion."] * 20, vocab_size=300)
    recipe = ModelRecipe(
        vision={
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        text={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        scanpath={
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_encoder_layers": 1,
            "num_hidden_layers": 1,
            "max_fixations": 8,
        },
        fusion={
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "region_grid_size": 2,
            "num_fixation_slots": 2,
        },
        image_size=64,
        grid_size=8,
    )
    model, processor = build_model(recipe, tokenizer)
    model.generation_config.max_new_tokens = 8
    return export_model(model, processor, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def results(phantoms, model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    where = ["--data", str(phantoms), "--split", "train", "--model", str(model_folder), "--out", str(out)]
    status = main(["evaluate", *where, "--controls", "--max-records", "8", "--batch-size", "4"])
    assert status == 0
    return out


def test_writes_the_three_files_of_the_contract(results):
    assert {path.name for path in results.iterdir()} == {"predictions.jsonl", "metrics.json", "metrics.md"}


def test_metrics_follow_the_schema(results):
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["schema"] == "gaze2report.metrics/1"
    assert metrics["n"] == 8
    for name in ("bleu_4", "chexpert_rules_macro_f1_14", "scanmatch", "auroc_macro", "miou"):
        assert name in metrics["metrics"] or name in metrics["unavailable"], name


def test_controls_name_every_source_of_gaze(results):
    controls = json.dumps(json.loads((results / "metrics.json").read_text())["controls"])
    for source in ("recorded", "none", "centre-bias", "uniform", "other-image", "order-shuffled"):
        assert source in controls


def test_chance_stands_beside_the_result(results):
    assert "chance" in (results / "metrics.md").read_text()


def test_predictions_have_one_line_a_record(results):
    lines = [json.loads(line) for line in (results / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert set(lines[0]) >= {"id", "prediction", "reference", "patient_id"}


def test_a_missing_split_names_the_files_that_it_looked_for(phantoms, tmp_path, capsys):
    status = main(["evaluate", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert status == 2
    assert "test-*.parquet" in capsys.readouterr().err
