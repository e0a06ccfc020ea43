"""Boxes and heat maps, by hand."""

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.metrics import boxes

UNIT = [0, 0, 1, 1]
LEFT_HALF = [0, 0, 0.5, 1]


def test_iou_of_half_and_whole():
    assert boxes.pairwise_iou([LEFT_HALF], [UNIT, [0.5, 0, 1, 1]]) == pytest.approx(np.array([[0.5, 0]]))


def test_a_box_without_area_overlaps_nothing():
    assert boxes.pairwise_iou([[0.2, 0.2, 0.2, 0.2]], [[0.2, 0.2, 0.2, 0.2]]) == pytest.approx(0)


def test_area_covered_twice_counts_once():
    assert boxes.union_area([[0, 0, 0.6, 1], [0.4, 0, 1, 0.5]]) == pytest.approx(0.6 + 0.3 - 0.1)
    assert boxes.union_area([]) == 0


def test_sets_of_boxes_are_compared_as_areas():
    # Two halves against the whole: the same area in other boxes.
    assert boxes.union_iou([LEFT_HALF, [0.5, 0, 1, 1]], [UNIT]) == pytest.approx(1)
    assert boxes.union_iou([], []) == 1
    assert boxes.union_iou([], [UNIT]) == 0


def test_hit_rates_count_phrases():
    statistics = boxes.grounding_statistics([[LEFT_HALF], [[0, 0, 0.3, 1]], []], [[UNIT], [UNIT], [UNIT]])

    assert statistics["miou"].score() == pytest.approx((0.5 + 0.3) / 3)
    assert statistics["hit_rate_iou_50"].score() == pytest.approx(1 / 3)
    assert statistics["hit_rate_iou_30"].score() == pytest.approx(2 / 3)


def test_radfact_support_is_directional():
    small, large = [0.4, 0.4, 0.6, 0.6], [0, 0, 1, 1]

    assert boxes.supported_boxes([small], [large]).tolist() == [True]
    assert boxes.supported_boxes([large], [small]).tolist() == [False]
    assert boxes.supported_boxes([UNIT], [LEFT_HALF]).tolist() == [True]  # exactly half of it


def test_radfact_denominators():
    result = boxes.spatial_entailment(
        predicted=[[LEFT_HALF], [UNIT], [], [LEFT_HALF]],
        reference=[[UNIT], [[0, 0, 0.1, 0.1]], [], [UNIT]],
        logically_entailed=[True, True, True, False],
    )

    assert result["logical"] == 3 / 4
    assert result["grounding"] == 1 / 2  # of two entailed sentences with boxes one is supported
    assert result["spatial"] == 1 / 3
    assert (result["sentences"], result["entailed_with_boxes"], result["with_boxes"]) == (4, 2, 3)


def test_pointing_game_with_ties_and_tolerance():
    heat = np.zeros((10, 10))
    heat[5, 5] = heat[0, 0] = 1

    assert boxes.pointing_game(heat, [[0.5, 0.5, 0.7, 0.7]]) == 0.5
    assert boxes.pointing_game(heat, [[0.6, 0.5, 0.7, 0.7]], tolerance=0.1) == 0.5  # 0.05 beside the box
    assert boxes.pointing_game(heat, [[0.6, 0.5, 0.7, 0.7]], tolerance=0.01) == 0
    assert np.isnan(boxes.pointing_game(heat, []))


def test_energy_and_its_chance_level():
    heat = np.ones((10, 10))
    heat[:, :5] = 3

    share, chance = boxes.energy_in_boxes(heat, [LEFT_HALF])

    assert (share, chance) == (0.75, 0.5)


def test_mean_average_precision_of_a_perfect_and_a_blind_detector():
    reference = [[{"label": "mass", "box": [0.1, 0.1, 0.4, 0.4]}], [{"label": "nodule", "box": [0.5, 0.5, 0.6, 0.6]}]]
    perfect = [[record | {"score": 0.9} for record in image] for image in reference]

    assert boxes.mean_average_precision(perfect, reference)["map"] == pytest.approx(1)
    assert boxes.mean_average_precision([[], []], reference)["map"] == 0
    half = boxes.mean_average_precision([perfect[0], []], reference)
    assert (half["map_50"], half["classes"]) == (pytest.approx(0.5), 2)


def test_average_precision_depends_on_the_threshold():
    # IoU of 0.45: found at 0.4, missed at 0.5.
    reference = [[{"label": "mass", "box": [0, 0, 1, 1]}]]
    predicted = [[{"label": "mass", "box": [0, 0, 1, 0.45], "score": 1.0}]]

    result = boxes.mean_average_precision(predicted, reference)

    assert (result["map_40"], result["map_50"], result["map"]) == (pytest.approx(1), 0, 0)


def test_boxes_the_wrong_way_round_are_refused():
    with pytest.raises(InputError, match="x1 < x0"):
        boxes.as_boxes([[0.5, 0, 0.2, 1]])
