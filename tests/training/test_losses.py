"""Losses against values worked out by hand and against finite differences."""

import math

import pytest
import torch

from modeling_gaze2report.training.losses import (
    box_loss,
    class_loss,
    contrast_loss,
    covered_cells,
    detail_maps_loss,
    finding_maps_loss,
    findings_loss,
    gaze_attention_loss,
    learnt_apart,
    masked_mean,
    order_loss,
    report_loss,
    scanpath_loss,
    scanpath_map_loss,
    token_losses,
)

NAN = float("nan")


def test_masked_mean_is_over_the_marked():
    values, mask = torch.tensor([1.0, 5.0, NAN]), torch.tensor([True, True, False])

    assert masked_mean(values, mask) == 3.0


def test_nothing_marked_is_zero_with_a_gradient_of_zero():
    values = torch.tensor([1.0, 2.0], requires_grad=True)

    loss = masked_mean(values, torch.zeros(2, dtype=torch.bool))
    loss.backward()

    assert loss == 0
    assert values.grad.tolist() == [0.0, 0.0]


def test_scanpath_loss_is_the_mean_over_all_fixations_of_the_batch():
    log_likelihood = torch.tensor([[-1.0, -2.0, 9.0], [-6.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])

    assert scanpath_loss(log_likelihood, mask) == 3.0  # (1 + 2 + 6) / 3


def test_order_loss_is_the_mean_over_the_pairs_whose_order_is_known():
    # Of the first film the second fixation came first, then the third, then the first; of the second one none is known.
    scores = torch.tensor([[2.0, 0.5, 1.0, 7.0], [3.0, 2.0, 1.0, 0.0]])
    ranks = torch.tensor([[2, 0, 1, -1], [-1, -1, -1, -1]])

    expected = sum(math.log(1 + math.exp(early - late)) for early, late in ((0.5, 1.0), (0.5, 2.0), (1.0, 2.0))) / 3
    assert order_loss(scores, ranks).item() == pytest.approx(expected, rel=1e-6)


def test_findings_loss_is_over_the_certain_labels():
    logits = torch.tensor([[2.0, 0.0, 5.0, -5.0]])
    labels = torch.tensor([[1.0, 0.0, -1.0, NAN]])

    expected = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert findings_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_findings_without_labels_cost_nothing():
    logits = torch.randn(2, 14, requires_grad=True)

    loss = findings_loss(logits, torch.full((2, 14), NAN))
    loss.backward()

    assert loss == 0 and not logits.grad.any()


BOXES = [
    # equal boxes
    ([0.1, 0.2, 0.5, 0.6], [0.1, 0.2, 0.5, 0.6], 0.0),
    # touching at a corner: mean distance 0.5; union 0.5 of a hull of 1, so GIoU = -0.5: 5 * 0.5 + 2 * 1.5
    ([0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], 5.5),
    # the target is half the box: mean distance 0.125; GIoU = IoU = 0.5: 5 * 0.125 + 2 * 0.5
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], 1.625),
    # a quarter of each overlaps: IoU = 0.0625 / 0.4375 = 1/7, hull 0.5625: GIoU = 1/7 - 0.125 / 0.5625 = 1/7 - 2/9
    ([0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], 5 * 0.25 + 2 * (1 - 1 / 7 + 2 / 9)),
]


@pytest.mark.parametrize("box, target, expected", BOXES)
def test_box_loss_by_hand(box, target, expected):
    loss = box_loss(torch.tensor([box]), torch.tensor([target]), torch.tensor([True]))

    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_boxes_that_are_not_marked_have_no_say_even_as_nan():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9]], requires_grad=True)
    targets = torch.tensor([[0.5, 0.5, 1.0, 1.0], [NAN] * 4])

    loss = box_loss(boxes, targets, torch.tensor([True, False]))
    loss.backward()

    assert loss.item() == pytest.approx(5.5, abs=1e-6)
    assert boxes.grad.isfinite().all() and not boxes.grad[1].any()


MARKED = torch.tensor([True])


