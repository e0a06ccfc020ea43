"""Records -> training batches: which task and which gaze a record gets, and everything that a loss compares with.

Every draw comes from (seed, epoch, number of the record) alone: it is the same for any number of workers and processes,
and after a run was cut off and continued.
"""

import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Sampler

from ..modeling_grid import cell_centres, heat_map
from ..processing.anatomy import REGION_NAMES
from ..processing.datasets.reading import load_split
from ..processing.datasets.record import COLUMNS, LIST_COLUMNS
from ..processing.errors import DataError
from ..processing.gaze_geometry import boxes_to_square
from ..processing.image_processing_gaze2report import load_film
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from ..processing.report_attributes import VIEWS, severities_in_answer, severities_in_report, view_of
from ..processing.report_labels import FINDINGS
from .losses import IGNORED
from .recipe import DataRecipe
from .tasks import TASKS, TASKS_WITH_GAZE, TaskExample, make_example

# Fixations from which a recording is trusted in full, and the share of the reading's time that they should fill.
TRUSTED_FIXATIONS = 10
TRUSTED_SHARE = 0.8
SHUFFLE_BUFFER = 1000


# -- records ----------------------------------------------------------------------------------------------------------


class RecordDataset(Dataset):
    """Records by number, each with the epoch and the progress (0 to 1) at which it is asked for.

    Args:
        data: `datasets.Dataset`.
        columns: the record's columns that have other names in `data`.
    """

    def __init__(self, data, columns: dict[str, str] | None = None):
        self.data = data
        self.columns = columns or {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, float, int]) -> dict:
        epoch, progress, index = key if isinstance(key, tuple) else (0, 1.0, int(key))
        drawn = {"epoch": epoch, "progress": progress, "index": index}
        return canonical(self.data[index], self.columns, f"record {index}") | drawn

    def column(self, name: str) -> list:
        """All values of one of the record's columns; empty where the data have no such column."""
        name = self.columns.get(name, name)
        return list(self.data.select_columns([name])[name]) if name in self.data.column_names else []


class RecordStream(IterableDataset):
    """Records as they are read, shuffled within a buffer, pass after pass without an end.

    Images are decoded by whoever makes the batch.

    Args:
        stream: `datasets.IterableDataset`.
        columns: the record's columns that have other names in `stream`.
        seed: of the order; `None` to keep it.

    Attributes:
        total: records that the training will take, of which each record's progress is a share.
    """

    def __init__(self, stream, columns: dict[str, str] | None = None, seed: int | None = None):
        self.stream = stream
        self.columns = columns or {}
        self.seed = seed
        self.total = 1

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for place, (epoch, record) in enumerate(itertools.islice(self.passes(), first, None, step)):
            index = record.pop("index")
            drawn = {"epoch": epoch, "progress": min(1.0, (first + place * step) / self.total), "index": index}
            yield canonical(record, self.columns, f"record {index}") | drawn

    def passes(self) -> Iterator[tuple[int, dict]]:
        """Each record of each pass with the number of the pass; ends only where there is no record."""
        stream = self.stream.map(add_index, with_indices=True)
        if self.seed is not None:
            stream = stream.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            is_empty = True
            for record in stream:
                is_empty = False
                yield epoch, record
            if is_empty:
                return


def add_index(record: dict, index: int) -> dict:
    return record | {"index": index}


class EpochSampler(Sampler):
    """The numbers of all records in an order of their own for each epoch, with epoch and progress of the training."""

    def __init__(self, length: int, epochs: float, seed: int):
        self.length, self.epochs, self.seed = length, epochs, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, float, int]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        for place, index in enumerate(order.tolist()):
            yield epoch, min(1.0, (epoch + place / self.length) / self.epochs), index


