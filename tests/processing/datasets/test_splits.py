import pytest

from modeling_gaze2report.processing.datasets.splits import (
    Audit,
    audit_message,
    canonical_split,
    scanpath_key,
    split_of_patient,
)
from modeling_gaze2report.processing.errors import DataError


def key(patient, image, split, film=None, scanpath=None):
    return {"patient_id": patient, "image_id": image, "split": split, "film": film, "scanpath": scanpath}


def audit_of(*keys):
    audit = Audit()
    for entry in keys:
        audit.add(entry)
    return audit.result()


def test_shares_of_the_patient_split():
    counts = dict.fromkeys(("train", "validation", "test"), 0)
    for number in range(5000):
        counts[split_of_patient(f"patient-{number}")] += 1

    # five standard deviations of a binomial of 5,000 draws: 141 and 106
    assert abs(counts["train"] - 4000) < 141
    assert abs(counts["validation"] - 500) < 106
    assert abs(counts["test"] - 500) < 106


def test_patient_split_needs_no_other_patient():
    assert split_of_patient("10000032") == split_of_patient("10000032")
    assert len({split_of_patient("10000032", seed) for seed in range(60)}) == 3


def test_clean_splits_pass():
    result = audit_of(key("a", "1", "train", "f1", "s1"), key("a", "2", "train", "f2", "s1"), key("b", "3", "test"))

    assert result["passed"]
    assert audit_message(result) == "the splits are clean"


def test_patient_in_two_splits_fails():
    result = audit_of(key("a", "1", "train"), key("a", "2", "test"))

    assert not result["passed"]
    assert result["patients_in_two_splits"] == {"count": 1, "examples": ["a"]}
    assert result["images_in_two_splits"]["count"] == 0


def test_film_under_two_names_fails():
    result = audit_of(key("a", "1", "train", "same file"), key("b", "2", "test", "same file"))

    assert not result["passed"]
    assert result["film_files_in_two_splits"]["count"] == 1


def test_copied_scanpaths_fail():
    result = audit_of(*[key("a", "1", split, None, "s") for split in ("train", "train", "test")])

    assert result["duplicated_scanpaths"]["count"] == 2
    assert result["duplicated_scanpaths"]["across_splits"] == 1
    assert "duplicated scanpaths" in audit_message(result)


def test_equal_scanpaths_have_one_key():
    first = [{"x": 0.5, "y": 0.5, "onset_s": 0.0, "duration_s": 0.2}]
    later = [{"x": 0.5, "y": 0.5, "onset_s": 9.0, "duration_s": 0.2}]
    other = [{"x": 0.5, "y": 0.5, "onset_s": 0.0, "duration_s": 0.3}]

    assert scanpath_key(first) == scanpath_key(later) != scanpath_key(other)
    assert scanpath_key([]) is None


@pytest.mark.parametrize(("name", "split"), [("validate", "validation"), (" Train ", "train"), ("valid", "validation")])
def test_names_of_official_splits(name, split):
    assert canonical_split(name, "here") == split


def test_unknown_split_is_named():
    with pytest.raises(DataError, match=r"row 3: unknown split 'gold'"):
        canonical_split("gold", "row 3")
