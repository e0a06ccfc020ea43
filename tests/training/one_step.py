"""One step of training on the tiny model, in as many processes as it is launched with: writes the step's gradients.

torchrun --nproc-per-node 2 -m tests.training.one_step GRADIENTS.safetensors BATCH_SIZE ACCUMULATION [LOSS...]
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.datasets.record import empty_record
from modeling_gaze2report.training.assemble import build_model, build_tokenizer
from modeling_gaze2report.training.data import RecordDataset, ReportCollator
from modeling_gaze2report.training.recipe import PARTS, DataRecipe, LossWeights, ModelRecipe, Recipe, StageRecipe
from modeling_gaze2report.training.stages import (
    LossModel,
    StageTrainer,
    freeze_all_but,
    training_arguments,
    without_scalars,
)

from ..tiny_export import MODEL, REPORTS

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0}
SEED = 3


class Rows(list):
    """Records in memory, where `RecordDataset` expects a `datasets.Dataset`."""

    column_names = ()


# The losses that do not depend on how records are cut into batches: crops are drawn anew in each, and the look at the
# pixels, which the tiny model does without, has batch norms.
UNDRAWN_LOSSES = tuple(
    name for name in vars(LossWeights()) if name not in ("finding_crops", "detail_maps", "detail_findings")
)


def phantoms(numbers):
    """Phantom films that differ in what is annotated: two lack gaze, one lacks its report, one its labels."""
    records = [
        empty_record("", "", "") | generate_phantom(seed=SEED, index=number, image_size=64) for number in numbers
    ]
    for place, missing in {1: "fixations", 4: "fixations", 2: "report", 5: "labels"}.items():
        if place < len(records):
            records[place] = records[place] | {missing: None if missing == "report" else []}
    return RecordDataset(Rows(records))


def without_dropout(**perception):
    """Model and processor of `tiny_export`, but with nothing random in the forward pass."""
    parts = {name: MODEL[name] | WITHOUT_DROPOUT for name in ("scanpath", "fusion")}
    parts["perception"] = MODEL["perception"] | perception
    torch.manual_seed(0)
    return build_model(ModelRecipe(**MODEL | parts), build_tokenizer(REPORTS, 320))


class KeepGradients(TrainerCallback):
    """Keeps what the optimizer is about to see."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad
                gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                self.gradients[name.removeprefix("module.")] = gradient.detach().clone()


def make_trainer(folder, stage, records, model, processor, **changes):
    recipe = Recipe(
        "test", str(folder), DataRecipe("data"), ModelRecipe(**MODEL), [stage], device="cpu", seed=SEED, **changes
    )
    freeze_all_but(model, stage.trainable)
    arguments = training_arguments(recipe, stage, Path(folder))
    arguments.max_grad_norm = 0.0
    arguments.eval_on_start = False
    collator = ReportCollator(
        processor,
        recorded_gaze=stage.recorded_gaze,
        predicted_gaze=stage.predicted_gaze,
        seed=SEED,
        tasks=stage.tasks,
        with_text=bool(stage.losses.contrast),
    )
    return StageTrainer(
        model=LossModel(model, stage),
        args=arguments,
        stage=stage,
        kept=set(model.state_dict()),
        train_dataset=records,
        eval_dataset=records,
        data_collator=collator,
    )


def sharded_step(trainer, keep):
    """A step of a model cut into shards by FSDP2, with the trainer's own batches, counts and losses."""
    from torch.distributed.fsdp import fully_shard

    model = without_scalars(trainer.model)
    layers = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    for module in (*layers, model):
        fully_shard(module)
    batches, counts = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    model.train()
    for batch in batches:
        trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
    keep.on_pre_optimizer_step(None, None, None, model=model)


def gradients_of_one_step(batch_size: int, accumulation: int, losses: dict[str, float], wrapper="ddp", trainable=PARTS):
    """Gradients of one step over eight records in batches of `batch_size`, by name."""
    stage = StageRecipe(
        "step",
        list(trainable),
        LossWeights(**losses),
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        eval_steps=100,
        recorded_gaze=0.7,
        predicted_gaze=0.2,
        tasks={"report": 1.0, "order": 1.0 if losses.get("order") else 0.0},
    )
    keep = KeepGradients()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, stage, phantoms(range(8)), *without_dropout())
        trainer.args.save_strategy = "no"
        if wrapper == "fsdp2":
            sharded_step(trainer, keep)
        else:
            trainer.add_callback(keep)
            trainer.train()
    return keep.gradients


if __name__ == "__main__":
    path, batch_size, accumulation, wrapper, *losses = sys.argv[1:]
    gradients = gradients_of_one_step(int(batch_size), int(accumulation), dict.fromkeys(losses, 1.0), wrapper)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        save_file(gradients, path)
