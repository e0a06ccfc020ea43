"""Report text metrics under named protocols.

The same two reports give BLEU-4 of 0.33 or 0.52 depending only on how the text is cleaned, so a score without its
protocol says little. A `Protocol` states the cleaning, the tokens, the scorer and the aggregation; its settings are
stored with every score. Each metric is returned as cached statistics per report (`resampling.Statistics`), ready for
intervals and paired comparisons.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from ..errors import InputError
from ..report_labels import FINDINGS, label_report
from .ngrams import GramCounts, common_subsequence, count_grams, look_up, split_counts
from .resampling import Statistics, mean_statistics

References = Sequence[Sequence[str]]


class MetricUnavailable(Exception):
    """A metric cannot be computed here.

    Attributes:
        metric: its name.
        reason: why not, and what to install or give.
    """

    def __init__(self, metric: str, reason: str):
        super().__init__(f"{metric}: {reason}")
        self.metric = metric
        self.reason = reason


# --- Protocols ------------------------------------------------------------------------------------------------

_SPACES = re.compile(r"\s+")


def _single_spaces(text: str) -> str:
    return _SPACES.sub(" ", text).strip()


# R2Gen removes this character class; its ":-[" is a range in the expression, which is why "<=>@" go too and "-" stays.
_R2GEN_REMOVED = {
    ord(character): None
    for character in "\"/\\'.,?;*!%^&_+()]{}" + "".join(chr(code) for code in range(ord(":"), ord("[") + 1))
}


def _clean_r2gen(text: str, mimic: bool) -> str:
    """R2Gen's report cleaning: list numbers and punctuation dropped, sentences joined by " . ", lower case."""
    if mimic:
        text = re.sub(r" {2,}", " ", re.sub(r"_{2,}", "_", text.replace("\n", " ")))
    text = re.sub(r"\.{2,}", ".", text).replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = [sentence.strip().translate(_R2GEN_REMOVED) for sentence in text.strip().lower().split(". ")]
    return _single_spaces(" . ".join(sentences) + " .")


@dataclass(frozen=True)
class Protocol:
    """One way of turning two reports into a score.

    Attributes:
        name: what to call it.
        description: cleaning, tokens, scorers and aggregation, for people.
        clean: text to the text that is scored.
        tokenize: cleaned text to words.
        aggregation: "corpus" (sums over all reports, then the formula) or "mean" (mean of the reports' scores), for
        BLEU.
        smoothing: "coco" adds 1e-15 to n-gram matches, as pycocoevalcap; "none" scores a report without a match 0.
        rouge: "coco" (beta 1.2, on the protocol's words) or "rouge_score" (F1 with Porter stemming, as that library).
        reference_length: "closest" or "shortest" of several references, for BLEU's brevity penalty.
        max_reference_tokens: cut references to this many words; None keeps them whole.
    """

    name: str
    description: str
    clean: Callable[[str], str] = _single_spaces
    tokenize: Callable[[str], list[str]] = str.split
    aggregation: str = "corpus"
    smoothing: str = "coco"
    rouge: str = "coco"
    reference_length: str = "closest"
    max_reference_tokens: int | None = None

    def words(self, text: str, reference: bool = False) -> list[str]:
        words = self.tokenize(self.clean(text))
        return words[: self.max_reference_tokens] if reference else words

    def settings(self) -> dict:
        return {
            "protocol": self.name,
            "text": self.description,
            "bleu_aggregation": self.aggregation,
            "bleu_smoothing": self.smoothing,
            "bleu_reference_length": self.reference_length,
            "rouge_l": "COCO, beta 1.2" if self.rouge == "coco" else "rouge-score F1 with Porter stemming",
            "cider": "CIDEr-D, sigma 6, document frequencies of the references given",
            "max_reference_tokens": self.max_reference_tokens,
        }


