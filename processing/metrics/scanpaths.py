"""Similarity of two scanpaths, with every parameter explicit.

Scores of different papers differ by parameters that are seldom stated (a 16 x 12 or an 8 x 6 grid moves ScanMatch by
half its range). Here a metric is a small object: its fields are its parameters, `settings()` prints them, and calling
it compares two scanpaths. A scanpath is an (N, 3) array of x, y in [0, 1] of the image and duration in seconds;
`size` is the image's width and height in pixels. A comparison that a metric does not define is NaN: callers leave it
out and count it.
"""

from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np

from ..anatomy import REGION_NAMES, REGIONS
from ..errors import InputError
from ..gaze_geometry import regions_of_points

Size = tuple[float, float]


def as_scanpath(fixations, name: str = "scanpath") -> np.ndarray:
    """Checks a scanpath and returns it as a float array of shape (N, 3).

    Args:
        fixations: x, y in [0, 1] of the image and duration in seconds, one row a fixation; N may be 0.
        name: what to call it in an error.

    Raises:
        InputError: wrong shape, a value that is not finite, a negative duration, pixels where fractions are meant (most
            positions beyond 2), or milliseconds where seconds are meant (median duration above 10).
    """
    array = np.asarray(fixations, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 3))
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(f"{name}: shape {array.shape}; expected (N, 3) with x, y in [0, 1] and duration in seconds")
    low, high = array.min(), array.max()
    if low >= 0 and high <= 2:  # the usual case, decided in two passes; NaN fails both comparisons
        return array
    if not np.isfinite(array).all():
        raise InputError(f"{name}: row {int(np.argmin(np.isfinite(array).all(1)))} has a value that is not finite")
    if (array[:, 2] < 0).any():
        raise InputError(f"{name}: row {int(np.argmax(array[:, 2] < 0))} has a negative duration")
    if np.median(np.abs(array[:, :2])) > 2:
        raise InputError(f"{name}: positions look like pixels; divide x by the image's width and y by its height")
    if np.median(array[:, 2]) > 10:
        raise InputError(f"{name}: durations look like milliseconds; they must be in seconds")
    return array


def grid_cells(fixations: np.ndarray, bins: tuple[int, int]) -> np.ndarray:
    """Column and row of the cell each fixation falls into, shape (N, 2); positions off the image go to the nearest
    cell.

    The right and bottom edges belong to the last cells. A position within 1e-9 of a cell's border counts as reached,
    so that pixels divided by a width land where the pixels would.
    """
    cells = np.floor(fixations[:, :2] * bins + 1e-9)
    return np.minimum(np.maximum(cells, 0), np.subtract(bins, 1)).astype(np.int64)


def alignment_table(substitution: np.ndarray, gap: float) -> np.ndarray:
    """Needleman-Wunsch scores F of all prefixes, shape (n + 1, m + 1).

    Args:
        substitution: score of aligning item i of one sequence with item j of the other, shape (n, m).
        gap: score of aligning an item with nothing.
    """
    n, m = substitution.shape
    if n > m:  # the loop runs over the shorter sequence
        return alignment_table(substitution.T, gap).T
    # H[i, j] = F[i, j] - G (i + j) turns gaps into free steps: H[i, j] is the running maximum of the row above and of
    # the diagonal plus S - 2 G.
    gains = substitution - 2 * gap if gap else substitution
    table = np.zeros((n + 1, m + 1))
    add, larger, running = np.add, np.maximum, np.maximum.accumulate
    above = table[0]
    for gain, inner, row in zip(gains, table[1:, 1:], table[1:], strict=True):
        add(above[:-1], gain, inner)
        larger(row, above, out=row)
        running(row, 0, None, row)
        above = row
    if gap:
        table += gap * (np.arange(n + 1)[:, None] + np.arange(m + 1))
    return table


