"""F1 of 14 CheXpert-style labels that rules read from chest X-ray reports."""

import datasets
import evaluate

from modeling_gaze2report.processing.metrics.reports import label_statistics, label_table

_DESCRIPTION = """F1 of the 14 CheXpert findings between predicted and reference reports, micro and macro, over all 14
and the usual five. Labels are read by rules (mention, negation, uncertainty), not by a model: this is not CheXbert
F1.
"""
_CITATION = ""
_INPUTS = """
Args:
    predictions: reports, a list of texts.
    references: one reference report each.
Returns:
    chexpert_rules_micro_f1_14, chexpert_rules_macro_f1_14, chexpert_rules_micro_f1_5, chexpert_rules_macro_f1_5 with
    uncertain taken as negative, and the same with the ending _uncertain_positive.
"""


class ChexpertRulesF1(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references):
        metrics = label_statistics("chexpert_rules", label_table(predictions), label_table(references))
        return {name: statistics.score() for name, statistics in metrics.items()}
