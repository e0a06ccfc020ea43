"""Calibration of the findings on validation data: a temperature and a threshold for each of the 14.

The temperature divides the logit (Guo et al. 2017, arXiv 1706.04599) and is the one that makes the labels likeliest;
the threshold is the one of the highest expected F1. Both are stored with the processor, which
makes probabilities of logits for evidence and structured reports. `gaze2report train` fits them where it taught
findings; after anything else that changes them, such as another scanpath model, or for films of another hospital:

    python -m modeling_gaze2report.training.calibration --model MODEL --data DATA --out CALIBRATED
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..hub_space.export import check_target, export_model
from ..inference import load_reader
from ..processing.datasets.reading import load_split
from ..processing.errors import DataError
from ..processing.image_processing_gaze2report import load_film
from ..processing.metrics.findings import calibration_statistics
from ..processing.report_labels import FINDINGS

# A class with fewer films of either kind keeps temperature 1 and the common threshold: nothing could be fitted.
MIN_EXAMPLES = 8
# Temperatures are looked for between these: a few films that happen to be told apart without error would drive it to 0.
LOWEST, HIGHEST = 0.25, 5.0


@dataclass
class Calibration:
    """What was fitted, and what it changed on the data that it was fitted on.

    Attributes:
        temperatures, thresholds: 14 each, in the order of `FINDINGS`.
        ece_before, ece_after: expected calibration error over all films and findings with a certain label.
        fitted: names of the findings with enough examples.
        num_films: films of the data.
    """

    temperatures: list[float]
    thresholds: list[float]
    ece_before: float
    ece_after: float
    fitted: list[str]
    num_films: int

    def __str__(self) -> str:
        return (
            f"calibration on {self.num_films} films: expected calibration error {self.ece_before:.4f} before, "
            f"{self.ece_after:.4f} after; {len(self.fitted)} of {len(FINDINGS)} findings fitted"
        )


def calibrate(model, processor, validation, batch_size: int = 16) -> Calibration:
    """Fit temperatures and thresholds, and store them with the processor.

    Args:
        model: `Gaze2ReportForConditionalGeneration`; it reads with predicted gaze, as it will for its users.
        processor: its processor; `finding_temperatures` and `finding_thresholds` are set.
        validation: records with `image` and `labels`.
        batch_size: films at once.
    """
    logits, labels = finding_logits(model, processor, validation, batch_size)
    result = fit(logits, labels, processor.finding_threshold)
    processor.finding_temperatures, processor.finding_thresholds = result.temperatures, result.thresholds
    return result


@torch.inference_mode()
def finding_logits(model, processor, records, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the films that have labels, (n, 14) each; NaN where a label is not known."""
    was_training = model.training
    model.eval()
    logits, labels = [], []
    for start in tqdm(range(0, len(records), batch_size), disable=None, desc="calibration", unit="batch"):
        batch = [records[index] for index in range(start, min(start + batch_size, len(records)))]
        batch = [record for record in batch if any(label is not None for label in record["labels"] or [])]
        if not batch:
            continue
        films = [load_film(record["image"], name=record["image_id"]) for record in batch]
        inputs = processor(images=films, return_tensors="pt").to(model.device)
        findings = model.predict_findings(inputs["pixel_values"], film_boxes=inputs["film_boxes"])
        logits.append(findings.logits.float().cpu().numpy())
        labels += [[np.nan if one is None else float(one) for one in record["labels"]] for record in batch]
    model.train(was_training)
    empty = np.zeros((0, len(FINDINGS)))
    return np.concatenate(logits) if logits else empty, np.array(labels) if labels else empty


