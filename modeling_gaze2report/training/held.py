"""Batches that are made ahead and held in the memory of the device that trains.

On a GPU a small model learns from a batch in less time than it takes to decode its films and write its texts. A stage
with `held_passes` makes so many passes over its records ahead and goes round them. Where nothing learns that looks at
films, their visual-gaze tokens are made ahead as well, and no film is looked at again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..modeling_gaze2report import PREDICTED_GAZE, RECORDED_GAZE, Gaze2ReportForConditionalGeneration
from .losses import IGNORED

FILMS = "pixel_values"
# In place of films that have been looked at: what the projector takes, visual-gaze tokens (B, T, D) and values (B, V),
TOKENS, VALUES = "visual_gaze_tokens", "finding_values"
# or what the perception heads take, nodes after the graph: patches (B, P, D) and the global one (B, D).
PATCHES, GLOBAL = "patch_states", "global_state"
TEXTS = ("input_ids", "attention_mask", "labels", "tasks", "row_films")
GAZE = ("fixations", "fixation_mask")
# What stands beyond the end of a shorter row, where that is not zero.
FILLERS = {"order_ranks": -1, "box_classes": -1}
# Records that a process makes into a batch, and films that the model looks at, at once.
RECORDS_AT_ONCE, LOOKS_AT_ONCE = 64, 256


class HeldKeys(Dataset):
    """In place of the records their keys: epoch, progress and index."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int | tuple[int, float, int]) -> tuple[int, float, int]:
        return key if isinstance(key, tuple) else (0, 1.0, key)


