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
"""Fusion: patches and fixations -> one graph -> visual-gaze tokens.

Nodes are every patch, every fixation and one global node. An edge carries 14 numbers and lets its target listen to its
source; the layer is PyTorch Geometric's `TransformerConv` (Shi et al. 2021, arXiv 2009.03509) with edge features:

    score_ij = (q_i . (k_j + W_e e_ij)) / sqrt(d)        message_i = sum_j softmax_j(score_ij) (v_j + W_e e_ij)

`graph_implementation="pyg"` runs that layer on the list of edges. `"dense"`, the default, runs the same weights as
masked attention over all pairs. It rests on two observations: q_i . W_e e_ij = (W_e^T q_i) . e_ij, so that no tensor of
size edges x width is made; and five of the 14 numbers are differences of node attributes, so that their part of the
score is a product of two thin matrices. Only the nine relation numbers need a matrix each, and none holds the width.

The graph, its edges and the readout are ours; adding the heat map to the patches follows GazeGNN (WACV 2024) and the
gaze-directed neighbours follow GD-ViG (MICCAI 2024, arXiv 2406.14050).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn.conv import TransformerConv
from torch_geometric.nn.dense import Linear as GraphLinear
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import auto_docstring

from .configuration_gaze2report import Gaze2ReportFusionConfig
from .modeling_grid import (
    Gaze2ReportGridCentres,
    Gaze2ReportPositionEmbedding,
    fixation_kernel,
    heat_map,
    restore_grid_buffers,
    sample_patches,
)

# The numbers on an edge from source j to target i, in this order. The first five are differences of node attributes
# (source minus target; the third is the squared distance); the others say how the two nodes are related.
NODE_DIFFERENCES = ("dx", "dy", "squared_distance", "log_duration_difference", "order_difference")
RELATIONS = (
    "gaze_weight",
    "spatial",
    "feature_neighbor",
    "next_fixation",
    "previous_fixation",
    "fixation_patch",
    "revisit",
    "global",
    "self",
)
EDGE_ATTRIBUTES = NODE_DIFFERENCES + RELATIONS
NODE_TYPES = ("global", "patch", "fixation")


@dataclass
class Gaze2ReportGraph:
    """The graphs of a batch of films; nodes stand in the order global, patches, fixations.

    Attributes:
        attributes (`torch.Tensor` of shape `(B, V, 4)`): x, y in [0, 1] of the square, log duration (0 for other nodes
            than fixations) and order / N (likewise).
        relations (`torch.Tensor` of shape `(B, V, 9, V)`): the numbers of `RELATIONS` from source (last) to target.
        adjacency (`torch.Tensor` of shape `(B, V, V)`): true where an edge leads from source (last) to target.
    """

    attributes: torch.Tensor
    relations: torch.Tensor
    adjacency: torch.Tensor

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same graphs as one list of edges over nodes numbered through the batch.

        Returns:
            edge_index (2, E) long, source and target; edge_attr (E, 14), the numbers of `EDGE_ATTRIBUTES`.
        """
        film, target, source = self.adjacency.nonzero(as_tuple=True)
        difference = self.attributes[film, source] - self.attributes[film, target]  # (E, 4)
        squared_distance = difference[:, :2].square().sum(-1, keepdim=True)
        relation = self.relations[film, target, :, source]  # (E, 9)
        edge_attr = torch.cat((difference[:, :2], squared_distance, difference[:, 2:], relation), dim=-1)
        num_nodes = self.attributes.shape[1]
        return torch.stack((film * num_nodes + source, film * num_nodes + target)), edge_attr


