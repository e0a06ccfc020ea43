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
"""Perception heads on the fused film: 14 findings with a map and a box each, 17 anatomical regions, contrast, order;
on request how severe each finding is, and the view; on request from a look at the pixels as well.

Every class reads the patches through an attention map of its own, so that a probability comes with the place that it
rests on: the scores that the map is the softmax of can be taught patch by patch, where boxes are known, and the highest
of them counts towards the probability. A box is centred on the map's centre of mass, corrected by a learned shift, with
a learned size. What was found, how surely and where is written back onto the visual-gaze tokens, so that the language
model speaks of the same findings and boxes as the heads (Eyes on the Image hands them over in words: arXiv 2508.13068).
The image embedding and its counterpart for text serve the image-text contrast of the same paper. A score of every
fixation says how late in a reading it would come: sorted, the scores of shuffled ones give their order (the sequential
dependency of GazeX, arXiv 2604.14316, asked of the graph).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import auto_docstring

from .configuration_gaze2report import Gaze2ReportPerceptionConfig
from .modeling_detail import Gaze2ReportDetail, reset_detail
from .modeling_grid import Gaze2ReportGridCentres, restore_grid_buffers, without_autocast


@auto_docstring(
    custom_intro="""
    What the perception heads see; boxes are x0, y0, x1, y1 in [0, 1] of the square.
    """
)
@dataclass
class Gaze2ReportFindings(ModelOutput):
    r"""
    logits (`torch.Tensor` of shape `(B, 14)`): one logit per finding.
    maps (`torch.Tensor` of shape `(B, 14, P)`): attention of each finding over the patches, summing to one.
    scores (`torch.Tensor` of shape `(B, 14, P)`): logit of each finding in each patch; the maps are their softmax.
    boxes (`torch.Tensor` of shape `(B, 14, 4)`): where each finding would be.
    region_boxes (`torch.Tensor` of shape `(B, 17, 4)`): the anatomical regions.
    image_embeds (`torch.Tensor` of shape `(B, E)`): unit-norm embedding of the film for contrast with text.
    severity_logits (`torch.Tensor` of shape `(B, 14, num_severities)`, *optional*): how severe each finding would be.
    view_logits (`torch.Tensor` of shape `(B, num_views)`, *optional*): how the film was taken.
    detail_scores (`torch.Tensor` of shape `(B, 14, F, F)`, *optional*): logit of each finding in every fourth pixel, as
        the pixels alone show it.
    """

    logits: torch.FloatTensor | None = None
    maps: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    boxes: torch.FloatTensor | None = None
    region_boxes: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    severity_logits: torch.FloatTensor | None = None
    view_logits: torch.FloatTensor | None = None
    detail_scores: torch.FloatTensor | None = None


class Gaze2ReportClassAttention(nn.Module):
    """One attention map over the patches per class, and what it gathers.

    Shapes: states (B, P, D), and what is added to the scores, if anything (B, K, P) -> scores (B, K, P), maps
    (B, K, P), gathered (B, K, D).
    """

    def __init__(self, config: Gaze2ReportPerceptionConfig, num_classes: int):
        super().__init__()
        self.queries = nn.Embedding(num_classes, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, states: torch.Tensor, added: torch.Tensor | float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Queries start near zero, hence maps near uniform; without the usual division they sharpen soon enough.
        scores = self.queries.weight @ self.key(states).transpose(1, 2) + added
        maps = scores.softmax(-1)
        return scores, maps, self.norm(maps @ self.value(states))


class Gaze2ReportBoxHead(nn.Module):
    """A box x0, y0, x1, y1 per class from its map and what it gathered. Shapes: (B, K, P), (B, K, D) -> (B, K, 4)."""

    def __init__(self, config: Gaze2ReportPerceptionConfig):
        super().__init__()
        self.grid = Gaze2ReportGridCentres(config.grid_size)
        self.hidden = nn.Linear(config.hidden_size + 2, config.hidden_size)
        self.box = nn.Linear(config.hidden_size, 4)

    def forward(self, maps: torch.Tensor, gathered: torch.Tensor) -> torch.Tensor:
        centre = maps @ self.grid().to(maps.dtype)  # (B, K, 2)
        shift, size = self.box(F.gelu(self.hidden(torch.cat((gathered, centre), dim=-1)))).chunk(2, dim=-1)
        centre = centre + 0.5 * shift.tanh()
        half = 0.5 * size.sigmoid()
        return torch.cat((centre - half, centre + half), dim=-1).clamp(0, 1)


class Gaze2ReportSeverityHead(nn.Module):
    """How severe each finding would be, from what its attention map gathered. Shapes: (B, K, D) -> (B, K, S).

    It reads what the findings have learned and shapes nothing of it, so that a finished model can be taught to grade.
    """

    def __init__(self, config: Gaze2ReportPerceptionConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_findings, config.num_severities, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.num_findings, config.num_severities))

    def forward(self, gathered: torch.Tensor) -> torch.Tensor:
        return (self.weight @ gathered.detach().unsqueeze(-1)).squeeze(-1) + self.bias


class Gaze2ReportViewHead(nn.Module):
    """How the film was taken, from its global node and from the mean and the largest values of its patches: an AP film
    shows it at the clavicles, the scapulae and the heart at once. It shapes nothing of them either.

    Shapes: (B, P, D), (B, D) -> (B, V).
    """

    def __init__(self, config: Gaze2ReportPerceptionConfig):
        super().__init__()
        self.norm = nn.LayerNorm(3 * config.hidden_size, eps=config.layer_norm_eps)
        self.hidden = nn.Linear(3 * config.hidden_size, config.hidden_size)
        self.view = nn.Linear(config.hidden_size, config.num_views)

    def forward(self, patch_states: torch.Tensor, global_state: torch.Tensor) -> torch.Tensor:
        film = torch.cat((global_state, patch_states.mean(1), patch_states.amax(1)), dim=-1).detach()
        return self.view(F.gelu(self.hidden(self.norm(film))))


@auto_docstring
class Gaze2ReportPerceptionPreTrainedModel(PreTrainedModel):
    config: Gaze2ReportPerceptionConfig
    base_model_prefix = "model"
    main_input_name = "patch_states"
    # The attention of this part is its own, in fp32: what the towers are told to use is no reason to refuse it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        restore_grid_buffers(module)
        if isinstance(module, Gaze2ReportPerceptionModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init)
            init.normal_(module.finding_weight, std=self.config.initializer_range)
            init.zeros_(module.finding_bias)
            # In one patch a finding is rare: the scores begin at a chance of 5 %.
            init.constant_(module.score_bias, math.log(0.05 / 0.95))
            init.ones_(module.finding_from_scores)
            # The tokens begin as the fusion made them.
            init.zeros_(module.token_update.weight)
            init.zeros_(module.token_update.bias)
        if isinstance(module, Gaze2ReportDetail):
            reset_detail(module)
        if isinstance(module, Gaze2ReportSeverityHead):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)


@auto_docstring
class Gaze2ReportPerceptionModel(Gaze2ReportPerceptionPreTrainedModel):
    """Findings, regions and embeddings of fused films."""

    def __init__(self, config: Gaze2ReportPerceptionConfig):
        super().__init__(config)
        self.finding_attention = Gaze2ReportClassAttention(config, config.num_findings)
        self.finding_weight = nn.Parameter(torch.empty(config.num_findings, config.hidden_size))
        self.finding_bias = nn.Parameter(torch.empty(config.num_findings))
        self.finding_from_global = nn.Linear(config.hidden_size, config.num_findings)
        self.score_bias = nn.Parameter(torch.empty(config.num_findings))
        self.finding_from_scores = nn.Parameter(torch.empty(config.num_findings))
        self.finding_box = Gaze2ReportBoxHead(config)
        self.region_attention = Gaze2ReportClassAttention(config, config.num_regions)
        self.region_box = Gaze2ReportBoxHead(config)
        self.image_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.token_update = nn.Linear(5 * config.num_findings, config.hidden_size)
        self.order_hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.order_score = nn.Linear(config.hidden_size, 1)
        self.severity = self.view = self.detail = None
        # CODEPATH: the embedded checkpoint grades findings and tells views apart; models made without these do not.
        if config.num_severities:
            self.severity = Gaze2ReportSeverityHead(config)
        # CODEPATH: as above.
        if config.num_views:
            self.view = Gaze2ReportViewHead(config)
        # CODEPATH: the embedded checkpoint looks at the pixels as well; models made without this do not.
        if config.detail_hidden_size:
            self.detail = Gaze2ReportDetail(config)
        self.post_init()

    @without_autocast
    @auto_docstring(custom_intro="Read findings, regions and the image embedding off the fused film.")
    def forward(
        self, patch_states: torch.Tensor, global_state: torch.Tensor, pixel_values: torch.Tensor | None = None
    ) -> Gaze2ReportFindings:
        r"""
        patch_states (`torch.Tensor` of shape `(B, P, D)`): patch nodes after the graph.
        global_state (`torch.Tensor` of shape `(B, D)`): global node after the graph.
        pixel_values (`torch.Tensor` of shape `(B, C, S, S)`, *optional*): the films, which
            `config.detail_hidden_size` asks for.
        """
        if self.detail is not None and pixel_values is None:
            raise ValueError(
                f"perception_config.detail_hidden_size = {self.config.detail_hidden_size}: the perception heads look "
                "at the films as well, pass pixel_values."
            )
        detail_scores = None if self.detail is None else self.detail(pixel_values)
        added = 0.0 if self.detail is None else self.detail.of_patches(detail_scores)
        scores, maps, gathered = self.finding_attention(patch_states, added)
        scores = scores + self.score_bias.unsqueeze(-1)
        logits = (gathered * self.finding_weight).sum(-1) + self.finding_bias + self.finding_from_global(global_state)
        logits = logits + self.finding_from_scores * scores.amax(-1)
        if self.detail is not None:
            logits = logits + self.detail.of_films(detail_scores)
        _, region_maps, region_gathered = self.region_attention(patch_states)
        return Gaze2ReportFindings(
            logits=logits,
            maps=maps,
            scores=scores,
            boxes=self.finding_box(maps, gathered),
            region_boxes=self.region_box(region_maps, region_gathered),
            image_embeds=F.normalize(self.image_projection(global_state), dim=-1),
            severity_logits=None if self.severity is None else self.severity(gathered),
            view_logits=None if self.view is None else self.view(patch_states, global_state),
            detail_scores=detail_scores,
        )

    @without_autocast
    def mark_tokens(self, tokens: torch.Tensor, findings: Gaze2ReportFindings, region_grid_size: int) -> torch.Tensor:
        """The visual-gaze tokens with what was found: probability and box of every finding on the global token, the
        same times the highest patch probability on each region token. Slots of fixations stay.

        Shapes: tokens (B, T, D) with the global one first and the regions row by row behind it -> (B, T, D).
        """
        grid = self.config.grid_size
        by_patch = findings.scores.float().sigmoid().unflatten(-1, (grid, grid))
        by_region = F.adaptive_max_pool2d(by_patch, region_grid_size).flatten(2).transpose(1, 2)  # (B, R, K)
        probability = findings.logits.float().sigmoid().unsqueeze(1)  # (B, 1, K)
        weight = torch.cat((probability, probability * by_region), dim=1).unsqueeze(-1)  # (B, 1 + R, K, 1)
        found = torch.cat((weight, weight * findings.boxes.float().unsqueeze(1)), dim=-1).flatten(2)
        update = self.token_update(found.to(self.token_update.weight.dtype)).to(tokens.dtype)
        return tokens + F.pad(update, (0, 0, 0, tokens.shape[1] - update.shape[1]))

    @without_autocast
    def values(self, findings: Gaze2ReportFindings) -> torch.Tensor:
        """What was found, in numbers between -1 and 1: the logits, squeezed; the boxes of findings, as far from the
        middle of the square as they are probable; the boxes of regions. Shapes: -> (B, V), `config.num_values`.
        """
        logits = findings.logits.float()
        boxes = logits.sigmoid().unsqueeze(-1) * (2 * findings.boxes.float() - 1)
        regions = 2 * findings.region_boxes.float() - 1
        return torch.cat(((logits / 4).tanh(), boxes.flatten(1), regions.flatten(1)), dim=-1)

    @without_autocast
    def score_order(self, fixation_states: torch.Tensor) -> torch.Tensor:
        """How late in a reading each fixation would come; scores compare within a film. Shapes: (B, N, D) -> (B, N)."""
        return self.order_score(F.gelu(self.order_hidden(fixation_states))).squeeze(-1)

    def embed_text(self, text_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Unit-norm embedding of text from the language model's states. Shapes: (B, L, d), (B, L) -> (B, E)."""
        weight = attention_mask.to(text_states.dtype).unsqueeze(-1)
        pooled = (text_states * weight).sum(1) / weight.sum(1).clamp_min(1)
        return F.normalize(self.text_projection(pooled.to(self.text_projection.weight.dtype)), dim=-1)

    def similarity(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Logits of every film against every text, (B_image, B_text). The temperature is kept above 0.01."""
        return self.logit_scale.clamp_max(math.log(100)).exp() * image_embeds @ text_embeds.T


__all__ = ["Gaze2ReportPerceptionPreTrainedModel", "Gaze2ReportPerceptionModel", "Gaze2ReportFindings"]