def load_records(recipe: DataRecipe, seed: int = 0) -> tuple[Dataset | IterableDataset, RecordDataset]:
    """Training and validation records of a recipe.

    Raises:
        DataError: nothing readable there, an empty split, a column that the recipe maps and the data lack.
    """
    folder = Path(recipe.path)
    if any(folder.glob(f"{recipe.train_split}-*.parquet")) or not folder.exists() or not any(folder.iterdir()):
        if recipe.streaming:
            train = stream_of(folder, recipe.train_split)
        else:
            train = load_split(recipe.path, recipe.train_split, recipe.max_train_records)
        validation = load_split(recipe.path, recipe.validation_split, recipe.max_validation_records)
    else:
        train, validation = load_foreign(recipe, seed)
    train = followed_by(train, recipe)
    names = train.column_names or list(next(iter(train)))
    for name, source in recipe.columns.items():
        if source not in names:
            raise DataError(
                f"{recipe.path}: data.columns maps {name} to {source!r}, which is no column of the data; their columns "
                f"are {', '.join(names)}"
            )
    if recipe.columns.get("image", "image") not in names:
        raise DataError(
            f"{recipe.path}: there is no column image; name the one that holds it in data.columns.image. The data have "
            f"{', '.join(names)}"
        )
    if recipe.normal_films < 1:
        if (labels := recipe.columns.get("labels", "labels")) not in names:
            raise DataError(
                f"{recipe.path}: data.normal_films needs labels to tell normal films by; no column {labels!r}"
            )
        train = with_fewer_normal(train, recipe, labels, seed)
    validation = RecordDataset(validation, recipe.columns)
    if recipe.streaming:
        return RecordStream(train, recipe.columns, seed), validation
    return RecordDataset(train, recipe.columns), validation


def followed_by(train, recipe: DataRecipe):
    """The records, and those of the recipe's further folders behind them.

    Raises:
        DataError: nothing readable there, or the same column holds different things.
    """
    from datasets import concatenate_datasets

    for path in recipe.more_paths:
        more = load_split(path, recipe.train_split, recipe.max_train_records)
        try:
            train = concatenate_datasets([train, more])
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: its records are of another kind than those of {recipe.path}: {error}") from error
    return train


def with_fewer_normal(train, recipe: DataRecipe, column: str, seed: int):
    """The records but for some of those labelled as normal in a column, of which the recipe's share stays: the same
    ones whenever the seed is.

    Raises:
        DataError: nothing is left.
    """

    def stays(labels, index: int) -> bool:
        is_normal = bool(labels) and labels[FINDINGS.index("No Finding")] == 1
        return not is_normal or share_of(f"{seed}/normal/{index}") < recipe.normal_films

    if recipe.streaming:
        return train.filter(stays, with_indices=True, input_columns=column)
    kept = train.select([index for index, labels in enumerate(train[column]) if stays(labels, index)])
    if len(kept) == 0:
        raise DataError(f"{recipe.path}: every training film is normal, and data.normal_films leaves none of them")
    return kept


def stream_of(folder: Path, split: str):
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    shards = sorted(str(shard) for shard in folder.glob(f"{split}-*.parquet"))
    if not shards:
        raise DataError(f"{folder}: there is no file {split}-*.parquet; prepare the data with `gaze2report prepare`")
    stream = load_dataset("parquet", data_files=shards, split="train", streaming=True)
    return stream.cast_column("image", ImageFeature(decode=False))


