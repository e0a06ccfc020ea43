"""Evidence: what each sentence of a report rests on.

From the text of a report and what the model saw, one record (schema `gaze2report.evidence/1`): the reading in its
order, every sentence with the findings it speaks of, the boxes of those it asserts, the fixations that fell into them
and how sure the model was of its words; all findings with probabilities; the anatomical regions. A sentence is tied to
findings by the rule labeler, to boxes by the findings it asserts, and to fixations by their lying inside these boxes.
All coordinates are in [0, 1] of the original image.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .anatomy import REGION_NAMES
from .gaze_geometry import region_of_box, regions_of_points
from .report_labels import FINDINGS, label_sentence, split_sentences

EVIDENCE_SCHEMA = "gaze2report.evidence/1"
# A finding this probable is listed with its place; below, the place would suggest something that was not seen.
FINDING_THRESHOLD = 0.5
ASSERTED = ("positive", "uncertain")


@dataclass
class Observation:
    """What the model made of one film; coordinates in [0, 1] of the original image.

    Attributes:
        gaze_source: `"recorded"`, `"predicted"` or `"none"`.
        fixations: (N, 3) x, y, duration in seconds, in the order of reading.
        finding_probabilities: (14,), in the order of `FINDINGS`.
        finding_boxes: (14, 4) x0, y0, x1, y1.
        region_boxes: (17, 4), in the order of `REGION_NAMES`.
    """

    gaze_source: str
    fixations: np.ndarray
    finding_probabilities: np.ndarray
    finding_boxes: np.ndarray
    region_boxes: np.ndarray


@dataclass
class WrittenReport:
    """A report and, where it is known, how sure the model was of its words.

    Attributes:
        text: the report.
        token_texts: the pieces of text that the model wrote, in order; empty where unknown.
        token_log_probs: log probability of each piece.
    """

    text: str
    token_texts: Sequence[str] = ()
    token_log_probs: Sequence[float] = field(default_factory=tuple)

    def confidence(self, start: int, end: int) -> float | None:
        """Geometric mean of the probabilities of the pieces that overlap characters `start` to `end`."""
        written = "".join(self.token_texts)
        position = -(len(written) - len(written.lstrip()))  # the report is stripped of leading white space
        inside = []
        for piece, log_prob in zip(self.token_texts, self.token_log_probs, strict=True):
            if position < end and position + len(piece) > start and piece.strip():
                inside.append(float(log_prob))
            position += len(piece)
        return round(math.exp(sum(inside) / len(inside)), 4) if inside else None


def evidence_record(
    report: WrittenReport,
    observation: Observation,
    image: dict,
    model: dict,
    task: str,
    strategy: str,
    prompt: str,
    warnings: Sequence[str] = (),
    threshold: float = FINDING_THRESHOLD,
) -> dict:
    """The evidence record of one report.

    Args:
        report: the text and the certainty of its words.
        observation: what the model saw on the film.
        image: name, width, height in pixels and sha256 of the film.
        model: name_or_path, revision and package_version of the model.
        task, strategy, prompt: how the report was asked for.
        warnings: sentences for the reader of the record.
        threshold: probability from which a finding is listed with its place.
    """
    regions = dict(zip(REGION_NAMES, observation.region_boxes, strict=True))
    findings = [
        finding_record(name, probability, box, regions, threshold)
        for name, probability, box in zip(
            FINDINGS, observation.finding_probabilities, observation.finding_boxes, strict=True
        )
    ]
    boxes = dict(zip(FINDINGS, observation.finding_boxes, strict=True))
    sentences = sentence_records(report, boxes, observation.fixations)
    return {
        "schema": EVIDENCE_SCHEMA,
        "image": image,
        "model": model,
        "task": task,
        "strategy": strategy,
        "prompt": prompt,
        "gaze": {
            "source": observation.gaze_source,
            "fixations": [
                {
                    "order": order,
                    "x": rounded(x),
                    "y": rounded(y),
                    "duration_s": rounded(duration),
                    "region": region,
                }
                for order, ((x, y, duration), region) in enumerate(
                    zip(observation.fixations, regions_of_points(observation.fixations, regions), strict=True)
                )
            ],
        },
        "report": report.text,
        "sentences": sentences,
        "findings": sorted(findings, key=lambda finding: -finding["probability"]),
        "regions": {name: rounded_box(box) for name, box in regions.items()},
        "warnings": [*warnings, *disagreements(sentences, findings, threshold)],
    }


def finding_record(name: str, probability: float, box: np.ndarray, regions: dict, threshold: float) -> dict:
    """One finding; its place only where it is probable and on the film, and never for "No Finding"."""
    placed = probability >= threshold and name != FINDINGS[0] and has_area(box)
    return {
        "name": name,
        "probability": rounded(probability),
        "region": region_of_box(box, regions) if placed else None,
        "box": rounded_box(box) if placed else None,
    }


def sentence_records(report: WrittenReport, boxes: dict[str, np.ndarray], fixations: np.ndarray) -> list[dict]:
    """Every sentence with its findings, the boxes of those it asserts and the fixations inside these boxes."""
    records = []
    position = 0
    for text in split_sentences(report.text):
        start, position = find_sentence(report.text, text, position)
        findings = label_sentence(text)
        asserted = [boxes[finding["name"]] for finding in findings if finding["status"] in ASSERTED]
        asserted = [box for box in asserted if has_area(box)]
        records.append(
            {
                "text": text,
                "confidence": report.confidence(start, position),
                "findings": findings,
                "boxes": [rounded_box(box) for box in asserted],
                "fixations": fixations_inside(fixations, asserted),
            }
        )
    return records


def find_sentence(report: str, sentence: str, position: int) -> tuple[int, int]:
    """Where a sentence of `split_sentences` stands in the report, from `position` on: its first character and its end.

    White space may differ: line breaks inside a sentence were joined.
    """
    match = re.compile(r"\s*".join(map(re.escape, sentence.split()))).search(report, position)
    return match.span() if match else (position, min(position + len(sentence), len(report)))


def has_area(box: np.ndarray) -> bool:
    """Whether anything is left of a box after rounding; one that lay beside the film was clipped to its edge."""
    x0, y0, x1, y1 = rounded_box(box)
    return x0 < x1 and y0 < y1


def fixations_inside(fixations: np.ndarray, boxes: Sequence[np.ndarray]) -> list[int]:
    """Indices of the fixations that lie inside at least one of the boxes."""
    if not len(boxes) or not len(fixations):
        return []
    boxes = np.asarray(boxes)
    x, y = fixations[:, :1], fixations[:, 1:2]  # (N, 1)
    inside = (x >= boxes[:, 0]) & (x <= boxes[:, 2]) & (y >= boxes[:, 1]) & (y <= boxes[:, 3])
    return np.flatnonzero(inside.any(axis=1)).tolist()


def disagreements(sentences: list[dict], findings: list[dict], threshold: float) -> list[str]:
    """Where the text and the finding probabilities say different things: a human should look there first."""
    probability = {finding["name"]: finding["probability"] for finding in findings}
    status: dict[str, set[str]] = {}
    for sentence in sentences:
        for finding in sentence["findings"]:
            status.setdefault(finding["name"], set()).add(finding["status"])
    warnings = []
    for name in FINDINGS[1:]:
        said = status.get(name, set())
        if "positive" in said and probability[name] < threshold:
            warnings.append(f"The report asserts {name}, but its probability is only {probability[name]:.2f}.")
        elif not said & set(ASSERTED) and probability[name] >= threshold:
            warnings.append(f"The report does not assert {name}, but its probability is {probability[name]:.2f}.")
    return warnings


def rounded(value: float) -> float:
    """Four decimals: a tenth of a pixel of a film of 1,000."""
    return round(float(value), 4)


def rounded_box(box: Sequence[float]) -> list[float]:
    return [rounded(side) for side in box]


__all__ = ["EVIDENCE_SCHEMA", "FINDING_THRESHOLD", "Observation", "WrittenReport", "evidence_record"]
