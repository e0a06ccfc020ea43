"""`gaze2report ask`, `ground`, `describe` and the strategies of `report`, in this process, on an untrained model."""

import json

import numpy as np
import pytest
from PIL import Image

from modeling_gaze2report.cli import main
from modeling_gaze2report.processing.processing_gaze2report import Gaze2ReportProcessor

from .tiny_export import export_tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(export_tiny_model(tmp_path_factory))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60), dtype=np.uint8)).save(path)
    return str(path)


def run(model_folder, *arguments):
    return main([*arguments, "--model", model_folder, "--device", "cpu"])


def test_an_answer_is_printed_and_its_record_says_what_was_asked(model_folder, film, capsys):
    assert run(model_folder, "ask", film, "Is there <|visual_gaze|> an effusion?", "--json") == 0

    record = json.loads(capsys.readouterr().out)
    assert record["task"] == "ask"
    assert record["prompt"] == "Question: Is there <|visual_gaze|> an effusion?"
    assert record["answer"] == record["report"]
    assert record["num_drafts"] == 32


def test_on_a_terminal_a_better_draft_follows_what_was_shown(model_folder, film, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        Gaze2ReportProcessor,
        "contradictions",
        # The likeliest text is judged by itself, then three drafts at once.
        lambda self, drafts, *rest: [np.arange(len(texts), 0, -1.0) + 9 * (len(texts) == 1) for texts in drafts],
    )

    assert run(model_folder, "ask", film, "Is there an effusion?", "--num-drafts", "4") == 0

    shown, kept = capsys.readouterr().out.rstrip("\n").split("Kept instead, as it contradicts less of what was seen: ")
    assert shown.strip() != kept


def test_phrases_have_boxes_and_an_answer_whatever_the_model_wrote(model_folder, film, tmp_path, capsys):
    out = tmp_path / "boxes.png"

    assert run(model_folder, "ground", film, "a banana", "--json", "--out", str(out)) == 0

    record = json.loads(capsys.readouterr().out)
    assert record["boxes"] == [] and record["answer"]
    assert record["warnings"] == ["The phrase names no finding or region that the model knows."]
    assert Image.open(out).size[0] > 0


def test_a_box_is_described(model_folder, film, capsys):
    assert run(model_folder, "describe", film, "0.1", "0.2", "0.5", "0.6", "--json") == 0

    # 60 x 90 in a square of 64: 43 columns wide, centred, so x = 0.1 is at (10 + 4.3) / 64.
    assert json.loads(capsys.readouterr().out)["prompt"] == "What is in the box [223 200 492 599]?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "FILM", " "], "The question is empty"),
        (["ask", "FILM", "why " * 25_000], "context of 512 tokens"),
        (["ground", "FILM", ""], "The phrase is empty"),
        (["describe", "FILM", "0.5", "0.2", "0.1", "0.6"], "must have x0 < x1"),
        (["describe", "FILM", "0.5", "0.2", "nan", "0.6"], "must be four numbers"),
        (["ask", "no-such-film.png", "Why?"], "no-such-film.png cannot be read"),
        (["report", "FILM", "--writer", "template"], "add --strategy structured"),
    ],
)
def test_what_cannot_be_answered_is_said_plainly(model_folder, film, arguments, message, capsys):
    status = run(model_folder, *[film if one == "FILM" else one for one in arguments])

    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["grounded", "structured"])
def test_records_name_their_strategy_and_prompt(model_folder, film, strategy, tmp_path, capsys):
    assert run(model_folder, "report", film, "--strategy", strategy, "--out", str(tmp_path), "--no-overlay") == 0

    record = json.loads((tmp_path / "film.evidence.json").read_text())
    assert record["strategy"] == strategy
    assert record["prompt"].startswith("Write the report of this chest X-ray")
    assert ("Findings: " in record["prompt"]) == (strategy == "structured")


def test_the_template_writer_writes_the_same_every_time(model_folder, film, capsys):
    texts = []
    for _ in range(2):
        assert run(model_folder, "report", film, "--strategy", "structured", "--writer", "template") == 0
        texts.append(capsys.readouterr().out)

    assert texts[0] == texts[1] != ""
