"""What each task asks and answers, on one record whose answers are known by hand."""

import numpy as np
import pytest

from modeling_gaze2report.processing.grounding import read_grounded_text, read_looking, read_order
from modeling_gaze2report.processing.report_labels import FINDINGS, label_sentence
from modeling_gaze2report.training.tasks import (
    TASKS,
    UNKNOWN_PHRASE_ANSWER,
    clue_boxes,
    make_example,
    observation_box,
    report_in_reading_order,
    sentence_parts,
    timed_fixations,
)

from ..tiny_export import build_tiny_model

HALF_STEP = 0.5 / 999
RIGHT, LEFT = [0.1, 0.6, 0.3, 0.8], [0.7, 0.6, 0.9, 0.8]


@pytest.fixture(scope="module")
def processor():
    return build_tiny_model()[1]


def make_record(**changes):
    """A square film with effusions on both sides, read in three sentences of two seconds."""
    labels = [0] * 14
    labels[FINDINGS.index("Pleural Effusion")] = 1
    regions = [None] * 17
    regions[0], regions[6] = [0.1, 0.1, 0.4, 0.8], [0.6, 0.1, 0.9, 0.8]
    texts = ("There is a right pleural effusion.", "There is a left pleural effusion.", "The heart size is normal.")
    record = {
        "image": np.arange(64 * 64, dtype=np.uint8).reshape(64, 64),
        "image_id": "film",
        "patient_id": "patient",
        "report": " ".join(texts),
        "labels": labels,
        "boxes": [
            {"label": "Pleural Effusion", **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))}
            for box in (RIGHT, LEFT)
        ],
        "regions": regions,
        "sentences": [
            {"text": text, "start_s": 10.0 * place + 4, "end_s": 10.0 * place + 6} for place, text in enumerate(texts)
        ],
        "questions": [{"question": "Is there an effusion?", "answer": "Yes."}],
        # Three fixations for each sentence, from two seconds before it, and one between sentences.
        "fixations": [
            {"x": x, "y": 0.7, "onset_s": 10.0 * place + 2.5 + step, "duration_s": 0.5}
            for place, x in enumerate((0.2, 0.8, 0.5))
            for step in range(3)
        ]
        + [{"x": 0.9, "y": 0.1, "onset_s": 29.0, "duration_s": 0.5}],
    }
    return record | changes


def example(task, processor, seed=0, **changes):
    return make_example(make_record(**changes), task, processor, np.random.default_rng(seed))


def test_a_grounded_report_has_the_boxes_of_the_side_that_each_sentence_names(processor):
    grounded = read_grounded_text(example("grounded", processor).target)

    assert grounded.text == make_record()["report"]
    for boxes, expected in zip(grounded.boxes, ([RIGHT], [LEFT], []), strict=True):
        assert np.allclose(np.reshape(boxes, (-1, 4)), np.reshape(expected, (-1, 4)), atol=HALF_STEP)


def test_boxes_are_written_in_the_square_that_the_model_sees(processor):
    # A film of 64 x 32 (width x height) in a square of 64: y runs from 1/4 to 3/4.
    wide = np.arange(32 * 64, dtype=np.uint16).reshape(32, 64)

    grounded = read_grounded_text(example("grounded", processor, image=wide).target)

    assert np.allclose(grounded.boxes[0], [[0.1, 0.55, 0.3, 0.65]], atol=HALF_STEP)


def test_a_structured_prompt_names_finding_and_place(processor):
    prompts = [example("structured", processor, seed=seed).prompt for seed in range(20)]

    assert sum("pleural effusion, bilateral" in prompt for prompt in prompts) >= 15  # a tenth is missed on purpose
    assert example("structured", processor).target == make_record()["report"]


def test_a_question_has_its_answer(processor):
    made = example("ask", processor)

    assert (made.prompt, made.target) == ("Question: Is there an effusion?", "Yes.")


def test_phrases_have_boxes_or_a_sentence_that_there_are_none(processor):
    for seed in range(40):
        made = example("ground", processor, seed=seed)
        phrase, answer = made.prompt.removeprefix("Where on the film: "), read_grounded_text(made.target)
        if answer.loose_boxes:
            expected = {"right": [RIGHT], "left": [LEFT]}.get(next(iter(phrase.split())), [RIGHT, LEFT])
            expected = {"right lung": [[0.1, 0.1, 0.4, 0.8]], "left lung": [[0.6, 0.1, 0.9, 0.8]]}.get(phrase, expected)
            expected = {"There is a right pleural effusion.": [RIGHT], "There is a left pleural effusion.": [LEFT]}.get(
                phrase, expected
            )
            assert np.allclose(answer.loose_boxes, expected, atol=HALF_STEP), phrase
        elif made.target != UNKNOWN_PHRASE_ANSWER:
            (said,) = label_sentence(made.target)
            assert said["status"] == "negative" and said["name"] != "Pleural Effusion"


