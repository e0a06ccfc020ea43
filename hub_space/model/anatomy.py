"""The 17 anatomical regions of a frontal chest film: names, laterality, adjacency and typical place, in one table.

The list follows the convention of the EGD-CXR and Chest ImaGenome data sets. *Left* and *right* are the patient's
sides; on a frontal film the patient's right is drawn on the viewer's left, so right-sided regions have small x. Typical
boxes are round figures for a well-positioned film (ours); they serve where a model has nothing better, and as a prior.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """One anatomical region.

    Attributes:
        name: the name used in every file this project writes.
        side: `"left"`, `"right"` (the patient's) or `None` for a midline region or one that spans both sides.
        typical_box: x0, y0, x1, y1 in [0, 1] of the film.
        adjacent: names of the regions that touch or overlap it, a lung's own parts included; always both ways.
    """

    name: str
    side: str | None
    typical_box: tuple[float, float, float, float]
    adjacent: tuple[str, ...]


REGIONS: tuple[Region, ...] = (
    Region(
        "right lung",
        "right",
        (0.10, 0.12, 0.46, 0.82),
        (
            *("right upper lung zone", "right mid lung zone", "right lower lung zone", "right hilar structures"),
            *("right costophrenic angle", "right clavicle", "trachea", "upper mediastinum", "cardiac silhouette"),
        ),
    ),
    Region(
        "right upper lung zone",
        "right",
        (0.16, 0.12, 0.44, 0.34),
        ("right lung", "right mid lung zone", "right hilar structures", "right clavicle", "upper mediastinum"),
    ),
    Region(
        "right mid lung zone",
        "right",
        (0.12, 0.34, 0.45, 0.55),
        (
            *("right lung", "right upper lung zone", "right lower lung zone", "right hilar structures"),
            *("upper mediastinum", "cardiac silhouette"),
        ),
    ),
    Region(
        "right lower lung zone",
        "right",
        (0.10, 0.55, 0.46, 0.82),
        (
            *("right lung", "right mid lung zone", "right hilar structures", "right costophrenic angle"),
            "cardiac silhouette",
        ),
    ),
    Region(
        "right hilar structures",
        "right",
        (0.31, 0.34, 0.46, 0.58),
        (
            *("right lung", "right upper lung zone", "right mid lung zone", "right lower lung zone"),
            *("upper mediastinum", "cardiac silhouette"),
        ),
    ),
    Region("right costophrenic angle", "right", (0.08, 0.70, 0.24, 0.86), ("right lung", "right lower lung zone")),
    Region(
        "left lung",
        "left",
        (0.54, 0.12, 0.90, 0.82),
        (
            *("left upper lung zone", "left mid lung zone", "left lower lung zone", "left hilar structures"),
            *("left costophrenic angle", "left clavicle", "trachea", "upper mediastinum", "cardiac silhouette"),
        ),
    ),
    Region(
        "left upper lung zone",
        "left",
        (0.56, 0.12, 0.84, 0.34),
        ("left lung", "left mid lung zone", "left hilar structures", "left clavicle", "upper mediastinum"),
    ),
    Region(
        "left mid lung zone",
        "left",
        (0.55, 0.34, 0.88, 0.55),
        (
            *("left lung", "left upper lung zone", "left lower lung zone", "left hilar structures"),
            *("upper mediastinum", "cardiac silhouette"),
        ),
    ),
    Region(
        "left lower lung zone",
        "left",
        (0.54, 0.55, 0.90, 0.82),
        (
            *("left lung", "left mid lung zone", "left hilar structures", "left costophrenic angle"),
            "cardiac silhouette",
        ),
    ),
    Region(
        "left hilar structures",
        "left",
        (0.54, 0.34, 0.69, 0.58),
        (
            *("left lung", "left upper lung zone", "left mid lung zone", "left lower lung zone"),
            *("upper mediastinum", "cardiac silhouette"),
        ),
    ),
    Region("left costophrenic angle", "left", (0.76, 0.70, 0.92, 0.86), ("left lung", "left lower lung zone")),
    Region("trachea", None, (0.44, 0.04, 0.56, 0.36), ("right lung", "left lung", "upper mediastinum")),
    Region(
        "upper mediastinum",
        None,
        (0.38, 0.10, 0.62, 0.42),
        (
            *("right lung", "right upper lung zone", "right mid lung zone", "right hilar structures", "right clavicle"),
            *("left lung", "left upper lung zone", "left mid lung zone", "left hilar structures", "left clavicle"),
            *("trachea", "cardiac silhouette"),
        ),
    ),
    Region(
        "cardiac silhouette",
        None,
        (0.36, 0.42, 0.74, 0.80),
        (
            *("right lung", "right mid lung zone", "right lower lung zone", "right hilar structures"),
            *("left lung", "left mid lung zone", "left lower lung zone", "left hilar structures"),
            "upper mediastinum",
        ),
    ),
    Region(
        "right clavicle",
        "right",
        (0.12, 0.08, 0.46, 0.22),
        ("right lung", "right upper lung zone", "upper mediastinum"),
    ),
    Region(
        "left clavicle", "left", (0.54, 0.08, 0.88, 0.22), ("left lung", "left upper lung zone", "upper mediastinum")
    ),
)
REGION_NAMES: tuple[str, ...] = tuple(region.name for region in REGIONS)
NUM_REGIONS = len(REGIONS)
REGION_BY_NAME: dict[str, Region] = {region.name: region for region in REGIONS}


@dataclass(frozen=True)
class SweepStep:
    """One step of a systematic reading.

    Attributes:
        letter: A to F.
        name: what is looked at.
        regions: names of the regions that belong to it.
    """

    letter: str
    name: str
    regions: tuple[str, ...]


# The ABCDEF sweep, the reading protocol that GazeX (arXiv 2604.14316) cites: airway, breathing, circulation, diaphragm,
# external structures, foreign bodies. Which of the 17 regions belongs to which step is ours, after teaching practice:
# the hila are large airways and the angles are where the diaphragm meets the wall. A tube or a clip may be anywhere on
# the film, so the last step has no region of its own, and gaze alone does not tell whether it was done.
SWEEP: tuple[SweepStep, ...] = (
    SweepStep("A", "airway", ("trachea", "right hilar structures", "left hilar structures")),
    SweepStep(
        "B",
        "breathing",
        (
            *("right lung", "right upper lung zone", "right mid lung zone", "right lower lung zone"),
            *("left lung", "left upper lung zone", "left mid lung zone", "left lower lung zone"),
        ),
    ),
    SweepStep("C", "circulation", ("upper mediastinum", "cardiac silhouette")),
    SweepStep("D", "diaphragm", ("right costophrenic angle", "left costophrenic angle")),
    SweepStep("E", "external structures", ("right clavicle", "left clavicle")),
    SweepStep("F", "foreign bodies", ()),
)

__all__ = ["Region", "REGIONS", "REGION_NAMES", "NUM_REGIONS", "REGION_BY_NAME", "SWEEP", "SweepStep"]