def load_foreign(recipe: DataRecipe, seed: int):
    """Splits of anything that `datasets` reads; patients are kept apart where a split has to be made."""
    from datasets import load_dataset

    try:
        splits = load_dataset(recipe.path)
    except Exception as error:  # datasets raises many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{recipe.path}: neither a prepared data set nor readable by datasets: {reason}") from error
    if recipe.train_split not in splits:
        raise DataError(
            f"{recipe.path}: there is no split {recipe.train_split!r}; name one of these in data.train_split: "
            f"{', '.join(splits)}"
        )
    train = splits[recipe.train_split]
    if recipe.validation_split in splits:
        validation = splits[recipe.validation_split]
    else:
        patient = recipe.columns.get("patient_id", "patient_id")
        groups = list(train[patient] if patient in train.column_names else range(len(train)))
        shuffled = sorted(set(groups), key=lambda group: share_of(f"{seed}/{group}"))
        held_out = set(shuffled[: math.ceil(recipe.validation_share * len(shuffled))])
        validation = train.select([index for index, group in enumerate(groups) if group in held_out])
        train = train.select([index for index, group in enumerate(groups) if group not in held_out])
    for name, split in ((recipe.train_split, train), (recipe.validation_split, validation)):
        if len(split) == 0:
            raise DataError(f"{recipe.path}: the split {name} holds no record")
    if recipe.max_train_records:
        train = train.select(range(min(recipe.max_train_records, len(train))))
    if recipe.max_validation_records:
        validation = validation.select(range(min(recipe.max_validation_records, len(validation))))
    return train, validation


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def canonical(row: dict, columns: dict[str, str], where: str) -> dict:
    """The record of a row: mapped columns under their record's names, what is absent as None or an empty list.

    Fixations may be rows of x, y, duration_s, or a text with them as JSON.
    """
    record = {name: row.get(columns.get(name, name)) for name in COLUMNS}
    record |= {name: record[name] if record[name] is not None else [] for name in LIST_COLUMNS}
    record["image_id"] = str(record["image_id"] if record["image_id"] is not None else where)
    image = record["image"]
    if isinstance(image, dict):
        record["image"] = Image.open(io.BytesIO(image["bytes"])) if image.get("bytes") else image["path"]
    fixations = record["fixations"]
    if isinstance(fixations, str):
        try:
            fixations = json.loads(fixations or "[]")
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where} ({record['image_id']}): the fixations are no JSON list of x, y, duration_s: {error}"
            ) from error
    record["fixations"] = [fixation_row(one, f"{where} ({record['image_id']})") for one in fixations]
    return record


def fixation_row(values, where: str) -> dict:
    if isinstance(values, dict):
        return {"onset_s": None} | values
    if len(values) != 3:
        raise DataError(f"{where}: a fixation is x, y, duration_s, not {list(values)}")
    return dict(zip(("x", "y", "duration_s"), values, strict=True)) | {"onset_s": None}


# -- batches ----------------------------------------------------------------------------------------------------------


