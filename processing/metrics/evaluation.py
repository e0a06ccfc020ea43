"""Running a system over a prepared data set and scoring what it says.

The system is one function, a `Predictor`: it gets a few records and the gaze to use, and returns what it predicts for
each. So the same code evaluates this project's model, a baseline, or a deliberately broken model in a test.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol as TypingProtocol

import numpy as np

from ..errors import DataError
from .boxes import grounding_statistics
from .clinical import ClinicalBackend, clinical_statistics
from .controls import GAZE_SOURCES, compare_sources, control_gaze
from .files import Scanpath, plain, write_json, write_text
from .findings import answer_statistics, finding_statistics, finding_table
from .reports import PROTOCOLS, Protocol, library_versions, report_statistics
from .resampling import Bootstrap, Metric, score_all
from .results import Results
from .scanpath_scoring import ScanpathScoring, ceiling_section, centroid_statistics, human_ceiling, score_scanpaths


@dataclass
class Prediction:
    """What a system says about one film; what it does not give stays None.

    Attributes:
        report: the report.
        fixations: (N, 3) predicted reading, x, y in [0, 1] of the image, duration in seconds.
        finding_probabilities: (14,), in the order of `FINDINGS`.
        finding_boxes: boxes in [0, 1] by the label of the record's reference boxes.
        answers: one for each question of the record.
    """

    report: str
    fixations: np.ndarray | None = None
    finding_probabilities: np.ndarray | None = None
    finding_boxes: dict[str, list] = field(default_factory=dict)
    answers: list[str] | None = None


class Predictor(TypingProtocol):
    """A system under evaluation."""

    def __call__(self, records: list[dict], gaze_source: str, gaze: list[np.ndarray | None]) -> list[Prediction]:
        """Predicts for a batch.

        Args:
            records: rows of a prepared data set, as they stand there. A fair system looks at the image and the
                indication (and prior image) only.
            gaze_source: "predicted" (the system predicts gaze itself), "none" (it uses none), "recorded" (it uses
            `gaze`).
            gaze: for each record (N, 3) fixations to use, or None when `gaze_source` is not "recorded".
        """


def record_fixations(record: dict) -> np.ndarray:
    """Recorded fixations of a data set record as (N, 3) x, y, duration in seconds; N is 0 without gaze."""
    fixations = record.get("fixations") or []
    rows = [(f["x"], f["y"], f["duration_s"]) for f in fixations]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def evaluate_dataset(
    predict: Predictor,
    records: Sequence[dict],
    gaze_sources: Sequence[str] = ("predicted",),
    protocol: Protocol = PROTOCOLS["raw"],
    bootstrap: Bootstrap | None = None,
    backends: Sequence[ClinicalBackend] = (),
    scoring: ScanpathScoring | None = None,
    skip: Sequence[str] = (),
    thresholds=0.5,
    batch_size: int = 8,
    seed: int = 0,
    local_files_only: bool = True,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> tuple[Results, dict[str, list[Prediction]]]:
    """Runs a system with each gaze source and scores it.

    Args:
        predict: the system.
        records: rows of a prepared data set. Several readings of one image are several rows, and the readers of an
            image are then compared with each other as well, next to predicted gaze.
        gaze_sources: any of `GAZE_SOURCES`; the first is the system's result, the others are its controls.
        protocol: how reports are scored.
        bootstrap: draws; patients are drawn whole.
        backends: clinical metrics that need model weights.
        scoring: parameters of the scanpath metrics.
        skip: text metrics to leave out, see `report_statistics`.
        thresholds: of the findings' probabilities, chosen on validation data.
        batch_size: records a call of `predict`.
        seed: seed of the control gaze.
        local_files_only: whether backends must not ask the Hub.
        progress: wraps the batches, for a progress bar.

    Returns:
        results (with the section `controls` when there are several sources) and the predictions by source.

    Raises:
        DataError: there is no record; a control needs recorded gaze that a record lacks; the system's answer has the
            wrong length.
    """
    records = list(records)
    if not records:
        raise DataError("the data set has no record to evaluate; is the split right?")
    unknown = [source for source in gaze_sources if source not in GAZE_SOURCES]
    if unknown or not gaze_sources:
        raise DataError(f"unknown gaze source {unknown[0] if unknown else None!r}; expected {', '.join(GAZE_SOURCES)}")
    bootstrap, scoring = bootstrap or Bootstrap(), scoring or ScanpathScoring()
    patients = [str(record["patient_id"]) for record in records]
    predictions, rows, unavailable = {}, {}, {}
    for source in gaze_sources:
        predictions[source] = predict_all(predict, records, source, seed, batch_size, progress)
        # Only gaze that the system predicts itself says anything about its scanpaths.
        scanpaths = scoring if source == "predicted" else None
        metrics, missing = dataset_statistics(
            predictions[source], records, protocol, backends, scanpaths, skip, thresholds, local_files_only
        )
        rows[source] = metrics
        unavailable.update({name: reason for name, reason in missing.items() if source == gaze_sources[0]})
    main = gaze_sources[0]
    extra = {}
    if len(gaze_sources) > 1:
        extra["controls"] = compare_sources(rows, main, bootstrap, patients)
    if "scanmatch" in rows[main]:
        readings = [_reading(record, str(record["image_id"])) for record in records if record.get("fixations")]
        extra |= ceiling_section(human_ceiling(readings, scoring), bootstrap)
    if "auroc_macro" in rows[main]:
        probabilities, labels = finding_arrays(predictions[main], records)
        extra["findings"] = finding_table(probabilities, labels, thresholds, bootstrap, patients)
    results = Results(
        n=len(records),
        protocol=protocol.name,
        settings={
            **protocol.settings(),
            "labels": "uncertain = negative, not mentioned = negative; *_uncertain_positive: uncertain = positive",
            "gaze_source": main,
            "gaze_sources": list(gaze_sources),
            "control_seed": seed,
            "finding_thresholds": plain(thresholds),
            **scoring.settings(),
            "bootstrap": bootstrap.settings(),
            "clustered_by": "patient_id",
            "clusters": len(set(patients)),
            "libraries": library_versions(),
        },
        metrics=score_all(rows[main], bootstrap, patients),
        unavailable=unavailable,
        extra=extra,
    )
    return results, predictions


def predict_all(
    predict: Predictor,
    records: Sequence[dict],
    source: str,
    seed: int = 0,
    batch_size: int = 8,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> list[Prediction]:
    """What a system says about each record with the gaze of one of `GAZE_SOURCES`; arguments as in `evaluate_dataset`.

    Raises:
        DataError: the source needs recorded gaze that a record lacks; the system's answer has the wrong length.
    """
    gaze = _gaze_for(source, records, seed)
    mode = source if source in ("predicted", "none") else "recorded"
    predictions = []
    for start in progress(range(0, len(records), batch_size)):
        batch = list(records[start : start + batch_size])
        answered = predict(batch, mode, gaze[start : start + batch_size])
        if len(answered) != len(batch):
            raise DataError(f"the system gave {len(answered)} predictions for {len(batch)} records")
        predictions += answered
    return predictions


def _gaze_for(source: str, records: Sequence[dict], seed: int) -> list[np.ndarray | None]:
    if source in ("predicted", "none"):
        return [None] * len(records)
    keys = [f"{record['image_id']}\t{record.get('reader_id') or ''}\t{i}" for i, record in enumerate(records)]
    recorded = dict(zip(keys, map(record_fixations, records), strict=True))
    for record, fixations in zip(records, recorded.values(), strict=True):
        if len(fixations) == 0:
            raise DataError(
                f"image {record['image_id']!r} has no recorded gaze, which gaze source {source!r} needs; use a data "
                "set with gaze, or the sources predicted and none"
            )
    patients = dict(zip(keys, (str(record["patient_id"]) for record in records), strict=True))
    made = control_gaze(source, recorded, patients, seed)
    return [made[key] for key in keys]


def dataset_statistics(
    predictions: Sequence[Prediction],
    records: Sequence[dict],
    protocol: Protocol,
    backends: Sequence[ClinicalBackend] = (),
    scoring: ScanpathScoring | None = None,
    skip: Sequence[str] = (),
    thresholds=0.5,
    local_files_only: bool = True,
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Every metric that the records and the predictions allow, one row of statistics a record.

    Scanpaths are scored with `scoring`, or not at all when it is None. A record without a reference (no report, no
    gaze, no labels, ...) does not count for the metrics that need it.

    Returns:
        metrics by name, and the reason for each metric that has no value.
    """
    count = len(records)
    metrics: dict[str, Metric] = {}
    unavailable: dict[str, str] = {}
    with_report = [i for i, record in enumerate(records) if (record.get("report") or "").strip()]
    if with_report:
        texts = [predictions[i].report for i in with_report]
        references = [[records[i]["report"]] for i in with_report]
        text, missing = report_statistics(texts, references, protocol, skip)
        unavailable |= missing
        if backends:
            more, missing = clinical_statistics(
                backends, texts, [group[0] for group in references], local_files_only=local_files_only
            )
            text |= more
            unavailable |= missing
        metrics |= {name: _spread(statistics, with_report, count) for name, statistics in text.items()}
    else:
        unavailable |= dict.fromkeys(("bleu_4", "rouge_l", "cider"), "no record has a reference report")
    if scoring is not None:
        metrics |= _scanpath_rows(predictions, records, scoring, unavailable)
    probabilities, labels = finding_arrays(predictions, records)
    if probabilities is not None and np.isin(labels, (0, 1)).any():
        metrics |= finding_statistics(probabilities, labels, thresholds)
    metrics |= _grounding_rows(predictions, records)
    metrics |= _answer_rows(predictions, records)
    return metrics, unavailable


