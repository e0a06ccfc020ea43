import argparse
import json

import pytest
from PIL import Image

from modeling_gaze2report.processing.datasets.commands import register
from modeling_gaze2report.processing.errors import DataError


@pytest.fixture
def command():
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())

    def run(*words):
        args = parser.parse_args([str(word) for word in words])
        return args.run(args)

    return run


def test_gaze_writes_canonical_lines(command, tmp_path, capsys):
    (tmp_path / "film.csv").write_text("x,y,duration_s,onset_s\n10,20,0.25,0\n30,40,0.5,0.3\n")

    status = command("gaze", tmp_path / "film.csv", "--width", 100, "--height", 50, "--out", tmp_path / "out.jsonl")

    assert status == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "image_id": "film",
        "reader_id": None,
        "width": 100,
        "height": 50,
        "X": [10, 30],
        "Y": [20, 40],
        "T": [250, 500],
        "onset": [0, 300],
    }
    assert "csv, 1 scanpaths, 2 fixations" in capsys.readouterr().err


def test_gaze_goes_on_after_a_bad_file(command, tmp_path, capsys):
    (tmp_path / "good.csv").write_text("x,y,duration\n10,20,0.25\n")
    (tmp_path / "bad.csv").write_text("x,y,duration\n10,oops,0.25\n")

    status = command("gaze", tmp_path / "bad.csv", tmp_path / "good.csv", "--width", 100, "--height", 50)

    captured = capsys.readouterr()
    assert status == 1
    assert json.loads(captured.out)["image_id"] == "good"
    assert "bad.csv: row 2, column y: 'oops'" in captured.err


def test_gaze_with_nothing_readable_is_2_and_writes_nothing(command, tmp_path):
    assert command("gaze", tmp_path / "missing.csv", "--out", tmp_path / "out.jsonl") == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_prepare_phantom(command, tmp_path, capsys):
    status = command(
        "prepare", "phantom", "--num-films", 6, "--image-size", 48, "--seed", 3, "--out", tmp_path / "phantom"
    )

    summary = json.loads((tmp_path / "phantom/dataset.json").read_text())
    assert status == 0
    assert summary["num_records"] == 6
    assert summary["settings"]["seed"] == 3
    assert summary["audit"]["passed"]
    assert "train:" in capsys.readouterr().out


def test_prepare_with_losses_is_1_and_says_them(command, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("L", (40, 40), 128).save(tmp_path / "in/a.png")
    pixels = Image.linear_gradient("L").resize((40, 40))
    pixels.save(tmp_path / "in/a.png")
    (tmp_path / "in/metadata.csv").write_text("image\na.png\nmissing.png\n")

    status = command("prepare", "folder", "--root", tmp_path / "in", "--out", tmp_path / "out")

    assert status == 1
    assert "dropped (record): the film is missing or broken: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "phantom"], "give --out"),
        (["prepare", "openi", "--out", "x"], "give --root"),
        (["prepare", "openi", "--root", "nowhere", "--out", "x"], "no such file or folder"),
        (["prepare", "phantom", "--out", "x", "--num-proc", "0"], "at least 1"),
        (["prepare", "phantom", "--out", "x", "--num-films", "-3"], "--num-films must be"),
    ],
)
def test_bad_usage_is_said(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        command(*words)
    assert list(tmp_path.iterdir()) == []
