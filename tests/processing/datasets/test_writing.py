import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from modeling_gaze2report.processing.datasets import writing
from modeling_gaze2report.processing.datasets.record import empty_record
from modeling_gaze2report.processing.datasets.source_phantom import PhantomSource
from modeling_gaze2report.processing.datasets.writing import Dropped, Source, prepare
from modeling_gaze2report.processing.errors import DataError


def film(number):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), number % 256).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


class Counting(Source):
    """Records 0 ... count - 1; every fifth is dropped; stops with an error at `broken_at`."""

    def __init__(self, count=25, broken_at=None, setting=1):
        super().__init__("counting", "none", {"setting": setting})
        self.count, self.broken_at = count, broken_at

    def items(self):
        return list(range(self.count))

    def records(self, item):
        if item == self.broken_at:
            raise KeyboardInterrupt
        if item % 5 == 4:
            yield Dropped(str(item), "every fifth", detail="on purpose")
            return
        record = empty_record(f"film-{item}", f"patient-{item}", ("train", "validation", "test")[item % 3])
        record["image"] = film(item)
        record["labels"] = [1] + [None] * 13
        yield record


def contents(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }


def test_data_set_reads_back_in_memory_and_streaming(tmp_path):
    from datasets import load_dataset

    summary = prepare(Counting(), tmp_path / "out", records_per_shard=10)

    assert summary["num_records"] == 20
    assert {name: part["num_records"] for name, part in summary["splits"].items()} == {
        "train": 7,
        "validation": 6,
        "test": 7,
    }
    files = {split: str(tmp_path / f"out/{split}-*.parquet") for split in ("train", "validation", "test")}
    loaded = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    ids = sorted(image_id for part in loaded.values() for image_id in part["image_id"])
    assert ids == sorted(f"film-{k}" for k in range(25) if k % 5 != 4)
    assert loaded["train"][1]["image"].getpixel((0, 0)) == 3
    stream = load_dataset("parquet", data_files=files, streaming=True, split="train")
    assert [row["image_id"] for row in stream] == loaded["train"]["image_id"][:]


def test_what_was_dropped_is_counted_and_listed(tmp_path):
    summary = prepare(Counting(), tmp_path)

    assert summary["dropped"]["count"] == 5
    assert summary["dropped"]["reasons"] == [{"lost": "record", "reason": "every fifth", "count": 5}]
    lines = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == ["4", "9", "14", "19", "24"]


