"""Gaze that is wrong in one stated way, and the table that shows whether it matters."""

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import DataError
from modeling_gaze2report.processing.metrics.controls import (
    WRONG_GAZE,
    compare_sources,
    control_gaze,
    other_images,
)
from modeling_gaze2report.processing.metrics.resampling import Bootstrap, mean_statistics


@pytest.fixture
def recorded():
    """Readings of ten films of five patients, no two fixations alike."""
    generator = np.random.default_rng(0)
    return {f"film{i}": generator.random((4 + i, 3)) for i in range(10)}


@pytest.fixture
def patients():
    return {f"film{i}": f"patient{i // 2}" for i in range(10)}


def rows(fixations):
    return {tuple(row) for row in fixations}


def test_order_shuffled_keeps_the_fixations_and_not_their_order(recorded):
    made = control_gaze("order-shuffled", recorded)

    for film, fixations in recorded.items():
        assert rows(made[film]) == rows(fixations)
        assert not np.array_equal(made[film], fixations)


def test_uniform_keeps_numbers_and_durations(recorded):
    made = control_gaze("uniform", recorded)

    for film, fixations in recorded.items():
        np.testing.assert_array_equal(made[film][:, 2], fixations[:, 2])
        assert not rows(made[film]) & rows(fixations)
    places = np.concatenate([fixations[:, :2] for fixations in made.values()])
    assert places.min() >= 0
    assert places.max() <= 1


def test_centre_bias_draws_from_other_patients(recorded, patients):
    made = control_gaze("centre-bias", recorded, patients)

    for film, fixations in made.items():
        own = {row for other in recorded if patients[other] == patients[film] for row in rows(recorded[other])}
        everything = {row for other in recorded.values() for row in rows(other)}
        assert len(fixations) == len(recorded[film])
        assert rows(fixations) <= everything - own


def test_other_image_gives_each_reading_to_another_patient_once(recorded, patients):
    made = control_gaze("other-image", recorded, patients)
    partner = other_images(patients)

    assert sorted(partner.values()) == sorted(recorded)
    for film, other in partner.items():
        assert patients[film] != patients[other]
        np.testing.assert_array_equal(made[film], recorded[other])


@pytest.mark.parametrize("source", WRONG_GAZE)
def test_the_seed_decides_and_the_order_of_films_does_not(recorded, patients, source):
    made = control_gaze(source, recorded, patients, seed=1)
    again = control_gaze(source, dict(reversed(recorded.items())), patients, seed=1)
    another = control_gaze(source, recorded, patients, seed=2)

    assert all(np.array_equal(made[film], again[film]) for film in recorded)
    assert any(not np.array_equal(made[film], another[film]) for film in recorded)


def test_what_controls_cannot_do_is_said(recorded):
    with pytest.raises(DataError, match="has no recorded fixation"):
        control_gaze("uniform", recorded | {"blind": np.zeros((0, 3))})
    with pytest.raises(DataError, match="no one may have more than half"):
        other_images({"a": "p", "b": "p", "c": "q"})
    with pytest.raises(DataError, match="unknown gaze control"):
        control_gaze("sideways", recorded)


def test_the_table_has_paired_differences_from_the_baseline():
    generator = np.random.default_rng(0)
    score = generator.random(200)
    table = compare_sources(
        {
            "predicted": {"m": mean_statistics("m", score)},
            "recorded": {"m": mean_statistics("m", score + 0.1)},
            "none": {"m": mean_statistics("m", score)},
        },
        bootstrap=Bootstrap(400),
    )

    assert "differences" not in table["rows"]["predicted"]
    recorded, none = (table["rows"][source]["differences"]["m"] for source in ("recorded", "none"))
    assert recorded["difference"] == pytest.approx(0.1)
    assert recorded["ci95"] == pytest.approx([0.1, 0.1])
    assert recorded["p_holm"] == pytest.approx(2 / 401)  # the smallest p there is, twice for two rows
    assert (none["difference"], none["p_holm"]) == (0, 1)


def test_the_baseline_must_be_in_the_table():
    with pytest.raises(DataError, match="baseline 'predicted'"):
        compare_sources({"none": {"m": mean_statistics("m", [1.0])}})