def fit(logits: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> Calibration:
    """Temperatures and thresholds from logits and labels; only labels of 0 and 1 count.

    Args:
        logits, labels: (n, 14).
        threshold: of classes with too few examples.
    """
    temperatures, thresholds, fitted = [1.0] * len(FINDINGS), [threshold] * len(FINDINGS), []
    for index, name in enumerate(FINDINGS):
        certain = np.isin(labels[:, index], (0, 1))
        own, is_present = logits[certain, index].astype(np.float64), labels[certain, index] == 1
        if min(is_present.sum(), (~is_present).sum()) < MIN_EXAMPLES:
            continue
        fitted.append(name)
        temperatures[index] = round(fit_temperature(own, is_present), 4)
        thresholds[index] = round(fit_threshold(sigmoid(own / temperatures[index]), is_present), 4)
    return Calibration(
        temperatures,
        thresholds,
        calibration_statistics(sigmoid(logits), labels).score(),
        calibration_statistics(sigmoid(logits / temperatures), labels).score(),
        fitted,
        len(logits),
    )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def fit_temperature(logits: np.ndarray, is_present: np.ndarray) -> float:
    """The temperature that makes the labels likeliest.

    The likelihood is concave in the inverse b of the temperature: its slope, sum_i (y_i - sigmoid(b z_i)) z_i, falls
    with b, and bisection finds where it crosses zero, or the end of the range.
    """
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(60):
        inverse = (low * high) ** 0.5
        if np.sum((is_present - sigmoid(inverse * logits)) * logits) > 0:
            low = inverse
        else:
            high = inverse
    return 1 / inverse


def fit_threshold(probabilities: np.ndarray, is_present: np.ndarray) -> float:
    """The threshold of the highest expected F1: halfway between the two neighbouring probabilities that it separates.

    Expected where each film has the finding with the probability that a logistic curve through the labels gives it
    (Platt 1999). The F1 counted on the films themselves has its peak where a few of them happen to lie.
    """
    order = np.argsort(-probabilities, kind="stable")
    expected = logistic_curve(probabilities, is_present)[order]
    scores = 2 * np.cumsum(expected) / (np.arange(1, len(expected) + 1) + expected.sum())
    ranked = np.append(probabilities[order], 0.0)
    scores[ranked[1:] == ranked[:-1]] = -1.0  # of equal probabilities all are called, or none
    last = int(scores.argmax())
    return float(np.clip((ranked[last] + ranked[last + 1]) / 2, 1e-4, 1 - 1e-4))


def logistic_curve(probabilities: np.ndarray, is_present: np.ndarray) -> np.ndarray:
    """What a logistic curve over the log-odds makes of the probabilities, by Newton's method.

    A weak pull towards what the probabilities say themselves keeps it finite where labels are told apart without error.
    """
    clipped = np.clip(probabilities, 1e-9, 1 - 1e-9)
    inputs = np.stack([np.log(clipped / (1 - clipped)), np.ones_like(clipped)])
    start, weights = np.array([1.0, 0.0]), np.array([1.0, 0.0])
    for _ in range(50):
        curve = sigmoid(weights @ inputs)
        slope = inputs @ (is_present - curve) - 0.1 * (weights - start)
        bend = (inputs * np.maximum(curve * (1 - curve), 1e-9)) @ inputs.T + 0.1 * np.eye(2)
        weights = weights + np.clip(np.linalg.solve(bend, slope), -1.0, 1.0)
    return sigmoid(weights @ inputs)


def run_calibration(args: argparse.Namespace) -> str:
    """Calibrate a checkpoint as a command, and write it with what was fitted.

    Raises:
        DataError: no films, or none with a label.
        InputError: the output folder cannot be written, or holds something else than a model.
        ModelError: no such model, or a damaged one.
    """
    check_target(args.out)
    records = load_split(args.data, args.split)
    if not any(label is not None for labels in records["labels"] for label in labels or []):
        raise DataError(f"{args.data}: no film of the split {args.split} has labels; there is nothing to calibrate on.")
    reader = load_reader(args.model, args.device)
    result = calibrate(reader.model, reader.processor, records, args.batch_size)
    export_model(reader.model, reader.processor, args.out)
    return str(result)


def main(arguments: Sequence[str] | None = None) -> int:
    from .ablation import at_least_one, status_of  # which trains, and imports this module

    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.calibration", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: the embedded one)")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `gaze2report prepare` wrote")
    parser.add_argument("--split", default="validation", help="of the data (default: validation)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the calibrated model; may be --model's")
    parser.add_argument("--batch-size", type=at_least_one, default=16, metavar="N", help="films at once (default: 16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    args = parser.parse_args(arguments)
    return status_of(lambda: run_calibration(args))


__all__ = ["Calibration", "calibrate", "fit", "fit_temperature", "fit_threshold"]

if __name__ == "__main__":
    sys.exit(main())
