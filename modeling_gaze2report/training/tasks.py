"""Canonical records -> training examples of each task: what is asked, what is answered, which gaze is shown.

The tasks are those of the three systems: plain, grounded and structured reports, questions, phrases and boxes; and the
three modules of GazeX (arXiv 2604.14316) with the graph in the place of its gaze video: `observe` (fine-grained
perception: the fixations of one sentence -> clue boxes, observation box and the sentence), `reading` (trajectory
mimicking: the report in the order of the reading) and `order` (sequential dependency: shuffled parts -> their order). A
recipe gives each task a share; a share of zero switches it off.

Prompts come from the processor exactly as at inference. What a record does not hold is not made up: there is no example
of it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..processing.anatomy import REGION_NAMES
from ..processing.gaze_geometry import boxes_to_square
from ..processing.grounding import LAST_COORDINATE, asserted_findings, box_text, looking_text, order_text
from ..processing.image_processing_gaze2report import load_film
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from ..processing.report_labels import FINDINGS, split_sentences
from ..processing.structured import (
    FINDING_NOUNS,
    MAX_KEYWORDS,
    Keyword,
    make_keyword,
    middle_of,
    region_boxes_by_name,
    side_of_boxes,
    template_sentence,
)

TASKS = ("report", "reading", "grounded", "structured", "ask", "ground", "describe", "observe", "order")
# Tasks whose examples show a gaze of their own in place of the record's.
TASKS_WITH_GAZE = ("observe", "order")
# The eye leads the voice: what a sentence rests on was looked at from this long before it was begun (GazeX).
EYE_LEAD_S = 2.0
# Fixations nearer than this to the middle of a group belong to it, and a box reaches this far around them; shares of
# the film's sides.
GROUP_RADIUS = 0.12
BOX_MARGIN = 0.05
MAX_CLUE_BOXES = 3
MIN_OBSERVED_FIXATIONS = 3
# Blur of a fixation in the map that the observation box is read off, and cells of the map along a side.
OBSERVATION_SIGMA = 0.07
OBSERVATION_GRID = 32
# A grounded report longer than this, in tokens, has its boxes behind the first sentence of each finding only.
MAX_GROUNDED_TOKENS = 240
# Parts of an `order` example.
MIN_PARTS, MAX_PARTS = 2, 6
# A part that stands for a whole sentence is shown as one fixation, this long at most.
MAX_PART_SECONDS = 3.0
# Errors of stage one that structured prompts are made with, so that the language model does not learn to take them on
# faith: shares of findings missed and of films with one invented, and blur of boxes in shares of the film's sides.
MISSED, INVENTED, BOX_NOISE = 0.1, 0.15, 0.02
UNKNOWN_PHRASE_ANSWER = "This is nothing that a chest film shows."
UNKNOWN_PHRASES = (
    *("a banana", "the liver lesion", "a broken leg", "the moon", "a cat", "the left kidney", "a brain tumor"),
    *("a bicycle", "the knee joint", "hello", "a tooth", "the appendix", "gallstones", "a coffee cup", "the weather"),
)
_SIDE_RE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_SECTION_RE = re.compile(r"^(?:FINDINGS|IMPRESSION):\s*")


@dataclass
class TaskExample:
    """One thing to learn.

    Attributes:
        prompt: the user's turn, for the processor's `text`.
        target: the answer.
        gaze: the gaze to show in place of the record's own: (N, 3) x, y in [0, 1] of the film, duration in seconds.
        ranks: (N,) place in time of each row of `gaze`, where that is what is to be learned.
    """

    prompt: str
    target: str
    gaze: np.ndarray | None = None
    ranks: np.ndarray | None = None


def make_example(
    record: dict, task: str, processor: Gaze2ReportProcessor, generator: np.random.Generator
) -> TaskExample | None:
    """One example of a task from a canonical record; `None` where the record lacks what the task needs.

    Args:
        record: a canonical record; its `image` may be anything that `load_film` takes.
        task: one of `TASKS`.
        processor: the model's processor, which writes the prompt.
        generator: source of choices.

    Raises:
        ValueError: an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    return MAKERS[task](record, processor, generator)


def report_example(record: dict, processor, generator) -> TaskExample | None:
    report = (record.get("report") or "").strip()
    return TaskExample(processor.task_prompt("report"), report) if report else None


def reading_example(record: dict, processor, generator) -> TaskExample | None:
    report = report_in_reading_order(record)
    return TaskExample(processor.task_prompt("reading"), report) if report else None


