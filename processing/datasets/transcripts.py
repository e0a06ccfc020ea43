"""Timed transcripts to sentences, and sentences to the fixations behind them; report text to sections."""

import re

from ..errors import DataError

# The eye leads the voice: a sentence's fixations start this long before its first word (the interval GazeX uses).
LEAD_S = 2.0
_END = re.compile(r"[.!?]+$")


def sentences_of_words(words: list[tuple[str, float, float]], where: str) -> list[dict]:
    """Sentences of a timed transcript, cut at full stops.

    Args:
        words: (text, start_s, end_s) in the order of speech; punctuation may be words of its own.
        where: the file, for messages.

    Raises:
        DataError: times that go back.
    """
    sentences, current = [], []
    last = None
    for number, (text, start, end) in enumerate(words, start=1):
        if last is not None and start < last - 1e-6:
            raise DataError(
                f"{where}: word {number} ({text!r}) starts at {start:g} s, before the word in front of it at {last:g} s"
            )
        last = start
        current.append((text, start, end))
        if _END.search(text.strip()):
            sentences.append(current)
            current = []
    if current:
        sentences.append(current)
    result = []
    for words_of in sentences:
        spoken = [item for item in words_of if re.search(r"\w", item[0])]
        if not spoken:
            continue
        text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(word.strip() for word, _, _ in words_of))
        result.append(
            {"text": text[:1].upper() + text[1:], "start_s": spoken[0][1], "end_s": max(spoken[-1][2], spoken[0][1])}
        )
    return result


def fixations_of_sentence(fixations: list[dict], sentence: dict, lead_s: float = LEAD_S) -> list[int]:
    """Indices of the fixations that overlap a sentence's interval, which starts `lead_s` before its first word."""
    if sentence["start_s"] is None or sentence["end_s"] is None:
        return []
    start, end = sentence["start_s"] - lead_s, sentence["end_s"]
    return [
        k
        for k, fixation in enumerate(fixations)
        if fixation["onset_s"] is not None
        and fixation["onset_s"] < end
        and fixation["onset_s"] + fixation["duration_s"] > start
    ]


_HEADINGS = {
    "findings": "findings",
    "finding": "findings",
    "impression": "impression",
    "conclusion": "impression",
    "conclusions": "impression",
    "opinion": "impression",
    "indication": "indication",
    "history": "indication",
    "clinical history": "indication",
    "clinical information": "indication",
    "clinical indication": "indication",
    "reason for examination": "indication",
    "reason for exam": "indication",
    "reason for this examination": "indication",
    "comparison": "comparison",
    "comparisons": "comparison",
    "technique": "technique",
    "examination": "examination",
    "exam": "examination",
    "study": "examination",
    "wet read": "wet read",
    "recommendation": "recommendation",
    "recommendations": "recommendation",
    "notification": "notification",
    "addendum": "addendum",
    "final report": "title",
    "findings and impression": "findings",
    "findings/impression": "findings",
}
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Za-z/ ]{2,40}?)[ \t]*:", re.MULTILINE)


def report_sections(text: str) -> dict[str, str]:
    """Sections of a free-text report by its headings; a report without headings is all findings.

    MIMIC-CXR reports put the reading after the last heading's paragraph where they have no FINDINGS heading; that
    last paragraph is then the findings, as in the data set's own section tool.
    """
    found: dict[str, list[str]] = {}
    marks = [m for m in _HEADING.finditer(text) if m.group(1).strip().lower() in _HEADINGS]
    for k, mark in enumerate(marks):
        end = marks[k + 1].start() if k + 1 < len(marks) else len(text)
        body = re.sub(r"\s+", " ", text[mark.end() : end]).strip()
        name = _HEADINGS[mark.group(1).strip().lower()]
        if body:
            found.setdefault(name, []).append(body)
    sections = {name: " ".join(parts) for name, parts in found.items()}
    if "findings" not in sections and "impression" not in sections:
        start = marks[-1].end() if marks else 0
        paragraphs = [re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text[start:])]
        paragraphs = [p for p in paragraphs if p and p.upper() != "FINAL REPORT"]
        if paragraphs and (not marks or len(paragraphs) > 1):
            sections["findings"] = paragraphs[-1] if marks else " ".join(paragraphs)
    return sections


__all__ = ["LEAD_S", "fixations_of_sentence", "report_sections", "sentences_of_words"]
