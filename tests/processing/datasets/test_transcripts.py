import pytest

from modeling_gaze2report.processing.datasets.transcripts import (
    fixations_of_sentence,
    report_sections,
    sentences_of_words,
)
from modeling_gaze2report.processing.errors import DataError

WORDS = [
    ("the", 1.0, 1.2),
    ("heart", 1.2, 1.6),
    ("is", 1.6, 1.7),
    ("normal", 1.7, 2.2),
    (".", 2.2, 2.2),
    ("no", 4.0, 4.2),
    ("effusion", 4.2, 5.0),
    (".", 5.0, 5.0),
]


def test_words_become_sentences_with_their_times():
    sentences = sentences_of_words(WORDS, "here")

    assert sentences == [
        {"text": "The heart is normal.", "start_s": 1.0, "end_s": 2.2},
        {"text": "No effusion.", "start_s": 4.0, "end_s": 5.0},
    ]


def test_last_sentence_without_a_full_stop_is_kept():
    assert [s["text"] for s in sentences_of_words(WORDS[:3], "here")] == ["The heart is"]


def test_words_going_back_in_time_are_refused():
    with pytest.raises(DataError, match=r"words.csv: word 2 \('b'\) starts at 1 s"):
        sentences_of_words([("a", 2.0, 2.1), ("b", 1.0, 1.1)], "words.csv")


def test_fixations_of_a_sentence_start_two_seconds_before_it():
    # the second sentence runs from 4.0 to 5.0 s: its interval is 2.0 to 5.0 s
    fixations = [{"onset_s": t, "duration_s": 0.3} for t in (0.5, 1.6, 1.8, 3.0, 4.9, 5.0)]

    assert fixations_of_sentence(fixations, {"start_s": 4.0, "end_s": 5.0}) == [2, 3, 4]


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // eval for
 pneumonia

 COMPARISON:  None.

 FINDINGS:

 The lungs are clear.  There is
 no effusion.

 IMPRESSION:

 No acute process.
"""


def test_sections_of_a_report_with_headings():
    sections = report_sections(REPORT)

    assert sections["findings"] == "The lungs are clear. There is no effusion."
    assert sections["impression"] == "No acute process."
    assert sections["indication"] == "___F with cough // eval for pneumonia"
    assert sections["comparison"] == "None."


def test_last_paragraph_is_the_findings_where_there_is_no_such_heading():
    text = "FINAL REPORT\n CHEST RADIOGRAPH\n\n INDICATION: Fall.\n\n COMPARISON: ___.\n\n"
    text += " Heart size is normal.\n No fracture.\n"

    assert report_sections(text)["findings"] == "Heart size is normal. No fracture."


def test_report_without_headings_is_all_findings():
    assert report_sections("Clear lungs.\nNormal heart.") == {"findings": "Clear lungs. Normal heart."}
