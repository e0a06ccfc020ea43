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
"""A look at the pixels themselves for findings that are thin or small: plates of atelectasis, granulomas, broken ribs.

The vision tower and the graph see a film patch by patch, and a line of one or two pixels drowns in a patch of sixteen.
A short convolutional network with dilated blocks (Yu and Koltun 2016, arXiv 1511.07122) scores every finding in every
fourth pixel. What it makes of a patch is added to the patch scores of the perception heads, and of a film to their
logits, each times a factor that every finding learns and that begins at zero: added to a finished model, it changes
nothing until it is taught.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_gaze2report import Gaze2ReportPerceptionConfig

# Cells of a film whose mean score stands for the film: a plate or a nodule covers at least so many.
NUM_CELLS = 6


class Gaze2ReportDetailLayer(nn.Module):
    """Convolution, batch norm, ReLU. Shapes: (B, C, H, W) -> (B, D, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.convolution(states)))


class Gaze2ReportDetailBlock(nn.Module):
    """Two convolutions around which the states pass (He et al. 2016, arXiv 1512.03385). Shapes: (B, D, H, W), kept."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.convolution_1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm_1 = nn.BatchNorm2d(width)
        self.convolution_2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.norm_1(self.convolution_1(states)))
        return F.relu(states + self.norm_2(self.convolution_2(hidden)))


class Gaze2ReportDetail(nn.Module):
    """Scores of every finding in every fourth pixel of a film, and what they add to patch scores and logits.

    Every pixel is looked at before any is left out, so that a line of one pixel survives; dilated blocks then take in a
    third of the film around each cell.

    Shapes: pixel_values (B, C, S, S), C channels that are averaged -> (B, K, S / 4, S / 4).
    """

    def __init__(self, config: Gaze2ReportPerceptionConfig):
        super().__init__()
        width = config.detail_hidden_size
        self.grid_size = config.grid_size
        self.pixels = Gaze2ReportDetailLayer(1, width // 4)
        self.halving = Gaze2ReportDetailLayer(width // 4, width // 2, stride=2)
        self.lines = Gaze2ReportDetailLayer(width // 2, 2 * width // 3)
        self.quartering = Gaze2ReportDetailLayer(2 * width // 3, width, stride=2)
        self.blocks = nn.ModuleList([Gaze2ReportDetailBlock(width, dilation) for dilation in (1, 2, 4)])
        self.head = nn.Conv2d(width, config.num_findings, 1)
        self.patch_scale = nn.Parameter(torch.empty(config.num_findings))
        self.patch_bias = nn.Parameter(torch.empty(config.num_findings))
        self.film_scale = nn.Parameter(torch.empty(config.num_findings))
        self.film_bias = nn.Parameter(torch.empty(config.num_findings))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = self.pixels(pixel_values.mean(1, keepdim=True).to(self.head.weight.dtype))
        states = self.quartering(self.lines(self.halving(states)))
        for block in self.blocks:
            states = block(states)
        return self.head(states)

    def of_patches(self, scores: torch.Tensor) -> torch.Tensor:
        """What is added to the scores of the patches: their highest cell counts. (B, K, F, F) -> (B, K, P)."""
        highest = F.adaptive_max_pool2d(scores, self.grid_size).flatten(2)
        return self.patch_scale.unsqueeze(-1) * highest + self.patch_bias.unsqueeze(-1)

    def of_films(self, scores: torch.Tensor) -> torch.Tensor:
        """What is added to the logits of the films: their highest cells count. (B, K, F, F) -> (B, K)."""
        scores = scores.flatten(2)
        highest = scores.topk(min(NUM_CELLS, scores.shape[-1]), dim=-1).values.mean(-1)
        return self.film_scale * highest + self.film_bias


def reset_detail(module: Gaze2ReportDetail) -> None:
    """Initial values of what is its own: scores at a chance of 2 %, and nothing added to anything."""
    for convolution in (one for one in module.modules() if isinstance(one, nn.Conv2d)):
        init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    init.constant_(module.head.bias, math.log(0.02 / 0.98))
    for parameter in (module.patch_scale, module.patch_bias, module.film_scale, module.film_bias):
        init.zeros_(parameter)


__all__ = ["Gaze2ReportDetail", "reset_detail"]
