"""`gaze2report evaluate --tasks`: scores of a system that answers as these tests say, and every row on a real model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from modeling_gaze2report import task_evaluation
from modeling_gaze2report.cli import main
from modeling_gaze2report.evaluation import data_name, training_answers
from modeling_gaze2report.processing.datasets.source_phantom import PhantomSource
from modeling_gaze2report.processing.datasets.writing import prepare
from modeling_gaze2report.processing.grounding import Looking, order_text, read_grounded_text
from modeling_gaze2report.processing.metrics.resampling import Bootstrap, compare_all, mean_statistics
from modeling_gaze2report.processing.report_labels import FINDINGS
from modeling_gaze2report.task_evaluation import (
    NEEDS,
    TaskEvaluation,
    assertions_with_box,
    blind_answers,
    chance_levels,
    followed_pairs,
    pairs_in_order,
)
from modeling_gaze2report.training.tasks import TaskExample

from .tiny_export import export_tiny_model

EFFUSION, NODULE = "Pleural Effusion", "Lung Lesion"


def record(name, questions=(), boxes=(), absent=()):
    labels = [None] * len(FINDINGS)
    for finding in absent:
        labels[FINDINGS.index(finding)] = 0
    return {
        "image": np.arange(256, dtype=np.uint8).reshape(16, 16),
        "image_id": name,
        "patient_id": name,
        "questions": [{"question": question, "answer": answer} for question, answer in questions],
        "boxes": [{"label": label, **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))} for label, box in boxes],
        "labels": labels,
    }


def scores(records, patch, answers, **options):
    """What `TaskEvaluation` gives for a system whose functions of `inference` answer as they are told, by task."""
    for name, function in answers.items():
        patch.setattr(task_evaluation, name, function)
    tasks = TaskEvaluation(SimpleNamespace(processor=None), records, batch_size=2, **options)
    for task in ("questions", "phrases", "boxes"):
        getattr(tasks, task)()
    return {name: metric.score() for name, metric in tasks.results.metrics.items()}, tasks.results.lines


def test_questions_are_counted_one_by_one_and_the_blind_answers_come_from_other_films(monkeypatch):
    records = [
        record("a", [("Is there an effusion?", "yes"), ("Which side?", "left")]),
        record("b", [("Is there an effusion?", "no")]),
    ]
    said = iter(["Yes, there is.", "right", "no"])
    known = [("is there an effusion", "yes"), ("Is there an effusion?", "yes"), ("Is there an effusion?", "no")]

    metrics, lines = scores(
        records,
        monkeypatch,
        {"answer_questions": lambda reader, films, *rest, **options: [{"report": next(said)} for _ in films]},
        known_answers=known,
    )

    assert metrics["answer_accuracy"] == pytest.approx(2 / 3)
    assert metrics["answer_accuracy_presence"] == 1 and metrics["answer_accuracy_side"] == 0
    # "yes" to all three: right for the first; nobody has asked for the side before.
    assert metrics["answer_accuracy_blind"] == pytest.approx(1 / 3)
    assert [(line["id"], line["prediction"], line["reference"]) for line in lines] == [
        ("a", "Yes, there is.", "yes"),
        ("a", "right", "left"),
        ("b", "no", "no"),
    ]


def test_without_answers_of_other_films_there_is_no_blind_score(monkeypatch):
    answers = {"answer_questions": lambda reader, films, *rest, **options: [{"report": "yes"} for _ in films]}

    metrics, _ = scores([record("a", [("Is there an effusion?", "yes")])], monkeypatch, answers)

    assert metrics["answer_accuracy"] == 1.0 and "answer_accuracy_blind" not in metrics


def test_boxes_are_compared_as_areas_and_absent_findings_have_none(monkeypatch):
    half = [0.0, 0.0, 0.5, 1.0]
    records = [
        record("a", boxes=[(EFFUSION, half), (NODULE, [0.5, 0.5, 1.0, 1.0])]),
        record("b", absent=[EFFUSION]),
        record("c", absent=[NODULE]),
    ]
    # Phrases come in the order of the records, the findings by name, the absent ones last: nodule, effusion, b, c.
    found = iter([[[0.5, 0.0, 1.0, 1.0]], [half], [], [half]])
    words = iter(["There is a nodule.", "No effusion."])

    metrics, _ = scores(
        records,
        monkeypatch,
        {
            "ground_phrases": lambda reader, films, *rest: [{"boxes": next(found), "answer": ""} for _ in films],
            "describe_boxes": lambda reader, films, *rest: [{"report": next(words)} for _ in films],
        },
    )

    # The nodule's box is half of what was shown: IoU 0.5; the effusion's is exact.
    assert metrics["ground_miou"] == pytest.approx(0.75)
    assert metrics["ground_hit_rate_iou_50"] == 1.0
    assert metrics["ground_absent_accuracy"] == 0.5
    assert metrics["describe_accuracy"] == 0.5


def test_orders_and_observations_are_scored_against_the_records(monkeypatch):
    gaze = np.full((3, 3), 0.5, dtype=np.float32)
    true = Looking("Nodule.", [], (0.0, 0.0, 0.5, 1.0))
    said = Looking("Nodule.", [], (0.0, 0.0, 1.0, 1.0))
    targets = {"order": order_text([2, 0, 1]), "observe": "unread"}
    monkeypatch.setattr(
        task_evaluation, "make_example", lambda record, task, *rest: TaskExample("", targets[task], gaze)
    )
    monkeypatch.setattr(task_evaluation, "recover_order", lambda *rest: [[2, 1, 0], None])
    monkeypatch.setattr(task_evaluation, "observe_gaze", lambda *rest: [said, said._replace(observation_box=None)])
    processor = SimpleNamespace(post_process_looking=lambda texts, films: [true, true])

    tasks = TaskEvaluation(SimpleNamespace(processor=processor), [record("a"), record("b")], batch_size=2)
    tasks.orders()
    tasks.observations()

    found = {name: metric.score() for name, metric in tasks.results.metrics.items()}
    # Of the pairs 2-0, 2-1, 0-1 the answer has two; no answer has none. One of 3! orders is right by chance.
    assert found["order_pairs"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["order_exact"] == 0.0
    assert found["order_exact_chance"] == pytest.approx(1 / 6)
    # Half of the box, and none.
    assert found["observe_miou"] == pytest.approx(0.25)


def test_scores_are_set_beside_chance():
    pairs = mean_statistics("order_pairs", [1.0, 0.5, np.nan])
    exact, by_chance = (
        mean_statistics("order_exact", [1, 0, np.nan]),
        mean_statistics("order_exact", [0.5, 1 / 6, np.nan]),
    )
    metrics = {"order_pairs": pairs, "order_exact": exact, "order_exact_chance": by_chance}

    differences = compare_all(metrics, chance_levels(metrics), Bootstrap(10))

    assert differences["order_pairs"]["difference"] == pytest.approx(0.75 - 0.5)
    assert differences["order_exact"]["difference"] == pytest.approx(0.5 - 1 / 3)
    assert set(differences) == {"order_pairs", "order_exact"}
    assert chance_levels({}) == {}


def test_an_assertion_needs_a_box_and_a_denial_none():
    text = read_grounded_text("There is a nodule. [100 100 300 300] There is a pleural effusion. No pneumothorax.")

    assert assertions_with_box(text) == [1.0, 0.0]


def test_help_functions_by_hand():
    assert pairs_in_order([0, 1, 2], [0, 1, 2]) == 1.0
    assert blind_answers(["What?"], [("Who?", "me"), ("Who?", "you"), ("Where?", "you")]) == ["you"]
    boxes = np.zeros((len(FINDINGS), 4))
    boxes[FINDINGS.index(EFFUSION)] = (0.0, 0.5, 0.5, 1.0)
    boxes[FINDINGS.index(NODULE)] = (0.5, 0.0, 1.0, 0.5)
    looked = SimpleNamespace(finding_boxes=boxes, fixations=np.array([[0.7, 0.2, 0.3], [0.2, 0.7, 0.3]]))
    assert followed_pairs("There is a nodule. There is a pleural effusion.", looked) == [1.0]
    assert followed_pairs("There is a pleural effusion. There is a nodule.", looked) == [0.0]


# -- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    prepare(PhantomSource(num_films=12, image_size=64, seed=3), folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(phantoms, tmp_path_factory):
    """`metrics.json` and the lines of `tasks.jsonl`."""
    out = tmp_path_factory.mktemp("results")
    where = ["--data", str(phantoms), "--split", "train", "--model", str(export_tiny_model(tmp_path_factory))]
    assert main(["evaluate", *where, "--out", str(out), "--tasks", "--max-records", "4", "--batch-size", "4"]) == 0
    lines = (out / "tasks.jsonl").read_text().splitlines()
    return json.loads((out / "metrics.json").read_text()), [json.loads(line) for line in lines]


def test_every_row_is_there_or_says_why_not(evaluated):
    metrics, _ = evaluated

    assert set(NEEDS) <= {*metrics["metrics"], *metrics["unavailable"]}
    # Phantoms hold everything that does not depend on what an untrained model writes.
    unwritten = {"answer_accuracy_blind", "reading_order_pairs", "grounded_boxed"}
    unwritten |= {
        name for name in NEEDS if name.startswith("answer_accuracy_")
    }  # of four films not every kind is asked
    assert set(NEEDS) - set(metrics["metrics"]) <= unwritten
    assert all(0 <= metrics["metrics"][name]["value"] <= 1 for name in NEEDS if name in metrics["metrics"])
    compared = {f"the direct reports: {task} ones minus them" for task in task_evaluation.REPORT_TASKS}
    assert compared <= set(metrics["comparisons"])
    assert {"order_pairs", "order_exact"} <= set(metrics["comparisons"]["chance, and answers without the film"])


def test_what_was_asked_stands_beside_what_was_said(evaluated):
    _, lines = evaluated

    tasks = {"grounded", "structured", "template", "reading", "ask", "ground", "describe", "observe", "order"}
    assert {line["task"] for line in lines} == tasks
    assert len({line["id"] for line in lines}) == 4


def test_the_results_name_their_data(evaluated, phantoms):
    settings = evaluated[0]["settings"]

    assert settings["data"].startswith("phantom (") and "num_films 12" in settings["data"]
    assert (settings["split"], settings["data_folder"]) == ("train", phantoms.name)
    assert str(phantoms.parent) not in json.dumps(settings)


@pytest.mark.parametrize("about, name", [(None, "films"), ({"source": "folder"}, "films"), ({"source": "egd"}, "egd")])
def test_data_are_called_by_their_source_or_folder(about, name, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    if about is not None:
        (folder / "dataset.json").write_text(json.dumps(about | {"settings": {"root": "/somewhere"}}))

    assert data_name(folder) == name


def test_blind_answers_never_come_from_the_films_that_are_asked_about(phantoms, tmp_path):
    known = training_answers(phantoms, "test")
    assert known and all(question and answer for question, answer in known)
    assert training_answers(phantoms, "train") == []
    assert training_answers(tmp_path, "test") == []
