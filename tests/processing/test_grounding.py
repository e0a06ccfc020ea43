"""Boxes and orders in text: what is written comes back, and nothing else does."""

import random

import pytest

from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.grounding import (
    GroundedText,
    box_text,
    looking_text,
    meant_boxes,
    order_text,
    phrase_answer,
    pieces_without_marks,
    read_grounded_text,
    read_looking,
    read_order,
    seen_boxes,
)
from modeling_gaze2report.processing.report_labels import FINDINGS

EDGE = 1 / 999


def test_a_box_is_four_numbers_of_three_digits():
    assert box_text((0.0, 0.5, 1.0, 0.9)) == "[000 500 999 899]"


def test_what_lies_beside_the_square_is_written_on_its_edge():
    assert box_text((-0.2, 0.0, 1.3, 1.0)) == "[000 000 999 999]"


def test_a_box_comes_back_to_half_a_step():
    box = (0.1234, 0.2345, 0.5678, 0.9876)

    (back,) = read_grounded_text(box_text(box)).loose_boxes

    assert back == pytest.approx(box, abs=EDGE / 2)


def test_boxes_belong_to_the_sentence_they_stand_behind():
    text = "FINDINGS: A left effusion. [100 200 300 400] [500 600 700 800] No pneumothorax."

    grounded = read_grounded_text(text)

    assert grounded.text == "FINDINGS: A left effusion. No pneumothorax."
    assert grounded.sentences == ["FINDINGS: A left effusion.", "No pneumothorax."]
    assert [len(boxes) for boxes in grounded.boxes] == [2, 0]
    assert grounded.boxes[0][0] == pytest.approx((100 / 999, 200 / 999, 300 / 999, 400 / 999))


def test_a_box_before_the_full_stop_belongs_to_that_sentence():
    grounded = read_grounded_text("A nodule [1 2 3 4]. The heart is normal.")

    assert grounded.text == "A nodule. The heart is normal."
    assert [len(boxes) for boxes in grounded.boxes] == [1, 0]


def test_commas_are_as_good_as_spaces():
    assert read_grounded_text("[10, 20, 30, 40]").loose_boxes == [(10 / 999, 20 / 999, 30 / 999, 40 / 999)]


@pytest.mark.parametrize(
    "mark",
    [
        *("[1 2 3]", "[1 2 3 4 5]", "[300 200 100 400]", "[100 400 300 400]", "[1 2 3 1000]", "[0001 2 3 4]"),
        *("[412 65", "[", "[412 655 498 901"),
    ],
)
def test_what_is_no_box_gives_none_and_leaves_the_text(mark):
    grounded = read_grounded_text(f"A nodule. {mark}")

    assert grounded.text == "A nodule."
    assert grounded.boxes == [[]] and grounded.loose_boxes == []


@pytest.mark.parametrize("text", ["A [sic] nodule.", "See [Fig. 1].", "[-1 2 3 4]", "[1.5 2 3 4]"])
def test_other_brackets_stay_in_the_text(text):
    grounded = read_grounded_text(text)

    assert grounded.text == text
    assert grounded.loose_boxes == [] and not any(grounded.boxes)


def test_the_pieces_that_a_text_was_written_in_lose_their_marks_and_nothing_else():
    pieces = ["A nodule.", " [1", " 2 3", " 4] The", " heart"]

    assert pieces_without_marks(pieces) == ["A nodule.", "", "", " The", " heart"]


def test_an_order_comes_back_also_with_ten_parts_and_more():
    order = [10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5]

    assert order_text(order) == "11 1 10 2 9 3 8 4 7 5 6"
    assert read_order(order_text(order), 11) == order


@pytest.mark.parametrize("text", ["", "1 2", "1 2 2", "1 2 4", "0 1 2", "1 2 3 4", "123", "one two three"])
def test_what_is_no_order_gives_none(text):
    assert read_order(text, 3) is None