def report_in_reading_order(record: dict) -> str | None:
    """The sentences in the order in which they were spoken; `None` unless at least two sentences have their times."""
    timed = timed_sentences(record)
    return " ".join(sentence["text"].strip() for sentence in timed) if len(timed) > 1 else None


def grounded_example(record: dict, processor, generator) -> TaskExample | None:
    report = (record.get("report") or "").strip()
    if not report or not labels_known(record):
        return None
    place = Placer(record, processor)
    sentences = split_sentences(report)
    boxes = [asserted_boxes(sentence, record) for sentence in sentences]
    target = grounded_text(sentences, boxes, place)
    if len(processor.tokenizer.tokenize(target)) > MAX_GROUNDED_TOKENS:
        placed: set = set()
        for own in boxes:
            own[:] = [box for box in own if tuple(box) not in placed]
            placed |= set(map(tuple, own))
        target = grounded_text(sentences, boxes, place)
    return TaskExample(processor.task_prompt("grounded"), target)


def grounded_text(sentences: Sequence[str], boxes: Sequence[Sequence], place: "Placer") -> str:
    return " ".join(f"{sentence}{place.marks(own)}" for sentence, own in zip(sentences, boxes, strict=True))


def structured_example(record: dict, processor, generator) -> TaskExample | None:
    report = (record.get("report") or "").strip()
    if not report or not labels_known(record):
        return None
    keywords = noisy_keywords(record, processor.thresholds, generator)
    return TaskExample(processor.task_prompt("structured", findings=keywords), report)


def noisy_keywords(record: dict, thresholds: Sequence[float], generator: np.random.Generator) -> list[Keyword]:
    """What stage one might have said about a film, from its labels and boxes, with the errors of a classifier."""
    regions = region_boxes_by_name(record.get("regions") or [None] * len(REGION_NAMES))
    keywords = []
    absent = []
    for finding, label, threshold in zip(FINDINGS[1:], record["labels"][1:], thresholds[1:], strict=True):
        boxes = [jittered(box, generator) for box in boxes_of(record, finding)]
        side = side_of_boxes(boxes, middle_of(regions))
        if label in (1, -1):
            if generator.random() < (MISSED if label == 1 else 3 * MISSED):
                continue
            certainty = generator.beta(4, 2) if label == 1 else generator.beta(1, 3)
            probability = threshold + (1 - threshold) * certainty
            keywords.append(make_keyword(finding, probability, threshold, boxes, side, regions))
        else:
            absent.append((finding, threshold))
    if absent and generator.random() < INVENTED:
        finding, threshold = absent[generator.integers(len(absent))]
        probability = threshold + (1 - threshold) * generator.beta(1, 3)
        box = regions.get(REGION_NAMES[generator.integers(len(REGION_NAMES))])
        boxes = [] if box is None else [box]
        keywords.append(
            make_keyword(finding, probability, threshold, boxes, side_of_boxes(boxes, middle_of(regions)), regions)
        )
    return sorted(keywords, key=lambda keyword: -keyword.probability)[:MAX_KEYWORDS]


def jittered(box: Sequence[float], generator: np.random.Generator) -> list[float]:
    moved = np.clip(np.asarray(box) + generator.normal(0, BOX_NOISE, 4), 0, 1)
    return moved.tolist() if moved[0] < moved[2] and moved[1] < moved[3] else list(box)


def ask_example(record: dict, processor, generator) -> TaskExample | None:
    pairs = [one for one in record.get("questions") or [] if (one["question"] or "").strip() and one["answer"]]
    if not pairs:
        return None
    pair = pairs[generator.integers(len(pairs))]
    return TaskExample(processor.task_prompt("ask", question=pair["question"]), pair["answer"])


def ground_example(record: dict, processor, generator) -> TaskExample | None:
    place = Placer(record, processor)
    present = sorted({one["label"] for one in record.get("boxes") or [] if one["label"] in FINDING_NOUNS})
    labels = record.get("labels") or [None] * len(FINDINGS)
    absent = [name for name, label in zip(FINDINGS, labels, strict=True) if label == 0 and name in FINDING_NOUNS]
    regions = region_boxes_by_name(record.get("regions") or [None] * len(REGION_NAMES))
    kinds = ["finding"] * 5 * bool(present) + ["absent"] * 2 * bool(absent) + ["region"] * 2 * bool(regions)
    if not kinds:
        return None
    kind = [*kinds, "unknown"][generator.integers(len(kinds) + 1)]
    if kind == "finding":
        phrase, boxes = finding_phrase(record, present[generator.integers(len(present))], generator)
        target = place.marks(boxes).strip()
    elif kind == "region":
        phrase = list(regions)[generator.integers(len(regions))]
        target = place.marks([regions[phrase]]).strip()
    elif kind == "absent":
        name = absent[generator.integers(len(absent))]
        phrase = [FINDING_NOUNS[name][1], name.lower()][generator.integers(2)]
        target = absent_answer(name)
    else:
        phrase, target = UNKNOWN_PHRASES[generator.integers(len(UNKNOWN_PHRASES))], UNKNOWN_PHRASE_ANSWER
    return TaskExample(processor.task_prompt("ground", phrase=phrase), target) if target else None