def test_a_box_is_described_by_the_sentence_of_its_side(processor):
    targets = {example("describe", processor, seed=seed, regions=[]).target for seed in range(20)}

    assert targets == {"There is a right pleural effusion.", "There is a left pleural effusion."}


def test_a_region_without_a_box_is_normal(processor):
    made = example("describe", processor, boxes=[], labels=[1] + [0] * 13)

    assert made.target in ("No abnormality in the right lung.", "No abnormality in the left lung.")


def test_a_sentence_rests_on_the_fixations_from_two_seconds_before_it(processor):
    seen = {}
    for seed in range(20):
        made = example("observe", processor, seed=seed)
        seen[read_looking(made.target).sentence] = made.gaze

    assert {text: set(np.round(gaze[:, 0], 2)) for text, gaze in seen.items()} == {
        "There is a right pleural effusion.": {np.float32(0.2)},
        "There is a left pleural effusion.": {np.float32(0.8)},
        "The heart size is normal.": {np.float32(0.5)},
    }


def test_clue_boxes_go_around_groups_in_the_order_of_the_gaze():
    gaze = np.array([[0.8, 0.8, 0.2], [0.2, 0.2, 0.2], [0.82, 0.8, 0.2]])

    boxes = clue_boxes(gaze)

    assert np.allclose(boxes, [[0.75, 0.75, 0.87, 0.85], [0.15, 0.15, 0.25, 0.25]])


def test_the_observation_box_goes_around_the_longest_look_alone():
    x0, y0, x1, y1 = observation_box(np.array([[0.25, 0.25, 2.0], [0.8, 0.8, 0.5]]))

    # Half of the maximum of a Gaussian of 0.07 is 0.082 away; cells are 1/32 wide.
    assert (x0, y0) == pytest.approx((0.25 - 0.082,) * 2, abs=1 / 32)
    assert (x1, y1) == pytest.approx((0.25 + 0.082,) * 2, abs=1 / 32)


def test_the_order_brings_shuffled_parts_back_into_time(processor):
    for seed in range(20):
        made = example("order", processor, seed=seed, sentences=spoken_seconds(), fixations=rising())
        order = read_order(made.target, len(made.gaze))
        assert (np.diff(made.gaze[order][:, 0]) > 0).all()
        assert made.ranks[order].tolist() == list(range(len(order)))
        assert f"these {len(made.gaze)}" in made.prompt


def test_fixations_without_sentences_have_no_order_to_recover(processor):
    assert example("order", processor, sentences=[], fixations=rising()) is None


def rising():
    return [{"x": 0.1 * place, "y": 0.5, "onset_s": float(place), "duration_s": 0.5} for place in range(10)]


def spoken_seconds():
    return [{"text": "Clear.", "start_s": place + 2.0, "end_s": place + 2.9} for place in range(10)]


def test_a_sentence_is_one_part_of_the_reading():
    record = make_record()

    parts = sentence_parts(record, timed_fixations(record))

    # The fixation between sentences belongs to none; three of half a second make one and a half.
    assert np.allclose(parts, [[0.2, 0.7, 1.5], [0.8, 0.7, 1.5], [0.5, 0.7, 1.5]])


def test_the_report_follows_the_times_of_its_sentences():
    sentences = make_record()["sentences"]

    report = report_in_reading_order({"sentences": [sentences[2], sentences[0], sentences[1]]})

    assert report == make_record()["report"]


@pytest.mark.parametrize(
    ("task", "missing"),
    [
        ("report", "report"),
        ("reading", "sentences"),
        ("grounded", "labels"),
        ("structured", "labels"),
        ("ask", "questions"),
        ("observe", "fixations"),
        ("order", "fixations"),
    ],
)
def test_what_a_record_lacks_is_not_made_up(processor, task, missing):
    assert example(task, processor, **{missing: None}) is None


@pytest.mark.parametrize("task", ["ground", "describe"])
def test_places_need_boxes_or_regions(processor, task):
    assert example(task, processor, boxes=None, regions=None, labels=None) is None


@pytest.mark.parametrize("task", TASKS)
def test_the_same_draw_gives_the_same_example(processor, task):
    first, second = (example(task, processor, seed=3) for _ in range(2))

    assert (first.prompt, first.target) == (second.prompt, second.target)
    assert np.array_equal(first.gaze, second.gaze)


def test_an_unknown_task_is_refused(processor):
    with pytest.raises(ValueError, match="there is no task 'sing'"):
        example("sing", processor)
