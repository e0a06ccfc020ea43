"""The model card: what the run tells, metadata that the Hub accepts, nothing of the machine it was made on."""

import json

import pytest
from huggingface_hub import ModelCard

from modeling_gaze2report.cli import main
from modeling_gaze2report.processing.errors import DataError
from modeling_gaze2report.training.model_card import MARK, card_text, write_card
from modeling_gaze2report.training.recipe import load_recipe, recipe_values

HISTORY = [
    {"stage": "report", "step": 0, "eval_loss": 6.0, "eval_report": 5.5, "eval_auroc": 0.5, "eval_runtime": 1.0},
    {"stage": "report", "step": 1, "loss": 5.0, "report": 4.0, "learning_rate": 0.001},
    {"stage": "report", "step": 9, "eval_loss": 2.0, "eval_report": 1.25, "eval_auroc": 0.75, "eval_runtime": 1.0},
]
METRICS = {
    "schema": "gaze2report.metrics/1",
    "n": 278,
    "protocol": "raw",
    "settings": {
        "data": "phantom (num_films 900, seed 7)",
        "data_folder": "phantoms-2026",
        "split": "test",
        "gaze_source": "predicted",
    },
    "metrics": {"bleu_4": {"value": 0.0817, "ci95": [0.0733, 0.0904]}, "scanmatch": {"value": 0.2561, "ci95": None}},
    "comparisons": {},
    "unavailable": {"radgraph_f1": "no weights"},
}


@pytest.fixture
def run(tmp_path):
    """A folder with a finished run's log, as training leaves it, and a prepared data set."""
    data = tmp_path / "secret-place" / "films"
    data.mkdir(parents=True)
    splits = {"train": {"num_records": 70, "num_patients": 50}, "validation": {"num_records": 9, "num_patients": 8}}
    (data / "dataset.json").write_text(json.dumps({"source": "phantom", "licence": "", "splits": splits}))
    folder = tmp_path / "reader"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    recipe = recipe_values(load_recipe("embedded", [f"data.path={data}", f"output={folder}", "seed=5"]))
    (folder / "training_log.json").write_text(json.dumps({"recipe": recipe, "history": HISTORY}))
    return folder


def change(folder, edit):
    """Edit the run's log in place."""
    log = json.loads((folder / "training_log.json").read_text())
    edit(log)
    (folder / "training_log.json").write_text(json.dumps(log))


def of_source(folder, source, licence=""):
    """Let the data have come from elsewhere."""
    log = json.loads((folder / "training_log.json").read_text())
    path = f"{log['recipe']['data']['path']}/dataset.json"
    with open(path, encoding="utf-8") as file:
        values = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(values | {"source": source, "licence": licence}, file)


def card_of(folder, metrics=()):
    assert write_card(folder, metrics)
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def test_the_metadata_are_what_the_hub_reads(run):
    data = card_of(run).data

    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "image-text-to-text")
    assert data.language == "en" and "chest-x-ray" in data.tags
    assert data.eval_results is None


def test_the_run_is_told(run):
    text = card_of(run).text

    assert "Recipe `embedded`, from random weights, seed 5." in text
    assert "source `phantom`, 70 train records of 50 patients, 9 validation records of 8 patients." in text
    recipe = json.loads((run / "training_log.json").read_text())["recipe"]
    for stage in recipe["stages"]:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {stage['name']} | {stage['trainable'][0]}")]
        assert ", ".join(stage["trainable"]) in row
        assert all(f"{name} ({weight:g})" in row for name, weight in stage["losses"].items() if weight)


def test_figures_stand_with_their_command(run):
    text = card_of(run).text

    assert "| report | report | 5.5 | 1.25 |" in text
    assert "| report | auroc | 0.5 | 0.75 |" in text
    assert "runtime" not in text
    assert "gaze2report train embedded data.path=films" in text
    assert "Its reports have not been evaluated" in text


def test_an_evaluation_is_a_table_and_a_model_index(run, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(METRICS))

    card = card_of(run, [path])

    assert "| bleu_4 | 0.082 [0.073, 0.090] |" in card.text and "| scanmatch | 0.256 |" in card.text
    assert "On phantom (num_films 900, seed 7), test (278 films, gaze predicted, protocol raw)" in card.text
    assert "gaze2report evaluate --data phantoms-2026 --split test" in card.text
    assert "Not computed: radgraph_f1." in card.text
    assert "have not been evaluated" not in card.text
    results = {one.metric_type: one for one in card.data.eval_results}
    assert set(results) == {"bleu_4", "scanmatch"}
    assert results["bleu_4"].metric_value == 0.0817 and results["bleu_4"].metric_args == {"ci95": [0.0733, 0.0904]}
    assert card.data.model_name == "reader"


