"""Regions for real films that nobody drew any on: a model's own boxes of the 17, for a larger one to learn from.

Phantoms teach where the regions of phantoms are. A model that sees more of a film tells real lungs from drawn ones, and
finds their regions less well; one that sees less finds them well enough to teach it. Boxes that a film has are kept.

    python -m modeling_gaze2report.training.film_regions --model SMALLER --data films --out films-with-regions
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..inference import Reader, image_features, load_reader
from ..processing.anatomy import REGION_NAMES
from ..processing.datasets.reading import load_split
from ..processing.datasets.record import record_features
from ..processing.errors import DataError, InputError
from ..processing.image_processing_gaze2report import load_film

SPLITS = ("train", "validation", "test")
INFO = "dataset.json"


def with_regions(reader: Reader, records: Sequence[dict], batch_size: int = 16) -> list[dict]:
    """The records with 17 boxes each, x0, y0, x1, y1 in [0, 1] of the film: their own where drawn, else the model's.

    Args:
        reader: of `load_reader`; it reads with predicted gaze.
        records: with `image` and `regions`.
        batch_size: films at once.
    """
    completed = []
    for start in range(0, len(records), batch_size):
        batch = [records[index] for index in range(start, min(start + batch_size, len(records)))]
        films = [load_film(record["image"], name=record["image_id"]) for record in batch]
        features = image_features(reader, films, None, "predicted")
        sizes = [(film.height, film.width) for film in films]
        for record, seen in zip(batch, reader.processor.post_process_observation(features, sizes), strict=True):
            own = record["regions"] or [None] * len(REGION_NAMES)
            found = np.asarray(seen.region_boxes, dtype=float).round(4).tolist()
            regions = [drawn or predicted for drawn, predicted in zip(own, found, strict=True)]
            completed.append(record | {"regions": regions})
    return completed


def write_with_regions(reader: Reader, data: str | Path, out: str | Path, batch_size: int = 16) -> str:
    """Write a prepared folder again, its films with regions. Returns what was done.

    Raises:
        InputError: something stands at `out`.
        DataError: `data` is no prepared folder.
    """
    from datasets import Dataset

    data, out = Path(data), Path(out)
    if out.exists():
        raise InputError(f"{out}: something is there already; name another folder")
    there = [split for split in SPLITS if any(data.glob(f"{split}-*.parquet"))]
    if not there:
        raise DataError(f"{data}: there is no prepared data set; make one with `gaze2report prepare`")
    new = out.with_name(f".{out.name}.writing")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        number = 0
        for split in there:
            records = load_split(data, split)
            columns = record_features()
            completed = with_regions(reader, [{name: one[name] for name in columns} for one in records], batch_size)
            Dataset.from_list(completed, features=columns).to_parquet(new / f"{split}-00000.parquet")
            number += len(completed)
        info = json.loads((data / INFO).read_text(encoding="utf-8")) if (data / INFO).is_file() else {}
        info["regions"] = "boxes that a film lacked are a model's own"
        (new / INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")
        new.replace(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return f"{out}: {number} films with regions"


def main(arguments: Sequence[str] | None = None) -> int:
    from .ablation import at_least_one, status_of  # which trains, and imports much

    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.film_regions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="DIR", help="checkpoint that finds the regions (default: the embedded one)")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `gaze2report prepare` wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="the same folder with regions, to be made")
    parser.add_argument("--batch-size", type=at_least_one, default=16, metavar="N", help="films at once (default: 16)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    args = parser.parse_args(arguments)
    return status_of(
        lambda: write_with_regions(load_reader(args.model, args.device), args.data, args.out, args.batch_size)
    )


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["with_regions", "write_with_regions"]
