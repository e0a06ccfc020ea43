"""`gaze2report report` and `gaze2report scanpath`: files, gaze, failures and exit statuses."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling_gaze2report import cli, inference
from modeling_gaze2report.cli import main
from modeling_gaze2report.processing import evidence
from modeling_gaze2report.processing.errors import InputError, ModelError

from .tiny_export import export_tiny_model

SCHEMA = json.loads(Path(evidence.__file__).with_name("evidence.schema.json").read_text(encoding="utf-8"))
ENDINGS = (".evidence.json", ".overlay.png", ".txt")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(export_tiny_model(tmp_path_factory))


@pytest.fixture(scope="module")
def loaded(model):
    return inference.load_reader(model, device="cpu")


@pytest.fixture
def report(loaded, monkeypatch):
    """Runs `gaze2report report` on a model that is already in memory."""
    monkeypatch.setattr(inference, "load_reader", lambda *_: loaded)
    return lambda *arguments: main(["report", *map(str, arguments)])


@pytest.fixture
def scanpath(loaded, monkeypatch):
    """Runs `gaze2report scanpath` on a model that is already in memory."""
    monkeypatch.setattr(inference, "load_reader", lambda *_: loaded)
    return lambda *arguments: main(["scanpath", *map(str, arguments)])


def save_film(path, height=80, width=60, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def film(tmp_path):
    return save_film(tmp_path / "film.png")


@pytest.fixture
def films(tmp_path):
    return [save_film(tmp_path / f"film{number}.png", 60 + 8 * number, 80, number) for number in range(3)]


def evidence_of(out, name="film"):
    record = json.loads((out / f"{name}.evidence.json").read_text(encoding="utf-8"))
    jsonschema.validate(record, SCHEMA)
    return record


def names_in(folder):
    return sorted(os.listdir(folder))


# -- what is written --------------------------------------------------------------------------------------------------


def test_one_film_prints_its_report_alone(report, film, loaded, capsys):
    assert report(film) == 0

    output = capsys.readouterr()
    (record,) = inference.read_films(loaded, [cli_film(film)], num_drafts=8)
    assert output.out == record["report"] + "\n"
    assert output.err == ""


def cli_film(path):
    from modeling_gaze2report.processing.image_processing_gaze2report import load_film

    return load_film(path)


def test_several_films_are_printed_under_their_names(report, films, capsys):
    assert report(*films) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("== ")] == [f"== {path}" for path in films]


def test_without_a_film_the_bundled_one_is_read(report, film, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "bundled_film", lambda: film)

    assert report("--out", tmp_path / "out") == 0

    assert names_in(tmp_path / "out") == [f"film{ending}" for ending in ENDINGS]


def test_every_film_gets_three_files(report, films, tmp_path, capsys):
    out = tmp_path / "new" / "out"

    assert report(*films, "--out", out) == 0

    assert names_in(out) == sorted(path.stem + ending for path in films for ending in ENDINGS)
    for path in films:
        record = evidence_of(out, path.stem)
        assert (out / f"{path.stem}.txt").read_text(encoding="utf-8") == record["report"] + "\n"
        assert record["image"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(out / f"{path.stem}.overlay.png") as overlay:
            overlay.load()
            assert overlay.mode == "RGB" and max(overlay.size) >= 768
    assert "3 films done, 0 failed" in capsys.readouterr().err


def test_the_record_says_what_was_asked_of_which_model(report, film, tmp_path, loaded):
    report(film, "--out", tmp_path / "out")

    record = evidence_of(tmp_path / "out")
    assert (record["image"]["width"], record["image"]["height"]) == (60, 80)
    assert record["model"]["name_or_path"] == loaded.name
    assert record["prompt"] == "Write the report of this chest X-ray."
    assert (record["task"], record["strategy"], record["gaze"]["source"]) == ("report", "direct", "predicted")


def test_the_overlay_can_be_left_out(report, film, tmp_path):
    assert report(film, "--out", tmp_path / "out", "--no-overlay") == 0

    assert names_in(tmp_path / "out") == ["film.evidence.json", "film.txt"]


def test_films_of_one_name_do_not_overwrite_each_other(report, tmp_path):
    paths = [tmp_path / "a" / "film.png", tmp_path / "b" / "film.png", tmp_path / "b" / "FILM.jpg"]
    for seed, path in enumerate(paths):
        save_film(path, seed=seed)

    assert report(*paths, "--out", tmp_path / "out", "--no-overlay") == 0

    digests = {name: evidence_of(tmp_path / "out", name)["image"]["sha256"] for name in ("film", "film-2", "FILM-3")}
    assert digests == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(digests, paths, strict=True)
    }


def test_batches_of_any_size_give_the_same_reports(report, films, tmp_path):
    for size in (1, 2, 3):
        assert report(*films, "--out", tmp_path / str(size), "--batch-size", size, "--no-overlay") == 0

    for path in films:
        texts = {(tmp_path / size / f"{path.stem}.txt").read_text() for size in "123"}
        assert len(texts) == 1


def test_a_name_that_is_no_text_is_no_obstacle(report, tmp_path, capsys):
    path = os.fsencode(tmp_path) + b"/film\xff.png"
    shutil.copy(save_film(tmp_path / "film.png"), path)

    assert report(os.fsdecode(path), tmp_path / "film.png", "--out", tmp_path / "out") == 0
    assert report(os.fsdecode(path), tmp_path / "film.png") == 0

    record = json.loads((tmp_path / "out" / os.fsdecode(b"film\xff.evidence.json")).read_bytes())
    assert record["image"]["name"] == "film\udcff.png"
    assert "film\\udcff.png" in capsys.readouterr().out


# -- bad films --------------------------------------------------------------------------------------------------------


def dicom(path, num_frames=None, with_pixels=True):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME2"
    dataset.Rows = dataset.Columns = 32
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    if num_frames:
        dataset.NumberOfFrames = num_frames
    if with_pixels:
        pixels = np.arange(32 * 32 * (num_frames or 1), dtype=np.uint16) % 4096
        dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def bomb(path):
    Image.new("1", (20_000, 10_000)).save(path)  # 200 megapixels of one bit each


def truncated(path):
    save_film(path, 200, 200)
    path.write_bytes(path.read_bytes()[:-600])


BAD_FILMS = {
    "empty.png": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "cut.png": (truncated, "truncated or damaged"),
    "cut.jpg": (truncated, "truncated or damaged"),
    "text.png": (lambda path: path.write_text("Dear colleague,"), "is not a PNG, JPEG, TIFF, BMP, WebP or DICOM image"),
    "bomb.png": (bomb, "is larger than Pillow decodes"),
    "dot.png": (lambda path: save_film(path, 1, 1), "1 x 1 pixels; the shorter side of a film must have at least 16"),
    "constant.png": (lambda path: Image.new("L", (64, 64), 7).save(path), "is blank"),
    "frames.dcm": (lambda path: dicom(path, num_frames=3), "3 frames"),
    "pixels.dcm": (lambda path: dicom(path, with_pixels=False), "holds no pixel data"),
    "folder.png": (lambda path: path.mkdir(), "cannot be read"),
    "missing.png": (lambda path: None, "cannot be read"),
}


def test_bad_films_are_named_and_the_others_written(report, films, tmp_path, capsys):
    bad = []
    for name, (make, _) in BAD_FILMS.items():
        make(tmp_path / name)
        bad.append(tmp_path / name)
    out = tmp_path / "out"

    status = report(films[0], *bad[:6], films[1], *bad[6:], films[2], "--out", out, "--batch-size", 2)

    errors = capsys.readouterr().err
    assert status == 1
    assert names_in(out) == sorted(path.stem + ending for path in films for ending in ENDINGS)
    for path in bad:
        (line,) = [line for line in errors.splitlines() if line.startswith("failed: ") and str(path) in line]
        assert BAD_FILMS[path.name][1] in line
    assert "Traceback" not in errors
    assert f"3 films done, {len(bad)} failed" in errors


def test_a_good_dicom_file_is_read(report, tmp_path):
    dicom(tmp_path / "film.dcm")

    assert report(tmp_path / "film.dcm", "--out", tmp_path / "out") == 0

    assert evidence_of(tmp_path / "out")["image"]["name"] == "film.dcm"


def test_nothing_readable_is_status_two(report, tmp_path, capsys):
    assert report(tmp_path / "missing.png", "--out", tmp_path / "out") == 2

    assert names_in(tmp_path / "out") == []
    assert "missing.png cannot be read" in capsys.readouterr().err


def test_notes_about_a_film_are_said_and_recorded(report, tmp_path, capsys):
    colours = np.zeros((64, 64, 3), dtype=np.uint8)
    colours[:32, :, 0] = colours[32:, :, 2] = 255
    Image.fromarray(colours).save(tmp_path / "film.png")

    assert report(tmp_path / "film.png", "--out", tmp_path / "out") == 0

    note = "The picture is coloured; only its brightness is used. Is it a film?"
    assert note in evidence_of(tmp_path / "out")["warnings"]
    assert f"film.png: {note}" in capsys.readouterr().err


# -- gaze -------------------------------------------------------------------------------------------------------------

# On a film of 60 x 80 (width x height): the middle, then a quarter of the way across and down; 0.25 s and 0.4 s.
X, Y, T = [30.0, 15.0], [40.0, 20.0], [250.0, 400.0]
FIXATIONS = [(0.5, 0.5, 0.25), (0.25, 0.25, 0.4)]


def gaze_line(image_id="film.png", **values):
    line = {
        "image_id": image_id,
        "reader_id": "r",
        "width": 60,
        "height": 80,
        "X": X,
        "Y": Y,
        "T": T,
        "onset": [0, 300],
    }
    return json.dumps(line | values)


def recorded(out, name="film"):
    gaze = evidence_of(out, name)["gaze"]
    return gaze["source"], [(fix["x"], fix["y"], fix["duration_s"]) for fix in gaze["fixations"]]


@pytest.mark.parametrize("image_id", ["film.png", "film"])
def test_recorded_gaze_is_used_and_recorded(report, film, tmp_path, image_id):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line(image_id))

    assert report(film, "--gaze", gaze, "--out", tmp_path / "out") == 0

    assert recorded(tmp_path / "out") == ("recorded", FIXATIONS)


def test_gaze_of_a_csv_file_is_used(report, film, tmp_path):
    gaze = tmp_path / "gaze.csv"
    gaze.write_text("x,y,duration_ms,onset_ms\n30,40,250,0\n15,20,400,300\n")

    assert report(film, "--gaze", gaze, "--out", tmp_path / "out") == 0

    assert recorded(tmp_path / "out") == ("recorded", FIXATIONS)


def test_each_film_gets_its_own_recording(report, films, tmp_path):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line("film0.png", width=80, height=60) + "\n" + gaze_line("film2", width=80, height=76) + "\n")

    assert report(*films, "--gaze", gaze, "--out", tmp_path / "out", "--no-overlay") == 0

    sources = [recorded(tmp_path / "out", path.stem)[0] for path in films]
    assert sources == ["recorded", "predicted", "recorded"]
    assert recorded(tmp_path / "out", "film0")[1][0] == (0.375, 0.6667, 0.25)


def test_a_recording_that_names_no_image_is_not_spread_over_several_films(report, films, tmp_path):
    (tmp_path / "film1.csv").write_text("x,y,duration_ms,onset_ms\n30,40,250,0\n15,20,400,300\n")

    assert report(*films, "--gaze", tmp_path / "film1.csv", "--out", tmp_path / "out", "--no-overlay") == 0

    sources = [recorded(tmp_path / "out", path.stem)[0] for path in films]
    assert sources == ["predicted", "recorded", "predicted"]  # by the gaze file's own name


def test_gaze_of_another_image_is_not_used_in_silence(report, film, tmp_path, capsys):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line("other.png"))

    assert report(film, "--gaze", gaze, "--out", tmp_path / "out") == 0

    note = "holds no recording of film.png; it has other.png: recorded gaze was not used."
    assert recorded(tmp_path / "out")[0] == "predicted"
    assert any(note in warning for warning in evidence_of(tmp_path / "out")["warnings"])
    assert note in capsys.readouterr().err


def test_of_two_recordings_of_a_film_the_first_is_used_and_said(report, film, tmp_path):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line() + "\n" + gaze_line(reader_id="s", X=[1.0, 2.0]) + "\n")

    report(film, "--gaze", gaze, "--out", tmp_path / "out")

    assert recorded(tmp_path / "out") == ("recorded", FIXATIONS)
    assert any("2 recordings of film.png" in warning for warning in evidence_of(tmp_path / "out")["warnings"])


def test_fixations_off_the_film_are_left_out_and_counted(report, film, tmp_path):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line(X=[30.0, 65.0], Y=[40.0, 20.0]))

    assert report(film, "--gaze", gaze, "--out", tmp_path / "out") == 0

    assert recorded(tmp_path / "out") == ("recorded", FIXATIONS[:1])
    warnings = evidence_of(tmp_path / "out")["warnings"]
    assert "1 of 2 fixations lie off the image and are left out" in warnings


BAD_GAZE = {
    "wholly off the film": (gaze_line(X=[70.0, 70.0]), "lie off the image"),
    "NaN duration": (gaze_line(T=[250.0, None]), "'T' holds something that is no number"),
    "negative duration": (gaze_line(T=[250.0, -1.0]), "duration"),
    "wrong shape": (gaze_line(T=[250.0]), "must be lists of one length"),
    "no JSON": ('{"image_id": "film.png", "X": [', "no JSON"),
    "nothing": ("", "empty"),
}


@pytest.mark.parametrize("kind", BAD_GAZE)
def test_unusable_gaze_is_named(report, film, tmp_path, capsys, kind):
    text, message = BAD_GAZE[kind]
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(text)

    assert report(film, "--gaze", gaze, "--out", tmp_path / "out") == 2

    errors = capsys.readouterr().err
    assert "gaze.jsonl" in errors and message in errors
    assert names_in(tmp_path / "out") == []


def test_a_missing_gaze_file_is_said_once(report, films, tmp_path, capsys):
    assert report(*films, "--gaze", tmp_path / "nowhere.jsonl") == 2

    assert capsys.readouterr().err.count("nowhere.jsonl: there is no such file") == 1


def test_recorded_gaze_that_was_not_given_is_refused(report, film, capsys):
    assert report(film, "--gaze-source", "recorded") == 2

    assert "--gaze FILE" in capsys.readouterr().err


def test_recorded_gaze_that_a_film_lacks_fails_that_film(report, films, tmp_path, capsys):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line("film1", width=80, height=68))

    status = report(*films, "--gaze", gaze, "--gaze-source", "recorded", "--out", tmp_path / "out", "--no-overlay")

    assert status == 1
    assert names_in(tmp_path / "out") == ["film1.evidence.json", "film1.txt"]
    assert "no recording of film0.png" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["none", "predicted"])
def test_another_source_is_used_although_gaze_is_given(report, film, tmp_path, source):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line())

    assert report(film, "--gaze", gaze, "--gaze-source", source, "--out", tmp_path / "out") == 0

    found, fixations = recorded(tmp_path / "out")
    assert found == source
    assert (fixations == []) == (source == "none")
    assert fixations != FIXATIONS


# -- scanpath ---------------------------------------------------------------------------------------------------------


def test_a_predicted_scanpath_is_a_canonical_line(scanpath, film, capsys):
    assert scanpath(film) == 0

    (line,) = capsys.readouterr().out.splitlines()
    line = json.loads(line)
    assert (line["image_id"], line["width"], line["height"]) == ("film.png", 60, 80)
    assert len(line["X"]) == len(line["Y"]) == len(line["T"]) == len(line["onset"]) >= 3
    assert all(0 <= x <= 60 for x in line["X"]) and all(0 <= y <= 80 for y in line["Y"])
    np.testing.assert_allclose(line["onset"], np.cumsum([0, *line["T"][:-1]]), atol=0.5)  # rounding to 0.1 ms
    assert np.isfinite(line["log_probability"])


def test_a_predicted_scanpath_serves_as_recorded_gaze(scanpath, report, film, tmp_path):
    assert scanpath(film, "--out", tmp_path / "gaze.jsonl") == 0

    assert report(film, "--gaze", tmp_path / "gaze.jsonl", "--out", tmp_path / "recorded") == 0
    assert report(film, "--out", tmp_path / "predicted") == 0

    source, fixations = recorded(tmp_path / "recorded")
    assert source == "recorded"
    np.testing.assert_allclose(fixations, recorded(tmp_path / "predicted")[1], atol=5e-4)  # 0.01 pixels of 60


def test_samples_are_drawn_alike_by_seed(scanpath, film, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert scanpath(film, "--num-samples", 3, "--seed", seed, "--out", tmp_path / name) == 0

    first, again, other = ((tmp_path / name).read_text() for name in "abc")
    assert first == again != other
    readings = [json.loads(line) for line in first.splitlines()]
    assert [reading["reader_id"] for reading in readings] == ["predicted-0", "predicted-1", "predicted-2"]
    assert len({tuple(reading["X"]) for reading in readings}) == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.png"], "missing.png cannot be read"),
        (["FILM", "--temperature", "0"], "it must be above 0"),
        (["FILM", "--out", "FILM/scan.jsonl"], "cannot be written"),
    ],
)
def test_scanpath_refuses_what_it_cannot_do(scanpath, film, capsys, arguments, message):
    assert scanpath(*(argument.replace("FILM", str(film)) for argument in arguments)) == 2

    assert message in capsys.readouterr().err


# -- models -----------------------------------------------------------------------------------------------------------


def drop_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "fusion" not in name}, folder / "model.safetensors")


def add_weights(folder):
    weights = load_file(folder / "model.safetensors") | {"model.extra.weight": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors")


def reshape_weights(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("projector.linear_1.weight"))
    save_file(weights | {name: torch.zeros(3, 3)}, folder / "model.safetensors")


def foreign_configuration(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["Llava"]}))


def foreign_code(folder):
    config = {"model_type": "mystery", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('this must not run')")


BAD_MODELS = {
    "truncated weights": (lambda f: os.truncate(f / "model.safetensors", 1000), "cannot be loaded"),
    "weights that are text": (lambda f: (f / "model.safetensors").write_text("hello"), "cannot be loaded"),
    "empty weights": (lambda f: os.truncate(f / "model.safetensors", 0), "cannot be loaded"),
    "foreign weights": (
        lambda f: save_file({"bert.w": torch.zeros(2)}, f / "model.safetensors"),
        "weights are missing",
    ),
    "missing weights": (drop_weights, "weights are missing (model.fusion."),
    "unexpected weights": (add_weights, "1 weights belong to no part of the model (model.extra.weight)"),
    "weights of another shape": (reshape_weights, "projector.linear_1.weight"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "broken configuration": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "foreign configuration": (foreign_configuration, "is a model of type 'llava', not 'gaze2report'"),
    "foreign code": (foreign_code, "is a model of type 'mystery', not 'gaze2report'"),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "cannot be loaded"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("fault", BAD_MODELS)
def test_a_model_that_is_not_whole_is_refused(model, film, tmp_path, capsys, fault):
    damage, message = BAD_MODELS[fault]
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    damage(folder)

    status = main(["report", str(film), "--model", str(folder), "--out", str(tmp_path / "out"), "--offline"])

    errors = capsys.readouterr().err
    assert status == 2
    assert errors.startswith(f"error: {folder}") and message in errors
    assert errors.count("\n") == 1
    assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "nobody/nothing", "nothing"])
def test_a_model_that_is_not_there_is_refused(film, capsys, name):
    assert main(["report", str(film), "--model", name, "--offline"]) == 2

    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {name}") and errors.count("\n") == 1


def test_an_installation_without_the_checkpoint_says_so(film, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference, "embedded_folder", lambda: tmp_path)

    assert main(["report", str(film)]) == 2

    assert "comes without the embedded checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("device, message", [("cuda:99", "CUDA devices"), ("toaster", "use auto, cpu, cuda")])
def test_a_device_that_is_not_there_is_refused(model, film, capsys, device, message):
    assert main(["report", str(film), "--model", model, "--device", device]) == 2

    assert message in capsys.readouterr().err


def test_half_precision_reads_films(model, film, tmp_path):
    assert main(["report", str(film), "--model", model, "--dtype", "bfloat16", "--out", str(tmp_path / "out")]) == 0

    evidence_of(tmp_path / "out")


# -- other forms of the evidence --------------------------------------------------------------------------------------


def study_film(path):
    """A DICOM film that belongs to a study."""
    pydicom = pytest.importorskip("pydicom")
    dicom(path)
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    dataset.PatientID = "4711"
    dataset.save_as(path)
    return path


def test_pages_and_pictures_are_written_on_request(report, film, tmp_path):
    out = tmp_path / "out"

    assert report(film, "--html", "--svg", "--sentences", "--fhir", "--out", out) == 0

    record = evidence_of(out)
    sentences = [f".sentence-{number + 1}.png" for number in range(len(record["sentences"]))]
    assert names_in(out) == sorted("film" + ending for ending in (*ENDINGS, ".html", ".svg", ".fhir.json", *sentences))
    assert (out / "film.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "</svg>" in (out / "film.svg").read_text(encoding="utf-8")
    fhir = json.loads((out / "film.fhir.json").read_text(encoding="utf-8"))
    assert (fhir["resourceType"], fhir["status"]) == ("DiagnosticReport", "preliminary")
    assert fhir["contained"][1]["content"]["title"] == "film.png"


def test_a_structured_report_is_written_beside_a_dicom_film(report, tmp_path):
    pytest.importorskip("highdicom")
    import pydicom

    path = study_film(tmp_path / "film.dcm")

    assert report(path, "--dicom-sr", "--fhir", "--out", tmp_path / "out") == 0

    document = pydicom.dcmread(tmp_path / "out" / "film.sr.dcm")
    assert (document.StudyInstanceUID, document.PatientID, document.VerificationFlag) == (
        "1.2.3.1",
        "4711",
        "UNVERIFIED",
    )
    fhir = json.loads((tmp_path / "out" / "film.fhir.json").read_text(encoding="utf-8"))
    assert fhir["contained"][1]["identifier"][0]["value"] == "urn:oid:1.2.3.1"


def test_a_picture_gets_no_structured_report_and_others_do(report, film, tmp_path, capsys):
    pytest.importorskip("highdicom")
    path = study_film(tmp_path / "study.dcm")

    assert report(film, path, "--dicom-sr", "--out", tmp_path / "out") == 1

    assert "film.png is no DICOM file" in capsys.readouterr().err
    assert names_in(tmp_path / "out") == ["study.evidence.json", "study.overlay.png", "study.sr.dcm", "study.txt"]


@pytest.mark.parametrize("option", ["--html", "--svg", "--sentences", "--dicom-sr", "--fhir"])
def test_files_need_a_folder(report, film, capsys, option):
    assert report(film, option) == 2

    assert f"error: {option} writes files: give --out DIR." in capsys.readouterr().err


def test_drawn_scanpaths_say_how_many_agree(report, film, tmp_path):
    assert report(film, "--num-scanpaths", 2, "--out", tmp_path / "out") == 0

    record = evidence_of(tmp_path / "out")
    assert record["confidence_from"]["num_scanpaths"] == 2
    agreements = [finding["agreement"] for finding in record["findings"]]
    assert {value for one in agreements for value in one.values()} <= {0, 0.5, 1}


def test_the_number_of_drafts_is_asked_for_and_recorded(report, film, tmp_path):
    for number in (1, 3):
        assert report(film, "--num-drafts", number, "--out", tmp_path / f"{number}") == 0
        assert evidence_of(tmp_path / f"{number}")["num_drafts"] == number


def test_given_gaze_is_compared_with_predicted_gaze(report, film, tmp_path, capsys):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line())

    assert report(film, "--gaze", gaze, "--compare-gaze", "--out", tmp_path / "out") == 0

    assert evidence_of(tmp_path / "out")["gaze"]["source"] == "recorded"
    comparison = json.loads((tmp_path / "out" / "film.compare.json").read_text(encoding="utf-8"))
    assert comparison["sources"] == {"predicted": "predicted", "given": "recorded"}
    assert len(comparison["findings"]) == 14
    assert f"-- {film}: from predicted to given gaze" in capsys.readouterr().out


def test_a_film_without_gaze_cannot_be_compared(report, film, tmp_path, capsys):
    gaze = tmp_path / "gaze.jsonl"
    gaze.write_text(gaze_line("other.png"))

    assert report(film, "--gaze", gaze, "--compare-gaze") == 2
    assert "holds no recording of film.png" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--compare-gaze"], ["--compare-gaze", "--gaze-source", "predicted"]])
def test_a_comparison_needs_gaze(report, film, capsys, arguments):
    assert report(film, *arguments) == 2

    assert "--compare-gaze compares predicted gaze with a recording" in capsys.readouterr().err


# -- where it writes --------------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_made_is_refused(report, film, capsys):
    assert report(film, "--out", film / "out") == 2

    assert "cannot be written to: Not a directory" in capsys.readouterr().err


def test_a_read_only_output_folder_is_refused(report, film, capsys):
    assert report(film, "--out", "/proc/out") == 2

    assert "/proc/out: this folder cannot be written to" in capsys.readouterr().err


def test_on_a_full_disk_no_half_written_file_stands(report, films, tmp_path, capsys):
    films = [*films, save_film(tmp_path / "film3.png", seed=3)]
    report(films[0], "--out", tmp_path / "sample")
    needed = sum(path.stat().st_size for path in (tmp_path / "sample").iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * needed)}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        status = report(*films, "--out", disk)

        errors = capsys.readouterr().err
        written = names_in(disk)
        complete = {name.split(".")[0] for name in written}
        assert status == 1
        assert 1 <= len(complete) < len(films)
        assert written == sorted(name + ending for name in complete for ending in ENDINGS)
        for name in complete:
            assert (disk / f"{name}.txt").read_text() == evidence_of(disk, name)["report"] + "\n"
            with Image.open(disk / f"{name}.overlay.png") as overlay:
                overlay.load()
        failed = {path.stem for path in films} - complete
        assert errors.count("No space left on device") == len(failed)
        assert all(f"{name}: the report cannot be written" in errors for name in failed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_interruption_leaves_whole_files(report, films, tmp_path, capsys, monkeypatch):
    read_films, calls = inference.read_films, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read_films(*arguments, **options)

    monkeypatch.setattr(inference, "read_films", interrupted)

    assert report(*films, "--out", tmp_path / "out", "--batch-size", 1) == 2

    assert names_in(tmp_path / "out") == [f"film0{ending}" for ending in ENDINGS]
    assert capsys.readouterr().err.endswith("interrupted\n")


# -- errors and help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--debug", "report"], ["report", "--debug"]])
def test_debug_shows_where_an_error_came_from(film, arguments):
    with pytest.raises(ModelError):
        main([*arguments, str(film), "--model", "/nowhere/at/all"])


def test_an_unforeseen_error_is_one_line(report, film, capsys, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(inference, "read_films", fail)

    assert report(film) == 2

    assert capsys.readouterr().err == (
        "error: ZeroDivisionError: division by zero (run again with --debug for the traceback)\n"
    )


COMMANDS = sorted(cli.build_parser()._subparsers._group_actions[0].choices)


def test_the_commands_of_the_contract_are_there():
    assert set(COMMANDS) >= {
        *("report", "scanpath", "gaze", "prepare", "train", "evaluate", "score", "score-scanpaths", "label"),
    }


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*([command] if command else []), "--help"])

    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: gaze2report {command or ''}".strip())


@pytest.mark.parametrize(
    "arguments",
    [[], ["reprot"], ["report", "--batch-size", "0"], ["report", "--gaze-source", "imagined"], ["scanpath"]],
)
def test_wrong_usage_is_status_two(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)

    assert exit_.value.code == 2
    assert "usage: gaze2report" in capsys.readouterr().err


def test_a_gaze_file_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        cli.GazeFile(str(tmp_path / "nowhere"), "auto", True)


# -- as a program -----------------------------------------------------------------------------------------------------


def program(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "modeling_gaze2report.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_it_runs_beside_files_of_the_rooms_names(model, film, tmp_path):
    for name in ("processing", "hub_space", "evidence", "anatomy", "export"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file was imported')")
    (tmp_path / "empty.png").write_bytes(b"")

    done = program("report", "film.png", "empty.png", "--model", model, "--out", "out", cwd=tmp_path)

    assert done.returncode == 1, done.stderr
    assert names_in(tmp_path / "out") == [f"film{ending}" for ending in ENDINGS]
    assert done.stderr.startswith("failed: empty.png is empty (0 bytes).")
    assert "Traceback" not in done.stderr and "Loading weights" not in done.stderr


def test_an_error_of_the_program_is_one_line_and_status_two(tmp_path):
    done = program("report", "film.png", "--model", "./nowhere", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ./nowhere: no such folder") and done.stderr.count("\n") == 1


# -- real films -------------------------------------------------------------------------------------------------------

NO_FILMS = {"SC_rgb.dcm": "PhotometricInterpretation is RGB"}  # a secondary capture


@pytest.mark.timeout(3600 if os.environ.get("GAZE2REPORT_ALL_FILMS") else 600)
@pytest.mark.shared
def test_real_films_go_through(report, shared_data, tmp_path, capsys):
    # 40 of 1,766; all of them take minutes and are a command: GAZE2REPORT_ALL_FILMS=1 pytest -k real_films
    films = sorted((shared_data / "cxr" / "images").iterdir())
    films = films if os.environ.get("GAZE2REPORT_ALL_FILMS") else films[::45]
    files = sorted((shared_data / "cxr" / "dicom").iterdir())
    assert len(films) in (40, 1766) and len(files) == 5

    status = report(*films, *files, "--out", tmp_path / "out", "--batch-size", 16)

    errors = capsys.readouterr().err
    read = [path for path in (*films, *files) if path.name not in NO_FILMS]
    assert status == 1
    assert names_in(tmp_path / "out") == sorted(path.stem + ending for path in read for ending in ENDINGS)
    for path in read:
        assert evidence_of(tmp_path / "out", path.stem)["image"]["name"] == path.name
    for name, reason in NO_FILMS.items():
        assert any(name in line and reason in line for line in errors.splitlines() if line.startswith("failed: "))
    assert errors.count("failed: ") == len(NO_FILMS)