@dataclass
class HeldBatches:
    """A collator that makes batches of keys by looking up what is held, and of records what another collator makes.

    Attributes:
        collator: makes batches of records.
        films: (N, 1 or 3, S, S) in half precision; `None` once they have been looked at.
        columns: whatever else there is once for each film of each pass, (passes, N, ...).
        texts: of each text `input_ids` up to the longest, `length`, `start` of the answer, `task`; (R, L) and (R,).
        rows: the texts of each film of each pass.
    """

    collator: Callable[[list[dict]], dict]
    films: torch.Tensor | None
    columns: dict[str, torch.Tensor]
    texts: dict[str, torch.Tensor]
    rows: list[list[list[int]]]

    def __post_init__(self):
        self.lengths = self.texts["length"].tolist()

    @property
    def num_films(self) -> int:
        return len(self.rows[0])

    def __call__(self, items: list) -> dict:
        if not isinstance(items[0], tuple):
            return self.collator(items)
        places = [(epoch % len(self.rows), index) for epoch, _, index in items]
        device = self.texts["input_ids"].device
        passes, films = torch.tensor(places, device=device).T
        batch = {} if self.films is None else {FILMS: self.pixels(films)}
        batch |= {name: values[passes, films] for name, values in self.columns.items()}
        batch |= self.texts_of([self.rows[number][index] for number, index in places])
        return batch | {"record_ids": [f"number {index}" for _, index in places]}

    def pixels(self, films: torch.Tensor | slice) -> torch.Tensor:
        return self.films[films].float().expand(-1, 3, -1, -1)

    def texts_of(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """The texts of some films: the first of each, then all further ones."""
        device = self.texts["input_ids"].device
        chosen = [(one[0], film) for film, one in enumerate(rows)]
        chosen += [(text, film) for film, one in enumerate(rows) for text in one[1:]]
        longest = max(self.lengths[text] for text, _ in chosen)
        texts, of_film = torch.tensor(chosen, device=device).T
        ids = self.texts["input_ids"][texts, :longest].long()
        place = torch.arange(longest, device=device)
        is_text = place < self.texts["length"][texts].unsqueeze(1)
        is_answer = is_text & (place >= self.texts["start"][texts].unsqueeze(1))
        return {
            "input_ids": ids,
            "attention_mask": is_text.long(),
            "labels": torch.where(is_answer, ids, IGNORED),
            "tasks": self.texts["task"][texts],
            "row_films": of_film,
        }

    def to(self, device: torch.device | str) -> "HeldBatches":
        """The same, held there."""
        return replace(
            self,
            films=None if self.films is None else self.films.to(device),
            columns={name: values.to(device) for name, values in self.columns.items()},
            texts={name: values.to(device) for name, values in self.texts.items()},
        )

    def shown(self, rows: slice, number: int) -> dict[str, torch.Tensor]:
        """What the model is shown of some films in one pass."""
        names = ("film_boxes", *GAZE, "gaze_source")
        return {FILMS: self.pixels(rows)} | {name: self.columns[name][number, rows] for name in names}

    def parts(self, task: str) -> Iterator[slice]:
        starts = range(0, self.num_films, LOOKS_AT_ONCE)
        for start in tqdm(starts, disable=None, desc=task, unit="batch"):
            yield slice(start, start + LOOKS_AT_ONCE)

    @torch.no_grad()
    def with_predicted_gaze(self, model: Gaze2ReportForConditionalGeneration) -> "HeldBatches":
        """The same with the gaze that the model predicts now, wherever it was to predict some."""
        is_predicted = self.columns["gaze_source"] == PREDICTED_GAZE
        if not is_predicted.any():
            return self
        longest = model.config.scanpath_config.max_fixations
        columns = dict(self.columns)
        for name in GAZE:
            missing = longest - columns[name].shape[2]
            columns[name] = F.pad(columns[name], (0, 0) * (columns[name].dim() - 3) + (0, missing))
        for rows in self.parts("predicted gaze"):
            predicted = model.predict_scanpath(self.pixels(rows), film_boxes=columns["film_boxes"][0, rows])
            missing = longest - predicted.mask.shape[-1]
            here = is_predicted[:, rows]
            fixations = F.pad(predicted.fixations[:, 0], (0, 0, 0, missing))
            mask = F.pad(predicted.mask[:, 0], (0, missing))
            columns["fixations"][:, rows] = torch.where(here[..., None, None], fixations, columns["fixations"][:, rows])
            columns["fixation_mask"][:, rows] = torch.where(here[..., None], mask, columns["fixation_mask"][:, rows])
        # Given from now on, like recorded gaze: the graph does not tell them apart.
        columns["gaze_source"] = columns["gaze_source"].masked_fill(is_predicted, RECORDED_GAZE)
        return replace(self, columns=columns)

    def with_tokens(self, model: Gaze2ReportForConditionalGeneration) -> "HeldBatches":
        """The same with visual-gaze tokens in place of the films."""
        return self.with_inputs_of(model, model.model.projector, (TOKENS, VALUES))

    def with_states(self, model: Gaze2ReportForConditionalGeneration) -> "HeldBatches":
        """The same with nodes after the graph in place of the films, beside them where the pixels are looked at."""
        held = self.with_inputs_of(model, model.model.perception, (PATCHES, GLOBAL))
        return held if model.model.perception.detail is None else replace(held, films=self.films)

    @torch.no_grad()
    def with_inputs_of(
        self, model: Gaze2ReportForConditionalGeneration, part: nn.Module, names: tuple[str, str]
    ) -> "HeldBatches":
        """The same with what a part of the model takes, two tensors, in place of the films."""
        caught = []
        hook = part.register_forward_pre_hook(lambda _, inputs: caught.append(inputs))
        passes = []
        try:
            for number in range(len(self.rows)):
                for rows in self.parts(names[0].replace("_", " ")):
                    model.get_image_features(**self.shown(rows, number), return_dict=True)
                passes.append([torch.cat([part.half() for part in parts]) for parts in zip(*caught, strict=True)])
                caught.clear()
        finally:
            hook.remove()
        stacked = [torch.stack(parts) for parts in zip(*passes, strict=True)]
        return replace(self, films=None, columns=self.columns | dict(zip(names, stacked, strict=True)))


def hold(collator: Callable[[list[dict]], dict], records: Dataset, passes: int, num_workers: int = 0) -> HeldBatches:
    """Make the batches of the first so many passes over the records, on the CPU.

    Args:
        collator: `ReportCollator` of the stage.
        records: `RecordDataset`.
        passes: how often each record is drawn for, as in the epochs of these numbers.
        num_workers: processes that help.
    """
    keys = [(number, 1.0, index) for number in range(passes) for index in range(len(records))]
    loader = DataLoader(
        records,
        batch_size=RECORDS_AT_ONCE,
        sampler=keys,
        collate_fn=Compact(collator),
        num_workers=num_workers,
    )
    batches = list(tqdm(loader, disable=None, desc="batches held", unit="batch"))
    texts, rows = [], []
    for batch in batches:
        for film in batch.pop("texts"):
            rows.append(list(range(len(texts), len(texts) + len(film))))
            texts += film
    columns = {
        name: torch.cat(padded([batch[name] for batch in batches], 1, FILLERS.get(name, 0))).unflatten(0, (passes, -1))
        for name in batches[0]
        if name != FILMS
    }
    ids = torch.nn.utils.rnn.pad_sequence([one[0] for one in texts], batch_first=True)
    return HeldBatches(
        collator,
        films=torch.cat([batch[FILMS] for batch in batches]),
        columns=columns,
        texts={
            "input_ids": ids,
            "length": torch.tensor([len(one[0]) for one in texts]),
            "start": torch.tensor([one[1] for one in texts]),
            "task": torch.tensor([one[2] for one in texts]),
        },
        rows=[rows[start : start + len(records)] for start in range(0, len(rows), len(records))],
    )


@dataclass
class Compact:
    """Batches as they are held: films of the first pass alone, in half precision, in one channel where all three are
    the same; texts without padding."""

    collator: Callable[[list[dict]], dict]

    def __call__(self, records: list[dict]) -> dict:
        batch = dict(self.collator(records))
        batch.pop("record_ids")
        films, is_first = batch[FILMS], torch.tensor([record["epoch"] == 0 for record in records])
        is_grey = torch.equal(films, films[:, :1].expand_as(films))
        batch[FILMS] = films[is_first, : 1 if is_grey else None].half()
        ids, mask, labels, tasks, of_film = (batch.pop(name) for name in TEXTS)
        texts = [[] for _ in records]
        for row, film in enumerate(of_film.tolist()):
            length = int(mask[row].sum())
            answer = (labels[row, :length] != IGNORED).nonzero()
            start = int(answer[0]) if len(answer) else length
            texts[film].append((ids[row, :length].to(torch.int32), start, int(tasks[row])))
        return batch | {"texts": texts}


def padded(values: list[torch.Tensor], dim: int, filler: float) -> list[torch.Tensor]:
    """Tensors of the same length along one dimension, where they have it; the ends of the shorter ones are filled."""
    if values[0].dim() <= dim:
        return values
    longest = max(one.shape[dim] for one in values)
    return [F.pad(one, (0, 0) * (one.dim() - dim - 1) + (0, longest - one.shape[dim]), value=filler) for one in values]


__all__ = ["FILMS", "GLOBAL", "PATCHES", "TOKENS", "VALUES", "HeldBatches", "HeldKeys", "hold"]
