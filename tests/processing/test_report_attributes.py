"""What texts say of findings beside their presence, and what questions ask for."""

import pytest

from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.report_attributes import (
    SEVERITIES,
    question_kind,
    severities_in_answer,
    severities_in_report,
    severity_of,
    side_of,
    view_of,
    zone_of,
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A trace left pleural effusion.", "minimal"),
        ("A very small pneumothorax.", "minimal"),
        ("The heart is mildly enlarged.", "mild"),
        ("SMALL effusion", "mild"),
        ("A moderate-sized effusion.", "moderate"),
        ("Massive effusion.", "severe"),
        ("The mediastinum is markedly widened.", "severe"),
        ("There is an effusion.", None),
        ("A small to moderate effusion.", None),  # two degrees are none
        ("A minimally displaced rib fracture.", None),  # says how far it moved
        ("Cardiomegaly, slightly increased.", None),  # says how it changed
    ],
)
def test_severity_of_a_text(text, word):
    degree = severity_of(text)
    assert (None if degree is None else SEVERITIES[degree]) == word


@pytest.mark.parametrize(
    ("text", "side", "zone"),
    [
        ("In the right lower lung zone.", "right", "lower"),
        ("On the left.", "left", None),
        ("Right middle lobe", "right", "mid"),
        ("the left lung apex", "left", "upper"),
        ("Bibasilar atelectasis.", "bilateral", "lower"),
        ("In the right and the left lung.", "bilateral", None),
        ("In the upper and lower zones.", None, None),
        ("Cardiomegaly.", None, None),
    ],
)
def test_side_and_zone_of_a_text(text, side, zone):
    assert (side_of(text), zone_of(text)) == (side, zone)


@pytest.mark.parametrize(
    ("text", "view"),
    [("AP.", "AP"), ("A PA view.", "PA"), ("Antero-posterior", "AP"), ("PA or AP", None), ("No.", None)],
)
def test_view_of_a_text(text, view):
    assert view_of(text) == view


def test_a_report_grades_what_it_asserts_alone_and_once():
    report = (
        "There is a small left pleural effusion. Moderate cardiomegaly. No large pneumothorax. "
        "Possible mild pulmonary edema. Severe consolidation and atelectasis. IMPRESSION: Moderate cardiomegaly."
    )
    assert severities_in_report(report) == {"Pleural Effusion": 1, "Cardiomegaly": 2}
    assert severities_in_report("Mild cardiomegaly. Severe cardiomegaly.") == {}
    assert severities_in_report("A large displaced rib fracture.") == {}
    pneumonia = "Moderate patchy opacity in the left lower lobe, consistent with pneumonia."
    assert severities_in_report(pneumonia) == {"Lung Opacity": 2, "Pneumonia": 2}
    assert severities_in_report("") == {}


def test_an_answer_grades_what_was_asked():
    assert severities_in_answer("How severe is the pleural effusion?", "Moderate.") == {"Pleural Effusion": 2}
    assert severities_in_answer("Is there a pleural effusion?", "Yes, small.") == {}
    assert severities_in_answer("How severe is it?", "Mild.") == {}


def test_degrees_read_from_reports_of_phantoms_are_those_of_their_answers():
    """Phantoms tell severity in words of the report and in answers: both must come to the same degree."""
    compared = 0
    for index in range(300):
        record = generate_phantom(77, index, 32)
        stated = severities_in_report(record["report"])
        for one in record["questions"]:
            for name, degree in severities_in_answer(one["question"], one["answer"]).items():
                if name in stated:
                    assert stated[name] == degree, record["report"]
                    compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How severe is the edema?", "severity"),
        ("How large is the effusion?", "severity"),
        ("On which side is the nodule?", "side"),
        ("Is the effusion on the left or right side?", "side"),
        ("Where is the consolidation?", "place"),
        ("In which lobe is the mass?", "place"),
        ("Is this a PA or an AP view?", "view"),
        ("What view is this?", "view"),
        ("What abnormalities are seen?", "list"),
        ("Is there a pneumothorax?", "presence"),
        ("Does the film show edema?", "presence"),
        ("How has the effusion changed?", "other"),
        ("", "other"),
    ],
)
def test_what_a_question_asks_for(question, kind):
    assert question_kind(question) == kind
