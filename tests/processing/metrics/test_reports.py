"""Report text metrics: equal to the libraries that papers use, and ordered as a clinician would."""

import json
import shutil

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.metrics import reports
from modeling_gaze2report.processing.metrics.ngrams import common_subsequence, count_grams
from modeling_gaze2report.processing.metrics.reports import PROTOCOLS, report_statistics

NO_METEOR = ["meteor"]
PREDICTIONS = ["The heart is normal in size. No effusion.", "Small left effusion.", "Lungs are clear"]
REFERENCES = [
    ["Heart size is normal. No pleural effusion."],
    ["There is a small left pleural effusion."],
    ["Clear lungs."],
]


def scores(predictions, references, protocol="raw", skip=NO_METEOR):
    metrics, unavailable = report_statistics(predictions, references, PROTOCOLS[protocol], skip)
    assert unavailable == {}
    return {name: statistics.score() for name, statistics in metrics.items()}


def coco(predictions, references):
    """BLEU-1 to 4, ROUGE-L and CIDEr of pycocoevalcap."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = {i: [text] for i, text in enumerate(predictions)}
    true = dict(enumerate(references))
    bleus, _ = bleu.Bleu(4).compute_score(true, said, verbose=0)
    return [*bleus, Rouge().compute_score(true, said)[0], Cider().compute_score(true, said)[0]]


@pytest.fixture(scope="module")
def open_i(request):
    """500 pairs of unrelated Open-i reports, on single lines."""
    from modeling_gaze2report.processing.metrics.studies import openi_reports

    shared_data = request.getfixturevalue("shared_data")
    texts = [" ".join(t.split()) for t in openi_reports(shared_data / "openi" / "NLMCXR_reports.tgz").values()]
    texts = [text for text in texts if text][:1000]
    return texts[:500], [[text] for text in texts[500:]]


@pytest.mark.shared
@pytest.mark.parametrize("protocol", ["raw", "r2gen-mimic", "r2gen-iu"])
def test_corpus_protocols_equal_pycocoevalcap_on_open_i(open_i, protocol):
    predictions, references = open_i
    chosen = PROTOCOLS[protocol]
    expected = coco(
        [" ".join(chosen.words(text)) for text in predictions],
        [[" ".join(chosen.words(text)) for text in group] for group in references],
    )

    ours = scores(predictions, references, protocol)

    names = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    assert [ours[name] for name in names] == pytest.approx(expected, abs=1e-12)


@pytest.mark.shared
def test_cxrmate2_rouge_equals_rouge_score_on_open_i(open_i):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    predictions, references = open_i
    pairs = zip(predictions, references, strict=True)
    expected = np.mean([scorer.score(group[0], text)["rougeL"].fmeasure for text, group in pairs])

    ours = scores(predictions, references, "cxrmate2")

    assert ours["rouge_l"] == pytest.approx(expected, abs=1e-12)


def test_several_references_equal_pycocoevalcap():
    references = [[*group, "The lungs are clear."] for group in REFERENCES]

    ours = scores(PREDICTIONS, references)

    expected = coco(PREDICTIONS, references)
    assert [ours[f"bleu_{n}"] for n in range(1, 5)] + [ours["rouge_l"], ours["cider"]] == pytest.approx(expected)


def test_rexrank_bleu_equals_nltk_per_report():
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    words = PROTOCOLS["rexrank"].words
    expected = np.mean(
        [
            bleu.sentence_bleu([words(group[0])], words(text), weights=(0.5, 0.5))
            for text, group in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
    )

    assert scores(PREDICTIONS, REFERENCES, "rexrank")["bleu_2"] == pytest.approx(expected)


def test_bleu_by_hand():
    # Three of four words, one of three word pairs; as long as the reference.
    result = scores(["the heart is big"], [["the heart looks big"]])

    assert result["bleu_1"] == pytest.approx(3 / 4)
    assert result["bleu_2"] == pytest.approx(np.sqrt(3 / 4 * 1 / 3))


# What the METEOR 1.5 jar prints for these pairs: statistics, a score for each, and the score of all.
METEOR_PAIRS = [
    ("the heart is normal in size . no effusion", "heart size is normal . there is no pleural effusion"),
    ("small right effusion is seen", "there is a small right pleural effusion"),
    ("lungs clear", "lungs are clear bilaterally"),
]
METEOR_STATISTICS = [
    [9, 10, 5, 5, 4, 4, 3, 3, *[0] * 12, 6, 7, 7],
    [5, 7, 1, 3, 3, 3, 1, 1, *[0] * 12, 3, 4, 4],
    [2, 4, 0, 1, 2, 2, 0, 0, *[0] * 12, 2, 2, 2],
]
METEOR_EACH = [0.32088171893298156, 0.29493026749867945, 0.2553191489361702]
METEOR_ALL = 0.2980795973422387


def test_meteor_scores_of_the_jars_statistics():
    statistics = np.array(METEOR_STATISTICS, dtype=float)

    assert reports.meteor_score(statistics) == pytest.approx(METEOR_EACH, abs=1e-12)
    assert reports.meteor_score(statistics.sum(axis=0)) == pytest.approx(METEOR_ALL, abs=1e-12)


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs java")
def test_meteor_of_reports_is_the_jars():
    pytest.importorskip("pycocoevalcap")
    whole, empty = ("a b c", "a b c"), ("", "a b")

    said, true = zip(*METEOR_PAIRS, whole, empty, strict=True)
    ours = reports.meteor_statistics(said, [[text] for text in true])["meteor"]

    assert reports.meteor_score(ours.values) == pytest.approx([*METEOR_EACH, 1, 0], abs=1e-12)
    assert reports.meteor_score(ours.values[:3].sum(axis=0)) == pytest.approx(METEOR_ALL, abs=1e-12)
    assert reports.meteor_score(ours.values[3:].sum(axis=0)) == pytest.approx(0.673076923076923, abs=1e-12)


def test_without_java_meteor_is_unavailable_and_not_zero(monkeypatch):
    monkeypatch.setattr(reports.shutil, "which", lambda name: None)

    metrics, unavailable = report_statistics(PREDICTIONS, REFERENCES, PROTOCOLS["raw"])

    assert "meteor" not in metrics
    assert "java" in unavailable["meteor"]


def test_r2gen_cleaning_drops_list_numbers_and_joins_decimals():
    text = '1. The heart, "mild"; is 4.5 cm.\n2. No x-ray / change (old).'

    assert " ".join(PROTOCOLS["r2gen-mimic"].words(text)) == "the heart mild is 45 cm . no x-ray change old ."


def test_references_can_be_cut_as_r2gen_does():
    from dataclasses import replace

    cut = replace(PROTOCOLS["raw"], max_reference_tokens=2)

    metrics, _ = report_statistics(["a b"], [["a b c d e"]], cut, NO_METEOR)

    assert metrics["bleu_1"].score() == pytest.approx(1)


def test_empty_predictions_are_scored_as_empty():
    for protocol in PROTOCOLS:
        result = scores(["", "Clear lungs."], [["No effusion."], ["Clear lungs."]], protocol)
        assert 0 < result["rouge_l"] < 1
        assert np.isfinite(result["bleu_4"])


def test_unicode_is_text_like_any_other():
    result = scores(["Herz normal groß – unauffällig 肺"], [["Herz normal groß – unauffällig 肺"]])

    assert result["bleu_4"] == pytest.approx(1)


def test_missing_references_are_named():
    with pytest.raises(InputError, match="prediction 1 has no reference"):
        report_statistics(["a", "b"], [["a"], []], PROTOCOLS["raw"])
    with pytest.raises(InputError, match="2 predictions and 1 references"):
        report_statistics(["a", "b"], [["a"]], PROTOCOLS["raw"])


def test_longest_common_subsequence_by_hand():
    assert common_subsequence(["a", "b", "c", "b", "d", "a", "b"], ["b", "d", "c", "a", "b", "a"]) == 4  # b c b a
    assert common_subsequence([], ["a"]) == 0


def test_grams_are_counted_within_texts_only():
    unigrams, bigrams = count_grams([["a", "b", "a", "b"], ["b", "a"]], max_n=2)

    assert unigrams.count.tolist() == [2, 2, 1, 1]
    assert sorted(bigrams.count[bigrams.text == 0].tolist()) == [1, 2]  # b a, a b
    assert bigrams.count[bigrams.text == 1].tolist() == [1]


# --- Findings in the text -------------------------------------------------------------------------------------


def f1(prediction, reference, size=14):
    tables = reports.label_table([prediction]), reports.label_table([reference])
    return reports.label_statistics("rules", *tables)[f"rules_micro_f1_{size}"].score()


@pytest.mark.shared
def test_divergence_examples_are_ordered_as_a_clinician_would(shared_data):
    path = shared_data / "metric_cases" / "radeval" / "divergence_examples.json"
    examples = json.loads(path.read_text(encoding="utf-8"))
    by_number = {example["id"]: f1(example["hyp"], example["ref"]) for example in examples}

    rewording, negation_flip, omission, invention, same, mismatch = (by_number[number] for number in range(1, 7))
    assert rewording == same == 1
    assert negation_flip == invention == mismatch == by_number[8] == 0
    assert negation_flip < omission < rewording


def test_word_overlap_orders_the_same_examples_the_wrong_way_round():
    flip = scores(["Pleural effusion."], [["No pleural effusion."]])["rouge_l"]
    rewording = scores(["The cardiac silhouette is mildly enlarged."], [["Mild cardiomegaly."]])["rouge_l"]

    assert flip > rewording  # why the labels are needed
    assert f1("Pleural effusion.", "No pleural effusion.") < f1(
        "The cardiac silhouette is mildly enlarged.", "Mild cardiomegaly."
    )


def test_both_conventions_for_uncertain_labels():
    said = reports.label_table(["Possible pneumonia."])
    true = reports.label_table(["Pneumonia."])

    statistics = reports.label_statistics("rules", said, true)

    assert statistics["rules_micro_f1_14"].score() == 0
    assert statistics["rules_micro_f1_14_uncertain_positive"].score() == 1


def test_macro_f1_leaves_out_classes_that_nobody_mentions():
    said = reports.label_table(["Pleural effusion. Edema.", "Pneumothorax."])
    true = reports.label_table(["Pleural effusion.", "Pneumothorax."])

    statistics = reports.label_statistics("rules", said, true)

    assert statistics["rules_macro_f1_14"].score() == pytest.approx(2 / 3)  # effusion 1, edema 0, pneumothorax 1
    assert statistics["rules_macro_f1_5"].score() == pytest.approx(1 / 2)  # effusion 1, edema 0