def test_nothing_of_the_machine_is_told(run, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(METRICS | {"settings": {"data": "/home/somebody/phantoms-2026"}}))
    change(run, lambda log: log["recipe"]["model"].update(checkpoint=str(tmp_path / "base"), vision={}, text={}))

    text = (card_of(run, [path]), (run / "README.md").read_text())[1]

    assert str(tmp_path) not in text and "secret-place" not in text and "somebody" not in text
    assert "from the checkpoint base" in text


def test_it_says_what_it_is_not_for(run):
    text = card_of(run).text

    assert "Not a medical device, not for clinical use." in text
    assert "It has never learned from a real film" in text
    assert all(f"arxiv.org/abs/{number}" in text for number in ("2604.08600", "2508.13068", "2604.14316"))


@pytest.mark.parametrize("source, is_gated", [("folder", False), ("mimic-cxr", True)])
def test_terms_follow_the_data(run, source, is_gated):
    of_source(run, source, licence="Ask the hospital.")

    card = card_of(run)

    assert card.data.license == "other" and card.data.license_name == "see-the-terms-below"
    assert "Of the data: Ask the hospital." in card.text
    assert ("Set the repository to gated" in card.text) == is_gated
    assert "never learned from a real film" not in card.text


def test_further_folders_of_data_are_told_of(run, tmp_path):
    films = tmp_path / "secret-place" / "more-films"
    films.mkdir()
    splits = {"train": {"num_records": 11, "num_patients": 10}}
    (films / "dataset.json").write_text(json.dumps({"source": "films", "licence": "Name them.", "splits": splits}))
    change(run, lambda log: log["recipe"]["data"].update(more_paths=[str(films), str(films)]))

    card = card_of(run)

    assert card.data.license == "other"
    assert "70 train records of 50 patients" in card.text
    assert card.text.count("source `films`, 11 train records of 10 patients.") == 1
    assert "Of the data: Name them." in card.text
    assert "never learned from a real film" not in card.text and "secret-place" not in card.text
    assert "gaze2report train embedded data.path=films data.more_paths='[more-films, more-films]'" in card.text


def test_of_a_checkpoints_own_data_nothing_is_claimed(run):
    change(run, lambda log: log["recipe"]["model"].update(checkpoint="base", vision={}, text={}))

    assert "never learned from a real film" not in card_of(run).text


def test_a_fine_tune_of_a_model_on_the_hub_names_its_base(run):
    change(run, lambda log: log["recipe"]["model"].update(checkpoint="someone/reader-base", vision={}, text={}))

    card = card_of(run)

    assert card.data.base_model == "someone/reader-base"
    assert card.data.license == "other"


def test_an_adapter_is_called_one(run):
    (run / "config.json").rename(run / "adapter_config.json")
    change(run, lambda log: log["recipe"].update(lora={"rank": 8, "alpha": 16, "merge": False}))

    card = card_of(run)

    assert card.data.library_name == "peft"
    assert "An adapter for a Gaze2Report model" in card.text and "LoRA of rank 8, alpha 16." in card.text


def test_gaze_that_changes_over_a_stage_is_told_from_start_to_end(run):
    change(
        run,
        lambda log: log["recipe"]["stages"][-1].update(
            recorded_gaze=0.8, predicted_gaze=0.1, recorded_gaze_end=0.2, predicted_gaze_end=None
        ),
    )

    assert "0.8 / 0.1 / 0.1 to 0.2 / 0.1 / 0.7 |" in card_of(run).text


def test_a_card_of_somebodys_own_is_left_alone(run):
    (run / "README.md").write_text("my own words")

    assert not write_card(run)
    assert (run / "README.md").read_text() == "my own words"


def test_a_card_of_ours_is_written_anew(run):
    (run / "README.md").write_text(f"{MARK}\nold")

    assert write_card(run)
    assert "# reader" in (run / "README.md").read_text()


def test_without_a_record_of_the_run_the_card_says_so(tmp_path):
    text = card_text(tmp_path / "model", None)

    assert "No record of the training stands beside the model." in text
    assert ModelCard(text, ignore_metadata_errors=False).data.license == "other"


@pytest.mark.parametrize("rank, is_written", [("0", True), ("1", False)])
def test_the_command_writes_it_once(run, monkeypatch, capsys, rank, is_written):
    monkeypatch.setattr("modeling_gaze2report.training.stages.run", lambda recipe: run)
    monkeypatch.setenv("RANK", rank)

    assert main(["train", "embedded"]) == 0

    assert (run / "README.md").is_file() == is_written
    assert capsys.readouterr().out == (f"{run}\n" if is_written else "")


def test_a_damaged_log_is_named(run):
    (run / "training_log.json").write_text("{")

    with pytest.raises(DataError, match=r"training_log\.json: it cannot be read as JSON"):
        write_card(run)
