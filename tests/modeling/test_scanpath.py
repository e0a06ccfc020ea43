import math

import numpy as np
import pytest
import scipy.stats
import torch

from modeling_gaze2report.configuration_gaze2report import Gaze2ReportScanpathConfig
from modeling_gaze2report.modeling_scanpath import Gaze2ReportScanpathModel, draw

GRID = 3
CHANNELS = 8


def make_model(seed=0, gain=15.0, **values):
    torch.manual_seed(seed)
    defaults = {
        "vision_hidden_size": CHANNELS,
        "grid_size": GRID,
        "hidden_size": 16,
        "num_encoder_layers": 1,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_fixations": 6,
    }
    model = Gaze2ReportScanpathModel(Gaze2ReportScanpathConfig(**defaults | values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from the near-uniform choice of cells of fresh weights, yet smooth enough for numerical integrals.
            if parameter.dim() > 1 and not name.startswith(("offset.", "duration.")):
                parameter.mul_(gain)
    return model


def make_patches(batch_size=2, grid_size=GRID, seed=0):
    return torch.randn(batch_size, grid_size**2, CHANNELS, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def nodes_of_cells(order=6):
    """Gauss-Legendre points in every cell of the square, (cells * order^2, 2), and their weights."""
    ticks, weights = np.polynomial.legendre.leggauss(order)
    ticks = np.concatenate([(cell + (ticks + 1) / 2) / GRID for cell in range(GRID)])
    weights = np.tile(weights / 2 / GRID, GRID)
    x, y = np.meshgrid(ticks, ticks)
    points = torch.tensor(np.stack((x, y), axis=-1).reshape(-1, 2), dtype=torch.float32)
    return points, torch.tensor(np.outer(weights, weights).ravel(), dtype=torch.float32)


def next_fixation_scores(model, patches, history, candidates):
    """Scores of each candidate (C, 3) as the fixation after `history` (t, 3) on one film (1, P, C)."""
    rows = candidates.shape[0]
    fixations = torch.cat((history.expand(rows, -1, -1), candidates.unsqueeze(1)), dim=1)
    return model(patches.expand(rows, -1, -1), fixations)


# -- densities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [0, 2])
@torch.no_grad()
def test_density_over_the_square_integrates_to_one(history):
    model, patches = make_model(), make_patches(1)
    before = torch.rand(history, 3, generator=generator())
    points, weights = nodes_of_cells()
    candidates = torch.cat((points, torch.full((len(points), 1), 0.3)), dim=1)

    scores = next_fixation_scores(model, patches, before, candidates)

    integral = (scores.location_log_likelihood[:, -1].exp() * weights).sum()
    assert integral.item() == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_density_over_durations_integrates_to_one():
    model, patches = make_model(), make_patches(1)
    log_durations = torch.linspace(-14, 8, 4001)
    durations = log_durations.exp()
    candidates = torch.stack((torch.full_like(durations, 0.2), torch.full_like(durations, 0.7), durations), dim=1)

    scores = next_fixation_scores(model, patches, torch.zeros(0, 3), candidates)

    density_of_log = scores.duration_log_likelihood[:, -1].exp() * durations
    assert torch.trapezoid(density_of_log, log_durations).item() == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_probabilities_of_all_lengths_sum_to_one():
    model, patches = make_model(), make_patches(1)
    fixations = torch.rand(1, model.config.max_fixations, 3, generator=generator())
    lengths = torch.arange(1, model.config.max_fixations + 1)
    mask = torch.arange(model.config.max_fixations) < lengths.unsqueeze(1)
    rows = len(lengths)

    scores = model(patches.expand(rows, -1, -1), fixations.expand(rows, -1, -1), mask)

    assert scores.stop_log_likelihood.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_offset_density_is_a_logistic_cut_to_the_cell():
    head = make_model().offset
    offset = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.0, 1.0]])
    centre, scale = torch.tensor([0.5, 0.2]), torch.tensor([1.0, 0.3])
    # By hand for the first: 0.25 / (sigmoid(0.5) - sigmoid(-0.5)) = 0.25 / 0.244919 = 1.020747.
    x = scipy.stats.logistic(0.5, 1.0)
    y = scipy.stats.logistic(0.2, 0.3)
    expected = np.log(x.pdf(offset[:, 0]) / (x.cdf(1) - x.cdf(0)) * y.pdf(offset[:, 1]) / (y.cdf(1) - y.cdf(0)))

    actual = head.log_density(offset, centre, scale)

    assert math.exp(head.log_density(torch.full((2,), 0.5), torch.full((2,), 0.5), torch.ones(2)).item()) == (
        pytest.approx(1.020747**2, rel=1e-5)
    )
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


