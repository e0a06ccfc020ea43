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
"""Structured reporting: from findings with their places to a region-aware prompt, or straight to sentences.

After the second stage of Eyes on the Image (arXiv 2508.13068): a finding whose probability reaches the threshold of its
class becomes a keyword with a word for its certainty and, where size tells, for its severity; its box names an
anatomical region and the attention map its side; the keywords make the prompt of the language model. The template
writer needs no language model: same keywords, same words, every time. Words, cuts and order are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .anatomy import REGION_BY_NAME, REGION_NAMES
from .gaze_geometry import region_of_box
from .report_labels import FINDINGS

# How far above its threshold, as a share of what is left up to 1, a probability must be to be called so.
CONFIDENCE_WORDS = ((0.6, "definite"), (0.15, "probable"), (0.0, "possible"))
# A side with less than this share of the attention on both lungs is not counted.
BILATERAL_SHARE = 0.3
# The prompt shares the context with film and report: of more keywords, the most probable ones are kept.
MAX_KEYWORDS = 8
# Box area over lung area. Degrees that a model may have learned are not put here: these words are what it was taught to
# write reports from.
SIZE_WORDS = ((0.4, "large"), (0.15, "moderate"), (0.0, "small"))
# Width of the heart over width of the chest; above 0.5 the heart counts as enlarged.
HEART_WORDS = ((0.62, "severe"), (0.56, "moderate"), (0.0, "mild"))
SIZED_FINDINGS = (
    *("Lung Opacity", "Lung Lesion", "Consolidation", "Pneumonia", "Atelectasis"),
    *("Pneumothorax", "Pleural Effusion"),
)
# Findings of the lungs: what lies behind the heart is still in a lung.
LUNG_FINDINGS = ("Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")
# Findings that have no side.
MIDLINE_FINDINGS = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Edema")


@dataclass(frozen=True)
class Keyword:
    """One finding as the structured prompt names it.

    Attributes:
        finding: one of `FINDINGS`.
        probability: calibrated probability.
        confidence: "definite", "probable" or "possible".
        severity: a word, or `None` where size does not tell.
        region: one of `REGION_NAMES`, or `None`.
        side: "left", "right" (the patient's), "bilateral" or `None`.
    """

    finding: str
    probability: float
    confidence: str
    severity: str | None = None
    region: str | None = None
    side: str | None = None

    @property
    def place(self) -> str:
        """Region and side in words; empty where neither is known."""
        if self.region is None:
            return self.side or ""
        if self.side in (None, REGION_BY_NAME[self.region].side):
            return self.region
        return f"{self.side} {without_side(self.region)}"

    def as_dict(self) -> dict:
        return asdict(self)


def without_side(region: str) -> str:
    """The name of a region without "left" or "right"."""
    return region.removeprefix("left ").removeprefix("right ")


def word_for(value: float, words: Sequence[tuple[float, str]]) -> str:
    """The word of the highest cut that the value reaches."""
    return next(word for cut, word in words if value >= cut or cut == words[-1][0])


def confidence_word(probability: float, threshold: float) -> str:
    """How certain a finding at or above its threshold is, in a word."""
    return word_for((probability - threshold) / max(1 - threshold, 1e-6), CONFIDENCE_WORDS)


def side_of_map(attention: np.ndarray, lungs: Mapping[str, Sequence[float]]) -> str | None:
    """The side that an attention map lies on, by its mass inside the boxes of the two lungs.

    Args:
        attention: (P,) over a square grid of cells, row by row.
        lungs: boxes of "right lung" and "left lung" in [0, 1] of the square that the grid covers.

    Returns:
        "left", "right", "bilateral" (each side has at least `BILATERAL_SHARE` of the two), or `None` where the map
        touches neither.
    """
    grid = round(len(attention) ** 0.5)
    centres = (np.arange(grid) + 0.5) / grid
    mass = {}
    for side in ("left", "right"):
        x0, y0, x1, y1 = lungs[f"{side} lung"]
        inside = np.outer((centres >= y0) & (centres <= y1), (centres >= x0) & (centres <= x1)).ravel()
        mass[side] = float(attention[inside].sum())
    total = sum(mass.values())
    if total <= 0:
        return None
    if min(mass.values()) >= BILATERAL_SHARE * total:
        return "bilateral"
    return max(mass, key=mass.get)


def middle_of(regions: Mapping[str, Sequence[float]]) -> float:
    """x between the lungs; the middle of the film where they are not known."""
    if "right lung" in regions and "left lung" in regions:
        return (regions["right lung"][2] + regions["left lung"][0]) / 2
    return 0.5


def side_of_boxes(boxes: Sequence[Sequence[float]], middle: float) -> str | None:
    """The side that boxes lie on, by their centres; the patient's right is left of `middle`."""
    sides = {"right" if (box[0] + box[2]) / 2 < middle else "left" for box in boxes}
    if not sides:
        return None
    return sides.pop() if len(sides) == 1 else "bilateral"


def make_keyword(
    finding: str,
    probability: float,
    threshold: float,
    boxes: Sequence[Sequence[float]],
    side: str | None,
    regions: Mapping[str, Sequence[float]],
) -> Keyword:
    """The keyword of one finding.

    Args:
        finding: one of `FINDINGS`.
        probability, threshold: the finding's own.
        boxes: its boxes, in any frame; none where it has no place.
        side: where it lies; not used for findings of the midline.
        regions: boxes of the 17 regions by name, in the frame of `boxes`.
    """
    boxes = [box for box in boxes if box[2] > box[0] and box[3] > box[1]]
    side = None if finding in MIDLINE_FINDINGS else side
    region = None
    if boxes:
        # A hull of two sides is nearest to no region of either: each box names its own, and the largest one counts.
        largest = max(boxes, key=area)
        fitting = {name: box for name, box in regions.items() if REGION_BY_NAME[name].side in (None, side)}
        if side == "bilateral":
            largest = right_half(largest, regions) if len(boxes) == 1 else largest
            fitting = dict(regions)
        if finding in LUNG_FINDINGS:
            fitting = {name: box for name, box in fitting.items() if REGION_BY_NAME[name].side}
        region = region_of_box(largest, fitting) if fitting else None
    return Keyword(
        finding=finding,
        probability=round(float(probability), 4),
        confidence=confidence_word(probability, threshold),
        severity=severity_word(finding, boxes, side, regions),
        region=region,
        side=side,
    )


def right_half(box: Sequence[float], regions: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """The part of a box that lies on the patient's right lung; the box itself where there is none."""
    lung = regions.get("right lung")
    if lung is None or box[0] >= lung[2] or box[2] <= lung[2]:
        return box
    return (box[0], box[1], lung[2], box[3])


def severity_word(
    finding: str, boxes: Sequence[Sequence[float]], side: str | None, regions: Mapping[str, Sequence[float]]
) -> str | None:
    """How much of a finding there is, in a word, from its size; `None` where size does not tell or is unknown."""
    lungs = [regions[name] for name in ("right lung", "left lung") if name in regions]
    if finding == "Cardiomegaly" and "cardiac silhouette" in regions and len(lungs) == 2:
        heart, chest = regions["cardiac silhouette"], max(one[2] for one in lungs) - min(one[0] for one in lungs)
        return word_for((heart[2] - heart[0]) / chest, HEART_WORDS) if chest > 0 else None
    if finding not in SIZED_FINDINGS or not boxes or not lungs:
        return None
    # A hull over both lungs holds the heart as well: only what lies on the lungs counts there.
    if side == "bilateral":
        covered = sum(shared_area(box, lung) for box in boxes for lung in lungs)
        whole = sum(map(area, lungs))
    else:
        covered, whole = sum(map(area, boxes)), max(map(area, lungs))
    return word_for(covered / whole, SIZE_WORDS) if whole > 0 else None


def area(box: Sequence[float]) -> float:
    return max(0.0, float(box[2] - box[0])) * max(0.0, float(box[3] - box[1]))


def shared_area(first: Sequence[float], second: Sequence[float]) -> float:
    low = (max(first[0], second[0]), max(first[1], second[1]))
    return area((*low, min(first[2], second[2]), min(first[3], second[3])))


def keywords_of_film(
    probabilities: Sequence[float],
    thresholds: Sequence[float],
    boxes: Sequence[Sequence[float]],
    sides: Sequence[str | None],
    regions: Mapping[str, Sequence[float]],
) -> list[Keyword]:
    """Stage one's findings at or above their thresholds as keywords, the most probable first.

    Args:
        probabilities, thresholds: 14 each, in the order of `FINDINGS`.
        boxes: 14 boxes in [0, 1] of the film.
        sides: 14 sides as `side_of_map` gives them.
        regions: boxes of the regions by name, in [0, 1] of the film.
    """
    found = [
        make_keyword(name, probability, threshold, [box], side, regions)
        for name, probability, threshold, box, side in zip(
            FINDINGS, probabilities, thresholds, boxes, sides, strict=True
        )
        if name != FINDINGS[0] and probability >= threshold
    ]
    return sorted(found, key=lambda keyword: -keyword.probability)[:MAX_KEYWORDS]


def keywords_text(keywords: Sequence[Keyword]) -> str:
    """The keywords as the structured prompt lists them."""
    if not keywords:
        return "none."
    return "; ".join(keyword_text(keyword) for keyword in keywords) + "."


def keyword_text(keyword: Keyword) -> str:
    words = [keyword.confidence, keyword.severity, keyword.finding.lower()]
    text = " ".join(word for word in words if word)
    return f"{text}, {keyword.place}" if keyword.place else text


# -- the template writer ----------------------------------------------------------------------------------------------

# Findings in the order of an ABCDEF reading (airway and mediastinum, breathing, circulation, pleura at the diaphragm,
# external), each with what it is called and whether it is one thing ("a") or a state.
FINDING_NOUNS: dict[str, tuple[str, str]] = {
    "Enlarged Cardiomediastinum": ("", "widening of the mediastinum"),
    "Lung Opacity": ("an", "opacity"),
    "Consolidation": ("", "consolidation"),
    "Pneumonia": ("", "pneumonia"),
    "Atelectasis": ("", "atelectasis"),
    "Lung Lesion": ("a", "nodule"),
    "Edema": ("", "pulmonary edema"),
    "Cardiomegaly": ("", "cardiomegaly"),
    "Pleural Effusion": ("a", "pleural effusion"),
    "Pneumothorax": ("a", "pneumothorax"),
    "Pleural Other": ("", "pleural thickening"),
    "Fracture": ("a", "fracture"),
    "Support Devices": ("a", "support device"),
}
_WITHOUT_PLACE = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Edema")
_PLEURAL = ("Pleural Effusion", "Pneumothorax", "Pleural Other")
_PLURALS = {"pleural effusion": "pleural effusions", "pneumothorax": "pneumothoraces", "opacity": "opacities"}
_PLURALS |= {"nodule": "nodules", "fracture": "fractures", "support device": "support devices"}


def template_report(keywords: Sequence[Keyword]) -> str:
    """A report from keywords alone, a sentence each and what is absent after them; no language model has a part in it.

    What is definite or probable is stated, what is possible is said to be possible. The rule labeler reads the same
    findings out of the report that went in.
    """
    by_finding = {keyword.finding: keyword for keyword in keywords}
    sentences = []
    for finding in FINDING_NOUNS:
        if finding in by_finding:
            sentences.append(template_sentence(by_finding[finding]))
        elif finding == "Edema" and not set(LUNG_FINDINGS) & set(by_finding):
            sentences.append("The lungs are clear.")
        elif finding == "Cardiomegaly":
            sentences.append("The heart size is normal.")
    absent = [name for name in ("Pleural Effusion", "Pneumothorax") if name not in by_finding]
    if absent:
        sentences.append(f"No {' or '.join(FINDING_NOUNS[name][1] for name in absent)}.")
    return " ".join(sentences)


def template_sentence(keyword: Keyword) -> str:
    """One keyword as a sentence."""
    article, noun = FINDING_NOUNS[keyword.finding]
    place = ""
    if keyword.finding not in _WITHOUT_PLACE:
        is_plural = keyword.side == "bilateral" and noun in _PLURALS
        noun = _PLURALS[noun] if is_plural else noun
        article = "" if is_plural else article
        if keyword.finding in _PLEURAL or keyword.region is None:
            noun = f"{keyword.side} {noun}" if keyword.side else noun
        else:
            both = keyword.side == "bilateral" and REGION_BY_NAME[keyword.region].side is not None
            place = f" in {both_sides(keyword.region) if both else f'the {keyword.region}'}"
        verb = "are" if is_plural else "is"
    else:
        verb = "is"
    described = f"{keyword.severity} {noun}" if keyword.severity else noun
    if keyword.confidence == "possible":
        return f"Possible {described}{place}."
    if article:
        article = "an " if described[0] in "aeiou" else "a "
    return f"There {verb} {article}{described}{place}."


def both_sides(region: str) -> str:
    name = without_side(region)
    return f"both {name if name.endswith('s') else name + 's'}"


def region_boxes_by_name(boxes: Sequence[Sequence[float] | None]) -> dict[str, Sequence[float]]:
    """The regions that have a box, by name; boxes in the order of `REGION_NAMES`."""
    return {name: box for name, box in zip(REGION_NAMES, boxes, strict=True) if box is not None}


__all__ = [
    "FINDING_NOUNS",
    "MAX_KEYWORDS",
    "Keyword",
    "confidence_word",
    "keyword_text",
    "keywords_of_film",
    "keywords_text",
    "make_keyword",
    "middle_of",
    "region_boxes_by_name",
    "side_of_boxes",
    "side_of_map",
    "template_report",
    "template_sentence",
]
