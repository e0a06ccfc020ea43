"""Controls: does the gaze matter, or would any gaze do?

The same model reads the same films with the gaze it predicts, with the recorded gaze, with none, and with gaze that
is wrong in one stated way. What a wrong gaze does not cost, the right one did not give. Wrong gaze is made of
recorded gaze, so that numbers of fixations and durations stay those of readers:

* `centre-bias`: as many fixations as recorded, drawn one by one from readings of other films: right on average, blind
to the film;
* `uniform`: recorded durations at places drawn evenly from the whole film;
* `other-image`: a whole reading of another patient's film;
* `order-shuffled`: the recorded fixations in another order.
"""

from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

import numpy as np

from ..errors import DataError
from .resampling import Bootstrap, Metric, compare_all, holm, score_all
from .results import control_columns
from .scanpaths import as_scanpath

WRONG_GAZE = ("centre-bias", "uniform", "other-image", "order-shuffled")
GAZE_SOURCES = ("predicted", "recorded", "none", *WRONG_GAZE)


def control_gaze(
    source: str,
    recorded: Mapping[str, np.ndarray],
    patients: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Gaze of one control for every film.

    Args:
        source: one of `WRONG_GAZE`, or "recorded".
        recorded: for each film, (N, 3) x, y in [0, 1] and duration in seconds; N >= 1.
        patients: patient of each film; gaze of the same patient is never "other". None: every film is its own patient.
        seed: the same seed, films and readings give the same gaze, in any order of the films.

    Raises:
        DataError: a film has no fixations, or no other film's gaze can be given to it.
    """
    recorded = {image: as_scanpath(fixations, f"gaze of {image!r}") for image, fixations in recorded.items()}
    for image, fixations in recorded.items():
        if len(fixations) == 0:
            raise DataError(f"image {image!r} has no recorded fixation; controls need recorded gaze on every film")
    patients = {image: image for image in recorded} if patients is None else patients
    if source == "recorded":
        return recorded
    if source == "other-image":
        partner = other_images({image: patients[image] for image in recorded}, seed)
        return {image: recorded[partner[image]] for image in recorded}
    makers: dict[str, Callable] = {
        "centre-bias": _centre_bias,
        "uniform": _uniform,
        "order-shuffled": _order_shuffled,
    }
    if source not in makers:
        raise DataError(f"unknown gaze control {source!r}; expected one of {', '.join(WRONG_GAZE)}")
    result = {}
    pool = _Pool(recorded, patients)
    for image, fixations in recorded.items():
        generator = np.random.default_rng([seed, crc32(source.encode()), crc32(image.encode())])
        result[image] = makers[source](fixations, image, pool, generator)
    return result


class _Pool:
    """All recorded fixations in a fixed order, with whose they are."""

    def __init__(self, recorded: Mapping[str, np.ndarray], patients: Mapping[str, str]):
        images = sorted(recorded)
        self.patients = patients
        self.fixations = np.concatenate([recorded[image] for image in images]) if images else np.zeros((0, 3))
        self.owner = np.repeat([str(patients[image]) for image in images], [len(recorded[image]) for image in images])

    def of_others(self, image: str) -> np.ndarray:
        others = self.fixations[self.owner != str(self.patients[image])]
        if len(others) == 0:
            raise DataError(f"image {image!r}: no other patient has recorded gaze; this control needs at least two")
        return others


def _centre_bias(fixations, image, pool, generator) -> np.ndarray:
    others = pool.of_others(image)
    return others[generator.integers(0, len(others), len(fixations))]


def _uniform(fixations, image, pool, generator) -> np.ndarray:
    return np.concatenate([generator.random((len(fixations), 2)), fixations[:, 2:]], axis=1)


def _order_shuffled(fixations, image, pool, generator) -> np.ndarray:
    """Another order; a reading of one fixation, or of equal ones, has no other."""
    order = generator.permutation(len(fixations))
    if len(order) > 1 and (order == np.arange(len(order))).all():
        order = np.roll(order, 1)
    return fixations[order]


def other_images(patients: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """Pairs every film with a film of another patient, each film given away once.

    Films are put in random order with each patient's films together, and shifted by the largest number of films that
    any patient has: no one then meets a film of their own.

    Raises:
        DataError: one patient has more than half of the films.
    """
    generator = np.random.default_rng([seed, crc32(b"other-image")])
    groups: dict[str, list[str]] = {}
    for image in sorted(patients):
        groups.setdefault(str(patients[image]), []).append(image)
    names = sorted(groups)
    order = [image for index in generator.permutation(len(names)) for image in groups[names[index]]]
    shift = max(map(len, groups.values()), default=0)
    if 2 * shift > len(order):
        raise DataError(
            f"one patient has {shift} of {len(order)} films; for other patients' gaze no one may have more than half"
        )
    return dict(zip(order, order[shift:] + order[:shift], strict=True))


def compare_sources(
    rows: Mapping[str, Mapping[str, Metric]],
    baseline: str = "predicted",
    bootstrap: Bootstrap | None = None,
    clusters: Sequence | None = None,
) -> dict:
    """The one table of gaze sources: every source's scores, and its paired differences from the baseline.

    Args:
        rows: for each gaze source, its metrics on the same films in the same order.
        baseline: the source that the others are compared with.
        bootstrap: draws; all rows share them.
        clusters: patient of each film.

    Returns:
        `{"baseline", "rows": {source: {"metrics", "differences"}}}`; differences are source minus baseline, with
        `p_holm` corrected over the whole table.

    Raises:
        DataError: the baseline is not among the rows.
    """
    if baseline not in rows:
        raise DataError(f"baseline {baseline!r} is not among the gaze sources {', '.join(rows)}")
    bootstrap = bootstrap or Bootstrap()
    table = {baseline: {"metrics": score_all(dict(rows[baseline]), bootstrap, clusters)}}
    for source, metrics in rows.items():
        if source != baseline:
            table[source] = {
                "metrics": score_all(dict(metrics), bootstrap, clusters),
                "differences": compare_all(dict(metrics), dict(rows[baseline]), bootstrap, clusters),
            }
    columns = control_columns(rows[baseline])
    shown = {
        (source, name): row["differences"][name]
        for source, row in table.items()
        for name in columns
        if name in row.get("differences", {})
    }
    for key, p in holm({key: record["p"] for key, record in shown.items()}).items():
        shown[key]["p_holm"] = p
    return {"baseline": baseline, "rows": table}