def _tokenize_13a(text: str) -> list[str]:
    try:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    except ImportError as error:
        raise MetricUnavailable("bleu", "this protocol splits words with sacrebleu: pip install sacrebleu") from error
    return Tokenizer13a()(text).split()


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("raw", "text as it is, runs of white space made one space, split at spaces"),
        Protocol(
            "r2gen-mimic",
            "R2Gen's cleaning for MIMIC-CXR: lower case, list numbers and punctuation dropped, ' . ' between sentences",
            clean=lambda text: _clean_r2gen(text, mimic=True),
        ),
        Protocol(
            "r2gen-iu",
            "R2Gen's cleaning for IU X-ray: lower case, list numbers and punctuation dropped, ' . ' between sentences",
            clean=lambda text: _clean_r2gen(text, mimic=False),
        ),
        Protocol(
            "rexrank",
            "lower case, full stops set apart, split at spaces; BLEU is the mean of the reports' scores",
            clean=lambda text: _single_spaces(text.lower().replace(".", " .")),
            aggregation="mean",
            smoothing="none",
        ),
        Protocol(
            "cxrmate2",
            "text as it is, mteval-13a words; BLEU is the mean of the reports' scores; ROUGE-L by rouge-score, stemmed",
            tokenize=_tokenize_13a,
            aggregation="mean",
            smoothing="none",
            rouge="rouge_score",
            reference_length="shortest",
        ),
    )
}


# --- Metrics on words -----------------------------------------------------------------------------------------


def bleu_statistics(protocol: Protocol, hypotheses: Sequence[list[str]], references) -> dict[str, Statistics]:
    """BLEU-1 to BLEU-4.

    Args:
        protocol: decides aggregation, smoothing and reference length.
        hypotheses: words of each report.
        references: words of each report's references, a list of lists of words.
    """
    columns = _bleu_columns(hypotheses, references, protocol.reference_length)
    result = {}
    for n in range(1, 5):
        name = f"bleu_{n}"
        if protocol.aggregation == "corpus":
            result[name] = Statistics(name, columns, _BleuFinish(n, protocol.smoothing))
        else:
            result[name] = mean_statistics(name, _BleuFinish(n, protocol.smoothing)(columns))
    return result


def _bleu_columns(hypotheses, references, reference_length: str) -> np.ndarray:
    """Matches of n = 1..4, possible matches of n = 1..4, length, reference length; shape (n, 10)."""
    count = len(hypotheses)
    flat, owner = _flatten(references)
    columns = np.zeros((count, 10))
    for n, counts in enumerate(count_grams([*hypotheses, *flat])):
        hypothesis, reference = split_counts(counts, count)
        most = _most_in_references(reference, owner)
        matches = np.minimum(hypothesis.count, look_up(most, hypothesis.text, hypothesis.gram))
        columns[:, n] = np.bincount(hypothesis.text, weights=matches, minlength=count)
    lengths = np.array([len(words) for words in hypotheses])
    columns[:, 4:8] = np.maximum(lengths[:, None] - np.arange(4), 0)
    columns[:, 8] = lengths
    for i, candidates in enumerate(references):
        sizes = [len(words) for words in candidates]
        columns[i, 9] = (
            min(sizes) if reference_length == "shortest" else min(sizes, key=lambda s, i=i: (abs(s - lengths[i]), s))
        )
    return columns


def _flatten(references) -> tuple[list[list[str]], np.ndarray]:
    """All references in one list, and the report each belongs to."""
    return [words for group in references for words in group], np.repeat(
        np.arange(len(references)), [len(group) for group in references]
    )


