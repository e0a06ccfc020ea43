import math

import numpy as np
import pytest

from modeling_gaze2report.processing.drafts import contradiction, said_in_answer, said_in_report
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