def absent_answer(finding: str) -> str:
    """What is answered where a phrase names a finding that is not there."""
    return f"No {FINDING_NOUNS[finding][1]} is seen."


def finding_phrase(record: dict, finding: str, generator: np.random.Generator) -> tuple[str, list]:
    """A phrase for a finding of a record and the boxes that it means: its name, its name with a side, or a sentence."""
    boxes = boxes_of(record, finding)
    sentences = [one for one in report_sentences(record) if finding in asserted_findings(one)]
    alone = [one for one in sentences if asserted_findings(one) == [finding]]
    choice = generator.integers(3)
    if choice == 0 and alone:
        sentence = alone[generator.integers(len(alone))]
        return sentence, boxes_on_side(boxes, side_in_words(sentence), record)
    noun = FINDING_NOUNS[finding][1]
    if choice == 1:
        middle = middle_of(region_boxes_by_name(record.get("regions") or [None] * len(REGION_NAMES)))
        side = side_of_boxes([boxes[generator.integers(len(boxes))]], middle)
        return f"{side} {noun}", boxes_on_side(boxes, side, record)
    return (noun if generator.random() < 0.7 else finding.lower()), boxes


def describe_example(record: dict, processor, generator) -> TaskExample | None:
    film = load_film(record["image"], name=record["image_id"])
    findings = [one for one in record.get("boxes") or [] if one["label"] in FINDING_NOUNS]
    regions = region_boxes_by_name(record.get("regions") or [None] * len(REGION_NAMES))
    untouched = {name: box for name, box in regions.items() if not any(overlaps(box, corners(one)) for one in findings)}
    # A region without a box is only known to be normal where the boxes of all findings are known.
    untouched = untouched if labels_known(record) else {}
    if findings and (not untouched or generator.random() < 0.7):
        one = findings[generator.integers(len(findings))]
        box, target = corners(one), sentence_of_box(record, one)
    elif untouched:
        name = list(untouched)[generator.integers(len(untouched))]
        box, target = untouched[name], f"No abnormality in the {name}."
    else:
        return None
    if not (box[0] < box[2] and box[1] < box[3]):
        return None
    return TaskExample(processor.task_prompt("describe", box=box, film=film), target)


def sentence_of_box(record: dict, box: dict) -> str:
    """The first sentence of the report that asserts the box's finding on its side, else any, else a plain one."""
    sentences = [one for one in report_sentences(record) if box["label"] in asserted_findings(one)]
    regions = region_boxes_by_name(record.get("regions") or [None] * len(REGION_NAMES))
    side = side_of_boxes([corners(box)], middle_of(regions))
    fitting = [one for one in sentences if side_in_words(one) in (None, side)]
    if fitting or sentences:
        return (fitting or sentences)[0]
    return template_sentence(make_keyword(box["label"], 1.0, 0.5, [corners(box)], side, regions))


def observe_example(record: dict, processor, generator) -> TaskExample | None:
    fixations = timed_fixations(record)
    looked = []
    for sentence in timed_sentences(record):
        gaze = fixations_of_sentence(fixations, sentence)
        if len(gaze) >= MIN_OBSERVED_FIXATIONS:
            looked.append((sentence["text"].strip(), gaze))
    if not looked:
        return None
    text, gaze = looked[generator.integers(len(looked))]
    film = load_film(record["image"], name=record["image_id"])
    to_square = Placer(record, processor, film).square
    clues, seen = [to_square(box) for box in clue_boxes(gaze)], to_square(observation_box(gaze))
    return TaskExample(processor.task_prompt("observe"), looking_text(text, clues, seen), gaze)


