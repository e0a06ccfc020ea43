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
    patch_map,
    restore_grid_buffers,
    sample_map,
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

    feature_map: torch.Tensor  # (B, D, G, G) projected patches
    cells: torch.Tensor  # (B * P, D + 6) encoded patches, their part of the offset's parameters, their top left corners
    first_cell: torch.Tensor  # (B * S,) row of each reading's film in `cells`
    memory_keys_values: list[tuple[torch.Tensor, torch.Tensor]]  # per layer, each (B, H, P, D / H)
    location_keys: torch.Tensor  # (B, D, P)
    beside_film: torch.Tensor | None  # (B * S, P) bool, cells that the film does not cover
    kernel: torch.Tensor  # (P, P) neighbourhood of each cell
    inhibition: torch.Tensor  # () what a fixation on a cell adds to the cell's logit
    reader: torch.Tensor  # (B * S, D), or () where readers are not told apart


class ScanpathMoment(NamedTuple):
    """What is known of a step before it is taken."""

    step: torch.Tensor  # (1,) fixations before it
    until_now: torch.Tensor  # (1, 1, 1, N) added to attention: 0 up to this step, -inf after it
    stop_offset: (
        torch.Tensor
    )  # () part of the stop logit that depends on the step alone; -inf before the first fixation
    end_below: torch.Tensor  # () the deterministic reading ends below this log survival
    order: torch.Tensor  # (D,) place in the order, for the token of this step's fixation
    uniform: torch.Tensor  # (3, B * S) chances of stop, cell and component of the duration
    share: torch.Tensor  # (B * S, 2) of the offset's density
    deviation: torch.Tensor  # (B * S,) standard deviations of log duration


class ScanpathState(NamedTuple):
    """What decoding hands on from step to step."""

    token: torch.Tensor  # (B * S, D) the last fixation, or the start
    past: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values per layer, each (B * S, H, N, D / H)
    inhibited: torch.Tensor  # (B * S, P) added to the logits of the cells: fixations near each, and the film's edge
    owed: torch.Tensor  # (B * S, P) fixations asked for near each cell and not given
    going: torch.Tensor  # (B * S,) bool, readings that have not ended
    log_survival: torch.Tensor  # (B * S,) log probability of not having ended


class ScanpathStep(NamedTuple):
    """One fixation of every reading, and what its densities follow from."""

    fixation: torch.Tensor  # (B * S, 3)
    offset: torch.Tensor  # (B * S, 2) within the cell
    centre: torch.Tensor  # (B * S, 2) of the offset's density
    scale: torch.Tensor  # (B * S, 2)
    mixture: torch.Tensor  # (B * S, 3 * K) raw parameters of the duration's density
    cell_log_prob: torch.Tensor  # (B * S,)
    stop_logit: torch.Tensor  # (B * S,) of the reading ending before this fixation
    going: torch.Tensor  # (B * S,) bool, whether the fixation belongs to the reading


