import math

import numpy as np
import pytest

from modeling_gaze2report.processing.anatomy import REGIONS
from modeling_gaze2report.processing.drafts import (
    BESIDE_THE_POINT,
    MISPLACED,
    Seen,
    answer_contradiction,
    contradiction,
    said_in_answer,
    said_in_report,
)
from modeling_gaze2report.processing.report_labels import FINDINGS


def seen(**probabilities):
    """Probabilities of all findings: those given, 0.1 for the others."""
    return [probabilities.get(name.replace(" ", "_"), 0.1) for name in FINDINGS]


HALF = [0.5] * len(FINDINGS)


def test_a_report_that_says_what_was_seen_contradicts_nothing():
    said = said_in_report("There is a small left pleural effusion. The heart is enlarged. No pneumothorax.")
    assert said["Pleural Effusion"] == said["Cardiomegaly"] == 1 and said["Edema"] == said["Pneumothorax"] == 0
    assert contradiction(said, seen(Pleural_Effusion=0.9, Cardiomegaly=0.6), HALF) == 0


@pytest.mark.parametrize("report", ("There is a left pleural effusion.", "The heart is enlarged."))
def test_what_is_left_out_and_what_is_made_up_cost_their_distance_from_the_threshold(report):
    probabilities = seen(Pleural_Effusion=0.8, Cardiomegaly=0.8)
    thresholds = [0.2 if name == "Cardiomegaly" else 0.5 for name in FINDINGS]
    missed = {"There is a left pleural effusion.": 0.2, "The heart is enlarged.": 0.5}[report]
    expected = math.log(0.8 / 0.2) - math.log(missed / (1 - missed))
    assert contradiction(said_in_report(report), probabilities, thresholds) == pytest.approx(expected)
    invented = said_in_report(f"{report} There is a right pneumothorax.")
    assert contradiction(invented, probabilities, thresholds) == pytest.approx(expected + math.log(9), rel=1e-6)


def test_doubt_is_never_better_than_the_right_word_and_better_than_a_bold_wrong_one():
    for probability in (0.02, 0.3, 0.5, 0.6, 0.97):
        costs = [contradiction({"Edema": label}, seen(Edema=probability), HALF) for label in (1, -1, 0)]
        right = costs[0] if probability >= 0.5 else costs[2]
        assert right == 0 <= costs[1] <= math.log(2)
    assert contradiction({"Edema": -1}, seen(Edema=0.99), HALF) < contradiction({"Edema": 0}, seen(Edema=0.99), HALF)


def test_certain_probabilities_stay_finite():
    assert np.isfinite(contradiction({"Edema": 0}, seen(Edema=1.0), HALF))
    assert np.isfinite(contradiction({"Edema": 1}, seen(Edema=0.0), [1e-4] * len(FINDINGS)))


def test_the_normal_report_denies_every_finding():
    said = said_in_report("The lungs are clear. Normal chest.")
    assert set(said) == set(FINDINGS[1:]) and not any(said.values())


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("Is there pulmonary edema?", "Yes.", {"Edema": 1}),
        ("Is there pulmonary edema?", "No.", {"Edema": 0}),
        ("Is there pulmonary edema?", "Yes, mild pulmonary edema.", {"Edema": 1}),
        ("How severe is the pleural effusion?", "Moderate.", {}),
        ("Is this a PA or an AP view?", "AP.", {}),
        ("What is at the left base?", "Possible atelectasis.", {"Atelectasis": -1}),
        ("What is at the left base?", "No effusion.", {"Pleural Effusion": 0}),
        ("Nothing to see here?", "Normally not.", {}),
    ],
)
def test_an_answer_speaks_of_what_the_question_or_it_itself_names(question, answer, said):
    assert said_in_answer(question, answer) == said


def test_a_list_of_findings_speaks_of_all():
    said = said_in_answer("What abnormalities are seen?", "Cardiomegaly, pleural effusion.")
    assert set(said) == set(FINDINGS[1:])
    assert {name for name, label in said.items() if label} == {"Cardiomegaly", "Pleural Effusion"}
    # It begins with "No" and is a list all the same: an empty one.
    assert said_in_answer("Which findings are present?", "No abnormality.") == dict.fromkeys(FINDINGS[1:], 0)


# -- answers ----------------------------------------------------------------------------------------------------------


