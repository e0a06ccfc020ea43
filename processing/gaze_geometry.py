"""Letter-box geometry of a film, checks of gaze arrays, and the anatomical region of a point or a box.

Gaze, boxes and regions live in [0, 1] of the original image. The model sees a square: the film is resized with its
aspect ratio kept and centred between two bars. Here is the only place where one becomes the other, in both directions:

    square = offset + scale * original      (each axis on its own)

The scale follows the whole number of pixels the film was resized to, so gaze lands on the same pixel as the anatomy
under it even where rounding made the two axes differ by a fraction of a pixel.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .anatomy import REGION_NAMES
from .errors import InputError

# A coordinate that float32 arithmetic pushed this far over the edge still counts as on the edge.
EDGE_TOLERANCE = 1e-6
# No fixation lasts a minute; longer ones are milliseconds given for seconds.
MAX_FIXATION_SECONDS = 60.0
# A point this far (in [0, 1] of the image) outside every region is still named after the nearest one.
NEAREST_REGION_TOLERANCE = 0.05


@dataclass(frozen=True)
class LetterBox:
    """Where a film of `height` x `width` pixels lies inside a square of `size` x `size` pixels.

    Args:
        height (`int`): height of the original image in pixels, after its orientation tag was applied.
        width (`int`): width of the original image in pixels.
        size (`int`): side of the square in pixels.

    Raises:
        InputError: one of the three is smaller than 1.
    """

    height: int
    width: int
    size: int

    def __post_init__(self):
        if min(self.height, self.width, self.size) < 1:
            raise InputError(
                f"A letter-box needs an image and a square of at least 1 pixel; got an image of {self.width} x "
                f"{self.height} (width x height) and a square of side {self.size}."
            )

    @property
    def resized_height(self) -> int:
        return int(_resized_side(self.height, max(self.height, self.width), self.size))

    @property
    def resized_width(self) -> int:
        return int(_resized_side(self.width, max(self.height, self.width), self.size))

    @property
    def top(self) -> int:
        """Rows of padding above the film; the rest of the padding is below it."""
        return (self.size - self.resized_height) // 2

    @property
    def left(self) -> int:
        """Columns of padding on the viewer's left of the film; the rest of the padding is on the right."""
        return (self.size - self.resized_width) // 2

    def points_to_square(self, points) -> np.ndarray:
        """[`points_to_square`] for this one image; `points` is (..., 2) or (..., 3)."""
        return points_to_square(points, (self.height, self.width), self.size)

    def points_to_image(self, points) -> np.ndarray:
        """[`points_to_image`] for this one image; `points` is (..., 2) or (..., 3)."""
        return points_to_image(points, (self.height, self.width), self.size)

    def boxes_to_square(self, boxes) -> np.ndarray:
        """[`boxes_to_square`] for this one image; `boxes` is (..., 4)."""
        return boxes_to_square(boxes, (self.height, self.width), self.size)

    def boxes_to_image(self, boxes) -> np.ndarray:
        """[`boxes_to_image`] for this one image; `boxes` is (..., 4)."""
        return boxes_to_image(boxes, (self.height, self.width), self.size)


