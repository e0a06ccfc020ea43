"""What a step of training is: the same however its records are cut into batches, and each loss at its own scale."""

import math

import pytest
import torch

from modeling_gaze2report.modeling_grid import cell_of
from modeling_gaze2report.processing.errors import ModelError
from modeling_gaze2report.training.data import EpochSampler, ReportCollator
from modeling_gaze2report.training.losses import scanpath_map_loss
from modeling_gaze2report.training.recipe import PARTS, LossWeights, StageRecipe
from modeling_gaze2report.training.stages import LossModel, length_groups

from ..tiny_export import build_tiny_model
from .one_step import UNDRAWN_LOSSES, gradients_of_one_step, make_trainer, phantoms, without_dropout

LOSSES = [name for name in UNDRAWN_LOSSES if name != "contrast"]


def assert_equal_gradients(first, second, tolerance):
    assert first.keys() == second.keys() and first
    scale = max(gradient.abs().max() for gradient in first.values())
    assert scale > 0
    for name, gradient in first.items():
        assert (gradient - second[name]).abs().max() <= tolerance * max(1.0, scale), name


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_changes_no_gradient(loss):
    whole = gradients_of_one_step(8, 1, {loss: 1.0})
    by_one = gradients_of_one_step(1, 8, {loss: 1.0})
    by_four = gradients_of_one_step(4, 2, {loss: 1.0})

    assert_equal_gradients(by_one, by_four, 1e-5)
    assert_equal_gradients(whole, by_four, 1e-5)


@pytest.mark.parametrize("number", [2, 3, 99])
def test_reading_a_batch_in_parts_of_like_length_changes_no_loss(number):
    model, processor = without_dropout()
    tasks = {"report": 1.0, "ask": 1.0, "ground": 1.0}
    batch = ReportCollator(processor, tasks=tasks)(phantoms(range(6)))
    lengths = batch["attention_mask"].sum(-1)
    assert lengths.min() < lengths.max()
    results = {}
    for parts in (1, number):
        stage = StageRecipe("report", list(PARTS), LossWeights(report=1.0), tasks=tasks, length_groups=parts)
        losses, metrics, _ = LossModel(model, stage).train()(batch)
        losses["report"].backward()
        gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        model.zero_grad()
        results[parts] = losses["report"].detach(), metrics, gradients

    (whole, whole_metrics, first), (split, split_metrics, second) = results.values()
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(split_metrics, whole_metrics, rtol=1e-5, atol=1e-6)
    assert_equal_gradients(first, second, 1e-5)


def test_a_film_is_read_once_for_all_its_texts_and_their_loss_is_that_of_films_read_for_each():
    model, processor = without_dropout()
    stage = StageRecipe("report", list(PARTS), LossWeights(report=1.0), tasks=dict.fromkeys(("report", "ask"), 1.0))
    several = ReportCollator(processor, predicted_gaze=0.0, recorded_gaze=1.0, tasks=stage.tasks, texts_per_film=2)
    records = [one | {"report": text} for one, text in zip(phantoms(range(3)), SENTENCES, strict=False)]
    batch = several(records)
    learner = LossModel(model, stage).eval()

    loss = learner(batch)[0]["report"]

    assert batch["row_films"].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(batch["pixel_values"]) == 3
    sums, tokens = 0.0, 0
    for row, film in enumerate(batch["row_films"].tolist()):
        # The rows' own prompts and answers with every film encoded for each.
        alone = several([records[film]])
        for name in ("input_ids", "attention_mask", "labels", "tasks"):
            alone[name] = batch[name][row : row + 1]
        alone["row_films"] = torch.tensor([0])
        count = (alone["labels"][:, 1:] != -100).sum()
        sums, tokens = sums + learner(alone)[0]["report"] * count, tokens + count
    torch.testing.assert_close(loss, sums / tokens, rtol=1e-5, atol=0)


def test_parts_of_a_batch_are_as_long_as_their_longest_row():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])

    groups = length_groups(mask, 2)

    assert [(rows.tolist(), longest) for rows, longest in groups] == [([1, 3], 2), ([2, 0], 4)]


def test_a_loss_does_not_change_the_scale_of_another():
    first = gradients_of_one_step(4, 2, {"findings": 1.0})
    second = gradients_of_one_step(4, 2, {"scanpath": 0.5})
    both = gradients_of_one_step(4, 2, {"findings": 1.0, "scanpath": 0.5})

    for name, gradient in both.items():
        parts = [one[name] for one in (first, second) if name in one]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-4, atol=1e-6)


# -- gaze -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return without_dropout()


