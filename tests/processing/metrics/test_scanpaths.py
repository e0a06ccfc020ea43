"""Scanpath metrics against the MATLAB toolbox, a public package, plain reference code and hand calculation."""

import csv
import json

import numpy as np
import pytest

from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.metrics.scanpaths import (
    DynamicTimeWarping,
    MultiMatch,
    RegionSequence,
    ScaledTimeDelayEmbedding,
    ScanMatch,
    ScanpathMetrics,
    StringEditDistance,
    alignment_table,
    as_scanpath,
    cheapest_path,
    grid_cells,
)

SQUARE = (100, 100)
PIXELS = (720, 1280)


def at_cells(*cells, bins=(16, 12), durations=None):
    """A scanpath through the middles of grid cells."""
    durations = [0.2] * len(cells) if durations is None else durations
    return [
        [(column + 0.5) / bins[0], (row + 0.5) / bins[1], duration]
        for (column, row), duration in zip(cells, durations, strict=True)
    ]


def random_scanpath(generator, n=None):
    n = int(generator.integers(3, 15)) if n is None else n
    return np.column_stack([generator.random((n, 2)), generator.uniform(0.06, 0.6, n)])


def needleman_wunsch(substitution, gap):
    """The textbook recurrence, cell by cell."""
    n, m = substitution.shape
    table = np.zeros((n + 1, m + 1))
    table[:, 0], table[0] = gap * np.arange(n + 1), gap * np.arange(m + 1)
    for i in range(n):
        for j in range(m):
            table[i + 1, j + 1] = max(table[i, j] + substitution[i, j], table[i, j + 1] + gap, table[i + 1, j] + gap)
    return table


# --- MultiMatch -----------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_multimatch_gives_the_matlab_toolbox_values(shared_data):
    folder = shared_data / "metric_cases"
    published = json.loads((folder / "multimatch_published_reference.json").read_text(encoding="utf-8"))
    scanpaths = []
    for name in published["inputs"]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = [
                [float(row[key]) for key in ("start_x", "start_y", "duration")]
                for row in csv.DictReader(file, delimiter="\t")
            ]
        scanpaths.append(np.array(rows) / [*published["screensize"], 1])

    for case in published["cases"]:
        metric = MultiMatch(case["TDir"], case["TAmp"], case["TDur"])
        assert metric(*scanpaths, published["screensize"]) == pytest.approx(case["expected"], abs=1e-5)


def test_multimatch_equals_multimatch_gaze_on_random_scanpaths():
    multimatch_gaze = pytest.importorskip("multimatch_gaze")
    generator = np.random.default_rng(0)

    for _ in range(30):
        first, second = random_scanpath(generator), random_scanpath(generator)
        records = [
            np.rec.fromarrays((path * [*PIXELS, 1]).T, names="start_x,start_y,duration") for path in (first, second)
        ]
        expected = multimatch_gaze.docomparison(*records, list(PIXELS))
        assert MultiMatch()(first, second, PIXELS) == pytest.approx(expected, abs=1e-9)


def test_multimatch_is_undefined_below_three_fixations():
    short, long = random_scanpath(np.random.default_rng(0), 2), random_scanpath(np.random.default_rng(1), 5)

    assert np.isnan(MultiMatch()(short, long, SQUARE)).all()
    assert np.isnan(MultiMatch()(long, [], SQUARE)).all()


# --- ScanMatch ------------------------------------------------------------------------------------------------


def test_scanmatch_of_one_exact_and_one_neighbouring_cell():
    # Second fixations are one cell apart: (3.5 + 2.5) / (3.5 * 2).
    score = ScanMatch()(at_cells((0, 0), (1, 0)), at_cells((0, 0), (1, 1)))

    assert score == pytest.approx(6 / 7)


def test_scanmatch_leaves_distant_cells_unaligned():
    # 3-4-5: five cells apart score 3.5 - 5 < 0, so a gap is better: 3.5 / (3.5 * 2).
    assert ScanMatch()(at_cells((0, 0), (3, 0)), at_cells((0, 0), (6, 4))) == pytest.approx(0.5)


def test_scanmatch_with_duration_repeats_cells():
    # 100 and 50 ms in bins of 50 ms: "aab" against "ac", where only one "a" aligns: 3.5 / (3.5 * 3).
    first = at_cells((0, 0), (3, 0), durations=[0.100, 0.050])
    second = at_cells((0, 0), (6, 4), durations=[0.050, 0.050])

    assert ScanMatch(duration_bin_s=0.05)(first, second) == pytest.approx(1 / 3)


def test_scanmatch_with_nothing_to_align():
    path = at_cells((0, 0), (1, 1))

    assert ScanMatch()([], path) == 0
    assert np.isnan(ScanMatch()([], []))
    assert ScanMatch(duration_bin_s=0.05)(at_cells((0, 0), durations=[0.01]), path) == 0  # rounds to no bin


@pytest.mark.parametrize("gap", [0.0, -1.0])
def test_alignment_equals_the_textbook_recurrence(gap):
    generator = np.random.default_rng(0)

    for shape in ((1, 1), (4, 7), (9, 3)):
        substitution = generator.normal(size=shape)
        np.testing.assert_allclose(alignment_table(substitution, gap), needleman_wunsch(substitution, gap), atol=1e-12)


