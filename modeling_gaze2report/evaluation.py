"""`gaze2report evaluate`: this project's models as systems under the evaluation of `processing.metrics`."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import set_seed

from .inference import Reader, generate_reports, load_reader
from .processing.datasets.reading import load_split
from .processing.errors import DataError, InputError
from .processing.image_processing_gaze2report import load_film
from .processing.metrics.controls import GAZE_SOURCES
from .processing.metrics.evaluation import (
    Prediction,
    dataset_statistics,
    evaluate_dataset,
    sum_rows,
    write_evaluation,
)
from .processing.metrics.files import write_text
from .processing.metrics.findings import calibration_statistics
from .processing.metrics.reports import PROTOCOLS, label_statistics, label_table
from .processing.metrics.resampling import Bootstrap, compare_all, score_all
from .processing.metrics.results import Results
from .processing.report_labels import FINDINGS


@dataclass
class ModelPredictor:
    """A model as `processing.metrics.evaluation.Predictor`; it sees the image of a record and the gaze it is given.

    Attributes:
        reader: model and processor.
        num_drafts: most drafts of a report, as for `inference.read_films`.
    """

    reader: Reader
    num_drafts: int = 1

    def __call__(self, records: list[dict], gaze_source: str, gaze: Sequence[np.ndarray | None]) -> list[Prediction]:
        films = [load_film(record["image"], name=record["image_id"]) for record in records]
        sequences, features, _ = generate_reports(
            self.reader, films, gaze, gaze_source, num_drafts=self.num_drafts, name_findings=True
        )
        processor = self.reader.processor
        observations = processor.post_process_observation(features, [(film.height, film.width) for film in films])
        return [
            Prediction(
                report=report,
                fixations=observation.fixations,
                finding_probabilities=observation.finding_probabilities,
                finding_boxes={
                    name: [box.tolist()] for name, box in zip(FINDINGS[1:], observation.finding_boxes[1:], strict=True)
                },
            )
            for report, observation in zip(processor.batch_decode_report(sequences), observations, strict=True)
        ]


def against_chance(predictions: list[Prediction], records: list[dict], protocol: str) -> dict:
    """Paired comparison of predictions with what they would score on other films: half the data set further on.

    A system that says what is common, whatever the film shows, scores the same on both.
    """
    half = len(records) // 2
    # METEOR and CIDEr depend on the whole corpus of references or on Java; the other metrics tell enough here.
    own, other = (
        dataset_statistics(predictions, paired, PROTOCOLS[protocol], skip=("meteor", "cider"))[0]
        for paired in (records, records[half:] + records[:half])
    )
    return compare_all(own, other, Bootstrap(), [str(record["patient_id"]) for record in records])


def evaluate_model(args: Namespace) -> str:
    """Run `gaze2report evaluate` and return the table that it wrote.

    Raises:
        DataError: the data set cannot be read, or a control needs gaze that a record lacks.
        InputError: an unknown protocol.
    """
    if args.protocol not in PROTOCOLS:
        raise InputError(f"--protocol {args.protocol}: there are {', '.join(PROTOCOLS)}.")
    records = load_split(args.data, args.split, args.max_records)
    predictor = ModelPredictor(load_reader(args.model, args.device, args.dtype, args.offline), args.num_drafts)
    set_seed(args.seed)
    others = [source for source in GAZE_SOURCES if source != args.gaze_source] if args.controls else []
    sources = [args.gaze_source, *others]
    results, predictions = evaluate_dataset(
        predictor,
        records,
        gaze_sources=sources,
        protocol=PROTOCOLS[args.protocol],
        batch_size=args.batch_size,
        seed=args.seed,
        thresholds=predictor.reader.processor.thresholds,
        progress=lambda batches: tqdm(batches, disable=None, unit="batch"),
    )
    results.comparisons["the same predictions for other films (chance)"] = against_chance(
        predictions[args.gaze_source], list(records), results.protocol
    )
    results.settings |= {"data": data_name(args.data), "data_folder": Path(args.data).name, "split": args.split}
    results.settings["num_drafts"] = args.num_drafts
    if args.tasks:
        results.settings["num_answer_drafts"] = args.num_answer_drafts
        add_tasks(results, predictor.reader, list(records), predictions[args.gaze_source], args)
    title = f"{predictor.reader.name} on {Path(args.data).name}, {args.split}"
    write_evaluation(results, predictions[args.gaze_source], records, args.out, title)
    return (Path(args.out) / "metrics.md").read_text(encoding="utf-8")


def data_name(folder: str | Path) -> str:
    """What a prepared data set is called in results: its source, a generated one with what generated it; the folder's
    name where nothing tells the source.

    Raises:
        DataError: `dataset.json` cannot be read.
    """
    file = Path(folder) / "dataset.json"
    if not file.is_file():
        return Path(folder).name
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: it cannot be read as JSON: {error}") from error
    source = about.get("source") or Path(folder).name
    if source == "folder":
        return Path(folder).name
    if source != "phantom":
        return source
    return f"phantom ({', '.join(f'{name} {value}' for name, value in about.get('settings', {}).items())})"


def training_answers(folder: str | Path, split: str) -> list[tuple[str, str]]:
    """Questions and answers of the training split that belongs to an evaluated one; none where it is missing or is the
    evaluated one."""
    if split == "train":
        return []
    try:
        records = load_split(folder, "train").select_columns(["questions"])
    except DataError:
        return []
    return [(one["question"], one["answer"]) for row in records["questions"] for one in row or [] if one["answer"]]


def add_tasks(
    results: Results, reader: Reader, records: list[dict], predictions: list[Prediction], args: Namespace
) -> None:
    """Add the scores of every task, compare the strategies with the plain report, and write `tasks.jsonl`."""
    from .task_evaluation import NEEDS, TaskEvaluation, chance_levels

    tasks = TaskEvaluation(
        reader,
        records,
        "none" if args.gaze_source == "none" else "predicted",
        args.batch_size,
        args.seed,
        known_answers=training_answers(args.data, args.split),
        num_drafts=args.num_drafts,
        num_answer_drafts=args.num_answer_drafts,
        progress=lambda batches: tqdm(batches, disable=None, unit="batch"),
    ).run()
    results.unavailable |= {name: f"needs {what}" for name, what in NEEDS.items() if name not in tasks.metrics}
    patients = [str(record["patient_id"]) for record in records]
    labels = [[np.nan if one is None else one for one in record["labels"] or [None] * 14] for record in records]
    probabilities = [prediction.finding_probabilities for prediction in predictions]
    metrics = tasks.metrics | {"ece": calibration_statistics(probabilities, labels)}
    results.metrics |= score_all(metrics, Bootstrap(), patients)
    if levels := chance_levels(tasks.metrics):
        results.comparisons["chance, and answers without the film"] = compare_all(
            tasks.metrics, levels, Bootstrap(), patients
        )
    with_report = [index for index, record in enumerate(records) if (record.get("report") or "").strip()]
    if with_report:
        plain = label_statistics(
            "chexpert_rules",
            label_table(predictions[index].report for index in with_report),
            label_table(records[index]["report"] for index in with_report),
        )
        plain = sum_rows(plain, with_report, len(records))
        for task, statistics in tasks.reports.items():
            comparison = compare_all(statistics, plain, Bootstrap(), patients)
            results.comparisons[f"the direct reports: {task} ones minus them"] = comparison
    lines = [json.dumps(line, ensure_ascii=False) for line in tasks.lines]
    write_text(Path(args.out) / "tasks.jsonl", "".join(f"{line}\n" for line in lines))


__all__ = ["ModelPredictor", "evaluate_model"]
