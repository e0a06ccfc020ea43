"""The loss of single patches: what is drawn, what is cut out, what is learnt, and which towers cannot."""

import math

import pytest
import torch

from modeling_gaze2report.processing.errors import RecipeError
from modeling_gaze2report.training.assemble import build_model, build_tokenizer
from modeling_gaze2report.training.data import ReportCollator
from modeling_gaze2report.training.losses import cut_crops, draw_patches, finding_crops_loss
from modeling_gaze2report.training.recipe import PARTS, LossWeights, ModelRecipe, StageRecipe
from modeling_gaze2report.training.stages import LossModel

from ..tiny_export import MODEL, REPORTS, build_tiny_model
from .one_step import phantoms

RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
}
CROPS = {"finding_crops": 1.0}
STAGE = StageRecipe("crops", list(PARTS), LossWeights(**CROPS))


def cells_of_three_films():
    """Six patches; the first finding covers two patches of film 0, the second one of film 1, the third is nowhere."""
    cells = torch.zeros(3, 3, 6, dtype=torch.bool)
    cells[0, 0, [1, 4]] = True
    cells[1, 1, 5] = True
    return cells


def test_half_of_the_patches_are_covered_and_half_lie_at_the_same_places_of_films_without():
    cells, known = cells_of_three_films(), torch.ones(3, 3, dtype=torch.bool)
    known[1, 0] = False  # a film of which nobody knows stands for neither

    film, patch = draw_patches(cells, known, 200)

    assert len(film) == len(patch) == 400
    drawn = set(zip(film[:200].tolist(), patch[:200].tolist(), strict=True))
    assert drawn == {(0, 1), (0, 4), (1, 5)}
    for here, there, place in zip(film[:200].tolist(), film[200:].tolist(), patch[:200].tolist(), strict=True):
        assert there in ({2} if here == 0 else {0, 2})
        assert cells[here, :, place].any() and not cells[there, :, place].any()
    assert torch.equal(patch[:200], patch[200:])


def test_a_rare_finding_is_drawn_as_often_as_a_common_one():
    torch.manual_seed(0)
    cells = torch.zeros(40, 2, 9, dtype=torch.bool)
    cells[:30, 0] = True  # all of 30 films
    cells[35, 1, 8] = True  # one patch of one

    film, _ = draw_patches(cells, torch.ones(40, 2, dtype=torch.bool), 1000)

    assert (film[:1000] == 35).float().mean().item() == pytest.approx(0.5, abs=0.06)  # four standard errors


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_drawn_where_all_films_or_none_show_the_finding(shown):
    film, patch = draw_patches(torch.full((2, 1, 4), shown), torch.ones(2, 1, dtype=torch.bool), 10)

    assert film.shape == patch.shape == (0,)


def test_crops_are_cut_around_their_patches_and_go_on_beyond_the_edge():
    pixels = torch.arange(2 * 64, dtype=torch.float32).view(2, 1, 8, 8)

    crops = cut_crops(pixels, torch.tensor([1, 0]), torch.tensor([5, 3]), grid_size=4, margin=1)

    assert crops.shape == (2, 1, 6, 6)
    assert torch.equal(crops[0, 0], pixels[1, 0, :6, :6])  # patch (1, 1): rows and columns 2 and 3, and two around
    assert torch.equal(crops[1, 0, 2:, :4], pixels[0, 0, :4, 4:])  # patch (0, 3), in the corner
    assert torch.equal(crops[1, 0, 1], crops[1, 0, 2]) and torch.equal(crops[1, 0, :, 4], crops[1, 0, :, 3])


def test_finding_crops_loss_by_hand():
    # Probabilities 1/2 of what is there and 3/4 of what is not; the third is not known. Half of the step's films.
    scores = torch.tensor([[0.0, math.log(3), 9.0]])

    loss = finding_crops_loss(scores, torch.tensor([[1, 0, 0]]), torch.tensor([[True, True, False]]), share=0.5)

    assert loss.item() == pytest.approx(0.5 * (math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_the_tower_learns_what_the_patches_show():
    torch.manual_seed(0)
    model, processor = build_model(ModelRecipe(**MODEL | {"vision": RESNET}), build_tokenizer(REPORTS, 320))
    batch = ReportCollator(processor, recorded_gaze=0.0, predicted_gaze=0.0)(phantoms(range(8)))
    learner = LossModel(model, STAGE).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(120):
        loss = learner(batch)[0]["finding_crops"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    learnt = {name.split(".")[1] for name, one in model.named_parameters() if one.grad is not None}
    assert learnt == {"vision_tower", "fusion", "perception"}


@pytest.mark.parametrize("beside", [{}, {"findings": 1.0}])
def test_beside_whole_films_crops_leave_no_trace_in_the_running_statistics(beside):
    torch.manual_seed(0)
    model, processor = build_model(ModelRecipe(**MODEL | {"vision": RESNET}), build_tokenizer(REPORTS, 320))
    batch = ReportCollator(processor, recorded_gaze=0.0, predicted_gaze=0.0)(phantoms(range(8)))
    start = {name: one.clone() for name, one in model.named_buffers() if "running" in name}

    def statistics_after(weights):
        model.load_state_dict(start, strict=False)
        losses = LossModel(model, StageRecipe("s", list(PARTS), LossWeights(**weights))).train()(batch)[0]
        assert set(losses) >= set(weights)
        return {name: one.clone() for name, one in model.named_buffers() if "running" in name}

    without, with_crops = (statistics_after(weights) for weights in (beside or {"findings": 1.0}, beside | CROPS))

    same = [torch.equal(one, with_crops[name]) for name, one in without.items()]
    assert len(same) > 4 and (all(same) if beside else not any(same))
    assert all(one.training for one in model.model.vision_tower.modules())


def test_films_without_boxes_cost_nothing():
    torch.manual_seed(0)
    model, processor = build_model(ModelRecipe(**MODEL | {"vision": RESNET}), build_tokenizer(REPORTS, 320))
    records = phantoms(range(2))
    batch = ReportCollator(processor)([record | {"boxes": []} for record in records.data])

    loss = LossModel(model, STAGE).train()(batch)[0]["finding_crops"]
    loss.backward()

    assert loss == 0
    assert not any(one.grad.any() for one in model.parameters() if one.grad is not None)


def test_a_tower_of_one_size_is_refused():
    model, processor = build_tiny_model()
    batch = ReportCollator(processor)(phantoms(range(8)))

    with pytest.raises(RecipeError, match=r"stage crops: losses.finding_crops needs .* leave it out for ViTModel"):
        LossModel(model, STAGE).train()(batch)