def test_what_a_sentence_rests_on_comes_back():
    looking = read_looking(looking_text("A nodule.", [(0, 0, 0.5, 0.5), (0.5, 0, 1, 1)], (0, 0, 1, 1)))

    assert looking.sentence == "A nodule."
    assert len(looking.clue_boxes) == 2
    assert looking.observation_box == (0.0, 0.0, 1.0, 1.0)


def test_a_sentence_without_boxes_rests_on_none():
    assert read_looking("A nodule.") == ("A nodule.", [], None)


ALPHABET = "[[]]  0123456789,.|\n-aA\u0663\u2060\ud800"
VALID = "FINDINGS: A left effusion. [100 200 300 400] No pneumothorax. [1 2 3 4] IMPRESSION: Effusion."


def mutated(generator: random.Random) -> str:
    text = list(VALID)
    for _ in range(generator.randrange(1, 8)):
        place = generator.randrange(len(text))
        action = generator.randrange(4)
        if action == 0 and len(text) > 1:
            del text[place]
        elif action == 1:
            text.insert(place, generator.choice(ALPHABET))
        elif action == 2:
            text[place] = generator.choice(ALPHABET)
        else:
            text = text[: max(1, place)]
    return "".join(text)


def test_no_text_raises_and_no_box_leaves_the_square():
    generator = random.Random(0)
    for number in range(100_000):
        if number % 10:
            text = "".join(generator.choices(ALPHABET, k=generator.randrange(24)))
        else:
            text = mutated(generator)
        grounded = read_grounded_text(text)
        looking = read_looking(text)
        read_order(text, 3)

        assert len(grounded.boxes) == len(grounded.sentences)
        boxes = [*grounded.loose_boxes, *looking.clue_boxes, *(box for own in grounded.boxes for box in own)]
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def test_long_runs_take_no_long_time():
    for text in (" " * 100_000, "[" * 100_000, "[1 " * 30_000, "9" * 100_000, "[" + "1 " * 50_000 + "]"):
        assert read_grounded_text(text).loose_boxes == []


# -- what is meant by a box -------------------------------------------------------------------------------------------


def test_of_a_finding_on_both_sides_either_part_may_be_meant():
    nowhere = [0.0, 0.0, 0.0, 0.0]
    findings = [nowhere] * 14
    findings[0] = [0.0, 0.0, 1.0, 1.0]  # that there is no finding has no place
    findings[1], findings[10] = [0.6, 0.2, 0.9, 0.3], [0.1, 0.6, 0.9, 0.8]
    regions = [nowhere] * 17
    regions[REGION_NAMES.index("right lung")] = [0.1, 0.1, 0.4, 0.9]
    regions[REGION_NAMES.index("left lung")] = [0.6, 0.1, 0.9, 0.9]

    assert {name: boxes for name, boxes in seen_boxes(findings, regions).items() if boxes} == {
        FINDINGS[1]: [(0.6, 0.2, 0.9, 0.3)],
        FINDINGS[10]: [(0.1, 0.6, 0.9, 0.8), (0.1, 0.6, 0.5, 0.8), (0.5, 0.6, 0.9, 0.8)],
        "right lung": [(0.1, 0.1, 0.4, 0.9)],
        "left lung": [(0.6, 0.1, 0.9, 0.9)],
    }


LEFT, RIGHT = (0.6, 0.0, 1.0, 1.0), (0.0, 0.0, 0.4, 1.0)
SEEN = {"Pleural Effusion": [LEFT, RIGHT], "Lung Lesion": [(0.3, 0.1, 0.5, 0.3)], "left lung": [(0.6, 0.1, 0.9, 0.9)]}


