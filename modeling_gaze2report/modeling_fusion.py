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

`graph_implementation="pyg"` runs that layer on the list of edges. `"dense"`, the default, runs the same weights on
tables of static shape: every node has a row of sources, padded to the longest row of its kind. It rests on two
observations: q_i . W_e e_ij = (W_e^T q_i) . e_ij and sum_j a_ij W_e e_ij = W_e sum_j a_ij e_ij, so that no key and no
value is ever copied to an edge. The products q_i . k_j are made for all pairs, which is faster than for chosen ones.

The graph, its edges and the readout are ours; adding the heat map to the patches follows GazeGNN (WACV 2024) and the
gaze-directed neighbours follow GD-ViG (MICCAI 2024, arXiv 2406.14050).
"""

import math
from collections.abc import Sequence
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
    without_autocast,
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
# Products of pairs of nodes that are held at once: 16 MB of main memory, which the allocator keeps for the next ones.
PAIRS_AT_ONCE = 2**22
PAIRS_AT_ONCE_ON_ACCELERATORS = 2**27


@dataclass
class Gaze2ReportNeighbors:
    """Whom some of the nodes listen to, one row of sources per node.

    Attributes:
        source (`torch.Tensor` of shape `(B, R, S)`): index of each source among all nodes.
        mask (`torch.Tensor` of shape `(B, R, S)`): true where there is an edge; a row is padded at will elsewhere.
        edge_attr (`torch.Tensor` of shape `(B, R, S, 14)`): the numbers of `EDGE_ATTRIBUTES`.
    """

    source: torch.Tensor
    mask: torch.Tensor
    edge_attr: torch.Tensor


@dataclass
class Gaze2ReportGraph:
    """The graphs of a batch of films; nodes stand in the order global, patches, fixations.

    Attributes:
        neighbors (`tuple[Gaze2ReportNeighbors]`): rows of the nodes in their order, in as many tables as rows differ in
            length: the global node, the patches, the fixations.
        num_nodes (`int`): nodes of one film.
    """

    neighbors: tuple[Gaze2ReportNeighbors, ...]
    num_nodes: int

    def of_film(self, film: int) -> "Gaze2ReportGraph":
        alone = slice(film, film + 1)
        return Gaze2ReportGraph(
            tuple(
                Gaze2ReportNeighbors(table.source[alone], table.mask[alone], table.edge_attr[alone])
                for table in self.neighbors
            ),
            self.num_nodes,
        )

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same graphs as one list of edges over nodes numbered through the batch.

        Returns:
            edge_index (2, E) long, source and target; edge_attr (E, 14), the numbers of `EDGE_ATTRIBUTES`.
        """
        indices, attributes, first = [], [], 0
        for table in self.neighbors:
            film, row, slot = table.mask.nonzero(as_tuple=True)
            indices.append(film * self.num_nodes + torch.stack((table.source[film, row, slot], first + row)))
            attributes.append(table.edge_attr[film, row, slot])
            first += table.source.shape[1]
        return torch.cat(indices, dim=1), torch.cat(attributes)


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
    fixation_states (`torch.Tensor` of shape `(B, N, D)`): fixation nodes; without meaning where masked.
    global_state (`torch.Tensor` of shape `(B, D)`): global node.
    readout_attention (`torch.Tensor` of shape `(B, P)`): attention of the global node over the patches in the last
        layer, mean over heads, summing to one.
    heat_map (`torch.Tensor` of shape `(B, P)`): where dwell time fell, summing to one.
    """

    tokens: torch.FloatTensor | None = None
    token_fixations: torch.LongTensor | None = None
    patch_states: torch.FloatTensor | None = None
    fixation_states: torch.FloatTensor | None = None
    global_state: torch.FloatTensor | None = None
    readout_attention: torch.FloatTensor | None = None
    heat_map: torch.FloatTensor | None = None


def empty_relations(source: torch.Tensor, mask: torch.Tensor) -> tuple[Gaze2ReportNeighbors, dict[str, torch.Tensor]]:
    """A table without any numbers, and a view (B, R, S) of the place of each relation, to be filled."""
    edge_attr = torch.zeros(*source.shape, len(EDGE_ATTRIBUTES), device=source.device)
    views = edge_attr[..., len(NODE_DIFFERENCES) :].unbind(-1)
    return Gaze2ReportNeighbors(source, mask, edge_attr), dict(zip(RELATIONS, views, strict=True))


class NeighborAttention(torch.autograd.Function):
    """What nodes hear of their sources, how much of each number of the edges, and whom the global node listens to.

        alpha_is = softmax_s((q_i . k_s + c_i . e_is) / sqrt(d))    heard_i = sum_s alpha_is v_s
                                                                    numbers_i = sum_s alpha_is e_is

    Head by head; c_i = W_e^T q_i. No key and no value is copied to an edge, neither here nor for the gradients, which
    are products of matrices over pairs of nodes. Pairs are made for some rows at a time: memory that is asked for anew
    costs a processor more than the products that fill it. The edges' own numbers have no gradient.

    Shapes: projected (B, V, 3 * D + H * E), the queries, keys, values and c of all heads; num_heads H; then source,
    mask (B, R, S) and edge_attr (B, R, S, E) of each table, the first of which holds the row of the global node, its
    sources being all nodes in their order -> heard (B, V, H, d), numbers (B, V, H, E), attention of the global node
    (B, H, V).
    """

    @staticmethod
    def forward(ctx, projected: torch.Tensor, num_heads: int, *tables: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch_size, num_nodes = projected.shape[:2]
        queries, keys, values, care = parts_of(projected, num_heads, tables[2].shape[-1])
        head_size = queries.shape[-1]
        film = torch.arange(batch_size, device=projected.device).view(-1, 1, 1, 1)
        head = torch.arange(num_heads, device=projected.device).unsqueeze(-1)
        first_row = (film * num_heads + head) * num_nodes  # (B, 1, H, 1) of each head's values, as rows of one table
        heard, numbers, alphas = [], [], []
        for rows, source, mask, edge_attr in blocks_of(tables, batch_size * num_heads * num_nodes):
            scores = chosen(torch.bmm(queries[:, rows], keys.transpose(1, 2)), source, num_heads)
            scores = (scores + care[:, rows] @ edge_attr.transpose(-1, -2)) / math.sqrt(head_size)  # (B, R, H, S)
            alpha = scores.masked_fill(~mask.unsqueeze(2), torch.finfo(scores.dtype).min).softmax(-1)
            bags = first_row + source.unsqueeze(2)
            heard.append(
                F.embedding_bag(
                    bags.flatten(0, 2),
                    values.flatten(0, 1),
                    mode="sum",
                    per_sample_weights=alpha.flatten(0, 2),
                ).view(*alpha.shape[:3], head_size)
            )
            numbers.append(alpha @ edge_attr)
            alphas.append(alpha)
        ctx.num_heads = num_heads
        ctx.num_alphas = len(alphas)
        ctx.save_for_backward(projected, *alphas, *tables)
        return torch.cat(heard, dim=1), torch.cat(numbers, dim=1), alphas[0].squeeze(1).clone()

    @staticmethod
    def backward(ctx, of_heard: torch.Tensor, of_numbers: torch.Tensor, of_attention: torch.Tensor):
        projected, *saved = ctx.saved_tensors
        alphas, tables, num_heads = saved[: ctx.num_alphas], saved[ctx.num_alphas :], ctx.num_heads
        batch_size, num_nodes = projected.shape[:2]
        queries, keys, values, _ = parts_of(projected, num_heads, tables[2].shape[-1])
        head_size = queries.shape[-1]
        of_heard = by_head(of_heard.flatten(2), num_heads)  # (B * H, V, d)
        of_queries, of_care = [], []
        of_keys, of_values = torch.zeros_like(keys), torch.zeros_like(values)
        blocks = blocks_of(tables, batch_size * num_heads * num_nodes)
        for (rows, source, _, edge_attr), alpha in zip(blocks, alphas, strict=True):
            pairs = torch.bmm(of_heard[:, rows], values.transpose(1, 2))  # (B * H, R, V)
            of_alpha = chosen(pairs, source, num_heads) + of_numbers[:, rows] @ edge_attr.transpose(-1, -2)
            if rows.start == 0:
                of_alpha = of_alpha + of_attention.unsqueeze(1)
            of_scores = alpha * (of_alpha - (alpha * of_alpha).sum(-1, keepdim=True)) / math.sqrt(head_size)
            of_care.append(of_scores @ edge_attr)
            spread_out(alpha, source, pairs)
            of_values = torch.baddbmm(of_values, pairs.transpose(1, 2), of_heard[:, rows])
            spread_out(of_scores, source, pairs)
            of_keys = torch.baddbmm(of_keys, pairs.transpose(1, 2), queries[:, rows])
            of_queries.append(pairs @ keys)
        parts = (torch.cat(of_queries, dim=1), of_keys, of_values)
        merged = [part.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2) for part in parts]
        return torch.cat((*merged, torch.cat(of_care, dim=1).flatten(2)), dim=-1), None, *(None for _ in tables)


def by_head(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, V, H * d) -> (B * H, V, d), in this order in memory."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2).flatten(0, 1)


def parts_of(projected: torch.Tensor, num_heads: int, num_numbers: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values, each (B * H, V, d), and how much each query cares for each number, (B, V, H, E)."""
    width = (projected.shape[-1] - num_heads * num_numbers) // 3
    *three, care = projected.split((width, width, width, num_heads * num_numbers), dim=-1)
    return *(by_head(part, num_heads) for part in three), care.unflatten(-1, (num_heads, -1))