def clue_boxes(gaze: np.ndarray) -> list[list[float]]:
    """Boxes around groups of fixations, at most `MAX_CLUE_BOXES` (those dwelt on longest), in the order of the gaze.

    A fixation joins the nearest group whose dwell-weighted middle is within `GROUP_RADIUS`, else it opens one.

    Shapes: gaze (N, 3) -> boxes x0, y0, x1, y1 in [0, 1].
    """
    groups: list[list[np.ndarray]] = []
    for fixation in gaze:
        middles = [
            np.average([one[:2] for one in group], axis=0, weights=[one[2] for one in group]) for group in groups
        ]
        distances = [float(np.hypot(*(middle - fixation[:2]))) for middle in middles]
        if distances and min(distances) <= GROUP_RADIUS:
            groups[int(np.argmin(distances))].append(fixation)
        else:
            groups.append([fixation])
    dwell = [sum(one[2] for one in group) for group in groups]
    kept = sorted(np.argsort(dwell, kind="stable")[::-1][:MAX_CLUE_BOXES])
    return [hull_of_points(np.array(groups[index])[:, :2], BOX_MARGIN) for index in kept]


def observation_box(gaze: np.ndarray) -> list[float]:
    """The box of what was looked at longest: the warm part of the heat map around its maximum.

    Warm is a cell with at least half of the maximum. GazeX takes the extent of the warmest fifth of the whole map:
    where two distant places were looked at, that is a box around everything between them.

    Shapes: gaze (N, 3) -> x0, y0, x1, y1 in [0, 1].
    """
    centres = (np.arange(OBSERVATION_GRID) + 0.5) / OBSERVATION_GRID
    across = np.exp(-((centres - gaze[:, :1]) ** 2) / (2 * OBSERVATION_SIGMA**2))  # (N, columns)
    down = np.exp(-((centres - gaze[:, 1:2]) ** 2) / (2 * OBSERVATION_SIGMA**2))  # (N, rows)
    heat = np.einsum("n,nr,nc->rc", gaze[:, 2], down, across)
    warm = heat >= 0.5 * heat.max()
    part = np.zeros_like(warm)
    part[np.unravel_index(heat.argmax(), heat.shape)] = True
    while True:
        grown = part.copy()
        grown[1:] |= part[:-1]
        grown[:-1] |= part[1:]
        grown[:, 1:] |= part[:, :-1]
        grown[:, :-1] |= part[:, 1:]
        grown &= warm
        if (grown == part).all():
            break
        part = grown
    rows, columns = np.nonzero(part)
    return hull_of_points(np.stack((centres[columns], centres[rows]), axis=1), 0.5 / OBSERVATION_GRID)


def hull_of_points(points: np.ndarray, margin: float) -> list[float]:
    low, high = points.min(0) - margin, points.max(0) + margin
    return np.clip(np.concatenate((low, high)), 0, 1).tolist()


def order_example(record: dict, processor, generator) -> TaskExample | None:
    """What was looked at for some sentences of a reading, in a shuffled order; the target lists the shown places (from
    1), the one looked at first in front.

    A part is all that was looked at for one sentence, shown as its dwell-weighted middle: readers go through their
    topics by habit. Single fixations are no parts: a scanpath looks the same backwards, so that nothing in a shuffled
    one tells its order.
    """
    parts = sentence_parts(record, timed_fixations(record))
    if len(parts) < MIN_PARTS:
        return None
    count = int(generator.integers(MIN_PARTS, min(MAX_PARTS, len(parts)) + 1))
    chosen = np.sort(generator.choice(len(parts), size=count, replace=False))
    shuffled = generator.permutation(count)
    order = np.argsort(shuffled)  # where each part stands in what is shown
    gaze = parts[chosen][shuffled].astype(np.float32)
    return TaskExample(processor.task_prompt("order", count=count), order_text(order), gaze, shuffled)


def sentence_parts(record: dict, fixations: np.ndarray) -> np.ndarray:
    """(K, 3): middle and dwell time of what was looked at for each sentence; a fixation counts for one sentence."""
    sentences = timed_sentences(record)
    if not sentences:
        return np.zeros((0, 3))
    starts = np.array([sentence["start_s"] for sentence in sentences]) - EYE_LEAD_S
    ends = np.array([sentence["end_s"] for sentence in sentences])
    owners = np.searchsorted(starts, fixations[:, 3], side="right") - 1
    parts = []
    for index in range(len(sentences)):
        own = fixations[(owners == index) & (fixations[:, 3] <= ends[index])]
        if len(own):
            middle = np.average(own[:, :2], axis=0, weights=own[:, 2])
            parts.append([*middle, min(MAX_PART_SECONDS, own[:, 2].sum())])
    return np.array(parts).reshape(-1, 3)


MAKERS = {
    "report": report_example,
    "reading": reading_example,
    "grounded": grounded_example,
    "structured": structured_example,
    "ask": ask_example,
    "ground": ground_example,
    "describe": describe_example,
    "observe": observe_example,
    "order": order_example,
}


# -- what a record holds ----------------------------------------------------------------------------------------------


