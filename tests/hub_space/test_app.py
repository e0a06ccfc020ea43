"""The Space's interface for programs, end to end with `gradio_client`, and the parts behind it."""

import base64
import hashlib
import io
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_gaze2report import cli
from modeling_gaze2report.hub_space import reading, safety
from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.image_processing_gaze2report import Film

from .running_space import PHANTOM, running_demo

gradio_client = pytest.importorskip("gradio_client")
STRATEGIES = ("direct", "grounded", "structured")
GAZE = "0.2, 0.3, 0.5\n0.7 0.6 0.25\n0.4;0.8"
FIXATIONS = [(0.2, 0.3, 0.5), (0.7, 0.6, 0.25), (0.4, 0.8, 0.3)]


@pytest.fixture(scope="module")
def client(space):
    return gradio_client.Client(space.url, verbose=False)


@pytest.fixture(scope="module")
def ask(client):
    def call(name, film=PHANTOM, **arguments):
        return client.predict(film=gradio_client.handle_file(str(film)), api_name=name, **arguments)

    return call


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# -- endpoints --------------------------------------------------------------------------------------------------------


def test_the_documented_endpoints_are_the_ones_there_are(client):
    readme = (Path(safety.__file__).parent / "README.md").read_text()
    documented = set(re.findall(r"^\| `(/\w+)` \|", readme, re.MULTILINE))

    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == documented


def test_a_report_grows_sentence_by_sentence(client):
    job = client.submit(film=gradio_client.handle_file(str(PHANTOM)), api_name="/report")
    record = job.result()

    steps = [len(step["sentences"]) for step in job.outputs()]
    assert steps[0] == 0 and steps[-1] >= 2 and steps == sorted(steps) and len(set(steps)) >= 3
    assert record["schema"] == "gaze2report.evidence/1" and record["report"]
    assert record["image"] == {"name": "phantom.png", "width": 512, "height": 512, "sha256": sha256(PHANTOM)}
    assert all(0 < sentence["confidence"] <= 1 for sentence in record["sentences"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_writes_a_report(ask, strategy):
    record = ask("/report", strategy=strategy)

    assert record["strategy"] == strategy and record["report"]


def test_an_answer_is_a_record_of_the_question(ask):
    record = ask("/ask", question="Is there a pleural effusion?")

    assert record["task"] == "ask" and "Is there a pleural effusion?" in record["prompt"] and record["report"]


def test_a_phrase_is_placed_on_the_film(ask):
    found = ask("/ground", phrase="pleural effusion")

    assert found["phrase"] == "pleural effusion" and found["image"]["sha256"] == sha256(PHANTOM)
    assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in found["boxes"])


def test_drawn_readings_differ_and_come_likeliest_first(ask):
    drawn = ask("/scanpaths", num_samples=3, temperature=1.0)["readings"]

    chances = [one["log_probability"] for one in drawn]
    assert len(drawn) == 3 and chances == sorted(chances, reverse=True)
    assert drawn[0]["fixations"] != drawn[1]["fixations"]


def test_a_visitors_gaze_is_what_the_film_is_read_with(ask):
    result = ask("/compare", gaze=GAZE)

    gaze = result["recorded"]["gaze"]
    assert gaze["source"] == "recorded" and result["predicted"]["gaze"]["source"] == "predicted"
    seen = [(one["x"], one["y"], one["duration_s"]) for one in gaze["fixations"]]
    assert np.allclose(seen, FIXATIONS, atol=2e-3)
    assert result["changes"] == reading.changes(result["predicted"], result["recorded"])


def test_a_trackers_file_is_taken_as_gaze(ask, tmp_path):
    line = {"image_id": "phantom.png", "reader_id": "a", "width": 512, "height": 512}
    line |= {"X": [128.0, 256.0], "Y": [256.0, 384.0], "T": [200.0, 400.0], "onset": [0.0, 250.0]}
    (tmp_path / "gaze.jsonl").write_text(json.dumps(line) + "\n")

    result = ask("/compare", gaze_file=gradio_client.handle_file(str(tmp_path / "gaze.jsonl")))

    seen = [(one["x"], one["y"], one["duration_s"]) for one in result["recorded"]["gaze"]["fixations"]]
    assert np.allclose(seen, [(0.25, 0.5, 0.2), (0.5, 0.75, 0.4)], atol=2e-3)


def document(ask, kind, **arguments):
    answer = ask("/document", kind=kind, **arguments)
    return answer["name"], base64.b64decode(answer["data"])


def test_a_report_can_be_taken_away_as_text_json_picture_and_page(ask):
    report = ask("/report")["report"]

    assert document(ask, "report") == ("phantom.report.txt", (report + "\n").encode())
    assert json.loads(document(ask, "evidence")[1])["report"] == report
    assert Image.open(io.BytesIO(document(ask, "overlay")[1])).format == "PNG"
    name, page = document(ask, "page")
    assert name == "phantom.report.html" and page.lstrip()[:9].lower() == b"<!doctype"


@pytest.mark.shared
def test_a_dicom_film_is_read_and_nothing_of_its_header_comes_back(ask, shared_data):
    pydicom = pytest.importorskip("pydicom")
    film = shared_data / "cxr" / "dicom" / "siim_nih_pa_monochrome2_jpegbaseline.dcm"
    header = pydicom.dcmread(film, stop_before_pixels=True)

    record = ask("/report", film=film)
    name, data = document(ask, "dicom-sr", film=film)

    assert record["image"]["sha256"] == sha256(film) and record["report"]
    structured = pydicom.dcmread(io.BytesIO(data))
    assert name.endswith(".report.dcm") and structured.Modality == "SR" and not structured.PatientName
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        if value := str(header.get(keyword) or ""):
            assert value.encode() not in data and value not in json.dumps(record), keyword


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("/report", {"strategy": "best"}, "no such strategy; choose one of direct, grounded, structured"),
        ("/report", {"gaze": "0.1, 0.2\n0.3, 1.5"}, "Line 2 of your gaze: x and y lie between 0 and 1"),
        ("/ask", {"question": "  "}, "question is empty"),
        ("/ask", {"question": "why " * 1000}, "question has 3999 characters|question has 4000 characters"),
        ("/scanpaths", {"num_samples": 1000}, "number of readings must be a number from 1 to 8"),
        ("/compare", {}, "no gaze yet"),
        ("/document", {"kind": "../app.py"}, "no such kind"),
    ],
)
def test_what_cannot_be_done_is_said(ask, name, arguments, message):
    with pytest.raises(Exception, match=message):
        ask(name, **arguments)


