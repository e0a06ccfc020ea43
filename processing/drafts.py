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
"""Choosing among drafts: how far a text contradicts what was seen on its film.

A language model's likeliest text leaves out what is rare or faint; drawn several times, it says different things of
the same film. The perception heads were taught findings alone and know them better, so they judge: of several drafts
the one that contradicts them least is kept. This is best-of-N selection with a verifier (Cobbe et al. 2021, arXiv
2110.14168); the verifier here is the model's own perception. Words, places and order are the language model's choice.

A contradiction is measured in nats of log-odds: what a text says of a finding costs nothing on the right side of that
finding's threshold, and on the wrong side as much as the calibrated log-odds lie away from the threshold's. Doubt costs
what a toss-up loses against the right side, at most log 2: it is never better than the right word, and far better than
a bold wrong one. An answer is judged by what its question asks for: presence, severity, side, zone, the view, a list.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .report_attributes import SEVERITIES, UNGRADED, VIEWS, question_kind, severity_of, side_of, view_of, zone_of
from .report_labels import FINDINGS, label_report, label_sentence
from .structured import MIDLINE_FINDINGS, middle_of, region_boxes_by_name, side_of_boxes

# In nats: a side or a zone that the box of the finding does not lie in; an answer to something else than was asked.
MISPLACED, BESIDE_THE_POINT = 2.0, 20.0
_YES_NO_RE = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
# What is called an opacity may have been seen as one of these.
_OPACITIES = ("Lung Opacity", "Consolidation", "Pneumonia", "Atelectasis")


@dataclass
class Seen:
    """What was seen on one film, as far as texts speak of it.

    Attributes:
        probabilities, thresholds: (14,), in the order of `FINDINGS`.
        boxes, region_boxes: (14, 4) and (17, 4), in one frame.
        severities: (14, 4) log probability of each of `SEVERITIES`; `None` where the model does not grade.
        views: (2,) log probability of each of `VIEWS`; `None` where the model does not tell them.
    """

    probabilities: Sequence[float]
    thresholds: Sequence[float]
    boxes: np.ndarray
    region_boxes: np.ndarray
    severities: np.ndarray | None = None
    views: np.ndarray | None = None

    @property
    def margins(self) -> dict[str, float]:
        """Log-odds of each finding beyond those of its threshold."""
        return dict(zip(FINDINGS, log_odds(self.probabilities) - log_odds(self.thresholds), strict=True))

    def place(self, name: str) -> tuple[str, str]:
        """The side that the middle of a finding's box lies on, and the zone of that lung nearest to it in height."""
        box, regions = self.boxes[FINDINGS.index(name)], region_boxes_by_name(self.region_boxes)
        side = side_of_boxes([box], middle_of(regions))

        def distance(zone: str) -> float:
            of_zone = regions[f"{side} {zone} lung zone"]
            return abs(of_zone[1] + of_zone[3] - box[1] - box[3])

        return side, min(("upper", "mid", "lower"), key=distance)


def said_in_report(report: str) -> dict[str, int]:
    """What a report says of each finding: 1 present, -1 perhaps, 0 absent or not a word of it."""
    return {name: label or 0 for name, label in label_report(report).items() if name != FINDINGS[0]}


def said_in_answer(question: str, answer: str) -> dict[str, int]:
    """What an answer says of the findings that it speaks of.

    It speaks of all of them where the question asks for a list; of what the question names where it begins with "Yes"
    or "No"; else of what it names itself.
    """
    if question_kind(question) == "list":
        return said_in_report(answer)
    closed, asked = _YES_NO_RE.match(answer), [one["name"] for one in label_sentence(question)]
    if closed and asked:
        return dict.fromkeys(asked, int(closed.group(1).lower() == "yes"))
    return {name: label for name, label in label_report(answer).items() if label is not None and name != FINDINGS[0]}


def contradiction(said: Mapping[str, int], probabilities: Sequence[float], thresholds: Sequence[float]) -> float:
    """How far a text lies from what was seen, in nats; 0 where it contradicts nothing.

    Args:
        said: 1 present, -1 perhaps or 0 absent, by finding.
        probabilities, thresholds: (14,), in the order of `FINDINGS`.
    """
    margins = dict(zip(FINDINGS, log_odds(probabilities) - log_odds(thresholds), strict=True))
    cost = 0.0
    for name, label in said.items():
        margin = float(margins[name])
        if label == -1:
            cost += math.log(2) - math.log1p(math.exp(-abs(margin)))
        elif (label == 1) != (margin >= 0):
            cost += abs(margin)
    return cost


def answer_contradiction(question: str, answer: str, seen: Seen) -> float:
    """How far an answer lies from what was seen, in nats; 0 where it contradicts nothing.

    What is asked decides what counts: of "How severe is the effusion?" the degree, not whether there is one. Where the
    model cannot tell, or the question is of no known kind, the findings that the answer speaks of count.
    """
    kind, asked = question_kind(question), [one["name"] for one in label_sentence(question)]
    if kind == "view" and seen.views is not None:
        return below_the_likeliest(seen.views, VIEWS, view_of(answer))
    if kind == "severity" and len(asked) == 1 and asked[0] not in UNGRADED and seen.severities is not None:
        degree = severity_of(answer)
        word = None if degree is None else SEVERITIES[degree]
        return below_the_likeliest(seen.severities[FINDINGS.index(asked[0])], SEVERITIES, word)
    if kind in ("side", "place") and len(asked) == 1 and asked[0] not in MIDLINE_FINDINGS:
        return misplacement(asked[0], answer, seen)
    if kind == "presence" and asked and not _YES_NO_RE.match(answer):
        return BESIDE_THE_POINT
    return contradiction(said_in_answer(question, answer), seen.probabilities, seen.thresholds)


def below_the_likeliest(log_probs: np.ndarray, names: Sequence[str], said: str | None) -> float:
    """By how much something is less probable than the likeliest of its kind."""
    return BESIDE_THE_POINT if said is None else float(log_probs.max() - log_probs[names.index(said)])


def misplacement(name: str, answer: str, seen: Seen) -> float:
    """How far an answer misplaces a finding; one that names both sides misplaces it on neither."""
    if name == "Lung Opacity":
        name = max(_OPACITIES, key=seen.margins.get)
    side, zone = side_of(answer), zone_of(answer)
    if side is None and zone is None:
        return BESIDE_THE_POINT
    true_side, true_zone = seen.place(name)
    return MISPLACED * ((side not in (None, "bilateral", true_side)) + (zone not in (None, true_zone)))


def log_odds(probabilities: Sequence[float]) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64).clip(1e-6, 1 - 1e-6)
    return np.log(probabilities) - np.log1p(-probabilities)


__all__ = ["Seen", "answer_contradiction", "contradiction", "said_in_answer", "said_in_report"]