def moved(record):
    """The record as if its reader had looked elsewhere, in the same order."""
    fixations = [one | {"x": 1 - one["x"], "y": 0.5 * one["y"]} for one in record["fixations"]]
    return record | {"fixations": fixations}


def report_loss(model, processor, records, recorded, predicted):
    stage = StageRecipe(
        "report", list(PARTS), LossWeights(report=1.0), recorded_gaze=recorded, predicted_gaze=predicted
    )
    collator = ReportCollator(processor, recorded_gaze=recorded, predicted_gaze=predicted)
    with torch.no_grad():
        return LossModel(model, stage).eval()(collator(records))[0]["report"]


@pytest.fixture(scope="module")
def recorded_films():
    records = phantoms(range(8))
    return [records[index] for index in (0, 3, 6, 7)]


@pytest.mark.parametrize("predicted", [0.0, 0.5, 1.0])
def test_without_recorded_gaze_the_recording_has_no_say_in_the_report(tiny, recorded_films, predicted):
    model, processor = tiny

    before = report_loss(model, processor, recorded_films, 0.0, predicted)
    after = report_loss(model, processor, [moved(record) for record in recorded_films], 0.0, predicted)

    assert torch.equal(before, after)


def test_recorded_gaze_has_a_say_where_it_is_shown(tiny, recorded_films):
    model, processor = tiny

    before = report_loss(model, processor, recorded_films, 1.0, 0.0)
    after = report_loss(model, processor, [moved(record) for record in recorded_films], 1.0, 0.0)

    assert not torch.equal(before, after)


def test_with_recorded_gaze_alone_the_scanpath_model_has_no_say(recorded_films):
    model, processor = without_dropout()

    before = report_loss(model, processor, recorded_films, 1.0, 0.0)
    predicted = report_loss(model, processor, recorded_films, 0.0, 1.0)
    with torch.no_grad():
        for parameter in model.model.scanpath.parameters():
            parameter.add_(torch.randn_like(parameter))

    assert torch.equal(before, report_loss(model, processor, recorded_films, 1.0, 0.0))
    assert not torch.equal(predicted, report_loss(model, processor, recorded_films, 0.0, 1.0))


@pytest.mark.parametrize("soft_gaze", [False, True])
def test_the_report_teaches_the_scanpath_model_by_the_soft_path_alone(recorded_films, soft_gaze):
    model, processor = without_dropout()
    stage = StageRecipe("report", list(PARTS), LossWeights(report=1.0), soft_gaze=soft_gaze)
    batch = ReportCollator(processor, recorded_gaze=0.0, predicted_gaze=1.0)(recorded_films)

    loss = LossModel(model, stage).train()(batch)[0]["report"]
    loss.backward()

    gradients = [one.grad for one in model.model.scanpath.parameters() if one.grad is not None]
    assert bool(gradients and any(gradient.any() for gradient in gradients)) == soft_gaze
    hard = LossModel(model, StageRecipe("report", list(PARTS), LossWeights(report=1.0))).train()(batch)[0]["report"]
    torch.testing.assert_close(loss, hard)


# -- draws ------------------------------------------------------------------------------------------------------------


