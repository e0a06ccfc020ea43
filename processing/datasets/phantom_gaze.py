"""The readers of the phantom simulator: where they look, for how long, and when they speak.

A reading starts with a global survey and turns focal: the reader goes through the topics of the report in an order of
habit; on a lesion the gaze dwells, checks the mirrored place on the other side and returns. Amplitudes, turns,
durations and returns follow the statistics of radiologists' scanpaths on chest films; speech follows gaze with a lag.
Fixation durations are log-normal with a reader effect and a weak lag-1 correlation; saccades are proposed from a log-
normal of amplitude and a U-shaped distribution of turns, and chosen among proposals by the density of the current
target.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..anatomy import REGION_NAMES
from .phantom_report import TOPICS, Sentence

# share of fixations by cell of an 8 x 8 grid over the film, per cent: radiologists' reads of chest films
SURVEY = np.array(
    [
        [0, 0.1, 0.3, 0.4, 0.3, 0.2, 0.1, 0],
        [0.1, 0.5, 1.7, 2.0, 1.8, 1.7, 0.5, 0.2],
        [0.1, 1.0, 3.3, 3.7, 4.2, 3.5, 1.5, 0.2],
        [0.2, 2.4, 4.6, 4.3, 5.1, 5.4, 3.0, 0.3],
        [0.4, 3.3, 4.7, 3.5, 4.0, 5.4, 4.6, 0.8],
        [0.6, 2.4, 2.1, 1.3, 1.6, 2.9, 3.3, 0.9],
        [0.3, 0.9, 0.4, 0.2, 0.5, 0.8, 1.3, 0.5],
        [0.1, 0.1, 0, 0, 0.1, 0.1, 0.2, 0.1],
    ]
)
DEGREE = 1.0 / 27.0  # one degree of visual angle in film widths
TOPIC_REGIONS = {
    "devices": ("trachea", "upper mediastinum", "right clavicle", "left clavicle"),
    "lungs": (
        *tuple(name for name in REGION_NAMES if "lung zone" in name),
        "right hilar structures",
        "left hilar structures",
    ),
    "pleura": ("right costophrenic angle", "left costophrenic angle", "right upper lung zone", "left upper lung zone"),
    "heart": ("cardiac silhouette",),
    "mediastinum": ("upper mediastinum", "right hilar structures", "left hilar structures"),
    "bones": ("right clavicle", "left clavicle", "right mid lung zone", "left mid lung zone"),
}
NUM_READERS = 5


@dataclass(frozen=True)
class Reader:
    """The habits of one reader."""

    reader_id: str
    duration_shift: float  # of the mean log duration
    pace: float  # fixations relative to the average reader
    survey: int  # fixations of the global survey
    lag_s: float  # speech after gaze
    compare: float  # chance of checking the other side
    words_per_s: float
    terse: float
    topic_order: tuple[str, ...]


def make_reader(seed: int, number: int) -> Reader:
    """Reader 0 ... 4 of a simulated team; the same seed gives the same team."""
    rng = np.random.default_rng([seed, 7919, number])
    order = list(TOPICS)
    for _ in range(int(rng.integers(1, 5))):
        k = int(rng.integers(len(order) - 1))
        order[k], order[k + 1] = order[k + 1], order[k]
    return Reader(
        reader_id=f"reader-{number}",
        duration_shift=float(rng.normal(0, 0.1)),
        pace=float(np.exp(rng.normal(0, 0.15))),
        survey=int(rng.integers(8, 13)),
        lag_s=float(rng.uniform(1.0, 3.0)),
        compare=float(rng.uniform(0.25, 0.55)),
        words_per_s=float(rng.uniform(2.2, 3.0)),
        terse=float(rng.uniform(0.0, 0.9)),
        topic_order=tuple(order),
    )


GRID = 64  # densities are looked up on a GRID x GRID table
_CENTRES = (np.arange(GRID) + 0.5) / GRID


def _survey_table() -> np.ndarray:
    """The survey map on the table, (GRID, GRID), bilinear between cell centres, scaled to a peak of 1."""
    at = np.clip(_CENTRES * 8 - 0.5, 0, 6.999)
    low = at.astype(int)
    part = at - low
    rows = SURVEY[low] * (1 - part)[:, None] + SURVEY[low + 1] * part[:, None]
    table = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return table / table.max()


SURVEY_TABLE = _survey_table()


def target_table(boxes: np.ndarray, focus: float) -> np.ndarray:
    """The survey mixed with Gaussians over target boxes (K, 4), (GRID, GRID); `focus` is the share of the targets."""
    cx, cy = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    sx, sy = np.maximum(0.30 * (boxes[:, 2] - boxes[:, 0]), 0.03), np.maximum(0.30 * (boxes[:, 3] - boxes[:, 1]), 0.03)
    across = np.exp(-0.5 * ((_CENTRES - cx[:, None]) / sx[:, None]) ** 2)  # (K, GRID)
    down = np.exp(-0.5 * ((_CENTRES - cy[:, None]) / sy[:, None]) ** 2)
    targets = (down[:, :, None] * across[:, None, :]).max(axis=0)
    return (1 - focus) * SURVEY_TABLE + focus * targets


TURNS = np.linspace(-math.pi, math.pi, 73)[:-1]
_TURN_WEIGHT = 1.0 + 0.34 * np.cos(2 * TURNS) + 0.36 * np.cos(TURNS)
# turns of equal probability, so that a uniform draw picks one
TURN_QUANTILES = np.interp(
    (np.arange(1024) + 0.5) / 1024, np.cumsum(_TURN_WEIGHT) / _TURN_WEIGHT.sum(), TURNS + math.pi / 72
)
RETURN_FADE = 0.50 * 0.8 ** np.arange(3, -1, -1)  # oldest first
CANDIDATES = 20  # proposed saccades
BLOCK = 16  # steps drawn at once
MIRROR = 0.13  # chance of a saccade to the mirrored place


class Scan:
    """The growing scanpath of one reading."""

    def __init__(self, rng: np.random.Generator, reader: Reader):
        self.rng, self.reader = rng, reader
        self.x, self.y, self.onset, self.duration = [], [], [], []
        self.time = float(rng.uniform(0.1, 0.4))
        self.heading = float(rng.uniform(-math.pi, math.pi))
        self.noise = float(rng.normal(0, 1))
        self._proposals = iter(())

    def _propose(self):
        """Proposed saccades of one step, before they are turned into the heading, and uniform draws for the choice."""
        step = next(self._proposals, None)
        if step is None:
            rng = self.rng
            amplitude = np.exp(-1.42 + 0.84 * rng.standard_normal((BLOCK, CANDIDATES)))
            turn = TURN_QUANTILES[rng.integers(len(TURN_QUANTILES), size=(BLOCK, CANDIDATES))]
            draws = rng.random((BLOCK, 8))
            self._proposals = zip(amplitude * np.cos(turn), amplitude * np.sin(turn), draws, strict=True)
            step = next(self._proposals)
        return step

    def fixate(self, x: float, y: float, dwell: float = 1.0) -> None:
        """Adds a fixation at a place."""
        rng = self.rng
        self.noise = 0.05 * self.noise + math.sqrt(1 - 0.05**2) * float(rng.normal())
        duration = math.exp(-1.335 + self.reader.duration_shift + 0.48 * self.noise) * dwell
        if self.x:
            self.heading = math.atan2(y - self.y[-1], x - self.x[-1])
            self.time += 0.022 + 0.08 * math.hypot(x - self.x[-1], y - self.y[-1])
        self.x.append(x)
        self.y.append(y)
        self.onset.append(self.time)
        self.duration.append(min(3.0, max(0.08, duration)))
        self.time += self.duration[-1]

    def wander(self, table: np.ndarray, dwell: float = 1.0) -> None:
        """Moves on by one saccade towards what the density favours.

        Args:
            table: (GRID, GRID) density of the moment.
            dwell: factor on the duration.
        """
        rng = self.rng
        if not self.x:
            x, y = rng.normal(0.52, 0.20), rng.normal(0.47, 0.16)
            self.fixate(min(0.92, max(0.08, float(x))), min(0.92, max(0.06, float(y))))
            return
        ahead, aside, draws = self._propose()
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        x = self.x[-1] + (cos * ahead - sin * aside)
        y = self.y[-1] + 0.82 * (sin * ahead + cos * aside)
        if draws[6] < MIRROR:  # compare with the other side
            x[:3] = 1.0 - self.x[-1] + 0.04 * (draws[:3] - 0.5)
            y[:3] = self.y[-1] + 0.12 * (draws[3:6] - 0.5)
            x[3:] = -1.0
        column, row = (x * GRID).astype(np.intp), (y * GRID).astype(np.intp)
        inside = (x > 0.01) & (x < 0.99) & (y > 0.01) & (y < 0.99)
        weight = np.where(inside, table[row * inside, column * inside] + 1e-4, 0.0)
        # inhibition of return, fading over the last fixations
        back = min(4, len(self.x) - 1)
        if back:
            dx = x - np.array(self.x[-1 - back : -1])[:, None]
            dy = y - np.array(self.y[-1 - back : -1])[:, None]
            blocked = RETURN_FADE[-back:, None] * np.exp((dx * dx + dy * dy) * (-0.5 / (1.4 * DEGREE) ** 2))
            weight = weight * (1.0 - blocked).prod(axis=0)
        sums = weight.cumsum()
        if sums[-1] <= 0:  # no proposal stays on the film: start again near the middle
            x, y = rng.normal(0.5, 0.2), rng.normal(0.47, 0.15)
            self.fixate(min(0.95, max(0.05, float(x))), min(0.95, max(0.05, float(y))), dwell)
            return
        chosen = min(int(sums.searchsorted(draws[7] * sums[-1], side="right")), CANDIDATES - 1)
        self.fixate(float(x[chosen]), float(y[chosen]), dwell)

    def inspect(self, box, fixations: int, midline: float) -> None:
        """Dwells on a lesion, looks at the mirrored place and comes back."""
        rng = self.rng
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        sx, sy = max(0.22 * (box[2] - box[0]), 0.012), max(0.22 * (box[3] - box[1]), 0.012)
        mirrored_at = int(rng.integers(1, fixations)) if fixations > 2 and rng.random() < self.reader.compare else -1
        for k in range(fixations):
            if k == mirrored_at:
                self.fixate(
                    float(np.clip(2 * midline - cx + rng.normal(0, 0.03), 0.02, 0.98)),
                    float(np.clip(cy + rng.normal(0, 0.03), 0.02, 0.98)),
                )
                continue
            if k > 0 and rng.random() < 0.35:
                self.wander(target_table(np.asarray([box]), 0.8), 1.25)
                continue
            x, y = (
                float(np.clip(cx + sx * rng.normal(), 0.01, 0.99)),
                float(np.clip(cy + sy * rng.normal(), 0.01, 0.99)),
            )
            self.fixate(x, y, float(rng.uniform(1.3, 1.8)))


def read_film(
    rng: np.random.Generator,
    reader: Reader,
    sentences: list[Sentence],
    impression: list[Sentence],
    film_boxes: dict[int, list[tuple[float, float, float, float]]],
    regions: list[tuple[float, float, float, float]],
    mean_fixations: float = 40.0,
) -> tuple[list[dict[str, float]], list[dict]]:
    """One reading of a film.

    Args:
        rng: source of choices.
        reader: whose habits.
        sentences: the findings section in the order of speech.
        impression: spoken last.
        film_boxes: id of a finding -> its boxes in [0, 1] of the film.
        regions: the 17 boxes.
        mean_fixations: of the negative binomial (dispersion 4) that the length is drawn from.

    Returns:
        Fixations (x, y, onset_s, duration_s) and sentences (text, start_s, end_s).
    """
    scan = Scan(rng, reader)
    mean = mean_fixations * reader.pace
    wanted = int(np.clip(rng.negative_binomial(4, 4 / (4 + mean)), 5, 200))
    midline = 0.5 * (regions[0][0] + regions[6][2])
    region = dict(zip(REGION_NAMES, regions, strict=True))
    for _ in range(min(reader.survey, max(3, wanted // 2))):
        scan.wander(SURVEY_TABLE)
    words = [len(sentence.text.split()) for sentence in sentences]
    left = max(len(sentences), wanted - len(scan.x))
    seen_at = []
    for sentence, length in zip(sentences, words, strict=True):
        seen_at.append(scan.time)
        share = max(1, round(left * length / sum(words)))
        # a faint finding may be missed at the first pass: the reader never dwells on it
        noticed = [f for f in sentence.findings if rng.random() > 0.30 * (1.0 - f.strength) ** 2]
        boxes = [box for finding in noticed for box in film_boxes[id(finding)]]
        if boxes:
            for box in boxes[:3]:
                scan.inspect(box, max(2, share // min(3, len(boxes))), midline)
        else:
            targets = np.asarray([region[name] for name in TOPIC_REGIONS[sentence.topic]])
            table = target_table(targets, 0.55)
            for _ in range(share):
                scan.wander(table)
    fixations = []
    for x, y, onset, duration in zip(scan.x, scan.y, scan.onset, scan.duration, strict=True):
        x, y = x + rng.normal(0, 0.44 * DEGREE / math.sqrt(2)), y + rng.normal(0, 0.44 * DEGREE / math.sqrt(2))
        if rng.random() < 0.02 or not (0 <= x <= 1 and 0 <= y <= 1):
            continue  # a glance off the film, or the tracker lost the eye
        fixations.append(
            {
                "x": round(float(x), 5),
                "y": round(float(y), 5),
                "onset_s": round(onset, 3),
                "duration_s": round(duration, 3),
            }
        )
    if not fixations:
        fixations.append({"x": 0.5, "y": 0.47, "onset_s": 0.2, "duration_s": 0.3})
    spoken, clock = [], 0.0
    for k, sentence in enumerate([*sentences, *impression]):
        ready = (
            seen_at[k] + reader.lag_s * float(rng.uniform(0.7, 1.3))
            if k < len(seen_at)
            else clock + float(rng.uniform(0.3, 1.0))
        )
        start = max(clock + float(rng.uniform(0.15, 0.5)), ready)
        clock = start + len(sentence.text.split()) / reader.words_per_s
        spoken.append({"text": sentence.text, "start_s": round(start, 3), "end_s": round(clock, 3)})
    return fixations, spoken