class Placer:
    """Boxes of one film in the model's square, as text."""

    def __init__(self, record: dict, processor: Gaze2ReportProcessor, film=None):
        film = film or load_film(record["image"], name=record["image_id"])
        self.size, self.side = (film.height, film.width), processor.image_processor.size["height"]

    def square(self, box: Sequence[float]) -> np.ndarray:
        return boxes_to_square(np.asarray(box, dtype=np.float64), self.size, self.side)

    def marks(self, boxes: Iterable[Sequence[float]]) -> str:
        """The boxes from left to right, each with a space before it."""
        ordered = sorted(tuple(box) for box in boxes)
        return "".join(f" {box_text(self.square(box))}" for box in dict.fromkeys(ordered))


def labels_known(record: dict) -> bool:
    """Whether a record says which findings there are."""
    return any(label is not None for label in record.get("labels") or [])


def timed_sentences(record: dict) -> list[dict]:
    """Sentences with text and times, in the order in which they were begun."""
    known = [
        one
        for one in record.get("sentences") or []
        if (one["text"] or "").strip() and one.get("start_s") is not None and one.get("end_s") is not None
    ]
    return sorted(known, key=lambda one: one["start_s"])


def timed_fixations(record: dict) -> np.ndarray:
    """(N, 4) x, y, duration and onset in seconds of the fixations on the film, in time; N is 0 without onsets."""
    rows = [
        (one["x"], one["y"], one["duration_s"], one["onset_s"])
        for one in record.get("fixations") or []
        if one.get("onset_s") is not None and 0 <= one["x"] <= 1 and 0 <= one["y"] <= 1 and one["duration_s"] > 0
    ]
    return np.array(sorted(rows, key=lambda row: row[3]), dtype=np.float64).reshape(-1, 4)


def fixations_of_sentence(fixations: np.ndarray, sentence: dict) -> np.ndarray:
    """(n, 3): what was looked at from two seconds before a sentence was begun until its end."""
    onset = fixations[:, 3]
    inside = (onset >= sentence["start_s"] - EYE_LEAD_S) & (onset <= sentence["end_s"])
    return fixations[inside, :3].astype(np.float32)


def report_sentences(record: dict) -> list[str]:
    """Sentences of the report, without the names of its sections."""
    return [_SECTION_RE.sub("", one) for one in split_sentences(record.get("report") or "")]


def asserted_boxes(sentence: str, record: dict) -> list[list[float]]:
    """Boxes of the findings that a sentence asserts; where it names one side, those of that side if there are any."""
    boxes = [box for finding in asserted_findings(sentence) for box in boxes_of(record, finding)]
    return boxes_on_side(boxes, side_in_words(sentence), record)


def boxes_of(record: dict, finding: str) -> list[list[float]]:
    boxes = [corners(one) for one in record.get("boxes") or [] if one["label"] == finding]
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def corners(box: dict) -> list[float]:
    return [float(box[key]) for key in ("x0", "y0", "x1", "y1")]


def boxes_on_side(boxes: list, side: str | None, record: dict) -> list:
    """The boxes on one side, or all where that leaves none: a sentence may name the side of something else."""
    if side not in ("left", "right"):
        return boxes
    middle = middle_of(region_boxes_by_name(record.get("regions") or [None] * len(REGION_NAMES)))
    kept = [box for box in boxes if side_of_boxes([box], middle) == side]
    return kept or boxes


def side_in_words(sentence: str) -> str | None:
    """The one side that a sentence names; `None` where it names none or both."""
    sides = {match.lower() for match in _SIDE_RE.findall(sentence)}
    return sides.pop() if len(sides) == 1 else None


def overlaps(first: Sequence[float], second: Sequence[float]) -> bool:
    return min(first[2], second[2]) > max(first[0], second[0]) and min(first[3], second[3]) > max(first[1], second[1])


def tokenizer_texts(records: Iterable[dict], seed: int = 0) -> Iterator[str]:
    """What a tokenizer that is made from the records should know: their texts, and how boxes are written.

    The boxes are drawn evenly, so that no place of the film is dearer than another.
    """
    generator = np.random.default_rng(seed)
    for record in records:
        if record.get("report"):
            yield record["report"]
        for pair in record.get("questions") or []:
            yield f"{pair['question']} {pair['answer']}"
        numbers = generator.integers(LAST_COORDINATE + 1, size=(2, 4))
        yield " ".join(box_text(row / LAST_COORDINATE) for row in numbers)


__all__ = [
    "MAKERS",
    "TASKS",
    "TASKS_WITH_GAZE",
    "TaskExample",
    "make_example",
    "report_in_reading_order",
    "tokenizer_texts",
]