@dataclass
class ReportCollator:
    """Makes a batch of records: prompt and answer for the language model, targets for everything else.

    The prompt comes from the processor exactly as at inference; the answer follows it, with its end token. Only the
    answer's tokens carry a language loss.

    Attributes:
        processor: the model's processor.
        recorded_gaze, predicted_gaze: shares of the records whose gaze is recorded or predicted; the rest has none. A
            record without a recording has predicted gaze or none, in the same proportion.
        recorded_gaze_end, predicted_gaze_end: the shares at the end of the stage; left out, they stay.
        seed: of all draws.
        tasks: share of each task.
        texts_per_film: tasks of each film, all different. Those beyond the first share what the film showed to it, so
            that much text is learned from for one look; a first task with a gaze of its own stays alone.
        max_report_tokens: longer answers are cut.
        readers: number of each reader that the scanpath model knows, from 1.
        reader_dropout: share of the records whose reader is hidden.
        agreement: how far other readers' maps of the film agree with a reading, by image and reader; 1 elsewhere.
        with_text: whether to add the report alone, for the contrast of image and text.
    """

    processor: Gaze2ReportProcessor
    recorded_gaze: float = 0.5
    predicted_gaze: float = 0.3
    recorded_gaze_end: float | None = None
    predicted_gaze_end: float | None = None
    seed: int = 0
    tasks: dict[str, float] = field(default_factory=lambda: {"report": 1.0})
    texts_per_film: int = 1
    max_report_tokens: int = 256
    readers: dict[str, int] = field(default_factory=dict)
    reader_dropout: float = 0.5
    agreement: dict[tuple[str, str], float] = field(default_factory=dict)
    with_text: bool = False

    def __call__(self, records: list[dict]) -> dict[str, torch.Tensor]:
        films = [load_film(record["image"], name=record["image_id"]) for record in records]
        sizes = [(film.height, film.width) for film in films]
        records = [record | {"image": film} for record, film in zip(records, films, strict=True)]
        draws = [self.draw(record, place) for place, record in enumerate(records)]
        tasks, examples, sources, shown, readers = (list(column) for column in zip(*draws, strict=True))
        batch = self.processor(
            images=films,
            text=[example.prompt for example in examples],
            gaze=shown,
            gaze_source=sources,
            return_tensors="pt",
            padding=True,
        )
        side = batch["pixel_values"].shape[-1]
        prompts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        rows = list(range(len(films)))
        for place, (record, task, example) in enumerate(zip(records, tasks[:], examples[:], strict=True)):
            for more, another in self.draw_more(record, place, task, example):
                rows.append(place)
                tasks.append(more)
                examples.append(another)
                prompts.append(self.prompt_tokens(another.prompt))
        batch["row_films"] = torch.tensor(rows)
        answers = [self.tokens(example.target) for example in examples]
        batch |= join(prompts, answers, self.processor.tokenizer.pad_token_id)
        batch["tasks"] = torch.tensor([TASKS.index(task) for task in tasks])
        recorded = [self.shortened(gaze_of(record)) for record in records]
        features = self.processor.gaze_features(recorded, "auto", np.array(sizes), side)
        batch["order_ranks"] = rank_rows([example.ranks for example in examples[: len(films)]])
        batch["recorded_fixations"] = torch.from_numpy(features["fixations"])
        batch["recorded_mask"] = torch.from_numpy(features["fixation_mask"])
        batch["trust"] = torch.tensor(
            [self.trust(record, gaze) for record, gaze in zip(records, recorded, strict=True)]
        )
        batch["reader_ids"] = torch.tensor(readers)
        batch["labels_findings"] = torch.tensor([label_row(record) for record in records])
        batch["severity_targets"] = torch.tensor([severity_row(record) for record in records])
        batch["view_targets"] = torch.tensor([view_number(record) for record in records])
        for name, (boxes, mask) in {
            "finding": stack_boxes([finding_boxes(record) for record in records], sizes, side),
            "region": stack_boxes([region_boxes(record) for record in records], sizes, side),
        }.items():
            batch[f"{name}_boxes"], batch[f"{name}_mask"] = boxes, mask
        batch["box_corners"], batch["box_classes"] = stack_single_boxes(records, sizes, side)
        batch["mapped_findings"] = torch.tensor(np.array([mapped_findings(record) for record in records]))
        if self.with_text:
            batch |= self.text_features(records)
        # The first tensor says how many records there are, to those who ask the batch.
        batch = {"pixel_values": batch["pixel_values"]} | dict(batch)
        return batch | {"record_ids": [record["image_id"] for record in records]}

    def draw(self, record: dict, place: int) -> tuple[str, TaskExample, str, np.ndarray | None, int]:
        """Task, example, source of gaze, the gaze that is shown where it is recorded, and number of the reader."""
        generator = np.random.default_rng([self.seed, record.get("epoch", 0), record.get("index", place)])
        task = draw_task(self.tasks, generator)
        gaze = self.shortened(gaze_of(record))
        source = self.draw_source(gaze, generator, record.get("progress", 0.0))
        is_hidden = generator.random() < self.reader_dropout
        reader = 0 if is_hidden else self.readers.get(record.get("reader_id") or "", 0)
        example = make_example(record, task, self.processor, generator)
        if example is None:
            task = "report"
            example = make_example(record, task, self.processor, generator)
        if example is None:
            example = TaskExample(self.processor.task_prompt("report"), "")
        if example.gaze is not None:
            return task, example, "recorded", self.shortened(example.gaze), reader
        return task, example, source, gaze if source == "recorded" else None, reader

    def draw_more(self, record: dict, place: int, task: str, example: TaskExample) -> Iterator[tuple[str, TaskExample]]:
        """Further tasks of a film and their examples; what its record lacks the annotation for is left out."""
        if example.gaze is not None:
            return
        left = {name: share for name, share in self.tasks.items() if name not in (task, *TASKS_WITH_GAZE) and share}
        for number in range(1, self.texts_per_film):
            if not left:
                return
            generator = np.random.default_rng([self.seed, record.get("epoch", 0), record.get("index", place), number])
            more = draw_task(left, generator)
            del left[more]
            another = make_example(record, more, self.processor, generator)
            if another is not None:
                yield more, another

    def draw_source(self, gaze: np.ndarray | None, generator: np.random.Generator, progress: float = 0.0) -> str:
        recorded = between(self.recorded_gaze, self.recorded_gaze_end, progress)
        predicted = between(self.predicted_gaze, self.predicted_gaze_end, progress)
        first, second = generator.random(2)
        if first < recorded and gaze is not None:
            return "recorded"
        return "predicted" if second * (1 - recorded) < predicted and recorded < 1 else "none"

    def shortened(self, gaze: np.ndarray | None) -> np.ndarray | None:
        """What the processor keeps of a long recording, without a warning for every film of a data set."""
        if gaze is None or len(gaze) <= self.processor.max_fixations:
            return gaze
        longest = np.argsort(-gaze[:, 2], kind="stable")[: self.processor.max_fixations]
        return gaze[np.sort(longest)]

    def prompt_tokens(self, prompt: str) -> torch.Tensor:
        """Tokens of a prompt about one film, as the processor makes them where it is given both."""
        (rendered,) = self.processor.render_prompts([prompt], [[None]], False)
        text = rendered.replace(self.processor.image_token, self.processor.replace_image_token({}, 0))
        return torch.tensor(self.processor.tokenizer(text)["input_ids"])

    def tokens(self, text: str) -> list[int]:
        """Tokens of an answer with its end, or none."""
        tokenizer = self.processor.tokenizer
        text = self.processor.harmless_text(text)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [*tokens[: self.max_report_tokens], tokenizer.eos_token_id] if tokens else []

    def trust(self, record: dict, gaze: np.ndarray | None) -> float:
        """quality x min(1, N / 10) x agreement with other readers of the film; our own formula."""
        if gaze is None:
            return 0.0
        agreement = self.agreement.get((record["image_id"], record.get("reader_id") or ""), 1.0)
        return gaze_quality(record) * min(1.0, len(gaze) / TRUSTED_FIXATIONS) * agreement

    def text_features(self, records: list[dict]) -> dict[str, torch.Tensor]:
        """Each report without a film: tokens, mask, a number that equal texts share, and whether there is one."""
        reports = [(record.get("report") or "").strip() for record in records]
        rows = [self.tokens(report) for report in reports]
        longest = max(1, *map(len, rows))
        ids = torch.full((len(rows), longest), self.processor.tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[index, : len(row)] = 1
        keys = [int.from_bytes(hashlib.sha256(report.encode()).digest()[:7], "big") for report in reports]
        has_text = mask.any(-1)
        mask[:, 0] |= ~has_text  # attention over nothing would not be a number
        return {"text_ids": ids, "text_mask": mask, "text_keys": torch.tensor(keys), "has_text": has_text}


def rank_rows(ranks: list[np.ndarray | None]) -> torch.Tensor:
    """Places in time as one table, -1 where there is none. Shapes: (N,) or nothing per film -> (B, N)."""
    rows = torch.full((len(ranks), max((len(row) for row in ranks if row is not None), default=0)), -1)
    for film, row in enumerate(ranks):
        if row is not None:
            rows[film, : len(row)] = torch.as_tensor(row)
    return rows


def draw_task(shares: dict[str, float], generator: np.random.Generator) -> str:
    names = list(shares)
    weights = np.array(list(shares.values()), dtype=float)
    return names[generator.choice(len(names), p=weights / weights.sum())]


def between(start: float, end: float | None, progress: float) -> float:
    return start if end is None else start + (end - start) * progress


def gaze_quality(record: dict) -> float:
    """Share of the reading's time that fixations on the film fill, over 0.8, at most 1; 1 where onsets are not known.

    The rest of a good recording is saccades and blinks; more than that is lost signal or looking away.
    """
    timed = [one for one in record.get("fixations") or [] if one.get("onset_s") is not None]
    gaze = gaze_of(record)
    if not timed or gaze is None:
        return 1.0
    span = max(one["onset_s"] + one["duration_s"] for one in timed) - min(one["onset_s"] for one in timed)
    return min(1.0, float(gaze[:, 2].sum()) / max(span, 1e-6) / TRUSTED_SHARE)


def reader_agreement(records: RecordDataset, grid_size: int, sigma: float) -> dict[tuple[str, str], float]:
    """Correlation of each reading's map with the mean of the film's other readings, at least 0, by image and reader.

    Films that were read once are left out.
    """
    readings: dict[str, list[tuple[str, np.ndarray]]] = {}
    images, fixations = records.column("image_id"), records.column("fixations")
    if len(set(images)) == len(images) or not fixations:
        return {}
    readers = records.column("reader_id") or [None] * len(images)
    for image, reader, rows in zip(images, readers, fixations, strict=True):
        gaze = gaze_of(canonical({"image_id": image, "fixations": rows}, {}, "record"))
        if gaze is not None:
            readings.setdefault(str(image), []).append((reader or "", gaze))
    centres = cell_centres(grid_size)
    agreement = {}
    for image, several in readings.items():
        if len(several) < 2:
            continue
        maps = torch.cat(
            [
                heat_map(torch.from_numpy(gaze)[None], torch.ones(1, len(gaze), dtype=torch.bool), centres, sigma)
                for _, gaze in several
            ]
        )
        for place, (reader, _) in enumerate(several):
            others = torch.cat((maps[:place], maps[place + 1 :])).mean(0)
            correlation = torch.corrcoef(torch.stack((maps[place], others)))[0, 1].nan_to_num(0)
            agreement[image, reader] = max(0.0, float(correlation))
    return agreement


def number_readers(records: RecordDataset, num_readers: int) -> dict[str, int]:
    """Numbers of the readers, from 1, in the order of their names.

    Raises:
        DataError: the model knows fewer.
    """
    if not num_readers:
        return {}
    names = sorted({name for name in records.column("reader_id") if name})
    if len(names) > num_readers:
        raise DataError(
            f"the data have {len(names)} readers, but model.scanpath.num_readers is {num_readers}: set it to "
            f"{len(names)}"
        )
    return {name: number for number, name in enumerate(names, start=1)}


def join(prompts: list[torch.Tensor], reports: list[list[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Prompt and report of each record in one row, padded on the right; labels on the report alone."""
    longest = max(len(prompt) + len(report) for prompt, report in zip(prompts, reports, strict=True))
    input_ids = torch.full((len(prompts), longest), pad_token_id)
    labels = torch.full((len(prompts), longest), IGNORED)
    attention_mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, (prompt, report) in enumerate(zip(prompts, reports, strict=True)):
        end = len(prompt) + len(report)
        input_ids[row, :end] = torch.cat((prompt, torch.tensor(report, dtype=torch.long)))
        labels[row, len(prompt) : end] = torch.tensor(report, dtype=torch.long)
        attention_mask[row, :end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def gaze_of(record: dict) -> np.ndarray | None:
    """(N, 3) x, y, duration in seconds of the fixations on the film; `None` without any."""
    rows = [(one["x"], one["y"], one["duration_s"]) for one in record.get("fixations") or []]
    rows = [row for row in rows if 0 <= row[0] <= 1 and 0 <= row[1] <= 1 and row[2] > 0]
    return np.array(rows, dtype=np.float32) if rows else None


def label_row(record: dict) -> list[float]:
    labels = record.get("labels") or [None] * len(FINDINGS)
    return [float("nan") if label is None else float(label) for label in labels]


def severity_row(record: dict) -> list[int]:
    """Degree of severity of each finding, as the report or an answer states it; -1 where none does."""
    stated = severities_in_report(record.get("report") or "")
    for one in record.get("questions") or []:
        stated |= severities_in_answer(one["question"] or "", one["answer"] or "")
    return [stated.get(name, -1) for name in FINDINGS]


def view_number(record: dict) -> int:
    """Place of the record's view in `VIEWS`, whatever else is said of it ("AP supine"); -1 for any other and none."""
    view = view_of(record.get("view") or "")
    return -1 if view is None else VIEWS.index(view)


def finding_boxes(record: dict) -> np.ndarray:
    """(14, 4) hull of the boxes of each finding, NaN where there is none."""
    boxes = np.full((len(FINDINGS), 4), np.nan)
    for one in record.get("boxes") or []:
        if one["label"] in FINDINGS:
            row = FINDINGS.index(one["label"])
            box = np.array([one["x0"], one["y0"], one["x1"], one["y1"]])
            boxes[row, :2] = np.fmin(boxes[row, :2], box[:2])
            boxes[row, 2:] = np.fmax(boxes[row, 2:], box[2:])
    return boxes


def single_boxes(record: dict) -> tuple[np.ndarray, list[int]]:
    """Every box of a finding, (M, 4), and the finding's number."""
    known = [one for one in record.get("boxes") or [] if one["label"] in FINDINGS]
    corners = [[one["x0"], one["y0"], one["x1"], one["y1"]] for one in known]
    return np.array(corners, dtype=np.float64).reshape(-1, 4), [FINDINGS.index(one["label"]) for one in known]


def mapped_findings(record: dict) -> np.ndarray:
    """(14,) whether it is known of every patch if it shows the finding: it has boxes, or is absent.

    That no finding is present is no place on the film: the first class never counts.
    """
    _, present = single_boxes(record)
    known = np.array(label_row(record)) == 0
    known[present] = True
    known[FINDINGS.index("No Finding")] = False
    return known


def region_boxes(record: dict) -> np.ndarray:
    """(17, 4) anatomical boxes, NaN where there is none."""
    rows = record.get("regions") or [None] * len(REGION_NAMES)
    return np.array([[np.nan] * 4 if row is None else row for row in rows], dtype=np.float64)


def stack_boxes(boxes: list[np.ndarray], sizes: list[tuple[int, int]], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in the square, (B, K, 4), and which of them exist, (B, K)."""
    rows = [boxes_to_square(np.nan_to_num(one), size, side) for one, size in zip(boxes, sizes, strict=True)]
    exists = [~np.isnan(one).any(-1) for one in boxes]
    return torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor(np.array(exists))


def stack_single_boxes(records: list[dict], sizes: list[tuple[int, int]], side: int) -> tuple:
    """Boxes of the findings in the square, (B, M, 4), and their classes, (B, M), -1 for none; M is at least 1."""
    rows = [single_boxes(record) for record in records]
    longest = max(1, *(len(classes) for _, classes in rows))
    corners = torch.zeros(len(rows), longest, 4)
    numbers = torch.full((len(rows), longest), -1)
    for index, ((boxes, classes), size) in enumerate(zip(rows, sizes, strict=True)):
        if classes:
            corners[index, : len(classes)] = torch.from_numpy(np.asarray(boxes_to_square(boxes, size, side))).float()
            numbers[index, : len(classes)] = torch.tensor(classes)
    return corners, numbers


__all__ = [
    "EpochSampler",
    "RecordDataset",
    "RecordStream",
    "ReportCollator",
    "load_records",
    "number_readers",
    "reader_agreement",
]