@auto_docstring(
    custom_intro="""
    Films after the graph.
    """
)
@dataclass
class Gaze2ReportFusionOutput(ModelOutput):
    r"""
    tokens (`torch.Tensor` of shape `(B, T, D)`): visual-gaze tokens: 1 global, the regions row by row, the fixation
        slots in the order of reading.
    token_fixations (`torch.Tensor` of shape `(B, K)`): which fixation each slot holds, -1 for an empty slot.
    patch_states (`torch.Tensor` of shape `(B, P, D)`): patch nodes.
    global_state (`torch.Tensor` of shape `(B, D)`): global node.
    readout_attention (`torch.Tensor` of shape `(B, P)`): attention of the global node over the patches in the last
        layer, mean over heads, summing to one.
    heat_map (`torch.Tensor` of shape `(B, P)`): where dwell time fell, summing to one.
    """

    tokens: torch.FloatTensor | None = None
    token_fixations: torch.LongTensor | None = None
    patch_states: torch.FloatTensor | None = None
    global_state: torch.FloatTensor | None = None
    readout_attention: torch.FloatTensor | None = None
    heat_map: torch.FloatTensor | None = None


class Gaze2ReportGraphAttention(nn.Module):
    """One `TransformerConv`, run on the list of edges or densely, and the projection after it.

    Shapes: states (B, V, D) -> (B, V, D) and the attention of the global node over all nodes, (B, V).
    """

    def __init__(self, config: Gaze2ReportFusionConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.conv = TransformerConv(
            config.hidden_size,
            self.head_size,
            heads=self.num_heads,
            edge_dim=len(EDGE_ATTRIBUTES),
            root_weight=False,
        )
        # PyG builds a skip projection even where it is switched off; the residual of the layer stands in its place.
        self.conv.lin_skip = None
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.config = config

    def forward(self, states: torch.Tensor, graph: Gaze2ReportGraph) -> tuple[torch.Tensor, torch.Tensor]:
        # CODEPATH: every checkpoint runs on either; "pyg" is the reference that tests hold "dense" against.
        attend = self.attend_pyg if self.config.graph_implementation == "pyg" else self.attend_dense
        message, attention = attend(states, graph)
        return self.output(message), attention

    def attend_pyg(self, states: torch.Tensor, graph: Gaze2ReportGraph) -> tuple[torch.Tensor, torch.Tensor]:
        batch_size, num_nodes = states.shape[:2]
        edge_index, edge_attr = graph.edges()
        message, (_, alpha) = self.conv(
            states.flatten(0, 1), edge_index, edge_attr.to(states.dtype), return_attention_weights=True
        )
        source, target = edge_index
        to_global = target % num_nodes == 0
        attention = states.new_zeros(batch_size * num_nodes)
        attention = attention.index_add(0, source[to_global], alpha[to_global].mean(-1))
        return message.unflatten(0, (batch_size, num_nodes)), attention.unflatten(0, (batch_size, num_nodes))

    def attend_dense(self, states: torch.Tensor, graph: Gaze2ReportGraph) -> tuple[torch.Tensor, torch.Tensor]:
        heads = (self.num_heads, self.head_size)
        queries = self.conv.lin_query(states).unflatten(-1, heads).transpose(1, 2)  # (B, H, V, d)
        keys = self.conv.lin_key(states).unflatten(-1, heads).transpose(1, 2)
        values = self.conv.lin_value(states).unflatten(-1, heads).transpose(1, 2)
        edge_weight = self.conv.lin_edge.weight.unflatten(0, heads)  # (H, d, 14)
        attributes = graph.attributes.to(states.dtype)
        relations = graph.relations.to(states.dtype)

        # How much each query cares for each of the 14 numbers: W_e^T q_i.
        care = queries @ edge_weight  # (B, H, V, 14)
        care_dx, care_dy, care_distance, care_duration, care_order = care[..., :5].unbind(-1)
        care_relations = care[..., 5:]  # (B, H, V, 9)

        # A difference a_j - a_i adds care * a_j to the score; what depends on the target alone cancels in the softmax.
        # The squared distance is |p_j|^2 - 2 p_i . p_j + |p_i|^2.
        x, y = attributes[..., 0].unsqueeze(1), attributes[..., 1].unsqueeze(1)  # (B, 1, V)
        squared_norm = attributes[..., :2].square().sum(-1, keepdim=True)  # (B, V, 1)
        of_source = torch.cat((attributes, squared_norm), dim=-1)  # (B, V, 5): x, y, log duration, order, |p|^2
        of_target = torch.stack(
            (
                care_dx - 2 * care_distance * x,
                care_dy - 2 * care_distance * y,
                care_duration,
                care_order,
                care_distance,
            ),
            dim=-1,
        )  # (B, H, V, 5)
        source_keys = torch.cat((keys, of_source.unsqueeze(1).expand(-1, self.num_heads, -1, -1)), dim=-1)
        scores = torch.cat((queries, of_target), dim=-1) @ source_keys.transpose(-1, -2)  # (B, H, V, V)
        scores = scores + (care_relations.transpose(1, 2) @ relations).transpose(1, 2)
        scores = scores / math.sqrt(self.head_size)
        scores = scores.masked_fill(~graph.adjacency.unsqueeze(1), torch.finfo(scores.dtype).min)
        alpha = scores.softmax(-1)

        mean_source = alpha @ of_source.unsqueeze(1)  # (B, H, V, 5): the mean source attribute of every target
        mean_x, mean_y, mean_duration, mean_order, mean_norm = mean_source.unbind(-1)
        mean_edge = torch.stack(
            (
                mean_x - x,
                mean_y - y,
                mean_norm - 2 * (x * mean_x + y * mean_y) + squared_norm.transpose(1, 2),
                mean_duration - attributes[..., 2].unsqueeze(1),
                mean_order - attributes[..., 3].unsqueeze(1),
            ),
            dim=-1,
        )
        mean_relation = (alpha.transpose(1, 2) @ relations.transpose(-1, -2)).transpose(1, 2)  # (B, H, V, 9)
        mean_edge = torch.cat((mean_edge, mean_relation), dim=-1)  # (B, H, V, 14)
        message = alpha @ values + mean_edge @ edge_weight.transpose(-1, -2)
        return message.transpose(1, 2).flatten(2), alpha[:, :, 0].mean(1)


class Gaze2ReportFusionMLP(nn.Module):
    def __init__(self, config: Gaze2ReportFusionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(states)))