def finding_arrays(predictions: Sequence[Prediction], records: Sequence[dict]) -> tuple[np.ndarray | None, np.ndarray]:
    """Probabilities, (n, 14) or None where a film has none, and labels, (n, 14) with NaN for what is not known."""
    labels = np.array(
        [[np.nan if label is None else label for label in (record.get("labels") or [None] * 14)] for record in records],
        dtype=np.float64,
    )
    if any(p.finding_probabilities is None for p in predictions):
        return None, labels
    return np.array([p.finding_probabilities for p in predictions], dtype=np.float64), labels


def _spread(statistics, places: Sequence[int], count: int):
    """Statistics of some records as statistics of all, zero where there is none."""
    values = np.zeros((count, statistics.values.shape[1]))
    values[places] = statistics.values
    return type(statistics)(statistics.name, values, statistics.finish, statistics.higher_is_better)


def _scanpath_rows(predictions, records, scoring, unavailable) -> dict[str, Metric]:
    read = [i for i, record in enumerate(records) if len(record_fixations(record))]
    if not read or any(predictions[i].fixations is None for i in read):
        return {}
    reference = [_reading(records[i], str(i)) for i in read]
    predicted = [
        replace(reading, fixations=np.asarray(predictions[i].fixations, dtype=np.float64).reshape(-1, 3))
        for reading, i in zip(reference, read, strict=True)
    ]
    scores = score_scanpaths(predicted, reference, scoring)
    unavailable |= scores.unavailable
    statistics = scores.statistics() | centroid_statistics(predicted, reference)
    return {name: _spread(values, read, len(records)) for name, values in statistics.items()}


