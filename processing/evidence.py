"""Evidence: what each sentence of a report rests on.

From the text of a report and what the model saw, one record (schema `gaze2report.evidence/1`): the reading in its
order and the steps of a systematic sweep that it left out; every sentence with the findings it speaks of, the boxes of
those it asserts, the fixations tied to it and how sure the model was of its words; all findings with probabilities; the
anatomical regions. All coordinates are in [0, 1] of the original image.

A sentence is tied to findings by the rule labeler; to boxes by what the model wrote beside it, or else by the findings
it asserts; and to fixations in two ways, each link saying by which: the fixation lies inside one of its boxes, or the
words of the sentence attended to it more than the other sentences' words did. An assertion counts as supported when it
was both looked at (a fixation lies inside its boxes) and seen (the finding is probable). Attention alone supports
nothing: it says what was in use while the words were written, not that the film shows what they say.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .anatomy import REGION_NAMES, SWEEP
from .gaze_geometry import region_of_box, regions_of_points
from .prompts import INSTRUCTIONS
from .report_attributes import question_kind
from .report_labels import FINDINGS, UNCERTAIN, label_report, label_sentence, split_sentences

EVIDENCE_SCHEMA = "gaze2report.evidence/1"
# A finding this probable is listed with its place; below, the place would suggest something that was not seen.
FINDING_THRESHOLD = 0.5
ASSERTED = ("positive", "uncertain")
# A sentence is tied to a fixation that its words attended to this many times as much as the report's sentences do on
# average, and to no more than its strongest few: the average cancels the tokens that every word attends to.
MIN_ATTENTION_WEIGHT = 1.25
MAX_ATTENTION_LINKS = 3
# What speaks of an earlier film.
_CHANGE_RE = re.compile(
    r"\b(?:chang(?:e|ed|es|ing)|since|prior|previous(?:ly)?|earlier|compar\w+|increased|decreased|progress\w+)\b",
    re.IGNORECASE,
)


@dataclass
class Observation:
    """What the model made of one film; coordinates in [0, 1] of the original image.

    Attributes:
        gaze_source: `"recorded"`, `"predicted"` or `"none"`.
        fixations: (N, 3) x, y, duration in seconds, in the order of reading.
        finding_probabilities: (14,), in the order of `FINDINGS`.
        finding_boxes: (14, 4) x0, y0, x1, y1.
        region_boxes: (17, 4), in the order of `REGION_NAMES`.
        severities: how severe each finding would be, one of `SEVERITIES` or `None`, 14 of them; `None` where the model
            does not grade.
        view: one of `VIEWS` and its probability; `None` where the model does not tell them apart.
    """

    gaze_source: str
    fixations: np.ndarray
    finding_probabilities: np.ndarray
    finding_boxes: np.ndarray
    region_boxes: np.ndarray
    severities: Sequence[str | None] | None = None
    view: tuple[str, float] | None = None


@dataclass
class WrittenReport:
    """A report and, where it is known, how sure the model was of its words.

    Attributes:
        text: the report.
        token_texts: the pieces of text that the model wrote, in order; empty where unknown.
        token_log_probs: log probability of each piece.
        fixation_attention: (number of pieces, N) attention with which each piece was written to each fixation; `None`
            where unknown.
        sentence_boxes: for each sentence that `split_sentences` finds in the text, the boxes that the model wrote for
            it: x0, y0, x1, y1 in [0, 1] of the original image. Empty where it wrote none at all.
    """

    text: str
    token_texts: Sequence[str] = ()
    token_log_probs: Sequence[float] = ()
    fixation_attention: np.ndarray | None = None
    sentence_boxes: Sequence[Sequence] = ()

    def pieces_within(self, start: int, end: int) -> list[int]:
        """Indices of the pieces that overlap characters `start` to `end`; white space alone has no say."""
        written = "".join(self.token_texts)
        position = -(len(written) - len(written.lstrip()))  # the report is stripped of leading white space
        inside = []
        for index, piece in enumerate(self.token_texts):
            if position < end and position + len(piece) > start and piece.strip():
                inside.append(index)
            position += len(piece)
        return inside

    def confidence(self, start: int, end: int) -> float | None:
        """Geometric mean of the probabilities of the pieces that overlap characters `start` to `end`."""
        inside = [float(self.token_log_probs[index]) for index in self.pieces_within(start, end)]
        return round(math.exp(sum(inside) / len(inside)), 4) if inside else None


@dataclass
class Rereadings:
    """What came out when the film was read again along K scanpaths drawn from the model.

    Attributes:
        finding_probabilities: (K, 14), in the order of `FINDINGS`.
        reports: K reports.
    """

    finding_probabilities: np.ndarray
    reports: Sequence[str]

    def agreement(self, name: str, is_asserted: bool, threshold: float) -> dict[str, float]:
        """Shares of the readings that side with an assertion, or with a denial, of a finding.

        `probability`: readings whose probability lies on that side of the threshold. `report`: readings whose own text,
        by the rule labeler, asserts the finding (perhaps with doubt), or does not.
        """
        probable = self.finding_probabilities[:, FINDINGS.index(name)] >= threshold
        said = [label_report(report)[name] in (1, -1) for report in self.reports]
        return {
            "probability": rounded(np.mean(probable == is_asserted)),
            "report": rounded(np.mean(np.array(said) == is_asserted)),
        }


def evidence_record(
    report: WrittenReport,
    observation: Observation,
    image: dict,
    model: dict,
    task: str,
    strategy: str,
    prompt: str,
    num_drafts: int = 1,
    warnings: Sequence[str] = (),
    threshold: float | Sequence[float] = FINDING_THRESHOLD,
    rereadings: Rereadings | None = None,
) -> dict:
    """The evidence record of one report.

    Args:
        report: the text and the certainty of its words.
        observation: what the model saw on the film.
        image: name, width, height in pixels and sha256 of the film.
        model: name_or_path, revision and package_version of the model.
        task, strategy, prompt: how the report was asked for.
        num_drafts: of how many drafts, at most, the report is the one that contradicts the findings least.
        warnings: sentences for the reader of the record.
        threshold: probability from which a finding counts as seen and is listed with its place; one for all, or 14.
        rereadings: what other scanpaths led to; with it, findings say how many of them agree.
    """
    regions = dict(zip(REGION_NAMES, observation.region_boxes, strict=True))
    thresholds = dict(zip(FINDINGS, np.broadcast_to(threshold, len(FINDINGS)).tolist(), strict=True))
    probability = dict(zip(FINDINGS, observation.finding_probabilities.tolist(), strict=True))
    findings = [
        finding_record(name, probability[name], box, regions, thresholds[name])
        for name, box in zip(FINDINGS, observation.finding_boxes, strict=True)
    ]
    if observation.severities is not None:
        for finding, severity in zip(findings, observation.severities, strict=True):
            is_seen = finding["probability"] >= thresholds[finding["name"]]
            finding["severity"] = severity if is_seen else None
    sentences = sentence_records(report, observation, regions, thresholds)
    if rereadings is not None:
        for finding in findings:
            name = finding["name"]
            finding["agreement"] = rereadings.agreement(name, probability[name] >= thresholds[name], thresholds[name])
        for finding in (finding for sentence in sentences for finding in sentence["findings"]):
            name = finding["name"]
            finding["agreement"] = rereadings.agreement(name, finding["status"] in ASSERTED, thresholds[name])
    return {
        "schema": EVIDENCE_SCHEMA,
        "image": image,
        "model": model,
        "task": task,
        "strategy": strategy,
        "prompt": prompt,
        "num_drafts": num_drafts,
        **view_record(observation.view),
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
        "sweep": sweep_record(observation.fixations, regions),
        "report": report.text,
        "confidence_from": {
            "token_probability": len(report.token_log_probs) > 0,
            "num_scanpaths": 0 if rereadings is None else len(rereadings.reports),
        },
        "sentences": sentences,
        "findings": sorted(findings, key=lambda finding: -finding["probability"]),
        "regions": {name: rounded_box(box) for name, box in regions.items()},
        "warnings": [
            *warnings,
            # An answer about one thing need not name all that was seen.
            *(disagreements(sentences, findings, thresholds) if task == "report" else []),
            *(unfounded(prompt, probability, thresholds) if task == "ask" else []),
            *unsupported(sentences, observation.gaze_source),
        ],
    }


def view_record(view: tuple[str, float] | None) -> dict:
    """The view with its probability; nothing where it is not known."""
    return {} if view is None else {"view": {"name": view[0], "probability": rounded(view[1])}}


def finding_record(name: str, probability: float, box: np.ndarray, regions: dict, threshold: float) -> dict:
    """One finding; its place only where it is probable and on the film, and never for "No Finding"."""
    placed = probability >= threshold and name != FINDINGS[0] and has_area(box)
    return {
        "name": name,
        "probability": rounded(probability),
        "region": region_of_box(box, regions) if placed else None,
        "box": rounded_box(box) if placed else None,
    }


def sentence_records(
    report: WrittenReport, observation: Observation, regions: dict, thresholds: dict[str, float]
) -> list[dict]:
    """Every sentence with its findings, its boxes, the fixations tied to it and whether the film supports it."""
    spans = []
    position = 0
    for text in split_sentences(report.text):
        start, position = find_sentence(report.text, text, position)
        spans.append((text, start, position))
    weights = attention_weights(report, [(start, end) for _, start, end in spans])
    finding_boxes = dict(zip(FINDINGS, observation.finding_boxes, strict=True))
    probability = dict(zip(FINDINGS, observation.finding_probabilities, strict=True))
    records = []
    for index, (text, start, end) in enumerate(spans):
        findings = label_sentence(text)
        asserted = [finding for finding in findings if finding["status"] in ASSERTED]
        boxes = [box for box in (report.sentence_boxes[index] if report.sentence_boxes else ()) if has_area(box)]
        source = "text"
        if not boxes:
            boxes = [finding_boxes[finding["name"]] for finding in asserted]
            boxes = [box for box in boxes if has_area(box)]
            source = "finding"
        links = fixation_links(observation.fixations, boxes, None if weights is None else weights[index])
        ways = [way for link in links for way in link["by"]]
        seen = any(
            finding["status"] == UNCERTAIN or probability[finding["name"]] >= thresholds[finding["name"]]
            for finding in asserted
        )
        looked_at = "box" in ways or observation.gaze_source == "none"
        records.append(
            {
                "text": text,
                "confidence": report.confidence(start, end),
                "findings": findings,
                "boxes": [rounded_box(box) for box in boxes],
                "box_sources": [source] * len(boxes),
                "box_regions": [region_of_box(box, regions) for box in boxes],
                "fixations": [link["fixation"] for link in links],
                "fixation_links": links,
                "support": next((way for way in ("box", "attention") if way in ways), "none"),
                "supported": (seen and looked_at) if asserted else None,
            }
        )
    return records


def attention_weights(report: WrittenReport, spans: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """Attention of each sentence to each fixation, over what the report's sentences give it on average: (S, N).

    A sentence's attention is the mean over its tokens, as a share of all it gave to fixations. `None` where attention
    is unknown, there are no fixations, or fewer than two sentences were written: alone, a sentence has no measure.
    """
    attention = report.fixation_attention
    if attention is None or attention.size == 0:
        return None
    shares = []
    for start, end in spans:
        pieces = report.pieces_within(start, end)
        row = attention[pieces].mean(axis=0) if pieces else np.zeros(attention.shape[1])
        shares.append(row / row.sum() if row.sum() > 0 else np.full(len(row), np.nan))
    shares = np.array(shares).reshape(len(spans), attention.shape[1])
    known = ~np.isnan(shares).any(axis=1)
    if known.sum() < 2:
        return None
    average = shares[known].mean(axis=0)
    return np.where(average > 0, shares / np.where(average > 0, average, 1.0), np.nan)


def attention_to_fixations(
    token_attention: np.ndarray, fixations: np.ndarray, fixation_mask: np.ndarray, token_fixations: np.ndarray
) -> np.ndarray:
    """Attention to visual-gaze tokens -> attention to the fixations that they stand for.

    A fixation gets what went to the slot that holds it and to the region token of the place it fell on; what went to
    the global token is nobody's.

    Args:
        token_attention: (L, T) attention of L tokens to the T visual-gaze tokens: one global, R x R regions of the
            square row by row, K fixation slots.
        fixations: (N, 3) x, y in [0, 1] of the square and duration.
        fixation_mask: (N,), true where a fixation stands.
        token_fixations: (K,) the fixation that each slot holds, -1 for none.

    Returns:
        (L, n) for the n true fixations, in their order.
    """
    num_regions = token_attention.shape[1] - 1 - len(token_fixations)
    side = math.isqrt(num_regions)
    column, row = np.minimum((fixations[:, :2].clip(0, 1) * side).astype(int), side - 1).T
    share = np.zeros((token_attention.shape[1], len(fixations)))
    share[1 + row * side + column, np.arange(len(fixations))] = 1
    slots = np.flatnonzero(token_fixations >= 0)
    share[1 + num_regions + slots, token_fixations[slots]] = 1
    return token_attention @ share[:, fixation_mask.astype(bool)]


def fixation_links(fixations: np.ndarray, boxes: Sequence[np.ndarray], weights: np.ndarray | None) -> list[dict]:
    """The fixations tied to a sentence, in their order: by lying inside a box, by attention, or by both.

    Args:
        fixations: (N, 3).
        boxes: of the sentence.
        weights: (N,) attention of the sentence relative to the report's average, or `None`.
    """
    inside = set(fixations_inside(fixations, boxes))
    weights = np.full(len(fixations), np.nan) if weights is None else weights
    strongest = np.argsort(-np.nan_to_num(weights), kind="stable")[:MAX_ATTENTION_LINKS]
    attended = {int(index) for index in strongest if weights[index] >= MIN_ATTENTION_WEIGHT}
    return [
        {
            "fixation": index,
            "by": [way for way, chosen in (("box", inside), ("attention", attended)) if index in chosen],
            "weight": None if np.isnan(weights[index]) else rounded(weights[index]),
        }
        for index in sorted(inside | attended)
    ]


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


def disagreements(sentences: list[dict], findings: list[dict], thresholds: dict[str, float]) -> list[str]:
    """Where the text and the finding probabilities say different things: a human should look there first."""
    probability = {finding["name"]: finding["probability"] for finding in findings}
    status: dict[str, set[str]] = {}
    for sentence in sentences:
        for finding in sentence["findings"]:
            status.setdefault(finding["name"], set()).add(finding["status"])
    warnings = []
    for name in FINDINGS[1:]:
        said = status.get(name, set())
        if "positive" in said and probability[name] < thresholds[name]:
            warnings.append(f"The report asserts {name}, but its probability is only {probability[name]:.2f}.")
        elif not said & set(ASSERTED) and probability[name] >= thresholds[name]:
            warnings.append(f"The report does not assert {name}, but its probability is {probability[name]:.2f}.")
    return warnings


def unfounded(prompt: str, probability: dict[str, float], thresholds: dict[str, float]) -> list[str]:
    """What a question takes for granted and the film does not show: a finding that was not seen, an earlier film."""
    question = prompt.removeprefix(INSTRUCTIONS["ask"].partition("{question}")[0])
    warnings = []
    if question_kind(question) in ("severity", "side", "place", "other"):
        warnings += [
            f"The question takes {name} for granted, but its probability is only {probability[name]:.2f}."
            for name in (finding["name"] for finding in label_sentence(question))
            if probability[name] < thresholds[name]
        ]
    if _CHANGE_RE.search(question):
        warnings.append("No earlier film was shown: what the answer says of a change is a guess.")
    return warnings


def unsupported(sentences: list[dict], gaze_source: str) -> list[str]:
    """Sentences that assert a finding nobody looked at. Those that nobody sees are named by [`disagreements`]."""
    if gaze_source == "none":
        return []
    return [
        f"No fixation lies where this sentence points: {sentence['text']}"
        for sentence in sentences
        if sentence["supported"] is not None and sentence["support"] != "box"
    ]


def sweep_record(fixations: np.ndarray, regions: dict[str, np.ndarray]) -> list[dict]:
    """Which regions of each step of the ABCDEF sweep the reading visited, and which it missed.

    A region is visited when a fixation lies inside its box. One without a box is on neither list. Without gaze there is
    nothing to tell: the list is empty.
    """
    if not len(fixations):
        return []
    on_film = {name: box for name, box in regions.items() if has_area(box)}
    visited = {name for name, box in on_film.items() if fixations_inside(fixations, [box])}
    return [
        {
            "letter": step.letter,
            "name": step.name,
            "visited": [name for name in step.regions if name in visited],
            "missed": [name for name in step.regions if name in on_film and name not in visited],
        }
        for step in SWEEP
    ]


def rounded(value: float) -> float:
    """Four decimals: a tenth of a pixel of a film of 1,000."""
    return round(float(value), 4)


def rounded_box(box: Sequence[float]) -> list[float]:
    return [rounded(side) for side in box]


__all__ = [
    "EVIDENCE_SCHEMA",
    "FINDING_THRESHOLD",
    "Observation",
    "Rereadings",
    "WrittenReport",
    "attention_to_fixations",
    "evidence_record",
]