def test_offset_quantile_inverts_the_distribution_function():
    head = make_model().offset
    share = torch.tensor([[0.05, 0.95], [0.5, 0.3]])
    centre, scale = torch.tensor([0.5, 0.2]), torch.tensor([1.0, 0.3])

    offset = head.quantile(share, centre, scale)

    for axis in range(2):
        logistic = scipy.stats.logistic(centre[axis].item(), scale[axis].item())
        low, high = logistic.cdf(0), logistic.cdf(1)
        np.testing.assert_allclose((logistic.cdf(offset[:, axis]) - low) / (high - low), share[:, axis], atol=1e-5)


def test_duration_density_is_a_log_normal_mixture():
    head = make_model().duration
    weight = torch.tensor([0.25, 0.75])
    mean, spread = torch.tensor([-1.0, 0.5]), torch.tensor([0.4, 0.9])
    durations = torch.tensor([0.1, 0.28, 1.0, 3.0])
    parts = [scipy.stats.lognorm(s=s, scale=np.exp(m)) for m, s in zip(mean.numpy(), spread.numpy(), strict=True)]
    expected = np.log(0.25 * parts[0].pdf(durations) + 0.75 * parts[1].pdf(durations))

    actual = head.log_density(durations, weight.log(), mean, spread)

    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


@torch.no_grad()
def test_uniform_weights_give_the_uniform_density_in_nats():
    model = make_model()
    model.location_key.weight.zero_()
    model.location_key.bias.zero_()
    for linear in (model.offset.from_state, model.offset.from_cell):
        linear.weight.zero_()
        linear.bias.zero_()
    model.offset.from_state.bias[2:] = 5.0  # so wide that the logistic is flat inside a cell
    fixations = torch.tensor([[[0.5, 0.5, 0.3]]])

    location = model(make_patches(1), fixations).location_log_likelihood

    # Density 1 over the square: ln 1 = 0. Scale 5 leaves 0.25 / 5 / (2 sigmoid(0.1) - 1) = 1.000834 per axis in the
    # middle of the cell.
    assert location.item() == pytest.approx(2 * math.log(1.000834), abs=1e-5)


