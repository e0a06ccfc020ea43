"""What the person in front of a run sees: progress, losses in a file and as curves, sample reports, an estimate.

In the folder of a run's records:

    training_log.jsonl              a line for every log event: stage, step, epoch, seconds, learning rate, each loss
    training_curves.png             the same, drawn
    samples/STAGE-STEP/NAME.txt     the report of a validation film at that step, and the reference
    samples/STAGE-STEP/NAME.overlay.png
"""

import io
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from ..inference import Reader, read_films
from ..processing.errors import DataError, InputError, RecipeError
from ..processing.image_processing_gaze2report import Film, load_film
from ..processing.metrics.files import write_bytes, write_text
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from .recipe import Recipe, StageRecipe

LOG, CURVES, SAMPLES = "training_log.jsonl", "training_curves.png", "samples"
NUM_SAMPLES = 4
SAMPLE_TOKENS = 160
# What Trainer logs beside losses and metrics.
BESIDE = ("epoch", "learning_rate", "grad_norm", "total_flos", "step", "seconds", "stage")
TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "train_loss")


def attach(trainer: Trainer, recipe: Recipe, stage: StageRecipe, processor, validation, folder: str | Path) -> None:
    """Give a stage's trainer our callbacks in place of transformers' own progress bar; see [`callbacks`]."""
    for kind in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(kind)
    for callback in callbacks(recipe, stage, processor, validation, folder):
        trainer.add_callback(callback)


def callbacks(
    recipe: Recipe, stage: StageRecipe, processor: Gaze2ReportProcessor, validation: Sequence[dict], folder: str | Path
) -> list[TrainerCallback]:
    """Callbacks of one stage of a run: bar, log, curves and samples, in this order.

    Args:
        recipe: the run's; the log starts afresh with its first stage.
        stage: the one that is trained.
        processor: the model's, for sample reports.
        validation: records, of which [`NUM_SAMPLES`] spread over the whole are sampled, the same at each evaluation.
        folder: of the run's records; made if need be.
    """
    folder = Path(folder)
    return [
        BarCallback(stage.name),
        LogCallback(stage.name, folder / LOG, is_first=stage.name == recipe.stages[0].name),
        CurvesCallback(folder),
        SamplesCallback(stage.name, processor, validation, folder / SAMPLES),
    ]


# -- bar --------------------------------------------------------------------------------------------------------------


class BarCallback(TrainerCallback):
    """A progress bar with the losses on a terminal; elsewhere a line for each log event."""

    def __init__(self, name: str):
        self.name = name
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.first_step = time.monotonic(), state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", dynamic_ncols=True
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        losses = shown_losses(logs or {})
        if not state.is_world_process_zero or not losses:
            return
        words = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
        is_evaluation = "eval_loss" in logs
        if self.bar is None:
            print(f"{self.place(state)}{'validation: ' if is_evaluation else ''}{words}", flush=True)
        elif is_evaluation:
            self.bar.write(f"{self.name}, step {state.global_step}, validation: {words}", file=sys.stderr)
        else:
            self.bar.set_postfix_str(words)

    def place(self, state) -> str:
        done = state.global_step - self.first_step
        left = (time.monotonic() - self.start) / done * (state.max_steps - state.global_step) if done else None
        rest = "" if left is None else f", {duration(left)} left"
        return f"{self.name}: step {state.global_step} of {state.max_steps}{rest}: "

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def shown_losses(logs: dict) -> dict[str, float]:
    """Losses and metrics of a log event, without what stands beside them."""
    return {
        name.removeprefix("eval_"): value
        for name, value in logs.items()
        if isinstance(value, (int, float))
        and name not in BESIDE
        and name.removeprefix("eval_") not in TIMES
        # The summary of a whole training repeats what the events said.
        and not name.startswith("train_")
    }


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


# -- log --------------------------------------------------------------------------------------------------------------


