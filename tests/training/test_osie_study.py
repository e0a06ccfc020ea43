"""The study on human gaze: pictures and gaze stay together, baselines know no test picture, figures are right."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_gaze2report.processing.datasets.splits import split_of_patient
from modeling_gaze2report.training.osie_study import (
    Batch,
    Picture,
    PictureReader,
    Settings,
    baseline_scanpaths,
    batch_of,
    centre_bias,
    likelihoods,
    main,
    other_observers,
    per_fixation,
    read_pictures,
    sampled_scanpaths,
    seen_through,
    train,
    verdicts,
)

TINY = Settings(epochs=2, side=32, hidden_size=16, widths=(8, 16, 16), dropout=0.0)


def picture(name: str, *readings, side: int = 32, pixels: torch.Tensor | None = None) -> Picture:
    if pixels is None:
        pixels = torch.full((3, side, side), 100, dtype=torch.uint8)
    arrays = [np.array(reading, dtype=np.float32) for reading in readings]
    return Picture(name, pixels, arrays, [str(number) for number in range(len(arrays))])


def spot_picture(name: str, x: float, y: float, generator: np.random.Generator, side: int = 32) -> Picture:
    """A dark picture with one bright spot, and two observers who look at it again and again."""
    rows, columns = np.mgrid[0:side, 0:side]
    spot = 255 * np.exp(-0.5 * (((columns + 0.5) / side - x) ** 2 + ((rows + 0.5) / side - y) ** 2) / 0.08**2)
    pixels = torch.tensor(np.stack([spot] * 3)).to(torch.uint8)
    readings = [
        np.column_stack([np.clip(generator.normal((x, y), 0.04, (5, 2)), 0, 1), generator.uniform(0.2, 0.3, 5)])
        for _ in range(2)
    ]
    return picture(name, *readings, pixels=pixels)


def names_in(split: str, count: int) -> list[str]:
    return [name for name in map(str, range(1000, 2000)) if split_of_patient(name) == split][:count]


@pytest.fixture(scope="module")
def osie_folder(tmp_path_factory):
    """Seven pictures in the data set's form, with two observers each."""
    folder = tmp_path_factory.mktemp("osie")
    (folder / "stimuli").mkdir()
    generator = np.random.default_rng(0)
    lines = []
    for name in [*names_in("train", 4), *names_in("validation", 1), *names_in("test", 2)]:
        pixels = generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "stimuli" / f"{name}.jpg")
        for subject in range(2):
            count = 4
            line = {"name": f"{name}.jpg", "subject": subject, "width": 800, "height": 600}
            line |= {"X": generator.uniform(50, 750, count).tolist(), "Y": generator.uniform(50, 550, count).tolist()}
            lines.append(json.dumps(line | {"T": [200.0, 250.0, 150.0, 300.0]}))
    (folder / "fixations.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


# -- augmentation -----------------------------------------------------------------------------------------------------


def test_a_mirrored_picture_mirrors_the_gaze():
    reading = np.array([[0.25, 0.4, 0.2], [0.9, 0.1, 0.3]])

    seen = seen_through(reading, np.array([-1.0, 1.0]), np.zeros(2))

    np.testing.assert_allclose(seen, [[0.75, 0.4, 0.2], [0.1, 0.1, 0.3]], atol=1e-6)


def test_fixations_outside_a_cut_are_left_out():
    reading = np.array([[0.75, 0.5, 0.2], [0.25, 0.5, 0.3]])

    seen = seen_through(reading, np.array([0.5, 1.0]), np.array([0.5, 0.0]))  # the right half of the picture

    np.testing.assert_allclose(seen, [[0.5, 0.5, 0.2]], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_gaze_stays_on_what_was_looked_at_when_the_picture_is_varied(seed):
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
    pixels[:, 22:26, 38:42] = 255  # around x 40 / 64, y 24 / 64
    one = picture("a", [[40 / 64, 24 / 64, 0.2]], pixels=pixels)

    batch = batch_of([one], 5, np.random.default_rng(seed))

    row, column = divmod(int(batch.pixels[0].mean(0).argmax()), 64)
    looked_at = batch.fixations[0, 0, :2] * 64
    assert abs(float(looked_at[0]) - column - 0.5) < 4 and abs(float(looked_at[1]) - row - 0.5) < 4


def test_a_batch_keeps_the_readings_of_a_picture_together():
    first = picture("a", [[0.1, 0.2, 0.3]], [[0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    second = picture("b", [[0.5, 0.5, 0.1]])

    batch = batch_of([first, second], 3)

    assert batch.mask.tolist() == [
        [True, False, False],
        [True, True, False],
        [True, False, False],
        [False, False, False],
    ]
    np.testing.assert_allclose(batch.fixations[1, 1], [0.7, 0.8, 0.9], atol=1e-6)
    np.testing.assert_allclose(batch.pixels, 100 / 255, atol=1e-6)


# -- model ------------------------------------------------------------------------------------------------------------


def test_readings_scored_together_are_scored_as_if_alone():
    torch.manual_seed(0)
    model = PictureReader(TINY, 4).eval()
    generator = np.random.default_rng(1)
    pictures = [spot_picture(name, *generator.uniform(0.2, 0.8, 2), generator) for name in "ab"]
    for one in pictures:
        one.readings = [reading[:4] for reading in one.readings]
    batch = batch_of(pictures, 4)

    with torch.no_grad():
        together = model(batch.pixels, batch.fixations, batch.mask).log_likelihood
        patches = model.patches(batch.pixels).repeat_interleave(2, 0)
        alone = model.scanpath(patches, batch.fixations, batch.mask).log_likelihood

    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_model_learns_to_look_at_what_the_observers_look_at():
    generator = np.random.default_rng(0)
    places = generator.uniform(0.15, 0.85, (40, 2))
    pictures = [spot_picture(str(number), *place, generator, side=64) for number, place in enumerate(places)]
    splits = {"train": pictures[:32], "validation": pictures[32:36], "test": pictures[36:]}
    settings = Settings(
        epochs=15,
        side=64,
        pictures=4,
        learning_rate=3e-3,
        hidden_size=32,
        widths=(8, 16, 16),
        dropout=0.0,
        average=0.9,
    )

    model, history = train(splits, settings, seed=0)

    own = likelihoods(model, splits["test"], 4)
    other = likelihoods(model, splits["test"], 4, shown=[*splits["test"][1:], splits["test"][0]])
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert own["location"].sum() / own["fixations"].sum() > other["location"].sum() / other["fixations"].sum() + 0.3


def test_samples_of_the_model_are_scanpaths_of_the_picture():
    torch.manual_seed(0)
    model = PictureReader(TINY, 6).eval()
    one = picture("a", [[0.5, 0.5, 0.2]], [[0.1, 0.1, 0.2]], [[0.9, 0.1, 0.2]])

    drawn = sampled_scanpaths(model, [one], TINY, seed=0)
    decoded = sampled_scanpaths(model, [one], TINY, seed=0, do_sample=False)

    assert len(drawn) == 3 and len(decoded) == 1
    for scanpath in drawn:
        assert scanpath.image_id == "a" and 1 <= len(scanpath.fixations) <= 6
        assert (scanpath.fixations[:, :2] >= 0).all() and (scanpath.fixations[:, :2] <= 1).all()


# -- baselines --------------------------------------------------------------------------------------------------------


@pytest.fixture
def readings_by_split():
    generator = np.random.default_rng(3)
    return {
        name: [picture(f"{name}{k}", *(generator.uniform(0, 1, (4, 3)) for _ in range(3))) for k in range(3)]
        for name in ("train", "validation", "test")
    }


def test_other_picture_scanpaths_are_whole_readings_of_training_pictures(readings_by_split):
    made = baseline_scanpaths("other-picture", readings_by_split["train"], readings_by_split["test"], 2)

    known = {reading.astype(float).tobytes() for one in readings_by_split["train"] for reading in one.readings}
    assert len(made) == 6
    assert all(scanpath.fixations.tobytes() in known for scanpath in made)


def test_centre_bias_draws_single_fixations_of_training_pictures(readings_by_split):
    made = baseline_scanpaths("centre-bias", readings_by_split["train"], readings_by_split["test"], 0)

    known = {row.tobytes() for one in readings_by_split["train"] for r in one.readings for row in r.astype(float)}
    assert len(made) == 9  # as many as there are observers
    assert all(row.tobytes() in known for scanpath in made for row in scanpath.fixations)


def test_uniform_scanpaths_keep_the_durations_of_a_reading(readings_by_split):
    made = baseline_scanpaths("uniform", readings_by_split["train"], readings_by_split["test"], 1)

    known = {tuple(r[:, 2].astype(float)) for one in readings_by_split["train"] for r in one.readings}
    assert all(tuple(scanpath.fixations[:, 2]) in known for scanpath in made)


def test_the_centre_bias_is_a_density_of_the_training_pictures():
    corner = [[0.1, 0.1, 0.2]] * 5
    splits = {name: [picture(name, corner)] for name in ("train", "validation")}

    density, _ = centre_bias(splits)

    assert density.mean() == pytest.approx(1.0, abs=1e-6)  # integrates to one over the picture
    assert density[9, 9] > 20 * density[80, 80]


def test_a_map_of_the_other_observers_knows_nothing_of_the_one_it_is_asked_about():
    prior = np.ones((96, 96))
    agree = picture("a", [[0.2, 0.2, 0.2]], [[0.2, 0.2, 0.2]])
    differ = picture("b", [[0.2, 0.2, 0.2]], [[0.8, 0.8, 0.2]])

    ((agreed, differed),) = other_observers([agree, differ], prior, 0.05, [0.2])

    assert agreed > 0
    assert differed == pytest.approx(2 * math.log(0.2), abs=1e-3)  # the prior's share is all there is


def test_bits_per_fixation_by_hand():
    # Two pictures with 1 and 3 fixations, 2 ln 2 and 6 ln 2 above the baseline: 8 bits over 4 fixations.
    two = math.log(2)
    statistics = per_fixation([two, 4 * two], [-two, -2 * two], [1, 3], "bits")

    assert statistics.score() == pytest.approx(2.0)


# -- results ----------------------------------------------------------------------------------------------------------


def marks(model: float, low: float, gain_low: float = 0.1) -> dict:
    scores = {"centre-bias": 0.2, "uniform": 0.1, "other-picture": 0.15, "human": 0.4, "model": model}
    rows = {name: {"scanmatch": {"value": value}} for name, value in scores.items()}
    differences = {"model minus centre-bias": {"scanmatch": {"ci95": [low, 1.0]}}}
    return verdicts({"model": {"ci95": [gain_low, 1.0]}}, rows, differences)


def test_marks_are_met_only_when_the_intervals_say_so():
    met, missed = marks(0.35, 0.01), marks(0.21, -0.01, gain_low=-0.2)

    assert met["best_baseline_in_scanmatch"] == "centre-bias"
    assert met["scanmatch_above_best_baseline"] and met["information_gain_above_0"]
    assert met["scanmatch_share_of_the_way_to_the_observers"] == pytest.approx(0.75)
    assert not missed["scanmatch_above_best_baseline"] and not missed["information_gain_above_0"]


@pytest.fixture(scope="module")
def study(osie_folder, tmp_path_factory):
    """A whole study, as small as it can be."""
    out = tmp_path_factory.mktemp("study")
    arguments = ["--osie", str(osie_folder), "--out", str(out), "--seeds", "2", "--epochs", "1", "--side", "32"]
    arguments += ["--samples", "2", "--hidden-size", "16"]
    assert main(arguments) == 0
    return out, arguments


def test_a_study_measures_every_system_and_says_what_it_is(study):
    out, _ = study
    results = json.loads((out / "results.json").read_text())
    text = (out / "results.md").read_text()

    assert set(results["systems"]) == {"model", "deterministic", "centre-bias", "uniform", "other-picture", "human"}
    assert set(results["differences"]) == {f"model minus {name}" for name in set(results["systems"]) - {"model"}}
    for name in ("scanmatch", "scanmatch_duration", "multimatch_shape", "sed", "stde", "dtw", "nss"):
        assert len(results["systems"]["model"][name]["ci95"]) == 2
    assert results["systems"]["model"]["scanmatch"]["seeds"]["seeds"] == 2
    assert results["pictures"] == {"train": 4, "validation": 1, "test": 2}
    assert "Natural images, free viewing" in text and "no radiologists" in text
    assert "region_sequence" not in results["systems"]["model"]


def test_a_study_that_was_cut_off_trains_only_what_is_missing(study):
    out, arguments = study
    before = {name: (out / name).stat().st_mtime_ns for name in ("seed-0.safetensors", "references.json")}
    text = (out / "results.md").read_text()
    for name in ("seed-1.safetensors", "seed-1.json", "results.json", "results.md"):
        (out / name).unlink()

    assert main(arguments) == 0

    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    assert (out / "results.md").read_text() == text  # the same seed gives the same model


def test_results_of_other_settings_are_not_mixed_in(study, capsys):
    _, arguments = study

    status = main([*arguments, "--dropout", "0.5"])

    assert status == 2
    message = capsys.readouterr().err
    assert "seed-0-training.json" in message and "other settings" in message


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--side", "50", "multiple of 16"), ("--epochs", "0", "above 0"), ("--seeds", "0", "at least 1")],
)
def test_settings_that_no_run_can_use_are_refused(option, value, words, tmp_path, capsys):
    status = main(["--osie", str(tmp_path), "--out", str(tmp_path / "out"), option, value])

    assert status == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_the_data_is_an_error(tmp_path, capsys):
    assert main(["--osie", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "fixations.jsonl" in capsys.readouterr().err


@pytest.mark.shared
def test_pictures_of_osie_are_split_by_picture(shared_data):
    splits = read_pictures(shared_data / "osie", 32)

    names = {split: {one.name for one in pictures} for split, pictures in splits.items()}
    assert sum(map(len, names.values())) == 609
    assert not names["train"] & names["test"] and not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]
    assert {len(one.readings) for pictures in splits.values() for one in pictures} == {15}
    assert isinstance(batch_of(splits["test"][:2], 20), Batch)
