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
"""What texts say beside the presence of a finding: its severity and its place, the film's view; what questions ask for.

Severity is read into four degrees, as radiologists grade edema, effusions and the heart (after the regular expressions
of Horng et al. 2021, arXiv 2008.05975, for edema). A degree counts only where it can be meant for nothing else: one
degree in the sentence, and one finding asserted.
"""

import re

from .report_labels import POSITIVE, label_sentence, split_sentences

SEVERITIES: tuple[str, ...] = ("minimal", "mild", "moderate", "severe")
VIEWS: tuple[str, ...] = ("PA", "AP")
# What has no degree: reports do not say how severe a fracture or a tube is.
UNGRADED = ("No Finding", "Fracture", "Support Devices")

_SEVERITY_RE = re.compile(
    r"\b(?:(?P<minimal>minimal(?:ly)?|trace|tiny|very (?:small|mild)|slight(?:ly)?|subtle|faint)"
    r"|(?P<mild>mild(?:ly)?|small)"
    r"|(?P<moderate>moderate(?:ly)?)"
    r"|(?P<severe>severe(?:ly)?|marked(?:ly)?|large|massive|extensive))\b"
    # How far a fragment or a tube moved, or what changed since, is no degree of the finding.
    r"(?! (?:displaced|angulated|increased?|decreased?|improve[dm]\w*|worse\w*|larger|smaller))"
)
_SIDE_RE = re.compile(r"\b(?:(?P<bilateral>bilateral(?:ly)?|both|bibasilar)|(?P<right>right)|(?P<left>left))\b")
_ZONE_RE = re.compile(
    r"\b(?:(?P<upper>upper|apical|apex|apices)|(?P<mid>mid|middle|midlung|lingula\w*)"
    r"|(?P<lower>lower|bas(?:e|es|al|ilar)|bibasilar|retrocardiac))\b"
)
_VIEW_RE = re.compile(r"\b(?:(?P<PA>pa|postero-?anterior)|(?P<AP>ap|antero-?posterior))\b")

# Parts of one another: an opacity is what pneumonia and atelectasis look like.
_SAME = ({"Lung Opacity", "Pneumonia"}, {"Lung Opacity", "Consolidation"}, {"Lung Opacity", "Atelectasis"})


def _only(pattern: re.Pattern, text: str) -> str | None:
    """Name of the group that all matches are of; `None` where there is none, or several."""
    names = {match.lastgroup for match in pattern.finditer(text.lower())}
    return names.pop() if len(names) == 1 else None


def severity_of(text: str) -> int | None:
    """The degree of severity that a text speaks of, as a place in `SEVERITIES`; `None` for none or several."""
    name = _only(_SEVERITY_RE, text)
    return None if name is None else SEVERITIES.index(name)


def side_of(text: str) -> str | None:
    """The side that a text speaks of, "right", "left" (the patient's) or "bilateral"; `None` for none."""
    names = {match.lastgroup for match in _SIDE_RE.finditer(text.lower())}
    if not names:
        return None
    return names.pop() if len(names) == 1 else "bilateral"


def zone_of(text: str) -> str | None:
    """The part of the lung that a text speaks of, "upper", "mid" or "lower"; `None` for none or several."""
    return _only(_ZONE_RE, text)


def view_of(text: str) -> str | None:
    """The view that a text speaks of, one of `VIEWS`; `None` for none or several."""
    return _only(_VIEW_RE, text)


def severities_in_report(report: str) -> dict[str, int]:
    """The degree of severity of each finding that a report grades, as a place in `SEVERITIES`; where it grades one
    twice and differently, neither counts.
    """
    degrees: dict[str, set[int]] = {}
    for sentence in split_sentences(report):
        degree = severity_of(sentence)
        asserted = [one["name"] for one in label_sentence(sentence) if one["status"] == POSITIVE]
        if degree is not None and (len(asserted) == 1 or set(asserted) in _SAME):
            for name in asserted:
                degrees.setdefault(name, set()).add(degree)
    return {name: several.pop() for name, several in degrees.items() if len(several) == 1 and name not in UNGRADED}


def severities_in_answer(question: str, answer: str) -> dict[str, int]:
    """The degree of severity of the finding that a question asks it of, where the answer is one."""
    asked, degree = [one["name"] for one in label_sentence(question)], severity_of(answer)
    if degree is None or len(asked) != 1 or asked[0] in UNGRADED or question_kind(question) != "severity":
        return {}
    return {asked[0]: degree}


# -- what a question asks for -----------------------------------------------------------------------------------------

# The first pattern that fits says it; "Yes" or "No" answers a question of presence.
_QUESTIONS: tuple[tuple[str, re.Pattern], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("list", r"\b(?:what|which|list|name)\b.*\b(?:abnormalit(?:y|ies)|findings?|patholog(?:y|ies)|diagnos[ei]s)\b"),
        ("view", r"\b(?:pa or (?:an )?ap|ap or (?:a )?pa)\b|\b(?:which|what) (?:view|projection)\b"),
        (
            "severity",
            r"\bhow (?:severe|large|big|small|extensive|pronounced|marked|much)\b|\bseverity\b|\bdegree of\b",
        ),
        ("side", r"\b(?:which|what) (?:side|lung|hemithorax)\b|\b(?:left or right|right or left)\b"),
        ("place", r"^\W*where\b|\b(?:which|what) (?:part|zone|lobe|region|area)\b|\blocat(?:ed|ion)\b"),
        ("presence", r"^\W*(?:is|are|was|were|does|do|did|has|have|can|could)\b"),
    )
)
QUESTION_KINDS: tuple[str, ...] = (*(kind for kind, _ in _QUESTIONS), "other")


def question_kind(question: str) -> str:
    """What a question asks for, one of `QUESTION_KINDS`."""
    return next((kind for kind, pattern in _QUESTIONS if pattern.search(question)), "other")


__all__ = [
    "QUESTION_KINDS",
    "SEVERITIES",
    "UNGRADED",
    "VIEWS",
    "question_kind",
    "severities_in_answer",
    "severities_in_report",
    "severity_of",
    "side_of",
    "view_of",
    "zone_of",
]
