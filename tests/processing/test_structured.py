"""Findings become keywords, prompts and sentences; the rule labeler reads the same findings out again."""

import numpy as np
import pytest

from modeling_gaze2report.processing.report_labels import FINDINGS, label_report, label_sentence
from modeling_gaze2report.processing.structured import (
    FINDING_NOUNS,
    MAX_KEYWORDS,
    Keyword,
    confidence_word,
    keyword_text,
    keywords_of_film,
    keywords_text,
    make_keyword,
    side_of_boxes,
    side_of_map,
    template_report,
    template_sentence,
)

# A film with lungs of area 0.3 x 0.7 each; the patient's right is left on the picture.
REGIONS = {
    "right lung": (0.1, 0.1, 0.4, 0.8),
    "right lower lung zone": (0.1, 0.5, 0.4, 0.8),
    "right costophrenic angle": (0.1, 0.7, 0.2, 0.8),
    "left lung": (0.6, 0.1, 0.9, 0.8),
    "left lower lung zone": (0.6, 0.5, 0.9, 0.8),
    "left costophrenic angle": (0.8, 0.7, 0.9, 0.8),
    "cardiac silhouette": (0.4, 0.4, 0.8, 0.8),
}
LUNGS = {name: REGIONS[name] for name in ("right lung", "left lung")}


@pytest.mark.parametrize(
    ("probability", "threshold", "word"),
    [(0.5, 0.5, "possible"), (0.6, 0.5, "probable"), (0.8, 0.5, "definite"), (0.35, 0.1, "probable")],
)
def test_certainty_is_the_share_of_the_way_from_threshold_to_one(probability, threshold, word):
    assert confidence_word(probability, threshold) == word


def test_the_side_is_the_patients():
    attention = np.zeros((10, 10))
    attention[3, 2] = 1.0  # on the viewer's left

    assert side_of_map(attention.ravel(), LUNGS) == "right"


@pytest.mark.parametrize(("share", "side"), [(0.29, "left"), (0.31, "bilateral"), (0.71, "right")])
def test_both_sides_count_from_thirty_percent_each(share, side):
    attention = np.zeros((10, 10))
    attention[3, 2], attention[3, 7] = share, 1 - share

    assert side_of_map(attention.ravel(), LUNGS) == side


def test_attention_beside_the_lungs_has_no_side():
    attention = np.zeros((10, 10))
    attention[9, 5] = 1.0

    assert side_of_map(attention.ravel(), LUNGS) is None


def test_boxes_on_both_sides_of_the_middle_are_bilateral():
    right, left = (0.1, 0.1, 0.2, 0.2), (0.7, 0.1, 0.9, 0.2)

    assert [side_of_boxes(boxes, 0.5) for boxes in ([right], [left], [right, left], [])] == [
        *("right", "left", "bilateral", None)
    ]


@pytest.mark.parametrize(
    ("box", "severity"),
    [((0.1, 0.7, 0.2, 0.8), "small"), ((0.1, 0.6, 0.4, 0.8), "moderate"), ((0.1, 0.3, 0.4, 0.8), "large")],
)
def test_severity_follows_the_share_of_the_lung(box, severity):
    # 0.01, 0.06 and 0.15 of a lung of 0.21: 5, 29 and 71 percent
    assert make_keyword("Pleural Effusion", 0.9, 0.5, [box], "right", REGIONS).severity == severity


def test_the_heart_is_measured_against_the_chest():
    # 0.4 of a chest of 0.8: 0.5, below the cut of 0.56
    assert make_keyword("Cardiomegaly", 0.9, 0.5, [REGIONS["cardiac silhouette"]], None, REGIONS).severity == "mild"


def test_a_keyword_names_region_and_side():
    keyword = make_keyword("Pleural Effusion", 0.95, 0.5, [(0.1, 0.7, 0.2, 0.8)], "right", REGIONS)

    assert keyword.place == "right costophrenic angle"
    assert keyword_text(keyword) == "definite small pleural effusion, right costophrenic angle"


def test_a_bilateral_keyword_does_not_name_one_side():
    keyword = Keyword("Atelectasis", 0.9, "definite", "small", "right lower lung zone", "bilateral")

    assert keyword.place == "bilateral lower lung zone"


def test_findings_below_their_threshold_and_no_finding_are_left_out():
    probabilities, thresholds = np.full(14, 0.4), np.full(14, 0.5)
    probabilities[[FINDINGS.index("No Finding"), FINDINGS.index("Edema")]] = 0.9
    thresholds[FINDINGS.index("Fracture")] = 0.3

    keywords = keywords_of_film(probabilities, thresholds, np.zeros((14, 4)), [None] * 14, REGIONS)

    assert [keyword.finding for keyword in keywords] == ["Edema", "Fracture"]


def test_a_prompt_holds_the_most_probable_findings_only():
    keywords = keywords_of_film(np.linspace(0.6, 0.9, 14), [0.5] * 14, np.zeros((14, 4)), [None] * 14, REGIONS)

    assert [keyword.finding for keyword in keywords] == list(FINDINGS[::-1][:MAX_KEYWORDS])


def test_no_finding_is_said_too():
    assert keywords_text([]) == "none."


BOXES = {
    "right": (0.1, 0.7, 0.2, 0.8),
    "left": (0.6, 0.5, 0.9, 0.8),
    "bilateral": (0.1, 0.1, 0.9, 0.8),
    None: (0.4, 0.4, 0.7, 0.8),
}


@pytest.mark.parametrize("finding", FINDING_NOUNS)
@pytest.mark.parametrize("side", BOXES)
@pytest.mark.parametrize(("probability", "status"), [(0.51, "uncertain"), (0.7, "positive"), (0.95, "positive")])
def test_the_labeler_reads_the_keyword_out_of_its_sentence(finding, side, probability, status):
    keyword = make_keyword(finding, probability, 0.5, [BOXES[side]], side, REGIONS)

    assert label_sentence(template_sentence(keyword)) == [{"name": finding, "status": status}]


def test_a_template_report_says_what_is_absent():
    labels = label_report(template_report([Keyword("Edema", 0.9, "definite")]))

    assert labels["Edema"] == 1
    assert (labels["Cardiomegaly"], labels["Pleural Effusion"], labels["Pneumothorax"]) == (0, 0, 0)


def test_a_normal_film_has_a_normal_report():
    assert label_report(template_report([]))["No Finding"] == 1


def test_a_template_report_goes_from_mediastinum_to_devices():
    keywords = [Keyword(name, 0.9, "definite") for name in ("Support Devices", "Pneumothorax", "Atelectasis")]

    report = template_report(keywords)

    assert report == (
        "There is atelectasis. The heart size is normal. There is a pneumothorax. There is a support device. "
        "No pleural effusion."
    )
