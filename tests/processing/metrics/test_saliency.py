"""Map metrics against published values (pysaliency), and a 3 x 4 map worked out by hand."""

import json

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.metrics import saliency

RISING = np.arange(1.0, 13.0).reshape(3, 4)
UNIFORM = np.ones((3, 4))
FIXATIONS = np.array([[3.5 / 4, 2.5 / 3], [0.5 / 4, 1.5 / 3]])  # pixels (3, 2) and (0, 1): values 12 and 5


def test_nss_of_the_rising_map():
    # (12 + 5) / 2 = 8.5; mean 6.5, population variance 143 / 12.
    assert saliency.nss(RISING, FIXATIONS) == pytest.approx(2 / np.sqrt(143 / 12))
    assert saliency.nss(RISING, FIXATIONS) == pytest.approx(0.5793655, abs=1e-7)


def test_auc_judd_of_the_rising_map():
    # Of the ten other pixels, all are below 12 and four are below 5.
    assert saliency.auc_judd(RISING, FIXATIONS) == pytest.approx((1 + 0.4) / 2)


def test_kld_sim_cc_and_gain_of_the_rising_map():
    assert saliency.kld(UNIFORM, RISING) == pytest.approx(0.1574101, abs=1e-7)
    assert saliency.sim(RISING, UNIFORM) == pytest.approx(0.7692308, abs=1e-7)
    assert saliency.cc(RISING, RISING**2) == pytest.approx(0.9734801, abs=1e-7)
    # mean of log2(12 / 78 * 12) and log2(5 / 78 * 12)
    assert saliency.information_gain(RISING, FIXATIONS, UNIFORM) == pytest.approx(0.2530056, abs=1e-7)


@pytest.fixture
def published(shared_data):
    path = shared_data / "metric_cases" / "pysaliency_published_reference.json"
    reference = json.loads(path.read_text(encoding="utf-8"))
    rows, columns = np.mgrid[:40, :40]
    reference["map"] = np.exp(-0.5 * ((columns - 20) ** 2 + (rows - 20) ** 2) / np.sqrt(2 * 40**2))
    images = ([], [])
    for scanpath in reference["scanpaths"]:
        points = np.column_stack([scanpath["x"], scanpath["y"]])
        images[scanpath["image"]].append((points + 0.5) / 40)
    reference["fixations"] = [np.concatenate(image) for image in images]
    return reference


@pytest.mark.shared
def test_published_values_per_fixation(published):
    everything = np.concatenate(published["fixations"])

    scores = saliency.nss_per_fixation(published["map"], everything)
    areas = saliency.auc_per_fixation(published["map"], everything)

    assert scores == pytest.approx(published["expected"]["NSS_per_fixation"], abs=1e-10)
    assert areas == pytest.approx(published["expected"]["AUC_uniform_per_fixation"])


@pytest.mark.shared
def test_published_values_of_images(published):
    first, second = published["fixations"]
    expected, image = published["expected"], published["map"]

    judd = [saliency.auc_judd(image, fixations) for fixations in (first, second)]
    shuffled = [saliency.shuffled_auc(image, first, second), saliency.shuffled_auc(image, second, first)]

    assert np.average(judd, weights=[len(first), len(second)]) == pytest.approx(expected["AUC_unfixated"])
    assert shuffled == pytest.approx(
        [np.mean(expected["sAUC_per_fixation"][:5]), np.mean(expected["sAUC_per_fixation"][5:])]
    )
    assert saliency.sim(image, np.ones_like(image)) == pytest.approx(expected["SIM_vs_constant"], abs=1e-5)


def test_a_constant_map_knows_nothing():
    assert saliency.nss(UNIFORM, FIXATIONS) == 0
    assert saliency.cc(UNIFORM, RISING) == 0
    assert saliency.auc_judd(UNIFORM, FIXATIONS) == 0.5
    assert saliency.information_gain(UNIFORM, FIXATIONS, UNIFORM) == pytest.approx(0)


def test_no_fixation_gives_no_score():
    nothing = np.zeros((0, 2))

    for score in (
        saliency.nss(RISING, nothing),
        saliency.auc_judd(RISING, nothing),
        saliency.shuffled_auc(RISING, nothing, FIXATIONS),
        saliency.shuffled_auc(RISING, FIXATIONS, nothing),
        saliency.information_gain(RISING, nothing, UNIFORM),
    ):
        assert np.isnan(score)


def test_a_fixation_on_the_right_bottom_edge_reads_the_last_pixel():
    assert saliency.nss(RISING, [[1.0, 1.0]]) == pytest.approx((12 - 6.5) / np.sqrt(143 / 12))


def test_density_has_its_peak_at_the_fixation_and_sum_one():
    density = saliency.density_map([[0.25, 0.75]], (40, 40), sigma=0.05)

    assert np.unravel_index(density.argmax(), density.shape) in {(29, 9), (29, 10), (30, 9), (30, 10)}
    assert density.sum() == pytest.approx(1)


def test_density_is_round_in_pixels_of_a_wide_image():
    density = saliency.density_map([[0.5, 0.5]], (50, 100), sigma=0.05)  # five pixels either way

    middle = density[24:26, 49:51].sum()
    assert density[24:26, 59:61].sum() / middle == pytest.approx(density[34:36, 49:51].sum() / middle)


def test_weights_make_a_dwell_map():
    density = saliency.density_map([[0.25, 0.5], [0.75, 0.5]], (10, 100), sigma=0.02, weights=[3, 1])

    assert density[:, :50].sum() == pytest.approx(0.75)


def test_conditional_scores_use_one_map_per_fixation():
    maps = np.stack([RISING, UNIFORM])

    scores = saliency.conditional_scores(maps, FIXATIONS, UNIFORM)

    assert scores["cnss"] == pytest.approx([5.5 / np.sqrt(143 / 12), 0])
    assert scores["cig_bits"] == pytest.approx([np.log2(12 / 78 * 12), 0])
    assert scores["cauc"] == pytest.approx([11.5 / 12, 0.5])


def test_maps_that_cannot_be_densities_are_refused():
    with pytest.raises(InputError, match="negative"):
        saliency.kld(RISING, -RISING)
    with pytest.raises(InputError, match="shape"):
        saliency.information_gain(RISING, FIXATIONS, np.ones((4, 4)))
    with pytest.raises(InputError, match="N = 2"):
        saliency.conditional_scores(RISING[None], FIXATIONS, UNIFORM)