@pytest.mark.parametrize(
    "text, meant",
    [
        ("There is a pleural effusion.", [LEFT]),  # IoU .24 / .64 with the left one, .08 / .80 with the right one
        ("There is a nodule.", SEEN["Lung Lesion"]),
        ("left lung", SEEN["left lung"]),
        # A finding is what a sentence is about; the region only says where it is.
        ("There is a nodule in the left lung.", SEEN["Lung Lesion"]),
        ("No pleural effusion.", SEEN["left lung"]),  # IoU .24 / .48 of all
        ("Degenerative changes.", SEEN["left lung"]),
    ],
)
def test_a_written_box_means_what_its_sentence_names(text, meant):
    assert meant_boxes([(0.3, 0.1, 0.9, 0.9)], SEEN, text) == meant


def test_what_is_named_is_meant_also_where_the_written_box_misses_it():
    assert meant_boxes([(0.8, 0.8, 0.9, 0.9)], SEEN, "A nodule.") == SEEN["Lung Lesion"]


def test_a_box_where_nothing_was_seen_stays():
    # IoU 0.01 / 0.07 with the first is enough; with 0.0025 / 0.0775 it is not.
    seen = {"Lung Lesion": [(0.0, 0.0, 0.2, 0.2)]}

    assert meant_boxes([(0.1, 0.1, 0.3, 0.3)], seen, "") == seen["Lung Lesion"]
    assert meant_boxes([(0.15, 0.15, 0.35, 0.35)], seen, "") == [(0.15, 0.15, 0.35, 0.35)]
    assert meant_boxes([(0.1, 0.1, 0.3, 0.3)], {}, "A nodule.") == [(0.1, 0.1, 0.3, 0.3)]


def test_two_boxes_that_mean_the_same_are_one():
    seen = {"Lung Lesion": [(0.0, 0.0, 0.5, 0.5)]}

    assert meant_boxes([(0.0, 0.0, 0.4, 0.5), (0.0, 0.1, 0.5, 0.5)], seen, "") == seen["Lung Lesion"]


# -- where a phrase is ------------------------------------------------------------------------------------------------

WRITTEN, FOUND = (0.1, 0.5, 0.3, 0.9), (0.0, 0.4, 0.4, 1.0)


def answer(phrase, probability, written):
    """The answer where the effusion has a probability, and the language model wrote a box or none."""
    index = FINDINGS.index("Pleural Effusion")
    probabilities, boxes = [0.0] * 14, [(0.0, 0.0, 0.0, 0.0)] * 14
    probabilities[index], boxes[index] = probability, FOUND
    text = GroundedText("" if written else "No effusion is seen.", [], [], [WRITTEN] if written else [])
    return phrase_answer(phrase, text, probabilities, boxes, [0.5] * 14)


@pytest.mark.parametrize("written", [True, False])
def test_a_phrase_of_a_probable_finding_has_a_box_whatever_the_language_model_says(written):
    found = answer("pleural effusion", 0.8, written)

    assert found["boxes"] == [list(WRITTEN if written else FOUND)]
    assert found["answer"] == "Found here."
    assert found["findings"] == [{"name": "Pleural Effusion", "probability": 0.8}]
    expected = [] if written else ["points nowhere; the findings have Pleural Effusion with a probability of 0.80"]
    assert len(found["warnings"]) == len(expected) and all(map(str.__contains__, found["warnings"], expected))


@pytest.mark.parametrize("written", [True, False])
def test_a_phrase_of_an_improbable_finding_has_none(written):
    found = answer("pleural effusion", 0.2, written)

    assert found["boxes"] == []
    assert found["answer"] == ("Nothing was found for this phrase." if written else "No effusion is seen.")
    expected = ["points to a place, but the probability of Pleural Effusion is only 0.20"] if written else []
    assert len(found["warnings"]) == len(expected) and all(map(str.__contains__, found["warnings"], expected))


@pytest.mark.parametrize("phrase", ["left lung", "no pleural effusion"])
def test_of_a_phrase_that_asserts_no_finding_the_language_model_decides(phrase):
    assert answer(phrase, 0.8, written=False)["boxes"] == []
    assert answer(phrase, 0.2, written=True)["boxes"] == [list(WRITTEN)]
