"""Writes a source as Parquet shards with `dataset.json`, in parallel, and goes on after a kill where it stopped.

The source lists its items once, in a fixed order. A unit of work is a fixed slice of that list; it writes one Parquet
file per split it has records of, then a small progress file, each under a temporary name first. A unit whose progress
file is there is done; any other is written anew from its start. So a kill at any moment loses no record and doubles
none, and the same source with the same settings gives the same files whatever the number of processes.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..metrics.files import write_text
from ..report_labels import FINDINGS
from .record import SPLITS, check_record, record_features
from .splits import Audit, scanpath_key

SCHEMA = "gaze2report.dataset/1"
UNITS = 40  # of a data set: enough for several processes to end at about the same time
UNIT_SIZES = (100, 1000)  # least and most items of a unit by default
PROGRESS = ".progress"


@dataclass
class Dropped:
    """Something of the source that gives no record, or a record that gives something up.

    Attributes:
        item: file, row or id.
        reason: a short phrase; equal phrases are counted together.
        lost: `"record"` if a whole record is missing, else the column that is emptied or shortened.
        detail: anything that helps.
    """

    item: str
    reason: str
    lost: str = "record"
    detail: str = ""


@dataclass
class Source:
    """A data set to prepare. Subclasses list `items()` and make `records()` of each.

    Attributes:
        name: as on the command line.
        licence: what the terms of the data ask of whoever prepares it.
        settings: everything that decides what is written; a resumed run must have the same.
        inputs: files whose hashes go into `dataset.json`.
    """

    name: str = ""
    licence: str = ""
    settings: dict = field(default_factory=dict)
    inputs: list[Path] = field(default_factory=list)

    def items(self) -> list:
        """All items, light enough to send to another process, in a fixed order."""
        raise NotImplementedError

    def records(self, item) -> Iterator[dict | Dropped]:
        """Records of one item, and what was dropped of it."""
        raise NotImplementedError

    def notes(self) -> list[Dropped]:
        """What was dropped while listing."""
        return []


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def prepare(
    source: Source, out: Path, num_proc: int = 1, records_per_shard: int | None = None, overwrite: bool = False
) -> dict:
    """Writes the source into a folder.

    Args:
        source: what to prepare.
        out: folder for `train-00000.parquet`, ..., `dataset.json` and, if anything was dropped, `dropped.jsonl`.
        num_proc: processes.
        records_per_shard: items of the source in a unit of work; by default a fortieth of them, 100 to 1,000. It
            decides the files' boundaries, `num_proc` does not.
        overwrite: replace what an earlier run with other settings left in the folder.

    Returns:
        The contents of `dataset.json`.

    Raises:
        DataError: the source cannot be read, or the folder holds another data set.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    items = source.items()
    if not items:
        raise DataError(f"{source.name}: nothing to prepare was found; see `gaze2report prepare --help` for the layout")
    if records_per_shard is None:
        least, most = UNIT_SIZES
        records_per_shard = min(most, max(least, -(-len(items) // UNITS)))
    hashes = {path.name: file_sha256(path) for path in source.inputs}
    plan = {
        "source": source.name,
        "settings": source.settings,
        "inputs": hashes,
        "items": len(items),
        "unit": records_per_shard,
    }
    fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()
    progress = out / PROGRESS
    done = _resume(out, progress, fingerprint, overwrite)
    if done is not None:
        return done
    progress.mkdir(exist_ok=True)
    write_text(progress / "plan.json", json.dumps({"fingerprint": fingerprint, **plan}, default=str))

    units = [
        (k, items[start : start + records_per_shard]) for k, start in enumerate(range(0, len(items), records_per_shard))
    ]
    waiting = [(k, part) for k, part in units if not (progress / f"{k:05d}.json").is_file()]
    report = _Progress(
        source.name, len(items), sum(len(part) for _, part in units) - sum(len(part) for _, part in waiting)
    )
    if num_proc <= 1 or len(waiting) <= 1:
        for k, part in waiting:
            write_unit(source, part, k, out, report.step)
            report.flush()
    else:
        context = _process_context()
        with ProcessPoolExecutor(max_workers=min(num_proc, len(waiting)), mp_context=context) as pool:
            futures = {pool.submit(write_unit, source, part, k, out): len(part) for k, part in waiting}
            try:
                for future in as_completed(futures):
                    future.result()
                    report.step(futures[future])
                    report.flush()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    report.close()
    return _finish(source, out, progress, fingerprint, hashes, len(units))


def _process_context():
    """Processes forked from a fresh server that imported this module; forking one that has threads can hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _resume(out: Path, progress: Path, fingerprint: str, overwrite: bool) -> dict | None:
    """What an earlier, complete run wrote; None if there is work left. Clears other data sets only if asked to."""
    finished, plan = out / "dataset.json", progress / "plan.json"
    try:
        if finished.is_file():
            earlier = json.loads(finished.read_text(encoding="utf-8"))
            if earlier.get("fingerprint") == fingerprint:
                files = [name for part in earlier["splits"].values() for name in part["files"]]
                if all((out / name).is_file() for name in files):
                    return earlier
                finished.unlink()  # shards were deleted since: make the data set anew
                return None
        elif plan.is_file():
            if json.loads(plan.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
                return None
        elif not any(out.glob("*.parquet")):
            return None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        pass
    if not overwrite:
        raise DataError(
            f"{out} holds another data set or other settings; give another --out, or --overwrite to replace it"
        )
    for pattern in ("*.parquet", "dataset.json", "dropped.jsonl", f"{PROGRESS}/*"):
        for path in out.glob(pattern):
            path.unlink()
    return None


def write_unit(source: Source, items: list, number: int, out: Path, step=None) -> None:
    """Writes the Parquet files and the progress file of one unit."""
    import pyarrow
    from pyarrow import parquet

    by_split: dict[str, list[dict]] = {name: [] for name in SPLITS}
    keys, dropped, labels = [], [], Counter()
    for item in items:
        for result in source.records(item):
            if isinstance(result, Dropped):
                dropped.append(vars(result))
                continue
            record = check_record(result, f"{source.name}: {result.get('image_id')}")
            by_split[record["split"]].append(record)
            image = record["image"]
            film = hashlib.sha256(image["bytes"]).hexdigest()[:32] if image and image.get("bytes") else None
            keys.append(
                {
                    "patient_id": record["patient_id"],
                    "image_id": record["image_id"],
                    "split": record["split"],
                    "film": film,
                    "scanpath": scanpath_key(record["fixations"]),
                    "fixations": len(record["fixations"]),
                }
            )
            for name, value in zip(FINDINGS, record["labels"] or (), strict=False):
                labels[f"{name}|{value}"] += 1
        if step:
            step(1)
    features = record_features()
    files = {}
    for split, records in by_split.items():
        if not records:
            continue
        name = f"{split}-{number:05d}.parquet"
        temporary = out / f".{name}.{os.getpid()}.tmp"
        table = pyarrow.Table.from_pylist(records, schema=features.arrow_schema)
        # several readings of a film hold the same bytes: a large dictionary page keeps them once
        parquet.write_table(table, temporary, dictionary_pagesize_limit=2**29)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out / name)
        files[name] = len(records)
    note = {"files": files, "keys": keys, "dropped": dropped, "labels": labels}
    write_text(out / PROGRESS / f"{number:05d}.json", json.dumps(note))


def _finish(source: Source, out: Path, progress: Path, fingerprint: str, hashes: dict, num_units: int) -> dict:
    audit, files, dropped = Audit(), {}, [vars(note) for note in source.notes()]
    labels: Counter = Counter()
    splits = {name: {"num_records": 0, "patients": set(), "images": set(), "num_fixations": 0} for name in SPLITS}
    for k in range(num_units):
        note = json.loads((progress / f"{k:05d}.json").read_text(encoding="utf-8"))
        files.update(note["files"])
        dropped.extend(note["dropped"])
        labels.update(note["labels"])
        for key in note["keys"]:
            audit.add(key)
            part = splits[key["split"]]
            part["num_records"] += 1
            part["num_fixations"] += key["fixations"]
            part["patients"].add(key["patient_id"])
            part["images"].add(key["image_id"])
    # files of a run that was killed between two units and a larger --records-per-shard cannot be left: names are the
    # units'
    for path in out.glob("*.parquet"):
        if path.name not in files:
            path.unlink()
    for path in out.glob(".*.tmp"):
        path.unlink()
    if dropped:
        write_text(out / "dropped.jsonl", "".join(json.dumps(note, ensure_ascii=False) + "\n" for note in dropped))
    reasons = Counter((note["lost"], note["reason"]) for note in dropped)
    summary = {
        "schema": SCHEMA,
        "source": source.name,
        "licence": source.licence,
        "settings": source.settings,
        "inputs_sha256": hashes,
        "num_records": sum(part["num_records"] for part in splits.values()),
        "splits": {
            name: {
                "num_records": part["num_records"],
                "num_patients": len(part["patients"]),
                "num_images": len(part["images"]),
                "num_fixations": part["num_fixations"],
                "files": sorted(file for file in files if file.startswith(f"{name}-")),
            }
            for name, part in splits.items()
            if part["num_records"]
        },
        "labels": {
            name: {
                key: labels[f"{name}|{value}"]
                for key, value in (("positive", 1), ("negative", 0), ("uncertain", -1), ("unknown", None))
            }
            for name in FINDINGS
        }
        if labels
        else {},
        "dropped": {
            "count": len(dropped),
            "reasons": [
                {"lost": lost, "reason": reason, "count": count} for (lost, reason), count in reasons.most_common()
            ],
            "list": "dropped.jsonl" if dropped else None,
        },
        "audit": audit.result(),
        "fingerprint": fingerprint,
    }
    if not summary["num_records"]:
        raise DataError(f"{source.name}: no record could be made; reasons: {_reasons(reasons)}")
    write_text(out / "dataset.json", json.dumps(summary, indent=1, ensure_ascii=False, default=str))
    for path in progress.iterdir():
        path.unlink()
    progress.rmdir()
    return summary


def _reasons(reasons: Counter) -> str:
    return "; ".join(f"{reason} ({count})" for (_, reason), count in reasons.most_common(5)) or "none given"


class _Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, name: str, total: int, done: int):
        self.name, self.total, self.done, self.last = name, total, done, time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=name, unit="item")

    def step(self, count: int) -> None:
        self.done += count
        if self.bar:
            self.bar.update(count)

    def flush(self) -> None:
        if not self.bar and time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            print(f"{self.name}: {self.done} of {self.total}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.close()


__all__ = ["Dropped", "Source", "file_sha256", "prepare"]
