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
"""Scanpath model: patches -> the ordered fixations of a reading, with an exact likelihood.

A causal transformer over fixations reads the patches by cross-attention. After t fixations its state says whether the
reading ends, where the next fixation falls and how long it lasts:

    p(scanpath) = prod_t (1 - stop_t) p(cell_t) p(offset_t | cell_t) p(duration_t | place_t)   x   stop_n

Cells are a softmax over the patch grid minus a learned, soft inhibition of return; offsets are logistic densities cut
to the cell; durations are a log-normal mixture. So the density over the film integrates to one and every fixation has
a log-likelihood in nats. The parts follow Chen et al. (CVPR 2021: softmax over cells, log-normal duration, stop) and
TPP-Gaze (WACV 2025: mixture over inter-event times); offset density, inhibition and conditioning are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import auto_docstring

from .configuration_gaze2report import Gaze2ReportScanpathConfig
from .modeling_grid import (
    Gaze2ReportGridCentres,
    Gaze2ReportPositionEmbedding,
    cell_of,
    fixation_kernel,
    restore_grid_buffers,
    sample_patches,
    without_autocast,
)

# Where the duration mixture starts: a median of 0.28 s. Fixations on chest films last about that long.
TYPICAL_LOG_DURATION = -1.27
# Steps between two looks at whether every reading of the batch has ended, where a look makes an accelerator wait.
STEPS_BETWEEN_STOP_CHECKS = 8
# Random numbers that a sampled step takes: stop, cell, two of the offset, duration's component and quantile.
NUMBERS_PER_STEP = 6


@auto_docstring(
    custom_intro="""
    How likely given fixations are.
    """
)
@dataclass
class Gaze2ReportScanpathScores(ModelOutput):
    r"""
    log_likelihood (`torch.Tensor` of shape `(B, N)`): nats per fixation, the sum of the three parts below; 0 where
        masked.
    location_log_likelihood (`torch.Tensor` of shape `(B, N)`): log density of x, y per unit square.
    duration_log_likelihood (`torch.Tensor` of shape `(B, N)`): log density of the duration per second.
    stop_log_likelihood (`torch.Tensor` of shape `(B, N)`): log probability that the reading went on, or ended,
        after the fixation.
    location_log_probs (`torch.Tensor` of shape `(B, N, P)`): log probability of every cell before the fixation.
    """

    log_likelihood: torch.FloatTensor | None = None
    location_log_likelihood: torch.FloatTensor | None = None
    duration_log_likelihood: torch.FloatTensor | None = None
    stop_log_likelihood: torch.FloatTensor | None = None
    location_log_probs: torch.FloatTensor | None = None


@auto_docstring(
    custom_intro="""
    Predicted readings.
    """
)
@dataclass
class Gaze2ReportScanpath(ModelOutput):
    r"""
    fixations (`torch.Tensor` of shape `(B, S, N, 3)`): x, y in [0, 1] of the square and duration in seconds, in the
        order of reading; S samples per image. Zero where masked.
    mask (`torch.Tensor` of shape `(B, S, N)`): true where a fixation stands.
    log_probability (`torch.Tensor` of shape `(B, S)`): log-likelihood of each reading under the model, at
        temperature 1.
    """

    fixations: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    log_probability: torch.FloatTensor | None = None


class ScanpathMemory(NamedTuple):
    """What decoding knows of the films; it stays the same from step to step."""

    features: torch.Tensor  # (B, P, D) projected patches
    memory: torch.Tensor  # (B, P, D) encoded patches
    memory_keys_values: list[tuple[torch.Tensor, torch.Tensor]]  # per layer, each (B, H, P, D / H)
    location_keys: torch.Tensor  # (B, P, D)
    film_cells: torch.Tensor | None  # (B, P) bool
    beside_film: torch.Tensor | None  # (B, 1, P) bool, the rest
    kernel: torch.Tensor  # (P, P) neighbourhood of each cell
    reader: torch.Tensor  # (B * S, 1, D), or () where readers are not told apart


class ScanpathState(NamedTuple):
    """What decoding hands on from step to step."""

    token: torch.Tensor  # (B * S, 1, D) the last fixation, or the start
    past: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values per layer, each (B * S, H, N, D / H)
    visited: torch.Tensor  # (B, S, P) fixations near each cell
    owed: torch.Tensor  # (B, S, P) fixations asked for near each cell and not given
    going: torch.Tensor  # (B, S) bool, readings that have not ended
    log_survival: torch.Tensor  # (B, S) log probability of not having ended


class ScanpathStep(NamedTuple):
    """One fixation of every reading, and the densities it was taken from."""

    fixation: torch.Tensor  # (B, S, 3)
    offset: torch.Tensor  # (B, S, 2) within the cell
    offset_parameters: torch.Tensor  # (2, B, S, 2) centre and scale
    mixture: torch.Tensor  # (3, B, S, K) log weights, means, spreads of log duration
    cell_log_prob: torch.Tensor  # (B, S)
    stop_log_prob: torch.Tensor  # (B, S) of the reading going on, or ending, before this fixation
    going: torch.Tensor  # (B, S) bool, whether the fixation belongs to the reading


def draw(log_weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The class below which `share` of the weight lies. Shapes: weights (..., K), share (...) in [0, 1) -> (...)."""
    cumulated = log_weights.softmax(-1).cumsum(-1)
    # Short of the whole by more than rounding, so that a class of no weight is never the answer.
    target = share.unsqueeze(-1) * cumulated[..., -1:] * (1 - 1e-6)
    return (cumulated <= target).sum(-1)


