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
        adjacent: names of the regions that touch or overlap it.
    """

    name: str
    side: str | None
    typical_box: tuple[float, float, float, float]
    adjacent: tuple[str, ...]


REGIONS: tuple[Region, ...] = (
    Region("right lung", "right", (0.10, 0.12, 0.46, 0.82), ("upper mediastinum", "cardiac silhouette", "trachea")),
    Region("right upper lung zone", "right", (0.16, 0.12, 0.44, 0.34), ("right mid lung zone", "right clavicle")),
    Region(
        "right mid lung zone", "right", (0.12, 0.34, 0.45, 0.55), ("right upper lung zone", "right lower lung zone")
    ),
    Region(
        "right lower lung zone", "right", (0.10, 0.55, 0.46, 0.82), ("right mid lung zone", "right costophrenic angle")
    ),
    Region("right hilar structures", "right", (0.31, 0.34, 0.46, 0.58), ("right mid lung zone", "cardiac silhouette")),
    Region("right costophrenic angle", "right", (0.08, 0.70, 0.24, 0.86), ("right lower lung zone",)),
    Region("left lung", "left", (0.54, 0.12, 0.90, 0.82), ("upper mediastinum", "cardiac silhouette", "trachea")),
    Region("left upper lung zone", "left", (0.56, 0.12, 0.84, 0.34), ("left mid lung zone", "left clavicle")),
    Region("left mid lung zone", "left", (0.55, 0.34, 0.88, 0.55), ("left upper lung zone", "left lower lung zone")),
    Region("left lower lung zone", "left", (0.54, 0.55, 0.90, 0.82), ("left mid lung zone", "left costophrenic angle")),
    Region("left hilar structures", "left", (0.54, 0.34, 0.69, 0.58), ("left mid lung zone", "cardiac silhouette")),
    Region("left costophrenic angle", "left", (0.76, 0.70, 0.92, 0.86), ("left lower lung zone",)),
    Region("trachea", None, (0.44, 0.04, 0.56, 0.36), ("upper mediastinum",)),
    Region("upper mediastinum", None, (0.38, 0.10, 0.62, 0.42), ("trachea", "cardiac silhouette")),
    Region("cardiac silhouette", None, (0.36, 0.42, 0.74, 0.80), ("upper mediastinum", "left lower lung zone")),
    Region("right clavicle", "right", (0.12, 0.08, 0.46, 0.22), ("right upper lung zone",)),
    Region("left clavicle", "left", (0.54, 0.08, 0.88, 0.22), ("left upper lung zone",)),
)
REGION_NAMES: tuple[str, ...] = tuple(region.name for region in REGIONS)
NUM_REGIONS = len(REGIONS)
REGION_BY_NAME: dict[str, Region] = {region.name: region for region in REGIONS}

__all__ = ["Region", "REGIONS", "REGION_NAMES", "NUM_REGIONS", "REGION_BY_NAME"]