def test_killed_run_goes_on_without_losing_or_doubling_records(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(Counting(broken_at=17), tmp_path / "killed", records_per_shard=5)
    assert not (tmp_path / "killed" / "dataset.json").exists()
    written = contents(tmp_path / "killed")

    resumed = prepare(Counting(), tmp_path / "killed", records_per_shard=5)

    straight = prepare(Counting(), tmp_path / "straight", records_per_shard=5)
    assert resumed == straight
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert set(written.items()) <= set(
        contents(tmp_path / "killed").items()
    )  # the finished units were not written again


def test_half_a_unit_left_by_a_kill_is_written_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(Counting(broken_at=17), tmp_path / "killed", records_per_shard=5)
    # as if the machine had stopped between the Parquet files of a unit and its progress file
    (tmp_path / "killed" / ".progress" / "00002.json").unlink()
    (tmp_path / "killed" / ".train-00003.parquet.1.tmp").write_bytes(b"half")

    prepare(Counting(), tmp_path / "killed", records_per_shard=5)

    prepare(Counting(), tmp_path / "straight", records_per_shard=5)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_finished_data_set_is_left_alone(tmp_path):
    first = prepare(Counting(), tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    assert prepare(Counting(), tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_deleted_shards_are_made_anew(tmp_path):
    first = prepare(Counting(), tmp_path)
    before = contents(tmp_path)
    (tmp_path / "train-00000.parquet").unlink()

    assert prepare(Counting(), tmp_path) == first
    assert contents(tmp_path) == before


def test_other_settings_are_not_mixed_into_a_folder(tmp_path):
    prepare(Counting(), tmp_path)

    with pytest.raises(DataError, match="another data set or other settings"):
        prepare(Counting(setting=2), tmp_path)
    prepare(Counting(count=3, setting=2), tmp_path, overwrite=True)
    assert json.loads((tmp_path / "dataset.json").read_text())["num_records"] == 3
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_foreign_parquet_files_are_not_deleted(tmp_path):
    (tmp_path / "mine.parquet").write_bytes(b"precious")

    with pytest.raises(DataError, match="another data set"):
        prepare(Counting(), tmp_path)
    assert (tmp_path / "mine.parquet").read_bytes() == b"precious"


def test_broken_record_stops_with_its_name(tmp_path):
    class Broken(Counting):
        def records(self, item):
            for record in super().records(item):
                if isinstance(record, dict):
                    record["labels"] = [7]
                yield record

    with pytest.raises(DataError, match="counting: film-0: labels must be 14"):
        prepare(Broken(), tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_audit_of_a_leaking_source_is_written_down(tmp_path):
    class Leaking(Counting):
        def records(self, item):
            for record in super().records(item):
                if isinstance(record, dict):
                    record["patient_id"] = "the only one"
                yield record

    summary = prepare(Leaking(), tmp_path)

    assert not summary["audit"]["passed"]
    assert json.loads((tmp_path / "dataset.json").read_text())["audit"]["patients_in_two_splits"]["count"] == 1


def test_source_without_any_record_is_an_error(tmp_path):
    class Empty(Counting):
        def records(self, item):
            yield Dropped(str(item), "nothing left")

    with pytest.raises(DataError, match=r"no record could be made; reasons: nothing left \(25\)"):
        prepare(Empty(), tmp_path)


def test_phantoms_are_the_same_bytes_whatever_the_number_of_processes(tmp_path):
    one = prepare(PhantomSource(12, 48, seed=5), tmp_path / "one", num_proc=1, records_per_shard=6)
    two = prepare(PhantomSource(12, 48, seed=5), tmp_path / "two", num_proc=2, records_per_shard=6)

    assert one == two
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(("count", "units"), [(99, 1), (1200, 12), (10_000, 40), (100_000, 100)])
def test_units_keep_every_process_busy_and_do_not_depend_on_their_number(tmp_path, monkeypatch, count, units):
    written = []

    def note(source, items, number, out, step=None):
        written.append(items)
        (out / ".progress" / f"{number:05d}.json").write_text("{}")

    monkeypatch.setattr(writing, "write_unit", note)
    monkeypatch.setattr(writing, "_finish", lambda *args: {})

    prepare(Counting(count), tmp_path)

    assert len(written) == units
    assert [item for items in written for item in items] == list(range(count))


@pytest.mark.parametrize(("encoding", "mode"), [("jpeg", "L"), ("png", "L"), ("png16", "I;16")])
def test_encodings_of_phantoms(encoding, mode):
    (record,) = PhantomSource(1, 48, encoding=encoding).records(0)
    image = Image.open(io.BytesIO(record["image"]["bytes"]))

    assert (image.mode, image.size) == (mode, (48, 48))


@pytest.mark.parametrize(("name", "value"), [("num_films", 0), ("image_size", 8), ("readers", 9), ("seed", -1)])
def test_phantom_settings_out_of_range_are_named(name, value):
    with pytest.raises(DataError, match=f"--{name.replace('_', '-')} must be"):
        PhantomSource(**{name: value})


def test_ten_thousand_films_stay_under_400_megabytes():
    records = [next(PhantomSource(30, 256).records(index)) for index in range(0, 30, 3)]

    size = sum(
        len(record["image"]["bytes"]) + len(json.dumps({k: v for k, v in record.items() if k != "image"}))
        for record in records
    )
    assert size / len(records) * 10_000 < 400e6


def test_progress_of_other_versions_is_not_trusted(tmp_path):
    (tmp_path / ".progress").mkdir()
    (tmp_path / ".progress" / "plan.json").write_text("{broken")

    with pytest.raises(DataError, match="another data set"):
        prepare(Counting(), tmp_path)
    assert Path(tmp_path / ".progress" / "plan.json").exists()