def test_gaze_attention_loss_of_equal_maps_is_zero():
    heat = torch.tensor([[0.4, 0.3, 0.2, 0.1]])

    assert gaze_attention_loss(heat, heat, MARKED).item() == pytest.approx(0, abs=1e-6)


def test_gaze_attention_loss_of_a_reversed_map_by_hand():
    attention, heat = torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])

    squared = (0.75**2 + 0.25**2 + 0.25**2 + 0.75**2) / 4
    divergence = 0.1 * math.log(1 / 4) + 0.2 * math.log(2 / 3) + 0.3 * math.log(3 / 2) + 0.4 * math.log(4)
    # Centres of mass on the 2 x 2 grid with centres 0.25 and 0.75: (0.45, 0.40) and (0.55, 0.60); correlation -1.
    expected = squared + 0.5 * divergence + 0.5 * 2 + (0.1**2 + 0.2**2) / 2
    assert gaze_attention_loss(attention, heat, MARKED).item() == pytest.approx(expected, abs=1e-5)


def test_gaze_attention_loss_of_even_attention_by_hand():
    attention, heat = torch.full((1, 4), 0.25), torch.tensor([[1.0, 0.0, 0.0, 0.0]])

    # Scaled maps differ by 1 on three cells of four; no correlation; centres (0.5, 0.5) and (0.25, 0.25).
    expected = 3 / 4 + 0.5 * math.log(4) + 0.5 + 2 * 0.25**2 / 2
    assert gaze_attention_loss(attention, heat, MARKED).item() == pytest.approx(expected, abs=1e-5)


def test_gaze_attention_loss_leaves_out_records_without_gaze():
    attention = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.25] * 4])
    heat = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0] * 4])

    both = gaze_attention_loss(attention, heat, torch.tensor([True, False]))

    assert both.item() == pytest.approx(gaze_attention_loss(attention[:1], heat[:1], MARKED).item(), abs=1e-7)


def test_trust_weighs_each_recording():
    attention, heat = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 2), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)
    both = torch.tensor([True, True])

    trusted = gaze_attention_loss(attention, heat, both)
    half = gaze_attention_loss(attention, heat, both, trust=torch.tensor([1.0, 0.0]))

    assert half.item() == pytest.approx(trusted.item() / 2, rel=1e-6)


@pytest.mark.parametrize(
    "uncertain, expected",
    [
        ("ignore", (math.log(1 + math.exp(-2)) + math.log(2)) / 2),
        ("positive", (math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.exp(-5))) / 3),
        ("negative", (math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.exp(5))) / 3),
        # 0.7 x cost of positive + 0.3 x cost of negative
        (
            "soft",
            (math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.exp(-5)) + 0.3 * 5) / 3,
        ),
    ],
)
def test_uncertain_findings_by_policy(uncertain, expected):
    logits, labels = torch.tensor([[2.0, 0.0, 5.0, -5.0]]), torch.tensor([[1.0, 0.0, -1.0, NAN]])

    assert findings_loss(logits, labels, uncertain=uncertain).item() == pytest.approx(expected, rel=1e-6)


def test_report_loss_is_the_mean_over_tokens():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # p(1) = 3/4, then even

    loss = report_loss(token_losses(logits, torch.tensor([1, 0])))

    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)


@pytest.mark.parametrize("share", [2, 4])
def test_a_count_of_the_whole_step_replaces_the_batches_own(share):
    values = torch.tensor([[-1.0, -2.0, -3.0]])
    mask = torch.tensor([[True, True, False]])

    assert scanpath_loss(values, mask, count=torch.tensor(2 * share)).item() == pytest.approx(1.5 / share)


