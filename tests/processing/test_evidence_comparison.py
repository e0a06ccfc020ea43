"""What another gaze changes: probabilities, sentences and what they rest on, regions visited."""

import pytest

from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.evidence_comparison import compare_evidence, comparison_text


def sentence(text, findings=(), fixations=(), support="none", supported=None, boxes=()):
    return {
        "text": text,
        "findings": [{"name": name, "status": "positive"} for name in findings],
        "fixations": list(fixations),
        "boxes": list(boxes),
        "support": support,
        "supported": supported,
    }


def make_record(sentences=(), probabilities=None, visited=(), source="predicted", sha256="a" * 64):
    return {
        "image": {"name": "film.png", "width": 10, "height": 10, "sha256": sha256},
        "model": {"name_or_path": "m", "revision": None, "package_version": "1"},
        "gaze": {"source": source, "fixations": []},
        "sweep": [{"letter": "B", "name": "breathing", "visited": list(visited), "missed": []}],
        "sentences": list(sentences),
        "findings": [
            {"name": name, "probability": value, "region": "left lung" if value >= 0.5 else None, "box": None}
            for name, value in (probabilities or {"Edema": 0.2, "Pneumonia": 0.7}).items()
        ],
    }


def test_a_record_has_nothing_to_say_against_itself():
    record = make_record([sentence("Clear.")], visited=["left lung"])

    comparison = compare_evidence(record, record)

    assert comparison["sentences"] == {"added": [], "removed": [], "changed": [], "kept": []}
    assert {finding["change"] for finding in comparison["findings"]} == {0}
    assert comparison_text(comparison) == "nothing changed"


def test_probabilities_are_compared_the_largest_change_first():
    before = make_record(probabilities={"Edema": 0.2, "Pneumonia": 0.7})
    after = make_record(probabilities={"Edema": 0.25, "Pneumonia": 0.3}, source="recorded")

    comparison = compare_evidence(before, after)

    assert [(one["name"], one["change"]) for one in comparison["findings"]] == [("Pneumonia", -0.4), ("Edema", 0.05)]
    assert comparison["findings"][0]["region"] == {"predicted": "left lung", "given": None}
    assert comparison["sources"] == {"predicted": "predicted", "given": "recorded"}
    assert "Pneumonia: 0.70 -> 0.30, left lung -> not seen" in comparison_text(comparison)


def test_sentences_are_added_removed_changed_or_kept():
    before = make_record(
        [sentence("The heart is big.", ["Cardiomegaly"]), sentence("Clear."), sentence("Some edema.", ["Edema"])]
    )
    after = make_record([sentence("Much edema.", ["Edema"]), sentence("Clear."), sentence("A fracture.", ["Fracture"])])

    sentences = compare_evidence(before, after)["sentences"]

    assert sentences["added"] == ["A fracture."]
    assert sentences["removed"] == ["The heart is big."]
    assert sentences["changed"] == [{"predicted": "Some edema.", "given": "Much edema."}]
    assert sentences["kept"] == []


def test_a_kept_sentence_says_what_it_rests_on_now():
    before = make_record([sentence("Edema.", ["Edema"], supported=False)])
    after = make_record([sentence("Edema.", ["Edema"], [4, 7], "box", True)])

    comparison = compare_evidence(before, after)

    (kept,) = comparison["sentences"]["kept"]
    assert kept["num_fixations"] == {"predicted": 0, "given": 2}
    assert kept["supported"] == {"predicted": False, "given": True}
    assert "Edema. (fixations 0 -> 2; support none -> box; supported False -> True)" in comparison_text(comparison)


def test_of_a_sentence_said_twice_each_is_compared_once():
    before = make_record([sentence("Edema.", ["Edema"]), sentence("Edema.", ["Edema"])])
    after = make_record([sentence("Edema.", ["Edema"])])

    sentences = compare_evidence(before, after)["sentences"]

    assert (sentences["removed"], sentences["added"], sentences["changed"]) == (["Edema."], [], [])


def test_regions_that_one_reading_alone_visited_are_named():
    comparison = compare_evidence(
        make_record(visited=["left lung", "trachea"]), make_record(visited=["right lung", "trachea"])
    )

    assert comparison["sweep"] == {"only_predicted": ["left lung"], "only_given": ["right lung"]}


def test_records_of_two_films_are_not_compared():
    with pytest.raises(InputError, match="different films"):
        compare_evidence(make_record(), make_record(sha256="b" * 64))
