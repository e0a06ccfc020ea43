"""The Space's reader by itself: drafts where a text contradicts what was seen."""

from dataclasses import replace

import numpy as np
import pytest

from modeling_gaze2report.hub_space import reading
from modeling_gaze2report.inference import embedded_folder
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.image_processing_gaze2report import load_film


@pytest.fixture(scope="module")
def reader():
    return reading.FilmReader(str(embedded_folder()))


@pytest.fixture(scope="module")
def films():
    return [load_film(generate_phantom(4242, index, 128)["image"], name=f"{index}") for index in range(8)]


def judged(monkeypatch, reader, costs):
    """The processor's judgement replaced by these costs, by the place of a text among those judged at once; what was
    judged, as (number of texts, questions)."""
    rounds = []

    def contradictions(self, drafts, features, questions=None):
        rounds.append((len(drafts[0]), questions))
        return [np.array([float(costs(number)) for number in range(len(drafts[0]))])]

    monkeypatch.setattr(type(reader.processor), "contradictions", contradictions)
    return rounds


def test_the_kept_reports_contradict_less_than_the_likeliest_ones(reader, films):
    costs = {"likeliest": [], "kept": []}
    notes = 0
    for film in films:
        features = reader.see(film)
        steps = list(reader.read(film))
        result = {}
        for _ in reader.write(film, features, steps[-1]["record"]["prompt"], result):
            pass
        likeliest = reader.processor.batch_decode_report([result["sequence"]])
        costs["likeliest"] += reader.costs(likeliest, features, None)
        costs["kept"] += reader.costs([steps[-1]["record"]["report"]], features, None)
        notes += any(step["live"] == reading.REDRAFTING for step in steps)
        assert steps[-1]["done"] and steps[-1]["record"]["num_drafts"] == reading.NUM_DRAFTS
    assert notes == sum(cost > 0 for cost in costs["likeliest"]) > 0
    assert all(kept <= first for kept, first in zip(costs["kept"], costs["likeliest"], strict=True))


def test_the_best_draft_is_kept_with_its_own_confidence_and_is_the_same_at_every_visit(reader, films, monkeypatch):
    monkeypatch.setattr(reading, "NUM_DRAFTS", 8)
    rounds = judged(monkeypatch, reader, lambda number: 8 - number)
    records = [reader.last(reader.read(films[0])) for _ in range(2)]
    assert rounds == [(1, None), (7, None)] * 2
    assert records[0]["report"] == records[1]["report"]
    assert all(0 < sentence["confidence"] <= 1 for sentence in records[0]["sentences"])

    judged(monkeypatch, reader, lambda number: 0)
    assert reader.last(reader.read(films[0]))["report"] != records[0]["report"]


def test_more_drafts_are_drawn_while_all_contradict_something(reader, films, monkeypatch):
    monkeypatch.setattr(reading, "NUM_DRAFTS", 7)
    monkeypatch.setattr(reading, "DRAFTS_AT_ONCE", 3)
    rounds = judged(monkeypatch, reader, lambda number: 1)
    never = reader.last(reader.read(films[0]))
    assert rounds == [(1, None), (3, None), (3, None)]

    rounds = judged(monkeypatch, reader, lambda number: 0 if len(rounds) == 2 and number == 2 else 1)
    satisfied = reader.last(reader.read(films[0]))
    assert rounds == [(1, None), (3, None)] and satisfied["report"] != never["report"]

    judged(monkeypatch, reader, lambda number: 0)
    assert reader.last(reader.read(films[0]))["report"] == never["report"]  # of equals the likeliest text


@pytest.mark.parametrize("strategy", ["direct", "structured"])
def test_a_report_that_no_draft_agrees_with_is_written_from_certain_findings(reader, films, monkeypatch, strategy):
    monkeypatch.setattr(reading, "NUM_DRAFTS", 7)
    monkeypatch.setattr(reading, "DRAFTS_AT_ONCE", 3)
    prompts, generate = [], reader.model.generate

    def spy(input_ids, **rest):
        prompts.append(tuple(input_ids[0].tolist()))
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(reader.model, "generate", spy)
    rounds = judged(monkeypatch, reader, lambda number: 0 if len(rounds) == 3 and number == 1 else 1)
    monkeypatch.setattr(reader.processor, "finding_thresholds", [0.001] * 14)
    kept = reader.last(reader.read(films[0], strategy=strategy))
    assert rounds == [(1, None), (3, None), (3, None)] and len(prompts) == 3
    assert prompts[0] == prompts[1] != prompts[2]
    (findings,) = reader.processor.post_process_findings(reader.see(films[0]), [(films[0].height, films[0].width)])
    assert len(findings) > 1 and {finding.confidence for finding in findings} != {"definite"}
    certain = [replace(finding, confidence="definite") for finding in findings]
    named = reader.processor.task_prompt("structured", findings=certain)
    assert prompts[2] == tuple(reader.processor(images=[films[0]], text=named)["input_ids"][0])
    assert kept["sentences"] and all(0 < sentence["confidence"] <= 1 for sentence in kept["sentences"])

    prompts.clear()
    judged(monkeypatch, reader, lambda number: 1)
    reader.last(reader.read(films[0], strategy="grounded"))
    assert len(prompts) == 3 and len(set(prompts)) == 1


def test_answers_are_judged_by_their_question_and_places_are_not(reader, films, monkeypatch):
    rounds = judged(monkeypatch, reader, lambda number: 0)
    assert reader.ask(films[0], "Is there an effusion?")["num_drafts"] == reading.NUM_ANSWER_DRAFTS
    assert rounds == [(1, ["Is there an effusion?"])]
    reader.ground(films[0], "left lung")
    assert len(rounds) == 1


def test_a_model_from_before_there_were_drafts_writes_one_text(reader, films, monkeypatch):
    monkeypatch.delattr(type(reader.processor), "contradictions")
    assert reader.drafts_allowed() == {}
    assert reader.last(reader.read(films[0]))["num_drafts"] == 1
