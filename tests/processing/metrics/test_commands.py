"""The commands score, score-scanpaths and label, through their parsers."""

import argparse
import csv
import json

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import DataError, InputError
from modeling_gaze2report.processing.metrics import commands
from modeling_gaze2report.processing.report_labels import FINDINGS


def run(*arguments):
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


def write(path, records):
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture
def reports(tmp_path):
    texts = ["Heart size is normal. No effusion.", "Small left pleural effusion.", "Mild cardiomegaly. Clear lungs."]
    return write(
        tmp_path / "ours.jsonl",
        [{"id": f"r{i}", "prediction": text, "reference": text, "patient_id": f"p{i}"} for i, text in enumerate(texts)],
    )


def test_score_writes_the_promised_file(reports, tmp_path, capsys):
    out = tmp_path / "out" / "metrics.json"

    status = run("score", reports, "--out", out, "--skip", "meteor", "--resamples", 100)

    result = json.loads(out.read_text(encoding="utf-8"))
    assert status == 0
    assert (result["schema"], result["n"], result["protocol"]) == ("gaze2report.metrics/1", 3, "raw")
    assert result["metrics"]["bleu_4"]["value"] == pytest.approx(1)
    assert result["metrics"]["bleu_4"]["ci95"] == pytest.approx([1, 1])
    assert result["metrics"]["chexpert_rules_micro_f1_14"]["value"] == 1
    assert result["settings"]["clustered_by"] == "patient_id"
    assert {"radgraph_f1", "chexbert_micro_f1_14"} <= set(result["unavailable"])
    assert not set(result["metrics"]) & set(result["unavailable"])
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| BLEU-4 ↑ | 1.000 [1.000, 1.000] |" in page
    assert page.strip() == capsys.readouterr().out.strip()


def test_score_compares_two_systems(reports, tmp_path):
    other = write(tmp_path / "theirs.jsonl", [{"id": f"r{i}", "prediction": "Pneumothorax."} for i in (2, 0, 1)])
    out = tmp_path / "metrics.json"

    run("score", reports, "--out", out, "--compare", other, "--skip", "meteor", "clinical", "--resamples", 100)

    comparison = json.loads(out.read_text(encoding="utf-8"))["comparisons"]["theirs.jsonl"]
    assert comparison["rouge_l"]["difference"] == pytest.approx(1)
    assert set(comparison["rouge_l"]) == {"difference", "ci95", "p", "p_holm"}


def test_score_refuses_other_ids(reports, tmp_path):
    other = write(tmp_path / "theirs.jsonl", [{"id": "r0", "prediction": "x"}])

    with pytest.raises(DataError, match="2 ids missing and 0 unknown \\(lacks 'r1'\\)"):
        run("score", reports, "--out", tmp_path / "m.json", "--compare", other, "--skip", "meteor", "clinical")
    assert not (tmp_path / "m.json").exists()


def test_a_hundred_thousand_predictions_are_scored(tmp_path):
    path, out = tmp_path / "many.jsonl", tmp_path / "metrics.json"
    with path.open("w", encoding="utf-8") as file:
        for i in range(100_000):
            text = f"Heart size is normal. No pneumothorax. Nodule of {i % 97} mm."
            file.write(f'{{"id": "{i}", "prediction": "{text}", "reference": "{text}"}}\n')

    run("score", path, "--out", out, "--skip", "meteor", "clinical", "cider", "chexpert_rules", "--resamples", 20)

    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["n"] == 100_000
    assert result["metrics"]["bleu_4"]["value"] == pytest.approx(1)


def reading(generator, image, reader, n=8):
    return {
        "image_id": image,
        "reader_id": reader,
        "width": 400,
        "height": 300,
        "X": (400 * generator.random(n)).round(1).tolist(),
        "Y": (300 * generator.random(n)).round(1).tolist(),
        "T": generator.integers(100, 500, n).tolist(),
    }


@pytest.fixture
def readings(tmp_path):
    generator = np.random.default_rng(0)
    records = [reading(generator, f"i{i}", f"r{j}") for i in range(4) for j in range(2)]
    return write(tmp_path / "references.jsonl", records), records


