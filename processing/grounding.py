# Copyright 2026 The Gaze2Report authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Boxes in text, and lists of order in text: written for the language model, and read from whatever it wrote.

A box is four whole numbers from 0 to 999 in square brackets, `[412 655 498 901]`: left, top, right and bottom of the
model's square, 999 being its far edge. Any tokenizer carries these characters. Boxes stand behind the sentence they
belong to. Reading never fails: what is no box gives none, and nothing is guessed.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .anatomy import REGION_NAMES
from .evidence import ASSERTED, find_sentence
from .gaze_geometry import overlaps_with
from .report_labels import FINDINGS, label_sentence, split_sentences
from .structured import middle_of

# The largest coordinate in text; 0 and this one are the edges of the square.
LAST_COORDINATE = 999
# A bracket that holds nothing but digits, spaces and commas, or that the end of the text cut off, is a mark. Longer
# ones than this are none: no four numbers take so many characters.
_MARK_RE = re.compile(r"\s{0,4}\[(?=[\s,]*(?:[0-9]|\Z))([0-9\s,]{0,64})(?:\]|\Z)")
_NUMBER_RE = re.compile(r"[0-9]+")
# Behind a text that names nothing, a written box means a seen one where they share this much (intersection over union).
MEANT_IOU = 0.1


class BoxMark(NamedTuple):
    """A mark in a text, with the white space before it.

    Attributes:
        start, end: its characters.
        box: x0, y0, x1, y1 in [0, 1] of the square, or `None` where the mark is cut off or no box.
    """

    start: int
    end: int
    box: tuple[float, float, float, float] | None


class GroundedText(NamedTuple):
    """A text freed of its marks.

    Attributes:
        text: without box marks.
        sentences: of the text, as `split_sentences` gives them.
        boxes: the boxes of each sentence.
        loose_boxes: boxes before the first sentence, or of a text without one.
    """

    text: str
    sentences: list[str]
    boxes: list[list[tuple[float, float, float, float]]]
    loose_boxes: list[tuple[float, float, float, float]]


def box_text(box: Sequence[float]) -> str:
    """A box in [0, 1] of the square as text; what lies beside the square is put on its edge."""
    numbers = (round(min(1.0, max(0.0, float(side))) * LAST_COORDINATE) for side in box)
    return "[" + " ".join(f"{number:03d}" for number in numbers) + "]"


def find_box_marks(text: str) -> list[BoxMark]:
    """All marks of a text, in order."""
    marks = []
    for match in _MARK_RE.finditer(text):
        marks.append(BoxMark(*match.span(), read_box(match.group(1)) if match.group().endswith("]") else None))
    return marks


def read_box(numbers: str) -> tuple[float, float, float, float] | None:
    """The box that the inside of a mark stands for; `None` where it is not four numbers up to 999 that span an area."""
    found = _NUMBER_RE.findall(numbers)
    if len(found) != 4 or max(map(len, found)) > 3:
        return None
    x0, y0, x1, y1 = (int(number) / LAST_COORDINATE for number in found)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def seen_boxes(finding_boxes: Sequence, region_boxes: Sequence) -> dict[str, list[tuple[float, float, float, float]]]:
    """Boxes that a text about a film may mean, by the name of what is there: those of the findings, of a finding that
    reaches across the midline also its part on either side, and those of the regions.

    Shapes: findings (14, 4) and regions (17, 4), in the frame of the result. That there is no finding has no place: the
    first finding is left out.
    """
    middle = middle_of(dict(zip(REGION_NAMES, region_boxes, strict=True)))
    boxes = {name: [box] for name, box in zip((*FINDINGS, *REGION_NAMES), (*finding_boxes, *region_boxes), strict=True)}
    del boxes[FINDINGS[0]]
    for name in FINDINGS[1:]:
        x0, y0, x1, y1 = boxes[name][0]
        if x0 < middle < x1:
            boxes[name] += [(x0, y0, middle, y1), (middle, y0, x1, y1)]
    return {
        name: [tuple(map(float, box)) for box in several if box[0] < box[2] and box[1] < box[3]]
        for name, several in boxes.items()
    }


def meant_boxes(written: Sequence, seen: Mapping[str, Sequence], text: str) -> list[tuple[float, float, float, float]]:
    """For each box that a language model wrote the seen one that it means: of the boxes of what the text names, the one
    that overlaps it most. Behind a text that names nothing seen, any that overlaps it enough, or itself.

    Each comes once, also where several written ones mean it. A language model is good at saying what is there, and
    perception heads at saying where.

    Args:
        written: boxes in the frame of the seen ones.
        seen: boxes by the name of a finding or region, as [`seen_boxes`] gives them.
        text: the sentence or phrase that the boxes belong to.
    """
    named = [box for name in names_in(text) for box in seen.get(name, ())]
    choice = named or [box for several in seen.values() for box in several]
    boxes = []
    for box in written:
        overlap = overlaps_with(box, choice)
        is_meant = named or overlap.max(initial=0.0) >= MEANT_IOU
        boxes.append(tuple(choice[int(overlap.argmax())] if is_meant else box))
    return list(dict.fromkeys(boxes))


