"""Reading findings from report text. Expected labels are a radiology reader's, or the published ones where named."""

import csv
import os
from pathlib import Path

import pytest

from modeling_gaze2report.processing.report_labels import (
    FINDINGS,
    label_report,
    label_sentence,
    split_sentences,
)

SHARED = Path(os.environ.get("GAZE2REPORT_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def mentioned(text):
    """The labels that are not blank, without No Finding."""
    return {name: value for name, value in label_report(text).items() if value is not None and name != "No Finding"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No focal consolidation, pleural effusion, or pneumothorax.", (0, 0, 0)),
        ("There is no evidence of consolidation, pneumothorax or pleural effusion.", (0, 0, 0)),
        ("Lungs are free of consolidation, effusion and pneumothorax.", (0, 0, 0)),
        ("Negative for pneumothorax, consolidation or effusion.", (0, 0, 0)),
        ("Consolidation, pneumothorax and effusions are not seen.", (0, 0, 0)),
        ("Left lower lobe consolidation with a small effusion and a tiny pneumothorax.", (1, 1, 1)),
        ("No pneumothorax, small right pleural effusion.", (None, 1, 0)),
        ("No pneumothorax but there is a small left effusion.", (None, 1, 0)),
        ("No pneumothorax, pleural effusion has decreased.", (None, 1, 0)),
        ("Large right effusion; no pneumothorax, no consolidation.", (0, 1, 0)),
    ],
)
def test_a_negation_reaches_as_far_as_its_list(text, expected):
    labels = label_report(text)

    assert (labels["Consolidation"], labels["Pleural Effusion"], labels["Pneumothorax"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "No change in the left pleural effusion.",
        "No significant interval change in right pleural effusion.",
        "Pleural effusion is not significantly changed.",
        "Effusion is not seen on the lateral view.",
        "Aside from a small pleural effusion, the lungs are clear.",
    ],
)
def test_words_that_look_like_a_negation_leave_the_finding_positive(text):
    assert label_report(text)["Pleural Effusion"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "Cannot exclude pneumonia.",
        "Pneumonia cannot be excluded.",
        "Likely pneumonia.",
        "Opacity concerning for pneumonia.",
        "Evaluate for pneumonia.",
        "Atelectasis versus pneumonia.",
        "Left basilar atelectasis, though pneumonia is not excluded.",
        "There may be pneumonia.",
    ],
)
def test_doubt_makes_a_finding_uncertain(text):
    assert label_report(text)["Pneumonia"] == -1


@pytest.mark.parametrize(
    "text",
    [
        "The previously seen effusion has resolved.",
        "Pleural effusions are absent.",
        "Pleural effusion: none",
        "Pleural effusion is unlikely.",
        "No definite pleural effusion.",
        "Without effusion.",
    ],
)
def test_what_is_gone_or_denied_is_negative(text):
    assert label_report(text)["Pleural Effusion"] == 0


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The heart size is normal.", 0),
        ("Heart is within normal limits.", 0),
        ("The cardiac silhouette is not enlarged.", 0),
        ("The heart is mildly enlarged.", 1),
        ("Enlarged heart.", 1),
        ("Borderline heart size.", 1),
        ("Heart size is stable.", None),
        ("Heart failure.", -1),
    ],
)
def test_heart_size_is_read_from_subject_and_predicate(text, label):
    assert label_report(text)["Cardiomegaly"] == label


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Pericardial effusion.", "Pleural Effusion"),
        ("Vertebral body collapse.", "Atelectasis"),
        ("Soft tissue edema of the neck.", "Edema"),
        ("There is mass effect on the trachea.", "Lung Lesion"),
        ("Prior granulomatous infection.", "Pneumonia"),
    ],
)
def test_the_same_word_about_something_else_is_no_mention(text, name):
    assert label_report(text)[name] is None


def test_mentions_combine_as_chexpert_combines_them():
    assert label_report("No effusion. Possible effusion.")["Pleural Effusion"] == -1
    assert label_report("No effusion. Left effusion.")["Pleural Effusion"] == 1
    assert label_report("Possible effusion. Left effusion.")["Pleural Effusion"] == 1


def test_no_finding_allows_support_devices_and_nothing_else():
    assert label_report("Lungs are clear. Right picc in place.")["No Finding"] == 1
    assert label_report("Possible pneumonia.")["No Finding"] is None
    assert label_report("Small effusion.")["No Finding"] is None


def test_an_empty_report_says_nothing():
    assert set(label_report("  \n ").values()) == {None}


def test_every_label_has_its_name_and_order():
    assert tuple(label_report("Clear lungs.")) == FINDINGS


def test_a_sentence_lists_its_findings_with_status():
    findings = label_sentence("Right picc without pneumothorax, possible small effusion.")

    assert findings == [
        {"name": "Pneumothorax", "status": "negative"},
        {"name": "Pleural Effusion", "status": "uncertain"},
        {"name": "Support Devices", "status": "positive"},
    ]


def test_sentences_keep_decimals_abbreviations_and_wrapped_lines():
    findings = "FINDINGS: The tube ends\n4.5 cm above the carina.\n1. No change.\n2. Dr. Smith was told."
    text = f"{findings}\n\nIMPRESSION: Dry.No edema"

    assert split_sentences(text) == [
        "FINDINGS: The tube ends 4.5 cm above the carina.",
        "No change.",
        "Dr. Smith was told.",
        "IMPRESSION: Dry.",
        "No edema",
    ]


def test_unicode_punctuation_and_ligatures_are_read():
    assert label_report("No e\ufb00usion.")["Pleural Effusion"] == 0
    assert label_report("Right\u2010sided pneumothorax\u00a0\u2013 small.")["Pneumothorax"] == 1
    assert mentioned("\u80ba\u708e \U0001fac1") == {}


def test_text_must_be_text():
    with pytest.raises(TypeError, match="string"):
        label_report(None)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_the_published_labels_of_chexpert_labeler():
    with (SHARED / "data/metric_cases/chexpert_labeler/labeled_reports.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    for row in rows:
        published = {name: int(float(row[name])) if row[name] else None for name in FINDINGS}
        assert label_report(row["Reports"]) == published
