"""Places: how well predicted boxes and heat maps agree with reference boxes.

Boxes are x0, y0, x1, y1 in one frame, [0, 1] of the original image unless said otherwise.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .reports import MetricUnavailable
from .resampling import Statistics, mean_statistics


def as_boxes(boxes, name: str = "boxes") -> np.ndarray:
    """Checks boxes and returns them as a float array of shape (N, 4); N may be 0.

    Raises:
        InputError: wrong shape, a value that is not finite, or a box whose right or bottom edge comes before its left
            or top one.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{name}: shape {array.shape}; expected (N, 4) with x0, y0, x1, y1")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: a value is not finite")
    bad = (array[:, 2] < array[:, 0]) | (array[:, 3] < array[:, 1])
    if bad.any():
        raise InputError(f"{name}: box {int(bad.argmax())} has x1 < x0 or y1 < y0; expected x0, y0, x1, y1")
    return array


def box_areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def pairwise_intersection(first, second) -> np.ndarray:
    """Area shared by each pair of boxes, shape (N, M)."""
    first, second = as_boxes(first), as_boxes(second)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def pairwise_iou(first, second) -> np.ndarray:
    """Intersection over union of each pair of boxes, shape (N, M); 0 where both have no area."""
    first, second = as_boxes(first), as_boxes(second)
    shared = pairwise_intersection(first, second)
    union = box_areas(first)[:, None] + box_areas(second)[None] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def union_area(boxes) -> float:
    """Area covered by at least one box, exact."""
    boxes = as_boxes(boxes)
    if len(boxes) == 0:
        return 0.0
    x, y = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    covered = np.zeros((len(y) - 1, len(x) - 1), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        covered[np.searchsorted(y, y0) : np.searchsorted(y, y1), np.searchsorted(x, x0) : np.searchsorted(x, x1)] = True
    return float((covered * np.diff(y)[:, None] * np.diff(x)[None]).sum())


def intersect_all(first, second) -> np.ndarray:
    """The boxes that pairs of boxes share, empty ones left out, shape (K, 4)."""
    first, second = as_boxes(first), as_boxes(second)
    low = np.maximum(first[:, None, :2], second[None, :, :2]).reshape(-1, 2)
    high = np.minimum(first[:, None, 2:], second[None, :, 2:]).reshape(-1, 2)
    return np.concatenate([low, high], axis=1)[(high > low).all(axis=1)]


def union_iou(predicted, reference) -> float:
    """Intersection over union of two *sets* of boxes taken as areas (the habit of MS-CXR for phrases with several
    boxes).

    1 when both are empty, 0 when one is.
    """
    predicted, reference = as_boxes(predicted, "predicted boxes"), as_boxes(reference, "reference boxes")
    if len(predicted) == 0 and len(reference) == 0:
        return 1.0
    shared = union_area(intersect_all(predicted, reference))
    union = union_area(predicted) + union_area(reference) - shared
    return shared / union if union > 0 else 0.0


def grounding_statistics(predicted: Sequence, reference: Sequence) -> dict[str, Statistics]:
    """`miou`, `hit_rate_iou_30` and `hit_rate_iou_50` over phrases.

    Args:
        predicted, reference: boxes of each phrase, several or none; areas are compared as in `union_iou`.
    """
    ious = np.array([union_iou(p, r) for p, r in zip(predicted, reference, strict=True)])
    return {
        "miou": mean_statistics("miou", ious),
        "hit_rate_iou_30": mean_statistics("hit_rate_iou_30", ious >= 0.3),
        "hit_rate_iou_50": mean_statistics("hit_rate_iou_50", ious >= 0.5),
    }


def supported_boxes(boxes, evidence, threshold: float = 0.5) -> np.ndarray:
    """RadFact's directional test: a box is supported if at least `threshold` of its area lies in the evidence boxes.

    Returns:
        one truth value a box, shape (N,). Unlike an IoU above one half, a small box inside a large one passes, and
        the large one in the small one does not.
    """
    boxes, evidence = as_boxes(boxes), as_boxes(evidence, "evidence boxes")
    areas = box_areas(boxes)
    covered = np.array([union_area(intersect_all(box[None], evidence)) for box in boxes])
    return (areas > 0) & (covered >= threshold * areas * (1 - 1e-12))


def spatial_entailment(
    predicted: Sequence, reference: Sequence, logically_entailed: Sequence[bool], threshold: float = 0.5
) -> dict[str, float]:
    """RadFact's three precisions of grounded sentences (Bannur et al. 2024, arXiv 2406.04449); swap roles for recall.

    Args:
        predicted: boxes of each predicted sentence; none for a sentence without boxes.
        reference: boxes of the reference sentences that are the evidence for it.
        logically_entailed: whether the evidence entails the sentence as text.
        threshold: as in `supported_boxes`.

    Returns:
        `logical` (entailed / all sentences), `grounding` (entailed with supported boxes / entailed with boxes) and
        `spatial` (entailed with supported boxes / all with boxes), with the three denominators; NaN where one is 0.
    """
    has_boxes = np.array([len(as_boxes(boxes)) > 0 for boxes in predicted], dtype=bool)
    entailed = np.asarray(logically_entailed, dtype=bool)
    if not len(predicted) == len(reference) == len(entailed):
        raise InputError("predicted, reference and logically_entailed: one value for each sentence is needed")
    supported = np.array(
        [
            has and bool(supported_boxes(boxes, evidence, threshold).all())
            for boxes, evidence, has in zip(predicted, reference, has_boxes, strict=True)
        ],
        dtype=bool,
    )
    grounded = entailed & has_boxes

    def share(hits: np.ndarray, of: np.ndarray) -> float:
        return float((hits & of).sum() / of.sum()) if of.any() else float("nan")

    everything = np.ones(len(entailed), dtype=bool)
    return {
        "logical": share(entailed, everything),
        "grounding": share(supported, grounded),
        "spatial": share(supported & entailed, has_boxes),
        "sentences": len(entailed),
        "entailed_with_boxes": int(grounded.sum()),
        "with_boxes": int(has_boxes.sum()),
    }


def pointing_game(heat_map, boxes, tolerance: float = 15 / 224) -> float:
    """Pointing game (Zhang et al. 2016): share of the map's maxima that lie in a box or within `tolerance` of one.

    Args:
        heat_map: (H, W) map over the image; ties count as all maxima.
        boxes: reference boxes in [0, 1].
        tolerance: distance as a share of the image's sides; 15 pixels of 224 by default.
    """
    rows, columns, shape = _maxima(heat_map)
    boxes = as_boxes(boxes)
    x, y = (columns + 0.5) / shape[1], (rows + 0.5) / shape[0]
    beside = np.maximum(np.maximum(boxes[:, 0] - x[:, None], x[:, None] - boxes[:, 2]), 0)
    above = np.maximum(np.maximum(boxes[:, 1] - y[:, None], y[:, None] - boxes[:, 3]), 0)
    return float((np.hypot(beside, above) <= tolerance).any(axis=1).mean()) if len(boxes) else float("nan")


def _maxima(heat_map) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    heat_map = np.asarray(heat_map, dtype=np.float64)
    if heat_map.ndim != 2 or heat_map.size == 0 or not np.isfinite(heat_map).all():
        raise InputError(f"heat map: shape {heat_map.shape}; expected (H, W) of finite numbers")
    rows, columns = np.nonzero(heat_map == heat_map.max())
    return rows, columns, heat_map.shape


def energy_in_boxes(heat_map, boxes) -> tuple[float, float]:
    """Share of a heat map that lies in the boxes, and chance level (the share of the image that the boxes cover).

    A pixel belongs to a box when its centre does. A map without heat has a share of 0.
    """
    heat_map = np.asarray(heat_map, dtype=np.float64)
    boxes = as_boxes(boxes)
    x, y = (
        (np.arange(heat_map.shape[1]) + 0.5) / heat_map.shape[1],
        (np.arange(heat_map.shape[0]) + 0.5) / heat_map.shape[0],
    )
    inside = np.zeros(heat_map.shape, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside |= ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))[None]
    total = heat_map.sum()
    return float(heat_map[inside].sum() / total) if total > 0 else 0.0, float(inside.mean())


