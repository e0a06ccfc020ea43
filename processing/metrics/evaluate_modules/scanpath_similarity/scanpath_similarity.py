"""Similarity of predicted and recorded scanpaths: ScanMatch, MultiMatch, SED, STDE, DTW, region sequence."""

import datasets
import evaluate
import numpy as np

from modeling_gaze2report.processing.metrics.scanpaths import ScanpathMetrics

_DESCRIPTION = """Scanpath similarity with stated parameters: ScanMatch with and without duration (16 x 12 cells,
threshold 3.5, 50 ms bins), MultiMatch without simplification, string edit distance on 5 x 5 cells, scaled time delay
embedding, dynamic time warping in pixels, and a sequence score over 17 anatomical regions of the chest."""
_CITATION = ""
_INPUTS = """
Args:
    predictions: scanpaths, each a list of [x, y, duration] with x, y in [0, 1] of the image and duration in seconds.
    references: one recorded scanpath each.
    width: width of the images in pixels.
    height: height of the images in pixels.
Returns:
    the mean of each metric over the pairs it is defined on, and pairs, the number of pairs.
"""


class ScanpathSimilarity(evaluate.Metric):
    def _info(self):
        scanpath = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": scanpath, "references": scanpath}),
        )

    def _compute(self, predictions, references, width, height):
        metrics = ScanpathMetrics()
        scores = np.array([metrics(p, r, (width, height)) for p, r in zip(predictions, references, strict=True)])
        defined = np.isfinite(scores)
        means = np.where(defined, scores, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
        values = [float(mean) if some else None for mean, some in zip(means, defined.any(axis=0), strict=True)]
        return dict(zip(metrics.names, values, strict=True)) | {"pairs": len(scores)}
