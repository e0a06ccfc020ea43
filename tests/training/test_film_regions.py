"""Regions that a model finds for films on which nobody drew any."""

import json

import numpy as np
import pytest
from datasets import Dataset

from modeling_gaze2report.inference import image_features, load_reader
from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.datasets.reading import load_split
from modeling_gaze2report.processing.datasets.record import empty_record, record_features
from modeling_gaze2report.processing.image_processing_gaze2report import load_film
from modeling_gaze2report.training.film_regions import main

from ..tiny_export import export_tiny_model

DRAWN = [0.1, 0.2, 0.4, 0.8]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


@pytest.fixture
def films(tmp_path):
    """Two films of the training split, the first with one drawn region, and one for validation, without a reading."""
    folder = tmp_path / "films"
    for split, numbers in {"train": (0, 1), "validation": (2,)}.items():
        rows = []
        for number in numbers:
            record = generate_phantom(seed=3, index=number, image_size=64)
            row = empty_record(record["image_id"], record["patient_id"], split) | {"image": record["image"]}
            if number == 0:
                row["regions"] = [DRAWN] + [None] * (len(REGION_NAMES) - 1)
            rows.append(row)
        Dataset.from_list(rows, features=record_features()).to_parquet(folder / f"{split}-00000.parquet")
    (folder / "dataset.json").write_text(json.dumps({"source": "films", "licence": "free"}), encoding="utf-8")
    return folder


def test_films_get_the_boxes_of_the_model_and_keep_their_own(films, tiny_model, tmp_path, capsys):
    out = tmp_path / "with-regions"
    assert main(["--model", str(tiny_model), "--data", str(films), "--out", str(out)]) == 0
    assert "3 records with regions" in capsys.readouterr().out

    reader = load_reader(str(tiny_model))
    for split in ("train", "validation"):
        before, after = load_split(films, split), load_split(out, split)
        assert after["image_id"] == before["image_id"]
        for old, new in zip(before, after, strict=True):
            film = load_film(old["image"])
            features = image_features(reader, [film], None, "predicted")
            (seen,) = reader.processor.post_process_observation(features, [(film.height, film.width)])
            expected = np.array(seen.region_boxes, dtype=float)
            if old["regions"]:
                expected[0] = DRAWN
            np.testing.assert_allclose(new["regions"], expected, atol=1e-4)
            assert {name: new[name] for name in new if name not in ("regions", "image")} == {
                name: old[name] for name in old if name not in ("regions", "image")
            }
            np.testing.assert_array_equal(np.asarray(new["image"]), np.asarray(old["image"]))
    info = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert (info["source"], info["licence"]) == ("films", "free")
    assert info["settings"]["regions_by"] == str(tiny_model)
    assert info["splits"]["train"]["files"] == [one.name for one in out.glob("train-*.parquet")]


def test_a_folder_of_other_records_is_not_written_over(films, tiny_model, capsys):
    before = {one.name: one.read_bytes() for one in films.iterdir()}
    assert main(["--model", str(tiny_model), "--data", str(films), "--out", str(films)]) == 2
    assert str(films) in capsys.readouterr().err
    assert {one.name: one.read_bytes() for one in films.iterdir()} == before


def test_a_folder_without_records_is_named_and_nothing_is_written(tiny_model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["--model", str(tiny_model), "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "new")]) == 2
    assert "no prepared data set" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty"]