def film(boxes=None, severities=None, views=None, **probabilities):
    """What was seen on a film with its regions in their typical places; a finding without a box has no area."""
    finding_boxes = np.zeros((len(FINDINGS), 4))
    for name, box in (boxes or {}).items():
        finding_boxes[FINDINGS.index(name)] = box
    degrees = None
    if severities is not None:
        degrees = np.full((len(FINDINGS), 4), math.log(0.25))
        for name, shares in severities.items():
            degrees[FINDINGS.index(name)] = np.log(shares)
    regions = np.array([region.typical_box for region in REGIONS])
    views = None if views is None else np.log(views)
    return Seen(seen(**probabilities), HALF, finding_boxes, regions, degrees, views)


def box_in(region):
    x0, y0, x1, y1 = next(one.typical_box for one in REGIONS if one.name == region)
    return [x0 + 0.25 * (x1 - x0), y0 + 0.25 * (y1 - y0), x1 - 0.25 * (x1 - x0), y1 - 0.25 * (y1 - y0)]


def test_a_degree_costs_as_much_as_it_is_less_likely_than_the_likeliest():
    graded = film(severities={"Pleural Effusion": [0.1, 0.2, 0.6, 0.1]}, Pleural_Effusion=0.9)
    asked = "How severe is the pleural effusion?"
    assert answer_contradiction(asked, "Moderate.", graded) == 0
    assert answer_contradiction(asked, "Mild.", graded) == pytest.approx(math.log(3))
    assert answer_contradiction(asked, "Large.", graded) == pytest.approx(math.log(6))
    assert answer_contradiction(asked, "Yes.", graded) == BESIDE_THE_POINT
    ungraded = film(Pleural_Effusion=0.9)
    assert answer_contradiction(asked, "Mild.", ungraded) == answer_contradiction(asked, "Yes.", ungraded) == 0


def test_the_view_is_judged_where_it_is_known():
    asked = "Is this a PA or an AP view?"
    assert answer_contradiction(asked, "AP.", film(views=[0.2, 0.8])) == 0
    assert answer_contradiction(asked, "PA.", film(views=[0.2, 0.8])) == pytest.approx(math.log(4))
    assert answer_contradiction(asked, "Yes.", film(views=[0.2, 0.8])) == BESIDE_THE_POINT
    assert answer_contradiction(asked, "PA.", film()) == 0


@pytest.mark.parametrize("side", ("right", "left"))
@pytest.mark.parametrize("zone", ("upper", "mid", "lower"))
def test_a_place_is_judged_by_the_box(side, zone):
    other = {"right": "left", "left": "right"}[side]
    elsewhere = {"upper": "mid", "mid": "lower", "lower": "upper"}[zone]
    placed = film(boxes={"Consolidation": box_in(f"{side} {zone} lung zone")}, Consolidation=0.9)
    costs = {
        f"In the {side} {zone} lung zone.": 0,
        f"On the {side}.": 0,
        f"In the {side} {elsewhere} lung zone.": MISPLACED,
        f"In the {other} {zone} lung zone.": MISPLACED,
        f"In the {other} {elsewhere} lung zone.": 2 * MISPLACED,
        "In both lungs.": 0,
        "Yes.": BESIDE_THE_POINT,
    }
    for answer, cost in costs.items():
        assert answer_contradiction("Where is the consolidation?", answer, placed) == cost, answer
    assert answer_contradiction("On which side is the consolidation?", f"{side.capitalize()}.", placed) == 0


def test_an_opacity_lies_where_what_it_was_seen_as_lies():
    placed = film(boxes={"Pneumonia": box_in("left lower lung zone")}, Pneumonia=0.9, Lung_Opacity=0.6)
    assert answer_contradiction("On which side is the patchy opacity?", "Left.", placed) == 0
    assert answer_contradiction("On which side is the patchy opacity?", "Right.", placed) == MISPLACED


def test_a_closed_question_is_answered_by_yes_or_no():
    present = film(Edema=0.9)
    assert answer_contradiction("Is there pulmonary edema?", "Yes.", present) == 0
    assert answer_contradiction("Is there pulmonary edema?", "No.", present) == pytest.approx(math.log(9))
    assert answer_contradiction("Is there pulmonary edema?", "On the left.", present) == BESIDE_THE_POINT
    assert answer_contradiction("How has the edema changed?", "Increased.", present) == 0


def test_what_has_no_degree_or_no_side_is_not_judged_by_one():
    graded = film(severities={"Fracture": [0.9, 0.05, 0.04, 0.01]}, Fracture=0.9, Edema=0.9)
    assert answer_contradiction("How severe is the fracture?", "Severe.", graded) == 0
    assert answer_contradiction("On which side is the edema?", "Left.", graded) == 0
    assert answer_contradiction("On which side is the edema?", "Right.", graded) == 0