def blocks_of(tables: Sequence[torch.Tensor], pairs_per_row: int) -> list[tuple[slice, *tuple[torch.Tensor, ...]]]:
    """The tables, cut into so few rows that their pairs fit into the memory meant for them, and each one's place."""
    limit = PAIRS_AT_ONCE if tables[0].device.type == "cpu" else PAIRS_AT_ONCE_ON_ACCELERATORS
    blocks, first = [], 0
    for table in zip(*(tables[part::3] for part in range(3)), strict=True):
        for cut in zip(*(part.split(max(1, limit // pairs_per_row), dim=1) for part in table), strict=True):
            rows = slice(first, first + cut[0].shape[1])
            blocks.append((rows, *cut))
            first = rows.stop
    return blocks


def chosen(pairs: torch.Tensor, source: torch.Tensor, num_heads: int) -> torch.Tensor:
    """What belongs to the edges: (B * H, R, V), (B, R, S) -> (B, R, H, S)."""
    index = source.unsqueeze(1).expand(-1, num_heads, -1, -1)
    return pairs.unflatten(0, (-1, num_heads)).gather(-1, index).transpose(1, 2)


def spread_out(of_edges: torch.Tensor, source: torch.Tensor, pairs: torch.Tensor) -> None:
    """The transpose of `chosen`, into the memory of `pairs`, which becomes zero where no edge is."""
    num_heads = of_edges.shape[2]
    index = source.unsqueeze(1).expand(-1, num_heads, -1, -1)
    pairs.zero_().unflatten(0, (-1, num_heads)).scatter_add_(-1, index, of_edges.transpose(1, 2))


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
        conv = self.conv
        # W_e of all heads as one matrix, which spares transposing.
        edge_weight = torch.block_diag(*conv.lin_edge.weight.unflatten(0, (self.num_heads, -1)))  # (D, H * 14)
        linears = (conv.lin_query, conv.lin_key, conv.lin_value)
        # How much each query cares for each of the 14 numbers, W_e^T q_i, is linear in the state as well.
        weight = torch.cat((*(linear.weight for linear in linears), edge_weight.T @ conv.lin_query.weight))
        bias = torch.cat((*(linear.bias for linear in linears), edge_weight.T @ conv.lin_query.bias))
        tables = [
            part for table in graph.neighbors for part in (table.source, table.mask, table.edge_attr.to(states.dtype))
        ]
        heard, numbers, attention = NeighborAttention.apply(F.linear(states, weight, bias), self.num_heads, *tables)
        return heard.flatten(2) + numbers.flatten(2) @ edge_weight.T, attention.mean(1)


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


class Gaze2ReportGridNeighbors(nn.Module):
    """The cells that share a side with each cell, and which of the four there are. Returns (P, 4) long, (P, 4) bool."""

    def __init__(self, grid_size: int):
        super().__init__()
        self.grid_size = grid_size
        source, mask = self.compute()
        self.source = nn.Buffer(source, persistent=False)
        self.mask = nn.Buffer(mask, persistent=False)

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        cell = torch.arange(self.grid_size**2).unsqueeze(1)
        row = cell // self.grid_size + torch.tensor([-1, 0, 0, 1])
        column = cell % self.grid_size + torch.tensor([0, -1, 1, 0])
        mask = (row >= 0) & (row < self.grid_size) & (column >= 0) & (column < self.grid_size)
        return torch.where(mask, row * self.grid_size + column, cell), mask

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.source, self.mask


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
        elif isinstance(module, Gaze2ReportGridNeighbors):
            for buffer, values in zip((module.source, module.mask), module.compute(), strict=True):
                init.copy_(buffer, values)
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
        self.grid_neighbors = Gaze2ReportGridNeighbors(config.grid_size)
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

    @without_autocast
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
        expected_heat_map: torch.Tensor | None = None,
    ) -> Gaze2ReportFusionOutput:
        r"""
        patches (`torch.Tensor` of shape `(B, P, C)`): patch features.
        fixations (`torch.Tensor` of shape `(B, N, 3)`, *optional*): x, y in [0, 1] of the square and duration in
            seconds; left out, no film has gaze.
        fixation_mask (`torch.Tensor` of shape `(B, N)`, *optional*): true where a fixation stands; the true ones come
            first.
        expected_heat_map (`torch.Tensor` of shape `(B, P)`, *optional*): a map that lends its gradient to the
            fixations' own; no value changes by it.
        """
        fixations, fixation_mask = self.complete_gaze(patches, fixations, fixation_mask)
        heat = heat_map(fixations, fixation_mask, self.grid(), self.config.heat_map_sigma)
        if expected_heat_map is not None:
            heat = heat + (expected_heat_map - expected_heat_map.detach())
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
            fixation_states=fixation_states,
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
        """Every node's sources and the numbers on the edges from them; nothing here has a gradient."""
        num_patches, num_fixations = patches.shape[1], fixations.shape[1]
        # CODEPATH: released checkpoints have fixation nodes; models trained for the ablation do not.
        alive = fixation_mask if self.config.use_gaze_nodes else torch.zeros_like(fixation_mask)  # (B, N)
        linked, weight = self.linked_patches(fixations)  # (B, N, L)
        weight = weight * alive.unsqueeze(-1)
        attributes = self.node_attributes(fixations, fixation_mask)
        tables = (
            self.neighbors_of_global(alive, num_patches),
            self.neighbors_of_patches(self.feature_neighbors(patches, heat), linked, weight),
        )
        if num_fixations:
            tables += (self.neighbors_of_fixations(fixations, alive, linked, weight),)
        first = 0
        for table in tables:
            here = attributes[:, first : first + table.source.shape[1]].unsqueeze(2)
            first += table.source.shape[1]
            film = torch.arange(patches.shape[0], device=patches.device).view(-1, 1, 1)
            difference = attributes[film, table.source] - here  # (B, R, S, 4)
            table.edge_attr[..., :2] = difference[..., :2]
            table.edge_attr[..., 2] = difference[..., 0].square() + difference[..., 1].square()
            table.edge_attr[..., 3:5] = difference[..., 2:]
        return Gaze2ReportGraph(tables, attributes.shape[1])

    def node_attributes(self, fixations: torch.Tensor, fixation_mask: torch.Tensor) -> torch.Tensor:
        """What edges compare, (B, V, 4): x, y, log duration (0 but for fixations) and order / N (likewise)."""
        centres = self.grid()
        num_patches = centres.shape[0]
        attributes = centres.new_zeros(fixations.shape[0], 1 + num_patches + fixations.shape[1], 4)
        attributes[:, 0, :2] = 0.5
        attributes[:, 1 : 1 + num_patches, :2] = centres
        of_fixations = attributes[:, 1 + num_patches :]
        of_fixations[..., :2] = fixations[..., :2]
        of_fixations[..., 2] = fixations[..., 2].clamp_min(1e-2).log()
        of_fixations[..., 3] = self.order_share(fixation_mask)
        return attributes

    def neighbors_of_global(self, alive: torch.Tensor, num_patches: int) -> Gaze2ReportNeighbors:
        """All nodes, itself first."""
        mask = F.pad(alive, (1 + num_patches, 0), value=True).unsqueeze(1)  # (B, 1, V)
        source = torch.arange(mask.shape[-1], device=alive.device).expand(mask.shape)
        table, relation = empty_relations(source, mask)
        relation["self"][..., 0] = 1
        relation["global"][..., 1:] = 1
        return table

    def neighbors_of_patches(
        self, nearest: torch.Tensor, linked: torch.Tensor, weight: torch.Tensor
    ) -> Gaze2ReportNeighbors:
        """Itself, the global node, the cells at its sides, the feature neighbours, the fixations."""
        batch_size, num_patches, num_nearest = nearest.shape
        beside, is_there = self.grid_neighbors()  # (P, 4)
        own = torch.arange(num_patches, device=nearest.device).unsqueeze(-1)
        num_fixations = weight.shape[1]
        fixations = torch.arange(num_fixations, device=nearest.device) + num_patches
        # A patch that is near both on the film and in features is one source, and stands among the latter.
        same = (beside.unsqueeze(-1) == nearest.unsqueeze(2)) & is_there.unsqueeze(-1)  # (B, P, 4, k)
        # Weight of each fixation for each patch, from the patches of each fixation.
        weight = weight.new_zeros(batch_size, num_fixations, num_patches).scatter(-1, linked, weight).transpose(1, 2)
        source = torch.cat((own, own.new_full(own.shape, -1), beside), dim=-1).expand(batch_size, -1, -1)
        source = torch.cat((source, nearest, fixations.expand(batch_size, num_patches, -1)), dim=-1) + 1
        always = torch.ones_like(nearest, dtype=torch.bool)
        mask = torch.cat((always[..., :2], is_there & ~same.any(-1), always, weight > 0), dim=-1)
        table, relation = empty_relations(source, mask)
        relation["self"][..., 0] = 1
        relation["global"][..., 1] = 1
        relation["spatial"][..., 2:6] = 1
        relation["spatial"][..., 6 : 6 + num_nearest] = same.any(2).to(weight.dtype)
        relation["feature_neighbor"][..., 6 : 6 + num_nearest] = 1
        relation["gaze_weight"][..., 6 + num_nearest :] = weight
        relation["fixation_patch"][..., 6 + num_nearest :] = 1
        return table

    def neighbors_of_fixations(
        self, fixations: torch.Tensor, alive: torch.Tensor, linked: torch.Tensor, weight: torch.Tensor
    ) -> Gaze2ReportNeighbors:
        """The global node, all fixations, the patches that it is linked to."""
        batch_size, num_fixations = alive.shape
        step = torch.arange(num_fixations, device=fixations.device)
        gap = step[:, None] - step[None, :]  # target's order minus source's
        near = torch.cdist(fixations[..., :2], fixations[..., :2]) < self.config.revisit_distance
        revisit = near & (gap.abs() > 1)  # (B, N, N)
        # CODEPATH: released checkpoints link consecutive fixations; models trained for the ablation do not.
        follows = (gap.abs() == 1) & self.config.use_temporal_edges
        both_alive = alive.unsqueeze(-1) & alive.unsqueeze(-2)
        # A masked fixation has no edge but its own loop: attention over nothing would not be a number.
        among = ((revisit | follows) & both_alive) | (gap == 0)
        others = (step + 1 + self.grid().shape[0]).expand(batch_size, num_fixations, -1)
        source = torch.cat((torch.zeros_like(linked[..., :1]), others, linked + 1), dim=-1)
        mask = torch.cat((alive.unsqueeze(-1), among, weight > 0), dim=-1)
        table, relation = empty_relations(source, mask)
        relation["global"][..., 0] = 1
        fixation = slice(1, 1 + num_fixations)
        relation["self"][..., fixation] = (gap == 0).float()
        relation["next_fixation"][..., fixation] = ((gap == 1) & follows).float()
        relation["previous_fixation"][..., fixation] = ((gap == -1) & follows).float()
        relation["revisit"][..., fixation] = revisit.float()
        relation["gaze_weight"][..., 1 + num_fixations :] = weight
        relation["fixation_patch"][..., 1 + num_fixations :] = 1
        return table

    def feature_neighbors(self, patches: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
        """The patches that each patch listens to: the nearest by |x_j - x_l|^2 + lambda g_j (g_j - g_l)^2.

        x are unit-norm features, g the min-max heat map, j the target, l the source. What depends on the target alone
        does not change the order, which leaves one product of matrices.
        Shapes: (B, P, C), (B, P) -> (B, P, k).
        """
        features = F.normalize(patches.float(), dim=-1)
        low, high = heat.amin(-1, keepdim=True), heat.amax(-1, keepdim=True)
        gaze = ((heat - low) / (high - low).clamp_min(1e-12)).unsqueeze(-1)  # (B, P, 1)
        target = torch.cat((2 * features, self.config.gaze_direction * torch.cat((2 * gaze**2, -gaze), -1)), dim=-1)
        source = torch.cat((features, gaze, gaze**2), dim=-1)
        nearness = target @ source.transpose(1, 2)  # (B, P, P)
        nearness.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
        return nearness.topk(self.config.num_neighbors, dim=-1).indices

    def linked_patches(self, fixations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The patches of each fixation, nearest first, and their weights: Gaussian, within two sigmas, summing to one.

        Shapes: (B, N, 3) -> (B, N, L) long and (B, N, L).
        """
        centres = self.grid()
        kernel = fixation_kernel(fixations, centres, self.config.heat_map_sigma)
        values, patches = kernel.topk(min(self.config.max_linked_patches, centres.shape[0]), dim=-1)
        values = values * (values >= math.exp(-2))
        return patches, values / values.sum(-1, keepdim=True).clamp_min(1e-12)

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
        attributes = self.node_attributes(fixations, fixation_mask)
        num_patches = patches.shape[1]
        node_type = torch.tensor([0] + [1] * num_patches + [2] * fixations.shape[1], device=patches.device)
        films = []
        for film in range(patches.shape[0]):
            edge_index, edge_attr = graph.of_film(film).edges()
            data = Data(
                x=states[film],
                pos=attributes[film, :, :2],
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