class Gaze2ReportGraphLayer(GradientCheckpointingLayer):
    """x + W_o attention(norm(x)), then x + mlp(norm(x)). A node without neighbours keeps its residual."""

    def __init__(self, config: Gaze2ReportFusionConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Gaze2ReportGraphAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Gaze2ReportFusionMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: torch.Tensor, graph: Gaze2ReportGraph) -> tuple[torch.Tensor, torch.Tensor]:
        message, attention = self.attention(self.attention_norm(states), graph)
        states = states + self.dropout(message)
        return states + self.dropout(self.mlp(self.mlp_norm(states))), attention


class Gaze2ReportRegionPooling(nn.Module):
    """Weighted mean of the patches of each cell of a coarser grid, with weights softmax(log h_j + w . x_j).

    Shapes: states (B, P, D), heat (B, P) -> (B, R, D).
    """

    def __init__(self, config: Gaze2ReportFusionConfig):
        super().__init__()
        self.grid_size = config.grid_size
        self.region_grid_size = config.region_grid_size
        self.weight = nn.Linear(config.hidden_size, 1)
        self.members = nn.Buffer(self.compute_members(), persistent=False)

    def compute_members(self) -> torch.Tensor:
        """Which patches belong to which region, (R, P) bool; every patch belongs to exactly one."""
        coarse = torch.arange(self.grid_size) * self.region_grid_size // self.grid_size
        region = (coarse[:, None] * self.region_grid_size + coarse[None, :]).flatten()
        return region == torch.arange(self.region_grid_size**2)[:, None]

    def forward(self, states: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
        logits = self.weight(states).squeeze(-1) + torch.log(heat + 1e-6)  # (B, P)
        logits = logits.unsqueeze(1).masked_fill(~self.members, torch.finfo(logits.dtype).min)
        return logits.softmax(-1) @ states


@auto_docstring
class Gaze2ReportFusionPreTrainedModel(PreTrainedModel):
    config: Gaze2ReportFusionConfig
    base_model_prefix = "model"
    main_input_name = "patches"
    supports_gradient_checkpointing = True
    # The attention of this part is its own, in fp32: what the towers are told to use is no reason to refuse it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Gaze2ReportGraphLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        restore_grid_buffers(module)
        if isinstance(module, GraphLinear):
            # PyG's own Linear is no nn.Linear, and its reset writes past transformers' guard of loaded weights. The
            # convolution above it has no parameter of its own, which is why transformers never shows it to this method.
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Gaze2ReportRegionPooling):
            init.copy_(module.members, module.compute_members())
        elif isinstance(module, Gaze2ReportFusionModel):
            for parameter in (module.global_node, module.no_gaze, module.empty_slot):
                init.normal_(parameter, std=self.config.initializer_range)


