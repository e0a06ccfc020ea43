"""Losses: one function each, with formula, shapes and source.

Each is a mean over what carries its annotation, and zero where nothing does, so that adding one does not change the
scale of another.
"""

import torch
from torch.nn import functional as F

from ..modeling_grid import cell_centres


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` where `mask`; zero, with a gradient of zero, where there is nothing."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp_min(1)


def scanpath_loss(log_likelihood: torch.Tensor, fixation_mask: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per fixation, in nats: - mean_i log p(fixation_i | film, fixations before).

    Shapes: log_likelihood (B, N), fixation_mask (B, N) -> (). Exact likelihood of `Gaze2ReportScanpathModel`.
    """
    return masked_mean(-log_likelihood, fixation_mask)


def findings_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over the findings whose label is certain: 1 present, 0 absent; -1 (uncertain) and NaN (not
    mentioned) are left out.

    Shapes: logits (B, 14), labels (B, 14) -> ().
    """
    certain = (labels == 0) | (labels == 1)
    target = torch.where(certain, labels, torch.zeros_like(labels))
    return masked_mean(F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none"), certain)


def box_loss(boxes: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the marked boxes of 5 |b - t|_1 / 4 + 2 (1 - GIoU), as in DETR (Carion et al. 2020, arXiv 2005.12872).

    GIoU = IoU - (hull - union) / hull (Rezatofighi et al. 2019, arXiv 1902.09630).
    Shapes: boxes (..., 4) and targets (..., 4) as x0, y0, x1, y1; mask (...) -> ().
    """
    targets = torch.where(mask.unsqueeze(-1), targets, torch.zeros_like(targets))
    distance = (boxes - targets).abs().mean(-1)
    overlap = (
        torch.minimum(boxes[..., 2:], targets[..., 2:]) - torch.maximum(boxes[..., :2], targets[..., :2])
    ).clamp_min(0)
    hull = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])
    overlap, hull = overlap.prod(-1), hull.clamp_min(0).prod(-1)
    union = area(boxes) + area(targets) - overlap
    giou = overlap / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)
    return masked_mean(5 * distance + 2 * (1 - giou), mask)


def area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def gaze_attention_loss(attention: torch.Tensor, heat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How far attention lies from where dwell time fell, in four terms, after Eyes on the Image (arXiv 2508.13068):

        mean_j (A'_j - H'_j)^2 + 0.5 sum_j H_j log(H_j / A_j) + 0.5 (1 - corr(A, H)) + |c(A) - c(H)|^2 / 2

    with A' and H' divided by their maxima and c the centre of mass. The weights are ours.
    Shapes: attention (B, P) and heat (B, P), each summing to one; mask (B,) records with recorded gaze -> ().
    """
    attention, heat = attention.float(), heat.float()
    scaled = attention / attention.amax(-1, keepdim=True).clamp_min(1e-12)
    squared = (scaled - heat / heat.amax(-1, keepdim=True).clamp_min(1e-12)).square().mean(-1)
    divergence = (heat * ((heat + 1e-8) / (attention + 1e-8)).log()).sum(-1)
    a, h = attention - attention.mean(-1, keepdim=True), heat - heat.mean(-1, keepdim=True)
    norm = (a.square().sum(-1) * h.square().sum(-1)).clamp_min(1e-24).sqrt()
    correlation = (a * h).sum(-1) / norm
    centres = cell_centres(round(attention.shape[-1] ** 0.5), attention.device)
    distance = (attention @ centres - heat @ centres).square().sum(-1) / 2
    return masked_mean(squared + 0.5 * divergence + 0.5 * (1 - correlation) + distance, mask)


__all__ = ["box_loss", "findings_loss", "gaze_attention_loss", "masked_mean", "scanpath_loss"]