def mean_average_precision(
    predicted: Sequence[Sequence[dict]],
    reference: Sequence[Sequence[dict]],
    thresholds: Sequence[float] = (0.4, 0.5),
) -> dict[str, float]:
    """Mean average precision by pycocotools, from records in memory.

    Args:
        predicted: for each image, `{"label", "box", "score"}` records; boxes in [0, 1].
        reference: for each image, `{"label", "box"}` records.
        thresholds: IoU thresholds to give beside the usual mean over 0.50:0.05:0.95.

    Returns:
        `map` (mean over 0.50:0.05:0.95) and `map_40`, `map_50` for the thresholds; classes without a reference box
        are left out, and counted in `classes`.

    Raises:
        MetricUnavailable: pycocotools is not installed, or there is no reference box.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MetricUnavailable("map", "needs pycocotools: pip install pycocotools") from error
    labels = sorted({record["label"] for image in reference for record in image})
    if not labels:
        raise MetricUnavailable("map", "there is no reference box")
    scale = 1000.0  # pycocotools sorts boxes into size classes by pixels; all of them count here
    annotations = _coco_records(reference, labels, scale)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(reference))],
        "categories": [{"id": i + 1, "name": label} for i, label in enumerate(labels)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        detections = _coco_records(predicted, labels, scale)
        found = truth.loadRes(detections) if detections else COCO()
        if not detections:
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.iouThrs = np.unique(np.round([*np.linspace(0.5, 0.95, 10), *thresholds], 6))
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, classes), all sizes, 100 a image
    per_threshold = np.array([row[row > -1].mean() if (row > -1).any() else np.nan for row in precision])
    usual = evaluation.params.iouThrs >= 0.5 - 1e-9
    result = {"map": float(per_threshold[usual].mean()), "classes": len(labels)}
    for threshold in thresholds:
        where = int(np.abs(evaluation.params.iouThrs - threshold).argmin())
        result[f"map_{round(100 * threshold)}"] = float(per_threshold[where])
    return result


def _coco_records(images: Sequence[Sequence[dict]], labels: list[str], scale: float) -> list[dict]:
    records = []
    for index, image in enumerate(images):
        boxes = as_boxes([record["box"] for record in image], f"image {index}")
        for record, (x0, y0, x1, y1) in zip(image, boxes * scale, strict=True):
            if record["label"] not in labels:
                continue
            area = (x1 - x0) * (y1 - y0)
            entry = {
                "id": len(records) + 1,
                "image_id": index + 1,
                "category_id": labels.index(record["label"]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area,
                "iscrowd": 0,
            }
            if "score" in record:
                entry["score"] = float(record["score"])
            records.append(entry)
    return records
