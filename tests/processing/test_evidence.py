"""Evidence records: sentences with their findings, boxes, fixations and confidence; disagreements; the schema."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from modeling_gaze2report.processing import evidence
from modeling_gaze2report.processing.anatomy import REGION_NAMES, REGIONS
from modeling_gaze2report.processing.evidence import Observation, WrittenReport, evidence_record
from modeling_gaze2report.processing.report_labels import FINDINGS

SCHEMA = json.loads(Path(evidence.__file__).with_name("evidence.schema.json").read_text(encoding="utf-8"))
IMAGE = {"name": "film.dcm", "width": 2544, "height": 3056, "sha256": "0" * 64}
MODEL = {"name_or_path": "a/model", "revision": None, "package_version": "0.1.0"}
TYPICAL_REGIONS = np.array([region.typical_box for region in REGIONS])


def observation(probable=(), boxes=None, fixations=(), gaze_source="predicted"):
    """A film on which only the `probable` findings are probable; a finding without a box has the whole film."""
    finding_boxes = np.tile([0.0, 0.0, 1.0, 1.0], (14, 1))
    for name, box in (boxes or {}).items():
        finding_boxes[FINDINGS.index(name)] = box
    return Observation(
        gaze_source=gaze_source,
        fixations=np.asarray(fixations, dtype=np.float64).reshape(-1, 3),
        finding_probabilities=np.array([0.9 if name in probable else 0.1 for name in FINDINGS]),
        finding_boxes=finding_boxes,
        region_boxes=TYPICAL_REGIONS,
    )


def record_of(report, seen=None, **kwargs):
    report = report if isinstance(report, WrittenReport) else WrittenReport(report)
    options = {"task": "report", "strategy": "direct", "prompt": "Write."} | kwargs
    record = evidence_record(report, seen or observation(), IMAGE, MODEL, **options)
    jsonschema.validate(json.loads(json.dumps(record)), SCHEMA)
    return record


# -- the record -------------------------------------------------------------------------------------------------------


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_contracts_own_example_fits_the_schema():
    example = record_of("") | {
        "strategy": "grounded",
        "gaze": {
            "source": "predicted",
            "fixations": [{"order": 0, "x": 0.41, "y": 0.37, "duration_s": 0.31, "region": "right hilar structures"}],
        },
        "sentences": [
            {
                "text": "Effusion.",
                "confidence": 0.93,
                "findings": [{"name": "Pleural Effusion", "status": "positive"}],
                "boxes": [[0.1, 0.7, 0.4, 0.9]],
                "fixations": [3, 4, 5],
            }
        ],
    }

    jsonschema.validate(example, SCHEMA)


@pytest.mark.parametrize("key", ["schema", "image", "gaze", "sentences", "findings", "regions", "warnings"])
def test_the_schema_misses_what_is_missing(key):
    record = record_of("Clear.")
    del record[key]

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, SCHEMA)


def test_what_was_asked_and_of_whom_stands_in_the_record():
    record = record_of("Clear.", task="report", strategy="direct", prompt="Write it.", warnings=["A note."])

    assert record["schema"] == "gaze2report.evidence/1"
    assert (record["image"], record["model"]) == (IMAGE, MODEL)
    assert (record["task"], record["strategy"], record["prompt"]) == ("report", "direct", "Write it.")
    assert record["warnings"] == ["A note."]
    assert record["report"] == "Clear."


@pytest.mark.parametrize("report", ["", "   ", ".", "The heart is", "1.", "\n\n", "�", "No" * 5000])
def test_any_text_gives_a_record(report):
    assert record_of(report)["report"] == report


def test_all_findings_are_listed_the_most_probable_first():
    findings = record_of("Clear.", observation(["Edema"]))["findings"]

    assert findings[0]["name"] == "Edema"
    assert {finding["name"] for finding in findings} == set(FINDINGS)
    probabilities = [finding["probability"] for finding in findings]
    assert probabilities == sorted(probabilities, reverse=True)


def test_only_probable_findings_have_a_place():
    heart = [0.42, 0.45, 0.72, 0.80]
    seen = observation(["Cardiomegaly", "No Finding"], {"Cardiomegaly": heart})

    places = {finding["name"]: (finding["region"], finding["box"]) for finding in record_of("", seen)["findings"]}

    assert places.pop("Cardiomegaly")[1] == heart
    assert set(places.values()) == {(None, None)}  # "No Finding" is nowhere, however probable


def test_a_finding_on_a_regions_own_box_is_named_after_it():
    for name, box in zip(REGION_NAMES, TYPICAL_REGIONS, strict=True):
        finding = record_of("", observation(["Edema"], {"Edema": box}))["findings"][0]
        same = [other for other, place in zip(REGION_NAMES, TYPICAL_REGIONS, strict=True) if (place == box).all()]
        assert finding["region"] in same, name


def test_the_threshold_belongs_to_the_probable():
    seen = observation()
    seen.finding_probabilities[:] = 0.5

    findings = record_of("", seen)["findings"]

    assert sum(finding["box"] is not None for finding in findings) == 13


def test_fixations_are_numbered_and_named_after_regions():
    # On the typical film: the middle of the right costophrenic angle, then far below both lungs.
    right_angle = dict(zip(REGION_NAMES, TYPICAL_REGIONS, strict=True))["right costophrenic angle"]
    x, y = (right_angle[0] + right_angle[2]) / 2, right_angle[3] - 0.01
    seen = observation(fixations=[[x, y, 0.25], [0.5, 0.999, 0.30]], gaze_source="recorded")

    gaze = record_of("Clear.", seen)["gaze"]

    assert gaze["source"] == "recorded"
    assert [fixation["order"] for fixation in gaze["fixations"]] == [0, 1]
    assert [fixation["duration_s"] for fixation in gaze["fixations"]] == [0.25, 0.3]
    assert gaze["fixations"][0]["region"] == "right costophrenic angle"
    assert gaze["fixations"][1]["region"] in (None, "abdomen")


def test_no_gaze_is_an_empty_list():
    record = record_of("Effusion.", observation(["Pleural Effusion"], gaze_source="none"))

    assert record["gaze"] == {"source": "none", "fixations": []}
    assert record["sentences"][0]["fixations"] == []


# -- sentences --------------------------------------------------------------------------------------------------------


def test_sentences_keep_their_order_and_findings():
    sentences = record_of("The heart is enlarged. No pneumothorax. Possible pneumonia.")["sentences"]

    assert [sentence["text"] for sentence in sentences] == [
        "The heart is enlarged.",
        "No pneumothorax.",
        "Possible pneumonia.",
    ]
    assert [sentence["findings"] for sentence in sentences] == [
        [{"name": "Cardiomegaly", "status": "positive"}],
        [{"name": "Pneumothorax", "status": "negative"}],
        [{"name": "Pneumonia", "status": "uncertain"}],
    ]


def test_a_sentence_has_the_boxes_of_what_it_asserts():
    boxes = {
        "Cardiomegaly": [0.3, 0.4, 0.7, 0.8],
        "Pneumothorax": [0.1, 0.1, 0.2, 0.2],
        "Pneumonia": [0.6, 0.5, 0.8, 0.7],
    }

    sentences = record_of("The heart is enlarged. No pneumothorax. Possible pneumonia.", observation(boxes=boxes))[
        "sentences"
    ]

    # A denied finding has no place; a possible one has.
    assert [sentence["boxes"] for sentence in sentences] == [[boxes["Cardiomegaly"]], [], [boxes["Pneumonia"]]]


def test_a_sentence_has_the_fixations_inside_its_boxes():
    box = [0.3, 0.4, 0.7, 0.8]
    inside, outside = [0.5, 0.5, 0.2], [0.1, 0.5, 0.2]
    corner, beside = [0.7, 0.8, 0.2], [0.71, 0.5, 0.2]
    seen = observation(boxes={"Cardiomegaly": box}, fixations=[outside, inside, beside, corner])

    sentences = record_of("The heart is enlarged. No pneumothorax.", seen)["sentences"]

    assert [sentence["fixations"] for sentence in sentences] == [[1, 3], []]


def test_a_fixation_in_two_boxes_of_a_sentence_counts_once():
    seen = observation(
        boxes={"Cardiomegaly": [0.3, 0.3, 0.7, 0.7], "Edema": [0.4, 0.4, 0.8, 0.8]}, fixations=[[0.5, 0.5, 0.2]]
    )

    (sentence,) = record_of("The heart is enlarged with pulmonary edema.", seen)["sentences"]

    assert len(sentence["boxes"]) == 2
    assert sentence["fixations"] == [0]


# -- confidence -------------------------------------------------------------------------------------------------------


def written(pieces):
    """A report written in pieces of text, each with a probability."""
    texts = [text for text, _ in pieces]
    return WrittenReport("".join(texts).strip(), texts, [math.log(probability) for _, probability in pieces])


def confidences(report):
    return [sentence["confidence"] for sentence in record_of(report)["sentences"]]


def test_confidence_is_the_geometric_mean_of_the_sentences_tokens():
    # sqrt(0.9 * 0.4) = 0.6 and cbrt(0.5 * 0.5 * 0.064) = cbrt(0.016) = 0.25198...
    report = written([("Heart", 0.9), (" big.", 0.4), (" No", 0.5), (" effusion", 0.5), (".", 0.064)])

    assert confidences(report) == [0.6, 0.252]


def test_white_space_alone_has_no_say():
    report = written([(" ", 0.001), ("Clear.", 0.5), (" ", 0.001), ("\n", 0.001), ("Normal.", 0.25), ("", 0.001)])

    assert confidences(report) == [0.5, 0.25]


def test_a_token_across_two_sentences_counts_in_both():
    # sqrt(0.9 * 0.4) = 0.6 and sqrt(0.4 * 0.1) = 0.2
    report = written([("Heart big", 0.9), (". No", 0.4), (" effusion.", 0.1)])

    assert confidences(report) == [0.6, 0.2]


def test_confidence_follows_sentences_over_line_breaks_and_list_numbers():
    # A sentence of the record has single spaces and no number; the report's own text has other lengths.
    report = written(
        [
            *[("1. ", 0.01), ("The heart", 0.9), ("\n   \n"[:4], 0.01), ("is enlarged.", 0.9)],
            *[("\n2. ", 0.01), ("Small", 0.4), ("\n", 0.01), ("effusion.", 0.4)],
        ]
    )

    assert confidences(report) == [0.9, 0.4]


def test_without_probabilities_there_is_no_confidence():
    assert confidences(WrittenReport("Clear. Normal.")) == [None, None]


def test_a_certain_report_has_confidence_one():
    assert confidences(written([("Clear.", 1.0)])) == [1.0]


# -- disagreements ----------------------------------------------------------------------------------------------------


def test_a_probable_finding_that_the_text_denies_or_omits_is_pointed_out():
    seen = observation(["Pleural Effusion", "Edema"])

    warnings = record_of("No pleural effusion.", seen)["warnings"]

    assert warnings == [
        "The report does not assert Edema, but its probability is 0.90.",
        "The report does not assert Pleural Effusion, but its probability is 0.90.",
    ]


def test_an_improbable_finding_that_the_text_asserts_is_pointed_out():
    warnings = record_of("There is a pneumothorax.")["warnings"]

    assert warnings == ["The report asserts Pneumothorax, but its probability is only 0.10."]


def test_agreement_and_doubt_are_no_disagreement():
    seen = observation(["Pleural Effusion", "Pneumonia", "No Finding"])

    record = record_of("There is a pleural effusion. Possible pneumonia. Possible edema. No pneumothorax.", seen)

    assert record["warnings"] == []


def test_a_finding_asserted_once_and_denied_elsewhere_counts_as_asserted():
    seen = observation(["Pleural Effusion"])

    assert record_of("Left pleural effusion. No right pleural effusion.", seen)["warnings"] == []
