"""Stages of training on transformers' `Trainer`: which parts learn, from which losses, on which gaze."""

import json
import logging
from collections import defaultdict
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from ..hub_space.export import check_target, export_model
from ..modeling_gaze2report import Gaze2ReportForConditionalGeneration
from ..modeling_grid import cell_centres, heat_map
from ..processing.datasets.reading import load_split
from ..processing.errors import RecipeError
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from .assemble import build_model, build_tokenizer
from .data import ReportCollator
from .losses import box_loss, findings_loss, gaze_attention_loss, scanpath_loss
from .recipe import LossWeights, Recipe, StageRecipe, recipe_values

logger = logging.getLogger(__name__)

PARTS = ("vision_tower", "scanpath", "fusion", "perception", "projector", "language_model", "lm_head")
IMAGE_INPUTS = ("pixel_values", "film_boxes", "fixations", "fixation_mask", "gaze_source")


def part(model: Gaze2ReportForConditionalGeneration, name: str) -> torch.nn.Module:
    """One of `PARTS` of the model."""
    return model.lm_head if name == "lm_head" else getattr(model.model, name)


def freeze_all_but(model: Gaze2ReportForConditionalGeneration, trainable: list[str]) -> None:
    """Let only the named parts learn; tied weights learn when one of their owners does.

    Raises:
        RecipeError: an unknown part.
    """
    if unknown := set(trainable) - set(PARTS):
        raise RecipeError(f"unknown trainable part {sorted(unknown)[0]!r}; the parts are {', '.join(PARTS)}.")
    model.requires_grad_(False)
    for name in trainable:
        part(model, name).requires_grad_(True)


class StageTrainer(Trainer):
    """`Trainer` with the sum of the stage's losses; each is logged on its own."""

    def __init__(self, *args, stage: StageRecipe, **kwargs):
        super().__init__(*args, **kwargs)
        self.stage = stage
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for name in set(PARTS) - set(self.stage.trainable):
            part(self.accelerator.unwrap_model(model), name).eval()  # a frozen part keeps its statistics and no dropout
        losses = batch_losses(model, inputs, self.stage.losses)
        for name, loss in losses.items():
            key = name if model.training else f"eval_{name}"
            self.sums[key] += float(loss.detach())
            self.counts[key] += 1
        weights = self.stage.losses
        total = sum(getattr(weights, name) * loss for name, loss in losses.items())
        return (total, {}) if return_outputs else total

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def log(self, logs: dict, *args, **kwargs) -> None:
        for name in list(self.sums):
            if name.startswith("eval_") == ("eval_loss" in logs):
                logs[name] = round(self.sums.pop(name) / self.counts.pop(name), 4)
        super().log(logs, *args, **kwargs)


def batch_losses(model, inputs: dict, weights: LossWeights) -> dict[str, torch.Tensor]:
    """Every loss with a weight above zero, unweighted."""
    images = {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
    losses = {}
    if weights.report:
        text = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        outputs = model(**images, **text)
        losses["report"] = outputs.loss
        features = outputs.image_features
    elif weights.findings or weights.region_boxes or weights.finding_boxes or weights.gaze_attention:
        features = model.get_image_features(**images, return_dict=True)
    else:
        features = model.model.get_patch_features(images["pixel_values"])
    if weights.scanpath:
        scores = model.model.scanpath(
            features.last_hidden_state, inputs["fixations"], inputs["fixation_mask"], film_boxes=inputs["film_boxes"]
        )
        losses["scanpath"] = scanpath_loss(scores.log_likelihood, inputs["fixation_mask"])
    if weights.findings:
        losses["findings"] = findings_loss(features.findings.logits, inputs["labels_findings"])
    if weights.finding_boxes:
        losses["finding_boxes"] = box_loss(features.findings.boxes, inputs["finding_boxes"], inputs["finding_mask"])
    if weights.region_boxes:
        losses["region_boxes"] = box_loss(features.findings.region_boxes, inputs["region_boxes"], inputs["region_mask"])
    if weights.gaze_attention:
        # The target is the recorded map, also where the model was shown predicted gaze or none.
        centres = cell_centres(model.config.grid_size, inputs["fixations"].device)
        target = heat_map(
            inputs["fixations"], inputs["fixation_mask"], centres, model.config.fusion_config.heat_map_sigma
        )
        losses["gaze_attention"] = gaze_attention_loss(
            features.readout_attention, target, inputs["fixation_mask"].any(-1)
        )
    return losses


def run(recipe: Recipe) -> Path:
    """All stages of a recipe, then the export in Hub layout. Returns the folder of the model.

    Raises:
        InputError: something else than a model stands at the output; said before the training, not after.
        RecipeError: a stage or model that cannot be.
    """
    check_target(recipe.output)
    set_seed(recipe.seed)
    train = load_split(recipe.data.path, recipe.data.train_split, recipe.data.max_train_records)
    validation = load_split(recipe.data.path, recipe.data.validation_split, recipe.data.max_validation_records)
    tokenizer = build_tokenizer((text for text in train["report"] if text), recipe.tokenizer.vocab_size)
    model, processor = build_model(recipe.model, tokenizer)
    logger.info("%.2f million parameters", sum(one.numel() for one in model.parameters()) / 1e6)
    output = Path(recipe.output)
    history = []
    for stage in recipe.stages:
        history += [
            {"stage": stage.name} | entry for entry in run_stage(recipe, stage, model, processor, train, validation)
        ]
    export_model(model, processor, output)
    log = {"recipe": recipe_values(recipe), "history": history}
    (output / "training_log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    return output


def run_stage(
    recipe: Recipe,
    stage: StageRecipe,
    model: Gaze2ReportForConditionalGeneration,
    processor: Gaze2ReportProcessor,
    train: Dataset,
    validation: Dataset,
) -> list[dict]:
    """One stage; returns its log entries."""
    freeze_all_but(model, stage.trainable)
    learning = sum(one.numel() for one in model.parameters() if one.requires_grad) / 1e6
    logger.info("stage %s: %.2f million parameters learn", stage.name, learning)
    arguments = TrainingArguments(
        output_dir=str(Path(recipe.output).with_name(f"{Path(recipe.output).name}-checkpoints") / stage.name),
        per_device_train_batch_size=stage.batch_size,
        per_device_eval_batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        num_train_epochs=stage.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_grad_norm=1.0,
        eval_strategy="epoch",
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=recipe.num_workers,
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = StageTrainer(
        model=model,
        args=arguments,
        stage=stage,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=ReportCollator(processor, stage.recorded_gaze, stage.predicted_gaze, seed=recipe.seed),
    )
    trainer.train()
    return trainer.state.log_history


__all__ = ["PARTS", "StageTrainer", "batch_losses", "freeze_all_but", "run", "run_stage"]
