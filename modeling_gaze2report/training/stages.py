"""Stages of training on transformers' `Trainer`: which parts learn, from which losses, on which gaze.

A run keeps its state beside its output, in `OUTPUT-checkpoints`: every finished stage and the last checkpoint of the
one under way. The same command continues from there, to the same weights as if it had never been cut off. Its log,
curves and sample reports are in `OUTPUT-records`.
"""

import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils.generic import maybe_autocast

from ..hub_space.export import check_target, export_model
from ..modeling_gaze2report import Gaze2ReportForConditionalGeneration, Gaze2ReportImageFeatures
from ..modeling_grid import cell_centres, cell_of, heat_map
from ..processing.errors import DataError, InputError, ModelError, RecipeError
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from ..processing.report_attributes import SEVERITIES, VIEWS
from .adapters import add_lora, export_adapter, four_bit_config, freeze_all_but_adapters, merge, prepare_four_bit
from .assemble import build_model, build_tokenizer
from .calibration import calibrate
from .data import (
    EpochSampler,
    RecordDataset,
    ReportCollator,
    load_records,
    number_readers,
    reader_agreement,
)
from .held import FILMS, GLOBAL, PATCHES, TOKENS, VALUES, HeldBatches, HeldKeys, hold
from .losses import (
    IGNORED,
    box_loss,
    class_loss,
    contrast_loss,
    covered_cells,
    cut_crops,
    detail_maps_loss,
    draw_patches,
    finding_crops_loss,
    finding_maps_loss,
    finding_targets,
    findings_loss,
    gaze_attention_loss,
    learnt_apart,
    order_loss,
    ordered_pairs,
    report_loss,
    scanpath_loss,
    scanpath_map_loss,
    token_losses,
)
from .progress import SamplesCallback, attach, estimate, steps_per_epoch
from .recipe import PARTS, Recipe, StageRecipe, recipe_values
from .tasks import TASKS, tokenizer_texts

logger = logging.getLogger(__name__)

IMAGE_INPUTS = ("pixel_values", "film_boxes", "fixations", "fixation_mask", "gaze_source")
# Parts that need no film, only its visual-gaze tokens.
TEXT_PARTS = {"projector", "language_model", "lm_head"}
# Losses of the perception heads that need no film, only its nodes after the graph.
HEAD_LOSSES = {
    *("findings", "finding_boxes", "finding_maps", "region_boxes", "severities", "views"),
    *("detail_maps", "detail_findings"),
}
# Keys of a recipe that change nothing about the weights.
INDIFFERENT = ("num_workers", "report_to")
WEIGHTS, MANIFEST, RESULT, WRITING = "trained.safetensors", "manifest.json", "result.json", ".writing"
# Crops that the loss of single patches makes of each film of a batch, and patches on each side of the one in question.
CROPS_PER_FILM, CROP_MARGIN = 2, 2
# Records that are looked through for the annotation that a loss needs.
LOOKED_THROUGH = 1000


# -- losses of a batch ------------------------------------------------------------------------------------------------


def part(model: Gaze2ReportForConditionalGeneration, name: str) -> nn.Module:
    """One of `PARTS` of the model."""
    return model.lm_head if name == "lm_head" else getattr(model.model, name)