class LogCallback(TrainerCallback):
    """Appends each log event to `training_log.jsonl`. A run that continues from a checkpoint first takes back the lines
    after that checkpoint, so that no step stands there twice.

    Args:
        name: of the stage.
        path: the file.
        is_first: whether this is the first stage of the run, whose beginning is the beginning of the file.
    """

    def __init__(self, name: str, path: Path, is_first: bool):
        self.name, self.path, self.is_first = name, path, is_first
        self.written: set[tuple[int, bool]] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()
        if not state.is_world_process_zero:
            return
        lines = [] if self.is_first and not state.global_step else read_log(self.path)
        last = state.global_step or -1  # without a checkpoint the stage begins anew
        kept = [one for one in lines if one["stage"] != self.name or one["step"] <= last]
        own = [one for one in kept if one["stage"] == self.name]
        self.start -= own[-1]["seconds"] if own else 0.0
        self.written = {(one["step"], "eval_loss" in one) for one in own}
        write_text(self.path, "".join(json.dumps(one) + "\n" for one in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        event = (state.global_step, "eval_loss" in logs)
        if not state.is_world_process_zero or event in self.written or not shown_losses(logs):
            return
        self.written.add(event)
        line = {
            "stage": self.name,
            "step": state.global_step,
            "epoch": round(state.epoch or 0.0, 4),
            "seconds": round(time.monotonic() - self.start, 1),
        }
        line |= {
            name: value
            for name, value in logs.items()
            if isinstance(value, (int, float)) and name not in line and name != "total_flos"
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: the log cannot be written: {error.strerror or error}") from error


def read_log(path: str | Path) -> list[dict]:
    """Lines of a `training_log.jsonl`; a last line that a kill cut off is left out.

    Raises:
        DataError: any other line that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise DataError(f"{path}, line {number}: no line of a training log: {error.msg}") from error
    return lines


# -- curves -----------------------------------------------------------------------------------------------------------


class CurvesCallback(TrainerCallback):
    """Draws the log anew at each evaluation and at the end."""

    def __init__(self, folder: Path):
        self.folder = folder

    def draw(self, state) -> None:
        if state.is_world_process_zero:
            lines = read_log(self.folder / LOG)
            if lines:
                draw_curves(lines, self.folder / CURVES)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_loss" in (logs or {}):
            self.draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self.draw(state)


def draw_curves(lines: list[dict], path: str | Path) -> None:
    """A panel for each loss and metric over the steps of the whole run: training as a line, validation as dots.

    Args:
        lines: as [`read_log`] gives them.
        path: PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    starts, ends = stage_bounds(lines)
    names = list(dict.fromkeys(name for line in lines for name in shown_losses(line)))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        for stage, start in starts.items():
            own = [line for line in lines if line["stage"] == stage]
            training = [(start + line["step"], line[name]) for line in own if name in line]
            validation = [(start + line["step"], line[f"eval_{name}"]) for line in own if f"eval_{name}" in line]
            # Okabe and Ito's blue and vermilion, as in the overlays.
            if training:
                panel.plot(*zip(*training, strict=True), color="#0072b2", linewidth=1, label="training")
            if validation:
                panel.plot(*zip(*validation, strict=True), "o-", color="#d55e00", markersize=3, label="validation")
            if start:
                panel.axvline(start, color="0.8", linewidth=1, zorder=0)
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_xlim(0, max(ends.values()) or 1)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle("Steps: " + ", ".join(f"{stage} from {start}" for stage, start in starts.items()), fontsize=9)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_bytes(path, picture.getvalue())


def stage_bounds(lines: list[dict]) -> tuple[dict[str, int], dict[str, int]]:
    """At which step of the whole run each stage begins and ends."""
    starts, ends, place = {}, {}, 0
    for stage in dict.fromkeys(line["stage"] for line in lines):
        starts[stage] = place
        place += max(line["step"] for line in lines if line["stage"] == stage)
        ends[stage] = place
    return starts, ends


# -- samples ----------------------------------------------------------------------------------------------------------


class SamplesCallback(TrainerCallback):
    """Writes reports with overlays of the same validation films at each evaluation, gaze predicted as a user has it.

    Not where the model is cut into shards (FSDP, DeepSpeed): generating there takes all processes at every token.

    Args:
        name: of the stage.
        processor: the model's.
        validation: records.
        folder: where to.
    """

    def __init__(self, name: str, processor: Gaze2ReportProcessor, validation: Sequence[dict], folder: Path):
        self.name, self.processor, self.folder = name, processor, folder
        count = min(NUM_SAMPLES, len(validation))
        self.records = [validation[index * len(validation) // count] for index in range(count)]
        self.films: list[Film] | None = None

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        is_sharded = any(os.environ.get(f"ACCELERATE_USE_{one}", "") == "true" for one in ("FSDP", "DEEPSPEED"))
        if not state.is_world_process_zero or is_sharded or not self.records:
            return
        folder = self.folder / f"{self.name}-{state.global_step:06d}"
        if self.films is None:
            self.films = [load_film(record["image"], name=record["image_id"]) for record in self.records]
        reader = Reader(getattr(model, "core", model), self.processor, self.name)
        was_training = {module: module.training for module in reader.model.modules()}
        reader.model.eval()
        try:
            written = read_films(reader, self.films, gaze_source="predicted", max_new_tokens=SAMPLE_TOKENS)
        finally:
            for module, mode in was_training.items():
                module.training = mode
        for film, record, evidence in zip(self.films, self.records, written, strict=True):
            stem = re.sub(r"[^\w.-]", "_", record["image_id"])
            reference = record.get("report") or "(none)"
            write_text(
                folder / f"{stem}.txt",
                f"{evidence['report'] or '(nothing)'}\n\n-- reference --\n{reference}\n",
            )
            picture = io.BytesIO()
            self.processor.draw_evidence(evidence, film).save(picture, format="PNG")
            write_bytes(folder / f"{stem}.overlay.png", picture.getvalue())


# -- estimate ---------------------------------------------------------------------------------------------------------


def estimate(trainer: Trainer) -> str:
    """What a stage will need: memory from the sizes of its parts, time from one measured step.

    The sum is weights + gradients (a number for each that learns) + AdamW (two float32 numbers for each) + what one
    forward pass keeps for the backward pass, counted over one batch of the training data. Two steps are run, the second
    is timed; neither changes weights, statistics or random numbers. Time is that step, with the making of its batch,
    times the number of steps; evaluations and samples come on top.

    Args:
        trainer: a stage's, before `train()`; its model gives (losses, ...) for a batch, as `LossModel` does.

    Raises:
        RecipeError: a single step does not fit into the device's memory.
    """
    model, args, stage = trainer.model, trainer.args, trainer.stage
    learning = [one for one in model.parameters() if one.requires_grad]
    sizes = {
        "weights": sum(one.numel() * one.element_size() for one in model.parameters()),
        "gradients": sum(one.numel() * one.element_size() for one in learning),
        "AdamW": sum(8 * one.numel() for one in learning),
    }
    batch, batch_seconds = probe_batch(trainer)
    if args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(args.device)
    try:
        with unchanged(model):
            kept, _ = probe_step(trainer, batch)
            _, step_seconds = probe_step(trainer, batch)
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            f"stage {stage.name}: a step over {args.per_device_train_batch_size} records does not fit into the memory "
            f"of {args.device}: lower batch_size and raise gradient_accumulation_steps, or set gradient_checkpointing."
        ) from error
    sizes["activations"] = kept
    total = sum(sizes.values())
    words = ", ".join(f"{name} {in_bytes(size)}" for name, size in sizes.items())
    if args.device.type == "cuda":
        # What the allocator held during the step tells more: temporary tensors, and what is counted as gradients.
        total = torch.cuda.max_memory_allocated(args.device) + sizes["AdamW"]
        words = f"the measured step's peak and AdamW; {words}"

    steps = number_of_steps(trainer)
    per_step = (step_seconds + batch_seconds / max(1, args.dataloader_num_workers)) * args.gradient_accumulation_steps
    lines = [
        f"stage {stage.name}: estimate",
        f"  memory: about {in_bytes(total)} ({words})",
        f"  time: about {duration(per_step * steps)} ({steps} steps of {per_step:.2f} s, measured on one batch of "
        f"{args.per_device_train_batch_size}), and evaluations",
    ]
    if args.device.type == "cuda":
        there = torch.cuda.get_device_properties(args.device).total_memory
        if total > 0.9 * there:
            lines.append(
                f"  this device has {in_bytes(there)}: lower batch_size and raise gradient_accumulation_steps, or set "
                "gradient_checkpointing"
            )
    return "\n".join(lines)


def probe_batch(trainer: Trainer) -> tuple[dict, float]:
    """A batch of the training data on the model's device, and the seconds that making it took."""
    data, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    start = time.monotonic()
    if hasattr(data, "__len__"):
        records = [data[index % len(data)] for index in range(size)]
    else:
        stream = iter(data)
        records = [next(stream) for _ in range(size)]
    batch = trainer.data_collator(records)
    seconds = time.monotonic() - start
    return trainer._prepare_inputs({name: one for name, one in batch.items() if name != "record_ids"}), seconds


def probe_step(trainer: Trainer, batch: dict) -> tuple[int, float]:
    """Bytes that the forward pass keeps for the backward pass, each storage once; seconds of both."""
    own = {one.untyped_storage().data_ptr() for one in (*trainer.model.parameters(), *trainer.model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = time.monotonic()
    keeping = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with keeping, trainer.compute_loss_context_manager():
        losses = trainer.model(batch)[0]
        total = sum(getattr(trainer.stage.losses, name) * loss for name, loss in losses.items())
    total.backward()
    if trainer.args.device.type == "cuda":
        torch.cuda.synchronize(trainer.args.device)
    seconds = time.monotonic() - start
    trainer.model.zero_grad(set_to_none=True)
    return sum(kept.values()), seconds


class unchanged:
    """Context in which a model is trained on without a trace: statistics, modes and random numbers are put back."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def __enter__(self) -> None:
        self.buffers = {name: one.clone() for name, one in self.model.named_buffers()}
        self.modes = {module: module.training for module in self.model.modules()}
        self.numbers = random.getstate(), np.random.get_state()
        self.fork = torch.random.fork_rng()
        self.fork.__enter__()
        self.model.train()

    def __exit__(self, *error) -> None:
        self.fork.__exit__(*error)
        random.setstate(self.numbers[0])
        np.random.set_state(self.numbers[1])
        with torch.no_grad():
            for name, one in self.model.named_buffers():
                one.copy_(self.buffers[name])
        for module, mode in self.modes.items():
            module.training = mode


def number_of_steps(trainer: Trainer) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(steps_per_epoch(args, len(trainer.train_dataset)) * args.num_train_epochs)


def steps_per_epoch(args: TrainingArguments, num_records: int) -> int:
    batches = math.ceil(num_records / (args.per_device_train_batch_size * args.world_size))
    return math.ceil(batches / args.gradient_accumulation_steps)


def in_bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


__all__ = [
    "BarCallback",
    "CurvesCallback",
    "LogCallback",
    "SamplesCallback",
    "attach",
    "callbacks",
    "draw_curves",
    "estimate",
    "read_log",
    "steps_per_epoch",
]
