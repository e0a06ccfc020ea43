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
a bold wrong one.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from .report_labels import FINDINGS, label_report, label_sentence

_CLOSED_RE = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_LISTING_RE = re.compile(
    r"\b(what|which|list|name)\b.*\b(abnormalit(y|ies)|findings?|patholog(y|ies)|diagnos[ei]s)\b", re.IGNORECASE
)


def said_in_report(report: str) -> dict[str, int]:
    """What a report says of each finding: 1 present, -1 perhaps, 0 absent or not a word of it."""
    return {name: label or 0 for name, label in label_report(report).items() if name != FINDINGS[0]}


def said_in_answer(question: str, answer: str) -> dict[str, int]:
    """What an answer says of the findings that it speaks of.

    It speaks of all of them where the question asks for a list; of what the question names where it begins with "Yes"
    or "No"; else of what it names itself.
    """
    if _LISTING_RE.search(question):
        return said_in_report(answer)
    closed, asked = _CLOSED_RE.match(answer), [one["name"] for one in label_sentence(question)]
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


def log_odds(probabilities: Sequence[float]) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64).clip(1e-6, 1 - 1e-6)
    return np.log(probabilities) - np.log1p(-probabilities)


__all__ = ["contradiction", "said_in_answer", "said_in_report"]