def test_what_a_record_gets_depends_on_its_number_and_epoch_alone(tiny):
    _, processor = tiny
    records = phantoms(range(8))
    collator = ReportCollator(processor, 0.4, 0.3, seed=5, tasks={"report": 0.5, "ground": 0.5})

    def drawn(keys, batch_size):
        rows = [records[key] for key in keys]
        batches = [collator(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        return {
            record: (int(source), int(task))
            for batch in batches
            for record, source, task in zip(batch["record_ids"], batch["gaze_source"], batch["tasks"], strict=True)
        }

    keys = list(EpochSampler(8, epochs=2, seed=5))
    assert drawn(keys, 2) == drawn(keys[::-1], 4)
    later = EpochSampler(8, epochs=2, seed=5)
    later.set_epoch(1)
    assert list(later) != keys and sorted(index for *_, index in later) == list(range(8))


def test_shares_of_gaze_move_along_a_line(tiny):
    _, processor = tiny
    collator = ReportCollator(processor, 1.0, 0.0, recorded_gaze_end=0.0, predicted_gaze_end=1.0)
    record = phantoms(range(1))[0]

    sources = [collator.draw(record | {"progress": share, "index": 0}, 0)[2] for share in (0.0, 1.0)]

    assert sources == ["recorded", "predicted"]


@pytest.mark.parametrize("length, epochs", [({"max_steps": 3}, 0.75), ({"max_steps": 8}, 2.0), ({"epochs": 3.0}, 3.0)])
def test_the_shares_end_with_the_last_step(length, epochs, tmp_path):
    stage = StageRecipe("step", ["perception"], LossWeights(findings=1.0), batch_size=2, **length)

    trainer = make_trainer(tmp_path, stage, phantoms(range(8)), *build_tiny_model())

    assert trainer.order.epochs == epochs


# -- learning ---------------------------------------------------------------------------------------------------------


SENTENCES = (
    *("The lungs are clear.", "The heart is enlarged.", "Small left effusion.", "No pneumothorax."),
    *("Right lower opacity.", "Edema is seen.", "A rib is broken.", "The tube ends well."),
)
# Every loss but one has its floor at zero, and eight records of one reader and one sentence each leave nothing that a
# model could not know. (The expected map is made of whole cells: its floor is what moving each fixation to the middle
# of its cell costs, and is added below.) A box whose sides are 2 % off and which shares 80 % of its hull with the true
# one costs 0.5; of a nodule 6 % wide, half a per cent off at each side costs 0.6. A density has no floor: knowing the
# cell of a fixation is worth log 64 against guessing, its duration within a tenth of itself more than 1.
NEAR_THE_FLOOR = {
    "report": 0.1,
    "contrast": 0.1,
    "findings": 0.05,
    "finding_boxes": 0.5,
    "finding_maps": 0.02,
    "region_boxes": 0.5,
    "gaze_attention": 0.1,
    "scanpath_map": 0.05,
    "scanpath": -math.log(64) - 1,
    "order": 0.05,
}
GROUPS = {
    "text": (("report", "contrast"), 200),
    "findings": (("findings", "finding_boxes", "region_boxes"), 500),
    "maps": (("finding_maps",), 300),
    "gaze": (("scanpath", "scanpath_map", "gaze_attention"), 200),
    "order": (("order",), 200),
}


def loss_of_the_map_of_the_right_cells(learner, batch):
    config = learner.core.config
    cells = cell_of(batch["recorded_fixations"][..., :2], config.grid_size)
    certain = torch.nn.functional.one_hot(cells, config.grid_size**2).float().log()
    heat, sigma = learner.recorded_heat(batch), config.fusion_config.heat_map_sigma
    return scanpath_map_loss(certain, batch["recorded_fixations"], batch["recorded_mask"], heat, sigma).item()


@pytest.mark.parametrize("names, steps", GROUPS.values(), ids=GROUPS)
def test_losses_get_near_their_floors_on_eight_records(names, steps):
    model, processor = without_dropout()
    tasks = {"order" if "order" in names else "report": 1.0}
    stage = StageRecipe("all", list(PARTS), LossWeights(**dict.fromkeys(names, 1.0)), tasks=tasks)
    records = phantoms(range(8))
    records = [records[index] | {"report": text} for index, text in enumerate(SENTENCES)]
    batch = ReportCollator(processor, recorded_gaze=1.0, predicted_gaze=0.0, tasks=tasks, with_text=True)(records)
    learner = LossModel(model, stage).train()
    # A box loss has a kink where it is lowest: only a rate that falls to zero comes to rest there.
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-2, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        losses = learner(batch)[0]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()

    assert set(losses) == set(names)
    floors = dict.fromkeys(names, 0.0) | {"scanpath_map": loss_of_the_map_of_the_right_cells(learner, batch)}
    for name, loss in losses.items():
        assert loss.item() < floors[name] + NEAR_THE_FLOOR[name], losses


# -- what cannot be trained on ----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_names_the_records(tmp_path):
    model, processor = build_tiny_model()
    stage = StageRecipe("step", ["perception"], LossWeights(findings=1.0), batch_size=2, max_steps=2, eval_steps=100)
    trainer = make_trainer(tmp_path, stage, phantoms(range(2)), model, processor)
    with torch.no_grad():
        model.model.perception.finding_bias.fill_(math.nan)

    with pytest.raises(
        ModelError, match=r"stage step, step 0: the loss findings is no finite number on the records \S+, "
    ):
        trainer.train()


def test_a_batch_without_any_annotation_changes_no_weight(tmp_path):
    model, processor = without_dropout()
    losses = LossWeights(**dict.fromkeys((*UNDRAWN_LOSSES, "finding_crops"), 1.0))
    stage = StageRecipe("step", list(PARTS), losses, batch_size=2, max_steps=1, eval_steps=100, weight_decay=0.0)
    records = phantoms(range(2))
    bare = {"report": None, "fixations": [], "labels": [], "boxes": [], "regions": [], "questions": [], "sentences": []}
    records.data[:] = [record | bare for record in records.data]
    trainer = make_trainer(tmp_path, stage, records, model, processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    trainer.train()

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
