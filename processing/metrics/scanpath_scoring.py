"""Scanpath and saliency metrics of a system over many images, and the human ceiling beside them.

Every prediction for an image is compared with every reader of it; the mean over these pairs is the image's score, and
the mean over images is the system's. For saliency, the fixations of all predictions of an image make its map. The
human ceiling is the same computation with each reader in the system's place and the other readers as the reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from ..errors import DataError
from .files import Scanpath
from .resampling import Bootstrap, Statistics, mean_statistics, score_all
from .saliency import (
    ONE_DEGREE,
    auc_judd,
    cc,
    density_map,
    information_gain,
    kld,
    nss,
    shuffled_auc,
    sim,
)
from .scanpaths import ScanpathMetrics

SALIENCY_NAMES = ("nss", "cc", "kld", "sim", "auc_judd", "sauc", "ig_bits")
LOWER_IS_BETTER = frozenset({"sed", "dtw", "kld"})
_NEED_DURATIONS = frozenset({"scanmatch_duration", "multimatch_duration", "region_sequence_duration"})


@dataclass(frozen=True)
class ScanpathScoring:
    """How scanpaths are scored; all of it is printed with the scores.

    Attributes:
        metrics: the scanpath metrics.
        map_shape: rows and columns of the saliency maps, which always cover the whole image.
        sigma: standard deviation of the Gaussian put on a fixation, as a share of the image's width.
        prior_weight: share of the centre-bias prior mixed into a map before its information gain is taken. A map of a
            few fixations rules most of the image out, and a single fixation there would cost any number of bits.
        negatives: fixations of other images that shuffled AUC is given, at most.
        seed: seed of the choice of these.
    """

    metrics: ScanpathMetrics = field(default_factory=ScanpathMetrics)
    map_shape: tuple[int, int] = (96, 96)
    sigma: float = ONE_DEGREE
    prior_weight: float = 0.2
    negatives: int = 2000
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.metrics.names, *SALIENCY_NAMES)

    def settings(self) -> dict:
        values = {key: value for key, value in asdict(self).items() if key != "metrics"}
        return {"scanpath_metrics": self.metrics.settings(), "saliency": values}


@dataclass
class ScanpathScores:
    """Scores per image.

    Attributes:
        images: names of the images.
        patients: patient of each image, or None.
        values: for each metric, one score an image; NaN where it is not defined.
        excluded_pairs: for each scanpath metric, the number of pairs it is not defined on.
        unavailable: metrics that could not be computed at all, with the reason.
    """

    images: list[str]
    patients: list[str] | None
    values: dict[str, np.ndarray]
    excluded_pairs: dict[str, int]
    unavailable: dict[str, str]

    def statistics(self) -> dict[str, Statistics]:
        return {
            name: mean_statistics(name, values, name.removesuffix("_best") not in LOWER_IS_BETTER)
            for name, values in self.values.items()
            if np.isfinite(values).any()
        }


class Prior:
    """Centre-bias density of an image: where readers look on all *other* images.

    Args:
        references: scanpaths to learn it from.
        scoring: map shape and sigma.
        leave_out: whether an image's own fixations are taken out of its prior. Set to False for scanpaths of other
            images than those scored (a training set).
    """

    def __init__(self, references: Sequence[Scanpath], scoring: ScanpathScoring, leave_out: bool = True):
        self._scoring = scoring
        self._leave_out = leave_out
        self._own: dict[str, np.ndarray] = {}
        self._points: dict[str, np.ndarray] = {}
        for image, group in group_by_image(references).items():
            points = np.concatenate([scanpath.fixations for scanpath in group])
            aspect = group[0].size[0] / group[0].size[1]
            self._points[image] = points
            self._own[image] = density_map(points, scoring.map_shape, scoring.sigma, aspect=aspect) * len(points)
        self._total = sum(self._own.values()) if self._own else np.zeros(scoring.map_shape)
        self._all_points = np.concatenate(list(self._points.values())) if self._points else np.zeros((0, 3))
        self._image_of_point = np.repeat(np.arange(len(self._points)), [len(p) for p in self._points.values()])
        self._index = {image: i for i, image in enumerate(self._points)}

    def density(self, image: str) -> np.ndarray:
        """Density with sum 1; a tenth of it is uniform, so that no place is impossible. Uniform when nothing is
        known.
        """
        total = self._total
        if self._leave_out and image in self._own:
            total = np.maximum(total - self._own[image], 0)
        uniform = np.full(total.shape, 1 / total.size)
        mass = total.sum()
        return 0.9 * total / mass + 0.1 * uniform if mass > 1e-9 else uniform

    def other_fixations(self, image: str) -> np.ndarray:
        """Fixations on other images, at most `negatives` of them, chosen by the seed."""
        keep = self._image_of_point != self._index.get(image, -1) if self._leave_out else slice(None)
        others = self._all_points[keep]
        if len(others) > self._scoring.negatives:
            generator = np.random.default_rng([self._scoring.seed, self._index.get(image, len(self._index))])
            others = others[generator.choice(len(others), self._scoring.negatives, replace=False)]
        return others


def group_by_image(scanpaths: Sequence[Scanpath]) -> dict[str, list[Scanpath]]:
    """Scanpaths of each image, in the order in which images first appear."""
    groups: dict[str, list[Scanpath]] = {}
    for scanpath in scanpaths:
        groups.setdefault(scanpath.image_id, []).append(scanpath)
    return groups


def saliency_scores(
    predicted: Sequence[np.ndarray],
    readers: Sequence[np.ndarray],
    aspect: float,
    prior: np.ndarray,
    others: np.ndarray,
    scoring: ScanpathScoring,
) -> np.ndarray:
    """Saliency metrics of one image in the order of `SALIENCY_NAMES`; NaN throughout when nobody looked at it."""
    truth = np.concatenate(readers)
    if len(truth) == 0:
        return np.full(len(SALIENCY_NAMES), np.nan)
    fixations = np.concatenate(predicted)
    saliency = density_map(fixations, scoring.map_shape, scoring.sigma, aspect=aspect)
    reference = density_map(truth, scoring.map_shape, scoring.sigma, aspect=aspect)
    weight = scoring.prior_weight if len(fixations) else 1.0
    mixed = (1 - weight) * saliency + weight * prior
    return np.array(
        [
            nss(saliency, truth),
            cc(saliency, reference),
            kld(saliency, reference),
            sim(saliency, reference),
            auc_judd(saliency, truth),
            shuffled_auc(saliency, truth, others),
            information_gain(mixed, truth, prior),
        ]
    )


def score_scanpaths(
    predictions: Sequence[Scanpath],
    references: Sequence[Scanpath],
    scoring: ScanpathScoring | None = None,
    prior: Prior | None = None,
    progress: Callable = lambda images: images,
) -> ScanpathScores:
    """Scores predicted scanpaths against those of readers.

    Args:
        predictions: any number of scanpaths an image (samples).
        references: one or more scanpaths an image (readers).
        scoring: parameters.
        prior: centre bias; by default learnt from `references`, leaving each image out of its own.
        progress: wraps the sequence of images, for a progress bar.

    Returns:
        scores per image, also `..._best` (the best reader counting) when images have several readers.

    Raises:
        DataError: the two do not have the same images; a reader appears twice on one image.
    """
    scoring = scoring or ScanpathScoring()
    truth, predicted = group_by_image(references), group_by_image(predictions)
    _check_images(predicted, truth)
    prior = prior or Prior(references, scoring)
    pair_names = scoring.metrics.names
    rows, best_rows, excluded = [], [], np.zeros(len(pair_names), dtype=np.int64)
    higher = np.array([name not in LOWER_IS_BETTER for name in pair_names])
    for image in progress(list(truth)):
        size = truth[image][0].size
        pairs = np.array(
            [
                [scoring.metrics(sample.fixations, reader.fixations, size) for reader in truth[image]]
                for sample in predicted[image]
            ]
        )  # (samples, readers, metrics)
        excluded += np.isnan(pairs).sum(axis=(0, 1))
        saliency = saliency_scores(
            [sample.fixations for sample in predicted[image]],
            [reader.fixations for reader in truth[image]],
            size[0] / size[1],
            prior.density(image),
            prior.other_fixations(image),
            scoring,
        )
        rows.append(np.concatenate([_nan_mean(pairs.reshape(-1, len(pair_names))), saliency]))
        sign = np.where(higher, 1, -1)
        best = _nan_max((pairs * sign).transpose(1, 0, 2)) * sign  # over readers, for each sample
        best_rows.append(_nan_mean(best))
    table, best_table = np.array(rows), np.array(best_rows)
    values = dict(zip(scoring.names, table.T, strict=True))
    if any(len(readers) > 1 for readers in truth.values()):
        values |= {f"{name}_best": column for name, column in zip(pair_names, best_table.T, strict=True)}
    excluded_pairs = dict(zip(pair_names, excluded.tolist(), strict=True))
    unavailable = {}
    if not all(scanpath.has_durations for scanpath in (*predictions, *references)):
        lacking = "predictions" if not all(s.has_durations for s in predictions) else "references"
        for name in list(values):
            if name.removesuffix("_best") in _NEED_DURATIONS:
                del values[name]
                unavailable[name] = f"the {lacking} have no durations; give T in every line"
    for name in [name for name, column in values.items() if not np.isfinite(column).any()]:
        del values[name]
        unavailable[name] = _why_undefined(name)
    patients = [readers[0].patient_id for readers in truth.values()]
    if any(patient is None for patient in patients):
        patients = None
    return ScanpathScores(list(truth), patients, values, excluded_pairs, unavailable)


def _why_undefined(name: str) -> str:
    if name.startswith("multimatch"):
        return "not defined on any pair: it needs at least three fixations in both scanpaths"
    if name == "sauc":
        return "not defined: it needs fixations on other images"
    return "not defined on any image: there were no fixations to compare"


def _check_images(predicted: dict, truth: dict) -> None:
    missing = [image for image in truth if image not in predicted]
    unknown = [image for image in predicted if image not in truth]
    for images, what in ((missing, "without a prediction"), (unknown, "predicted but without a reference")):
        if images:
            raise DataError(f"{len(images)} images {what}, first {images[0]!r}; both files must have the same images")
    for image, readers in truth.items():
        names = [reader.reader_id for reader in readers if reader.reader_id is not None]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise DataError(f"image {image!r}: reader {min(repeated)!r} appears twice in the reference; expected once")
        sizes = {reader.size for reader in (*readers, *predicted[image])}
        if len(sizes) > 1:
            raise DataError(f"image {image!r}: different sizes {sorted(sizes)}; expected one width and height")


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axes but the last, leaving NaN out; NaN where nothing is left."""
    values = values.reshape(-1, values.shape[-1])
    defined = np.isfinite(values)
    count = defined.sum(axis=0)
    return np.where(count > 0, np.where(defined, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _nan_max(values: np.ndarray) -> np.ndarray:
    """Maximum over the first axis, leaving NaN out; NaN where nothing is left."""
    largest = np.where(np.isfinite(values), values, -np.inf).max(axis=0)
    return np.where(np.isfinite(largest), largest, np.nan)


def human_ceiling(
    references: Sequence[Scanpath],
    scoring: ScanpathScoring | None = None,
    prior: Prior | None = None,
    progress: Callable = lambda images: images,
) -> ScanpathScores | None:
    """How well readers predict each other: each in turn is the prediction, the others are the reference.

    Information gain and the other saliency metrics turn this round: the map is made of the other readers, and says
    where this reader looks. Scores are means over readers, then over images.

    Returns:
        scores of the images with at least two readers, or None when there are none.
    """
    scoring = scoring or ScanpathScoring()
    prior = prior or Prior(references, scoring)
    groups = {image: readers for image, readers in group_by_image(references).items() if len(readers) > 1}
    if not groups:
        return None
    pair_names = scoring.metrics.names
    rows, excluded = [], np.zeros(len(pair_names), dtype=np.int64)
    for image in progress(list(groups)):
        readers = [reader.fixations for reader in groups[image]]
        size = groups[image][0].size
        pairs = np.array(
            [
                [scoring.metrics(readers[i], readers[j], size) for j in range(len(readers)) if j != i]
                for i in range(len(readers))
            ]
        )
        excluded += np.isnan(pairs).sum(axis=(0, 1))
        density, others = prior.density(image), prior.other_fixations(image)
        saliency = np.array(
            [
                saliency_scores(
                    [other for j, other in enumerate(readers) if j != i],
                    [readers[i]],
                    size[0] / size[1],
                    density,
                    others,
                    scoring,
                )
                for i in range(len(readers))
            ]
        )
        rows.append(np.concatenate([_nan_mean(pairs), _nan_mean(saliency)]))
    values = {
        name: column for name, column in zip(scoring.names, np.array(rows).T, strict=True) if np.isfinite(column).any()
    }
    if not all(reader.has_durations for reader in references):
        values = {name: column for name, column in values.items() if name not in _NEED_DURATIONS}
    patients = [readers[0].patient_id for readers in groups.values()]
    return ScanpathScores(
        list(groups),
        None if any(patient is None for patient in patients) else patients,
        values,
        dict(zip(pair_names, excluded.tolist(), strict=True)),
        {},
    )


def ceiling_section(ceiling: ScanpathScores | None, bootstrap: Bootstrap) -> dict:
    """The section of `Results.extra` with the scores of a [`human_ceiling`]; empty where there is none."""
    if ceiling is None:
        return {}
    return {
        "human_ceiling": {
            "n": len(ceiling.images),
            "method": "each reader against the other readers of the image, mean over readers, then images",
            "metrics": score_all(ceiling.statistics(), bootstrap, ceiling.patients),
        }
    }


def centroid_statistics(predictions: Sequence[Scanpath], references: Sequence[Scanpath]) -> dict[str, Statistics]:
    """Agreement of gaze centroids over images as in GazeX: `centroid_icc_x`, `centroid_icc_y`, `centroid_cosine`.

    The centroid of an image is the mean of all fixations on it. The intraclass correlation is ICC(2,1), two-way random
    effects, absolute agreement (Shrout & Fleiss 1979), here from sums, so that it can be resampled.
    """
    truth, predicted = group_by_image(references), group_by_image(predictions)
    pairs = []
    for image in truth:
        ours = np.concatenate([scanpath.fixations for scanpath in predicted[image]])
        theirs = np.concatenate([scanpath.fixations for scanpath in truth[image]])
        if len(ours) and len(theirs):
            pairs.append((ours[:, :2].mean(axis=0), theirs[:, :2].mean(axis=0)))
        else:
            pairs.append((np.full(2, np.nan), np.full(2, np.nan)))
    first, second = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    defined = np.isfinite(first).all(axis=1)
    result = {}
    for axis, letter in enumerate("xy"):
        a, b = np.where(defined, first[:, axis], 0), np.where(defined, second[:, axis], 0)
        sums = np.stack([defined.astype(np.float64), a, b, a * a, b * b, a * b], axis=1)
        result[f"centroid_icc_{letter}"] = Statistics(f"centroid_icc_{letter}", sums, _icc_of_sums)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore"):
        cosine = np.where(norms > 0, (first * second).sum(axis=1) / np.where(norms > 0, norms, 1), np.nan)
    result["centroid_cosine"] = mean_statistics("centroid_cosine", cosine)
    return {name: statistics for name, statistics in result.items() if np.isfinite(statistics.score())}


def _icc_of_sums(sums: np.ndarray) -> np.ndarray:
    """ICC(2,1) of two raters from n, sum a, sum b, sum a^2, sum b^2, sum ab; NaN below two targets or without
    spread.
    """
    n, a, b, aa, bb, ab = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (a + b) / (2 * n)
        rows = 2 * ((aa + bb + 2 * ab) / 4 - n * mean**2) / (n - 1)
        columns = n * ((a / n - mean) ** 2 + (b / n - mean) ** 2)
        error = (aa + bb - 2 * n * mean**2 - rows * (n - 1) - columns) / (n - 1)
        denominator = rows + error + 2 * (columns - error) / n
        return np.where((n > 1) & (denominator > 1e-15), (rows - error) / denominator, np.nan)
