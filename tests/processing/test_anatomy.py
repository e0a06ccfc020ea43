"""The table of regions: laterality on the patient's side, adjacency, and the steps of the sweep."""

import pytest

from modeling_gaze2report.processing.anatomy import REGION_BY_NAME, REGION_NAMES, REGIONS, SWEEP


def mirrored(name):
    if name.startswith("right "):
        return "left " + name.removeprefix("right ")
    return "right " + name.removeprefix("left ") if name.startswith("left ") else name


def test_there_are_seventeen_regions_of_different_names():
    assert len(REGION_NAMES) == len(set(REGION_NAMES)) == 17


@pytest.mark.parametrize("region", REGIONS, ids=REGION_NAMES)
def test_a_side_is_the_patients(region):
    x0, _, x1, _ = region.typical_box
    # On a frontal film the patient faces the viewer.
    expected = "right" if x1 < 0.5 else "left" if x0 > 0.5 else None
    assert region.side == expected
    assert region.name.startswith(region.side or "") and (region.side or mirrored(region.name) == region.name)


@pytest.mark.parametrize("region", REGIONS, ids=REGION_NAMES)
def test_adjacency_goes_both_ways_and_stays_close(region):
    assert region.name not in region.adjacent and len(set(region.adjacent)) == len(region.adjacent)
    for name in region.adjacent:
        other = REGION_BY_NAME[name]
        assert region.name in other.adjacent
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = region.typical_box, other.typical_box
        assert ax0 <= bx1 and bx0 <= ax1 and ay0 <= by1 and by0 <= ay1


@pytest.mark.parametrize("region", REGIONS, ids=REGION_NAMES)
def test_both_sides_have_the_same_neighbours(region):
    twin = REGION_BY_NAME[mirrored(region.name)]
    assert {mirrored(name) for name in region.adjacent} == set(twin.adjacent)


def test_opposite_sides_meet_only_in_the_middle():
    for region in REGIONS:
        sides = {REGION_BY_NAME[name].side for name in region.adjacent}
        assert region.side is None or {"left": "right", "right": "left"}[region.side] not in sides


def test_every_region_belongs_to_one_step_of_the_sweep():
    assert sorted(name for step in SWEEP for name in step.regions) == sorted(REGION_NAMES)
    assert "".join(step.letter for step in SWEEP) == "ABCDEF"
