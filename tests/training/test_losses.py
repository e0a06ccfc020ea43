"""Losses against values worked out by hand and against finite differences."""

import math

import pytest
import torch

from modeling_gaze2report.training.losses import (
    box_loss,
    findings_loss,
    gaze_attention_loss,
    masked_mean,
    scanpath_loss,
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


# -- gradients --------------------------------------------------------------------------------------------------------


def finite_differences(function, values, step):
    gradient = torch.zeros_like(values)
    for index in range(values.numel()):
        shift = torch.zeros(values.numel()).index_fill(0, torch.tensor(index), step).view_as(values)
        gradient.view(-1)[index] = (function(values + shift) - function(values - shift)) / (2 * step)
    return gradient


def check_gradient(function, values, step=1e-2, tolerance=5e-3):
    leaf = values.clone().requires_grad_()
    function(leaf).backward()
    torch.testing.assert_close(leaf.grad, finite_differences(function, values, step), rtol=tolerance, atol=tolerance)


def test_gradient_of_the_findings_loss():
    labels = torch.tensor([[1.0, 0.0, -1.0, NAN, 1.0]])

    check_gradient(lambda logits: findings_loss(logits, labels), torch.linspace(-2, 2, 5)[None])


def test_gradient_of_the_box_loss():
    target = torch.tensor([[0.2, 0.25, 0.6, 0.7]])

    check_gradient(
        lambda boxes: box_loss(boxes, target, MARKED), torch.tensor([[0.1, 0.3, 0.5, 0.9]]), step=1e-3, tolerance=1e-2
    )


def test_gradient_of_the_gaze_attention_loss():
    heat = torch.tensor([[0.1, 0.2, 0.3, 0.4]])

    check_gradient(
        lambda attention: gaze_attention_loss(attention, heat, MARKED),
        torch.tensor([[0.37, 0.33, 0.2, 0.1]]),
        step=2e-3,
        tolerance=1e-2,
    )


def test_gradient_of_the_scanpath_loss():
    mask = torch.tensor([[True, True, False]])

    check_gradient(lambda values: scanpath_loss(values, mask), torch.tensor([[-1.0, -2.0, -3.0]]))
