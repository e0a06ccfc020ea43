"""Regions for real films that nobody drew any on: a model's own boxes of the 17, for a larger one to learn from.

Phantoms teach where the regions of phantoms are. A model that sees more of a film tells real lungs from drawn ones, and
finds their regions less well; one that sees less finds them well enough to teach it. Boxes that a film has are kept.

    python -m modeling_gaze2report.training.film_regions --model SMALLER --data films --out films-with-regions
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..inference import Reader, image_features, load_reader
from ..processing.anatomy import REGION_NAMES
from ..processing.datasets.reading import load_split
from ..processing.datasets.record import SPLITS, record_features
from ..processing.datasets.writing import Source, prepare
from ..processing.errors import DataError
from ..processing.image_processing_gaze2report import load_film
from .data import canonical


class RegionsSource(Source):
    """The records of a prepared folder, each with 17 boxes x0, y0, x1, y1 in [0, 1] of the film: its own where it has
    them, else the model's. Source and licence stay those of the folder.

    Args:
        data: folder that `gaze2report prepare` wrote.
        reader: of `load_reader`; it reads with predicted gaze.
        batch_size: films at once.

    Raises:
        DataError: `data` is no prepared folder.
    """

    def __init__(self, data: str | Path, reader: Reader, batch_size: int = 16):
        from datasets import Image

        data, self.reader, self.batch_size = Path(data), reader, batch_size
        there = [split for split in SPLITS if any(data.glob(f"{split}-*.parquet"))]
        info = data / "dataset.json"
        if not there or not info.is_file():
            raise DataError(f"{data}: there is no prepared data set; make one with `gaze2report prepare`")
        self.splits = {split: load_split(data, split).cast_column("image", Image(decode=False)) for split in there}
        before = json.loads(info.read_text(encoding="utf-8"))
        settings = before.get("settings", {}) | {"regions_by": reader.name}
        super().__init__(before["source"], before.get("licence", ""), settings, [info])

    def items(self) -> list[tuple[str, int]]:
        return [(split, start) for split, rows in self.splits.items() for start in range(0, len(rows), self.batch_size)]

    def records(self, item: tuple[str, int]) -> Iterator[dict]:
        split, start = item
        rows = self.splits[split]
        batch = [rows[index] for index in range(start, min(start + self.batch_size, len(rows)))]
        films = [load_film(canonical(row, {}, "")["image"], name=row["image_id"]) for row in batch]
        features = image_features(self.reader, films, None, "predicted")
        sizes = [(film.height, film.width) for film in films]
        for row, seen in zip(batch, self.reader.processor.post_process_observation(features, sizes), strict=True):
            own = row["regions"] or [None] * len(REGION_NAMES)
            found = np.asarray(seen.region_boxes, dtype=float).round(4).tolist()
            regions = [drawn or predicted for drawn, predicted in zip(own, found, strict=True)]
            yield {name: row[name] for name in record_features()} | {"regions": regions}


def main(arguments: Sequence[str] | None = None) -> int:
    from .ablation import at_least_one, status_of  # which trains, and imports much

    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.film_regions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="DIR", help="checkpoint that finds the regions (default: the embedded one)")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `gaze2report prepare` wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the same records with regions")
    parser.add_argument("--batch-size", type=at_least_one, default=16, metavar="N", help="films at once (default: 16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    args = parser.parse_args(arguments)

    def study() -> str:
        source = RegionsSource(args.data, load_reader(args.model, args.device), args.batch_size)
        return f"{args.out}: {prepare(source, Path(args.out))['num_records']} records with regions"

    return status_of(study)


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["RegionsSource"]