def _most_in_references(reference: GramCounts, owner: np.ndarray) -> GramCounts:
    """For each report, the largest count of each n-gram over its references."""
    if len(reference.text) == 0:
        return reference
    keys = owner[reference.text] * reference.total + reference.gram
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], reference.count[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    unique = keys[starts]
    most = np.maximum.reduceat(counts, starts)
    return GramCounts(unique // reference.total, unique % reference.total, most, reference.total)


@dataclass(frozen=True)
class _BleuFinish:
    """Summed BLEU statistics (..., 10) to BLEU-n."""

    n: int
    smoothing: str

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        matches, possible, length, reference = (
            sums[..., : self.n],
            sums[..., 4 : 4 + self.n],
            sums[..., 8],
            sums[..., 9],
        )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.smoothing == "coco":
                precision = (matches + 1e-15) / (possible + 1e-9)
                ratio = (length + 1e-15) / (reference + 1e-9)
            else:
                precision = np.where(possible > 0, matches / np.maximum(possible, 1), 0.0)
                ratio = np.where(reference > 0, length / np.maximum(reference, 1), 1.0)
            penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
            return np.exp(np.log(precision).mean(axis=-1)) * penalty


def rouge_statistics(protocol: Protocol, hypotheses, references, texts: tuple | None = None) -> dict[str, Statistics]:
    """ROUGE-L, mean over reports, the best reference counting.

    Args:
        protocol: `protocol.rouge` chooses the scorer.
        hypotheses, references: words, as in `bleu_statistics`.
        texts: hypotheses and references as texts; needed by the rouge-score variant, which has its own words.
    """
    if protocol.rouge == "rouge_score":
        tokenize = _rouge_score_tokenizer()
        hypotheses = [tokenize(text) for text in texts[0]]
        references = [[tokenize(text) for text in group] for group in texts[1]]
    combine = _rouge_coco if protocol.rouge == "coco" else _rouge_f1
    scores = [combine(words, group) for words, group in zip(hypotheses, references, strict=True)]
    return {"rouge_l": mean_statistics("rouge_l", scores)}


def _rouge_coco(words: list[str], group: list[list[str]]) -> float:
    """Best precision and best recall over the references, combined with beta 1.2."""
    common = [common_subsequence(reference, words) for reference in group]
    precision = max(common) / max(len(words), 1)
    recall = max(c / max(len(reference), 1) for c, reference in zip(common, group, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def _rouge_f1(words: list[str], group: list[list[str]]) -> float:
    best = 0.0
    for reference in group:
        common = common_subsequence(reference, words)
        best = max(best, 2 * common / max(len(words) + len(reference), 1))
    return best


def _rouge_score_tokenizer() -> Callable[[str], list[str]]:
    try:
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise MetricUnavailable("rouge_l", "this protocol uses rouge-score: pip install rouge-score") from error
    return DefaultTokenizer(use_stemmer=True).tokenize


def cider_statistics(hypotheses, references) -> dict[str, Statistics]:
    """CIDEr-D (Vedantam et al. 2015) as in pycocoevalcap, mean over reports.

    Document frequencies come from the references given: below some 50 reports the value says little.
    """
    count = len(hypotheses)
    flat, owner = _flatten(references)
    log_count = np.log(float(count))
    per_pair = np.zeros(len(flat))
    all_counts = count_grams([*hypotheses, *flat])
    bigrams = [np.maximum(np.array([len(words) for words in texts]) - 1, 0) for texts in (hypotheses, flat)]
    penalty = np.exp(-((bigrams[0][owner] - bigrams[1]) ** 2) / (2 * 6.0**2)) if len(flat) else np.zeros(0)
    for counts in all_counts:
        hypothesis, reference = split_counts(counts, count)
        in_reports = np.unique(owner[reference.text] * counts.total + reference.gram) % counts.total
        frequency = np.bincount(in_reports, minlength=counts.total)
        weight = log_count - np.log(np.maximum(frequency, 1.0))
        in_hypothesis = hypothesis.count * weight[hypothesis.gram]
        in_reference = reference.count * weight[reference.gram]
        norm_hypothesis = np.sqrt(np.bincount(hypothesis.text, weights=in_hypothesis**2, minlength=count))
        norm_reference = np.sqrt(np.bincount(reference.text, weights=in_reference**2, minlength=len(flat)))
        same = look_up(hypothesis, owner[reference.text], reference.gram) * weight[reference.gram]
        product = np.bincount(reference.text, np.minimum(same, in_reference) * in_reference, minlength=len(flat))
        norm = norm_hypothesis[owner] * norm_reference
        per_pair += np.where(norm > 0, product / np.where(norm > 0, norm, 1), product) * penalty
    per_report = np.bincount(owner, weights=per_pair / len(all_counts), minlength=count)
    sizes = np.bincount(owner, minlength=count)
    return {"cider": mean_statistics("cider", 10 * per_report / sizes)}


# --- METEOR ---------------------------------------------------------------------------------------------------


def meteor_statistics(hypotheses: Sequence[str], references: References) -> dict[str, Statistics]:
    """METEOR 1.5 (the jar inside pycocoevalcap, English, `-norm`), from its statistics per report.

    Summed statistics give the corpus score that the jar itself prints; so do resampled sums.

    Raises:
        MetricUnavailable: there is no java, or pycocoevalcap is not installed.
    """
    if shutil.which("java") is None:
        raise MetricUnavailable("meteor", "METEOR 1.5 needs java on the PATH, which was not found: install a JRE")
    try:
        from pycocoevalcap.meteor.meteor import Meteor
    except ImportError as error:
        raise MetricUnavailable("meteor", "METEOR 1.5 comes with pycocoevalcap: pip install pycocoevalcap") from error
    scorer = Meteor()
    try:
        rows = []
        for hypothesis, group in zip(hypotheses, references, strict=True):
            line = scorer._stat(_meteor_line(hypothesis), [_meteor_line(reference) for reference in group])
            try:
                rows.append([float(value) for value in line.split()])
            except ValueError:
                rows.append([])
            if len(rows[-1]) != 23:
                raise MetricUnavailable("meteor", f"the METEOR jar answered {line!r} instead of statistics")
    finally:
        with contextlib.suppress(Exception):
            scorer.meteor_p.stdin.close()
            scorer.meteor_p.stdout.close()
            scorer.meteor_p.stderr.close()
    values = np.array(rows, dtype=np.float64).reshape(-1, 23)
    # A hypothesis matched whole and in one piece is not fragmented: the jar counts no chunk for it.
    whole = (values[:, 20] == 1) & (values[:, 21] == values[:, 0]) & (values[:, 22] == values[:, 1])
    values[whole, 20] = 0
    return {"meteor": Statistics("meteor", values, meteor_score)}


def _meteor_line(text: str) -> str:
    return _single_spaces(text.replace("|||", " "))


def meteor_score(sums: np.ndarray) -> np.ndarray:
    """METEOR 1.5 (Denkowski & Lavie 2014) of summed statistics (..., 23), with its English parameters.

    The columns are the jar's: lengths, function words, then content and function word matches of the exact, stem,
    synonym and paraphrase stages in hypothesis and reference, then chunks and matched words.
    """
    alpha, beta, gamma, delta = 0.85, 0.20, 0.60, 0.75
    weights = np.array([1.0, 0.6, 0.8, 0.6])
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)

    def share(side: int) -> np.ndarray:
        matched = (weights * (delta * stages[..., side] + (1 - delta) * stages[..., side + 2])).sum(axis=-1)
        function = sums[..., 2 + side]
        possible = delta * (sums[..., side] - function) + (1 - delta) * function
        return np.where(possible > 0, matched / np.where(possible > 0, possible, 1), 0.0)

    precision, recall = share(0), share(1)
    denominator = alpha * precision + (1 - alpha) * recall
    mean = np.where(denominator > 0, precision * recall / np.where(denominator > 0, denominator, 1), 0.0)
    matches = (sums[..., 21] + sums[..., 22]) / 2
    fragments = sums[..., 20] / np.where(matches > 0, matches, 1)
    return mean * (1 - gamma * fragments**beta)


# --- Findings in the text -------------------------------------------------------------------------------------

TOP_5: tuple[str, ...] = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")


def label_table(texts: Iterable[str], label: Callable[[str], dict] = label_report) -> np.ndarray:
    """Labels of texts, shape (n, 14): 1, 0, -1 (uncertain), NaN (not mentioned)."""
    rows = [[np.nan if value is None else value for value in label(text).values()] for text in texts]
    return np.array(rows, dtype=np.float64).reshape(-1, len(FINDINGS))


def label_statistics(prefix: str, hypothesis: np.ndarray, reference: np.ndarray) -> dict[str, Statistics]:
    """F1 of 14 labels in two conventions, micro and macro, over all 14 and over the usual five.

    Names without an ending take uncertain as negative (MAIRA, CXRMate); `_uncertain_positive` takes it as positive
    (f1chexbert). Not mentioned is negative. In a macro F1, a finding that is positive in neither text of any report
    has no F1 and is left out.

    Args:
        prefix: name of the labeler, such as `chexpert_rules`.
        hypothesis, reference: label tables of shape (n, 14), as from `label_table`.
    """
    result = {}
    top = [FINDINGS.index(name) for name in TOP_5]
    for ending, positives in (("", (1,)), ("_uncertain_positive", (1, -1))):
        said, true = np.isin(hypothesis, positives), np.isin(reference, positives)
        counts = np.stack([said & true, said & ~true, ~said & true], axis=2).astype(np.float64)  # (n, 14, 3)
        for size, columns in ((14, slice(None)), (5, top)):
            part = counts[:, columns]
            micro, macro = f"{prefix}_micro_f1_{size}{ending}", f"{prefix}_macro_f1_{size}{ending}"
            result[micro] = Statistics(micro, part.sum(axis=1), f1_of_counts)
            result[macro] = Statistics(macro, part.reshape(len(part), -1), macro_f1_of_counts)
    return result


def f1_of_counts(sums: np.ndarray) -> np.ndarray:
    """F1 of (..., 3) true positives, false positives, false negatives; NaN when all are 0."""
    denominator = 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]
    return np.where(denominator > 0, 2 * sums[..., 0] / np.where(denominator > 0, denominator, 1), np.nan)


def macro_f1_of_counts(sums: np.ndarray) -> np.ndarray:
    """Mean F1 of classes whose counts stand in (..., 3 * classes); classes without any count are left out."""
    scores = f1_of_counts(sums.reshape(*sums.shape[:-1], -1, 3))
    defined = np.isfinite(scores)
    count = defined.sum(axis=-1)
    return np.where(count > 0, np.where(defined, scores, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)


# --- All of them ----------------------------------------------------------------------------------------------


def report_statistics(
    predictions: Sequence[str],
    references: References,
    protocol: Protocol,
    skip: Sequence[str] = (),
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Statistics of every text metric that can run here.

    Args:
        predictions: one report each; empty ones are scored, as empty.
        references: one or more reference reports for each prediction. The labels are those of the first.
        protocol: one of `PROTOCOLS`, or your own.
        skip: metrics not to compute (`bleu`, `rouge_l`, `cider`, `meteor`, `chexpert_rules`).

    Returns:
        metrics by name, and the reason for each metric that could not run.

    Raises:
        InputError: no report, or not one group of references for each prediction.
    """
    if len(predictions) == 0:
        raise InputError("no prediction to score; at least one is needed")
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions and {len(references)} references; one each is needed")
    if not all(len(group) > 0 for group in references):
        raise InputError(f"prediction {next(i for i, g in enumerate(references) if not g)} has no reference")
    metrics: dict[str, Statistics] = {}
    unavailable: dict[str, str] = {}

    def add(family: str, compute: Callable[[], dict[str, Statistics]], names: Sequence[str]) -> None:
        if family in skip:
            return
        try:
            metrics.update(compute())
        except MetricUnavailable as error:
            unavailable.update(dict.fromkeys(names, error.reason))

    try:
        hypothesis_words = [protocol.words(text) for text in predictions]
        reference_words = [[protocol.words(text, reference=True) for text in group] for group in references]
    except MetricUnavailable as error:
        unavailable.update(dict.fromkeys(["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"], error.reason))
    else:
        add(
            "bleu",
            lambda: bleu_statistics(protocol, hypothesis_words, reference_words),
            ["bleu_1", "bleu_2", "bleu_3", "bleu_4"],
        )
        add(
            "rouge_l",
            lambda: rouge_statistics(protocol, hypothesis_words, reference_words, (predictions, references)),
            ["rouge_l"],
        )
        add("cider", lambda: cider_statistics(hypothesis_words, reference_words), ["cider"])
    add(
        "meteor",
        lambda: meteor_statistics(
            [" ".join(protocol.words(text)) for text in predictions],
            [[" ".join(protocol.words(text, reference=True)) for text in group] for group in references],
        ),
        ["meteor"],
    )
    add(
        "chexpert_rules",
        lambda: label_statistics(
            "chexpert_rules", label_table(predictions), label_table(group[0] for group in references)
        ),
        [],
    )
    return metrics, unavailable


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide values, where installed."""
    versions = {}
    for package in ("numpy", "pycocoevalcap", "rouge-score", "sacrebleu", "scikit-learn", "bert-score", "radeval"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