# --- String edit distance, time delay embedding, time warping ---------------------------------------------------


def test_string_edit_distance_counts_edits():
    bins = (5, 5)
    abcd = at_cells((0, 0), (1, 0), (2, 0), (3, 0), bins=bins)
    axd = at_cells((0, 0), (4, 4), (3, 0), bins=bins)

    assert StringEditDistance()(abcd, axd) == 2  # one substitution, one deletion
    assert StringEditDistance()(abcd, []) == 4


def test_time_delay_embedding_by_hand_and_its_direction():
    point, two = [[0.0, 0.0, 0.2]], [[0.0, 0.0, 0.2], [1.0, 0.0, 0.2]]

    assert ScaledTimeDelayEmbedding()(two, point, SQUARE) == pytest.approx(np.exp(-0.5))  # distances 0 and 1
    assert ScaledTimeDelayEmbedding()(point, two, SQUARE) == 1
    assert np.isnan(ScaledTimeDelayEmbedding()([], two, SQUARE))


def test_time_delay_embedding_averages_over_window_lengths():
    first = [[0.0, 0.0, 0.2], [0.8, 0.0, 0.2]]
    second = [[0.8, 0.0, 0.2], [0.0, 0.0, 0.2]]

    # k = 1: every point is found, exp(0); k = 2: both points 0.8 off, 1.6 / 2.
    assert ScaledTimeDelayEmbedding()(first, second, SQUARE) == pytest.approx((1 + np.exp(-0.8)) / 2)


def test_time_warping_in_pixels():
    still = [[0.0, 0.0, 0.2]]
    moving = [[0.0, 0.0, 0.2], [1.0, 0.0, 0.2]]

    assert DynamicTimeWarping()(still, moving, (200, 50)) == pytest.approx(200)
    assert DynamicTimeWarping()(moving, [moving[0], moving[0], moving[1]], (200, 50)) == 0
    assert np.isnan(DynamicTimeWarping()([], moving, (200, 50)))


def test_cheapest_path_by_hand():
    rows, columns, cost = cheapest_path(np.array([[1.0, 9.0, 9.0], [9.0, 2.0, 1.0], [9.0, 9.0, 3.0]]))

    assert cost == 6  # 1 + 2 + 3 along the diagonal; by way of the 1 it would be 1 + 2 + 1 + 3
    assert (rows.tolist(), columns.tolist()) == ([0, 1, 2], [0, 1, 2])


# --- Regions ----------------------------------------------------------------------------------------------------


def test_region_sequence_counts_regions_in_common_order():
    right_upper, left_upper, heart = [0.3, 0.28, 0.2], [0.7, 0.28, 0.2], [0.55, 0.65, 0.2]

    score = RegionSequence()([right_upper, left_upper, heart], [right_upper, heart])

    assert score == pytest.approx(2 / 3)


def test_regions_of_the_image_replace_the_typical_ones():
    boxes = np.full((len(REGION_NAMES), 4), np.nan)
    boxes[3], boxes[5] = [0, 0, 0.5, 1], [0.5, 0, 1, 1]

    assert RegionSequence().letters([[0.1, 0.5, 0.2], [0.9, 0.5, 0.2]], boxes).tolist() == [3, 5]


def test_region_letters_repeat_by_duration():
    letters = RegionSequence(duration_bin_s=0.05).letters([[0.3, 0.28, 0.15]])

    assert len(letters) == 3


# --- All of them ------------------------------------------------------------------------------------------------


def test_identical_scanpaths_are_identical_to_every_metric():
    path = random_scanpath(np.random.default_rng(0), 8)
    metrics = ScanpathMetrics()

    scores = dict(zip(metrics.names, metrics(path, path, PIXELS), strict=True))

    distances = {"sed", "dtw"}
    assert {name for name, score in scores.items() if score == pytest.approx(0)} == distances
    assert all(score == pytest.approx(1) for name, score in scores.items() if name not in distances)


def test_repeated_fixations_are_no_obstacle():
    path = np.repeat(random_scanpath(np.random.default_rng(0), 4), 2, axis=0)

    assert MultiMatch()(path, path, SQUARE) == pytest.approx([1] * 5)


def test_the_right_and_bottom_edges_belong_to_the_last_cells():
    edge = np.array([[1.0, 1.0, 0.2], [1.01, -0.01, 0.2]])

    assert grid_cells(edge, (16, 12)).tolist() == [[15, 11], [15, 0]]


def test_pixels_on_a_cell_border_fall_where_pixels_would():
    width = 1080
    pixels = np.arange(0, width, 90)  # twelve cells of 90 pixels

    cells = grid_cells(np.column_stack([pixels / width, pixels / width]), (12, 12))

    assert cells[:, 0].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("fixations", "message"),
    [
        ([[0.1, 0.2]], "expected \\(N, 3\\)"),
        ([[0.1, float("nan"), 0.2]], "not finite"),
        ([[0.1, 0.2, -0.2]], "negative duration"),
        ([[120.0, 240.0, 0.2]], "look like pixels"),
        ([[0.1, 0.2, 250.0]], "look like milliseconds"),
    ],
)
def test_what_cannot_be_a_scanpath_is_refused(fixations, message):
    with pytest.raises(InputError, match=message):
        as_scanpath(fixations)
