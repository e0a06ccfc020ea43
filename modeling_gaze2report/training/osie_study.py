"""Human gaze on photographs: the scanpath model trained on OSIE and measured on pictures that it has not seen.

    python -m modeling_gaze2report.training.osie_study --osie DIR --out DIR [--seeds 3] [--epochs 25]

Natural images, free viewing, observers who are no radiologists: what this shows is whether the model learns where
people look next, and nothing about reading films. Pictures are split, so that no test picture was seen in training;
weights are those of the epoch that scores best on the validation pictures.

* Information: bits per fixation that the model's density of the next fixation lies above the centre bias of the
  training pictures. Beside it the same model shown another picture (what it knows from the fixations before alone),
  and a map of the other observers of the same picture.
* Scanpaths: as many samples as a picture has observers, against each observer, by every metric of the package that
  makes sense on photographs; the same for scanpaths drawn from the centre bias, at random, taken whole from observers
  of other pictures, and for each observer against the others (the human ceiling).

A study that was cut off goes on after the last run that finished. `results.json` and `results.md` hold the figures with
bootstrap intervals over the test pictures; the deviation over seeds stands apart.
"""

import argparse
import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import AutoConfig, AutoModel, set_seed

from ..configuration_gaze2report import Gaze2ReportScanpathConfig
from ..modeling_scanpath import Gaze2ReportScanpathModel
from ..processing.datasets.source_scanpaths import OsieSource
from ..processing.datasets.writing import Dropped
from ..processing.errors import DataError
from ..processing.metrics.files import Scanpath, write_json, write_text
from ..processing.metrics.resampling import Bootstrap, Statistics, compare_all, ratio, score_all, seed_summary
from ..processing.metrics.results import interval, metric_title, number, ordered_metrics, table
from ..processing.metrics.saliency import density_map, pixel_indices
from ..processing.metrics.scanpath_scoring import Prior, ScanpathScores, ScanpathScoring, human_ceiling, score_scanpaths
from ..processing.metrics.scanpaths import RegionSequence, ScanpathMetrics
from .ablation import status_of
from .losses import scanpath_loss
from .stages import preserved_randomness