def draw(log_weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The class below which `share` of the weight lies. Shapes: weights (..., K), share (...) in [0, 1) -> (...)."""
    cumulated = log_weights.softmax(-1).cumsum(-1)
    # Short of the whole by more than rounding, so that a class of no weight is never the answer.
    target = share.unsqueeze(-1) * cumulated[..., -1:] * (1 - 1e-6)
    return torch.searchsorted(cumulated, target, right=True).squeeze(-1)


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

    def remember(
        self, states: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor], step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes keys and values of one position (B * S, D) into `past`, each (B * S, H, N, D / H), and returns it."""
        for whole, projection in zip(past, (self.k_proj, self.v_proj), strict=True):
            whole.index_copy_(2, step, projection(states).view(-1, self.num_heads, 1, whole.shape[-1]))
        return past

    def forward(
        self,
        states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        queries = self.q_proj(states)  # (B * S, L, D), or (B * S, D) of a single position
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

        Shapes: states (B * S, L, D), of one position (B * S, D); memory keys and values (B, H, P, D / H); past, a pair
        of (B * S, H, N, D / H) that this call writes its own position into; step (1,) long; until_now (1, 1, 1, N), 0
        up to it and -inf after it.
        """
        normed = self.self_attention_norm(states)
        if past is None:
            attended = self.self_attention(normed, *self.self_attention.keys_values(normed), is_causal=True)
        else:
            keys, values = self.self_attention.remember(normed, past, step)
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

    def parameters_of(self, state: torch.Tensor, of_cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre in (0, 1) and scale in cells, each (..., 2), from the state (..., D) and `from_cell` of the cell."""
        centre, scale = (self.from_state(state) + of_cell).chunk(2, dim=-1)
        return centre.sigmoid().float(), F.softplus(scale).clamp(0.05, 5.0).float()

    def log_density(self, offset: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Log density of `offset` (..., 2) in [0, 1] of the cell, per unit cell. Returns (...)."""
        z = (offset - centre) / scale
        inside = torch.sigmoid((1 - centre) / scale) - torch.sigmoid(-centre / scale)
        return (F.logsigmoid(z) + F.logsigmoid(-z) - scale.log() - inside.log()).sum(-1)

    def quantile(self, share: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Offset below which `share` (..., 2) of the density lies."""
        z = -centre / scale
        low, high = torch.sigmoid(z), torch.sigmoid(z + 1 / scale)
        return torch.addcmul(centre, scale, torch.logit(torch.lerp(low, high, share), eps=1e-6)).clamp(0, 1)


class Gaze2ReportDurationHead(nn.Module):
    """How long a fixation lasts: a mixture of log-normal densities, given the state and the place looked at."""

    def __init__(self, config: Gaze2ReportScanpathConfig):
        super().__init__()
        self.norm = nn.LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.linear = nn.Linear(2 * config.hidden_size, 3 * config.num_duration_components)

    def forward(self, state: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Raw parameters, (..., 3 * K): weights, means and spreads of the components."""
        return self.linear(self.norm(torch.cat((state, place), dim=-1))).float()

    def parameters_of(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log weights, means and standard deviations of log seconds, each (..., K)."""
        weight, mean, spread = raw.chunk(3, dim=-1)
        return weight.log_softmax(-1), self.mean_of(mean), self.spread_of(spread)

    # Medians stay within 0.04 and 2.1 s, spreads within a factor of 1.07 and 3.9: far outside what eyes do.
    def mean_of(self, raw: torch.Tensor) -> torch.Tensor:
        return TYPICAL_LOG_DURATION + 2 * raw.tanh()

    def spread_of(self, raw: torch.Tensor) -> torch.Tensor:
        return 0.5 * raw.clamp(-2, 1).exp()

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

    def embed_fixations(self, seen: torch.Tensor, fixations: torch.Tensor) -> torch.Tensor:
        """What was seen, where and for how long, without the order. Shapes: (..., D), (..., 3) -> (..., D)."""
        points, duration = fixations.split((2, 1), dim=-1)
        log_duration = duration.clamp_min(1e-2).log().to(seen.dtype)
        position = self.position(points.to(seen.dtype)).to(seen.dtype)
        return seen + position + self.duration_projection(log_duration)

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

    def location_keys(self, memory: torch.Tensor) -> torch.Tensor:
        """What the query of a location is multiplied with. Shapes: memory (B, P, D) -> (B, D, P)."""
        return self.location_key(memory).transpose(1, 2) / math.sqrt(self.config.hidden_size)

    def location_log_probs(self, queries: torch.Tensor, keys: torch.Tensor, inhibited: torch.Tensor) -> torch.Tensor:
        """Log probability of each cell. Shapes: queries (B, L, D), keys (B, D, P), inhibited (B, L, P) -> (B, L, P)."""
        return ((queries @ keys).float() + inhibited).log_softmax(-1)

    def inhibition_of_return(self) -> torch.Tensor:
        """What one fixation adds to the logit of the cell that it stands on, (); never positive."""
        return -F.softplus(self.inhibition).float()

    def stop_logits(self, states: torch.Tensor, num_seen: torch.Tensor) -> torch.Tensor:
        """Logit of the reading ending here. Shapes: states (..., L, D), num_seen (L,) -> (..., L)."""
        return F.linear(states, self.stop.weight[:, :-1]).squeeze(-1).float() + self.stop_offsets(num_seen)

    def stop_offsets(self, num_seen: torch.Tensor) -> torch.Tensor:
        """Part of that logit that depends on the number of fixations alone. Shapes: (L,) -> (L,)."""
        return (self.stop.bias + self.stop.weight[0, -1] * (num_seen / self.config.max_fixations)).float()

    def beside_film(self, film_boxes: torch.Tensor | None) -> torch.Tensor | None:
        """Cells that the film covers nowhere. Shapes: film_boxes (B, 4) -> (B, P) bool."""
        if film_boxes is None:
            return None
        half = 0.5 / self.config.grid_size
        centres = self.grid()
        x, y = centres[:, 0], centres[:, 1]
        left, top, right, bottom = (side.unsqueeze(1) for side in film_boxes.to(centres.dtype).unbind(-1))
        return (x + half <= left) | (x - half >= right) | (y + half <= top) | (y - half >= bottom)

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
        seen = sample_patches(features, points.to(features.dtype), self.config.grid_size)
        embeds = self.embed_fixations(seen, fixations)
        states = self.decoder_input(embeds, reader_ids)
        for layer, (keys, values) in zip(self.layers, self.memory_keys_values(memory), strict=True):
            states = layer(states, keys, values)
        states = self.norm(states)  # (B, N + 1, D): entry t knows the first t fixations

        kernel = fixation_kernel(fixations, self.grid(), self.config.return_sigma)  # (B, N, P)
        inhibited = self.inhibition_of_return() * (kernel.cumsum(1) - kernel)  # by fixations before this one
        beside_film = self.beside_film(film_boxes)
        if beside_film is not None:
            inhibited = inhibited.masked_fill(beside_film.unsqueeze(1), torch.finfo(inhibited.dtype).min)
        before, after = states[:, :-1], states[:, 1:]
        log_probs = self.location_log_probs(self.location_query(before), self.location_keys(memory), inhibited)

        cell = cell_of(points, self.config.grid_size)  # (B, N)
        cell_memory = memory.gather(1, cell.unsqueeze(-1).expand(-1, -1, memory.shape[-1]))
        offset = points * self.config.grid_size - self.cell_corner(cell)
        centre, scale = self.offset.parameters_of(before, self.offset.from_cell(cell_memory))
        location = log_probs.gather(-1, cell.unsqueeze(-1)).squeeze(-1)
        location = location + self.offset.log_density(offset, centre, scale)
        location = location + 2 * math.log(self.config.grid_size)  # per unit square, not per cell

        mixture = self.duration.parameters_of(self.duration(before, cell_memory))
        duration = self.duration.log_density(durations, *mixture)

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
        state = self.decoding_start(film)
        moments = self.decoding_moments(film, do_sample, generator)
        # Nobody waits for a look at a tensor in main memory; a compiled loop has no exit.
        look_after = 1 if patches.device.type == "cpu" else STEPS_BETWEEN_STOP_CHECKS
        prefix = None if use_cache else state.token.new_zeros(state.token.shape[0], 0, state.token.shape[-1])
        decoded = []
        for number, moment in enumerate(moments):
            if prefix is not None:
                prefix = torch.cat((prefix, state.token.unsqueeze(1)), dim=1)
            one, state = self.decode_step(film, state, moment, do_sample, temperature, prefix)
            decoded.append(one)
            looks_now = number % look_after == 0 and not torch.compiler.is_compiling()
            if looks_now and not state.going.any():
                break
        return self.reading_of(decoded, num_samples)

    def decoding_memory(
        self, patches: torch.Tensor, film_boxes: torch.Tensor | None, reader_ids: torch.Tensor | None, num_samples: int
    ) -> ScanpathMemory:
        """All that stays the same from step to step."""
        features, memory = self.encode(patches)
        batch_size, num_patches = memory.shape[:2]
        beside_film = self.beside_film(film_boxes)
        reader = self.reader_states(reader_ids, features)
        centres = self.grid()
        corners = self.cell_corner(torch.arange(num_patches, device=memory.device)).to(memory.dtype)
        cells = torch.cat((memory, self.offset.from_cell(memory), corners.expand(batch_size, -1, -1)), dim=-1)
        films = torch.arange(batch_size, device=memory.device)
        return ScanpathMemory(
            feature_map=patch_map(features, self.config.grid_size).contiguous(),
            cells=cells.flatten(0, 1),
            first_cell=num_patches * films.repeat_interleave(num_samples),
            # Read at every step: in the order of reading, they take a quarter less of each attention's time.
            memory_keys_values=[
                (keys.contiguous(), values.contiguous()) for keys, values in self.memory_keys_values(memory)
            ],
            location_keys=self.location_keys(memory),
            beside_film=None if beside_film is None else beside_film.repeat_interleave(num_samples, 0),
            kernel=fixation_kernel(centres, centres, self.config.return_sigma),
            inhibition=self.inhibition_of_return(),
            reader=reader.squeeze(1).repeat_interleave(num_samples, 0) if reader.dim() else reader,
        )

    def decoding_start(self, film: ScanpathMemory) -> ScanpathState:
        config = self.config
        rows, num_patches = film.first_cell.shape[0], film.kernel.shape[0]
        head_size = config.hidden_size // config.num_attention_heads
        cache_shape = (rows, config.num_attention_heads, config.max_fixations, head_size)

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(rows, *shape, device=film.kernel.device)

        inhibited = zeros(num_patches)
        if film.beside_film is not None:
            inhibited = inhibited.masked_fill(film.beside_film, torch.finfo(inhibited.dtype).min)
        # Later states are laid out like this, each tensor on its own, so that one compiled step serves all.
        return ScanpathState(
            token=(self.start.expand(rows, -1) + film.reader).contiguous(),
            past=[(film.cells.new_zeros(cache_shape), film.cells.new_zeros(cache_shape)) for _ in self.layers],
            inhibited=inhibited,
            owed=zeros(num_patches),
            going=zeros().logical_not(),
            log_survival=zeros(),
        )

    def decoding_moments(
        self, film: ScanpathMemory, do_sample: bool, generator: torch.Generator | None
    ) -> list[ScanpathMoment]:
        """Everything about each step that does not depend on the fixations before it."""
        config, device = self.config, film.kernel.device
        shape = (config.max_fixations, NUMBERS_PER_STEP, film.first_cell.shape[0])
        if do_sample:
            noise = torch.rand(shape, generator=generator, device=device)
        else:
            noise = torch.full(shape, 0.5, device=device)
        steps = torch.arange(config.max_fixations, device=device)
        later = steps > steps.unsqueeze(-1)  # (N, N)
        until_now = torch.zeros_like(later, dtype=film.cells.dtype).masked_fill(later, -torch.inf)
        moments = ScanpathMoment(
            step=steps.unsqueeze(-1),
            until_now=until_now.view(-1, 1, 1, 1, config.max_fixations),
            stop_offset=self.stop_offsets(steps).masked_fill(steps == 0, -torch.inf),
            end_below=torch.full(shape[:1], math.log(0.5), device=device).masked_fill(
                steps < config.min_fixations, -torch.inf
            ),
            order=self.order_embedding.weight,
            uniform=noise[:, [0, 1, 4]],
            share=noise[:, 2:4].transpose(1, 2).contiguous(),
            deviation=torch.special.ndtri(noise[:, 5].clamp(1e-6, 1 - 1e-6)),
        )
        return [ScanpathMoment(*parts) for parts in zip(*(table.unbind() for table in moments), strict=True)]

    def decode_step(
        self,
        film: ScanpathMemory,
        state: ScanpathState,
        moment: ScanpathMoment,
        do_sample: bool,
        temperature: float,
        prefix: torch.Tensor | None = None,
    ) -> tuple[ScanpathStep, ScanpathState]:
        """One more fixation of every reading. Shapes never change, and nothing waits for a value: it compiles whole.

        Args:
            film, state, moment: what stays, what changes, and what is known of this step.
            do_sample, temperature: see `predict`.
            prefix: (B * S, step + 1, D) all tokens so far, to be decoded anew without the cache.
        """
        config = self.config
        states = state.token if prefix is None else prefix
        for layer, (keys, values), past in zip(self.layers, film.memory_keys_values, state.past, strict=True):
            past = past if prefix is None else None
            states = layer(states, keys, values, past, moment.step, moment.until_now)
        hidden = self.norm(states if prefix is None else states[:, -1])  # (B * S, D)

        stop_logit = F.linear(hidden, self.stop.weight[:, :-1]).squeeze(-1).float() + moment.stop_offset
        log_survival = state.log_survival
        if do_sample:
            going = state.going & (moment.uniform[0] >= stop_logit.sigmoid())
        else:
            log_survival = log_survival + F.logsigmoid(-stop_logit)
            going = state.going & (log_survival >= moment.end_below)

        queries = self.location_query(hidden).view(film.location_keys.shape[0], -1, config.hidden_size)  # (B, S, D)
        inhibited = state.inhibited.view(*queries.shape[:2], -1)
        log_probs = self.location_log_probs(queries, film.location_keys, inhibited).flatten(0, 1)  # (B * S, P)
        owed = state.owed
        if do_sample:
            cell = draw(log_probs / temperature, moment.uniform[1])  # (B * S,)
        else:
            # Herding: what predictions asked for in each cell's neighbourhood, less what fixations gave.
            owed = torch.addmm(owed, log_probs.exp(), film.kernel)
            allowed = owed if film.beside_film is None else owed.masked_fill(film.beside_film, -torch.inf)
            cell = allowed.argmax(-1)
            owed = owed - film.kernel[cell]
        of_cell = film.cells[film.first_cell + cell]
        cell_memory, offset_of_cell, corner = of_cell.split((config.hidden_size, 4, 2), dim=-1)
        centre, scale = self.offset.parameters_of(hidden, offset_of_cell)
        offset = self.offset.quantile(moment.share, centre, scale)
        mixture = self.duration(hidden, cell_memory)  # (B * S, 3 * K)
        weights, means, spreads = mixture.chunk(3, dim=-1)
        component = draw(weights / temperature, moment.uniform[2]) if do_sample else weights.argmax(-1)
        component = component.unsqueeze(-1)
        log_duration = self.duration.mean_of(means.gather(-1, component))  # (B * S, 1)
        if do_sample:
            spread = self.duration.spread_of(spreads.gather(-1, component))
            log_duration = torch.addcmul(log_duration, spread, moment.deviation.unsqueeze(-1))

        point = (corner.float() + offset) / config.grid_size
        fixation = torch.cat((point, log_duration.exp()), dim=-1)  # (B * S, 3)
        seen = sample_map(film.feature_map, point.view(*queries.shape[:2], 2).to(hidden.dtype)).reshape(hidden.shape)
        token = self.embed_fixations(seen, fixation) + moment.order
        outcome = ScanpathStep(
            fixation=fixation,
            offset=offset,
            centre=centre,
            scale=scale,
            mixture=mixture,
            cell_log_prob=log_probs.gather(-1, cell.unsqueeze(-1)).squeeze(-1),
            stop_logit=stop_logit,
            going=going,
        )
        nearby = fixation_kernel(point, self.grid(), config.return_sigma)  # (B * S, P)
        return outcome, ScanpathState(
            # CODEPATH: only models trained on several known readers tell them apart.
            token=token if self.reader_embedding is None else token + film.reader,
            past=state.past,
            inhibited=torch.addcmul(state.inhibited, nearby, film.inhibition),
            owed=owed,
            going=going,
            log_survival=log_survival,
        )

    def reading_of(self, decoded: list[ScanpathStep], num_samples: int) -> Gaze2ReportScanpath:
        """Fixations, and how likely all that was decided was, from the steps; the last one may hold no fixation."""
        steps = ScanpathStep(*(torch.stack(part, dim=1) for part in zip(*decoded, strict=True)))  # (B * S, N, ...)
        location = steps.cell_log_prob + 2 * math.log(self.config.grid_size)
        location = location + self.offset.log_density(steps.offset, steps.centre, steps.scale)
        duration = self.duration.log_density(steps.fixation[..., 2], *self.duration.parameters_of(steps.mixture))
        went_on = F.pad(steps.going[:, :-1], (1, 0), value=True)
        # Of a reading that went on until here: whether it ended now.
        stop = F.logsigmoid(torch.where(steps.going, -steps.stop_logit, steps.stop_logit))
        likelihood = (location + duration) * steps.going + torch.where(went_on, stop, torch.zeros_like(stop))
        length = len(decoded)
        if length > 1 and not torch.compiler.is_compiling() and not steps.going[:, -1].any():
            length -= 1
        fixations = steps.fixation * steps.going.unsqueeze(-1)  # (B * S, N, 3)
        return Gaze2ReportScanpath(
            fixations=fixations[:, :length].unflatten(0, (-1, num_samples)),
            mask=steps.going[:, :length].unflatten(0, (-1, num_samples)),
            log_probability=likelihood.sum(-1).unflatten(0, (-1, num_samples)),
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