def test_scanpath_map_loss_of_the_cells_that_were_looked_at_is_zero():
    # Fixations at the centres of cells 0 and 3 of a 2 x 2 grid, foreseen with certainty.
    log_probs = torch.full((1, 2, 4), -torch.inf)
    log_probs[0, 0, 0] = log_probs[0, 1, 3] = 0.0
    fixations = torch.tensor([[[0.25, 0.25, 0.2], [0.75, 0.75, 0.6]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    heat = torch.tensor([[0.25, 0.0, 0.0, 0.75]])  # the blur is far smaller than a cell

    assert scanpath_map_loss(log_probs, fixations, mask, heat, sigma=0.01).item() == pytest.approx(0, abs=1e-5)


def test_scanpath_map_loss_of_an_even_prediction_by_hand():
    log_probs = torch.full((1, 2, 4), math.log(0.25))
    fixations = torch.tensor([[[0.25, 0.25, 0.2], [0.75, 0.75, 0.6]]])
    mask = torch.tensor([[True, True]])
    heat = torch.tensor([[0.25, 0.0, 0.0, 0.75]])

    expected = 0.25 * math.log(0.25 / 0.25) + 0.75 * math.log(0.75 / 0.25)
    loss = scanpath_map_loss(log_probs, fixations, mask, heat, sigma=0.01)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


TWO_FILMS = torch.eye(2)


def test_contrast_of_two_films_by_hand():
    keys, mask = torch.tensor([1, 2]), torch.tensor([True, True])

    loss = contrast_loss(TWO_FILMS, TWO_FILMS, torch.tensor(2.0), keys, mask)

    # Each film has logits 2 (its own text) and 0, and so has each text.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)


def test_equal_texts_are_no_negatives_of_each_other():
    keys, mask = torch.tensor([7, 7]), torch.tensor([True, True])

    loss = contrast_loss(TWO_FILMS, TWO_FILMS, torch.tensor(2.0), keys, mask)

    # The mean over both texts: log softmax of 2 and of 0 among (2, 0).
    own = math.log(1 + math.exp(-2))
    assert loss.item() == pytest.approx((own + (2 + own)) / 2, rel=1e-6)


def test_films_without_a_text_are_neither_pair_nor_negative():
    keys, mask = torch.tensor([1, 0]), torch.tensor([True, False])

    assert contrast_loss(TWO_FILMS, TWO_FILMS, torch.tensor(2.0), keys, mask).item() == pytest.approx(0, abs=1e-6)


# -- maps of the findings ---------------------------------------------------------------------------------------------


def test_patches_that_a_box_reaches():
    # Four patches with their middles at 0.25 and 0.75: one is covered from half a patch (0.25) before its middle on.
    centres = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    boxes = torch.tensor([[[0.1, 0.1, 0.2, 0.4], [0.6, 0.6, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0]]])

    cells = covered_cells(boxes, torch.tensor([[0, 0, -1]]), 2, centres)

    assert cells.tolist() == [[[True, False, False, True], [False] * 4]]


def test_a_box_of_no_width_covers_the_patch_that_it_lies_in():
    centres = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])

    cells = covered_cells(torch.tensor([[[0.6, 0.3, 0.6, 0.3]]]), torch.tensor([[0]]), 1, centres)

    assert cells.tolist() == [[[False, True, False, False]]]


def test_finding_maps_loss_by_hand():
    # Probabilities 1/2 and 3/4 of patches that are covered and free: ln 2 and ln 4. The second finding is not known.
    scores = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]])
    cells = torch.tensor([[[1, 0], [0, 0]]])

    loss = finding_maps_loss(scores, cells, torch.tensor([[True, False]]))

    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_detail_maps_loss_by_hand():
    # As above, but that the covered cell counts ten times.
    scores = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]])
    cells = torch.tensor([[[1, 0], [0, 0]]])

    loss = detail_maps_loss(scores, cells, torch.tensor([[True, False]]))

    assert loss.item() == pytest.approx((10 * math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_of_what_is_learnt_apart_one_summand_has_a_gradient():
    fixed, part = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([5.0, 7.0], requires_grad=True)

    value = learnt_apart(fixed + part, part)
    value.square().sum().backward()

    assert value.tolist() == [7.0, 10.0] and fixed.grad is None and part.grad.tolist() == [14.0, 20.0]


def test_class_loss_by_hand():
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], [[0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3]]]).log()
    targets = torch.tensor([[1, -1], [2, 0]])

    assert class_loss(logits, targets).item() == pytest.approx(-(math.log(0.25 * 0.6) + math.log(1 / 3)) / 3, rel=1e-6)
    assert class_loss(logits, targets, torch.tensor(6)).item() == pytest.approx(class_loss(logits, targets).item() / 2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: finding_maps_loss(x.view(1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2, dtype=torch.bool)),
        lambda x: report_loss(token_losses(x.view(1, 4)[:0], torch.zeros(0, dtype=torch.long))),
        lambda x: scanpath_loss(x.view(1, 4), torch.zeros(1, 4, dtype=torch.bool)),
        lambda x: findings_loss(x.view(1, 4), torch.full((1, 4), NAN)),
        lambda x: box_loss(x.view(1, 4), torch.full((1, 4), NAN), torch.tensor([False])),
        lambda x: class_loss(x.view(1, 2, 2), torch.full((1, 2), -1)),
        lambda x: gaze_attention_loss(x.view(1, 4).softmax(-1), torch.full((1, 4), 0.25), torch.tensor([False])),
        lambda x: contrast_loss(
            x.view(2, 2), x.view(2, 2), torch.tensor(2.0), torch.zeros(2, dtype=torch.long), torch.tensor([False] * 2)
        ),
        lambda x: scanpath_map_loss(
            x.view(1, 1, 4).log_softmax(-1),
            torch.zeros(1, 1, 3),
            torch.zeros(1, 1, dtype=torch.bool),
            torch.full((1, 4), 0.25),
            0.1,
        ),
    ],
)
def test_a_batch_without_annotation_costs_nothing_and_teaches_nothing(loss):
    values = torch.tensor([0.1, 0.2, 0.6, 0.9], requires_grad=True)

    value = loss(values)
    value.backward()

    assert value == 0 and not values.grad.any()


