import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_gaze2report.processing.datasets.scanpath import (
    Scanpath,
    canonical_line,
    check_scanpath,
    detect_fixations,
    parse_canonical,
    write_canonical,
)
from modeling_gaze2report.processing.errors import InputError


def make_scanpath(x, y, onset, duration, width=1000.0, height=800.0, **kwargs):
    values = (np.asarray(v, dtype=float) for v in (x, y, onset, duration))
    return Scanpath("film", "reader", width, height, *values, **kwargs)


def test_canonical_line_is_pixels_and_milliseconds():
    scanpath = make_scanpath([512.5], [100], [-0.25], [0.283])

    assert json.loads(canonical_line(scanpath)) == {
        "image_id": "film",
        "reader_id": "reader",
        "width": 1000,
        "height": 800,
        "X": [512.5],
        "Y": [100],
        "T": [283],
        "onset": [-250],
    }


positive = st.floats(1e-4, 59.0, allow_nan=False)
place = st.floats(0, 799.0, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(place, place, st.floats(-1e4, 1e4), positive), min_size=1, max_size=8, unique_by=lambda t: t[2])
)
def test_writing_and_reading_back_changes_no_bit(rows):
    x, y, onset, duration = np.array(sorted(rows, key=lambda row: row[2])).T
    scanpath = make_scanpath(x, y, onset, duration)

    (back,) = parse_canonical(canonical_line(scanpath), "memory")

    for name in ("x", "y", "onset_s", "duration_s"):
        assert getattr(back, name).tobytes() == getattr(scanpath, name).tobytes()
    assert (back.image_id, back.reader_id, back.width, back.height) == ("film", "reader", 1000.0, 800.0)


def test_nothing_is_left_under_the_final_name_when_writing_fails(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(InputError, match="cannot be written"):
        write_canonical([make_scanpath([1], [1], [0], [0.1])], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: a scanpath is a JSON object"),
        ('{"image_id": "a", "width": 9, "height": 9, "X": [1], "Y": [1]}', "line 2: key 'T' is missing"),
        ('{"image_id": "a", "width": 9, "height": 9, "X": [1, 2], "Y": [1], "T": [1]}', "lists of one length"),
        ('{"image_id": "a", "width": 9, "height": 9, "X": ["q"], "Y": [1], "T": [1]}', "key 'X' holds something"),
        ('{"image_id": "a", "width": 9, "height": 9, "X": [1], "Y": [1], "T": [-5]}', "duration"),
    ],
)
def test_bad_canonical_lines_are_named(line, message):
    good = canonical_line(make_scanpath([1], [1], [0], [0.1]))

    with pytest.raises(InputError, match=message):
        parse_canonical(f"{good}\n{line}\n", "gaze.jsonl")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("x", [1.0, np.nan], "row 12, x: nan"),
        ("duration_s", [0.2, -0.1], "row 12, duration: -0.1 s"),
        ("duration_s", [0.2, 250.0], "is the unit milliseconds"),
        ("onset_s", [5.0, 4.0], "row 12, onset: 4 s comes after 5 s"),
        ("onset_s", [5.0, 5.0], "row 12, onset: 5 s is there twice"),
        ("x", [-5.0, 2000.0], "all 2 fixations of film lie off the image"),
    ],
)
def test_bad_values_are_named_with_their_row(column, values, message):
    scanpath = make_scanpath([1, 2], [3, 4], [0, 1], [0.2, 0.2])
    setattr(scanpath, column, np.array(values))

    with pytest.raises(InputError, match=message):
        check_scanpath(scanpath, "gaze.csv", np.array([11, 12]))


def test_fixations_off_the_image_are_left_out_and_counted():
    scanpath = check_scanpath(make_scanpath([10, 1200, 20], [10, 10, 10], [0, 1, 2], [0.1, 0.2, 0.3]), "gaze.csv")

    assert scanpath.x.tolist() == [10, 20]
    assert scanpath.duration_s.tolist() == [0.1, 0.3]
    assert scanpath.notes == ["1 of 3 fixations lie off the image and are left out"]


def test_fixations_in_fractions_of_the_image():
    scanpath = make_scanpath([250], [200], [1], [0.5])

    assert scanpath.fixations() == [{"x": 0.25, "y": 0.25, "onset_s": 1.0, "duration_s": 0.5}]
    np.testing.assert_allclose(scanpath.gaze(), [[0.25, 0.25, 0.5]])


def two_fixations():
    """100 Hz: 20 samples at (100, 100), 2 on the way, 30 at (300, 120)."""
    x = np.concatenate([np.full(20, 100.0), [160, 230], np.full(30, 300.0)])
    y = np.concatenate([np.full(20, 100.0), [106, 113], np.full(30, 120.0)])
    return x, y, np.arange(52) / 100


@pytest.mark.parametrize("method", ["idt", "ivt"])
def test_two_fixations_are_found(method):
    # 40 pixels per degree; on the way the eye moves at 60 px per 10 ms = 150 degrees/s
    x, y, onset, duration = detect_fixations(*two_fixations(), pixels_per_degree=40.0, method=method)

    np.testing.assert_allclose(x, [100, 300])
    np.testing.assert_allclose(y, [100, 120])
    np.testing.assert_allclose(onset, [0.0, 0.22 if method == "idt" else 0.23])
    np.testing.assert_allclose(duration, [0.20, 0.30 if method == "idt" else 0.29])


def test_lost_samples_end_a_fixation():
    x, y, time = two_fixations()
    x[8:10] = np.nan

    found, _, onset, duration = detect_fixations(x, y, time, pixels_per_degree=40.0)

    # 80 ms before the loss are too short for a fixation; 100 ms after it are just long enough
    np.testing.assert_allclose(found, [100, 300])
    np.testing.assert_allclose(onset, [0.10, 0.22])
    np.testing.assert_allclose(duration, [0.10, 0.30])


def test_short_fixations_are_given_up():
    found, *_ = detect_fixations(*two_fixations(), pixels_per_degree=40.0, min_duration_s=0.25)

    np.testing.assert_allclose(found, [300])
