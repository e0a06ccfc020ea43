import math

import pytest
import torch

from modeling_gaze2report import modeling_fusion
from modeling_gaze2report.configuration_gaze2report import Gaze2ReportFusionConfig
from modeling_gaze2report.modeling_fusion import (
    EDGE_ATTRIBUTES,
    NODE_TYPES,
    RELATIONS,
    Gaze2ReportFusionModel,
    Gaze2ReportGraph,
    Gaze2ReportNeighbors,
    NeighborAttention,
)
from modeling_gaze2report.modeling_grid import cell_centres, cell_of, heat_map, sample_patches

GRID = 4
PATCHES = GRID**2
CHANNELS = 8


def make_model(seed=0, **values):
    torch.manual_seed(seed)
    defaults = {
        "vision_hidden_size": CHANNELS,
        "grid_size": GRID,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "max_fixations": 12,
        "region_grid_size": 2,
        "num_fixation_slots": 3,
        "num_neighbors": 3,
        "heat_map_sigma": 0.2,
        "revisit_distance": 0.2,
    }
    model = Gaze2ReportFusionModel(Gaze2ReportFusionConfig(**defaults | values)).eval()
    with torch.no_grad():  # biases and edge weights that show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def twin_of(model, **values):
    """The same weights under another configuration."""
    twin = make_model(**{**model.config.to_diff_dict(), **values})
    twin.load_state_dict(model.state_dict())
    return twin


def make_films(batch_size=3, num_fixations=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch_size, PATCHES, CHANNELS, generator=generator)
    return patches, torch.rand(batch_size, num_fixations, 3, generator=generator)


def mask_of(*lengths, num_fixations=6):
    return torch.arange(num_fixations) < torch.tensor(lengths).unsqueeze(1)


# -- dense and sparse -------------------------------------------------------------------------------------------------

GAZES = {
    "no gaze tensor": (None, None),
    "empty gaze": (6, (0, 0, 0)),
    "some gaze": (6, (0, 4, 6)),
    "full gaze": (12, (12, 12, 12)),
}


def gaze_of(kind, seed):
    num_fixations, lengths = GAZES[kind]
    patches, fixations = make_films(3, num_fixations or 0, seed)
    if num_fixations is None:
        return patches, None, None
    return patches, fixations, mask_of(*lengths, num_fixations=num_fixations)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", GAZES)
def test_dense_equals_pyg(kind, seed):
    dense = make_model(seed)
    sparse = twin_of(dense, graph_implementation="pyg")
    film = gaze_of(kind, seed)

    expected, actual = sparse(*film), dense(*film)

    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", GAZES)
