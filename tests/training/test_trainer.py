"""What a step of training is: the same however its records are cut into batches, and each loss at its own scale."""

import pytest
import torch

from modeling_gaze2report.training.recipe import LossWeights

from .one_step import gradients_of_one_step

LOSSES = [name for name in vars(LossWeights()) if name != "contrast"]


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


def test_a_loss_does_not_change_the_scale_of_another():
    first = gradients_of_one_step(4, 2, {"findings": 1.0})
    second = gradients_of_one_step(4, 2, {"scanpath": 0.5})
    both = gradients_of_one_step(4, 2, {"findings": 1.0, "scanpath": 0.5})

    for name, gradient in both.items():
        parts = [one[name] for one in (first, second) if name in one]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-4, atol=1e-6)