def cheapest_path(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Cheapest monotone path through a cost matrix from its first to its last cell (steps right, down, diagonal).

    Returns:
        row indices, column indices, sum of the costs on the path (the first cell included). Among equals the diagonal
        wins.
    """
    rows = cost.tolist()
    n, m = len(rows), len(rows[0])
    total = [[0.0] * m for _ in range(n)]
    running = 0.0
    for j in range(m):
        running += rows[0][j]
        total[0][j] = running
    for i in range(1, n):
        above, current, row = total[i - 1], total[i], rows[i]
        left = above[0] + row[0]
        current[0] = left
        diagonal = above[0]
        for j in range(1, m):
            up = above[j]
            best = diagonal if diagonal <= up else up
            left = row[j] + (best if best <= left else left)
            current[j] = left
            diagonal = up
    i, j = n - 1, m - 1
    path_rows, path_columns = [i], [j]
    while i or j:
        if i and j:
            diagonal, up, left = total[i - 1][j - 1], total[i - 1][j], total[i][j - 1]
            if diagonal <= up and diagonal <= left:
                i, j = i - 1, j - 1
            elif up <= left:
                i -= 1
            else:
                j -= 1
        elif i:
            i -= 1
        else:
            j -= 1
        path_rows.append(i)
        path_columns.append(j)
    return np.array(path_rows[::-1]), np.array(path_columns[::-1]), total[-1][-1]


@dataclass(frozen=True)
class ScanMatch:
    """ScanMatch (Cristino, Mathot, Theeuwes & Gilchrist 2010): global alignment of the cells looked at. 1 = identical.

    Two cells score `threshold` minus their distance in cells; gaps score `gap`; the best score of the alignment table
    is divided by the best possible one. With durations, a fixation is repeated round(duration / `duration_bin_s`)
    times.

    Attributes:
        bins: columns and rows of the grid.
        threshold: score of two equal cells, in cells.
        gap: score of a gap.
        duration_bin_s: seconds per repetition; None leaves durations out.
    """

    bins: tuple[int, int] = (16, 12)
    threshold: float = 3.5
    gap: float = 0.0
    duration_bin_s: float | None = None
    higher_is_better: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "scanmatch" if self.duration_bin_s is None else "scanmatch_duration"

    def settings(self) -> dict:
        return asdict(self)

    def repetitions(self, fixations: np.ndarray) -> np.ndarray | None:
        """How often each fixation's cell is repeated, shape (N,); None for once each."""
        if self.duration_bin_s is None:
            return None
        return np.round(fixations[:, 2] / self.duration_bin_s).astype(np.int64)

    def cells(self, fixations: np.ndarray) -> np.ndarray:
        """The sequence of cells (column, row) that is aligned, shape (L, 2)."""
        cells, repetitions = grid_cells(fixations, self.bins), self.repetitions(fixations)
        return cells if repetitions is None else np.repeat(cells, repetitions, axis=0)

    def __call__(self, predicted, reference, size: Size | None = None) -> float:
        """Score of two scanpaths; NaN when neither has anything to align. `size` is not used."""
        first, second = as_scanpath(predicted), as_scanpath(reference)
        cells1, cells2 = grid_cells(first, self.bins), grid_cells(second, self.bins)
        across = cells1[:, None, 0] - cells2[:, 0]
        down = cells1[:, None, 1] - cells2[:, 1]
        substitution = self.threshold - np.sqrt(across * across + down * down)
        if self.duration_bin_s is not None:
            substitution = substitution.repeat(self.repetitions(first), axis=0)
            substitution = substitution.repeat(self.repetitions(second), axis=1)
        longest = max(substitution.shape)
        if longest == 0:
            return float("nan")
        if min(substitution.shape) == 0:
            return 0.0
        return float(alignment_table(substitution, self.gap).max() / (self.threshold * longest))


MULTIMATCH_DIMENSIONS = ("shape", "direction", "length", "position", "duration")


@dataclass(frozen=True)
class MultiMatch:
    """MultiMatch (Dewhurst et al. 2012): five similarities of two scanpaths seen as chains of saccades. 1 = identical.

    Saccades are aligned along the cheapest path through the matrix of vector differences; each similarity is a median
    along it. Simplification merges saccades that turn little or are short; it is off unless thresholds are given, as
    in nearly all papers on predicted scanpaths. Only the diagonal of `size` matters. Scanpaths of fewer than three
    fixations give NaN.

    Attributes:
        direction_degrees: merge consecutive saccades that turn by less than this.
        amplitude_px: merge saccades shorter than this, in pixels.
        duration_s: only across fixations shorter than this.
    """

    direction_degrees: float = 0.0
    amplitude_px: float = 0.0
    duration_s: float = 0.0
    name: ClassVar[str] = "multimatch"
    higher_is_better: ClassVar[bool] = True

    def settings(self) -> dict:
        return asdict(self)

    def __call__(self, predicted, reference, size: Size) -> np.ndarray:
        """Similarity in shape, direction, length, position and duration (`MULTIMATCH_DIMENSIONS`), shape (5,)."""
        first, second = as_scanpath(predicted), as_scanpath(reference)
        if min(len(first), len(second)) < 3:
            return np.full(5, np.nan)
        start1, vector1, duration1 = self._saccades(first, size)
        start2, vector2, duration2 = self._saccades(second, size)
        difference = np.abs(vector1[:, None] - vector2)
        rows, columns, _ = cheapest_path(difference)
        turn = np.abs(np.angle(vector1)[rows] - np.angle(vector2)[columns])
        longer = np.maximum(duration1[rows], duration2[columns])
        change = np.abs(duration1[rows] - duration2[columns])
        diagonal = float(np.hypot(*size))
        ordered = np.sort(
            [
                difference[rows, columns],
                np.minimum(turn, 2 * np.pi - turn),
                np.abs(np.abs(vector1)[rows] - np.abs(vector2)[columns]),
                np.abs(start1[rows] - start2[columns]),
                change / np.maximum(longer, np.finfo(float).tiny),
            ],
            axis=1,
        )
        count = ordered.shape[1]
        medians = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
        return 1 - medians / [2 * diagonal, np.pi, diagonal, diagonal, 1]

    def _saccades(self, fixations: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts (S,) and vectors (S,) in pixels as x + iy, and durations (S + 1,) of the fixations between."""
        points = fixations[:, 0] * size[0] + 1j * (fixations[:, 1] * size[1])
        starts, vectors, durations = points[:-1], points[1:] - points[:-1], fixations[:, 2]
        if self.direction_degrees == 0 and self.amplitude_px == 0:
            return starts, vectors, durations
        chain = (starts.tolist(), vectors.tolist(), durations.tolist())
        while True:
            before = len(chain[2])
            chain = self._merge_short(*self._merge_straight(*chain))
            if len(chain[2]) == before:
                return tuple(np.array(part) for part in chain)

    def _merge_straight(self, starts, vectors, durations):
        """One pass that joins a saccade with the next when they turn little over a short fixation."""
        merged = ([], [], [])
        i, last = 0, len(vectors) - 1
        while i <= last:
            if (
                i < last
                and _angle(vectors[i], vectors[i + 1]) < self.direction_degrees
                and durations[i + 1] < self.duration_s
            ):
                _append(merged, starts[i], vectors[i] + vectors[i + 1], durations[i])
                i += 2
            else:
                _append(merged, starts[i], vectors[i], durations[i])
                i += 1
        merged[2].append(durations[-1])
        return merged

    def _merge_short(self, starts, vectors, durations):
        """One pass that joins a short saccade with the next (the last one: with the one before)."""
        merged = ([], [], [])
        i, last = 0, len(vectors) - 1
        while i <= last:
            short = abs(vectors[i]) < self.amplitude_px and min(durations[i], durations[i + 1]) < self.duration_s
            if short and i < last:
                _append(merged, starts[i], vectors[i] + vectors[i + 1], durations[i])
                i += 2
            elif short and merged[1]:
                merged[1][-1] = vectors[-2] + vectors[-1]
                i += 1
            else:
                _append(merged, starts[i], vectors[i], durations[i])
                i += 1
        merged[2].append(durations[-1])
        return merged


def _append(chain, start, vector, duration) -> None:
    for part, value in zip(chain, (start, vector, duration), strict=True):
        part.append(value)


def _angle(first: complex, second: complex) -> float:
    """Angle between two vectors in degrees; 0 when one of them has no length."""
    return abs(float(np.degrees(np.angle(first * second.conjugate()))))


@dataclass(frozen=True)
class StringEditDistance:
    """String edit distance of the cells looked at (Levenshtein, all costs 1, not normalised). 0 = identical.

    Attributes:
        bins: columns and rows of the grid; 5 x 5 as in GazeXplain and GazeSearch.
    """

    bins: tuple[int, int] = (5, 5)
    name: ClassVar[str] = "sed"
    higher_is_better: ClassVar[bool] = False

    def settings(self) -> dict:
        return asdict(self)

    def __call__(self, predicted, reference, size: Size | None = None) -> float:
        """Number of insertions, deletions and substitutions; `size` is not used."""
        first, second = grid_cells(as_scanpath(predicted), self.bins), grid_cells(as_scanpath(reference), self.bins)
        return edit_distance(first[:, 1] * self.bins[0] + first[:, 0], second[:, 1] * self.bins[0] + second[:, 0])


def edit_distance(first, second) -> float:
    """Levenshtein distance of two sequences of integers."""
    first, second = np.asarray(first), np.asarray(second)
    if min(len(first), len(second)) == 0:
        return float(max(len(first), len(second)))
    different = (first[:, None] != second[None]).astype(np.float64)
    return float(-alignment_table(-different, -1.0)[-1, -1])


@dataclass(frozen=True)
class ScaledTimeDelayEmbedding:
    """STDE (Wang et al. 2011, in the scaled form of FixaTons): how well windows of the prediction occur in the
    reference.

    Positions are divided by the longer side. For every window length k, each k-window of the prediction finds its
    nearest k-window of the reference; the mean distance per fixation d_k gives exp(-d_k), and the score is the mean
    over k. Not symmetric. 1 = identical; NaN when either scanpath is empty.
    """

    name: ClassVar[str] = "stde"
    higher_is_better: ClassVar[bool] = True

    def settings(self) -> dict:
        return {"window_lengths": "1..shorter scanpath", "scale": "longer side"}

    def __call__(self, predicted, reference, size: Size) -> float:
        first, second = as_scanpath(predicted), as_scanpath(reference)
        if min(len(first), len(second)) == 0:
            return float("nan")
        scale = np.asarray(size, dtype=np.float64) / max(size)
        difference = (first[:, None, :2] - second[None, :, :2]) * scale
        distance = np.hypot(difference[..., 0], difference[..., 1])
        window = np.zeros((len(first) + 1, len(second) + 1))
        similarities = []
        for k in range(1, min(len(first), len(second)) + 1):
            window = window[:-1, :-1] + distance[k - 1 :, k - 1 :]
            similarities.append(np.exp(-window.min(axis=1).mean() / k))
        return float(np.mean(similarities))


@dataclass(frozen=True)
class DynamicTimeWarping:
    """Dynamic time warping: sum of distances in pixels along the cheapest monotone alignment. 0 = identical, NaN if
    empty.
    """

    name: ClassVar[str] = "dtw"
    higher_is_better: ClassVar[bool] = False

    def settings(self) -> dict:
        return {"distance": "euclidean, pixels", "normalised": False}

    def __call__(self, predicted, reference, size: Size) -> float:
        first, second = as_scanpath(predicted), as_scanpath(reference)
        if min(len(first), len(second)) == 0:
            return float("nan")
        difference = (first[:, None, :2] - second[None, :, :2]) * np.asarray(size, dtype=np.float64)
        return cheapest_path(np.hypot(difference[..., 0], difference[..., 1]))[2]


@dataclass(frozen=True)
class RegionSequence:
    """Region-sequence score (ours): the sequence score with anatomical regions as letters. 1 = identical.

    Each fixation becomes the smallest of the 17 regions that holds it, the nearest one close by, or "outside"; equal
    letters score 1, gaps and unequal letters 0 (Needleman-Wunsch), and the score is divided by the longer length. It
    compares readings in the terms a radiologist would use, and needs no clusters computed from other people's data.

    Attributes:
        duration_bin_s: repeat letters int(duration / bin) times; None leaves durations out.
    """

    duration_bin_s: float | None = None
    higher_is_better: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "region_sequence" if self.duration_bin_s is None else "region_sequence_duration"

    def settings(self) -> dict:
        return asdict(self) | {"regions": "boxes of the image when given, typical boxes otherwise"}

    def __call__(self, predicted, reference, size: Size | None = None, regions=None) -> float:
        """Score of two scanpaths; NaN when both are empty.

        Args:
            predicted, reference: scanpaths.
            size: not used.
            regions: (17, 4) boxes x0, y0, x1, y1 in [0, 1] in the order of `REGION_NAMES`; NaN rows are not on the
            image.
        """
        first, second = self.letters(predicted, regions), self.letters(reference, regions)
        longest = max(len(first), len(second))
        if longest == 0:
            return float("nan")
        if min(len(first), len(second)) == 0:
            return 0.0
        return float(alignment_table((first[:, None] == second[None]).astype(np.float64), 0.0)[-1, -1] / longest)

    def letters(self, fixations, regions=None) -> np.ndarray:
        """Index of the region at each fixation, -1 for none."""
        fixations = as_scanpath(fixations)
        letters = region_indices(fixations, regions)
        if self.duration_bin_s is not None:
            letters = np.repeat(letters, np.floor(fixations[:, 2] / self.duration_bin_s + 1e-9).astype(np.int64))
        return letters


def region_indices(fixations: np.ndarray, regions=None) -> np.ndarray:
    """Index of the region at each fixation as `regions_of_points` finds it, -1 for none; shape (N,)."""
    names = regions_of_points(fixations, _TYPICAL_REGIONS if regions is None else regions)
    return np.array([_REGION_INDEX[name] for name in names], dtype=np.int64)


_TYPICAL_REGIONS = np.array([region.typical_box for region in REGIONS])
_REGION_INDEX = {None: -1} | {name: index for index, name in enumerate(REGION_NAMES)}


@dataclass(frozen=True)
class ScanpathMetrics:
    """The set of scanpath metrics that is reported, compared in one call.

    Attributes:
        metrics: the metric objects; the default set has the parameters most papers on chest films use.
    """

    metrics: tuple = field(
        default=(
            ScanMatch(),
            ScanMatch(duration_bin_s=0.05),
            MultiMatch(),
            StringEditDistance(),
            ScaledTimeDelayEmbedding(),
            DynamicTimeWarping(),
            RegionSequence(),
        )
    )

    @property
    def names(self) -> tuple[str, ...]:
        names = []
        for metric in self.metrics:
            names += (
                [f"multimatch_{d}" for d in MULTIMATCH_DIMENSIONS] if isinstance(metric, MultiMatch) else [metric.name]
            )
        return tuple(names)

    def settings(self) -> dict[str, dict]:
        return {metric.name: metric.settings() for metric in self.metrics}

    def __call__(self, predicted, reference, size: Size, regions=None) -> np.ndarray:
        """All scores of one pair, in the order of `names`; `regions` as in `RegionSequence`."""
        predicted, reference = as_scanpath(predicted), as_scanpath(reference)
        scores = []
        for metric in self.metrics:
            extra = (regions,) if isinstance(metric, RegionSequence) else ()
            scores.append(np.atleast_1d(metric(predicted, reference, size, *extra)))
        return np.concatenate(scores)
