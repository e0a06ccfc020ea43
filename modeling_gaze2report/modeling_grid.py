# Copyright 2026 The Gaze2Report authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The square film as a grid of cells: centres, position embedding, sampling at a point, heat map of fixations.

Points are x, y in [0, 1] of the square, the origin at the top left; cell j of a G x G grid is row j // G, column j % G.
"""

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast


def without_autocast(method: Callable) -> Callable:
    """Runs a method of a model outside autocast, in the precision of its own weights.

    Under bfloat16 autocast a centre of mass at x = 0.5 would move by a pixel of 256, and likelihoods by more.
    """

    @wraps(method)
    def run(self, *args, **kwargs):
        with maybe_autocast(device_type=self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


def cell_centres(grid_size: int, device: torch.device | None = None) -> torch.Tensor:
    """Centres of the cells, row by row. Returns (G * G, 2) x, y."""
    ticks = (torch.arange(grid_size, device=device, dtype=torch.float32) + 0.5) / grid_size
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack((columns, rows), dim=-1).flatten(0, 1)


def cell_of(points: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Index of the cell that holds each point; the right and bottom edges belong to the last cell.

    Shapes: points (..., 2) -> (...) long.
    """
    column_row = (points * grid_size).floor().clamp(0, grid_size - 1).long()
    return column_row[..., 1] * grid_size + column_row[..., 0]


def sample_patches(patches: torch.Tensor, points: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Bilinear value of the patch features at each point, constant beyond the outer cell centres.

    Shapes: patches (B, P, C), points (B, N, 2) -> (B, N, C).
    """
    return sample_map(patch_map(patches, grid_size), points)


def patch_map(patches: torch.Tensor, grid_size: int) -> torch.Tensor:
    """The patch features as a map. Shapes: (B, P, C) -> (B, C, G, G)."""
    return patches.transpose(1, 2).unflatten(-1, (grid_size, grid_size))


def sample_map(feature_map: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """`sample_patches` from a map. Shapes: feature_map (B, C, G, G), points (B, N, 2) -> (B, N, C)."""
    where = (points * 2 - 1).unsqueeze(2)  # (B, N, 1, 2)
    sampled = F.grid_sample(feature_map, where, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.squeeze(-1).transpose(1, 2)


def fixation_kernel(fixations: torch.Tensor, centres: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian of every fixation at every cell centre, exp(-|c_j - p_i|^2 / 2 sigma^2).

    Shapes: fixations (..., N, >= 2), centres (P, 2) -> (..., N, P).
    """
    # Axis by axis: a sum over pairs of neighbouring numbers is slow.
    squared = (fixations[..., :1] - centres[:, 0]).square() + (fixations[..., 1:2] - centres[:, 1]).square()
    return torch.exp(squared / (-2 * sigma**2))


def heat_map(fixations: torch.Tensor, mask: torch.Tensor, centres: torch.Tensor, sigma: float) -> torch.Tensor:
    """Where dwell time fell, h_j ~ sum_i d_i exp(-|c_j - p_i|^2 / 2 sigma^2), summing to one; uniform with no fixation.

    Shapes: fixations (B, N, 3) x, y, duration in seconds; mask (B, N) bool; centres (P, 2) -> (B, P).
    """
    dwell = fixations[..., 2] * mask
    heat = (fixation_kernel(fixations, centres, sigma) * dwell.unsqueeze(-1)).sum(-2)
    total = heat.sum(-1, keepdim=True)
    uniform = torch.full_like(heat, 1 / centres.shape[0])
    return torch.where(total > 0, heat / total.clamp_min(torch.finfo(heat.dtype).tiny), uniform)


def expected_heat_map(
    location_log_probs: torch.Tensor, fixations: torch.Tensor, mask: torch.Tensor, centres: torch.Tensor, sigma: float
) -> torch.Tensor:
    """Where dwell time is expected to fall, h_j ~ sum_i d_i sum_k p_i(k) exp(-|c_j - c_k|^2 / 2 sigma^2), summing to 1.

    Unlike `heat_map` it has a gradient: every cell counts by its probability. Uniform with no fixation.
    Shapes: location_log_probs (B, N, P) of the cells before each fixation; fixations (B, N, 3), of which only the
    durations matter; mask (B, N) bool; centres (P, 2) -> (B, P).
    """
    dwell = torch.where(mask, fixations[..., 2], torch.zeros_like(fixations[..., 2])).to(location_log_probs.dtype)
    looked_at = (location_log_probs.exp() * dwell.unsqueeze(-1)).sum(-2)  # (B, P)
    heat = looked_at @ fixation_kernel(centres, centres, sigma)
    total = heat.sum(-1, keepdim=True)
    uniform = torch.full_like(heat, 1 / centres.shape[0])
    return torch.where(total > 0, heat / total.clamp_min(torch.finfo(heat.dtype).tiny), uniform)


class Gaze2ReportPositionEmbedding(nn.Module):
    """Sines and cosines of x and y at octave frequencies: a quarter of the width each for sin x, cos x, sin y, cos y.

    Shapes: points (..., 2) -> (..., hidden_size).
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.num_frequencies = hidden_size // 4
        self.frequencies = nn.Buffer(self.compute_frequencies(), persistent=False)

    def compute_frequencies(self) -> torch.Tensor:
        """Angular frequencies from half a turn to 16 turns over the square. Returns (hidden_size / 4,)."""
        steps = torch.arange(self.num_frequencies, dtype=torch.float32) / max(self.num_frequencies - 1, 1)
        return torch.pi * 2 ** (5 * steps)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        angles = points.unsqueeze(-1) * self.frequencies  # (..., 2, F)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class Gaze2ReportGridCentres(nn.Module):
    """Holds the cell centres as a buffer, so that they follow the model to its device. Returns (P, 2)."""

    def __init__(self, grid_size: int):
        super().__init__()
        self.grid_size = grid_size
        self.centres = nn.Buffer(cell_centres(grid_size), persistent=False)

    def forward(self) -> torch.Tensor:
        return self.centres


def restore_grid_buffers(module: nn.Module) -> None:
    """Rebuild the non-persistent buffers above: `from_pretrained` leaves them as uninitialised memory."""
    if isinstance(module, Gaze2ReportPositionEmbedding):
        init.copy_(module.frequencies, module.compute_frequencies())
    elif isinstance(module, Gaze2ReportGridCentres):
        init.copy_(module.centres, cell_centres(module.grid_size))


__all__ = [
    "Gaze2ReportPositionEmbedding",
    "Gaze2ReportGridCentres",
    "cell_centres",
    "cell_of",
    "expected_heat_map",
    "fixation_kernel",
    "heat_map",
    "patch_map",
    "restore_grid_buffers",
    "sample_map",
    "sample_patches",
    "without_autocast",
]
