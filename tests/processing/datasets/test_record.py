import copy

import pytest

from modeling_gaze2report.processing.datasets.record import (
    check_record,
    clip_box,
    compose_report,
    empty_record,
    label_list,
    record_features,
)
from modeling_gaze2report.processing.errors import DataError


def make_record(**changes):
    record = empty_record("film", "patient", "train")
    record["fixations"] = [{"x": 0.5, "y": 0.25, "onset_s": -0.5, "duration_s": 0.3}]
    record["labels"] = [0, None, 1, -1] + [0] * 10
    record["boxes"] = [{"label": "Cardiomegaly", "x0": 0.1, "y0": 0.2, "x1": 0.3, "y1": 0.4}]
    return {**record, **changes}


def test_good_record_passes():
    record = make_record()

    assert check_record(record, "here") is record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patient_id": ""}, "patient_id is empty"),
        ({"split": "holdout"}, "split is 'holdout'"),
        ({"labels": [1, 0]}, "14 values"),
        ({"labels": [2] + [0] * 13}, "14 values"),
        ({"regions": [[0, 0, 1, 1]]}, "regions must be 17"),
        ({"boxes": [{"label": "Edema", "x0": 0.5, "y0": 0.0, "x1": 0.2, "y1": 1.0}]}, r"boxes\[0\] \(Edema\)"),
        ({"boxes": [{"label": "Edema", "x0": 0.5, "y0": 0.0, "x1": float("nan"), "y1": 1.0}]}, "finite"),
        ({"fixations": [{"x": 1.2, "y": 0, "onset_s": 0, "duration_s": 1}]}, r"fixations\[0\] is x 1.2"),
        ({"fixations": [{"x": 0.2, "y": 0, "onset_s": 0, "duration_s": 0}]}, "duration positive"),
        ({"fixations": [{"x": 0.2, "y": 0, "onset_s": t, "duration_s": 1} for t in (2, 1)]}, "order of their onsets"),
        ({"sentences": [{"text": "a", "start_s": 2.0, "end_s": 1.0}]}, r"sentences\[0\]"),
        ({"colour": "grey"}, "unknown column 'colour'"),
    ],
)
def test_bad_record_is_named(changes, message):
    with pytest.raises(DataError, match=message) as error:
        check_record(make_record(**changes), "table.csv: row 7")
    assert "table.csv: row 7" in str(error.value)


def test_features_keep_unknown_labels_and_missing_regions():
    from datasets import Dataset

    record = make_record(regions=[None] * 16 + [[0.0, 0.25, 0.5, 1.0]])

    back = Dataset.from_list([copy.deepcopy(record)], features=record_features())[0]

    assert back["labels"] == record["labels"]
    assert back["regions"] == record["regions"]
    assert back["image"] is None
    assert back["report"] is None


@pytest.mark.parametrize(
    ("sections", "report"),
    [
        (("Clear.", "Normal."), "FINDINGS: Clear. IMPRESSION: Normal."),
        ((None, "Normal."), "Normal."),
        (("Clear.", ""), "Clear."),
        ((None, None), None),
    ],
)
def test_report_of_sections(sections, report):
    assert compose_report(*sections) == report


def test_boxes_are_cut_to_the_image():
    assert clip_box([-0.1, 0.2, 0.4, 1.3]) == (0.0, 0.2, 0.4, 1.0)
    assert clip_box([1.1, 0.2, 1.4, 0.3]) is None


def test_labels_are_in_the_order_of_the_findings():
    labels = label_list({"No Finding": 0, "Support Devices": 1, "Edema": -1})

    assert labels == [0, None, None, None, None, -1, None, None, None, None, None, None, None, 1]