def test_nothing_of_a_visit_stands_in_the_log(ask, space, tmp_path):
    film = tmp_path / "Jane_Doe_1970.png"
    film.write_bytes(PHANTOM.read_bytes())
    ask("/ask", film=film, question="Has Jane Doe an effusion?")
    (tmp_path / "Jane_Doe_broken.png").write_bytes(PHANTOM.read_bytes()[:1000])
    with pytest.raises(Exception, match="truncated"):
        ask("/report", film=tmp_path / "Jane_Doe_broken.png")

    log = space.log.read_text()
    assert "Jane" not in log and "Traceback" not in log, log[-2000:]


# -- limits and checks ------------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    folder = tmp_path / "uploads"
    (folder / "a").mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


def test_only_uploaded_files_are_opened(uploads, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (uploads / "a" / "film.png").write_bytes(b"x")
    (uploads / "a" / "link.png").symlink_to(tmp_path / "secret.png")

    assert safety.uploaded_file(str(uploads / "a" / "film.png")) == uploads / "a" / "film.png"
    assert safety.uploaded_file({"path": str(uploads / "a" / "film.png")}) == uploads / "a" / "film.png"
    for other in (
        "/etc/passwd",
        str(uploads / ".." / "secret.png"),
        str(uploads / "a" / "link.png"),
        "http://x/y",
        "a\0",
    ):
        with pytest.raises(safety.Refused):
            safety.uploaded_file(other)


def test_gaze_text_takes_commas_blanks_and_semicolons():
    assert np.allclose(safety.gaze_from_text(GAZE), FIXATIONS)
    assert safety.gaze_from_text(" \n") is None


@pytest.mark.parametrize("line", ["a, b", "0.5", "0.1 0.2 0.3 0.4", "nan 0.5", "0.5 inf", "0.5 0.5 0", "0.5 0.5 -1"])
def test_gaze_text_that_is_none_is_refused_by_its_line(line):
    with pytest.raises(safety.Refused, match="Line 2"):
        safety.gaze_from_text(f"0.5, 0.5, 0.3\n{line}")


def test_a_compressed_recording_is_not_unpacked(uploads):
    path = uploads / "a" / "gaze.csv"
    path.write_bytes(b"\x1f\x8b" + bytes(100))

    with pytest.raises(safety.Refused, match="compressed"):
        safety.gaze_from_file(path, Film(np.zeros((8, 8), np.uint8), "film"))


def test_errors_of_ours_are_shown_as_text_and_others_are_not_shown(uploads, capsys):
    def ours():
        raise InputError(f"{uploads}/a/<b>film</b>.png is no film")

    def other():
        raise KeyError("Jane Doe")

    with pytest.raises(RuntimeError) as shown:
        safety.for_visitors(ours, RuntimeError)()
    assert str(shown.value) == "a/&lt;b&gt;film&lt;/b&gt;.png is no film"
    with pytest.raises(RuntimeError) as shown:
        safety.for_visitors(other, RuntimeError)()
    assert str(shown.value) == safety.OUR_FAULT
    printed = capsys.readouterr().err
    assert "KeyError at test_app.py" in printed and "Jane" not in printed


def test_a_visits_files_go_with_it_and_others_stay(uploads):
    for name in ("a", "b", "c"):
        (uploads / name).mkdir(exist_ok=True)
        (uploads / name / "film.png").write_bytes(b"x")
    visits = safety.Visits()
    visits.note("first", str(uploads / "a" / "film.png"), str(uploads / "b" / "film.png"), None, "/etc/passwd")
    visits.note("second", str(uploads / "b" / "film.png"))

    visits.forget("first")

    assert [path.name for path in sorted(uploads.iterdir())] == ["b", "c"]


# -- what gaze changes ------------------------------------------------------------------------------------------------


def record_of(probabilities, sentences):
    return {
        "findings": [{"name": name, "probability": value} for name, value in probabilities.items()],
        "sentences": [{"text": text, "fixations": list(range(looked))} for text, looked in sentences.items()],
    }


def test_changes_name_findings_sentences_and_links():
    before = record_of({"Edema": 0.2, "Fracture": 0.5, "Pneumonia": 0.4}, {"Clear.": 1, "Large heart.": 2})
    after = record_of({"Edema": 0.9, "Fracture": 0.51, "Pneumonia": 0.3}, {"Large heart.": 5, "Edema.": 3})

    assert reading.changes(before, after) == {
        "findings": [
            {"name": "Edema", "before": 0.2, "after": 0.9},
            {"name": "Pneumonia", "before": 0.4, "after": 0.3},
        ],
        "only_before": ["Clear."],
        "only_after": ["Edema."],
        "links": [{"text": "Large heart.", "before": 2, "after": 5}],
    }


def test_a_report_that_nobody_waits_for_stops():
    stop = reading.StopWhen()
    ids = np.zeros((2, 3))
    torch = pytest.importorskip("torch")
    assert not stop(torch.tensor(ids), None).any()

    stop.event.set()

    assert stop(torch.tensor(ids), None).all()


def test_the_demo_runs_on_this_machine_and_leaves_no_upload_behind(tmp_path):
    with running_demo(tmp_path) as space:
        client = gradio_client.Client(space.url, verbose=False)
        client.predict(film=gradio_client.handle_file(str(PHANTOM)), num_samples=1, api_name="/scanpaths")
        assert list(space.uploads.rglob("phantom.png"))

    assert not space.uploads.exists()


@pytest.mark.parametrize(("port", "message"), [("70000", "from 0 to 65535"), ("taken", "cannot be used")])
def test_a_demo_without_a_port_says_so(port, message, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = str(other.getsockname()[1]) if port == "taken" else port

        status = cli.main(["demo", "--port", number])

    assert status == 2 and message in capsys.readouterr().err
