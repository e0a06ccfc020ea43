"""Saliency metrics: how well a map says where people looked, and how much of that is more than the centre.

A map is an (H, W) array over the whole image; fixations are (N, 2) or (N, 3) arrays whose first two columns are x, y
in [0, 1]. A fixation reads the pixel it falls into; the right and bottom edges belong to the last column and row.
Scores of an image without fixations are NaN: callers leave them out and count them.

The maps made of fixations here are exact Gaussian sums evaluated at pixel centres (no truncation, no border effects),
with the standard deviation given as a share of the image's width: one degree of visual angle is about 1/27 of the
width of a chest film read on a diagnostic display.
"""

import numpy as np

from ..errors import InputError

_EPSILON = np.finfo(np.float64).eps
ONE_DEGREE = 1 / 27


def pixel_indices(fixations, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the pixel each fixation falls into; positions off the image go to the nearest pixel."""
    points = np.asarray(fixations, dtype=np.float64)
    points = points.reshape(0, 2) if points.size == 0 else points[:, :2]
    if not np.isfinite(points).all():
        raise InputError("fixations: a position is not finite")
    columns = np.clip(np.floor(points[:, 0] * shape[1] + 1e-9), 0, shape[1] - 1).astype(np.int64)
    rows = np.clip(np.floor(points[:, 1] * shape[0] + 1e-9), 0, shape[0] - 1).astype(np.int64)
    return rows, columns


def density_map(
    fixations,
    shape: tuple[int, int],
    sigma: float = ONE_DEGREE,
    weights=None,
    aspect: float | None = None,
) -> np.ndarray:
    """Gaussian density of fixations on a pixel grid, shape (H, W), sum 1; uniform when there are none.

    Args:
        fixations: x, y in [0, 1].
        shape: height and width of the map in pixels.
        sigma: standard deviation as a share of the image's width.
        weights: one per fixation (durations, for a dwell map); None weighs them equally.
        aspect: width divided by height of the image; None takes it from `shape`.
    """
    points = np.asarray(fixations, dtype=np.float64)
    points = points.reshape(0, 2) if points.size == 0 else points[:, :2]
    weights = np.ones(len(points)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(points) == 0 or weights.sum() <= 0:
        return np.full(shape, 1 / (shape[0] * shape[1]))
    aspect = shape[1] / shape[0] if aspect is None else aspect
    x = (np.arange(shape[1]) + 0.5) / shape[1]
    y = (np.arange(shape[0]) + 0.5) / shape[0]
    across = np.exp(-0.5 * ((x - points[:, :1]) / sigma) ** 2)  # (N, W)
    down = np.exp(-0.5 * ((y - points[:, 1:2]) / (sigma * aspect)) ** 2)  # (N, H)
    density = (down * weights[:, None]).T @ across
    total = density.sum()
    return density / total if total > 0 else np.full(shape, 1 / (shape[0] * shape[1]))


def _probabilities(saliency: np.ndarray, name: str) -> np.ndarray:
    saliency = np.asarray(saliency, dtype=np.float64)
    if saliency.ndim != 2 or not np.isfinite(saliency).all():
        raise InputError(f"{name}: expected an (H, W) map of finite numbers, got shape {saliency.shape}")
    if (saliency < 0).any():
        raise InputError(f"{name}: negative values; a density is not negative")
    total = saliency.sum()
    return saliency / total if total > 0 else np.full(saliency.shape, 1 / saliency.size)


def nss(saliency: np.ndarray, fixations) -> float:
    """Normalised scanpath saliency: mean of the z-scored map (population deviation) at the fixations. Chance 0.

    A constant map scores 0.
    """
    values = nss_per_fixation(saliency, fixations)
    return float(values.mean()) if values.size else float("nan")


def nss_per_fixation(saliency: np.ndarray, fixations) -> np.ndarray:
    """z-score of the map at each fixation, shape (N,)."""
    saliency = np.asarray(saliency, dtype=np.float64)
    deviation = saliency.std()
    # A constant map has no deviation but that of rounding.
    if deviation <= 1e-12 * max(np.abs(saliency).max(), _EPSILON):
        return np.zeros(len(np.asarray(fixations)))
    return (saliency[pixel_indices(fixations, saliency.shape)] - saliency.mean()) / deviation


def cc(saliency: np.ndarray, reference: np.ndarray) -> float:
    """Pearson correlation of two maps of one shape; 0 when one of them is constant."""
    first = np.asarray(saliency, dtype=np.float64).ravel()
    second = np.asarray(reference, dtype=np.float64).ravel()
    first, second = first - first.mean(), second - second.mean()
    norm = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / norm) if norm > 1e-24 else 0.0


def kld(saliency: np.ndarray, reference: np.ndarray) -> float:
    """Kullback-Leibler divergence KL(reference || saliency) of two maps made densities, in nats. 0 = identical."""
    p, q = _probabilities(reference, "reference map"), _probabilities(saliency, "saliency map")
    return float(np.sum(p * np.log(p / (q + _EPSILON) + _EPSILON)))


def sim(saliency: np.ndarray, reference: np.ndarray) -> float:
    """Histogram intersection of two maps made densities. 1 = identical."""
    return float(np.minimum(_probabilities(saliency, "saliency map"), _probabilities(reference, "reference map")).sum())


def auc_judd(saliency: np.ndarray, fixations) -> float:
    """AUC-Judd: ROC area with the fixations as positives and the pixels nobody fixated as negatives.

    The area is the exact one, with a threshold at every value and ties counting half; code that puts thresholds at the
    fixated values only, and joins them by straight lines, gives more when fixations are few. No jitter is added: the
    result is a function of its inputs. Chance 0.5; NaN without fixations, or if every pixel is fixated.
    """
    saliency = np.asarray(saliency, dtype=np.float64)
    rows, columns = pixel_indices(fixations, saliency.shape)
    unfixated = np.ones(saliency.shape, dtype=bool)
    unfixated[rows, columns] = False
    if len(rows) == 0 or not unfixated.any():
        return float("nan")
    return float(auc_per_fixation(saliency, fixations, saliency[unfixated]).mean())


def auc_per_fixation(saliency: np.ndarray, fixations, negatives=None) -> np.ndarray:
    """ROC area of each fixation alone: share of negatives with a lower value, ties counting half; shape (N,).

    Args:
        saliency: (H, W) map.
        fixations: x, y in [0, 1].
        negatives: values that the fixation is set against; None takes every pixel of the map.
    """
    saliency = np.asarray(saliency, dtype=np.float64)
    values = saliency[pixel_indices(fixations, saliency.shape)]
    ordered = np.sort(saliency.ravel() if negatives is None else np.asarray(negatives, dtype=np.float64).ravel())
    if len(ordered) == 0:
        return np.full(len(values), np.nan)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return (below + not_above) / (2 * len(ordered))


def shuffled_auc(saliency: np.ndarray, fixations, other_fixations) -> float:
    """Shuffled AUC: fixations of this image against fixations of other images on the same map; ties count half.

    A map of nothing but the centre bias scores 0.5. NaN when either set is empty.
    """
    saliency = np.asarray(saliency, dtype=np.float64)
    values = auc_per_fixation(saliency, fixations, saliency[pixel_indices(other_fixations, saliency.shape)])
    return float(values.mean()) if values.size else float("nan")


def information_gain(saliency: np.ndarray, fixations, prior: np.ndarray) -> float:
    """Information gain over a prior density, in bits per fixation: mean log2 p(fixation) - log2 prior(fixation).

    Both maps are made densities on their pixels and must have one shape. Greater is better; 0 = no more than the prior.
    """
    values = information_gain_per_fixation(saliency, fixations, prior)
    return float(values.mean()) if values.size else float("nan")


def information_gain_per_fixation(saliency: np.ndarray, fixations, prior: np.ndarray) -> np.ndarray:
    """Bits gained over the prior at each fixation, shape (N,)."""
    p, q = _probabilities(saliency, "saliency map"), _probabilities(prior, "prior map")
    if p.shape != q.shape:
        raise InputError(f"prior map: shape {q.shape}; expected that of the saliency map, {p.shape}")
    where = pixel_indices(fixations, p.shape)
    return np.log2(p[where] + _EPSILON) - np.log2(q[where] + _EPSILON)


def conditional_scores(maps: np.ndarray, fixations, prior: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of next-fixation maps: one map per fixation, each made with the true fixations before it.

    Args:
        maps: (N, H, W) densities; map i predicts fixation i.
        fixations: (N, 2) or (N, 3), x, y in [0, 1].
        prior: (H, W) density that the gain is measured against.

    Returns:
        `cnss`, `cauc` and `cig_bits`, each of shape (N,).
    """
    maps = np.asarray(maps, dtype=np.float64)
    fixations = np.asarray(fixations, dtype=np.float64)
    if maps.ndim != 3 or len(maps) != len(fixations):
        raise InputError(f"maps: shape {maps.shape}; expected (N, H, W) with N = {len(fixations)} fixations")
    pairs = [(maps[i], fixations[i : i + 1]) for i in range(len(maps))]
    return {
        "cnss": np.array([nss_per_fixation(saliency, point)[0] for saliency, point in pairs]),
        "cauc": np.array([auc_per_fixation(saliency, point)[0] for saliency, point in pairs]),
        "cig_bits": np.array([information_gain_per_fixation(saliency, point, prior)[0] for saliency, point in pairs]),
    }
