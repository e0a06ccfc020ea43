"""Splits by patient, and the audit that finds what leaks from one split into another."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field

from ..errors import DataError
from .record import SPLITS

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
# what data sets call their splits -> what this project calls them
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "validate": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_of_patient(patient_id: str, seed: int = 0, shares: dict[str, float] | None = None) -> str:
    """A patient's split: a hash of the id, so that it depends on no other patient and on no order of reading."""
    shares = shares or SHARES
    digest = hashlib.sha256(f"{seed}/{patient_id}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    total = 0.0
    for name in SPLITS:
        total += shares.get(name, 0.0)
        if draw < total:
            return name
    return SPLITS[0]


def canonical_split(name: str, where: str) -> str:
    """The project's name of an official split.

    Raises:
        DataError: an unknown name.
    """
    known = SPLIT_NAMES.get(str(name).strip().lower())
    if known is None:
        raise DataError(f"{where}: unknown split {name!r}; known are {', '.join(sorted(SPLIT_NAMES))}")
    return known


def scanpath_key(fixations: list[dict]) -> str | None:
    """A fingerprint of a scanpath, alike for equal positions and durations; None without fixations."""
    if not fixations:
        return None
    text = ";".join(f"{f['x']:.6f},{f['y']:.6f},{f['duration_s']:.6f}" for f in fixations)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Audit:
    """Gathers what identifies a record, then says what is in two splits, and which scanpaths are there twice."""

    patients: dict = field(default_factory=lambda: defaultdict(set))
    images: dict = field(default_factory=lambda: defaultdict(set))
    films: dict = field(default_factory=lambda: defaultdict(set))
    scanpaths: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, key: dict) -> None:
        """Takes `patient_id`, `image_id`, `split`, `film` (hash of the file or None) and `scanpath` (key or None)."""
        split = key["split"]
        self.patients[key["patient_id"]].add(split)
        self.images[key["image_id"]].add(split)
        if key.get("film"):
            self.films[key["film"]].add(split)
        if key.get("scanpath"):
            self.scanpaths[key["image_id"], key["scanpath"]].append(split)

    def result(self) -> dict:
        """What was found: counts, up to ten examples each, and whether the audit passed."""
        found = {}
        for name, table in (("patients", self.patients), ("images", self.images), ("film_files", self.films)):
            shared = sorted(key for key, splits in table.items() if len(splits) > 1)
            found[f"{name}_in_two_splits"] = {"count": len(shared), "examples": shared[:10]}
        copies = {key: splits for key, splits in self.scanpaths.items() if len(splits) > 1}
        found["duplicated_scanpaths"] = {
            "count": sum(len(splits) - 1 for splits in copies.values()),
            "across_splits": sum(1 for splits in copies.values() if len(set(splits)) > 1),
            "examples": [image_id for image_id, _ in sorted(copies)[:10]],
        }
        return {"passed": not any(item["count"] for item in found.values()), **found}


def audit_message(audit: dict) -> str:
    """One sentence on what an audit found wrong."""
    wrong = [
        f"{item['count']} {name.replace('_', ' ')}"
        for name, item in audit.items()
        if name != "passed" and item["count"]
    ]
    return "the splits are clean" if not wrong else "the audit of the splits failed: " + ", ".join(wrong)


__all__ = ["SHARES", "Audit", "audit_message", "canonical_split", "scanpath_key", "split_of_patient"]