def base_model(model: nn.Module) -> Gaze2ReportForConditionalGeneration:
    """The model inside peft's, if it is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def freeze_all_but(model: nn.Module, trainable: list[str]) -> None:
    """Let only the named parts learn; tied weights learn when one of their owners does.

    Raises:
        RecipeError: an unknown part.
    """
    if unknown := set(trainable) - set(PARTS):
        raise RecipeError(f"unknown trainable part {sorted(unknown)[0]!r}; the parts are {', '.join(PARTS)}.")
    if model is not base_model(model):
        freeze_all_but_adapters(model, trainable)
        return
    model.requires_grad_(False)
    for name in trainable:
        part(model, name).requires_grad_(True)


def annotation_counts(batch: dict, stage: StageRecipe) -> dict[str, torch.Tensor]:
    """How much of a batch carries the annotation of each loss: tokens, fixations, labels, boxes, records."""
    has_gaze = batch["recorded_mask"].any(-1)
    every = {
        "report": (batch["labels"][:, 1:] != IGNORED).sum(),
        "scanpath": batch["recorded_mask"].sum(),
        "scanpath_map": has_gaze.sum(),
        "gaze_attention": has_gaze.sum(),
        "findings": finding_targets(batch["labels_findings"], stage.uncertain_findings)[1].sum(),
        "finding_boxes": batch["finding_mask"].sum(),
        "finding_maps": batch["mapped_findings"].sum(),
        "finding_crops": batch["mapped_findings"].sum(),
        "region_boxes": batch["region_mask"].sum(),
        "contrast": batch["has_text"].sum() if "has_text" in batch else has_gaze.sum() * 0,
        "order": ordered_pairs(batch["order_ranks"]).sum(),
        "detail_maps": batch["mapped_findings"].sum(),
        "detail_findings": finding_targets(batch["labels_findings"], stage.uncertain_findings)[1].sum(),
        "severities": (batch["severity_targets"] >= 0).sum(),
        "views": (batch["view_targets"] >= 0).sum(),
    }
    return {name: every[name] for name, weight in vars(stage.losses).items() if weight}


@contextlib.contextmanager
def still_norms(module: nn.Module) -> Iterator[None]:
    """Batch norms use their running statistics, and do not change them."""
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.training]
    for one in norms:
        one.eval()
    try:
        yield
    finally:
        for one in norms:
            one.train()


class LossModel(nn.Module):
    """A model whose forward pass gives the losses of a stage, so that wrappers for several processes see all of it.

    Args:
        model: the model, or peft's around it.
        stage: its losses with a weight above 0 are computed.
        centre_bias: (P,) log density per unit square of fixations on the training films, which the scanpath model's is
            compared with; `None` to leave that out.
    """

    def __init__(self, model: nn.Module, stage: StageRecipe, centre_bias: torch.Tensor | None = None):
        super().__init__()
        self.model = model
        self.stage = stage
        self.centre_bias = nn.Buffer(centre_bias, persistent=False) if centre_bias is not None else None
        # The towers' layers become shards of their own; the gaze parts do not: they are small, and how often a process
        # runs them depends on its records, while all processes must gather the same shards in the same order.
        towers = (self.core.model.vision_tower, self.core.model.language_model)
        self._no_split_modules = sorted({name for tower in towers for name in no_split_modules(tower)})

    @property
    def core(self) -> Gaze2ReportForConditionalGeneration:
        return base_model(self.model)

    def tie_weights(self) -> None:
        self.core.tie_weights()

    def train(self, mode: bool = True) -> "LossModel":
        super().train(mode)
        for name in set(PARTS) - set(self.stage.trainable):
            part(self.core, name).eval()  # a frozen part keeps its statistics and has no dropout
        return self

    def forward(
        self, batch: dict, counts: dict[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, torch.Tensor]], torch.Tensor | None]:
        """Every loss with a weight above zero, unweighted, over `counts`; further (sum, count) to be logged; logits of
        the findings where they were made."""
        weights, model = self.stage.losses, self.core
        counts = annotation_counts(batch, self.stage) if counts is None else counts
        images = {name: batch[name] for name in IMAGE_INPUTS if name in batch}
        losses, metrics, features, patches = {}, {}, None, None
        needs_fusion = (
            weights.report
            or weights.findings
            or weights.region_boxes
            or weights.finding_boxes
            or weights.finding_maps
            or weights.gaze_attention
            or weights.contrast
            or weights.order
            or weights.severities
            or weights.detail_maps
            or weights.detail_findings
            or weights.views
        )
        if TOKENS in batch:  # the films have been looked at before
            dtype = model.model.projector.linear_1.weight.dtype
            tokens = model.model.projector(batch[TOKENS].to(dtype), batch[VALUES].to(dtype))
            features = Gaze2ReportImageFeatures(pooler_output=list(tokens))
        elif PATCHES in batch:
            nodes = (batch[PATCHES].float(), batch[GLOBAL].float())
            findings = model.model.perception(*nodes, pixel_values=batch.get(FILMS))
            features = Gaze2ReportImageFeatures(findings=findings)
        elif needs_fusion:
            features = model.model.get_image_features(
                **images, soft_gaze=self.stage.soft_gaze and self.training, return_dict=True
            )
            patches = features.last_hidden_state
        elif weights.scanpath or weights.scanpath_map:
            patches = model.model.get_patch_features(images["pixel_values"]).last_hidden_state
        if weights.report:
            losses["report"], metrics = self.report(batch, features, counts["report"])
        text_states = self.text_states(batch) if weights.contrast else None
        # Coordinates and likelihoods do not survive half precision.
        with maybe_autocast(device_type=batch["labels_findings"].device.type, enabled=False):
            gaze_losses, gaze_metrics = self.gaze_losses(batch, features, patches, counts)
            losses |= gaze_losses
            metrics |= gaze_metrics
            if weights.contrast:
                losses["contrast"] = self.contrast(batch, features, text_states, counts["contrast"])
        return losses, metrics, features.findings.logits.detach() if weights.findings else None

    def gaze_losses(self, batch: dict, features, patches: torch.Tensor | None, counts: dict) -> tuple[dict, dict]:
        """Losses of the scanpath model, the findings, their boxes and the readout; further (sum, count) to be logged.

        Args:
            features: of the images; `None` where no loss needs the fusion.
            patches: (B, P, C) of the vision tower.
        """
        weights, model, losses, metrics = self.stage.losses, self.core, {}, {}
        if weights.scanpath or weights.scanpath_map:
            fixations, mask = batch["recorded_fixations"], batch["recorded_mask"]
            scores = model.model.scanpath(
                patches, fixations, mask, film_boxes=batch["film_boxes"], reader_ids=batch["reader_ids"]
            )
            if weights.scanpath:
                losses["scanpath"] = scanpath_loss(scores.log_likelihood, mask, counts["scanpath"])
                metrics = self.centre_bias_gain(scores.location_log_likelihood.detach(), fixations, mask)
            if weights.scanpath_map:
                losses["scanpath_map"] = scanpath_map_loss(
                    scores.location_log_probs,
                    fixations,
                    mask,
                    self.recorded_heat(batch),
                    model.config.fusion_config.heat_map_sigma,
                    counts["scanpath_map"],
                )
        if weights.findings:
            losses["findings"] = findings_loss(
                features.findings.logits, batch["labels_findings"], counts["findings"], self.stage.uncertain_findings
            )
        if weights.finding_boxes:
            losses["finding_boxes"] = box_loss(
                features.findings.boxes, batch["finding_boxes"], batch["finding_mask"], counts["finding_boxes"]
            )
        if weights.finding_maps:
            scores = features.findings.scores
            centres = cell_centres(model.config.grid_size, scores.device)
            cells = covered_cells(batch["box_corners"], batch["box_classes"], scores.shape[1], centres)
            losses["finding_maps"] = finding_maps_loss(scores, cells, batch["mapped_findings"], counts["finding_maps"])
        if weights.finding_crops:
            losses["finding_crops"] = self.finding_crops(batch, counts["finding_crops"])
        if weights.region_boxes:
            losses["region_boxes"] = box_loss(
                features.findings.region_boxes, batch["region_boxes"], batch["region_mask"], counts["region_boxes"]
            )
        if weights.order:
            shown = batch["order_ranks"].shape[1]
            losses["order"] = order_loss(features.order_scores[:, :shown], batch["order_ranks"], counts["order"])
        if weights.detail_maps:
            losses["detail_maps"] = self.detail_maps(batch, features.findings, counts["detail_maps"])
        if weights.detail_findings:
            added = model.model.perception.detail.of_films(features.findings.detail_scores)
            losses["detail_findings"] = findings_loss(
                learnt_apart(features.findings.logits, added),
                batch["labels_findings"],
                counts["detail_findings"],
                self.stage.uncertain_findings,
            )
        if weights.severities:
            losses["severities"] = class_loss(
                features.findings.severity_logits, batch["severity_targets"], counts["severities"]
            )
        if weights.views:
            losses["views"] = class_loss(features.findings.view_logits, batch["view_targets"], counts["views"])
        if weights.gaze_attention:
            # The target is the recorded map, also where the model was shown predicted gaze or none.
            losses["gaze_attention"] = gaze_attention_loss(
                features.readout_attention,
                self.recorded_heat(batch),
                batch["recorded_mask"].any(-1),
                batch["trust"],
                counts["gaze_attention"],
            )
        return losses, metrics

    def detail_maps(self, batch: dict, findings, count: torch.Tensor) -> torch.Tensor:
        """Places of the findings in the pixels: cell by cell, and patch by patch with what the patches had before."""
        scores, known = findings.detail_scores, batch["mapped_findings"]
        boxes = (batch["box_corners"], batch["box_classes"], scores.shape[1])
        small = covered_cells(*boxes, cell_centres(scores.shape[-1], scores.device))
        patches = covered_cells(*boxes, cell_centres(self.core.config.grid_size, scores.device))
        mixed = learnt_apart(findings.scores, self.core.model.perception.detail.of_patches(scores))
        return detail_maps_loss(scores.flatten(2), small, known, count) + finding_maps_loss(
            mixed, patches, known, count
        )

    def finding_crops(self, batch: dict, count: torch.Tensor) -> torch.Tensor:
        """Patches of the batch as the graph would get them without gaze, judged by the findings' own queries."""
        inner, known, pixels = self.core.model, batch["mapped_findings"], batch["pixel_values"]
        grid_size, fusion, attention = self.core.config.grid_size, inner.fusion, inner.perception.finding_attention
        centres = cell_centres(grid_size, pixels.device)
        cells = covered_cells(batch["box_corners"], batch["box_classes"], known.shape[1], centres)
        film, patch = draw_patches(cells, known, len(pixels) * CROPS_PER_FILM // 2)
        if not len(film):
            return sum(one.sum() for one in inner.vision_tower.parameters()) * 0.0
        crops = cut_crops(pixels, film, patch, grid_size, CROP_MARGIN)
        side = 2 * CROP_MARGIN + 1
        # Beside losses of whole films, crops are normalised by the films' statistics, and leave no trace in them.
        alone = not any(weight for name, weight in vars(self.stage.losses).items() if name != "finding_crops")
        try:
            with contextlib.nullcontext() if alone else still_norms(inner.vision_tower):
                features = inner.vision_tower(pixel_values=crops, return_dict=True).last_hidden_state
            if features.shape[2:] != (side, side):
                raise ValueError(f"it gives features of shape {tuple(features.shape[1:])}")
        except ValueError as error:
            raise RecipeError(
                f"stage {self.stage.name}: losses.finding_crops needs a vision tower that makes a map of {side} x "
                f"{side} features of images of {side} x {side} patches, as a ResNet does; leave it out for "
                f"{type(inner.vision_tower).__name__} ({error})."
            ) from error
        nodes = fusion.patch_projection(features[:, :, CROP_MARGIN, CROP_MARGIN])
        nodes = fusion.norm(nodes + fusion.position(centres[patch]) + fusion.no_gaze)
        scores = attention.key(nodes) @ attention.queries.weight.T + inner.perception.score_bias
        return finding_crops_loss(scores, cells[film, :, patch], known[film], known.sum() / count.clamp_min(1))

    def report(self, batch: dict, features, count: torch.Tensor):
        """Cross-entropy of the answers, and of each task's alone where there are several tasks."""
        values, tasks = [], []
        for rows, longest in length_groups(batch["attention_mask"], self.stage.length_groups):
            states = self.core.model(
                input_ids=batch["input_ids"][rows, :longest],
                attention_mask=batch["attention_mask"][rows, :longest],
                mm_encoder_outputs={"image": self.images_of(batch, features, rows)},
                use_cache=False,
            ).last_hidden_state
            # Only what is scored goes through the head: prompts and padding would be most of it.
            targets = batch["labels"][rows, 1:longest]
            is_scored = targets != IGNORED
            values.append(token_losses(self.core.lm_head(states[:, :-1][is_scored]), targets[is_scored]))
            tasks.append(batch["tasks"][rows].unsqueeze(1).expand_as(targets)[is_scored])
        values, metrics = torch.cat(values), {}
        if len(self.stage.tasks) > 1:
            task = torch.cat(tasks)
            for name in self.stage.tasks:
                mine = task == TASKS.index(name)
                metrics[f"report_{name}"] = ((values.detach() * mine).sum(), mine.sum())
        return report_loss(values, count), metrics

    def images_of(self, batch: dict, features, rows: torch.Tensor):
        """The image features of some rows of a batch."""
        films = batch["row_films"][rows].tolist()
        return type(features)(pooler_output=[features.pooler_output[film] for film in films])

    def text_states(self, batch: dict) -> torch.Tensor:
        """The language model's states over the reports alone, (B, L, d)."""
        return self.core.model.language_model(
            input_ids=batch["text_ids"], attention_mask=batch["text_mask"], use_cache=False
        ).last_hidden_state

    def contrast(self, batch: dict, features, states: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        perception = self.core.model.perception
        one = torch.eye(1, perception.config.projection_dim, device=states.device)
        return contrast_loss(
            features.findings.image_embeds,
            perception.embed_text(states, batch["text_mask"]),
            perception.similarity(one, one).squeeze(),  # the temperature, with its bounds
            batch["text_keys"],
            batch["has_text"],
            count,
        )

    def recorded_heat(self, batch: dict) -> torch.Tensor:
        config = self.core.config
        centres = cell_centres(config.grid_size, batch["recorded_fixations"].device)
        return heat_map(
            batch["recorded_fixations"], batch["recorded_mask"], centres, config.fusion_config.heat_map_sigma
        )

    def centre_bias_gain(self, location: torch.Tensor, fixations: torch.Tensor, mask: torch.Tensor) -> dict:
        """Log density of the fixations' places, and by how much it lies above that of the training films' mean map."""
        if self.centre_bias is None:
            return {}
        baseline = self.centre_bias[cell_of(fixations[..., :2], self.core.config.grid_size)] * mask
        return {
            "location_log_density": (location.sum(), mask.sum()),
            "location_gain": ((location - baseline).sum(), mask.sum()),
        }


def length_groups(mask: torch.Tensor, number: int) -> list[tuple[torch.Tensor, int]]:
    """Rows of a batch in groups of like length, and the length of the longest in each: rows padded to the longest of a
    whole batch are mostly padding where tasks differ.

    Shapes: mask (B, L), padded on the right -> at most `number` times rows (b,), and how many columns they fill.
    """
    lengths = mask.sum(-1)
    groups = lengths.argsort(stable=True).tensor_split(max(1, min(number, len(lengths))))
    return [(rows, int(lengths[rows].max())) for rows in groups]


def without_scalars(model: nn.Module) -> nn.Module:
    """Scalar parameters as vectors of one number, in place: FSDP2 cuts nothing of no dimension. No value changes."""
    for parameter in model.parameters():
        if parameter.dim() == 0:
            parameter.data = parameter.data.view(1)
    return model


def no_split_modules(tower: nn.Module) -> set[str]:
    """Names of the layers in a tower that stay whole when it is cut into shards."""
    there = {type(one).__name__ for one in tower.modules()}
    return there & {name for one in tower.modules() for name in getattr(one, "_no_split_modules", None) or ()}


# -- trainer ----------------------------------------------------------------------------------------------------------


class StageTrainer(Trainer):
    """`Trainer` with the weighted sum of the stage's losses; each is logged on its own.

    Checkpoints hold what was trained and appear whole or not at all.
    """

    def __init__(self, *args, stage: StageRecipe, kept: set[str], **kwargs):
        super().__init__(*args, **kwargs)
        self.stage = stage
        self.kept = kept
        self.loss_is_scaled_for_ga = True  # by the counts of the whole step
        names = [name for name, weight in vars(stage.losses).items() if weight]
        if len(stage.tasks) > 1 and stage.losses.report:
            names += [f"report_{task}" for task in stage.tasks]
        if stage.losses.scanpath:
            names += ["location_log_density", "location_gain"]
        self.logged = names
        self.sums = {True: self.no_sums(), False: self.no_sums()}  # while training, while evaluating
        self.is_writing = False
        if not isinstance(self.train_dataset, IterableDataset):
            length, epochs = len(self.train_dataset), self.args.num_train_epochs
            if self.args.max_steps > 0:
                epochs = self.args.max_steps / steps_per_epoch(self.args, length)
            self.order = EpochSampler(length, epochs, self.args.seed)
            self.add_callback(EpochCallback(self.order))

    def no_sums(self) -> dict[str, list]:
        return {name: [0.0, 0.0] for name in self.logged}

    # Data

    def _get_train_sampler(self, train_dataset=None):
        return None if isinstance(self.train_dataset, IterableDataset) else self.order

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one step, and the counts that its losses are means over, of all processes."""
        batches = list(zip(range(num_batches), epoch_iterator))  # noqa: B905 - an epoch may end within a step
        batches = [batch for _, batch in batches]
        counts = {}
        for batch in batches:
            for name, count in annotation_counts(batch, self.stage).items():
                counts[name] = counts.get(name, 0) + count.to(device)
        if counts and self.accelerator.num_processes > 1:
            every = self.accelerator.reduce(torch.stack(list(counts.values())), reduction="sum")
            counts = dict(zip(counts, every, strict=True))
        return batches, counts

    # Losses

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        is_training = model.training
        record_ids = inputs.pop("record_ids", None)
        # Whatever wraps the model averages gradients over the processes; the counts are of all of them already.
        scale = self.accelerator.num_processes if num_items_in_batch else 1
        own = annotation_counts(inputs, self.stage)
        counts = num_items_in_batch or own
        losses, metrics, logits = model(inputs, counts)
        total = sum(self.weight(name) * loss for name, loss in losses.items())
        if is_training and not bool(torch.isfinite(total)):
            broken = [name for name, loss in losses.items() if not bool(torch.isfinite(loss))]
            raise ModelError(
                f"stage {self.stage.name}, step {self.state.global_step}: the loss {', '.join(broken)} is no finite "
                f"number on the records {', '.join(record_ids or [])}. Look at these records; lower learning_rate if "
                "they are sound."
            )
        sums = self.sums[is_training]
        for name, loss in losses.items():
            sums[name][0] += loss.detach().float() * counts[name]
            sums[name][1] += own[name]
        for name, (value, count) in metrics.items():
            sums[name][0] += value
            sums[name][1] += count
        return (total * scale, logits) if return_outputs else total * scale

    def weight(self, name: str) -> float:
        weight = getattr(self.stage.losses, name)
        if name == "gaze_attention" and self.stage.gaze_attention_warmup and self.state.max_steps:
            progress = self.state.global_step / self.state.max_steps
            weight *= min(1.0, progress / self.stage.gaze_attention_warmup)
        return weight

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, logits = self.compute_loss(model, dict(inputs), return_outputs=True)
        if prediction_loss_only or logits is None:
            return loss.detach(), None, None
        return loss.detach(), logits, inputs["labels_findings"]

    def evaluate(self, *args, **kwargs):
        with preserved_randomness():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict, *args, **kwargs) -> None:
        is_training = not any(key.startswith("eval_") for key in logs)
        if is_training or "eval_loss" in logs:
            sums = self.sums[is_training]
            values = torch.tensor([[float(one) for one in pair] for pair in sums.values()], dtype=torch.float64)
            if self.accelerator.num_processes > 1:
                values = self.accelerator.reduce(values.float().to(self.args.device), reduction="sum").cpu()
            prefix = "" if is_training else "eval_"
            for name, (total, count) in zip(sums, values.tolist(), strict=True):
                if count:
                    logs[f"{prefix}{name}"] = round(total / count, 5)
            self.sums[is_training] = self.no_sums()
            if not is_training and "eval_loss" in logs:
                # The mean over batches depends on how they were cut; this does not.
                logs["eval_loss"] = round(
                    sum(
                        getattr(self.stage.losses, name) * logs.get(f"eval_{name}", 0.0)
                        for name, weight in vars(self.stage.losses).items()
                        if weight
                    ),
                    5,
                )
        super().log(logs, *args, **kwargs)

    # Optimizer

    def create_optimizer(self, model=None):
        """AdamW with a learning rate for each part, no decay on vectors."""
        if self.optimizer is None:
            module = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(module))
            groups: dict[tuple[float, bool], list] = {}
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    rate = self.stage.learning_rates.get(part_of(name), self.stage.learning_rate)
                    groups.setdefault((float(rate), name in decayed), []).append(parameter)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, module)
            self.optimizer = kind(
                [
                    {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if is_decayed else 0.0}
                    for (rate, is_decayed), parameters in groups.items()
                ],
                **settings,
            )
        return self.optimizer

    # Checkpoints

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, WRITING) if self.is_writing else folder

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir)
        temporary = folder / WRITING
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.is_writing = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (new,) = temporary.glob("checkpoint-*")
                seal(new)
                final = folder / new.name
                shutil.rmtree(final, ignore_errors=True)
                os.replace(new, final)
                sync(folder)
                for old in folder.glob("checkpoint-*"):
                    if old != final:
                        shutil.rmtree(old, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(folder, error) from error
        finally:
            self.is_writing = False
            if self.args.should_save:
                shutil.rmtree(temporary, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        os.makedirs(output_dir, exist_ok=True)
        if state_dict is None:
            state_dict = self.model.state_dict()
        state = {name.removeprefix("model."): value for name, value in state_dict.items()}
        save_state(state, self.kept, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_state(self.model.model, Path(resume_from_checkpoint) / WEIGHTS)


class EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins."""

    def __init__(self, order: EpochSampler):
        self.order = order

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.order.set_epoch(int((state.epoch or 0) + 1e-6))


def part_of(name: str) -> str:
    """Which of `PARTS` a parameter of `LossModel` belongs to."""
    return next((one for one in PARTS if f".{one}." in f".{name}"), "")


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """What happens inside draws no random number that training would have drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


# -- state of a run ---------------------------------------------------------------------------------------------------


def save_state(state: dict[str, torch.Tensor], kept: set[str], path: Path) -> None:
    """The kept entries of a state dict; tied weights once."""
    seen, chosen = set(), {}
    for name, value in state.items():
        if name in kept:
            where = (value.data_ptr(), value.shape) if value.numel() else name
            if where not in seen:
                seen.add(where)
                chosen[name] = value.detach().cpu().contiguous()
    save_file(chosen, path)


def load_state(model: nn.Module, path: Path) -> None:
    """Read [`save_state`] back.

    Raises:
        ModelError: it does not fit the model.
    """
    try:
        state = load_file(path)
        for name, value in model.state_dict().items():
            if name in state and value.numel() == state[name].numel() == 1:
                state[name] = state[name].view_as(value)  # see `without_scalars`
        result = model.load_state_dict(state, strict=False)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: the weights do not fit the model of the recipe: {error}. Remove the folder to start afresh."
        ) from error
    if result.unexpected_keys:
        raise ModelError(
            f"{path}: the model of the recipe has no weight {result.unexpected_keys[0]}. Remove the folder to start "
            "afresh."
        )


def kept_names(model: nn.Module, recipe: Recipe) -> set[str]:
    """Entries of the state dict that checkpoints need: all of a model from nothing, else those that a stage trains."""
    if recipe.model.checkpoint is None:
        return set(model.state_dict())
    learned = {name for stage in recipe.stages for name in stage.trainable}
    if model is base_model(model):
        return {name for name in model.state_dict() if part_of(f"model.{name}") in learned}
    adapter = ("lora_", "modules_to_save.", "trainable_tokens_delta")
    return {name for name in model.state_dict() if any(one in name for one in adapter)}


def seal(folder: Path) -> None:
    """Write down the sizes of all files of a finished checkpoint, everything being on the disk."""
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            sizes[str(file.relative_to(folder))] = file.stat().st_size
    with open(folder / MANIFEST, "w", encoding="utf-8") as stream:
        json.dump(sizes, stream)
        stream.flush()
        os.fsync(stream.fileno())


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint has all of its files at their full size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint of a stage."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2]))
    return next((one for one in reversed(found) if is_whole(one)), None)


def cannot_write(folder: Path, error: Exception) -> InputError:
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free / 2**20
    last = last_checkpoint(folder)
    kept = f"The last checkpoint, {last}, is whole" if last else "There is no earlier checkpoint"
    return InputError(
        f"{folder}: a checkpoint could not be written: {error}; {free:.0f} MiB are free there. {kept}. Make room and "
        "repeat the command to continue."
    )


def write_result(folder: Path, state: dict[str, torch.Tensor], kept: set[str], history: list[dict]) -> None:
    """Mark a stage as finished: what it trained, and its log."""
    new = folder / WRITING
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_state(state, kept, new / WEIGHTS)
        (new / RESULT).write_text(json.dumps(history), encoding="utf-8")
        seal(new)
        shutil.rmtree(folder / "final", ignore_errors=True)
        os.replace(new, folder / "final")
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise cannot_write(folder, error) from error
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old, ignore_errors=True)


def open_state(recipe: Recipe) -> Path:
    """The folder of a run's state, after checking that it is of the same recipe.

    Raises:
        RecipeError: another recipe's run stands there.
    """
    output = Path(recipe.output)
    folder = output.with_name(f"{output.name}-checkpoints")
    values = {key: value for key, value in recipe_values(recipe).items() if key not in INDIFFERENT}
    values = json.loads(json.dumps(values))
    file = folder / "recipe.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before != values:
            changed = next(key for key in sorted({*before, *values}) if before.get(key) != values.get(key))
            raise RecipeError(
                f"{folder} holds the unfinished run of another recipe: it differs in {changed}. Remove that folder to "
                "start afresh, or name another output."
            )
    elif is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".recipe.json"
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
        os.replace(temporary, file)
    return folder


def records_folder(recipe: Recipe) -> Path:
    """Where the log, the curves and the sample reports of a run go."""
    output = Path(recipe.output)
    return output.with_name(f"{output.name}-records")


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


# -- run --------------------------------------------------------------------------------------------------------------


def check_device(recipe: Recipe) -> None:
    """Raises: RecipeError: the recipe asks for CUDA, and there is none."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "the recipe asks for device cuda, and torch finds no CUDA device here: set device=cpu or device=auto, or "
            "install a torch built for CUDA."
        )


def prepare_model(recipe: Recipe, train: Dataset | IterableDataset) -> tuple[nn.Module, Gaze2ReportProcessor]:
    """The recipe's model before training, with its adapters, and its processor."""
    set_seed(recipe.seed)
    if recipe.model.checkpoint is None:
        if isinstance(train, IterableDataset):
            raise RecipeError("data.streaming needs model.checkpoint: a tokenizer is made from all reports.")
        reports, questions = train.column("report"), train.column("questions")
        if not any(reports):
            raise DataError(
                f"{recipe.data.path}: no record of the split {recipe.data.train_split} has a report, and a model from "
                "nothing makes its tokenizer of them; map the column in data.columns.report, or start from a checkpoint"
            )
        texts = tokenizer_texts(
            {"report": report, "questions": asked}
            for report, asked in itertools.zip_longest(reports, questions[: len(reports)])
        )
        model, processor = build_model(recipe.model, build_tokenizer(texts, recipe.tokenizer.vocab_size))
    else:
        model, processor = load_checkpoint(recipe)
    if recipe.lora is not None:
        learned = {name for stage in recipe.stages for name in stage.trainable}
        whole = tuple(name for name in PARTS if name in learned - {"language_model", "lm_head"})
        model = add_lora(model, recipe.lora, whole_parts=whole)
    if recipe.gradient_checkpointing:
        base_model(model).gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.compile:
        base_model(model).model.vision_tower.compile()
        base_model(model).model.language_model.compile()
    return model, processor


def load_checkpoint(recipe: Recipe) -> tuple[Gaze2ReportForConditionalGeneration, Gaze2ReportProcessor]:
    """Model and processor of `model.checkpoint`, with the recipe's changes to the gaze parts.

    Raises:
        ModelError: no such model, or weights that are missing or of other shapes.
    """
    from transformers import AutoConfig

    from .assemble import GAZE_PARTS, check_fields

    where = recipe.model.checkpoint
    options = {}
    if recipe.model.quantization == "4bit":
        options["quantization_config"] = four_bit_config()
    if recipe.precision == "bf16" and recipe.lora is not None:
        options["dtype"] = torch.bfloat16  # what is frozen needs no more; adapters and gaze parts are in float32
    try:
        config = AutoConfig.from_pretrained(where)
        for name, kind in GAZE_PARTS.items():
            values = getattr(recipe.model, name)
            check_fields(values, kind, f"model.{name}")
            for field, value in values.items():
                setattr(getattr(config, f"{name}_config"), field, value)
        model, info = Gaze2ReportForConditionalGeneration.from_pretrained(
            where, config=config, output_loading_info=True, **options
        )
        processor = Gaze2ReportProcessor.from_pretrained(where)
    except RecipeError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model.checkpoint {where}: it cannot be loaded: {error}") from error
    changed = tuple(f"model.{name}." for name in GAZE_PARTS if getattr(recipe.model, name))
    if recipe.model.perception.get("project_findings"):
        changed += ("model.projector.values.",)
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = [one if isinstance(one, str) else one[0] for one in info.get(kind) or ()]
        if kind == "missing_keys":
            names = [name for name in names if not name.startswith(changed or ("\0",))]
        if names:
            raise ModelError(
                f"model.checkpoint {where}: {len(names)} weights are {kind.partition('_')[0]}, the first of them "
                f"{sorted(names)[0]}; the checkpoint is not of the shape that its configuration and the recipe say."
            )
    if recipe.model.new_gaze:
        model = with_new_gaze(model)
    if recipe.model.quantization == "4bit":
        model = prepare_four_bit(model, recipe.gradient_checkpointing)
    return model, processor


def with_new_gaze(model: Gaze2ReportForConditionalGeneration) -> Gaze2ReportForConditionalGeneration:
    """A model of the same shape and towers, whose other parts know nothing."""
    new = Gaze2ReportForConditionalGeneration(model.config)
    for name in ("vision_tower", "language_model", "lm_head"):
        part(new, name).load_state_dict(part(model, name).state_dict())
    new.generation_config = model.generation_config
    return new


def check_annotations(recipe: Recipe, train: Dataset | IterableDataset, processor: Gaze2ReportProcessor) -> None:
    """Refuse a loss that no record of the training split has the annotation for.

    Raises:
        DataError: naming the loss and the column that is missing.
    """
    if isinstance(train, IterableDataset):
        return
    columns = {
        "report": ("report", "sentences", "questions", "boxes", "fixations"),
        "contrast": ("report",),
        "scanpath": ("fixations",),
        "scanpath_map": ("fixations",),
        "gaze_attention": ("fixations",),
        "findings": ("labels",),
        "finding_boxes": ("boxes",),
        "finding_maps": ("boxes",),
        "finding_crops": ("boxes",),
        "region_boxes": ("regions",),
        "order": ("sentences",),
        "detail_maps": ("boxes",),
        "detail_findings": ("labels",),
        "severities": ("report", "questions"),
        "views": ("view",),
    }
    first = RecordDataset(train.data.select(range(min(LOOKED_THROUGH, len(train)))), train.columns)
    has = {
        name: any(one for one in first.column(name))
        for name in {one for several in columns.values() for one in several}
    }
    for stage in recipe.stages:
        for loss, weight in vars(stage.losses).items():
            if weight and not any(has[name] for name in columns[loss]):
                name = columns[loss][0]
                raise DataError(
                    f"{recipe.data.path}: stage {stage.name} learns from the loss {loss}, but none of the first "
                    f"{len(first)} records of {recipe.data.train_split} has {name}; map the column that holds it in "
                    f"data.columns.{name}, or set the weight to 0"
                )


def check_heads(recipe: Recipe, config) -> None:
    """Refuse a loss of perception heads that the model was made without, or with other classes than the data name.

    Raises:
        RecipeError: naming the loss and the setting.
    """
    for loss, setting, names in (("severities", "num_severities", SEVERITIES), ("views", "num_views", VIEWS)):
        number = getattr(config.perception_config, setting)
        for stage in recipe.stages:
            if getattr(stage.losses, loss) and number != len(names):
                raise RecipeError(
                    f"stage {stage.name}: the loss {loss} teaches {', '.join(names)}, but the model has {setting} = "
                    f"{number}: set model.perception.{setting} to {len(names)}, or the weight to 0."
                )

    for stage in recipe.stages:
        for loss in ("detail_maps", "detail_findings"):
            if getattr(stage.losses, loss) and not config.perception_config.detail_hidden_size:
                raise RecipeError(
                    f"stage {stage.name}: the loss {loss} teaches a look at the pixels that the model does not have: "
                    "set model.perception.detail_hidden_size (48 is usual), or the weight to 0."
                )


def run(recipe: Recipe) -> Path:
    """All stages of a recipe, then the export in Hub layout. Returns the folder of the model.

    A run that was cut off continues where it was.

    Raises:
        InputError: something else than a model stands at the output; said before the training, not after.
        RecipeError: a stage or model that cannot be.
    """
    start = time.monotonic()
    check_target(recipe.output)
    check_device(recipe)
    train, validation = load_records(recipe.data, recipe.seed)
    model, processor = prepare_model(recipe, train)
    check_annotations(recipe, train, processor)
    check_heads(recipe, base_model(model).config)
    state = open_state(recipe)
    say(f"{sum(one.numel() for one in model.parameters()) / 1e6:.2f} million parameters")
    kept = kept_names(model, recipe)
    history = []
    for number, stage in enumerate(recipe.stages):
        folder = state / f"{number}-{stage.name}"
        if is_whole(folder / "final"):
            load_state(model, folder / "final" / WEIGHTS)
            entries = json.loads((folder / "final" / RESULT).read_text(encoding="utf-8"))
            say(f"stage {stage.name}: finished before")
        else:
            entries = run_stage(recipe, stage, model, processor, train, validation, folder, kept)
            if any(isinstance(one, DTensor) for one in model.parameters()):
                # What was cut into shards stays so: the next stage begins with a whole model again.
                model, processor = prepare_model(recipe, train)
                load_state(model, folder / "final" / WEIGHTS)
        history += [{"stage": stage.name} | entry for entry in entries]
    output = Path(recipe.output)
    if is_main_process():
        finish(recipe, model, processor, validation, output, history)
        shutil.rmtree(state, ignore_errors=True)
    say(f"{recipe.name}: {(time.monotonic() - start) / 60:.1f} minutes; the model is in {output}")
    return output


def finish(
    recipe: Recipe,
    model: nn.Module,
    processor: Gaze2ReportProcessor,
    validation: Dataset,
    output: Path,
    history: list,
) -> None:
    """Calibrate the findings, where they were learnt, and export the model with its log."""
    calibration = None
    if any(stage.losses.findings for stage in recipe.stages):
        calibration = calibrate(base_model(model), processor, validation)
        say(str(calibration))
    if recipe.lora is not None and recipe.lora.merge:
        export_model(merge(model), processor, output)
    elif recipe.lora is not None:
        export_adapter(model, processor, output, base=recipe.model.checkpoint)
    else:
        export_model(model, processor, output)
    log = {
        "recipe": recipe_values(recipe),
        "history": history,
        "calibration": None if calibration is None else asdict(calibration),
    }
    (output / "training_log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")


def run_stage(
    recipe: Recipe,
    stage: StageRecipe,
    model: nn.Module,
    processor: Gaze2ReportProcessor,
    train: Dataset | IterableDataset,
    validation: RecordDataset,
    folder: Path,
    kept: set[str],
) -> list[dict]:
    """One stage, from its last checkpoint in `folder` if there is one; returns its log entries."""
    freeze_all_but(model, stage.trainable)
    config = base_model(model).config
    learning = sum(one.numel() for one in model.parameters() if one.requires_grad) / 1e6
    say(f"stage {stage.name}: {learning:.2f} million parameters learn")
    is_stream = isinstance(train, IterableDataset)
    sigma = config.fusion_config.heat_map_sigma
    collator = ReportCollator(
        processor,
        recorded_gaze=stage.recorded_gaze,
        predicted_gaze=stage.predicted_gaze,
        recorded_gaze_end=stage.recorded_gaze_end,
        predicted_gaze_end=stage.predicted_gaze_end,
        seed=recipe.seed,
        tasks=stage.tasks,
        texts_per_film=stage.texts_per_film,
        readers={} if is_stream else number_readers(train, config.scanpath_config.num_readers),
        reader_dropout=stage.reader_dropout,
        agreement=reader_agreement(train, config.grid_size, sigma)
        if stage.losses.gaze_attention and not is_stream
        else {},
        with_text=bool(stage.losses.contrast),
    )
    centre_bias = None
    if stage.losses.scanpath:
        centre_bias = fixation_density(train if not is_stream else validation, collator, config.grid_size)
    arguments = training_arguments(recipe, stage, folder)
    if stage.held_passes:
        collator = made_ahead(collator, model, stage, train, recipe.num_workers, arguments.device)
        train = HeldKeys(len(train))
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    trainer = StageTrainer(
        model=LossModel(without_scalars(model) if is_sharded else model, stage, centre_bias),
        args=arguments,
        stage=stage,
        kept=kept,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collator,
        compute_metrics=finding_metrics if stage.losses.findings else None,
    )
    if is_stream:
        per_step = stage.batch_size * stage.gradient_accumulation_steps * trainer.args.world_size
        train.total = stage.max_steps * per_step
    attach(trainer, recipe, stage, processor, validation, records_folder(recipe))
    if not stage.losses.report:
        trainer.remove_callback(SamplesCallback)  # a language model that does not learn to write has nothing to show
    checkpoint = last_checkpoint(folder)
    if checkpoint is None and trainer.accelerator.num_processes == 1:
        say(estimate(trainer))
    if checkpoint is not None:
        say(f"stage {stage.name}: continuing from {checkpoint.name}")
        trainer.args.eval_on_start = False  # it was evaluated before its first step
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.state.log_history
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else trainer.model.state_dict()
    if is_main_process():
        write_result(folder, {name.removeprefix("model."): value for name, value in state.items()}, kept, history)
    trainer.accelerator.wait_for_everyone()
    say(summary(stage, history, time.monotonic() - start))
    return history


def made_ahead(
    collator: ReportCollator,
    model: nn.Module,
    stage: StageRecipe,
    train: RecordDataset,
    num_workers: int,
    device: torch.device,
) -> HeldBatches:
    """The collator of a stage whose batches are held on its device.

    Raises:
        RecipeError: in several processes, each of which would hold all of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(f"stage {stage.name}: held_passes needs a single process; set it to 0 for several.")
    reader = base_model(model).to(device).eval()
    held = hold(collator, train, stage.held_passes, num_workers).to(device).with_predicted_gaze(reader)
    losses = {name for name, weight in vars(stage.losses).items() if weight}
    if set(stage.trainable) <= TEXT_PARTS and losses <= {"report"}:
        return held.with_tokens(reader)
    if set(stage.trainable) == {"perception"} and losses <= HEAD_LOSSES:
        return held.with_states(reader)
    return held


def training_arguments(recipe: Recipe, stage: StageRecipe, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=stage.batch_size,
        per_device_eval_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.gradient_accumulation_steps,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        num_train_epochs=stage.epochs,
        max_steps=-1 if stage.max_steps is None else stage.max_steps,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_grad_norm=1.0,
        eval_strategy="epoch" if stage.eval_steps is None else "steps",
        eval_steps=stage.eval_steps,
        eval_on_start=True,
        logging_steps=stage.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=stage.save_steps,
        report_to=recipe.report_to or "none",
        run_name=f"{recipe.name}-{stage.name}",
        remove_unused_columns=False,
        label_names=["labels_findings"],
        dataloader_num_workers=0 if stage.held_passes else recipe.num_workers,
        dataloader_persistent_workers=recipe.num_workers > 0 and not stage.held_passes,
        dataloader_pin_memory=not stage.held_passes,
        accelerator_config={"dispatch_batches": False} if recipe.data.streaming else None,
        ddp_find_unused_parameters=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=recipe.precision == "bf16",
        use_cpu=recipe.device == "cpu" or not torch.cuda.is_available(),
    )


def fixation_density(train: RecordDataset, collator: ReportCollator, grid_size: int) -> torch.Tensor:
    """Log density per unit square of where readers look on any film: shares of the training fixations by cell, each
    cell with one fixation more than were seen. Returns (P,).

    Cells are those of the film, not of the square: a film that is not square is compared as if it were.
    """
    from .data import canonical, gaze_of

    counts = torch.ones(grid_size**2)
    for rows in train.column("fixations"):
        gaze = gaze_of(canonical({"fixations": rows}, {}, "record"))
        if gaze is not None:
            cells = cell_of(torch.from_numpy(gaze[:, :2]), grid_size)
            counts += torch.bincount(cells, minlength=grid_size**2)
    return (counts / counts.sum()).log() + 2 * float(np.log(grid_size))


def finding_metrics(prediction) -> dict[str, float]:
    """Area under the receiver operating characteristic, the mean over findings that are present and absent.

    The share of pairs (present, absent) whose logits are in this order; ties count half.
    """
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    areas = []
    for score, label in zip(logits.T, labels.T, strict=True):
        present, absent = score[label == 1], score[label == 0]
        if len(present) and len(absent):
            difference = present[:, None] - absent[None, :]
            areas.append(float((difference > 0).mean() + 0.5 * (difference == 0).mean()))
    return {"auroc": round(float(np.mean(areas)), 4)} if areas else {}


def summary(stage: StageRecipe, history: list[dict], seconds: float) -> str:
    """Validation before and after a stage, in lines to be read."""
    evaluations = [entry for entry in history if "eval_loss" in entry]
    if not evaluations:
        return f"stage {stage.name}: {seconds / 60:.1f} minutes"
    first, last = evaluations[0], evaluations[-1]
    lines = [f"stage {stage.name}: {seconds / 60:.1f} minutes; validation before -> after"]
    skipped = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    for key, value in last.items():
        name = key.removeprefix("eval_")
        if key.startswith("eval_") and name not in skipped and isinstance(value, float):
            note = {
                "auroc": " (chance: 0.5)",
                "location_gain": " nats per fixation above the centre bias of the training films",
            }.get(name, "")
            lines.append(f"  {name:<24}{first.get(key, float('nan')):10.4f} -> {value:10.4f}{note}")
    return "\n".join(lines)


def say(text: str) -> None:
    if is_main_process():
        print(text, flush=True)


__all__ = [
    "PARTS",
    "LossModel",
    "StageTrainer",
    "annotation_counts",
    "freeze_all_but",
    "last_checkpoint",
    "length_groups",
    "prepare_model",
    "run",
    "run_stage",
]
