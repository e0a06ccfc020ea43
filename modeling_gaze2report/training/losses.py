"""Losses: one function each, with formula, shapes and source.

Each is a sum over what carries its annotation, divided by how much there is of it: in the batch, or, by `count`, in all
batches of a step on all processes. So a step's gradient does not depend on how its records are cut into batches, and
adding a loss does not change the scale of another. Where nothing is annotated a loss is zero.
"""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from ..modeling_grid import cell_centres, expected_heat_map

IGNORED = -100
# An uncertain label as a target: the mean of the U(0.55, 0.85) of Pham et al. 2021 (arXiv 1911.06475).
SOFT_POSITIVE = 0.7
# How much more a small cell counts that shows a finding than one that does not.
COVERED_WEIGHT = 10.0


def masked_mean(values: torch.Tensor, mask: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of `values` where `mask`, over `count` (left out: the marked ones of `mask`).

    Zero, with a gradient of zero, where there is nothing.
    """
    count = mask.sum() if count is None else count
    return torch.where(mask, values, torch.zeros_like(values)).sum() / count.clamp_min(1)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every token of a report or answer, - log p(token | film, gaze, tokens before), in nats.

    Shapes: logits (N, V), targets (N,) -> (N,).
    """
    return F.cross_entropy(widened(logits), targets, reduction="none")


def report_loss(values: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of reports and answers: the mean of their [`token_losses`]. `count` is of tokens.

    Shapes: values (N,) -> ().
    """
    return masked_mean(values, torch.ones_like(values, dtype=torch.bool), count)


def scanpath_loss(
    log_likelihood: torch.Tensor, fixation_mask: torch.Tensor, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative log-likelihood per fixation, in nats: - mean_i log p(fixation_i | film, fixations before).

    Shapes: log_likelihood (B, N), fixation_mask (B, N) -> (). Exact likelihood of `Gaze2ReportScanpathModel`. `count`
    is of fixations.
    """
    return masked_mean(-log_likelihood, fixation_mask, count)


def scanpath_map_loss(
    location_log_probs: torch.Tensor,
    fixations: torch.Tensor,
    fixation_mask: torch.Tensor,
    heat: torch.Tensor,
    sigma: float,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Divergence of the map that the scanpath model expects from the recorded one, KL(h || h^):

        sum_j h_j log(h_j / h^_j),   h^_j ~ sum_i d_i sum_k p_i(k) exp(-|c_j - c_k|^2 / 2 sigma^2)

    with the recorded durations d_i. Differentiable in the cells' probabilities, all of them. Ours.
    Shapes: location_log_probs (B, N, P), fixations (B, N, 3), fixation_mask (B, N), heat (B, P) -> (). `count` is of
    records with gaze.
    """
    centres = cell_centres(round(heat.shape[-1] ** 0.5), heat.device).to(location_log_probs.dtype)
    expected = expected_heat_map(location_log_probs, fixations, fixation_mask, centres, sigma)
    return masked_mean(divergence(heat, expected), fixation_mask.any(-1), count)


def divergence(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """KL(target || prediction) of maps that sum to one. Shapes: (..., P), (..., P) -> (...)."""
    return (target * ((target + 1e-8) / (prediction + 1e-8)).log()).sum(-1)


def findings_loss(
    logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | None = None, uncertain: str = "ignore"
) -> torch.Tensor:
    """Binary cross-entropy over the findings with a label: 1 present, 0 absent; NaN (not mentioned) is left out.

    A label of -1 (uncertain) is left out as well (`ignore`), or is taken for `positive`, `negative`, or a target of 0.7
    (`soft`): the policies of Irvin et al. 2019 (arXiv 1901.07031) and Pham et al. 2021 (arXiv 1911.06475).
    Shapes: logits (B, 14), labels (B, 14) -> (). `count` is of labels.
    """
    target, known = finding_targets(labels, uncertain)
    values = F.binary_cross_entropy_with_logits(widened(logits), target.to(widened(logits).dtype), reduction="none")
    return masked_mean(values, known, count)


def finding_targets(labels: torch.Tensor, uncertain: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets in [0, 1], and which labels count, each of the shape of `labels`."""
    target = {"ignore": torch.nan, "positive": 1.0, "negative": 0.0, "soft": SOFT_POSITIVE}[uncertain]
    targets = torch.where(labels == -1, target, labels)
    known = ~targets.isnan()
    return torch.where(known, targets, torch.zeros_like(targets)), known


def class_loss(logits: torch.Tensor, targets: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of degrees of severity or of views, the mean over those known: -1 is left out.

    Shapes: logits (..., C), targets (...) -> (). `count` is of targets.
    """
    known = targets >= 0
    values = F.cross_entropy(widened(logits).flatten(0, -2), targets.clamp_min(0).flatten(), reduction="none")
    return masked_mean(values, known.flatten(), count)


def finding_maps_loss(
    scores: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy of the findings' scores, patch by patch: 1 in a patch that a box of the finding covers, 0
    elsewhere; the mean over the patches of a film, then over the marked findings. Ours: weak boxes as a coarse
    segmentation.

    Shapes: scores (B, K, P), cells (B, K, P) in {0, 1}, mask (B, K) -> (). `count` is of findings.
    """
    scores = widened(scores)
    values = F.binary_cross_entropy_with_logits(scores, cells.to(scores.dtype), reduction="none").mean(-1)
    return masked_mean(values, mask, count)


def detail_maps_loss(
    scores: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy of the findings' scores in small cells, as in [`finding_maps_loss`]; a cell that a box
    covers weighs ten times, for a plate or a nodule covers few of thousands. Ours.

    Shapes: scores (B, K, F * F), cells (B, K, F * F) in {0, 1}, mask (B, K) -> (). `count` is of findings.
    """
    scores = widened(scores)
    cells = cells.to(scores.dtype)
    weight = 1 + (COVERED_WEIGHT - 1) * cells
    values = F.binary_cross_entropy_with_logits(scores, cells, weight=weight, reduction="none").mean(-1)
    return masked_mean(values, mask, count)


def learnt_apart(value: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """The same value, of which only one summand learns. Shapes: any, the same."""
    return (value - part).detach() + part


def covered_cells(boxes: torch.Tensor, classes: torch.Tensor, num_classes: int, centres: torch.Tensor) -> torch.Tensor:
    """The patches that the boxes of each class reach: those whose middle is at most half a patch outside of a box.

    Shapes: boxes (B, M, 4), classes (B, M) with -1 for no box, centres (P, 2) of a square grid -> (B, K, P) bool.
    """
    half = 0.5 / round(len(centres) ** 0.5)
    low, high = boxes[..., None, :2] - half, boxes[..., None, 2:] + half
    inside = ((centres > low) & (centres < high)).all(-1)  # (B, M, P)
    is_class = classes.unsqueeze(-1) == torch.arange(num_classes, device=classes.device)  # (B, M, K)
    return (is_class.unsqueeze(-1) & inside.unsqueeze(2)).any(1)


def draw_patches(cells: torch.Tensor, known: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches to look at closely: a finding is drawn, all that stand in the batch alike; a film that shows it; a patch
    that its boxes cover; and the same place of a film that is known not to show it. Small and rare findings come as
    often as large and common ones, and the place alone says nothing about any.

    Shapes: cells (B, K, P) bool, known (B, K) whether it is known of every patch if it shows the finding -> film and
    patch, (2 * number,) each, the covered ones first; empty where no finding has both kinds of films.
    """
    shows = cells.any(-1) & known
    lacks = known & ~shows
    findings = (shows.any(0) & lacks.any(0)).nonzero().squeeze(-1)
    if not len(findings):
        return findings, findings
    finding = findings[torch.randint(len(findings), (number,), device=cells.device)]
    film = torch.multinomial(shows.T[finding].float(), 1).squeeze(-1)
    patch = torch.multinomial(cells[film, finding].float(), 1).squeeze(-1)
    other = torch.multinomial(lacks.T[finding].float(), 1).squeeze(-1)
    return torch.cat((film, other)), patch.repeat(2)


def cut_crops(
    pixel_values: torch.Tensor, film: torch.Tensor, patch: torch.Tensor, grid_size: int, margin: int
) -> torch.Tensor:
    """Squares of 2 * margin + 1 patches around the given ones; beyond the edge of a film its last pixels go on.

    Shapes: pixel_values (B, C, S, S), film and patch (N,) -> (N, C, s, s).
    """
    step = pixel_values.shape[-1] // grid_size
    padded = F.pad(pixel_values, [margin * step] * 4, mode="replicate")
    side = torch.arange((2 * margin + 1) * step, device=film.device)
    top, left = patch // grid_size * step, patch % grid_size * step
    rows, columns = (top[:, None] + side)[:, :, None], (left[:, None] + side)[:, None, :]
    return padded[film[:, None, None], :, rows, columns].permute(0, 3, 1, 2)  # (N, s, s, C) before


def finding_crops_loss(
    scores: torch.Tensor, targets: torch.Tensor, known: torch.Tensor, share: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Binary cross-entropy of the findings of single patches, the mean over those known. Ours.

    Shapes: scores (N, K), targets (N, K) in {0, 1}, known (N, K) -> (). `share` is the batch's part in its step.
    """
    values = F.binary_cross_entropy_with_logits(widened(scores), targets.to(widened(scores).dtype), reduction="none")
    return share * masked_mean(values, known)


def box_loss(
    boxes: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the marked boxes of 5 |b - t|_1 / 4 + 2 (1 - GIoU), as in DETR (Carion et al. 2020, arXiv 2005.12872).

    GIoU = IoU - (hull - union) / hull (Rezatofighi et al. 2019, arXiv 1902.09630).
    Shapes: boxes (..., 4) and targets (..., 4) as x0, y0, x1, y1; mask (...) -> (). `count` is of boxes.
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
    return masked_mean(5 * distance + 2 * (1 - giou), mask, count)


def area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def order_loss(scores: torch.Tensor, ranks: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Pairwise logistic loss of the order of fixations (RankNet, Burges et al. 2005): the mean over pairs, i before
    j, of log(1 + exp(s_i - s_j)).

    Shapes: scores (B, N), higher for later; ranks (B, N), -1 where the place in time is not known -> (). `count` is of
    pairs.
    """
    scores = widened(scores)
    values = F.softplus(scores.unsqueeze(-1) - scores.unsqueeze(-2))
    return masked_mean(values, ordered_pairs(ranks), count)


def ordered_pairs(ranks: torch.Tensor) -> torch.Tensor:
    """Whether i is known to come before j. Shapes: ranks (B, N), -1 where not known -> (B, N, N) bool."""
    known = ranks >= 0
    return (ranks.unsqueeze(-1) < ranks.unsqueeze(-2)) & known.unsqueeze(-1) & known.unsqueeze(-2)


def gaze_attention_loss(
    attention: torch.Tensor,
    heat: torch.Tensor,
    mask: torch.Tensor,
    trust: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far attention lies from where dwell time fell, in four terms, after Eyes on the Image (arXiv 2508.13068):

        t [mean_j (A'_j - H'_j)^2 + 0.5 sum_j H_j log(H_j / A_j) + 0.5 (1 - corr(A, H)) + |c(A) - c(H)|^2 / 2]

    with A' and H' divided by their maxima, c the centre of mass, and t the trust in the recording. Weights are ours.
    Shapes: attention (B, P) and heat (B, P), each summing to one; mask (B,) records with recorded gaze; trust (B,) in
    [0, 1], 1 where left out -> (). `count` is of records with gaze.
    """
    attention, heat = widened(attention), heat.to(widened(attention).dtype)
    scaled = attention / attention.amax(-1, keepdim=True).clamp_min(1e-12)
    squared = (scaled - heat / heat.amax(-1, keepdim=True).clamp_min(1e-12)).square().mean(-1)
    a, h = attention - attention.mean(-1, keepdim=True), heat - heat.mean(-1, keepdim=True)
    norm = (a.square().sum(-1) * h.square().sum(-1)).clamp_min(1e-24).sqrt()
    correlation = (a * h).sum(-1) / norm
    centres = cell_centres(round(attention.shape[-1] ** 0.5), attention.device).to(attention.dtype)
    distance = (attention @ centres - heat @ centres).square().sum(-1) / 2
    values = squared + 0.5 * divergence(heat, attention) + 0.5 * (1 - correlation) + distance
    return masked_mean(values if trust is None else trust * values, mask, count)


def contrast_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    scale: torch.Tensor,
    text_keys: torch.Tensor,
    mask: torch.Tensor,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Image-text contrast, InfoNCE in both directions (van den Oord et al. 2018, arXiv 1807.03748; CLIP, arXiv
    2103.00020), the mean over records with text of

        - 1/2 sum_d mean_{j: text_j = text_i} log softmax_j (s <image_i, text_j>)   d: films to texts, texts to films

    Equal texts are positives of each other (as labels are in UniCL, arXiv 2204.03610): a normal report is no negative
    of another normal film. Negatives are the records of one batch on all processes; accumulated batches share none.
    Shapes: image_embeds (B, E) and text_embeds (B, E) of unit norm; scale () above 0; text_keys (B,) equal where the
    texts are; mask (B,) records with a text -> (). `count` is of records with a text.
    """
    all_images, all_texts = gathered(image_embeds), gathered(text_embeds)
    all_keys, all_mask = gathered(text_keys), gathered(mask)
    is_pair = (text_keys.unsqueeze(1) == all_keys) & all_mask
    values = 0.0
    for rows, columns in ((image_embeds, all_texts), (text_embeds, all_images)):
        logits = widened(scale * rows @ columns.T)
        log_probs = logits.masked_fill(~all_mask, torch.finfo(logits.dtype).min).log_softmax(-1)
        pairs = torch.where(is_pair, log_probs, torch.zeros_like(log_probs)).sum(-1)
        values = values - 0.5 * pairs / is_pair.sum(-1).clamp_min(1)
    return masked_mean(values, mask, count)


def gathered(values: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, this one's gradient included. Shapes: (B, ...) -> (B * processes, ...)."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    if not values.is_floating_point():
        rows = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, values)
        return torch.cat(rows)
    return torch.cat(all_gather(values.contiguous()))


def widened(values: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; anything wider as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


__all__ = [
    "IGNORED",
    "box_loss",
    "class_loss",
    "contrast_loss",
    "covered_cells",
    "cut_crops",
    "detail_maps_loss",
    "draw_patches",
    "finding_crops_loss",
    "finding_maps_loss",
    "finding_targets",
    "findings_loss",
    "gaze_attention_loss",
    "learnt_apart",
    "masked_mean",
    "order_loss",
    "ordered_pairs",
    "report_loss",
    "scanpath_loss",
    "scanpath_map_loss",
    "token_losses",
]