def _resized_side(side, long_side, size):
    # Integer arithmetic rounds half up, alike for ints and arrays, where float division would depend on the last bit.
    return np.maximum(1, (2 * size * side + long_side) // (2 * long_side))


def letterbox_affine(image_sizes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset from [0, 1] of the original images to [0, 1] of the square.

    Args:
        image_sizes: (..., 2) whole numbers, height and width of each original image in pixels.
        size (`int`): side of the square in pixels.

    Returns:
        `scale` and `offset`, each float64 (..., 2) in the order x, y.
    """
    image_sizes = np.asarray(image_sizes, dtype=np.int64)
    resized = _resized_side(image_sizes, image_sizes.max(axis=-1, keepdims=True), size)
    offset = (size - resized) // 2
    return resized[..., ::-1] / size, offset[..., ::-1] / size


def _affine_like(values: np.ndarray, image_sizes, size: int) -> tuple[np.ndarray, np.ndarray]:
    scale, offset = letterbox_affine(image_sizes, size)
    # (B, 2) sizes against (B, N, 2) points: give the affine the axes of the points.
    axes = tuple(range(scale.ndim - 1, values.ndim - 1))
    return np.expand_dims(scale, axes), np.expand_dims(offset, axes)


def points_to_square(points, image_sizes, size: int) -> np.ndarray:
    """Moves points from the original images onto the letter-boxed square.

    Args:
        points: (..., 2) x, y in [0, 1] of the original image, or (..., 3) with a duration, which passes through.
        image_sizes: (2,) height, width of the one image, or (B, 2) with points of shape (B, N, 2 or 3).
        size (`int`): side of the square in pixels.

    Returns:
        float64 array of the shape of `points`, x, y in [0, 1] of the square.
    """
    points = np.array(points, dtype=np.float64)
    scale, offset = _affine_like(points, image_sizes, size)
    points[..., :2] = offset + scale * points[..., :2]
    return points


def points_to_image(points, image_sizes, size: int) -> np.ndarray:
    """Exact inverse of [`points_to_square`]. A point in the padding comes out outside [0, 1]: nothing is clipped."""
    points = np.array(points, dtype=np.float64)
    scale, offset = _affine_like(points, image_sizes, size)
    points[..., :2] = (points[..., :2] - offset) / scale
    return points


def boxes_to_square(boxes, image_sizes, size: int) -> np.ndarray:
    """Moves boxes from the original images onto the letter-boxed square.

    Args:
        boxes: (..., 4) x0, y0, x1, y1 in [0, 1] of the original image.
        image_sizes: (2,) height, width of the one image, or (B, 2) with boxes of shape (B, N, 4).
        size (`int`): side of the square in pixels.

    Returns:
        float64 array of the shape of `boxes`, in [0, 1] of the square.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return points_to_square(corners, image_sizes, size).reshape(boxes.shape)


def boxes_to_image(boxes, image_sizes, size: int) -> np.ndarray:
    """Exact inverse of [`boxes_to_square`]. A box in the padding comes out outside [0, 1]: nothing is clipped."""
    boxes = np.asarray(boxes, dtype=np.float64)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return points_to_image(corners, image_sizes, size).reshape(boxes.shape)


def check_gaze(gaze, where: str = "gaze") -> np.ndarray:
    """Checks one image's recorded fixations.

    Args:
        gaze: (N, 3) array, tensor or nested list: x, y in [0, 1] of the original image and duration in seconds, in the
            order in which the reader made them.
        where (`str`): what the messages call this array, for example `"gaze of image 2"`.

    Returns:
        float32 (N, 3), N >= 1. Coordinates that rounding pushed over the edge by at most 1e-6 are put back on it.

    Raises:
        InputError: wrong shape, no fixation, a value that is not finite, a coordinate outside [0, 1], a duration that
            is not positive or longer than a minute. The message names the first such fixation, counting from 0.
    """
    try:
        # `tolist` takes tensors of any device, gradient or precision without importing torch here.
        array = np.asarray(gaze.tolist() if hasattr(gaze, "detach") else gaze, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where} is not an array of numbers ({error}); expected shape (N, 3): x, y in [0, 1] of the image and "
            "duration in seconds."
        ) from error
    if array.size == 0:
        raise InputError(f"{where} holds no fixation; give at least one, or None where there is no gaze.")
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(
            f"{where} has shape {array.shape}; expected (N, 3): x, y in [0, 1] of the image and duration in seconds."
        )

    x_or_y, duration = array[:, :2], array[:, 2]
    off_image = (x_or_y < -EDGE_TOLERANCE) | (x_or_y > 1 + EDGE_TOLERANCE)
    wrong = ~np.isfinite(array).all(axis=1) | off_image.any(axis=1)
    wrong |= ~(duration > 0) | (duration > MAX_FIXATION_SECONDS)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{where}, fixation {row} (counting from 0): {_gaze_fault(*array[row])}")
    array[:, :2] = x_or_y.clip(0.0, 1.0)
    return array.astype(np.float32)


def _gaze_fault(x: float, y: float, duration: float) -> str:
    for name, value in (("x", x), ("y", y)):
        if not np.isfinite(value):
            return f"{name} = {value:g} is not a number on the image; leave out samples without a position."
        if not -EDGE_TOLERANCE <= value <= 1 + EDGE_TOLERANCE:
            return (
                f"{name} = {value:g} is outside [0, 1] of the original image; pixel coordinates must be divided by the "
                "image's width and height, and fixations beside the film left out."
            )
    if not np.isfinite(duration):
        return f"duration = {duration:g} is not a number of seconds."
    if duration <= 0:
        return f"duration = {duration:g} s is not positive."
    return f"duration = {duration:g} s is longer than a minute; milliseconds must be divided by 1000."


def _region_boxes(regions) -> tuple[tuple[str, ...], np.ndarray]:
    if isinstance(regions, Mapping):
        return tuple(regions), np.asarray(list(regions.values()), dtype=np.float64).reshape(-1, 4)
    boxes = np.asarray(regions, dtype=np.float64)
    if boxes.shape != (len(REGION_NAMES), 4):
        raise InputError(
            f"Region boxes have shape {boxes.shape}; expected ({len(REGION_NAMES)}, 4) in the order of REGION_NAMES, "
            "or a mapping from region name to box."
        )
    return REGION_NAMES, boxes


def regions_of_points(points, regions) -> list[str | None]:
    """Names the anatomical region under each point.

    The smallest box that contains the point wins, so a lower zone wins over its lung. A point outside every box takes
    the nearest box if that is at most `NEAREST_REGION_TOLERANCE` away, else none: gaze on the abdomen or a film marker
    belongs to no region. Boxes that are empty or not finite are never chosen.

    Args:
        points: (N, 2) or (N, 3) x, y (and anything) in [0, 1] of the original image.
        regions: (17, 4) boxes x0, y0, x1, y1 in the order of `REGION_NAMES`, or a mapping from region name to box.

    Returns:
        `list[str | None]`: N region names.
    """
    names, boxes = _region_boxes(regions)
    points = np.asarray(points, dtype=np.float64)
    if len(points) == 0:
        return []
    x, y = points[:, 0, None], points[:, 1, None]
    x0, y0, x1, y1 = boxes.T  # (R,) each
    area = (x1 - x0) * (y1 - y0)
    usable = np.isfinite(boxes).all(axis=1) & (x1 > x0) & (y1 > y0)
    if not usable.any():
        return [None] * len(points)
    beside = np.maximum(np.maximum(x0 - x, x - x1), 0.0)  # (N, R)
    above_or_below = np.maximum(np.maximum(y0 - y, y - y1), 0.0)
    distance = np.where(usable, np.hypot(beside, above_or_below), np.inf)
    nearest = distance == distance.min(axis=1, keepdims=True)
    chosen = np.where(nearest, np.where(usable, area, np.inf), np.inf).argmin(axis=1)
    near_enough = distance.min(axis=1) <= NEAREST_REGION_TOLERANCE
    return [names[index] if near else None for index, near in zip(chosen, near_enough, strict=True)]


def region_of_point(x: float, y: float, regions) -> str | None:
    """[`regions_of_points`] for one point."""
    return regions_of_points([(x, y)], regions)[0]


def overlaps_with(box, boxes) -> np.ndarray:
    """Intersection over union of a box with each of several, 0 where they share nothing.

    Shapes: (4,), (K, 4) -> (K,).
    """
    box = np.asarray(box, dtype=np.float64)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    intersection = sides.clip(0.0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0.0).prod(axis=1)
    union = areas + (box[2:] - box[:2]).prod() - intersection
    return np.where(intersection > 0, intersection / np.where(union > 0, union, 1.0), 0.0)


def region_of_box(box, regions) -> str | None:
    """Names the anatomical region that a box fits best.

    The region of the largest intersection over union wins; of several that contain a small box this is the smallest, as
    for points. A box that overlaps no region is named after its centre, by the rule for points.

    Args:
        box: x0, y0, x1, y1 in [0, 1] of the original image.
        regions: as for [`regions_of_points`].
    """
    names, boxes = _region_boxes(regions)
    box = np.asarray(box, dtype=np.float64)
    overlap = overlaps_with(box, boxes)
    if overlap.max(initial=0.0) > 0:
        return names[int(overlap.argmax())]
    centre_x, centre_y = (box[:2] + box[2:]) / 2
    return region_of_point(centre_x, centre_y, regions)


__all__ = [
    "LetterBox",
    "boxes_to_image",
    "boxes_to_square",
    "check_gaze",
    "letterbox_affine",
    "overlaps_with",
    "points_to_image",
    "points_to_square",
    "region_of_box",
    "region_of_point",
    "regions_of_points",
]
