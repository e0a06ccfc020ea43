"""Evidence records: sentences with their findings, boxes, fixations and confidence; disagreements; the schema."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from modeling_gaze2report.processing import evidence
from modeling_gaze2report.processing.anatomy import REGION_NAMES, REGIONS
from modeling_gaze2report.processing.evidence import (
    Observation,
    Rereadings,
    WrittenReport,
    attention_to_fixations,
    evidence_record,
)
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


def test_boxes_written_beside_a_sentence_are_its_boxes():
    finding_box, written_box = [0.1, 0.1, 0.9, 0.9], (0.36, 0.42, 0.74, 0.80)
    text = "The heart is enlarged. Possible edema."
    report = WrittenReport(text, sentence_boxes=[[written_box], []])

    heart, edema = record_of(report, observation(boxes={"Cardiomegaly": finding_box, "Edema": finding_box}))[
        "sentences"
    ]

    assert (heart["boxes"], heart["box_sources"]) == ([list(written_box)], ["text"])
    assert (edema["boxes"], edema["box_sources"]) == ([finding_box], ["finding"])


def test_boxes_of_sentences_are_named_after_regions():
    boxes = {"Cardiomegaly": [0.36, 0.42, 0.74, 0.80], "Pleural Effusion": [0.76, 0.70, 0.92, 0.86]}

    (sentence,) = record_of("The heart is enlarged with a pleural effusion.", observation(boxes=boxes))["sentences"]

    assert sentence["box_regions"] == ["cardiac silhouette", "left costophrenic angle"]


# -- attention --------------------------------------------------------------------------------------------------------


def test_attention_reaches_fixations_through_their_slot_and_the_place_they_fell_on():
    # A global token, 2 x 2 regions, 2 slots; the second fixation is masked, the third has no slot.
    fixations = np.array([[0.1, 0.9, 0.2], [0.0, 0.0, 0.0], [0.9, 0.1, 0.3]])
    mask = np.array([True, False, True])
    token_attention = np.array([[0.5, 0.01, 0.02, 0.04, 0.08, 0.1, 0.2]])

    attention = attention_to_fixations(token_attention, fixations, mask, token_fixations=np.array([0, -1]))

    # The first lies in the lower left region (0.04) and slot 0 (0.1), the third in the upper right region (0.02).
    np.testing.assert_allclose(attention, [[0.14, 0.02]])


def test_points_on_the_far_edges_lie_in_the_last_region():
    attention = attention_to_fixations(
        np.array([[0.5, 0.0, 0.0, 0.0, 0.5]]), np.array([[1.0, 1.0, 0.2]]), np.array([True]), np.zeros(0, int)
    )

    assert attention.tolist() == [[0.5]]


def attentive(report, rows):
    """A report whose sentences attended to the fixations as `rows` say; each sentence is one piece."""
    texts = [report[0], *(" " + text for text in report[1:])]
    return WrittenReport("".join(texts), texts, [0.0] * len(texts), np.array(rows))


GLANCES = [[0.1, 0.1, 0.2], [0.5, 0.6, 0.2], [0.9, 0.9, 0.2]]


def test_what_every_sentence_attends_to_ties_none():
    report = attentive(["The lungs are clear.", "The heart is normal."], [[0.8, 0.1, 0.1], [0.8, 0.05, 0.15]])

    sentences = record_of(report, observation(fixations=GLANCES))["sentences"]

    # Over the average of 0.8, 0.075 and 0.125: 1, 1.33 and 0.8 for the first sentence; 1, 0.67 and 1.2 for the second.
    assert [sentence["fixation_links"] for sentence in sentences] == [
        [{"fixation": 1, "by": ["attention"], "weight": 1.3333}],
        [],
    ]
    assert [sentence["fixations"] for sentence in sentences] == [[1], []]
    assert [sentence["support"] for sentence in sentences] == ["attention", "none"]


def test_attention_is_a_share_of_what_the_sentence_gave():
    # The second sentence attends to fixations ten times as much, but in the same way.
    report = attentive(["The lungs are clear.", "The heart is normal."], [[0.01, 0.02, 0.03], [0.1, 0.2, 0.3]])

    sentences = record_of(report, observation(fixations=GLANCES))["sentences"]

    assert [sentence["fixations"] for sentence in sentences] == [[], []]


def test_a_link_says_both_ways():
    heart = {"Cardiomegaly": [0.4, 0.5, 0.6, 0.7]}
    report = attentive(["The heart is enlarged.", "The lungs are clear."], [[0.1, 0.8, 0.1], [0.4, 0.2, 0.4]])

    sentence = record_of(report, observation(["Cardiomegaly"], heart, GLANCES))["sentences"][0]

    assert sentence["fixation_links"] == [{"fixation": 1, "by": ["box", "attention"], "weight": 1.6}]
    assert sentence["support"] == "box"


def test_at_most_three_fixations_are_tied_by_attention():
    first = [0.15, 0.16, 0.17, 0.18, 0.19, 0.05, 0.05, 0.05]
    report = attentive(["The lungs are clear.", "The heart is normal."], [first, [0.05] * 5 + [0.25] * 3])

    sentences = record_of(report, observation(fixations=[[0.5, 0.5, 0.2]] * 8))["sentences"]

    assert sentences[0]["fixations"] == [2, 3, 4]


def test_a_lone_sentence_has_no_measure_of_attention():
    (sentence,) = record_of(attentive(["Clear."], [[0.8, 0.1, 0.1]]), observation(fixations=GLANCES))["sentences"]

    assert (sentence["fixations"], sentence["support"]) == ([], "none")


# -- support ----------------------------------------------------------------------------------------------------------

HEART = {"Cardiomegaly": [0.4, 0.5, 0.6, 0.7]}


@pytest.mark.parametrize(
    "probable, fixations, gaze_source, expected",
    [
        (["Cardiomegaly"], [[0.5, 0.6, 0.2]], "predicted", True),
        (["Cardiomegaly"], [[0.1, 0.1, 0.2]], "predicted", False),  # not looked at
        ([], [[0.5, 0.6, 0.2]], "predicted", False),  # not seen
        (["Cardiomegaly"], [], "none", True),
        ([], [], "none", False),
    ],
)
def test_an_assertion_is_supported_where_it_was_looked_at_and_seen(probable, fixations, gaze_source, expected):
    seen = observation(probable, HEART, fixations, gaze_source)

    (sentence,) = record_of("The heart is enlarged.", seen)["sentences"]

    assert sentence["supported"] is expected


def test_a_denial_needs_no_support():
    (sentence,) = record_of("No pneumothorax.", observation(fixations=GLANCES))["sentences"]

    assert sentence["supported"] is None


def test_attention_alone_supports_no_assertion():
    report = attentive(["The heart is enlarged.", "The lungs are clear."], [[0.8, 0.1, 0.1], [0.2, 0.4, 0.4]])

    record = record_of(report, observation(["Cardiomegaly"], HEART, [[0.1, 0.1, 0.2]] * 3))

    assert (record["sentences"][0]["support"], record["sentences"][0]["supported"]) == ("attention", False)
    assert record["warnings"] == ["No fixation lies where this sentence points: The heart is enlarged."]


def test_thresholds_may_differ_by_finding():
    thresholds = [0.5] * 14
    thresholds[FINDINGS.index("Cardiomegaly")] = 0.05

    record = record_of("The heart is enlarged.", observation(boxes=HEART, fixations=GLANCES), threshold=thresholds)

    assert record["sentences"][0]["supported"] is True
    assert record["warnings"] == []
    assert [finding["name"] for finding in record["findings"] if finding["box"]] == ["Cardiomegaly"]


# -- sweep ------------------------------------------------------------------------------------------------------------


def test_the_sweep_says_what_was_visited_and_missed():
    # On the typical film: the trachea above the mediastinum, and the right costophrenic angle below the lower zone.
    seen = observation(fixations=[[0.5, 0.08, 0.2], [0.15, 0.83, 0.3]])

    sweep = {step["letter"]: step for step in record_of("Clear.", seen)["sweep"]}

    assert list(sweep) == ["A", "B", "C", "D", "E", "F"]
    assert sweep["A"]["visited"] == ["trachea"]
    assert sweep["A"]["missed"] == ["right hilar structures", "left hilar structures"]
    assert (sweep["D"]["visited"], sweep["D"]["missed"]) == (["right costophrenic angle"], ["left costophrenic angle"])
    assert sweep["C"]["visited"] == [] and sweep["E"]["missed"] == ["right clavicle", "left clavicle"]


def test_a_region_beside_the_film_is_neither_visited_nor_missed():
    seen = observation(fixations=[[0.5, 0.5, 0.2]])
    seen.region_boxes = TYPICAL_REGIONS.copy()
    seen.region_boxes[REGION_NAMES.index("trachea")] = [0.5, 0.0, 0.6, 0.0]

    airway = record_of("Clear.", seen)["sweep"][0]

    assert "trachea" not in airway["visited"] + airway["missed"]


def test_without_gaze_there_is_no_sweep():
    assert record_of("Clear.", observation(gaze_source="none"))["sweep"] == []


# -- readings ---------------------------------------------------------------------------------------------------------


def test_agreement_is_the_share_of_readings_on_the_same_side():
    probabilities = np.full((4, 14), 0.1)
    probabilities[:3, FINDINGS.index("Edema")] = 0.9
    reports = ["Pulmonary edema.", "Possible edema.", "No edema.", "The lungs are clear."]
    rereadings = Rereadings(probabilities, reports)

    record = record_of("Pulmonary edema. No pneumothorax.", observation(["Edema"]), rereadings=rereadings)

    edema, pneumothorax = (sentence["findings"][0] for sentence in record["sentences"])
    assert edema["agreement"] == {"probability": 0.75, "report": 0.5}
    assert pneumothorax["agreement"] == {"probability": 1.0, "report": 1.0}
    assert {finding["name"]: finding["agreement"] for finding in record["findings"]}["Edema"] == {
        "probability": 0.75,
        "report": 0.5,
    }
    assert record["confidence_from"] == {"token_probability": False, "num_scanpaths": 4}


def test_without_other_readings_nothing_agrees():
    record = record_of("Pulmonary edema.")

    assert "agreement" not in record["sentences"][0]["findings"][0]
    assert record["confidence_from"]["num_scanpaths"] == 0


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
    warnings = record_of("There is a pneumothorax.", observation(fixations=[[0.5, 0.5, 0.2]]))["warnings"]

    assert warnings == ["The report asserts Pneumothorax, but its probability is only 0.10."]


def test_agreement_and_doubt_are_no_disagreement():
    seen = observation(["Pleural Effusion", "Pneumonia", "No Finding"], fixations=[[0.5, 0.5, 0.2]])

    record = record_of("There is a pleural effusion. Possible pneumonia. Possible edema. No pneumothorax.", seen)

    assert record["warnings"] == []


def test_a_finding_asserted_once_and_denied_elsewhere_counts_as_asserted():
    seen = observation(["Pleural Effusion"], fixations=[[0.5, 0.5, 0.2]])

    assert record_of("Left pleural effusion. No right pleural effusion.", seen)["warnings"] == []


def test_severity_is_told_of_what_was_seen_and_the_view_with_its_probability():
    seen = observation(probable=("Edema",))
    assert "severity" not in record_of("", seen)["findings"][0] and "view" not in record_of("", seen)
    seen.severities, seen.view = ["moderate"] * 14, ("AP", 0.93)
    record = record_of("Moderate edema.", seen)
    severities = {finding["name"]: finding["severity"] for finding in record["findings"]}
    assert severities.pop("Edema") == "moderate" and set(severities.values()) == {None}
    assert record["view"] == {"name": "AP", "probability": 0.93}


@pytest.mark.parametrize(
    ("question", "warned"),
    [
        ("How severe is the pleural effusion?", ["Pleural Effusion"]),
        ("On which side is the pleural effusion?", ["Pleural Effusion"]),
        ("Where is the edema?", []),  # it was seen
        ("Is there a pleural effusion?", []),  # takes nothing for granted
        ("What abnormalities are seen?", []),
        ("How has the pleural effusion changed since the prior film?", ["Pleural Effusion", "No earlier film"]),
        ("Is the edema worse than on the previous film?", ["No earlier film"]),
    ],
)
def test_what_a_question_takes_for_granted_is_said_where_the_film_does_not_show_it(question, warned):
    seen = observation(probable=("Edema",))
    warnings = record_of("Left.", seen, task="ask", prompt=f"Question: {question}")["warnings"]
    assert len(warnings) == len(warned)
    assert all(words in warning for words, warning in zip(warned, warnings, strict=True))
    assert not any("granted" in one for one in record_of("Left.", seen, task="report", prompt=question)["warnings"])