# -- predicting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do_sample", [False, True])
def test_cached_decoding_equals_uncached(do_sample):
    model, patches = make_model(), make_patches()
    options = {"num_samples": 3, "do_sample": do_sample}

    cached = model.predict(patches, **options, generator=generator())
    uncached = model.predict(patches, **options, generator=generator(), use_cache=False)

    torch.testing.assert_close(cached.fixations, uncached.fixations, rtol=1e-4, atol=1e-5)
    assert torch.equal(cached.mask, uncached.mask)
    torch.testing.assert_close(cached.log_probability, uncached.log_probability, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("do_sample", [False, True])
def test_compiled_decoding_equals_eager_and_compiles_once(do_sample):
    model, patches = make_model(), make_patches()
    options = {"num_samples": 3, "do_sample": do_sample}
    eager = model.predict(patches, **options, generator=generator())
    torch._dynamo.reset()
    compiled_graphs = []

    def backend(graph, inputs):
        compiled_graphs.append(graph)
        return graph.forward

    model.compile_decoding(backend=backend)  # as one piece: anything that waits for a value would be refused
    compiled = model.predict(patches, **options, generator=generator())

    torch.testing.assert_close(compiled.fixations, eager.fixations, rtol=1e-4, atol=1e-5)
    assert torch.equal(compiled.mask, eager.mask)
    torch.testing.assert_close(compiled.log_probability, eager.log_probability, rtol=1e-4, atol=1e-4)
    assert len(compiled_graphs) == 1


def test_classes_are_drawn_by_their_share_of_the_weight():
    weights = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    shares = torch.tensor([0.0, 0.2, 0.249, 0.251, 0.9, 1 - 2**-24])

    drawn = draw(weights.log().expand(len(shares), -1), shares)

    assert drawn.tolist() == [1, 1, 1, 3, 3, 3]


@torch.no_grad()
def test_decoding_ends_with_the_last_reading():
    model = make_model(max_fixations=20)
    model.stop.bias.fill_(50)
    steps = []
    decode_step = model.decode_step
    model.decode_step = lambda *arguments: steps.append(1) or decode_step(*arguments)

    scanpath = model.predict(make_patches(), num_samples=4)

    assert scanpath.mask.shape[-1] == 3  # min_fixations
    assert len(steps) == 4  # the last one ended every reading


@pytest.mark.parametrize("do_sample", [False, True])
@torch.no_grad()
def test_log_probability_is_what_scoring_gives(do_sample):
    model, patches = make_model(), make_patches()

    scanpath = model.predict(patches, num_samples=8, do_sample=do_sample, generator=generator())
    scores = model(patches.repeat_interleave(8, 0), scanpath.fixations.flatten(0, 1), scanpath.mask.flatten(0, 1))

    expected = scores.log_likelihood.sum(-1).unflatten(0, (2, 8))
    torch.testing.assert_close(scanpath.log_probability, expected, rtol=1e-4, atol=1e-3)


def test_log_probability_is_that_of_temperature_one():
    model, patches = make_model(), make_patches(1)

    cool = model.predict(patches, num_samples=16, do_sample=True, temperature=0.2, generator=generator())
    scores = model(patches.expand(16, -1, -1), cool.fixations[0], cool.mask[0])

    torch.testing.assert_close(cool.log_probability[0], scores.log_likelihood.sum(-1), rtol=1e-4, atol=1e-3)


def test_sampling_is_reproducible_by_seed():
    model, patches = make_model(), make_patches()

    def sample(seed):
        return model.predict(patches, num_samples=4, do_sample=True, generator=generator(seed)).fixations

    assert torch.equal(sample(1), sample(1))
    assert sample(1).shape != sample(2).shape or not torch.equal(sample(1), sample(2))


@pytest.mark.parametrize("film_boxes", [None, torch.tensor([[0.0, 0.0, 1.0, 0.5]])])
@torch.no_grad()
def test_mean_log_likelihood_of_samples_is_minus_the_entropy(film_boxes):
    """Along every sampled reading the entropy of each step is integrated numerically. Likelihood plus entropy then has
    mean zero, step by step, and its spread says how near to zero the mean of the samples must be."""
    model, patches = make_model(max_fixations=3), make_patches(1)
    num_samples = 100
    points, weights = nodes_of_cells(order=4)
    log_durations = torch.linspace(-6, 4, 60)
    centres = (torch.stack(torch.meshgrid(*[torch.arange(GRID)] * 2, indexing="xy"), dim=-1).flatten(0, 1) + 0.5) / GRID
    at_points = torch.cat((points, torch.full((len(points), 1), 0.3)), dim=1)
    durations = torch.cat((centres.repeat_interleave(60, 0), log_durations.exp().repeat(GRID**2).unsqueeze(1)), dim=1)
    candidates = torch.cat((at_points, durations))
    boxes = None if film_boxes is None else film_boxes.expand(len(candidates), -1)

    def entropy_of_step(history):
        """Entropy of place and duration of the next fixation, in nats."""
        rows = len(candidates)
        fixations = torch.cat((history.expand(rows, -1, -1), candidates.unsqueeze(1)), dim=1)
        scores = model(patches.expand(rows, -1, -1), fixations, film_boxes=boxes)
        location = scores.location_log_likelihood[: len(points), -1]
        mass = location.exp() * weights
        of_location = -(mass * location.clamp_min(-100)).sum()
        of_duration = scores.duration_log_likelihood[len(points) :, -1].unflatten(0, (GRID**2, -1))
        density_of_log = (of_duration + log_durations).exp()
        of_duration = -torch.trapezoid(density_of_log * of_duration, log_durations)  # one value per cell
        row = (points[:, 1] * GRID).long() * GRID + (points[:, 0] * GRID).long()
        of_cell = torch.zeros(GRID**2).index_add(0, row, mass)
        return of_location + (of_cell * of_duration).sum()

    def entropy_of_stop(history):
        if len(history) == model.config.max_fixations:
            return 0.0
        log_stop = model(patches, history.unsqueeze(0)).stop_log_likelihood[0, -1].item()
        return scipy.stats.bernoulli(math.exp(log_stop)).entropy()

    scanpath = model.predict(
        patches, num_samples=num_samples, do_sample=True, generator=generator(), film_boxes=film_boxes
    )
    surprises = []
    first = entropy_of_step(torch.zeros(0, 3))
    for fixations, mask, log_probability in zip(
        scanpath.fixations[0], scanpath.mask[0], scanpath.log_probability[0], strict=True
    ):
        path = fixations[mask]
        entropy = first + sum(entropy_of_step(path[:step]) for step in range(1, len(path)))
        entropy = entropy + sum(entropy_of_stop(path[:step]) for step in range(1, len(path) + 1))
        surprises.append((log_probability + entropy).item())

    standard_error = np.std(surprises) / math.sqrt(num_samples)
    assert standard_error < 0.25
    assert abs(np.mean(surprises)) < 4 * standard_error


@torch.no_grad()
def test_first_fixations_are_drawn_from_the_density_that_is_scored():
    model, patches = make_model(), make_patches(1)
    num_samples = 4000

    drawn = model.predict(patches, num_samples=num_samples, do_sample=True, generator=generator()).fixations[0, :, 0]

    points, weights = nodes_of_cells()
    at_points = torch.cat((points, torch.full((len(points), 1), 0.3)), dim=1)
    density = next_fixation_scores(model, patches, torch.zeros(0, 3), at_points).location_log_likelihood[:, 0].exp()
    mass = (density * weights).double()
    # Bins half as wide as cells, so that offsets are tested as well.
    expected, _, _ = np.histogram2d(*points.numpy().T, bins=2 * GRID, range=[[0, 1]] * 2, weights=mass.numpy())
    observed, _, _ = np.histogram2d(*drawn[:, :2].numpy().T, bins=2 * GRID, range=[[0, 1]] * 2)
    expected = expected.ravel() / expected.sum() * num_samples
    assert scipy.stats.chisquare(observed.ravel(), expected).pvalue > 1e-3

    cell = drawn[(drawn[:, :2] * GRID).long().eq(torch.tensor([1, 2])).all(-1)]  # all in one cell share a mixture
    log_durations = torch.linspace(-6, 4, 400)
    at_durations = torch.stack((torch.full((400,), 0.5), torch.full((400,), 0.8), log_durations.exp()), dim=1)
    scores = next_fixation_scores(model, patches, torch.zeros(0, 3), at_durations).duration_log_likelihood[:, 0]
    distribution = torch.cumulative_trapezoid((scores + log_durations).exp(), log_durations)
    result = scipy.stats.kstest(cell[:, 2].log().numpy(), lambda x: np.interp(x, log_durations[1:], distribution))
    assert len(cell) > 200
    assert result.pvalue > 1e-3


def test_gaze_predicted_while_training_is_that_of_inference():
    model, patches = make_model(hidden_dropout_prob=0.5), make_patches()
    expected = model.predict(patches)

    actual = model.train().predict(patches)

    assert torch.equal(actual.fixations, expected.fixations)
    assert all(module.training for module in model.modules())


def test_samples_of_one_film_do_not_depend_on_the_rest_of_the_batch():
    model, patches = make_model(), make_patches(3)

    together = model.predict(patches, num_samples=2)
    alone = model.predict(patches[1:2])

    length = int(alone.mask.sum())
    torch.testing.assert_close(together.fixations[1, 0, :length], alone.fixations[0, 0, :length], rtol=1e-4, atol=1e-5)
    assert int(together.mask[1, 0].sum()) == length


def test_predicted_fixations_stand_first_lie_in_the_square_and_last_some_time():
    scanpath = make_model().predict(make_patches(), num_samples=20, do_sample=True, generator=generator())

    mask = scanpath.mask
    assert torch.equal(mask, mask.cumprod(-1).bool())
    assert mask[..., 0].all()
    points, durations = scanpath.fixations[mask].split((2, 1), dim=-1)
    assert ((points >= 0) & (points <= 1)).all()
    assert (durations > 0).all()
    assert (scanpath.fixations[~mask] == 0).all()


@pytest.mark.parametrize(
    ("bias", "do_sample", "expected"), [(50, False, 3), (50, True, 1), (-50, False, 6), (-50, True, 6)]
)
@torch.no_grad()
def test_length_follows_the_stop_and_its_limits(bias, do_sample, expected):
    model = make_model(min_fixations=3, max_fixations=6)
    model.stop.bias.fill_(bias)

    scanpath = model.predict(make_patches(), num_samples=4, do_sample=do_sample, generator=generator())

    assert scanpath.mask.sum(-1).unique().tolist() == [expected]


@torch.no_grad()
def test_the_deterministic_reading_herds_by_hand():
    # A narrow kernel makes every cell its own neighbourhood, and constant shares .6, .4 of two cells are owed in turn:
    # step 1 owes (.6, .4) and serves the first; step 2 owes (.2, .8) and serves the second; step 3 owes (.8, .2), and
    # step 4 (.4, .6). Always taking the likeliest cell would serve the first four times.
    model = make_model(grid_size=2, return_sigma=0.01, max_fixations=4, min_fixations=4)
    shares = torch.tensor([0.6, 0.4, 1e-30, 1e-30])
    model.location_log_probs = lambda states, *_: shares.log().expand(*states.shape[:2], -1)

    reading = model.predict(make_patches(1, grid_size=2))

    cells = (reading.fixations[0, 0, :, :2] * 2).floor().int()
    assert cells.tolist() == [[0, 0], [1, 0], [0, 0], [1, 0]]


@torch.no_grad()
def test_inhibition_of_return_lowers_revisits():
    def revisits(inhibition):
        model = make_model(gain=1.0, max_fixations=12, return_sigma=0.2)
        model.inhibition.fill_(inhibition)
        model.stop.bias.fill_(-50)
        points = model.predict(make_patches(), num_samples=40, do_sample=True, generator=generator()).fixations[..., :2]
        earlier = torch.tril_indices(12, 12, offset=-1)
        return (torch.cdist(points, points)[..., earlier[0], earlier[1]] < 0.2).float().mean().item()

    assert revisits(5.0) < 0.7 * revisits(-20.0)


@torch.no_grad()
def test_nothing_beside_the_film_is_looked_at():
    model, patches = make_model(), make_patches()
    film_boxes = torch.tensor([[0.0, 0.4, 1.0, 0.6], [0.7, 0.0, 1.0, 1.0]])  # the middle row, the right column

    scanpath = model.predict(patches, num_samples=30, do_sample=True, generator=generator(), film_boxes=film_boxes)

    first, second = (scanpath.fixations[film][scanpath.mask[film]] for film in range(2))
    assert ((first[:, 1] >= 1 / 3) & (first[:, 1] <= 2 / 3)).all()
    assert (second[:, 0] >= 2 / 3 - 1e-6).all()


@torch.no_grad()
def test_a_fixation_beside_the_film_has_no_probability():
    model, patches = make_model(), make_patches(1)
    film_boxes = torch.tensor([[0.0, 0.4, 1.0, 0.6]])
    fixations = torch.tensor([[[0.5, 0.5, 0.3], [0.5, 0.9, 0.3]]])

    scores = model(patches, fixations, film_boxes=film_boxes)

    assert scores.location_log_probs[0, 0].exp().reshape(GRID, GRID).sum(1).tolist() == pytest.approx([0, 1, 0])
    assert scores.location_log_likelihood[0, 1] < -1e30


# -- scoring ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_does_not_change_scores():
    model, patches = make_model(), make_patches(2)
    fixations = torch.rand(2, 5, 3, generator=generator())
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    padded = fixations.masked_fill(~mask.unsqueeze(-1), torch.nan)

    scores = model(patches, padded, mask)
    alone = model(patches[:1], fixations[:1, :3])

    torch.testing.assert_close(scores.log_likelihood[:1, :3], alone.log_likelihood, rtol=1e-4, atol=1e-5)
    assert (scores.log_likelihood[0, 3:] == 0).all()


@torch.no_grad()
def test_a_score_looks_only_back():
    model, patches = make_model(), make_patches(1)
    fixations = torch.rand(1, 5, 3, generator=generator())
    changed = fixations.clone()
    changed[:, 3:] = 0.9

    before, after = model(patches, fixations), model(patches, changed)

    torch.testing.assert_close(before.log_likelihood[:, :3], after.log_likelihood[:, :3])
    assert not torch.allclose(before.log_likelihood[:, 3:], after.log_likelihood[:, 3:])


@torch.no_grad()
def test_parts_add_up_to_the_score():
    scores = make_model()(make_patches(), torch.rand(2, 4, 3, generator=generator()))

    parts = scores.location_log_likelihood + scores.duration_log_likelihood + scores.stop_log_likelihood
    torch.testing.assert_close(scores.log_likelihood, parts)


@torch.no_grad()
def test_readers_differ_and_the_unknown_one_is_zero():
    model, patches = make_model(num_readers=2), make_patches()
    fixations = torch.rand(2, 4, 3, generator=generator())

    unknown = model(patches, fixations).log_likelihood
    zero = model(patches, fixations, reader_ids=torch.tensor([0, 0])).log_likelihood
    known = model(patches, fixations, reader_ids=torch.tensor([1, 2])).log_likelihood

    torch.testing.assert_close(unknown, zero)
    assert (unknown - known).abs().amin(1).gt(1e-6).all()


def test_gradients_of_a_score_reach_every_parameter():
    model = make_model(num_readers=1)

    model(make_patches(), torch.rand(2, 4, 3, generator=generator())).log_likelihood.sum().backward()

    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    # Adding the same to every key cancels in a softmax; all else must have been felt.
    silent = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 1e-9}
    assert {name for name in silent if "k_proj.bias" not in name} == set()


def test_more_fixations_than_the_model_knows_are_refused():
    with pytest.raises(ValueError, match=r"7 fixations were given but scanpath_config\.max_fixations is 6"):
        make_model()(make_patches(), torch.rand(2, 7, 3))


@pytest.mark.parametrize(
    ("options", "sentence"), [({"num_samples": 0}, "at least 1"), ({"temperature": 0.0}, "above 0")]
)
def test_impossible_requests_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_model().predict(make_patches(), do_sample=True, **options)