@auto_docstring
class Gaze2ReportFusionModel(Gaze2ReportFusionPreTrainedModel):
    """Builds the graph of every film, runs the layers over it and reads the visual-gaze tokens off it.

    Example:

    ```python
    >>> fused = fusion(patches, fixations, fixation_mask)  # (B, P, C), (B, N, 3), (B, N)
    >>> fused.tokens.shape  # (B, 66, D)
    >>> fusion.to_pyg(patches, fixations, fixation_mask)[0]  # torch_geometric.data.Data of the first film
    ```
    """

    def __init__(self, config: Gaze2ReportFusionConfig):
        super().__init__(config)
        self.patch_projection = nn.Linear(config.vision_hidden_size, config.hidden_size)
        self.position = Gaze2ReportPositionEmbedding(config.hidden_size)
        self.grid = Gaze2ReportGridCentres(config.grid_size)
        self.heat_projection = nn.Linear(2, config.hidden_size)
        self.fixation_projection = nn.Linear(2, config.hidden_size)
        self.order_embedding = nn.Embedding(config.max_fixations, config.hidden_size)
        self.global_node = nn.Parameter(torch.empty(config.hidden_size))
        self.no_gaze = nn.Parameter(torch.empty(config.hidden_size))
        self.empty_slot = nn.Parameter(torch.empty(config.num_fixation_slots, config.hidden_size))
        self.layers = nn.ModuleList([Gaze2ReportGraphLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.region_pooling = Gaze2ReportRegionPooling(config)
        self.post_init()

    @auto_docstring(
        custom_intro="""
        Fuse. A film without fixations is fused as if its graph had no fixation nodes. Raises ValueError for more than
        `max_fixations`.
        """
    )
    def forward(
        self,
        patches: torch.Tensor,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
    ) -> Gaze2ReportFusionOutput:
        r"""
        patches (`torch.Tensor` of shape `(B, P, C)`): patch features.
        fixations (`torch.Tensor` of shape `(B, N, 3)`, *optional*): x, y in [0, 1] of the square and duration in
            seconds; left out, no film has gaze.
        fixation_mask (`torch.Tensor` of shape `(B, N)`, *optional*): true where a fixation stands; the true ones come
            first.
        """
        fixations, fixation_mask = self.complete_gaze(patches, fixations, fixation_mask)
        heat = heat_map(fixations, fixation_mask, self.grid(), self.config.heat_map_sigma)
        states = self.node_states(patches, fixations, fixation_mask, heat)
        graph = self.build_graph(patches, fixations, fixation_mask, heat)
        for layer in self.layers:
            states, attention = layer(states, graph)
        states = self.norm(states)

        num_patches = patches.shape[1]
        global_state, patch_states, fixation_states = states.split((1, num_patches, fixations.shape[1]), dim=1)
        slots, token_fixations = self.fill_slots(fixation_states, fixations, fixation_mask)
        tokens = torch.cat((global_state, self.region_pooling(patch_states, heat.to(states.dtype)), slots), dim=1)
        readout = attention[:, 1 : 1 + num_patches]
        return Gaze2ReportFusionOutput(
            tokens=tokens,
            token_fixations=token_fixations,
            patch_states=patch_states,
            global_state=global_state.squeeze(1),
            readout_attention=readout / readout.sum(-1, keepdim=True).clamp_min(1e-12),
            heat_map=heat,
        )

    def complete_gaze(
        self, patches: torch.Tensor, fixations: torch.Tensor | None, fixation_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fixations and mask as tensors, with harmless values where masked."""
        if fixations is None:
            fixations = torch.zeros(patches.shape[0], 0, 3, device=patches.device)
        if fixations.shape[1] > self.config.max_fixations:
            raise ValueError(
                f"{fixations.shape[1]} fixations were given but fusion_config.max_fixations is "
                f"{self.config.max_fixations}: cut the scanpath, or build the model with a larger max_fixations."
            )
        if fixation_mask is None:
            fixation_mask = torch.ones(fixations.shape[:2], device=patches.device)
        fixation_mask = fixation_mask.bool()
        return torch.where(
            fixation_mask.unsqueeze(-1), fixations, torch.full_like(fixations, 0.5)
        ).float(), fixation_mask

    def node_states(
        self, patches: torch.Tensor, fixations: torch.Tensor, fixation_mask: torch.Tensor, heat: torch.Tensor
    ) -> torch.Tensor:
        """Input of every node, (B, V, D): global, patches, fixations."""
        dtype = self.patch_projection.weight.dtype
        features = self.patch_projection(patches.to(dtype))  # (B, P, D)
        heat_features = torch.stack((heat, torch.log1p(heat.shape[-1] * heat)), dim=-1).to(dtype)
        without_gaze = (~fixation_mask.any(-1)).to(dtype)[:, None, None] * self.no_gaze
        patch_nodes = (
            features + self.position(self.grid()).to(dtype) + self.heat_projection(heat_features) + without_gaze
        )
        global_node = self.global_node + features.mean(1, keepdim=True) + without_gaze

        num_fixations = fixations.shape[1]
        points = fixations[..., :2].to(dtype)
        order = torch.arange(num_fixations, device=fixations.device)
        timing = torch.stack((fixations[..., 2].clamp_min(1e-2).log(), self.order_share(fixation_mask)), dim=-1)
        fixation_nodes = (
            sample_patches(features, points, self.config.grid_size)
            if num_fixations
            else points.new_zeros(*points.shape[:2], features.shape[-1])
        )
        fixation_nodes = fixation_nodes + self.position(points).to(dtype) + self.order_embedding(order)
        fixation_nodes = fixation_nodes + self.fixation_projection(timing.to(dtype))
        return torch.cat((global_node, patch_nodes, fixation_nodes), dim=1)

    def order_share(self, fixation_mask: torch.Tensor) -> torch.Tensor:
        """Place of each fixation in the reading, i / N. Shapes: (B, N) -> (B, N)."""
        count = fixation_mask.sum(-1, keepdim=True).clamp_min(1)
        return torch.arange(fixation_mask.shape[1], device=fixation_mask.device) / count

    @torch.no_grad()
    def build_graph(
        self, patches: torch.Tensor, fixations: torch.Tensor, fixation_mask: torch.Tensor, heat: torch.Tensor
    ) -> Gaze2ReportGraph:
        """Nodes' attributes and every relation between nodes; nothing here has a gradient."""
        config = self.config
        batch_size, num_patches = patches.shape[:2]
        num_fixations = fixations.shape[1]
        device = patches.device
        centres = self.grid()

        attributes = torch.zeros(batch_size, 1 + num_patches + num_fixations, 4, device=device)
        attributes[:, 0, :2] = 0.5
        attributes[:, 1 : 1 + num_patches, :2] = centres
        fixation_attributes = attributes[:, 1 + num_patches :]
        fixation_attributes[..., :2] = fixations[..., :2]
        fixation_attributes[..., 2] = fixations[..., 2].clamp_min(1e-2).log()
        fixation_attributes[..., 3] = self.order_share(fixation_mask)

        # CODEPATH: released checkpoints have fixation nodes; models trained for the ablation do not.
        node_mask = fixation_mask if config.use_gaze_nodes else torch.zeros_like(fixation_mask)
        alive = F.pad(node_mask, (1 + num_patches, 0), value=True)  # (B, V)
        num_nodes = alive.shape[1]
        relations = torch.zeros(batch_size, num_nodes, len(RELATIONS), num_nodes, device=device)
        relation = {name: relations[:, :, index] for index, name in enumerate(RELATIONS)}
        patch = slice(1, 1 + num_patches)
        fixation = slice(1 + num_patches, num_nodes)

        relation["spatial"][:, patch, patch] = self.grid_neighbors(centres)
        relation["feature_neighbor"][:, patch, patch] = self.feature_neighbors(patches, heat)

        weight = self.gaze_weights(fixations, centres)  # (B, N, P)
        linked = (weight > 0).float()
        relation["gaze_weight"][:, fixation, patch] = weight
        relation["gaze_weight"][:, patch, fixation] = weight.transpose(1, 2)
        relation["fixation_patch"][:, fixation, patch] = linked
        relation["fixation_patch"][:, patch, fixation] = linked.transpose(1, 2)

        step = torch.arange(num_fixations, device=device)
        gap = step[:, None] - step[None, :]  # target's order minus source's
        # CODEPATH: released checkpoints link consecutive fixations; models trained for the ablation do not.
        if config.use_temporal_edges:
            relation["next_fixation"][:, fixation, fixation] = (gap == 1).float()
            relation["previous_fixation"][:, fixation, fixation] = (gap == -1).float()
        near = torch.cdist(fixations[..., :2], fixations[..., :2]) < config.revisit_distance
        relation["revisit"][:, fixation, fixation] = (near & (gap.abs() > 1)).float()

        relation["global"][:, 0, 1:] = 1
        relation["global"][:, 1:, 0] = 1
        # A masked fixation has no edge but its own loop: attention over nothing would not be a number.
        both_alive = alive.unsqueeze(-1) & alive.unsqueeze(-2)
        relations *= both_alive.unsqueeze(2)
        relation["self"].diagonal(dim1=-2, dim2=-1).fill_(1)
        return Gaze2ReportGraph(attributes, relations, relations[:, :, 1:].any(2))

    def grid_neighbors(self, centres: torch.Tensor) -> torch.Tensor:
        """Cells that share a side, (P, P)."""
        return (torch.cdist(centres, centres, p=1) * self.config.grid_size < 1.5).float().fill_diagonal_(0)

    def feature_neighbors(self, patches: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
        """The sources that each patch listens to: the nearest by |x_j - x_l|^2 + lambda g_j (g_j - g_l)^2.

        x are unit-norm features, g the min-max heat map, j the target, l the source.
        Shapes: (B, P, C), (B, P) -> (B, P, P).
        """
        features = F.normalize(patches.float(), dim=-1)
        distance = 2 - 2 * features @ features.transpose(1, 2)
        low, high = heat.amin(-1, keepdim=True), heat.amax(-1, keepdim=True)
        gaze = (heat - low) / (high - low).clamp_min(1e-12)
        contrast = (gaze.unsqueeze(2) - gaze.unsqueeze(1)).square()
        distance = distance + self.config.gaze_direction * gaze.unsqueeze(2) * contrast
        distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        nearest = distance.topk(self.config.num_neighbors, dim=-1, largest=False).indices
        return torch.zeros_like(distance).scatter_(-1, nearest, 1.0)

    def gaze_weights(self, fixations: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
        """Weight of each patch for each fixation: Gaussian, within two sigmas, summing to one. Returns (B, N, P)."""
        kernel = fixation_kernel(fixations, centres, self.config.heat_map_sigma)
        top = kernel.topk(min(self.config.max_linked_patches, kernel.shape[-1]), dim=-1)
        values = top.values * (top.values >= math.exp(-2))
        values = values / values.sum(-1, keepdim=True).clamp_min(1e-12)
        return torch.zeros_like(kernel).scatter_(-1, top.indices, values)

    def fill_slots(
        self, states: torch.Tensor, fixations: torch.Tensor, fixation_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The fixations dwelt on longest, in the order of reading; what is left over is empty.

        Shapes: states (B, N, D), fixations (B, N, 3), mask (B, N) -> (B, K, D) and the index of each slot's fixation
        (B, K), -1 where empty.
        """
        batch_size, num_fixations = fixation_mask.shape
        num_slots = self.config.num_fixation_slots
        # CODEPATH: released checkpoints have fixation nodes; models trained for the ablation do not.
        node_mask = fixation_mask if self.config.use_gaze_nodes else torch.zeros_like(fixation_mask)
        dwell = fixations[..., 2].masked_fill(~node_mask, -1.0)
        chosen = dwell.topk(min(num_slots, num_fixations), dim=-1).indices
        chosen = chosen.masked_fill(~node_mask.gather(-1, chosen), num_fixations).sort(-1).values
        chosen = F.pad(chosen, (0, num_slots - chosen.shape[1]), value=num_fixations)
        filled = chosen < num_fixations
        padded = F.pad(states, (0, 0, 0, 1))  # one more row, so that an empty slot has something to point at
        slots = padded.gather(1, chosen.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        empty = self.empty_slot.to(slots.dtype).expand(batch_size, -1, -1)
        return torch.where(filled.unsqueeze(-1), slots, empty), chosen.masked_fill(~filled, -1)

    @torch.no_grad()
    def to_pyg(
        self,
        patches: torch.Tensor,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
    ) -> list[Data]:
        """Each film's graph as a `torch_geometric.data.Data` object, without masked fixations.

        Returns:
            One object per film: `x` (V, D) node inputs, `pos` (V, 2), `node_type` (V,) index into `NODE_TYPES`,
            `edge_index` (2, E) source and target, `edge_attr` (E, 14) in the order of `EDGE_ATTRIBUTES`.
        """
        fixations, fixation_mask = self.complete_gaze(patches, fixations, fixation_mask)
        heat = heat_map(fixations, fixation_mask, self.grid(), self.config.heat_map_sigma)
        states = self.node_states(patches, fixations, fixation_mask, heat)
        graph = self.build_graph(patches, fixations, fixation_mask, heat)
        num_patches = patches.shape[1]
        node_type = torch.tensor([0] + [1] * num_patches + [2] * fixations.shape[1], device=patches.device)
        films = []
        for film in range(patches.shape[0]):
            alone = slice(film, film + 1)
            edge_index, edge_attr = Gaze2ReportGraph(
                graph.attributes[alone], graph.relations[alone], graph.adjacency[alone]
            ).edges()
            data = Data(
                x=states[film],
                pos=graph.attributes[film, :, :2],
                node_type=node_type,
                edge_index=edge_index,
                edge_attr=edge_attr,
            )
            films.append(data.subgraph(F.pad(fixation_mask[film], (1 + num_patches, 0), value=True)))
        return films


__all__ = [
    "Gaze2ReportFusionPreTrainedModel",
    "Gaze2ReportFusionModel",
    "Gaze2ReportFusionOutput",
    "Gaze2ReportGraph",
]