def phrase_answer(
    phrase: str, text: GroundedText, probabilities: Sequence[float], boxes: Sequence, thresholds: Sequence[float]
) -> dict:
    """Where a phrase is. Of a finding there is a box where its calibrated probability reaches its threshold, and only
    there; a warning says where the language model was of another mind. What else a phrase may name is the language
    model's to find.

    Args:
        phrase: what was asked for.
        text: the language model's answer, with its boxes on the film.
        probabilities, boxes, thresholds: (14,), (14, 4) on the film and (14,) of the findings.

    Returns:
        `phrase`, `boxes`, `answer`, `findings` (name and probability of each that the phrase names) and `warnings`.
    """
    written = [*text.loose_boxes, *(box for several in text.boxes for box in several)]
    probability = dict(zip(FINDINGS, map(float, probabilities), strict=True))
    threshold = dict(zip(FINDINGS, thresholds, strict=True))
    names = [one["name"] for one in label_sentence(phrase)]
    asserted = asserted_findings(phrase)
    seen = [name for name in asserted if probability[name] >= threshold[name]]
    answer, warnings = text.text, []
    if not names and not any(region in phrase.lower() for region in REGION_NAMES):
        warnings.append("The phrase names no finding or region that the model knows.")
    if seen and not written:
        written, answer = [boxes[FINDINGS.index(name)] for name in seen], ""
        found = ", ".join(f"{name} with a probability of {probability[name]:.2f}" for name in seen)
        warnings.append(f"The language model points nowhere; the findings have {found}, which is where they saw it.")
    elif written and asserted and not seen:
        written, answer = [], ""
        found = ", ".join(f"{name} is only {probability[name]:.2f}" for name in asserted)
        warnings.append(f"The language model points to a place, but the probability of {found}: no box is given.")
    return {
        "phrase": phrase,
        "boxes": [[round(float(side), 4) for side in box] for box in written],
        "answer": answer or ("Found here." if written else "Nothing was found for this phrase."),
        "findings": [{"name": name, "probability": round(probability[name], 4)} for name in names],
        "warnings": warnings,
    }


def names_in(text: str) -> list[str]:
    """The findings that a text asserts; where it asserts none, the regions that it names."""
    return asserted_findings(text) or [name for name in REGION_NAMES if name in text.lower()]


def asserted_findings(text: str) -> list[str]:
    return [one["name"] for one in label_sentence(text) if one["status"] in ASSERTED]


def pieces_without_marks(pieces: Sequence[str]) -> list[str]:
    """The pieces that a text was written in, each without its characters of marks."""
    text = "".join(pieces)
    kept, marks, start = [], find_box_marks(text), 0
    for piece in pieces:
        end = start + len(piece)
        rest, position = "", start
        for mark in marks:
            if mark.end > start and mark.start < end:
                rest += text[position : max(position, mark.start)]
                position = max(position, mark.end)
        kept.append(rest + text[position:end])
        start = end
    return kept


def without_marks(text: str) -> str:
    """The text as a human reads it."""
    return _MARK_RE.sub("", text).strip()


def read_grounded_text(text: str) -> GroundedText:
    """Sentences and boxes of a text with marks; never raises. Boxes are in [0, 1] of the square."""
    marks = find_box_marks(text)
    whole = _MARK_RE.sub("", text)
    plain = whole.strip()
    sentences = split_sentences(plain)
    boxes: list[list] = [[] for _ in sentences]
    loose: list = []
    if not marks:
        return GroundedText(plain, sentences, boxes, loose)
    starts, position = [], 0
    for sentence in sentences:
        start, position = find_sentence(plain, sentence, position)
        starts.append(start)
    removed = len(whole) - len(whole.lstrip())  # characters before a mark that the plain text does not have
    for mark in marks:
        place = mark.start - removed
        removed += mark.end - mark.start
        if mark.box is None:
            continue
        # The sentence that the mark stands behind, or in: the last one that began before it.
        owner = bisect_left(starts, place) - 1
        (boxes[owner] if owner >= 0 else loose).append(mark.box)
    return GroundedText(plain, sentences, boxes, loose)


class Looking(NamedTuple):
    """What one sentence rests on, in the frame of its boxes.

    Attributes:
        sentence: what was said.
        clue_boxes: where the reader looked for it, in order.
        observation_box: where it was seen, or `None`.
    """

    sentence: str
    clue_boxes: list[tuple[float, float, float, float]]
    observation_box: tuple[float, float, float, float] | None


def looking_text(sentence: str, clue_boxes: Sequence, observation_box: Sequence[float]) -> str:
    """Clue boxes, a bar, the observation box and the sentence; boxes in [0, 1] of the square."""
    return f"{' '.join(map(box_text, clue_boxes))} | {box_text(observation_box)} {sentence}"


def read_looking(text: str) -> Looking:
    """The parts of a text as `looking_text` writes it, as far as they are there; never raises."""
    clues, _, rest = text.partition("|")
    clue_boxes = [mark.box for mark in find_box_marks(clues) if mark.box is not None]
    seen = [mark.box for mark in find_box_marks(rest) if mark.box is not None]
    sentence = without_marks(rest) or without_marks(clues)
    return Looking(sentence, clue_boxes, seen[0] if seen else None)


def order_text(order: Sequence[int]) -> str:
    """An order as text: numbers from 1, separated by spaces, so that ten parts and more stay unambiguous."""
    return " ".join(str(int(place) + 1) for place in order)


def read_order(text: str, count: int) -> list[int] | None:
    """The order of `count` parts, as indices from 0; `None` where the text is no order of them. Never raises."""
    found = _NUMBER_RE.findall(text)
    if len(found) != count or max(map(len, found), default=0) > 6:
        return None
    order = [int(number) - 1 for number in found]
    return order if sorted(order) == list(range(count)) else None


__all__ = [
    "BoxMark",
    "GroundedText",
    "LAST_COORDINATE",
    "Looking",
    "asserted_findings",
    "box_text",
    "find_box_marks",
    "looking_text",
    "meant_boxes",
    "order_text",
    "phrase_answer",
    "pieces_without_marks",
    "read_box",
    "read_grounded_text",
    "read_looking",
    "read_order",
    "seen_boxes",
    "without_marks",
]
