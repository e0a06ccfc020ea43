"""Batches made ahead are those that the collator makes, and a stage learns from them as from any."""

import pytest
import torch

from modeling_gaze2report.modeling_gaze2report import Gaze2ReportForConditionalGeneration
from modeling_gaze2report.processing.errors import RecipeError
from modeling_gaze2report.training.data import ReportCollator
from modeling_gaze2report.training.held import FILMS, PATCHES, TOKENS, hold
from modeling_gaze2report.training.recipe import PARTS, LossWeights, StageRecipe, load_recipe
from modeling_gaze2report.training.stages import LossModel, made_ahead, run

from ..tiny_export import export_tiny_model
from .one_step import phantoms, without_dropout
from .toy import STEADY_GAZE, TOY, write_phantoms

TASKS = dict.fromkeys(("report", "ask", "ground", "order"), 1.0)
KEYS = [(0, 0.0, 4), (1, 0.0, 0), (2, 0.0, 3)]


def make(predicted_gaze: float = 0.0, recorded_gaze: float = 1.0, **perception):
    model, processor = without_dropout(**perception)
    collator = ReportCollator(
        processor,
        recorded_gaze=recorded_gaze,
        predicted_gaze=predicted_gaze,
        tasks=TASKS,
        texts_per_film=3,
        with_text=True,
    )
    return model.eval(), collator, phantoms(range(5))


def trimmed(batch: dict) -> dict:
    """Without what is padding in some batches and not in others."""
    batch = {name: value for name, value in batch.items() if name != "record_ids"}
    for values, mask in (("fixations", "fixation_mask"), ("recorded_fixations", "recorded_mask")):
        longest = int(batch[mask].sum(-1).max())
        batch[values], batch[mask] = batch[values][:, :longest], batch[mask][:, :longest]
    longest = int(batch["text_mask"].sum(-1).max())
    batch["text_ids"], batch["text_mask"] = batch["text_ids"][:, :longest], batch["text_mask"][:, :longest]
    for name, filler in {"order_ranks": -1, "box_classes": -1}.items():
        is_used = (batch[name] != filler).any(0)
        longest = int(is_used.nonzero().max()) + 1 if is_used.any() else 0
        batch[name] = batch[name][:, :longest]
    batch["box_corners"] = batch["box_corners"][:, : batch["box_classes"].shape[1]]
    return batch


@pytest.mark.parametrize("num_workers", [0, 2])
def test_held_batches_are_those_of_the_collator(num_workers):
    _, collator, records = make()
    held = hold(collator, records, 2, num_workers)
    assert held.films.shape[:2] == (5, 1)  # once for both passes, and in one channel

    for keys in (KEYS, KEYS[:1], KEYS[1:]):
        found = trimmed(held(keys))
        expected = trimmed(collator([records[epoch % 2, progress, index] for epoch, progress, index in keys]))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            tolerance = 2e-3 if name == FILMS else 0  # half precision
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, equal_nan=True, msg=name)


