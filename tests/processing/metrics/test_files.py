"""Reading predictions and scanpaths: what is accepted, and what is refused with file and line."""

import gzip
import json

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import DataError, InputError
from modeling_gaze2report.processing.metrics.files import (
    read_predictions,
    read_scanpaths,
    write_json,
    write_text,
)


@pytest.fixture
def lines(tmp_path):
    """Writes records to a JSONL file."""

    def write(*records, name="file.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


def scanpath(**changes):
    record = {"image_id": "a", "width": 200, "height": 100, "X": [20, 200], "Y": [50, 100], "T": [250, 300]}
    return record | changes


def test_predictions_with_one_and_several_references(lines):
    path = lines(
        {"id": 1, "prediction": "x", "reference": "y", "patient_id": "p"},
        {"id": "b", "prediction": "", "reference": ["y", "z"], "patient_id": "p"},
    )

    read = read_predictions(path)

    assert (read.ids, read.predictions, read.references) == (["1", "b"], ["x", ""], [["y"], ["y", "z"]])
    assert read.patients == ["p", "p"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "a", "prediction": "x", "reference": "y"}, "line 2: id 'a' stands on line 1"),
        ({"id": "b", "reference": "y"}, "line 2: no 'prediction'"),
        ({"id": "b", "prediction": None, "reference": "y"}, "'prediction' is missing"),
        ({"id": "b", "prediction": "x"}, "id 'b'.: no 'reference'"),
        ({"id": "b", "prediction": "x", "reference": " "}, "no 'reference'"),
        ({"id": "b", "prediction": "x", "reference": 3}, "'reference' is 3"),
        ({"prediction": "x", "reference": "y"}, "'id' is missing"),
        ({"id": "b", "prediction": "x", "reference": "y", "patient_id": "p"}, "lack 'patient_id'"),
        ([1, 2], "a JSON list"),
    ],
)
def test_bad_predictions_are_named(lines, record, message):
    path = lines({"id": "a", "prediction": "x", "reference": "y"}, record)

    with pytest.raises(DataError, match=message):
        read_predictions(path)


def test_files_that_are_no_jsonl_are_named(tmp_path):
    broken, binary, empty = tmp_path / "broken", tmp_path / "binary", tmp_path / "empty"
    broken.write_text('{"id": 1\n', encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    empty.write_text("\n\n", encoding="utf-8")

    with pytest.raises(DataError, match="broken, line 1: no JSON"):
        read_predictions(broken)
    with pytest.raises(DataError, match="binary, line 1: not UTF-8"):
        read_predictions(binary)
    with pytest.raises(DataError, match="no record"):
        read_predictions(empty)
    with pytest.raises(InputError, match="none: cannot be read"):
        read_predictions(tmp_path / "none")


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('\ufeff{"id": "a", "prediction": "x", "reference": "y"}\n', encoding="utf-8")

    assert read_predictions(path).ids == ["a"]


def test_scanpaths_become_fractions_and_seconds(lines):
    read = read_scanpaths(lines(scanpath(reader_id=3)))[0]

    np.testing.assert_allclose(read.fixations, [[0.1, 0.5, 0.25], [1, 1, 0.3]])
    assert (read.reader_id, read.size, read.has_durations) == ("3", (200, 100), True)


def test_sizes_from_outside_and_files_of_the_coco_search_kind(tmp_path):
    record = {"name": "a.jpg", "subject": 1, "X": [112], "Y": [56], "T": [0.25]}
    path = tmp_path / "file.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(record))

    read = read_scanpaths(path, size=(224, 224), time_unit="s")[0]

    assert (read.image_id, read.reader_id) == ("a.jpg", "1")
    np.testing.assert_allclose(read.fixations, [[0.5, 0.25, 0.25]])


def test_seconds_where_milliseconds_are_meant_are_refused(lines):
    path = lines(scanpath(T=[0.25, 0.3]))

    with pytest.raises(DataError, match="look like seconds where milliseconds are meant"):
        read_scanpaths(path)
    with pytest.raises(DataError, match="look like milliseconds where seconds are meant"):
        read_scanpaths(lines(scanpath()), time_unit="s")


def test_scanpaths_without_durations_are_marked(lines):
    record = scanpath()
    del record["T"]

    assert read_scanpaths(lines(record))[0].has_durations is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Y": [50]}, "different lengths"),
        ({"X": None}, "'X' is missing"),
        ({"X": [20, float("nan")]}, "list of finite numbers"),
        ({"width": 0}, "positive numbers"),
        ({"T": [250, -300]}, "negative duration"),
        ({"X": [2000, 3000]}, "far outside"),
        ({"X": [0.1, 0.2, 0.3], "Y": [0.1, 0.2, 0.3], "T": [200, 200, 200]}, "fractions of the image"),
        ({"width": None}, "give the images' size"),
        ({"image_id": None}, "'image_id' is missing"),
    ],
)
def test_bad_scanpaths_are_named(lines, changes, message):
    path = lines(scanpath(**changes))

    with pytest.raises(DataError, match=message):
        read_scanpaths(path)


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "metrics.json"

    write_json(path, {"a": np.float64(1.5), "b": float("nan"), "c": np.arange(2)})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1.5, "b": None, "c": [0, 1]}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "metrics.json", "")