def without_dropout(method: Callable) -> Callable:
    """Runs a method in evaluation mode: gaze that is predicted while training is the gaze of inference."""

    @wraps(method)
    def run(self, *args, **kwargs):
        if not self.training:
            return method(self, *args, **kwargs)
        self.eval()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.train()

    return run


class Gaze2ReportScanpathAttention(nn.Module):
    """Multi-head attention whose keys and values can be made ahead and shared by several samples of one image."""

    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, D / H)

    def keys_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.split_heads(self.k_proj(states)), self.split_heads(self.v_proj(states))

    def forward(
        self,
        states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        queries = self.q_proj(states)  # (B * S, L, D)
        shape = queries.shape
        # Samples of one image line up as further queries, so that its keys and values stand in memory once.
        queries = queries.view(keys.shape[0], -1, self.num_heads, keys.shape[-1]).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=is_causal)
        return self.o_proj(attended.transpose(1, 2).reshape(shape))


class Gaze2ReportScanpathMLP(nn.Module):
    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(states)))


class Gaze2ReportScanpathEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Gaze2ReportScanpathAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Gaze2ReportScanpathMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(states)
        states = states + self.dropout(self.attention(normed, *self.attention.keys_values(normed)))
        return states + self.dropout(self.mlp(self.mlp_norm(states)))