def test_score_scanpaths_writes_the_promised_names_and_the_human_ceiling(readings, tmp_path):
    path, records = readings
    predictions = write(tmp_path / "predictions.jsonl", records[::2])
    out = tmp_path / "metrics.json"

    status = run("score-scanpaths", predictions, path, "--width", 400, "--height", 300, "--out", out, "--resamples", 50)

    result = json.loads(out.read_text(encoding="utf-8"))
    promised = {"scanmatch", "scanmatch_duration", "sed", "stde", "nss", "cc", "kld", "sim", "auc_judd", "ig_bits"}
    promised |= {f"multimatch_{name}" for name in ("shape", "direction", "length", "position", "duration")}
    assert status == 0
    assert promised <= set(result["metrics"])
    # The prediction is one of two readers: one pair is identical, the other is that of the ceiling.
    ceiling = result["human_ceiling"]["metrics"]["scanmatch"]["value"]
    assert result["metrics"]["scanmatch"]["value"] == pytest.approx((1 + ceiling) / 2)
    assert result["metrics"]["scanmatch_best"]["value"] == pytest.approx(1)
    assert result["settings"]["scanpath_metrics"]["scanmatch"]["bins"] == [16, 12]


def test_fewer_than_three_fixations_and_empty_predictions_are_counted(readings, tmp_path):
    path, _ = readings
    generator = np.random.default_rng(1)
    shorts = [reading(generator, f"i{i}", "model", n) for i, n in enumerate((0, 2, 5, 5))]
    out = tmp_path / "metrics.json"

    run("score-scanpaths", write(tmp_path / "p.jsonl", shorts), path, "--out", out, "--resamples", 50, "--no-ceiling")

    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["settings"]["excluded_pairs"]["multimatch_shape"] == 4
    assert result["metrics"]["multimatch_shape"]["n"] == 2
    assert result["metrics"]["scanmatch"]["n"] == 4  # an empty prediction scores 0


def test_without_durations_only_their_metrics_are_unavailable(readings, tmp_path):
    path, records = readings
    out = tmp_path / "metrics.json"
    bare = [{key: value for key, value in record.items() if key != "T"} for record in records[::2]]

    run("score-scanpaths", write(tmp_path / "p.jsonl", bare), path, "--out", out, "--resamples", 50, "--no-ceiling")

    result = json.loads(out.read_text(encoding="utf-8"))
    assert "scanmatch_duration" not in result["metrics"]
    assert "no durations" in result["unavailable"]["multimatch_duration"]
    assert "scanmatch" in result["metrics"]


def test_score_scanpaths_names_what_does_not_fit(readings, tmp_path):
    path, records = readings
    few = write(tmp_path / "few.jsonl", records[:2])
    twice = write(tmp_path / "twice.jsonl", [*records, records[0]])

    with pytest.raises(DataError, match="3 images without a prediction, first 'i1'"):
        run("score-scanpaths", few, path, "--out", tmp_path / "m.json")
    with pytest.raises(DataError, match="reader 'r0' appears twice"):
        run("score-scanpaths", path, twice, "--out", tmp_path / "m.json")
    with pytest.raises(InputError, match="--width and --height belong together"):
        run("score-scanpaths", path, path, "--width", 400, "--out", tmp_path / "m.json")


def test_label_writes_fourteen_columns(tmp_path):
    reports = write(
        tmp_path / "reports.jsonl",
        [{"id": "a", "report": "No effusion. Possible pneumonia."}, {"id": "b", "report": "Clear lungs."}],
    )
    out = tmp_path / "labels.csv"

    status = run("label", reports, "--out", out)

    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert status == 0
    assert list(rows[0]) == ["id", *FINDINGS]
    assert (rows[0]["Pleural Effusion"], rows[0]["Pneumonia"], rows[0]["Edema"]) == ("0", "-1", "")
    assert rows[1]["No Finding"] == "1"


def test_label_names_bad_lines_and_labels_the_others(tmp_path, capsys):
    path = tmp_path / "reports.jsonl"
    path.write_text(
        '{"id": "a", "report": "Edema."}\nnonsense\n{"id": "a", "report": ""}\n{"id": "c"}\n', encoding="utf-8"
    )
    out = tmp_path / "labels.csv"

    status = run("label", path, "--out", out)

    errors = capsys.readouterr().err
    assert status == 1
    assert all(f"line {number}" in errors for number in (2, 3, 4))
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_label_leaves_no_file_when_nothing_can_be_labelled(tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text("nonsense\n", encoding="utf-8")

    with pytest.raises(DataError, match="no report to label"):
        run("label", path, "--out", tmp_path / "labels.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["reports.jsonl"]