def _reading(record: dict, image: str) -> Scanpath:
    size, patient = _image_size(record), str(record["patient_id"])
    return Scanpath(image, record.get("reader_id"), patient, size, record_fixations(record), True, 0)


def _image_size(record: dict) -> tuple[float, float]:
    """Width and height in pixels; a square of 1000 pixels when the record's image cannot tell."""
    image = record.get("image")
    if isinstance(image, np.ndarray):
        return float(image.shape[1]), float(image.shape[0])
    size = getattr(image, "size", None)
    return (float(size[0]), float(size[1])) if isinstance(size, tuple) and len(size) == 2 else (1000.0, 1000.0)


def _grounding_rows(predictions, records) -> dict[str, Metric]:
    owner, predicted, reference = [], [], []
    for i, record in enumerate(records):
        labels = sorted({box["label"] for box in record.get("boxes") or []})
        for label in labels:
            owner.append(i)
            predicted.append(predictions[i].finding_boxes.get(label, []))
            reference.append(
                [[box[k] for k in ("x0", "y0", "x1", "y1")] for box in record["boxes"] if box["label"] == label]
            )
    if not owner or not any(p.finding_boxes for p in predictions):
        return {}
    return sum_rows(grounding_statistics(predicted, reference), owner, len(records))


def _answer_rows(predictions, records) -> dict[str, Metric]:
    owner, answers, references = [], [], []
    for i, record in enumerate(records):
        questions = record.get("questions") or []
        if predictions[i].answers is None:
            continue
        if len(predictions[i].answers) != len(questions):
            raise DataError(
                f"image {record['image_id']!r}: {len(predictions[i].answers)} answers to {len(questions)} questions"
            )
        owner += [i] * len(questions)
        answers += predictions[i].answers
        references += [[question["answer"]] for question in questions]
    return sum_rows(answer_statistics(answers, references), owner, len(records)) if owner else {}


def sum_rows(statistics: dict, owner: Sequence[int], count: int) -> dict[str, Metric]:
    """Statistics of phrases, boxes or questions summed to the records that own them."""
    result = {}
    for name, metric in statistics.items():
        values = np.zeros((count, metric.values.shape[1]))
        np.add.at(values, np.asarray(owner), metric.values)
        result[name] = type(metric)(metric.name, values, metric.finish, metric.higher_is_better)
    return result


def write_evaluation(
    results: Results,
    predictions: Sequence[Prediction],
    records: Sequence[dict],
    out: str | Path,
    title: str = "Evaluation",
) -> None:
    """Writes `predictions.jsonl`, `metrics.json` and `metrics.md` into a folder."""
    out = Path(out)
    lines = []
    for index, (prediction, record) in enumerate(zip(predictions, records, strict=True)):
        reader = record.get("reader_id")
        line = {
            "id": record["image_id"] if reader is None else f"{record['image_id']}/{reader}",
            "prediction": prediction.report,
            "reference": record.get("report") or "",
            "patient_id": record["patient_id"],
        }
        if prediction.fixations is not None:
            line["fixations"] = np.round(np.asarray(prediction.fixations, dtype=np.float64), 4)
        lines.append((index, line))
    repeated = {name for name, times in Counter(line["id"] for _, line in lines).items() if times > 1}
    for index, line in lines:
        if line["id"] in repeated:
            line["id"] = f"{line['id']}#{index}"
    write_text(
        out / "predictions.jsonl", "".join(json.dumps(plain(line), ensure_ascii=False) + "\n" for _, line in lines)
    )
    write_json(out / "metrics.json", results.to_json())
    write_text(out / "metrics.md", results.to_markdown(title))
