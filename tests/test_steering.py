"""Given gaze steers what is looked at: on films with findings on both sides, the evidence follows the gaze across.

With the checkpoint that comes with the package, on phantom films whose one finding lies in both lungs.
"""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from modeling_gaze2report.inference import embedded_folder, image_features, load_reader, read_films
from modeling_gaze2report.processing import evidence
from modeling_gaze2report.processing.anatomy import REGION_BY_NAME
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.evidence_comparison import comparison_text
from modeling_gaze2report.processing.image_processing_gaze2report import load_film

pytestmark = pytest.mark.skipif(
    not (embedded_folder() / "config.json").is_file(), reason="hub_space/model holds no checkpoint"
)
SCHEMA = json.loads(Path(evidence.__file__).with_name("evidence.schema.json").read_text(encoding="utf-8"))
NUM_FILMS = 6
# Enough that what the gaze changes in the words stands out from chance.
MANY_FILMS = 48
# Six rows of three fixations inside one lung; the patient's right is on the viewer's left.
ROWS = np.linspace(0.2, 0.78, 6)
GAZE = {
    side: [[x, y, 0.3] for y in ROWS for x in np.linspace(first, last, 3)]
    for side, first, last in (("right", 0.18, 0.38), ("left", 0.62, 0.82))
}
OTHER = {"right": "left", "left": "right"}


def is_bilateral(record):
    sides = [(box["label"], "right" if box["x1"] <= 0.5 else "left") for box in record["boxes"]
             if box["x1"] <= 0.5 or box["x0"] >= 0.5]  # fmt: skip
    return any((label, "left") in sides and (label, "right") in sides for label, _ in sides)


@pytest.fixture(scope="module")
def reader():
    return load_reader(None, device="cpu")


def bilateral_films(count):
    films, index = [], 0
    while len(films) < count:
        record = generate_phantom(5, index, 128)
        if is_bilateral(record):
            films.append(load_film(record["image"], name=f"film {index}"))
        index += 1
    return films


@pytest.fixture(scope="module")
def films():
    return bilateral_films(NUM_FILMS)


@pytest.fixture(scope="module")
def records(reader, films):
    """Evidence of every film, by the side that was looked at."""
    return {side: read_films(reader, films, [gaze] * NUM_FILMS) for side, gaze in GAZE.items()}


def test_the_model_attends_to_the_side_that_is_looked_at(reader, films):
    right = {}
    for side, gaze in GAZE.items():
        attention = image_features(reader, films, [gaze] * NUM_FILMS).readout_attention.detach().numpy()
        grid = round(attention.shape[1] ** 0.5)
        right[side] = attention.reshape(-1, grid, grid)[:, :, : grid // 2].sum(axis=(1, 2))

    assert (right["right"] > 0.5).all() and (right["left"] < 0.5).all()
    assert (right["right"] - right["left"] > 0.2).all()  # a fifth of all that is attended to moves across


def test_what_is_said_on_one_gaze_alone_is_about_its_side_more_often_than_chance(reader):
    films = bilateral_films(MANY_FILMS)
    texts = {
        side: [
            {sentence["text"] for sentence in one["sentences"]}
            for one in read_films(reader, films, [gaze] * len(films))
        ]
        for side, gaze in GAZE.items()
    }
    own = other = 0
    for side, said in texts.items():
        for here, there in zip(said, texts[OTHER[side]], strict=True):
            sides = [{word for word in GAZE if word in sentence} for sentence in here - there]
            own += sides.count({side})
            other += sides.count({OTHER[side]})

    # Gaze on one side forbids no word about the other. Two standard errors above a coin.
    assert own - other > 2 * (own + other) ** 0.5, (own, other)


@pytest.mark.parametrize("side", GAZE)
def test_the_reading_and_its_sweep_stay_on_that_side(records, side):
    for record in records[side]:
        jsonschema.validate(record, SCHEMA)
        regions = {fixation["region"] for fixation in record["gaze"]["fixations"]} - {None}
        assert side in {REGION_BY_NAME[name].side for name in regions}
        visited = {name for step in record["sweep"] for name in step["visited"]}
        missed = {name for step in record["sweep"] for name in step["missed"]}
        assert f"{side} lung" in visited and f"{OTHER[side]} lung" in missed
        assert OTHER[side] not in {REGION_BY_NAME[name].side for name in regions | visited}


def test_sentences_rest_on_fixations_of_that_side(records):
    for side, on_side in records.items():
        tied = [
            record["gaze"]["fixations"][index]["x"]
            for record in on_side
            for sentence in record["sentences"]
            for index in sentence["fixations"]
        ]
        assert tied and all((x < 0.5) == (side == "right") for x in tied)


def test_a_box_of_one_side_is_looked_at_from_that_side_alone(records):
    ways = {"own side": set(), "other side": set()}
    for side, on_side in records.items():
        for sentence in (sentence for record in on_side for sentence in record["sentences"]):
            for x0, _, x1, _ in sentence["boxes"] if len(sentence["boxes"]) == 1 else ():
                if x1 <= 0.5 or x0 >= 0.5:
                    own = (x1 <= 0.5) == (side == "right")
                    ways["own side" if own else "other side"].add(sentence["support"] == "box")
    assert ways["other side"] == {False}


def test_what_changed_is_said(reader, records):
    for right, left in zip(records["right"], records["left"], strict=True):
        comparison = reader.processor.compare_evidence(right, left)

        assert "right lung" in comparison["sweep"]["only_predicted"]
        assert "left lung" in comparison["sweep"]["only_given"]
        assert "visited   by given gaze alone: " in comparison_text(comparison)