class Gaze2ReportScanpathDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = Gaze2ReportScanpathAttention(config)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = Gaze2ReportScanpathAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Gaze2ReportScanpathMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        states: torch.Tensor,
        memory_keys: torch.Tensor,
        memory_values: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor] | None = None,
        step: torch.Tensor | None = None,
        until_now: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Whole sequence (`past` is None: causal attention) or its position `step` alone, given the earlier ones.

        Shapes: states (B * S, L, D); memory keys and values (B, H, P, D / H); past, a pair of (B * S, H, N, D / H) that
        this call writes its own position into; step (1,) long; until_now (1, 1, 1, N), true up to it.
        """
        normed = self.self_attention_norm(states)
        keys, values = self.self_attention.keys_values(normed)
        if past is None:
            attended = self.self_attention(normed, keys, values, is_causal=True)
        else:
            keys, values = (whole.index_copy_(2, step, one) for whole, one in zip(past, (keys, values), strict=True))
            attended = self.self_attention(normed, keys, values, mask=until_now)
        states = states + self.dropout(attended)
        normed = self.cross_attention_norm(states)
        states = states + self.dropout(self.cross_attention(normed, memory_keys, memory_values))
        return states + self.dropout(self.mlp(self.mlp_norm(states)))


class Gaze2ReportOffsetHead(nn.Module):
    """Where inside its cell a fixation falls: per axis, a logistic density cut to the cell and normalised there."""

    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__()
        self.from_state = nn.Linear(config.hidden_size, 4)
        self.from_cell = nn.Linear(config.hidden_size, 4)

    def parameters_of(self, state: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre in (0, 1) and scale in cells, each (..., 2)."""
        centre, scale = (self.from_state(state) + self.from_cell(cell)).chunk(2, dim=-1)
        return centre.sigmoid(), F.softplus(scale).clamp(0.05, 5.0)

    def log_density(self, offset: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Log density of `offset` (..., 2) in [0, 1] of the cell, per unit cell. Returns (...)."""
        z = (offset - centre) / scale
        inside = torch.sigmoid((1 - centre) / scale) - torch.sigmoid(-centre / scale)
        return (F.logsigmoid(z) + F.logsigmoid(-z) - scale.log() - inside.log()).sum(-1)

    def quantile(self, share: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Offset below which `share` (..., 2) of the density lies."""
        low = torch.sigmoid(-centre / scale)
        high = torch.sigmoid((1 - centre) / scale)
        return (centre + scale * torch.logit(low + share * (high - low), eps=1e-6)).clamp(0, 1)


class Gaze2ReportDurationHead(nn.Module):
    """How long a fixation lasts: a mixture of log-normal densities, given the state and the place looked at."""

    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__()
        self.norm = nn.LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.linear = nn.Linear(2 * config.hidden_size, 3 * config.num_duration_components)

    def parameters_of(self, state: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Log weights, means and standard deviations of log seconds, each (..., K)."""
        weight, mean, spread = self.linear(self.norm(torch.cat((state, place), dim=-1))).chunk(3, dim=-1)
        # Medians stay within 0.04 and 2.1 s, spreads within a factor of 1.07 and 3.9: far outside what eyes do.
        return weight.log_softmax(-1), TYPICAL_LOG_DURATION + 2 * mean.tanh(), 0.5 * spread.clamp(-2, 1).exp()

    def log_density(self, duration: torch.Tensor, weight, mean, spread) -> torch.Tensor:
        """Log density of `duration` (...) seconds, per second. Returns (...)."""
        log_duration = duration.log().unsqueeze(-1)
        normal = -0.5 * ((log_duration - mean) / spread).square() - spread.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(weight + normal, dim=-1) - log_duration.squeeze(-1)


@auto_docstring
class Gaze2ReportScanpathPreTrainedModel(PreTrainedModel):
    config: Gaze2ReportScanpathConfig
    base_model_prefix = "model"
    main_input_name = "patches"
    supports_gradient_checkpointing = True
    # The attention of this part is its own, in fp32: what the towers are told to use is no reason to refuse it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Gaze2ReportScanpathEncoderLayer", "Gaze2ReportScanpathDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        restore_grid_buffers(module)
        if isinstance(module, Gaze2ReportScanpathModel):
            init.normal_(module.start, std=self.config.initializer_range)
            init.constant_(module.inhibition, -4.0)  # softplus(-4) = 0.02: radiologists do revisit


@auto_docstring
class Gaze2ReportScanpathModel(Gaze2ReportScanpathPreTrainedModel):
    """Predicts and scores readings of a film from its patch features.

    Example:

    ```python
    >>> scanpath = model.predict(patches, num_samples=5, do_sample=True)  # patches (B, P, C)
    >>> scanpath.fixations.shape  # (B, 5, N, 3)
    ```
    """

    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__(config)
        self.patch_projection = nn.Linear(config.vision_hidden_size, config.hidden_size)
        self.position = Gaze2ReportPositionEmbedding(config.hidden_size)
        self.grid = Gaze2ReportGridCentres(config.grid_size)
        self.encoder_layers = nn.ModuleList(
            [Gaze2ReportScanpathEncoderLayer(config) for _ in range(config.num_encoder_layers)]
        )
        self.memory_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        self.start = nn.Parameter(torch.empty(config.hidden_size))
        self.duration_projection = nn.Linear(1, config.hidden_size)
        self.order_embedding = nn.Embedding(config.max_fixations, config.hidden_size)
        # CODEPATH: models trained on several known readers tell them apart; the embedded checkpoint does not.
        self.reader_embedding = nn.Embedding(config.num_readers + 1, config.hidden_size) if config.num_readers else None
        self.layers = nn.ModuleList([Gaze2ReportScanpathDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        self.location_query = Gaze2ReportScanpathMLP(config)
        self.location_key = nn.Linear(config.hidden_size, config.hidden_size)
        self.inhibition = nn.Parameter(torch.empty(()))
        self.offset = Gaze2ReportOffsetHead(config)
        self.duration = Gaze2ReportDurationHead(config)
        self.stop = nn.Linear(config.hidden_size + 1, 1)
        self.post_init()

    def encode(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected patches and the memory that the decoder attends to, each (B, P, D)."""
        features = self.patch_projection(patches.to(self.patch_projection.weight.dtype))
        states = features + self.position(self.grid()).to(features.dtype)
        for layer in self.encoder_layers:
            states = layer(states)
        return features, self.memory_norm(states)

    def embed_fixations(self, features: torch.Tensor, fixations: torch.Tensor) -> torch.Tensor:
        """What was seen, where and for how long, without the order. Shapes: (B, P, D), (B, N, 3) -> (B, N, D)."""
        points = fixations[..., :2].to(features.dtype)
        seen = sample_patches(features, points, self.config.grid_size)
        log_duration = fixations[..., 2:].clamp_min(1e-2).log().to(features.dtype)
        return seen + self.position(points).to(features.dtype) + self.duration_projection(log_duration)

    def decoder_input(self, fixation_embeds: torch.Tensor, reader_ids: torch.Tensor | None) -> torch.Tensor:
        """The start token, then each fixation with its place in the order. Shapes: (B, N, D) -> (B, N + 1, D)."""
        batch_size, num_fixations = fixation_embeds.shape[:2]
        start = self.start.expand(batch_size, 1, -1)
        order = self.order_embedding.weight[:num_fixations]
        return torch.cat((start, fixation_embeds + order), dim=1) + self.reader_states(reader_ids, fixation_embeds)

    def reader_states(self, reader_ids: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Embedding of each image's reader, (B, 1, D); index 0 is the unknown reader."""
        if self.reader_embedding is None:
            return like.new_zeros(())
        if reader_ids is None:
            reader_ids = torch.zeros(like.shape[0], dtype=torch.long, device=like.device)
        return self.reader_embedding(reader_ids).unsqueeze(1)

    def memory_keys_values(self, memory: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [layer.cross_attention.keys_values(memory) for layer in self.layers]

    def location_log_probs(
        self, states: torch.Tensor, keys: torch.Tensor, visited: torch.Tensor, film_cells: torch.Tensor | None
    ) -> torch.Tensor:
        """Log probability of every cell. Shapes: states (B, L, D), keys (B, P, D), visited (B, L, P) -> (B, L, P)."""
        logits = self.location_query(states) @ keys.transpose(1, 2) / math.sqrt(self.config.hidden_size)
        logits = logits.float() - F.softplus(self.inhibition).float() * visited
        if film_cells is not None:
            logits = logits.masked_fill(~film_cells.unsqueeze(1), torch.finfo(logits.dtype).min)
        return logits.log_softmax(-1)

    def stop_logits(self, states: torch.Tensor, num_seen: torch.Tensor) -> torch.Tensor:
        """Logit of the reading ending here. Shapes: states (..., L, D), num_seen (L,) -> (..., L)."""
        progress = (num_seen / self.config.max_fixations).to(states.dtype)
        progress = progress.unsqueeze(-1).expand(*states.shape[:-1], 1)
        return self.stop(torch.cat((states, progress), dim=-1)).squeeze(-1).float()

    def film_cells(self, film_boxes: torch.Tensor | None) -> torch.Tensor | None:
        """Cells that the film covers at least in part. Shapes: film_boxes (B, 4) -> (B, P) bool."""
        if film_boxes is None:
            return None
        half = 0.5 / self.config.grid_size
        centres = self.grid()
        x, y = centres[:, 0], centres[:, 1]
        left, top, right, bottom = (side.unsqueeze(1) for side in film_boxes.to(centres.dtype).unbind(-1))
        return (x + half > left) & (x - half < right) & (y + half > top) & (y - half < bottom)

    @without_autocast
    @auto_docstring(
        custom_intro="""
        Score given fixations, each in the light of those before it. Raises ValueError for more than `max_fixations`.
        """
    )
    def forward(
        self,
        patches: torch.Tensor,
        fixations: torch.Tensor,
        fixation_mask: torch.Tensor | None = None,
        film_boxes: torch.Tensor | None = None,
        reader_ids: torch.Tensor | None = None,
    ) -> Gaze2ReportScanpathScores:
        r"""
        patches (`torch.Tensor` of shape `(B, P, C)`): patch features.
        fixations (`torch.Tensor` of shape `(B, N, 3)`): x, y in [0, 1] of the square and duration in seconds.
        fixation_mask (`torch.Tensor` of shape `(B, N)`, *optional*): true where a fixation stands; the true ones come
            first.
        film_boxes (`torch.Tensor` of shape `(B, 4)`, *optional*): x0, y0, x1, y1 of the film in the square; cells
            beside it have probability 0.
        reader_ids (`torch.Tensor` of shape `(B,)`, *optional*): readers, 0 = unknown.
        """
        batch_size, num_fixations = fixations.shape[:2]
        if num_fixations > self.config.max_fixations:
            raise ValueError(
                f"{num_fixations} fixations were given but scanpath_config.max_fixations is "
                f"{self.config.max_fixations}: cut the scanpath, or build the model with a larger max_fixations."
            )
        if fixation_mask is None:
            fixation_mask = torch.ones(batch_size, num_fixations, dtype=torch.bool, device=fixations.device)
        fixation_mask = fixation_mask.bool()
        # Masked entries are unknown values: make them harmless before any logarithm sees them.
        fixations = torch.where(fixation_mask.unsqueeze(-1), fixations, torch.full_like(fixations, 0.5)).float()
        points, durations = fixations[..., :2], fixations[..., 2].clamp_min(1e-6)

        features, memory = self.encode(patches)
        embeds = self.embed_fixations(features, fixations)
        states = self.decoder_input(embeds, reader_ids)
        for layer, (keys, values) in zip(self.layers, self.memory_keys_values(memory), strict=True):
            states = layer(states, keys, values)
        states = self.norm(states)  # (B, N + 1, D): entry t knows the first t fixations

        kernel = fixation_kernel(fixations, self.grid(), self.config.return_sigma)  # (B, N, P)
        visited = kernel.cumsum(1) - kernel  # fixations before this one
        before, after = states[:, :-1], states[:, 1:]
        log_probs = self.location_log_probs(before, self.location_key(memory), visited, self.film_cells(film_boxes))

        cell = cell_of(points, self.config.grid_size)  # (B, N)
        cell_memory = memory.gather(1, cell.unsqueeze(-1).expand(-1, -1, memory.shape[-1]))
        offset = points * self.config.grid_size - self.cell_corner(cell)
        centre, scale = self.offset.parameters_of(before, cell_memory)
        location = log_probs.gather(-1, cell.unsqueeze(-1)).squeeze(-1)
        location = location + self.offset.log_density(offset, centre.float(), scale.float())
        location = location + 2 * math.log(self.config.grid_size)  # per unit square, not per cell

        mixture = self.duration.parameters_of(before, cell_memory)
        duration = self.duration.log_density(durations, *(part.float() for part in mixture))

        num_seen = torch.arange(1, num_fixations + 1, device=states.device)
        stop_logits = self.stop_logits(after, num_seen)
        is_last = fixation_mask & ~F.pad(fixation_mask[:, 1:], (0, 1))
        stop = F.logsigmoid(torch.where(is_last, stop_logits, -stop_logits))
        stop = stop * (num_seen < self.config.max_fixations)  # at the longest length the reading ends for certain

        location, duration, stop = (part * fixation_mask for part in (location, duration, stop))
        return Gaze2ReportScanpathScores(
            log_likelihood=location + duration + stop,
            location_log_likelihood=location,
            duration_log_likelihood=duration,
            stop_log_likelihood=stop,
            location_log_probs=log_probs,
        )

    def cell_corner(self, cell: torch.Tensor) -> torch.Tensor:
        """Top left corner of a cell, in cells. Shapes: (...) -> (..., 2)."""
        return torch.stack((cell % self.config.grid_size, cell // self.config.grid_size), dim=-1).float()

    @without_autocast
    @without_dropout
    @torch.no_grad()
    def predict(
        self,
        patches: torch.Tensor,
        num_samples: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        film_boxes: torch.Tensor | None = None,
        reader_ids: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Gaze2ReportScanpath:
        """Predict readings of each film.

        The deterministic decoding is kernel herding (Chen, Welling and Smola 2010, arXiv 1203.3472): the next cell is
        the one that past predictions asked for most and past fixations served least, so that the reading spreads as the
        predictions do; always taking the likeliest cell would stare at one place. It takes the middle of the offset and
        the median of the likeliest duration component, and ends where the chance of having ended passes one half (never
        before `min_fixations`). Sampling draws every quantity from the density that `forward` scores.

        Args:
            patches: (B, P, C) patch features.
            num_samples: readings per film; they share the encoded film. The deterministic ones are all the same.
            do_sample: draw instead of decoding deterministically.
            temperature: divides the log probabilities of cells and duration components when sampling.
            film_boxes: (B, 4) x0, y0, x1, y1 of the film in the square; nothing beside it is looked at.
            reader_ids: (B,) readers, 0 = unknown.
            generator: source of randomness; torch's own when left out.
            use_cache: keep the keys and values of earlier fixations. Off, every step decodes the reading anew: slower,
                the same result; a reference for tests and benchmarks.

        Returns:
            fixations (B, S, N, 3), mask (B, S, N) and log-probability (B, S), with N at most `max_fixations`.

        Raises:
            ValueError: `num_samples` below 1 or `temperature` not above 0.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples = {num_samples} must be at least 1.")
        if temperature <= 0:
            raise ValueError(
                f"temperature = {temperature} must be above 0; for the likeliest reading set do_sample=False."
            )
        film = self.decoding_memory(patches, film_boxes, reader_ids, num_samples)
        state = self.decoding_start(film, num_samples)
        shape = (self.config.max_fixations, NUMBERS_PER_STEP, patches.shape[0], num_samples)
        if do_sample:
            noise = torch.rand(shape, generator=generator, device=patches.device)
        else:
            noise = torch.full(shape, 0.5, device=patches.device)
        steps = torch.arange(self.config.max_fixations, device=patches.device).unsqueeze(-1)
        # Nobody waits for a look at a tensor in main memory; a compiled loop has no exit.
        look_after = 1 if patches.device.type == "cpu" else STEPS_BETWEEN_STOP_CHECKS
        prefix = None if use_cache else state.token.new_zeros(state.token.shape[0], 0, state.token.shape[-1])
        decoded = []
        for step in range(self.config.max_fixations):
            if prefix is not None:
                prefix = torch.cat((prefix, state.token), dim=1)
            one, state = self.decode_step(film, state, steps[step], noise[step], do_sample, temperature, prefix)
            decoded.append(one)
            looks_now = step % look_after == 0 and not torch.compiler.is_compiling()
            if looks_now and not state.going.any():
                break
        return self.reading_of(decoded)

    def decoding_memory(
        self, patches: torch.Tensor, film_boxes: torch.Tensor | None, reader_ids: torch.Tensor | None, num_samples: int
    ) -> ScanpathMemory:
        """All that stays the same from step to step."""
        features, memory = self.encode(patches)
        cells = self.film_cells(film_boxes)
        reader = self.reader_states(reader_ids, features)
        centres = self.grid()
        return ScanpathMemory(
            features=features,
            memory=memory,
            # Read at every step: in the order of reading, they take a quarter less of each attention's time.
            memory_keys_values=[
                (keys.contiguous(), values.contiguous()) for keys, values in self.memory_keys_values(memory)
            ],
            location_keys=self.location_key(memory),
            beside_film=None if cells is None else ~cells.unsqueeze(1),
            film_cells=cells,
            kernel=fixation_kernel(centres, centres, self.config.return_sigma),
            reader=reader.repeat_interleave(num_samples, 0) if reader.dim() else reader,
        )

    def decoding_start(self, film: ScanpathMemory, num_samples: int) -> ScanpathState:
        config = self.config
        batch_size, num_patches = film.memory.shape[:2]
        rows = batch_size * num_samples
        head_size = config.hidden_size // config.num_attention_heads
        cache_shape = (rows, config.num_attention_heads, config.max_fixations, head_size)

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(batch_size, num_samples, *shape, device=film.memory.device)

        # Later states are laid out like this, each tensor on its own, so that one compiled step serves all.
        return ScanpathState(
            token=(self.start.expand(rows, 1, -1) + film.reader).contiguous(),
            past=[(film.memory.new_zeros(cache_shape), film.memory.new_zeros(cache_shape)) for _ in self.layers],
            visited=zeros(num_patches),
            owed=zeros(num_patches),
            going=zeros().logical_not(),
            log_survival=zeros(),
        )

    def decode_step(
        self,
        film: ScanpathMemory,
        state: ScanpathState,
        step: torch.Tensor,
        noise: torch.Tensor,
        do_sample: bool,
        temperature: float,
        prefix: torch.Tensor | None = None,
    ) -> tuple[ScanpathStep, ScanpathState]:
        """One more fixation of every reading. Shapes never change, and nothing waits for a value: it compiles whole.

        Args:
            film, state: what stays and what changes.
            step: (1,) fixations before this one.
            noise: (6, B, S) uniform numbers, one half each when decoding deterministically.
            do_sample, temperature: see `predict`.
            prefix: (B * S, step + 1, D) all tokens so far, to be decoded anew without the cache.
        """
        config = self.config
        states = state.token if prefix is None else prefix
        until_now = (torch.arange(config.max_fixations, device=step.device) <= step).view(1, 1, 1, -1)
        for layer, (keys, values), past in zip(self.layers, film.memory_keys_values, state.past, strict=True):
            states = layer(states, keys, values, past if prefix is None else None, step, until_now)
        hidden = self.norm(states[:, -1]).unflatten(0, state.going.shape)  # (B, S, D)

        stop_logits = self.stop_logits(hidden, step)  # (B, S)
        may_end = step > 0
        log_survival = state.log_survival + F.logsigmoid(-stop_logits) * may_end
        if do_sample:
            ends = (noise[0] < stop_logits.sigmoid()) & may_end
        else:
            ends = (log_survival < math.log(0.5)) & (step >= config.min_fixations)
        going = state.going & ~ends

        log_probs = self.location_log_probs(hidden, film.location_keys, state.visited, film.film_cells)
        owed = state.owed
        if do_sample:
            cell = draw(log_probs / temperature, noise[1])  # (B, S)
        else:
            # Herding: what predictions asked for in each cell's neighbourhood, less what fixations gave.
            owed = owed + log_probs.exp() @ film.kernel
            allowed = owed if film.beside_film is None else owed.masked_fill(film.beside_film, -torch.inf)
            cell = allowed.argmax(-1)
            owed = owed - film.kernel[cell]
        cell_memory = film.memory.gather(1, cell.unsqueeze(-1).expand(-1, -1, film.memory.shape[-1]))
        centre, scale = (part.float() for part in self.offset.parameters_of(hidden, cell_memory))
        offset = self.offset.quantile(noise[2:4].movedim(0, -1), centre, scale)
        mixture = [part.float() for part in self.duration.parameters_of(hidden, cell_memory)]
        component = draw(mixture[0] / temperature, noise[4]) if do_sample else mixture[0].argmax(-1)
        mean, spread = (part.gather(-1, component.unsqueeze(-1)).squeeze(-1) for part in mixture[1:])
        duration = (mean + spread * torch.special.ndtri(noise[5].clamp(1e-6, 1 - 1e-6))).exp()

        point = (self.cell_corner(cell) + offset) / config.grid_size
        fixation = torch.cat((point, duration.unsqueeze(-1)), dim=-1)  # (B, S, 3)
        embeds = self.embed_fixations(film.features, fixation).flatten(0, 1).unsqueeze(1)
        outcome = ScanpathStep(
            fixation=fixation,
            offset=offset,
            offset_parameters=torch.stack((centre, scale)),
            mixture=torch.stack(mixture),
            cell_log_prob=log_probs.gather(-1, cell.unsqueeze(-1)).squeeze(-1),
            # Of a reading that went on until here: whether it ended now.
            stop_log_prob=F.logsigmoid(torch.where(ends, stop_logits, -stop_logits)) * (state.going & may_end),
            going=going,
        )
        return outcome, ScanpathState(
            token=embeds + self.order_embedding(step) + film.reader,
            past=state.past,
            visited=state.visited + fixation_kernel(fixation, self.grid(), config.return_sigma),
            owed=owed,
            going=going,
            log_survival=log_survival,
        )

    def reading_of(self, decoded: list[ScanpathStep]) -> Gaze2ReportScanpath:
        """Fixations, and how likely all that was decided was, from the steps; the last one may hold no fixation."""
        steps = ScanpathStep(*(torch.stack(part, dim=-1) for part in zip(*decoded, strict=True)))
        centre, scale = steps.offset_parameters  # (B, S, 2, N)
        mixture = steps.mixture.movedim(-1, -2)  # (3, B, S, N, K)
        location = steps.cell_log_prob + 2 * math.log(self.config.grid_size)
        location = location + self.offset.log_density(
            *(part.transpose(-1, -2) for part in (steps.offset, centre, scale))
        )
        duration = self.duration.log_density(steps.fixation[..., 2, :], *mixture)
        likelihood = (location + duration) * steps.going + steps.stop_log_prob
        length = len(decoded)
        if length > 1 and not torch.compiler.is_compiling() and not steps.going[..., -1].any():
            length -= 1
        fixations = steps.fixation.transpose(-1, -2) * steps.going.unsqueeze(-1)  # (B, S, N, 3)
        return Gaze2ReportScanpath(
            fixations=fixations[:, :, :length], mask=steps.going[..., :length], log_probability=likelihood.sum(-1)
        )

    def compile_decoding(self, **options) -> None:
        """Compile the step of `predict` with `torch.compile`, for programs that predict many readings.

        The first reading of each batch size, number of samples and way of decoding then waits for the compiler.

        Args:
            options: of `torch.compile`, such as `backend`.
        """
        self.decode_step = torch.compile(self.decode_step, fullgraph=True, dynamic=False, **options)


__all__ = [
    "Gaze2ReportScanpathPreTrainedModel",
    "Gaze2ReportScanpathModel",
    "Gaze2ReportScanpath",
    "Gaze2ReportScanpathScores",
]