def test_gradients_of_dense_equal_those_of_pyg(kind):
    dense = make_model()
    sparse = twin_of(dense, graph_implementation="pyg")
    patches, fixations, mask = gaze_of(kind, seed=3)

    def gradients(model):
        leaf = patches.clone().requires_grad_()
        fused = model(leaf, fixations, mask)
        loss = fused.tokens.square().mean() + fused.readout_attention.square().sum(-1).mean()
        wanted = [leaf, *model.parameters()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        return [torch.zeros_like(w) if f is None else f for w, f in zip(wanted, found, strict=True)]

    for actual, expected in zip(gradients(dense), gradients(sparse), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def random_graph(num_nodes=7, batch_size=2, seed=0):
    """Any graph at all: random numbers on the edges, edges with probability one half, loops everywhere; the global node
    listens to all. One table of rows per kind of node: one global, four patches, the rest fixations."""
    generator = torch.Generator().manual_seed(seed)
    adjacency = torch.rand(batch_size, num_nodes, num_nodes, generator=generator) < 0.5
    adjacency |= torch.eye(num_nodes, dtype=torch.bool)
    adjacency[:, 0] = True
    edge_attr = torch.rand(batch_size, num_nodes, num_nodes, len(EDGE_ATTRIBUTES), generator=generator)
    states = torch.randn(batch_size, num_nodes, 16, generator=generator)
    return states, graph_of(adjacency, edge_attr)


def graph_of(adjacency, edge_attr):
    """Tables from whole matrices: adjacency (B, V, V), target first, and numbers (B, V, V, 14)."""
    source = torch.arange(adjacency.shape[1]).expand(adjacency.shape)
    rows = (slice(0, 1), slice(1, 5), slice(5, None))
    return Gaze2ReportGraph(
        tuple(Gaze2ReportNeighbors(source[:, r], adjacency[:, r], edge_attr[:, r].clone()) for r in rows),
        num_nodes=adjacency.shape[1],
    )


def message_by_the_equation(convolution, states, graph, num_heads):
    """The operator edge by edge, from the equation alone. One film: states (V, D) -> (V, D)."""

    def project(linear, vector):
        out = linear.weight @ vector
        return (out if linear.bias is None else out + linear.bias).view(num_heads, -1)

    edge_index, edge_attr = graph.edges()
    messages = []
    for target in range(states.shape[0]):
        query = project(convolution.lin_query, states[target])
        scores, contents = [], []
        for (source, listener), numbers in zip(edge_index.T.tolist(), edge_attr, strict=True):
            if listener != target:
                continue
            edge = project(convolution.lin_edge, numbers)
            key = project(convolution.lin_key, states[source]) + edge
            scores.append((query * key).sum(-1) / math.sqrt(query.shape[-1]))
            contents.append(project(convolution.lin_value, states[source]) + edge)
        alpha = torch.stack(scores).softmax(0)  # (sources, heads)
        messages.append((alpha.unsqueeze(-1) * torch.stack(contents)).sum(0).flatten())
    return torch.stack(messages)


@pytest.mark.parametrize("graph_implementation", ["dense", "pyg"])
@torch.no_grad()
def test_both_implementations_follow_the_equation(graph_implementation):
    attention = make_model(graph_implementation=graph_implementation).layers[0].attention
    states, graph = random_graph(batch_size=1)

    actual, _ = attention(states, graph)

    expected = attention.output(message_by_the_equation(attention.conv, states[0], graph, num_heads=2))
    torch.testing.assert_close(actual[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graph_implementation", ["dense", "pyg"])
@torch.no_grad()
def test_order_of_nodes_permutes_the_result_and_nothing_else(graph_implementation):
    layer = make_model(graph_implementation=graph_implementation).layers[0]
    states, graph = random_graph()
    order = torch.tensor([0, 4, 2, 6, 1, 5, 3])  # the global node stays in front: its attention is read there
    adjacency = torch.cat([table.mask for table in graph.neighbors], dim=1)
    edge_attr = torch.cat([table.edge_attr for table in graph.neighbors], dim=1)
    shuffled = graph_of(adjacency[:, order][..., order], edge_attr[:, order][:, :, order])

    expected, attention = layer(states, graph)
    actual, shuffled_attention = layer(states[:, order], shuffled)

    torch.testing.assert_close(actual, expected[:, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shuffled_attention, attention[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph_implementation", ["dense", "pyg"])
@torch.no_grad()
def test_a_batch_is_a_disjoint_union_of_its_films(graph_implementation):
    model = make_model(graph_implementation=graph_implementation)
    patches, fixations = make_films()
    mask = mask_of(0, 4, 6)

    together = model(patches, fixations, mask)

    for film, length in enumerate((0, 4, 6)):
        alone = model(patches[film : film + 1], fixations[film : film + 1, :length])
        for name in together:
            # What stands for a masked fixation has no meaning, and alone the film has none.
            found = together[name][film][:length] if name == "fixation_states" else together[name][film]
            torch.testing.assert_close(found, alone[name][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graph_implementation", ["dense", "pyg"])
@torch.no_grad()
def test_a_node_with_no_edge_but_its_loop_hears_itself_alone(graph_implementation):
    attention = make_model(graph_implementation=graph_implementation).layers[0].attention
    states, graph = random_graph(batch_size=1)
    fixations = graph.neighbors[2]
    fixations.mask[0, 0] = torch.arange(7) == 5

    message, _ = attention(states, graph)

    loop = fixations.edge_attr[0, 0, 5]
    conv = attention.conv
    expected = attention.output(conv.lin_value(states[0, 5]) + conv.lin_edge(loop))
    torch.testing.assert_close(message[0, 5], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_silent_attention_leaves_the_residual():
    layer = make_model().layers[0]
    for linear in (layer.attention.output, layer.mlp.fc2):
        linear.weight.zero_()
        linear.bias.zero_()
    states, graph = random_graph()

    assert torch.equal(layer(states, graph)[0], states)


@pytest.mark.parametrize("rows_at_once", [1, 100])
def test_gradients_of_the_attention_are_numerically_right(rows_at_once, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    batch_size, num_nodes, num_heads, head_size, num_numbers = 2, 5, 2, 3, 4
    monkeypatch.setattr(modeling_fusion, "PAIRS_AT_ONCE", rows_at_once * batch_size * num_heads * num_nodes)
    width = 3 * num_heads * head_size + num_heads * num_numbers
    projected = torch.randn(batch_size, num_nodes, width, generator=generator, dtype=torch.double, requires_grad=True)
    tables = []
    # The global node hears all; the others' rows have masked sources, and sources that stand twice.
    for source in (torch.arange(5).expand(2, 1, -1), torch.randint(5, (2, 4, 3), generator=generator)):
        mask = torch.rand(source.shape, generator=generator) < 0.7
        mask[..., 0] = True
        edge_attr = torch.randn(*source.shape, num_numbers, generator=generator, dtype=torch.double)
        tables += [source, mask, edge_attr]

    assert torch.autograd.gradcheck(lambda p: NeighborAttention.apply(p, num_heads, *tables), projected)


@torch.no_grad()
def test_rows_in_blocks_give_the_same(monkeypatch):
    model, (patches, fixations) = make_model(), make_films()
    expected = model(patches, fixations)

    monkeypatch.setattr(modeling_fusion, "PAIRS_AT_ONCE", 1)  # one row at a time
    actual = model(patches, fixations)

    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("with_gaze", [False, True])
def test_the_graph_compiles_as_one_piece_to_the_same_result(with_gaze):
    model = make_model()
    patches, fixations = make_films()
    film = (patches, fixations, mask_of(0, 4, 6)) if with_gaze else (patches,)
    expected = model(*film)

    actual = torch.compile(model, backend="aot_eager", fullgraph=True)(*film)

    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-5)
    expected.tokens.square().sum().backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    actual.tokens.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in eager:
            torch.testing.assert_close(parameter.grad, eager[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_no_tensor_holds_every_pair_with_its_numbers_or_every_edge_with_the_width():
    model = make_model(grid_size=12, hidden_size=64)
    patches = torch.randn(1, 144, CHANNELS)
    fixations = torch.rand(1, 6, 3)
    num_nodes, heads = 1 + 144 + 6, 2
    edges = sum(
        table.source[0].numel()
        for table in model.build_graph(patches, fixations, mask_of(6), torch.rand(1, 144)).neighbors
    )
    largest = LargestTensor()

    with largest:
        model(patches, fixations)

    assert largest.numel == heads * 144 * num_nodes  # the scores of the patches' rows
    assert largest.numel < min(num_nodes**2 * len(EDGE_ATTRIBUTES), edges * 64)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Watches every operation for the number of elements of the largest tensor that one makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                # A view that repeats elements takes no memory for them.
                self.numel = max(self.numel, tensor.numel() if tensor.is_contiguous() else 0)
        return result


# -- gaze in the graph ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_empty_gaze_equals_a_graph_without_fixation_nodes():
    model = make_model()
    patches, fixations = make_films()

    empty, without = model(patches, fixations, mask_of(0, 0, 0)), model(patches)

    assert without.fixation_states.shape[1] == 0
    for name in set(empty) - {"fixation_states"}:
        torch.testing.assert_close(empty[name], without[name], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_values_of_masked_fixations_do_not_matter():
    model = make_model()
    patches, fixations = make_films()
    mask = mask_of(0, 4, 6)
    garbage = fixations.masked_fill(~mask.unsqueeze(-1), torch.nan)

    clean, dirty = model(patches, fixations, mask), model(patches, garbage, mask)

    for name in clean:
        assert torch.equal(clean[name], dirty[name])


@torch.no_grad()
def test_gaze_changes_the_tokens():
    model = make_model()
    patches, fixations = make_films()

    assert (model(patches, fixations).tokens - model(patches).tokens).abs().max() > 1e-2


@torch.no_grad()
def test_order_of_reading_changes_the_tokens():
    model = make_model()
    patches, fixations = make_films()

    forwards, backwards = model(patches, fixations), model(patches, fixations.flip(1))

    assert (forwards.tokens[:, 0] - backwards.tokens[:, 0]).abs().max() > 1e-3


def test_heat_map_by_hand():
    # Two fixations of 1 s and 3 s on the centres of two cells that share a side of 1/2; sigma 1/2 of the square.
    centres = cell_centres(2)
    fixations = torch.tensor([[[0.25, 0.25, 1.0], [0.75, 0.25, 3.0], [0.9, 0.9, 5.0]]])
    mask = torch.tensor([[True, True, False]])
    near, far = math.exp(-0.25 / 0.5), math.exp(-0.5 / 0.5)  # side and diagonal neighbours: |c - p|^2 = 1/4 and 1/2
    raw = torch.tensor([1 + 3 * near, near + 3, near + 3 * far, far + 3 * near])

    heat = heat_map(fixations, mask, centres, sigma=0.5)

    torch.testing.assert_close(heat[0], raw / raw.sum())


def test_heat_map_of_no_gaze_is_uniform():
    heat = heat_map(torch.rand(2, 3, 3), torch.zeros(2, 3, dtype=torch.bool), cell_centres(2), sigma=0.1)

    torch.testing.assert_close(heat, torch.full((2, 4), 0.25))


def test_cells_are_numbered_row_by_row():
    points = torch.tensor([[0.0, 0.0], [0.99, 0.0], [0.0, 0.5], [1.0, 1.0]])

    assert cell_of(points, 4).tolist() == [0, 3, 8, 15]
    assert cell_centres(4)[cell_of(points, 4)].tolist() == [
        [0.125, 0.125],
        [0.875, 0.125],
        [0.125, 0.625],
        [0.875, 0.875],
    ]


def test_features_are_sampled_bilinearly_between_centres():
    patches = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 4, 1)  # rows 0 1 / 2 3, centres at 1/4 and 3/4
    points = torch.tensor([[[0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.75, 0.5], [1.0, 0.0]]])

    assert sample_patches(patches, points, 2).flatten().tolist() == pytest.approx([0, 0.5, 1.5, 2, 1])


# -- the graph as data ------------------------------------------------------------------------------------------------


def hand_made_film():
    """Features on a line, so that nearest neighbours are known; three fixations on cell centres, the last a revisit."""
    patches = torch.zeros(1, PATCHES, CHANNELS)
    angle = torch.arange(PATCHES) * 0.1
    patches[0, :, 0], patches[0, :, 1] = angle.cos(), angle.sin()
    fixations = torch.tensor([[[0.125, 0.125, 1.0], [0.875, 0.875, math.e], [0.125, 0.125, 1.0]]])
    return patches, fixations


def edges_of(data):
    """(source, target) -> the 14 numbers by name."""
    return {
        (source, target): dict(zip(EDGE_ATTRIBUTES, numbers, strict=True))
        for (source, target), numbers in zip(data.edge_index.T.tolist(), data.edge_attr.tolist(), strict=True)
    }


def test_graph_of_a_film_by_hand():
    # sigma 0.1: two sigmas reach no further than the cell itself (neighbouring centres are 0.25 apart).
    model = make_model(heat_map_sigma=0.1, num_neighbors=2, gaze_direction=0)
    patches, fixations = hand_made_film()

    (data,) = model.to_pyg(patches, fixations)
    edges = edges_of(data)

    first, second, third = 1 + PATCHES, 2 + PATCHES, 3 + PATCHES
    assert [NODE_TYPES[kind] for kind in data.node_type] == ["global"] + ["patch"] * PATCHES + ["fixation"] * 3
    assert data.x.shape == (1 + PATCHES + 3, 16)
    torch.testing.assert_close(
        data.pos[[0, 1, 2, first, second]],
        torch.tensor([[0.5, 0.5], [0.125, 0.125], [0.375, 0.125], [0.125, 0.125], [0.875, 0.875]]),
    )
    # Patch nodes are 1..16 row by row. Node 6 is the cell of row 1, column 1.
    assert {source for (source, target), e in edges.items() if target == 6 and e["spatial"]} == {2, 5, 7, 10}
    assert {source for (source, target), e in edges.items() if target == 6 and e["feature_neighbor"]} == {5, 7}
    assert {source for (source, target), e in edges.items() if target == 1 and e["feature_neighbor"]} == {2, 3}
    # Each fixation is linked to its own cell, both ways, with all its weight.
    linked = {pair for pair, e in edges.items() if e["fixation_patch"]}
    assert linked == {(first, 1), (1, first), (third, 1), (1, third), (second, 16), (16, second)}
    assert all(edges[pair]["gaze_weight"] == pytest.approx(1) for pair in linked)
    # next: the target comes after the source. The third is where the first was, and not its neighbour in time.
    assert {pair for pair, e in edges.items() if e["next_fixation"]} == {(first, second), (second, third)}
    assert {pair for pair, e in edges.items() if e["previous_fixation"]} == {(second, first), (third, second)}
    assert {pair for pair, e in edges.items() if e["revisit"]} == {(first, third), (third, first)}
    others = range(1, 1 + PATCHES + 3)
    assert {pair for pair, e in edges.items() if e["global"]} == {(0, n) for n in others} | {(n, 0) for n in others}
    assert {pair for pair, e in edges.items() if e["self"]} == {(n, n) for n in range(1 + PATCHES + 3)}
    # Differences are source minus target; ln e = 1 s, and the order counts in thirds of the reading.
    edge = edges[(second, first)]
    differences = [edge[name] for name in EDGE_ATTRIBUTES[:5]]
    assert differences == pytest.approx([0.75, 0.75, 1.125, 1.0, 1 / 3])


def test_no_edge_stands_twice():
    # With every other patch a feature neighbour, the cells at a patch's sides are among them.
    patches, fixations = make_films()

    for data in make_model(num_neighbors=PATCHES - 1).to_pyg(patches, fixations, mask_of(0, 4, 6)):
        edges = data.edge_index.T.tolist()
        assert len(edges) == len({tuple(edge) for edge in edges})
        beside = [e for (source, target), e in edges_of(data).items() if (source, target) == (5, 6)]
        assert [(e["spatial"], e["feature_neighbor"]) for e in beside] == [(1, 1)]


def neighbors_by_the_formula(patches, heat, num_neighbors, gaze_direction):
    """|x_j - x_l|^2 + lambda g_j (g_j - g_l)^2 for every pair of one film's patches, and the nearest."""
    features = patches / patches.norm(dim=-1, keepdim=True)
    gaze = (heat - heat.min()) / (heat.max() - heat.min())
    nearest = []
    for target in range(len(features)):
        distances = (features[target] - features).square().sum(-1)
        distances = distances + gaze_direction * gaze[target] * (gaze[target] - gaze).square()
        distances[target] = torch.inf
        nearest.append(set(distances.argsort()[:num_neighbors].tolist()))
    return nearest


def test_feature_neighbors_follow_the_formula():
    model = make_model(num_neighbors=3, gaze_direction=0.7)
    patches, _ = make_films(1)
    heat = torch.rand(1, PATCHES, generator=torch.Generator().manual_seed(1))

    nearest = model.feature_neighbors(patches, heat)

    expected = neighbors_by_the_formula(patches[0], heat[0], 3, 0.7)
    assert [set(row) for row in nearest[0].tolist()] == expected


def test_every_edge_of_the_data_object_has_a_relation():
    patches, fixations = make_films()

    for data in make_model().to_pyg(patches, fixations, mask_of(0, 4, 6)):
        named = data.edge_attr[:, len(EDGE_ATTRIBUTES) - len(RELATIONS) + 1 :]
        assert (named.sum(-1) > 0).all()
        assert data.validate()


def test_masked_fixations_are_left_out_of_the_data_object():
    patches, fixations = make_films()

    films = make_model().to_pyg(patches, fixations, mask_of(0, 4, 6))

    assert [data.num_nodes for data in films] == [1 + PATCHES, 1 + PATCHES + 4, 1 + PATCHES + 6]


@torch.no_grad()
def test_the_data_object_is_the_graph_the_model_runs_on():
    model = make_model()
    patches, fixations = make_films(1)
    (data,) = model.to_pyg(patches, fixations)
    layer = model.layers[0]

    message = layer.attention.conv(layer.attention_norm(data.x), data.edge_index, data.edge_attr)

    heat = heat_map(fixations, mask_of(6), model.grid(), model.config.heat_map_sigma)
    graph = model.build_graph(patches, fixations, mask_of(6), heat)
    expected, _ = layer.attention(layer.attention_norm(data.x.unsqueeze(0)), graph)
    torch.testing.assert_close(layer.attention.output(message), expected[0], rtol=1e-5, atol=1e-5)


def test_gaze_draws_the_neighbours_of_patches_that_were_looked_at():
    # Equal features everywhere: with gaze alone in the distance, the patch that was looked at prefers patches as warm.
    model = make_model(num_neighbors=1, gaze_direction=1.0, heat_map_sigma=0.15)
    patches = torch.ones(1, PATCHES, CHANNELS)
    fixations = torch.tensor([[[0.125, 0.125, 1.0], [0.875, 0.875, 1.0]]])

    edges = edges_of(model.to_pyg(patches, fixations)[0])

    assert {source for (source, target), e in edges.items() if target == 1 and e["feature_neighbor"]} == {16}


# -- what comes out ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_slots_hold_the_longest_fixations_in_the_order_of_reading():
    model = make_model(num_fixation_slots=3)
    patches, fixations = make_films(2, 5)
    fixations[..., 2] = torch.tensor([0.2, 0.9, 0.1, 0.5, 0.7])
    mask = mask_of(5, 2, num_fixations=5)

    fused = model(patches, fixations, mask)

    assert fused.token_fixations.tolist() == [[1, 3, 4], [0, 1, -1]]
    slots = fused.tokens[:, -3:]
    torch.testing.assert_close(slots[1, 2], model.empty_slot[2])
    assert (slots[1, 1] - model.empty_slot[1]).abs().max() > 1e-2


@torch.no_grad()
def test_slots_of_no_gaze_are_the_learned_empty_ones():
    model = make_model()

    fused = model(make_films()[0])

    assert (fused.token_fixations == -1).all()
    torch.testing.assert_close(fused.tokens[:, -3:], model.empty_slot.expand(3, -1, -1))


@torch.no_grad()
def test_number_of_tokens_is_fixed():
    model = make_model(num_fixation_slots=3)
    patches, fixations = make_films(2, 12)

    shapes = [model(patches, gaze).tokens.shape for gaze in (None, fixations[:, :1], fixations)]

    assert shapes == [(2, 1 + 4 + 3, 16)] * 3


@torch.no_grad()
def test_readout_attention_and_heat_map_sum_to_one():
    patches, fixations = make_films()

    fused = make_model()(patches, fixations, mask_of(0, 4, 6))

    torch.testing.assert_close(fused.readout_attention.sum(-1), torch.ones(3))
    torch.testing.assert_close(fused.heat_map.sum(-1), torch.ones(3))
    assert (fused.readout_attention > 0).all()


@torch.no_grad()
def test_regions_are_means_of_their_own_patches_weighted_by_gaze():
    pooling = make_model().region_pooling
    pooling.weight.weight.zero_()
    states = torch.randn(1, PATCHES, 16)
    heat = torch.rand(1, PATCHES)
    heat = heat / heat.sum()
    top_left = [0, 1, 4, 5]  # a quarter of a 4 x 4 grid
    weight = heat[0, top_left] + 1e-6
    expected = (weight / weight.sum()) @ states[0, top_left]

    torch.testing.assert_close(pooling(states, heat)[0, 0], expected)


# -- switches, errors, weights ----------------------------------------------------------------------------------------


def test_without_temporal_edges_consecutive_fixations_are_not_linked():
    patches, fixations = make_films()

    edges = edges_of(make_model(use_temporal_edges=False).to_pyg(patches, fixations)[0])

    assert not any(e["next_fixation"] or e["previous_fixation"] for e in edges.values())
    assert any(e["fixation_patch"] for e in edges.values())


@torch.no_grad()
def test_without_gaze_nodes_gaze_acts_through_the_heat_map_alone():
    model = make_model(use_gaze_nodes=False)
    patches, fixations = make_films()

    fused = model(patches, fixations)

    assert (fused.token_fixations == -1).all()
    reordered = model(patches, fixations.flip(1))
    torch.testing.assert_close(fused.tokens, reordered.tokens, rtol=1e-5, atol=1e-5)
    assert (fused.tokens - model(patches).tokens).abs().max() > 1e-3


def test_more_fixations_than_the_model_knows_are_refused():
    with pytest.raises(ValueError, match=r"13 fixations were given but fusion_config\.max_fixations is 12"):
        make_model()(*make_films(1, 13))


def test_weights_of_the_convolution_are_initialised_when_a_checkpoint_lacks_them():
    config = make_model().config

    model = Gaze2ReportFusionModel.from_pretrained(None, config=config, state_dict={})

    convolution = model.layers[0].attention.conv
    bound = math.sqrt(6 / (16 + 16))  # Glorot and Bengio's limit for 16 inputs and 16 outputs
    for linear in (convolution.lin_query, convolution.lin_key, convolution.lin_value):
        assert 0.5 * bound < linear.weight.abs().max() <= bound
        assert (linear.bias == 0).all()


def test_gradients_reach_every_parameter():
    model = make_model()
    patches, fixations = make_films()

    model(patches, fixations, mask_of(0, 2, 6)).tokens.square().sum().backward()

    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in silent if not name.endswith("lin_key.bias")] == []