# -- gradients --------------------------------------------------------------------------------------------------------

# Functions of one float64 tensor of eight numbers between 0 and 1, nowhere at a corner of the loss.
HEAT = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
TARGET_BOXES = torch.tensor([[0.2, 0.25, 0.6, 0.7], [0.15, 0.35, 0.8, 0.95]], dtype=torch.float64)
FIXATIONS = torch.tensor([[[0.25, 0.25, 0.2], [0.75, 0.75, 0.6]]], dtype=torch.float64)
BOTH = torch.tensor([True, True])
GRADIENTS = {
    "report": lambda x: report_loss(token_losses(x.view(2, 4), torch.tensor([1, 3]))),
    "scanpath": lambda x: scanpath_loss(x.view(2, 4), torch.tensor([[True, True, False, False], [True] * 4])),
    "scanpath_map": lambda x: scanpath_map_loss(
        x.view(1, 2, 4).log_softmax(-1), FIXATIONS, torch.tensor([[True, True]]), HEAT[:1], 0.3
    ),
    "findings": lambda x: findings_loss(x.view(2, 4), torch.tensor([[1.0, 0.0, -1.0, NAN]] * 2), uncertain="soft"),
    "finding_maps": lambda x: finding_maps_loss(
        x.view(2, 2, 2), torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 0]]]), torch.tensor([[True, False], [True, True]])
    ),
    "detail_maps": lambda x: detail_maps_loss(
        x.view(2, 2, 2), torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 0]]]), torch.tensor([[True, False], [True, True]])
    ),
    "classes": lambda x: class_loss(x.view(2, 2, 2), torch.tensor([[1, -1], [0, 1]])),
    "boxes": lambda x: box_loss(x.view(2, 4).sort(-1).values, TARGET_BOXES, BOTH),
    "gaze_attention": lambda x: gaze_attention_loss(
        x.view(2, 4).softmax(-1), HEAT, BOTH, torch.tensor([0.3, 0.9], dtype=torch.float64)
    ),
    "order": lambda x: order_loss(x.view(2, 4), torch.tensor([[2, 0, 1, -1], [1, 0, -1, -1]])),
    "contrast": lambda x: contrast_loss(x[:4].view(2, 2), x[4:].view(2, 2), x.sum(), torch.tensor([1, 2]), BOTH),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_against_finite_differences(name):
    values = torch.tensor([0.11, 0.31, 0.52, 0.93, 0.17, 0.44, 0.72, 0.88], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(GRADIENTS[name], values, eps=1e-6, atol=1e-5)
