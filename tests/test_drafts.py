"""Drafts: where a text contradicts what the model saw, others are drawn and the fittest is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling_gaze2report.inference import (
    DraftNoise,
    answer_questions,
    embedded_folder,
    generate_reports,
    image_features,
    load_reader,
    read_films,
)
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.image_processing_gaze2report import load_film

from .tiny_export import build_talking_reader
from .tiny_export import noise_film as film


@pytest.fixture(scope="module")
def reader():
    return build_talking_reader()


def taste(text):
    """A judgement of gibberish that any two texts differ in."""
    return 1 + sum(place * ord(letter) for place, letter in enumerate(text, 1)) % 9973


@pytest.fixture
def tasteful(reader, monkeypatch):
    """The texts judged by taste; the list of all that were judged."""
    judged = []

    def contradictions(drafts, features, questions=None):
        judged.append([list(texts) for texts in drafts])
        return [np.array([taste(text) for text in texts], dtype=float) for texts in drafts]

    monkeypatch.setattr(reader.processor, "contradictions", contradictions)
    return judged


def texts_of(reader, films, **options):
    return reader.processor.batch_decode_report(generate_reports(reader, films, **options)[0])


def test_the_draft_that_contradicts_least_is_kept(reader, tasteful):
    kept = texts_of(reader, [film(0), film(1, 60, 80)], num_drafts=6)
    first, others = tasteful
    assert [len(texts) for texts in first] == [1, 1] and [len(texts) for texts in others] == [5, 5]
    drafts = [likeliest + drawn for likeliest, drawn in zip(first, others, strict=True)]
    assert all(len(set(texts)) > 3 for texts in drafts)
    assert kept == [min(texts, key=taste) for texts in drafts]
    assert [texts[0] for texts in first] == texts_of(reader, [film(0), film(1, 60, 80)])


def test_more_drafts_are_drawn_while_all_contradict_something(reader, monkeypatch):
    monkeypatch.setattr("modeling_gaze2report.inference.DRAFTS_AT_ONCE", 2)
    # The draft of each film that is the first to contradict nothing; the third film has none.
    satisfied_at, judged = (3, 0, None), []

    def contradictions(drafts, features, questions=None):
        judged.append([list(texts) for texts in drafts])
        costs = []
        for number, texts in enumerate(drafts):
            before = sum(len(one[number]) for one in judged[:-1])
            costs.append(np.array([float(before + place != satisfied_at[number]) for place in range(len(texts))]))
        return costs

    monkeypatch.setattr(reader.processor, "contradictions", contradictions)
    films = [film(0), film(1, 60, 80), film(2)]
    kept = texts_of(reader, films, num_drafts=6)
    assert [[len(texts) for texts in one] for one in judged] == [[1, 1, 1], [2, 0, 2], [2, 0, 2], [0, 0, 1]]
    assert kept == [judged[2][0][0], judged[0][1][0], judged[0][2][0]]
    assert len({text for one in judged for text in one[2]}) > 3  # each round draws others


def test_drafts_depend_on_no_other_film_and_on_no_seed(reader, tasteful):
    films = [film(seed, 60 + 5 * seed, 70) for seed in range(4)]
    together = texts_of(reader, films, num_drafts=5)
    torch.manual_seed(123)
    assert [texts_of(reader, [one], num_drafts=5)[0] for one in films] == together


def log_probs_behind_their_prompt(reader, sequences, features, num_new):
    with torch.inference_mode():
        logits = reader.model(input_ids=sequences, mm_encoder_outputs={"image": features}).logits
    return logits[:, -num_new - 1 : -1].log_softmax(-1).gather(-1, sequences[:, -num_new:, None]).squeeze(-1)


def test_the_log_probabilities_are_those_of_the_kept_text(reader, tasteful):
    sequences, features, log_probs = generate_reports(reader, [film(0), film(3)], num_drafts=6)
    kept, first = reader.processor.batch_decode_report(sequences), tasteful[0]
    assert any(text != texts[0] for text, texts in zip(kept, first, strict=True))
    num_new = log_probs.shape[1]
    expected = log_probs_behind_their_prompt(reader, sequences, features, num_new)
    written = sequences[:, -num_new:] != reader.model.generation_config.pad_token_id
    torch.testing.assert_close(log_probs[written], expected[written], rtol=1e-3, atol=1e-3)


def rounds_of_two(reader, monkeypatch, wanted=None):
    """Drafts two at once, all of which contradict something but the one of this number; the prompts that `generate`
    was given, as text, and the texts that were judged."""
    monkeypatch.setattr("modeling_gaze2report.inference.DRAFTS_AT_ONCE", 2)
    asked, judged, generate = [], [], reader.model.generate

    def spy(input_ids, **rest):
        asked.append(reader.processor.tokenizer.batch_decode(input_ids)[0])
        return generate(input_ids=input_ids, **rest)

    def contradictions(drafts, features, questions=None):
        numbers = range(len(judged), len(judged) + len(drafts[0]))
        judged.extend(drafts[0])
        return [np.array([float(number != wanted) for number in numbers])]

    monkeypatch.setattr(reader.model, "generate", spy)
    monkeypatch.setattr(reader.processor, "contradictions", contradictions)
    return asked, judged


@pytest.mark.parametrize("strategy", ["report", "structured"])
def test_a_report_that_no_draft_agrees_with_is_written_from_certain_findings(reader, monkeypatch, strategy):
    monkeypatch.setattr(reader.processor, "finding_thresholds", [0.03] * 14)
    features = image_features(reader, [film(0)])
    (keywords,) = reader.processor.post_process_findings(features, [(film(0).height, film(0).width)])
    assert len(keywords) > 1 and {keyword.confidence for keyword in keywords} != {"definite"}

    def prompt_of(findings, task="structured"):
        prompt = reader.processor.task_prompt(task, findings=findings if task == "structured" else None)
        return prompt, reader.processor(images=film(0), text=prompt, return_tensors="pt")["input_ids"]

    prompt, own = prompt_of(keywords, strategy)
    certain = prompt_of([replace(keyword, confidence="definite") for keyword in keywords])[1]
    asked, judged = rounds_of_two(reader, monkeypatch, wanted=4)
    sequences, features, log_probs = generate_reports(
        reader, [film(0)], prompts=[prompt], num_drafts=9, name_findings=True
    )
    (kept,) = reader.processor.batch_decode_report(sequences)
    own_text, certain_text = (reader.processor.tokenizer.decode(ids[0]) for ids in (own, certain))
    assert asked == [own_text, own_text, certain_text] and own_text != certain_text
    assert len(judged) == 5 and kept == judged[4]

    # What is kept stands behind its own prompt, and is as probable as it is there.
    assert torch.equal(sequences[:, : own.shape[1]], own)
    num_new = log_probs.shape[1]
    assert sequences.shape[1] == own.shape[1] + num_new
    expected = log_probs_behind_their_prompt(reader, sequences, features, num_new)
    torch.testing.assert_close(log_probs, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["direct", "structured", "grounded"])
def test_reports_without_boxes_are_told_the_findings(reader, monkeypatch, strategy):
    asked, _ = rounds_of_two(reader, monkeypatch)
    monkeypatch.setattr(reader.processor, "finding_thresholds", [0.03] * 14)
    read_films(reader, [film(0)], strategy=strategy, num_drafts=5)
    assert len(asked) == 3 and asked[0] == asked[1]
    assert (asked[2] == asked[1]) == (strategy == "grounded")


def test_what_was_asked_for_anything_but_a_plain_report_is_asked_to_the_end(reader, monkeypatch):
    for prompt in (reader.processor.task_prompt("grounded"), reader.processor.task_prompt("ask", question="Normal?")):
        asked, _ = rounds_of_two(reader, monkeypatch)
        questions = ["Normal?"] if "Normal?" in prompt else None
        generate_reports(reader, [film(0)], prompts=[prompt], questions=questions, num_drafts=7)
        assert len(asked) == 4 and len(set(asked)) == 1
        monkeypatch.undo()


def test_nothing_is_drawn_where_nothing_is_contradicted(reader, monkeypatch):
    calls, generate = [], reader.model.generate
    monkeypatch.setattr(reader.model, "generate", lambda **rest: calls.append(rest) or generate(**rest))
    monkeypatch.setattr(
        reader.processor, "contradictions", lambda drafts, *rest: [np.zeros(len(texts)) for texts in drafts]
    )
    kept = texts_of(reader, [film(0), film(1)], num_drafts=6)
    assert len(calls) == 1 and kept == texts_of(reader, [film(0), film(1)])


def test_only_the_films_that_are_contradicted_are_drawn_for(reader, monkeypatch):
    judged = []

    def contradictions(drafts, features, questions=None):
        judged.append([len(texts) for texts in drafts])
        return [np.array([float(number == 1)] * len(texts)) for number, texts in enumerate(drafts)]

    monkeypatch.setattr(reader.processor, "contradictions", contradictions)
    films = [film(0), film(1), film(2)]
    # Of equally good drafts the first is kept: the likeliest text.
    assert texts_of(reader, films, num_drafts=4) == texts_of(reader, films)
    assert judged == [[1, 1, 1], [0, 3, 0]]


def test_of_equally_good_drafts_the_likeliest_is_kept(reader, monkeypatch):
    judged = []

    def contradictions(drafts, features, questions=None):
        judged.append(drafts)
        return [np.full(len(texts), 1.0 if len(judged) == 1 else 0.5) for texts in drafts]

    monkeypatch.setattr(reader.processor, "contradictions", contradictions)
    (kept,) = texts_of(reader, [film(0)], num_drafts=6)
    means = {}
    for text in judged[1][0]:
        monkeypatch.setattr(
            reader.processor,
            "contradictions",
            lambda drafts, *rest, text=text: [np.array([one != text for one in texts], float) for texts in drafts],
        )
        means[text] = generate_reports(reader, [film(0)], num_drafts=6)[2].mean().item()
    assert kept == max(means, key=means.get)


def test_drafts_of_answers_are_judged_by_their_questions(reader, monkeypatch):
    asked = []
    monkeypatch.setattr(
        reader.processor,
        "contradictions",
        lambda drafts, features, questions=None: asked.append(questions) or [np.zeros(len(texts)) for texts in drafts],
    )
    (record,) = answer_questions(reader, [film(0)], ["Is there an effusion?"], num_drafts=3)
    assert asked == [["Is there an effusion?"]] and record["num_drafts"] == 3


def test_no_draft_at_all_is_refused(reader):
    with pytest.raises(InputError, match="num_drafts = 0: a text has at least one"):
        read_films(reader, [film(0)], num_drafts=0)


def test_the_record_says_how_many_drafts_there_were(reader):
    assert [read_films(reader, [film(0)], num_drafts=number)[0]["num_drafts"] for number in (1, 3)] == [1, 3]
    template = read_films(reader, [film(0)], strategy="structured", writer="template", num_drafts=3)
    assert template[0]["num_drafts"] == 1


def test_noise_draws_tokens_as_often_as_the_model_says():
    scores = torch.tensor([[2.0, 0.5, -1.0, float("-inf")]])
    num_drafts = 20_000
    noise = DraftNoise(num_drafts)
    drawn = noise(None, scores.repeat(2 * num_drafts, 1)).argmax(-1).reshape(2, num_drafts)
    shares = torch.bincount(drawn[0], minlength=4) / num_drafts
    expected = scores[0, :2].softmax(-1)  # the third token is less than a tenth as probable as the first
    torch.testing.assert_close(shares, torch.tensor([*expected.tolist(), 0.0, 0.0]), rtol=0, atol=0.02)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(noise(None, scores.repeat(num_drafts, 1)).argmax(-1), drawn[0])


def test_the_embedded_checkpoint_contradicts_itself_less_in_the_drafts_it_keeps():
    reader = load_reader(str(embedded_folder()), device="cpu")
    films = [load_film(generate_phantom(4242, index, 128)["image"], name=f"{index}") for index in range(16)]
    costs = {}
    for number in (1, 8):
        sequences, features, _ = generate_reports(reader, films, num_drafts=number)
        texts = reader.processor.batch_decode_report(sequences)
        costs[number] = np.concatenate(reader.processor.contradictions([[text] for text in texts], features))
    assert (costs[8] <= costs[1] + 1e-3).all() and costs[8].sum() < costs[1].sum()
