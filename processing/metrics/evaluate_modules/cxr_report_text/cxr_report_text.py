"""Text metrics of chest X-ray reports under a named protocol: BLEU-1 to 4, ROUGE-L, CIDEr, METEOR."""

import datasets
import evaluate

from modeling_gaze2report.processing.metrics.reports import PROTOCOLS, report_statistics

_DESCRIPTION = """Text metrics of chest X-ray reports under a protocol that states cleaning, words, scorer and
aggregation. The same two reports give BLEU-4 of 0.33 or 0.52 depending only on the protocol: quote it with every
score.
"""
_CITATION = ""
_INPUTS = """
Args:
    predictions: reports, a list of texts.
    references: one reference report each, or a list of them.
    protocol: "raw", "r2gen-mimic", "r2gen-iu", "rexrank" or "cxrmate2".
    meteor: whether to run METEOR 1.5, which needs java.
Returns:
    bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider and, where it runs, meteor; protocol.
"""


class CxrReportText(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(self, predictions, references, protocol="raw", meteor=False):
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
        groups = [[group] if isinstance(group, str) else list(group) for group in references]
        skip = ["chexpert_rules"] if meteor else ["chexpert_rules", "meteor"]
        metrics, _ = report_statistics(predictions, groups, PROTOCOLS[protocol], skip)
        return {name: statistics.score() for name, statistics in metrics.items()} | {"protocol": protocol}