DISCLAIMER = (
    "Natural images, free viewing, observers who are no radiologists: no figure here says anything about reading films."
)
# Pixels of the pictures, all of which have these sides in the data set's coordinates.
SIZE = (800.0, 600.0)
MAP_SHAPE = (96, 96)
BANDWIDTHS = (0.015, 0.025, 0.037, 0.05, 0.07)  # shares of the width
BACKGROUNDS = (0.01, 0.05, 0.1, 0.2, 0.4)  # shares of the wider density
SYSTEMS = {
    "model": "Model, samples",
    "deterministic": "Model, deterministic",
    "centre-bias": "Centre bias",
    "uniform": "Uniform",
    "other-picture": "Observers of other pictures",
    "human": "Human ceiling",
}
BASELINES = ("centre-bias", "uniform", "other-picture")
BITS = {
    "model": "Model",
    "model_other_picture": "Same model, shown another picture",
    "other_observers": "Map of the other observers (human ceiling of maps)",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that the figures of one run depend on, next to its seed and the data.

    Attributes:
        epochs: passes over the training pictures.
        patience: stop after so many epochs without a better validation.
        side: pixels of the square that a picture is stretched to; 16 pixels are one cell.
        pictures: pictures in a step, each with all of its readings.
        learning_rate, weight_decay: of AdamW; the rate follows one cycle.
        hidden_size: width of the scanpath model.
        widths: channels of the tower's three stages.
        dropout: of the scanpath model.
        average: decay of the moving average of the weights, which is what is measured.
        temperature: of the samples.
        samples: scanpaths for each test picture; 0 for as many as it has observers.
    """

    epochs: int = 25
    patience: int = 8
    side: int = 128
    pictures: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    hidden_size: int = 128
    widths: tuple[int, ...] = (48, 96, 160)
    dropout: float = 0.2
    average: float = 0.99
    temperature: float = 1.0
    samples: int = 0


# -- pictures ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Picture:
    """A photograph and those who looked at it.

    Attributes:
        name: of the picture.
        pixels: (3, S, S) uint8, stretched to a square.
        readings: (N, 3) x, y in [0, 1] of the picture and duration in seconds, of each observer.
        readers: names of the observers.
    """

    name: str
    pixels: torch.Tensor
    readings: list[np.ndarray]
    readers: list[str]

    def scanpaths(self) -> list[Scanpath]:
        return [
            scanpath(self.name, reading, reader) for reading, reader in zip(self.readings, self.readers, strict=True)
        ]


def scanpath(picture: str, fixations: np.ndarray, reader: str | None = None) -> Scanpath:
    return Scanpath(picture, reader, picture, SIZE, np.asarray(fixations, dtype=np.float64), True, 0)


def read_pictures(root: str | Path, side: int) -> dict[str, list[Picture]]:
    """The pictures of each split with their readings; the split is that of `gaze2report prepare osie`.

    Raises:
        DataError: no data there; a split without a picture.
    """
    source = OsieSource(Path(root))
    splits: dict[str, list[Picture]] = {"train": [], "validation": [], "test": []}
    dropped = 0
    for item in source.items():
        picture = None
        for record in source.records(item):
            if isinstance(record, Dropped):
                dropped += record.lost == "record"
                continue
            if picture is None:
                image = Image.open(io.BytesIO(record["image"]["bytes"])).convert("RGB").resize((side, side))
                picture = Picture(record["image_id"], torch.tensor(np.array(image)).permute(2, 0, 1), [], [])
                splits[record["split"]].append(picture)
            rows = [(one["x"], one["y"], one["duration_s"]) for one in record["fixations"]]
            picture.readings.append(np.array(rows, dtype=np.float32))
            picture.readers.append(record["reader_id"])
    if dropped:
        print(f"{root}: {dropped} pictures or readings cannot be used; `gaze2report prepare osie` names them")
    for name, pictures in splits.items():
        if not pictures:
            raise DataError(f"{root}: no picture of the data falls into the split {name}")
    return splits


def padded(readings: list[np.ndarray], count: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Readings of a picture as (count, longest, 3), and which fixations there are."""
    fixations, mask = torch.zeros(count, longest, 3), torch.zeros(count, longest, dtype=torch.bool)
    for row, reading in enumerate(readings):
        length = min(len(reading), longest)
        fixations[row, :length] = torch.from_numpy(reading[:length])
        mask[row, :length] = True
    return fixations, mask


@dataclasses.dataclass
class Batch:
    """Pictures (I, 3, S, S) in [0, 1], and their readings (I * R, N, 3) and (I * R, N), those of a picture together."""

    pixels: torch.Tensor
    fixations: torch.Tensor
    mask: torch.Tensor


def batch_of(pictures: Sequence[Picture], longest: int, generator: np.random.Generator | None = None) -> Batch:
    """A batch of pictures; with a generator, each seen as if from another place and in other light.

    A picture is mirrored or not and cut to between 0.8 and 1 of its sides; fixations outside go. Brightness, contrast
    and the balance of the colours vary, and some pictures lose their colours.
    """
    count = max(len(one.readings) for one in pictures)
    pixels = torch.stack([one.pixels for one in pictures]).float() / 255
    readings = [one.readings for one in pictures]
    if generator is not None:
        draw = generator.uniform
        scale = draw(0.8, 1.0, (len(pictures), 1)) * draw(0.95, 1.0, (len(pictures), 2))
        shift = draw(-1, 1, (len(pictures), 2)) * (1 - scale)
        scale[:, 0] *= np.where(generator.random(len(pictures)) < 0.5, -1, 1)
        # Position u in [-1, 1] of the cut shows the picture at scale * u + shift.
        affine = torch.zeros(len(pictures), 2, 3)
        affine[:, 0, 0], affine[:, 1, 1] = torch.from_numpy(scale).float().unbind(-1)
        affine[:, :, 2] = torch.from_numpy(shift).float()
        pixels = F.grid_sample(
            pixels, F.affine_grid(affine, list(pixels.shape), align_corners=False), align_corners=False
        )
        readings = [
            [seen_through(reading, *one) for reading in several]
            for several, *one in zip(readings, scale, shift, strict=True)
        ]
        gain = torch.from_numpy(draw(0.7, 1.3, (len(pictures), 1, 1, 1)) * draw(0.9, 1.1, (len(pictures), 3, 1, 1)))
        pixels = (pixels - 0.5) * gain.float() + 0.5
        pixels = pixels + torch.from_numpy(draw(-0.15, 0.15, (len(pictures), 1, 1, 1))).float()
        is_grey = torch.from_numpy(generator.random(len(pictures)) < 0.1)[:, None, None, None]
        pixels = torch.where(is_grey, pixels.mean(1, keepdim=True), pixels)
    parts = [padded(several, count, longest) for several in readings]
    return Batch(pixels, *(torch.cat(part) for part in zip(*parts, strict=True)))


def seen_through(reading: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The fixations of a reading that fall into a cut of the picture, in [0, 1] of the cut.

    Args:
        scale, shift: (2,) each; position u in [-1, 1] of the cut shows the picture's scale * u + shift.
    """
    points = (2 * reading[:, :2] - 1 - shift) / scale
    inside = (np.abs(points) <= 1).all(axis=1)
    return np.concatenate([(points + 1) / 2, reading[:, 2:]], axis=1)[inside].astype(np.float32)


# -- model ------------------------------------------------------------------------------------------------------------


class SharedScanpathModel(Gaze2ReportScanpathModel):
    """The scanpath model for several readings of each picture, which encodes a picture once for all of them.

    Attributes:
        readings: scored readings of each picture; those of a picture stand together.
    """

    readings = 1

    def encode(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(states.repeat_interleave(self.readings, 0) for states in super().encode(patches))


class PictureReader(nn.Module):
    """A small convolutional tower and the scanpath model, both from nothing."""

    def __init__(self, settings: Settings, longest: int):
        super().__init__()
        stages = len(settings.widths)
        config = AutoConfig.for_model(
            "resnet",
            embedding_size=32,
            hidden_sizes=list(settings.widths),
            depths=[1] + [2] * (stages - 1),
            layer_type="basic",
        )
        self.tower = AutoModel.from_config(config).to(memory_format=torch.channels_last)
        self.scanpath = SharedScanpathModel(
            Gaze2ReportScanpathConfig(
                vision_hidden_size=settings.widths[-1],
                grid_size=settings.side // 2 ** (stages + 1),
                hidden_size=settings.hidden_size,
                intermediate_size=2 * settings.hidden_size,
                num_encoder_layers=2,
                num_hidden_layers=2,
                max_fixations=longest,
                hidden_dropout_prob=settings.dropout,
            )
        )

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shapes: (B, 3, S, S) in [0, 1] -> (B, P, C)."""
        pixels = ((pixels - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)
        return self.tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)

    def forward(self, pixels: torch.Tensor, fixations: torch.Tensor, mask: torch.Tensor):
        """Likelihood of the readings of a [`Batch`]."""
        self.scanpath.readings = len(fixations) // len(pixels)
        try:
            return self.scanpath(self.patches(pixels), fixations, mask)
        finally:
            self.scanpath.readings = 1


def moving_average(decay: float) -> Callable:
    """What [`AveragedModel`] does at a step: a moving average that soon forgets where the training began."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], steps: torch.Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        for one, other in zip(averaged, current, strict=True):
            if one.is_floating_point():
                one.lerp_(other, share)
            else:
                one.copy_(other)

    return update


def longest_reading(splits: dict[str, list[Picture]]) -> int:
    return max(len(reading) for several in splits.values() for picture in several for reading in picture.readings)


def train(splits: dict[str, list[Picture]], settings: Settings, seed: int) -> tuple[PictureReader, list[dict]]:
    """The model of the epoch that scores best on the validation pictures, and what every epoch scored."""
    set_seed(seed)
    longest = longest_reading(splits)
    model = PictureReader(settings, longest)
    average = AveragedModel(model, multi_avg_fn=moving_average(settings.average), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    pictures = splits["train"]
    steps = math.ceil(len(pictures) / settings.pictures)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps * settings.epochs, pct_start=0.1
    )
    history: list[dict] = []
    best, state, start = math.inf, None, time.monotonic()
    for epoch in range(settings.epochs):
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(pictures))
        total = count = 0.0
        model.train()
        for chosen in np.array_split(order, steps):
            batch = batch_of([pictures[index] for index in chosen], longest, generator)
            scores = model(batch.pixels, batch.fixations, batch.mask)
            loss = scanpath_loss(scores.log_likelihood, batch.mask)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total, count = total + loss.item() * int(batch.mask.sum()), count + int(batch.mask.sum())
        with preserved_randomness():
            sums = likelihoods(average.module, splits["validation"], settings.pictures)
        all_of_it, place, fixations = sums["all"].sum(), sums["location"].sum(), sums["fixations"].sum()
        history.append(
            {
                "epoch": epoch + 1,
                "seconds": round(time.monotonic() - start, 1),
                "train_loss": total / count,
                "validation_loss": -all_of_it / fixations,
                "validation_bits_over_uniform": place / fixations / math.log(2),
            }
        )
        print(f"seed {seed}: " + ", ".join(f"{key} {value:.4g}" for key, value in history[-1].items()), flush=True)
        if not np.isfinite(history[-1]["validation_loss"]):
            raise DataError(f"seed {seed}, epoch {epoch + 1}: the loss is no finite number; lower --learning-rate")
        if history[-1]["validation_loss"] < best:
            best, best_epoch = history[-1]["validation_loss"], epoch
            state = {name: value.clone() for name, value in average.module.state_dict().items()}
        elif epoch - best_epoch >= settings.patience:
            break
    model.load_state_dict(state)
    return model.eval(), history


@torch.inference_mode()
def likelihoods(
    model: PictureReader, pictures: Sequence[Picture], size: int, shown: Sequence[Picture] | None = None
) -> dict[str, np.ndarray]:
    """Sums over the readings of each picture, (pictures,) each: log-likelihood in nats (`all`, and `location` per unit
    square), and `fixations`.

    Args:
        size: pictures at once.
        shown: pictures that the model sees in place of those that were looked at.
    """
    was_training = model.training
    model.eval()
    longest = model.scanpath.config.max_fixations
    rows: dict[str, list[float]] = {"all": [], "location": [], "fixations": []}
    for start in range(0, len(pictures), size):
        chosen = pictures[start : start + size]
        batch = batch_of(chosen, longest)
        pixels = batch.pixels
        if shown is not None:
            pixels = torch.stack([one.pixels for one in shown[start : start + size]]).float() / 255
        scores = model(pixels, batch.fixations, batch.mask)
        for name, values in (
            ("all", scores.log_likelihood),
            ("location", scores.location_log_likelihood),
            ("fixations", batch.mask),
        ):
            rows[name] += values.double().sum(-1).view(len(chosen), -1).sum(-1).tolist()
    model.train(was_training)
    return {name: np.array(values) for name, values in rows.items()}


@torch.inference_mode()
def sampled_scanpaths(
    model: PictureReader, pictures: Sequence[Picture], settings: Settings, seed: int, do_sample: bool = True
) -> list[Scanpath]:
    """Scanpaths that the model predicts for each picture; one, where they are not drawn."""
    generator = torch.Generator().manual_seed(seed)
    scanpaths = []
    for picture in pictures:
        count = (settings.samples or len(picture.readings)) if do_sample else 1
        patches = model.patches(picture.pixels[None].float() / 255)
        predicted = model.scanpath.predict(
            patches, count, do_sample=do_sample, temperature=settings.temperature, generator=generator
        )
        for fixations, mask in zip(predicted.fixations[0], predicted.mask[0], strict=True):
            scanpaths.append(scanpath(picture.name, fixations[mask].numpy()))
    return scanpaths


# -- baselines --------------------------------------------------------------------------------------------------------


def baseline_scanpaths(
    name: str, train_pictures: Sequence[Picture], pictures: Sequence[Picture], samples: int, seed: int = 0
) -> list[Scanpath]:
    """Scanpaths of one of `BASELINES` for each picture, made of readings of the training pictures.

    Each takes the number of fixations from a training reading. `centre-bias` draws fixations one by one from all
    training readings, `uniform` keeps the reading's durations at places drawn evenly, `other-picture` is the reading.
    """
    generator = np.random.default_rng([seed, BASELINES.index(name)])
    readings = [reading for picture in train_pictures for reading in picture.readings if len(reading)]
    pool = np.concatenate(readings)
    scanpaths = []
    for picture in pictures:
        for chosen in generator.integers(0, len(readings), samples or len(picture.readings)):
            fixations = readings[chosen]
            if name == "centre-bias":
                fixations = pool[generator.integers(0, len(pool), len(fixations))]
            elif name == "uniform":
                fixations = np.concatenate([generator.random((len(fixations), 2)), fixations[:, 2:]], axis=1)
            scanpaths.append(scanpath(picture.name, fixations))
    return scanpaths


def density_of(points: np.ndarray, bandwidth: float) -> np.ndarray:
    """Density per unit square of fixations, (rows, columns)."""
    return density_map(points, MAP_SHAPE, bandwidth, aspect=SIZE[0] / SIZE[1]) * MAP_SHAPE[0] * MAP_SHAPE[1]


def log_density(density: np.ndarray, fixations: np.ndarray) -> float:
    """Sum over the fixations, in nats."""
    return float(np.log(density[pixel_indices(fixations, density.shape)]).sum())


def centre_bias(splits: dict[str, list[Picture]]) -> tuple[np.ndarray, dict]:
    """Density per unit square of fixations on the training pictures; bandwidth and uniform share by validation."""
    points = np.concatenate([reading for one in splits["train"] for reading in one.readings])
    target = np.concatenate([reading for one in splits["validation"] for reading in one.readings])
    found = []
    for bandwidth in BANDWIDTHS:
        density = density_of(points, bandwidth)
        for share in BACKGROUNDS:
            mixed = (1 - share) * density + share
            found.append((log_density(mixed, target), bandwidth, share, mixed))
    _, bandwidth, share, density = max(found, key=lambda one: one[0])
    return density, {"bandwidth": bandwidth, "uniform_share": share}


def other_observers(
    pictures: Sequence[Picture], prior: np.ndarray, bandwidth: float, shares: Sequence[float]
) -> np.ndarray:
    """Log density in nats, summed over each picture's fixations, of a map of the picture's other observers in which the
    centre bias has one of `shares`. Shape (shares, pictures)."""
    sums = np.zeros((len(shares), len(pictures)))
    for column, picture in enumerate(pictures):
        for own, reading in enumerate(picture.readings):
            others = [other for place, other in enumerate(picture.readings) if place != own]
            density = density_of(np.concatenate(others), bandwidth) if others else prior
            for row, share in enumerate(shares):
                sums[row, column] += log_density((1 - share) * density + share * prior, reading)
    return sums


# -- study ------------------------------------------------------------------------------------------------------------


def scoring() -> ScanpathScoring:
    """Every scanpath metric that does not ask for anatomy."""
    metrics = ScanpathMetrics().metrics
    return ScanpathScoring(ScanpathMetrics(tuple(one for one in metrics if not isinstance(one, RegionSequence))))


def plain_scores(scores: ScanpathScores) -> dict[str, list[float]]:
    """Scores per picture by metric, those against the best observer left out."""
    return {name: values.tolist() for name, values in scores.values.items() if not name.endswith("_best")}


def reference_answers(splits: dict[str, list[Picture]], settings: Settings) -> dict:
    """Everything that depends on no model: scores of the baselines and of the observers, likelihoods of the maps."""
    test = splits["test"]
    prior, chosen = centre_bias(splits)
    found = {
        bandwidth: other_observers(splits["validation"], prior, bandwidth, BACKGROUNDS).sum(axis=1)
        for bandwidth in BANDWIDTHS
    }
    bandwidth = max(found, key=lambda one: found[one].max())
    share = BACKGROUNDS[int(found[bandwidth].argmax())]
    answers = {
        "pictures": [picture.name for picture in test],
        "centre_bias": chosen,
        "other_observers": {"bandwidth": bandwidth, "centre_bias_share": share},
        "nats": {
            "centre_bias": [log_density(prior, np.concatenate(picture.readings)) for picture in test],
            "other_observers": other_observers(test, prior, bandwidth, [share])[0].tolist(),
        },
        "fixations": [sum(map(len, picture.readings)) for picture in test],
        "scores": {},
    }
    references, learnt = references_of(splits)
    for name in BASELINES:
        made = baseline_scanpaths(name, splits["train"], test, settings.samples)
        answers["scores"][name] = plain_scores(score_scanpaths(made, references, scoring(), learnt))
    answers["scores"]["human"] = plain_scores(human_ceiling(references, scoring(), learnt))
    return answers


def references_of(splits: dict[str, list[Picture]]) -> tuple[list[Scanpath], Prior]:
    """Readings of the test pictures, and where people look on the training pictures."""
    references = [one for picture in splits["test"] for one in picture.scanpaths()]
    seen = [one for picture in splits["train"] for one in picture.scanpaths()]
    return references, Prior(seen, scoring(), leave_out=False)


def model_answers(model: PictureReader, splits: dict[str, list[Picture]], settings: Settings, seed: int) -> dict:
    """Scores of the model's scanpaths and its likelihood of the observers' fixations, picture by picture."""
    test = splits["test"]
    shifted = [*test[1:], test[0]]
    references, learnt = references_of(splits)
    with preserved_randomness():
        own = likelihoods(model, test, settings.pictures)
        other = likelihoods(model, test, settings.pictures, shown=shifted)
    answers = {
        "nats": {"model": own["location"].tolist(), "model_other_picture": other["location"].tolist()},
        "scores": {},
        "lengths": {},
    }
    for name, is_drawn in (("model", True), ("deterministic", False)):
        made = sampled_scanpaths(model, test, settings, seed, is_drawn)
        answers["scores"][name] = plain_scores(score_scanpaths(made, references, scoring(), learnt))
        answers["lengths"][name] = {
            "fixations": float(np.mean([len(one.fixations) for one in made])),
            "seconds_per_fixation": float(np.mean(np.concatenate([one.fixations[:, 2] for one in made]))),
        }
    return answers


def kept(file: Path, settings: dict) -> dict | None:
    """What an earlier run left in a file.

    Raises:
        DataError: it was made with other settings.
    """
    if not file.is_file():
        return None
    answers = json.loads(file.read_text(encoding="utf-8"))
    if answers["settings"] != settings:
        raise DataError(
            f"{file}: it was made with other settings ({answers['settings']}); remove it, or name another --out"
        )
    return answers


def run_study(args: argparse.Namespace, settings: Settings) -> str:
    """Train and score what is not there yet, and return the tables.

    Raises:
        DataError: data that cannot be used; results of other settings in the folder.
    """
    check(args, settings)
    if args.threads:
        torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    described = json.loads(json.dumps(dataclasses.asdict(settings)))
    taught = described | {"temperature": None, "samples": None}  # these change no weights
    splits = read_pictures(args.osie, settings.side)
    runs = []
    for seed in range(args.seeds):
        weights, file = out / f"seed-{seed}.safetensors", out / f"seed-{seed}.json"
        log = kept(out / f"seed-{seed}-training.json", taught)
        if log is None or not weights.is_file():
            model, history = train(splits, settings, seed)
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
            write_json(out / f"seed-{seed}-training.json", {"settings": taught, "history": history})
        answers = kept(file, described)
        if answers is None:
            model = PictureReader(settings, longest_reading(splits))
            model.load_state_dict(load_file(weights))
            answers = {"settings": described, **model_answers(model.eval(), splits, settings, seed)}
            write_json(file, answers)
        runs.append(answers)
    file = out / "references.json"
    references = kept(file, described)
    if references is None:
        references = {"settings": described, **reference_answers(splits, settings)}
        write_json(file, references)
    return write_results(args, splits, references, runs, described)


def per_fixation(nats: Sequence[float], baseline: Sequence[float], fixations: Sequence[int], name: str) -> Statistics:
    """Bits per fixation above a baseline, over pictures."""
    bits = (np.array(nats) - np.array(baseline)) / math.log(2)
    return Statistics(name, np.stack([bits, np.array(fixations, dtype=float)], axis=1), ratio)


def scores_of(answers: Sequence[dict]) -> dict[str, Statistics]:
    """Metrics over pictures, each picture's score being the mean over the runs in which it is defined."""
    result = {}
    for name in answers[0]:
        values = np.array([one[name] for one in answers], dtype=float)
        defined = np.isfinite(values)
        count = defined.sum(0)
        mean = np.where(defined, values, 0).sum(0) / np.maximum(count, 1)
        result[name] = Statistics(
            name,
            np.stack([np.where(count > 0, mean, 0), count > 0], axis=1).astype(float),
            ratio,
            name not in ("sed", "dtw", "kld"),
        )
    return result


def write_results(
    args: argparse.Namespace, splits: dict[str, list[Picture]], references: dict, runs: list[dict], settings: dict
) -> str:
    """Intervals, differences and the verdicts; returns what `results.md` says."""
    bootstrap = Bootstrap()
    fixations, base = references["fixations"], references["nats"]["centre_bias"]

    def bits(nats: Sequence[float], name: str) -> Statistics:
        return per_fixation(nats, base, fixations, name)

    own = {name: np.mean([run["nats"][name] for run in runs], axis=0) for name in ("model", "model_other_picture")}
    gains = {name: bits(values, name) for name, values in own.items()}
    gains["other_observers"] = bits(references["nats"]["other_observers"], "other_observers")
    gains["picture"] = per_fixation(own["model"], own["model_other_picture"], fixations, "picture")
    information = score_all(gains, bootstrap)
    information["model"]["seeds"] = seed_summary([bits(run["nats"]["model"], "model").score() for run in runs])
    information["centre_bias_over_uniform"] = score_all(
        {"all": per_fixation(base, np.zeros(len(base)), fixations, "all")}, bootstrap
    )["all"]
    systems = {name: scores_of([run["scores"][name] for run in runs]) for name in ("model", "deterministic")}
    systems |= {name: scores_of([scores]) for name, scores in references["scores"].items()}
    rows = {name: score_all(metrics, bootstrap) for name, metrics in systems.items()}
    for metric, record in rows["model"].items():
        per_seed = [scores_of([run["scores"]["model"]])[metric].score() for run in runs]
        record["seeds"] = seed_summary(per_seed)
    differences = {
        f"model minus {other}": compare_all(systems["model"], systems[other], bootstrap)
        for other in systems
        if other != "model"
    }
    marks = verdicts(information, rows, differences)
    results = {
        "study": "osie",
        "data": DISCLAIMER,
        "settings": settings,
        "seeds": len(runs),
        "pictures": {name: len(pictures) for name, pictures in splits.items()},
        "scanpath_settings": scoring().settings(),
        "centre_bias": references["centre_bias"],
        "other_observers": references["other_observers"],
        "information_bits_per_fixation": information,
        "systems": rows,
        "differences": differences,
        "lengths": runs[0]["lengths"],
        "bootstrap": bootstrap.settings(),
        "marks": marks,
    }
    write_json(Path(args.out) / "results.json", results)
    text = render(results)
    write_text(Path(args.out) / "results.md", text)
    return text


def verdicts(information: dict, rows: dict, differences: dict) -> dict:
    """Whether the model beats the centre bias in bits, and where its ScanMatch lies between baseline and observers."""
    low = information["model"]["ci95"][0]
    best = max(BASELINES, key=lambda name: rows[name]["scanmatch"]["value"])
    baseline, human = rows[best]["scanmatch"]["value"], rows["human"]["scanmatch"]["value"]
    model = rows["model"]["scanmatch"]["value"]
    return {
        "information_gain_above_0": bool(low > 0),
        "best_baseline_in_scanmatch": best,
        "scanmatch_above_best_baseline": bool(differences[f"model minus {best}"]["scanmatch"]["ci95"][0] > 0),
        "scanmatch_share_of_the_way_to_the_observers": (model - baseline) / (human - baseline),
    }


def render(results: dict) -> str:
    """The tables of a study as a page to read."""
    counts = results["pictures"]
    information = results["information_bits_per_fixation"]
    parts = [
        "# Human gaze on photographs (OSIE)",
        results["data"],
        f"{counts['test']} test pictures, none of them among the {counts['train']} that were trained on or the "
        f"{counts['validation']} that chose the epoch; {results['seeds']} seeds. Brackets: 95 % bootstrap intervals "
        "over test pictures.",
        "## Bits per fixation above the centre bias",
        table(
            ["Density of the next fixation", "Bits"], [[title, interval(information[n])] for n, title in BITS.items()]
        ),
        f"The centre bias itself lies {interval(information['centre_bias_over_uniform'])} bits above a uniform "
        f"density. The right picture, in place of another, is worth {interval(information['picture'])} bits to the "
        f"model. Deviation of the model's gain over seeds: {number(information['model']['seeds']['sd'])}.",
        "## Scanpaths",
    ]
    names = ordered_metrics(results["systems"]["model"])
    header = ["Metric", *(SYSTEMS[name] for name in results["systems"])]
    rows = [
        [metric_title(m), *(interval(row[m]) if m in row else "–" for row in results["systems"].values())]
        for m in names
    ]
    parts += [table(header, rows), "## Model minus the others, paired over pictures"]
    rows = []
    for metric in names:
        cells = []
        for comparison in results["differences"].values():
            record = comparison.get(metric)
            cells.append("–" if record is None else signed(record))
        rows.append([metric_title(metric), *cells])
    parts.append(table(["Metric", *results["differences"]], rows))
    parts.append("\\* p < 0.05 after Holm's correction over the metrics of a column.")
    marks = results["marks"]
    share = marks["scanmatch_share_of_the_way_to_the_observers"]
    parts += [
        "## Marks",
        f"* Information gain over the centre bias above 0, its interval included: "
        f"{'yes' if marks['information_gain_above_0'] else 'no'}.\n"
        f"* ScanMatch above the best baseline ({SYSTEMS[marks['best_baseline_in_scanmatch']].lower()}), the interval "
        f"of the difference included: {'yes' if marks['scanmatch_above_best_baseline'] else 'no'}; "
        f"{100 * share:.0f} % of the way from it to the human ceiling.",
    ]
    return "\n\n".join(parts) + "\n"


def signed(record: dict) -> str:
    low, high = record["ci95"]
    star = "\\*" if record["p_holm"] < 0.05 else ""
    return f"{record['difference']:+.3f} [{low:+.3f}, {high:+.3f}]{star}"


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Adds an option for each of the settings that a user may want to change; yields their names."""
    defaults = Settings()
    for name, words in (
        ("epochs", "passes over the training pictures"),
        ("patience", "stop after so many epochs without a better validation"),
        ("side", "pixels of the square that a picture is stretched to, a multiple of 16"),
        ("pictures", "pictures in a step, each with all of its readings"),
        ("learning_rate", "peak of the learning rate"),
        ("dropout", "of the scanpath model"),
        ("hidden_size", "width of the scanpath model"),
        ("temperature", "of the samples"),
        ("samples", "scanpaths for each test picture; 0 for as many as it has observers"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{words} (default: {default})"
        )
        yield name


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.osie_study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--osie", required=True, metavar="DIR", help="folder with fixations.jsonl.gz and stimuli/")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3, help="models that are trained (default: 3)")
    parser.add_argument("--threads", type=int, help="of torch; left out, its own choice")
    names = list(options(parser))
    args = parser.parse_args(arguments)
    settings = Settings(**{name: getattr(args, name) for name in names})
    return status_of(lambda: run_study(args, settings))


def check(args: argparse.Namespace, settings: Settings) -> None:
    """Refuse settings that no run can use.

    Raises:
        DataError: naming the option and what would be right.
    """
    for name in ("epochs", "patience", "pictures", "learning_rate", "temperature"):
        if getattr(settings, name) <= 0:
            raise DataError(f"--{name.replace('_', '-')} {getattr(settings, name)} must be above 0")
    if args.seeds < 1:
        raise DataError(f"--seeds {args.seeds} must be at least 1")
    if settings.side < 32 or settings.side % 16:
        raise DataError(f"--side {settings.side} must be a multiple of 16 of at least 32")


if __name__ == "__main__":
    sys.exit(main())