def test_batches_of_records_are_left_to_the_collator():
    _, collator, records = make()
    held = hold(collator, records, 1)
    batch, expected = held([records[0], records[1]]), collator([records[0], records[1]])
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_gaze_predicted_ahead_is_that_of_the_model():
    model, collator, records = make(predicted_gaze=1.0, recorded_gaze=0.0)
    held = hold(collator, records, 2)
    ahead = held.with_predicted_gaze(model)

    before, after = held(KEYS), ahead(KEYS)
    names = (FILMS, "film_boxes", "fixations", "fixation_mask", "gaze_source")
    first, second = (model.get_image_features(**{name: batch[name] for name in names}) for batch in (before, after))
    assert (before["gaze_source"] == 1).any() and not (after["gaze_source"] == 1).any()
    torch.testing.assert_close(first.findings.logits, second.findings.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.pooler_output, second.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", ["linear_1.weight", "values.weight"])
def test_tokens_held_in_place_of_films_give_the_same_loss_and_gradients(weight):
    model, collator, records = make(project_findings=True)
    stage = StageRecipe("words", ["projector", "language_model"], LossWeights(report=1.0), tasks=TASKS)
    learner = LossModel(model, stage).train()
    held = hold(collator, records, 2)
    results = []
    for one in (held, held.with_tokens(model)):
        model.zero_grad()
        batch = one(KEYS)
        loss = learner(batch)[0]["report"]
        loss.backward()
        results.append((FILMS in batch, loss.detach(), model.model.projector.get_parameter(weight).grad.clone()))
    (has_films, loss, gradient), (has_films_again, same_loss, same_gradient) = results
    assert has_films and not has_films_again and gradient.any()
    torch.testing.assert_close(same_loss, loss, rtol=1e-3, atol=0)
    torch.testing.assert_close(same_gradient, gradient, rtol=1e-2, atol=1e-4)


def held_and_made_ahead(learner, collator, records):
    """Batch, losses and gradients of a stage from films, and from what is held in their place."""
    model, stage = learner.core, learner.stage
    results = []
    for one in (hold(collator, records, 2), made_ahead(collator, model, stage, records, 0, torch.device("cpu"))):
        model.zero_grad()
        learner.train()
        batch = one(KEYS)
        losses = learner(batch)[0]
        sum(losses.values()).backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        results.append((batch, losses, gradients))
    for name, loss in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], loss, rtol=2e-3, atol=1e-5)
    return results


def test_states_held_in_place_of_films_give_the_same_losses_and_gradients():
    model, collator, records = make()
    weights = {"findings": 1.0, "finding_boxes": 1.0, "finding_maps": 1.0, "region_boxes": 1.0}
    weights |= {"severities": 1.0, "views": 1.0}
    stage = StageRecipe("grades", ["perception"], LossWeights(**weights), tasks=TASKS, held_passes=2)
    (batch, losses, gradients), (same_batch, _, same_gradients) = held_and_made_ahead(
        LossModel(model, stage), collator, records
    )
    assert FILMS in batch and FILMS not in same_batch and losses.keys() == set(weights)
    for name in ("severity.weight", "view.hidden.weight", "finding_attention.queries.weight"):
        name = f"model.perception.{name}"
        assert gradients[name].any()
        torch.testing.assert_close(same_gradients[name], gradients[name], rtol=2e-2, atol=2e-4)


def test_a_look_at_the_pixels_learns_alone_and_beside_held_states():
    model, collator, records = make(detail_hidden_size=6)
    weights = {"detail_maps": 1.0, "detail_findings": 1.0}
    stage = StageRecipe("detail", ["perception"], LossWeights(**weights), tasks=TASKS, held_passes=2)
    detail = model.model.perception.detail
    with torch.no_grad():
        detail.film_scale.fill_(0.3)
        detail.patch_scale.fill_(0.2)
    (batch, losses, gradients), (same_batch, _, same_gradients) = held_and_made_ahead(
        LossModel(model, stage), collator, records
    )
    assert PATCHES not in batch and {PATCHES, FILMS} <= same_batch.keys() and losses.keys() == set(weights)
    learnt = {name for name, value in gradients.items() if value.any()}
    assert learnt == {f"model.perception.detail.{name}" for name, _ in detail.named_parameters()}
    for name in learnt:
        torch.testing.assert_close(same_gradients[name], gradients[name], rtol=5e-2, atol=2e-3)


def test_a_look_at_the_pixels_learns_to_see_what_boxes_show():
    model, collator, records = make(detail_hidden_size=12)
    weights = {"detail_maps": 1.0, "detail_findings": 1.0}
    stage = StageRecipe("detail", ["perception"], LossWeights(**weights), tasks=TASKS, held_passes=1)
    held = made_ahead(collator, model, stage, records, 0, torch.device("cpu"))
    learner = LossModel(model, stage).train()
    optimizer = torch.optim.AdamW(model.model.perception.detail.parameters(), 1e-2)
    batch, steps = held([(0, 0.0, index) for index in range(5)]), []
    for _ in range(40):
        losses = learner(batch)[0]
        steps.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert steps[-1]["detail_maps"] < 0.6 * steps[0]["detail_maps"], steps[-1]
    assert steps[-1]["detail_findings"] < 0.6 * steps[0]["detail_findings"], steps[-1]


