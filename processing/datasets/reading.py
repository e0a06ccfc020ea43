"""Reading a prepared data set back."""

from pathlib import Path

from ..errors import DataError


def load_split(folder: str | Path, split: str, limit: int | None = None):
    """One split of a folder that `gaze2report prepare` wrote, as `datasets.Dataset`.

    Args:
        folder: with `SPLIT-*.parquet`.
        split: `train`, `validation` or `test`.
        limit: the first so many records; `None` for all.

    Raises:
        DataError: no such folder, no shard of the split, no record in it.
    """
    from datasets import load_dataset

    shards = sorted(str(shard) for shard in Path(folder).glob(f"{split}-*.parquet"))
    if not shards:
        raise DataError(f"{folder}: there is no file {split}-*.parquet; prepare the data with `gaze2report prepare`")
    data = load_dataset("parquet", data_files=shards, split="train")
    if len(data) == 0:
        raise DataError(f"{folder}: the split {split} holds no record")
    return data.select(range(min(limit, len(data)))) if limit else data


__all__ = ["load_split"]