def test_states_are_held_only_where_nothing_before_the_heads_learns():
    model, collator, records = make()
    device = torch.device("cpu")
    for trainable, losses, expected in (
        (["perception"], {"severities": 1.0, "views": 1.0}, True),
        (["perception", "fusion"], {"severities": 1.0}, False),
        (["perception"], {"severities": 1.0, "order": 1.0}, False),
    ):
        stage = StageRecipe("grades", trainable, LossWeights(**losses), tasks=TASKS, held_passes=1)
        assert (PATCHES in made_ahead(collator, model, stage, records, 0, device).columns) == expected


def test_tokens_are_held_only_where_nothing_that_looks_at_films_learns():
    model, collator, records = make()
    text = StageRecipe("a", ["projector", "language_model"], LossWeights(report=1.0), tasks=TASKS, held_passes=1)
    every = StageRecipe("b", list(PARTS), LossWeights(report=1.0), tasks=TASKS, held_passes=1)
    findings = StageRecipe("c", ["projector"], LossWeights(report=1.0, findings=1.0), tasks=TASKS, held_passes=1)
    device = torch.device("cpu")
    assert TOKENS in made_ahead(collator, model, text, records, 0, device).columns
    for stage in (every, findings):
        assert TOKENS not in made_ahead(collator, model, stage, records, 0, device).columns


def test_a_recipe_trains_on_held_batches_and_gives_the_same_model_twice(tmp_path):
    data = write_phantoms(tmp_path / "phantoms")
    models = []
    for name in ("first", "second"):
        held = [f"stages.{number}.held_passes=1" for number in range(3)]
        settings = [*TOY, *held, *STEADY_GAZE, "stages.2.epochs=2", f"data.path={data}", f"output={tmp_path / name}"]
        models.append(Gaze2ReportForConditionalGeneration.from_pretrained(run(load_recipe("embedded", settings))))
    assert all(one.isfinite().all() for one in models[0].parameters())
    for first, second in zip(*(one.parameters() for one in models), strict=True):
        assert torch.equal(first, second)


def test_a_finished_checkpoint_is_taught_to_look_at_the_pixels_and_nothing_else(tmp_path, tmp_path_factory):
    checkpoint = export_tiny_model(tmp_path_factory)
    settings = ["model.perception.detail_hidden_size=6", "num_workers=0", "device=cpu", "stages.0.max_steps=3"]
    settings += ["stages.0.eval_steps=3", "stages.0.batch_size=4", f"data.path={write_phantoms(tmp_path / 'phantoms')}"]
    recipe = load_recipe("embedded-detail", [*settings, f"model.checkpoint={checkpoint}", f"output={tmp_path / 'm'}"])

    before = Gaze2ReportForConditionalGeneration.from_pretrained(checkpoint).state_dict()
    after = Gaze2ReportForConditionalGeneration.from_pretrained(run(recipe)).state_dict()

    new = {name for name in after if name not in before}
    assert new == {name for name in after if name.startswith("model.perception.detail.")}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["model.perception.detail.film_scale"].any() and after["model.perception.detail.patch_scale"].any()


def test_what_cannot_be_held_is_refused():
    with pytest.raises(RecipeError, match=r"stages\.0\.held_passes = 2 .*soft_gaze"):
        load_recipe("embedded", ["stages.0.held_passes=2", "stages.0.soft_gaze=true"])
    with pytest.raises(RecipeError, match=r"stages\.0\.held_passes = -1 .*at least 0"):
        load_recipe("embedded", ["stages.0.held_passes=-1"])


def test_several_processes_are_refused(monkeypatch):
    model, collator, records = make()
    monkeypatch.setenv("WORLD_SIZE", "2")
    stage = StageRecipe("words", ["projector"], LossWeights(report=1.0), tasks=TASKS, held_passes=1)
    with pytest.raises(RecipeError, match="stage words: held_passes needs a single process"):
        made_ahead(collator, model, stage, records, 0, torch.device("cpu"))
