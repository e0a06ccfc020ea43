import re

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
    ResNetConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from modeling_gaze2report.modeling_gaze2report import (
    GAZE_SOURCES,
    Gaze2ReportForConditionalGeneration,
)
from modeling_gaze2report.modeling_perception import Gaze2ReportFindings

NONE, PREDICTED, RECORDED = (torch.tensor(GAZE_SOURCES.index(name)) for name in ("none", "predicted", "recorded"))


def assert_equal_outputs(actual, expected, **tolerances):
    torch.testing.assert_close(actual, expected, **{"rtol": 1e-4, "atol": 1e-4} | tolerances)


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaze", [None, "recorded"])
@torch.no_grad()
def test_shapes(tiny_model, tiny_inputs, gaze):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze=gaze)

    outputs = model(**inputs)

    assert outputs.logits.shape == (*inputs["input_ids"].shape, 99)
    features = outputs.image_features
    assert [tokens.shape for tokens in features.pooler_output] == [(21, 32)] * 2  # 1 + 16 regions + 4 slots
    assert features.last_hidden_state.shape == (2, 64, 32)
    assert features.heat_map.shape == features.readout_attention.shape == (2, 64)
    assert features.token_fixations.shape == (2, 4)
    findings = features.findings
    assert findings.logits.shape == (2, 14)
    assert findings.maps.shape == (2, 14, 64)
    assert findings.boxes.shape == (2, 14, 4)
    assert findings.region_boxes.shape == (2, 17, 4)
    assert findings.image_embeds.shape == (2, 16)


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_the_next_token(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze="recorded")
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100

    outputs = model(**inputs, labels=labels)

    log_probs = outputs.logits[:, -5:-1].log_softmax(-1)
    expected = -log_probs.gather(-1, labels[:, -4:].unsqueeze(-1)).mean()
    assert_equal_outputs(outputs.loss, expected)


@torch.no_grad()
def test_maps_sum_to_one_and_boxes_have_their_corners_in_order(tiny_model, tiny_inputs):
    model = tiny_model()

    findings = model.predict_findings(tiny_inputs(model)["pixel_values"])

    assert_equal_outputs(findings.maps.sum(-1), torch.ones(2, 14))
    for boxes in (findings.boxes, findings.region_boxes):
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[..., :2] <= boxes[..., 2:]).all()
    assert_equal_outputs(findings.image_embeds.norm(dim=-1), torch.ones(2))


@torch.no_grad()
def test_what_was_found_is_written_on_the_global_token_and_on_its_region(tiny_model):
    perception = tiny_model().model.perception
    grid, certain = perception.config.grid_size, 40.0
    scores = torch.full((1, 14, grid, grid), -certain)
    scores[0, 3, 0, grid - 1] = certain  # the upper right corner
    logits = torch.full((1, 14), -certain)
    logits[0, 3] = certain
    boxes = torch.zeros(1, 14, 4)
    boxes[0, 3] = torch.tensor([0.75, 0.0, 1.0, 0.25])
    findings = Gaze2ReportFindings(logits=logits, scores=scores.flatten(2), boxes=boxes)
    # Of all that is written, the probability of the finding on the first channel, the left side of its box on the next.
    perception.token_update.weight.zero_()
    perception.token_update.weight[0, 5 * 3] = perception.token_update.weight[1, 5 * 3 + 1] = 1.0
    tokens = torch.zeros(1, 1 + 2 * 2 + 3, perception.config.hidden_size)

    marked = perception.mark_tokens(tokens, findings, 2)

    expected = torch.zeros(8, 2)
    expected[0] = expected[2] = torch.tensor([1.0, 0.75])  # global, and the second region of the first row
    assert_equal_outputs(marked[0, :, :2], expected)
    assert not marked[..., 2:].any()


@torch.no_grad()
def test_what_was_found_in_numbers_reaches_the_language_model_on_the_global_token_alone(tiny_model, tiny_inputs):
    plain, model = tiny_model(), tiny_model(perception_config={"projection_dim": 16, "project_findings": True})
    model.load_state_dict(plain.state_dict(), strict=False)
    pixels = tiny_inputs(plain)["pixel_values"]
    before = plain.get_image_features(pixels)
    assert_equal_outputs(model.get_image_features(pixels).pooler_output, before.pooler_output)  # it begins at zero

    nn.init.normal_(model.model.projector.values.weight)
    after = model.get_image_features(pixels)

    values = model.model.perception.values(before.findings)
    assert values.shape == (2, 14 + 14 * 4 + 17 * 4) and values.abs().max() <= 1
    assert_equal_outputs(values[:, :14], (before.findings.logits / 4).tanh())
    told = model.model.projector.values(values)
    for new, old, one in zip(after.pooler_output, before.pooler_output, told, strict=True):
        assert_equal_outputs(new[0] - old[0], one)
        assert_equal_outputs(new[1:], old[1:])


def test_grades_and_views_are_read_off_what_the_findings_learned_and_shape_nothing_of_it(tiny_model, tiny_inputs):
    plain = tiny_model()
    model = tiny_model(perception_config={"projection_dim": 16, "num_severities": 4, "num_views": 2})
    model.load_state_dict(plain.state_dict(), strict=False)
    pixels = tiny_inputs(plain)["pixel_values"]
    before, after = plain.predict_findings(pixels), model.predict_findings(pixels)

    assert before.severity_logits is None and before.view_logits is None
    assert after.severity_logits.shape == (2, 14, 4) and after.view_logits.shape == (2, 2)
    for name, value in before.items():
        assert_equal_outputs(after[name], value)
    assert (after.severity_logits[0] != after.severity_logits[1]).any()
    (after.severity_logits.square().sum() + after.view_logits.square().sum()).backward()
    learned = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    heads = ("model.perception.severity.", "model.perception.view.")
    assert learned == {name for name, _ in model.named_parameters() if name.startswith(heads)}


DETAIL = {"projection_dim": 16, "detail_hidden_size": 6}


@torch.no_grad()
def test_a_look_at_the_pixels_begins_by_changing_nothing(tiny_model, tiny_inputs):
    plain, model = tiny_model(), tiny_model(perception_config=DETAIL)
    model.load_state_dict(plain.state_dict(), strict=False)
    pixels = tiny_inputs(plain)["pixel_values"]
    before, after = plain.predict_findings(pixels), model.predict_findings(pixels)

    assert before.detail_scores is None
    cells = -(-pixels.shape[-1] // 4)
    assert after.detail_scores.shape == (2, 14, cells, cells)
    for name, value in before.items():
        assert_equal_outputs(after[name], value)


@torch.no_grad()
def test_what_the_pixels_show_of_a_finding_adds_to_its_patches_and_its_logit_alone(tiny_model, tiny_inputs):
    model = tiny_model(perception_config=DETAIL)
    pixels = tiny_inputs(model)["pixel_values"]
    before = model.predict_findings(pixels)
    detail = model.model.perception.detail
    detail.film_scale[3], detail.film_bias[3], detail.patch_scale[5], detail.patch_bias[5] = 2.0, 0.5, 3.0, -1.0
    after = model.predict_findings(pixels)

    highest = before.detail_scores[:, 3].flatten(1).sort(-1).values[:, -6:].mean(-1)
    assert_equal_outputs(after.logits[:, 3], before.logits[:, 3] + 2.0 * highest + 0.5)
    grid, cells = model.config.grid_size, before.detail_scores.shape[-1]
    assert cells % grid == 0
    patches = before.detail_scores[:, 5].unflatten(1, (grid, -1)).unflatten(-1, (grid, -1)).amax((2, 4)).flatten(1)
    assert_equal_outputs(after.scores[:, 5], before.scores[:, 5] + 3.0 * patches - 1.0)
    others = [finding for finding in range(14) if finding not in (3, 5)]
    assert_equal_outputs(after.logits[:, others], before.logits[:, others])
    assert_equal_outputs(after.scores[:, others], before.scores[:, others])


@torch.no_grad()
def test_the_pixels_are_looked_at_where_they_are(tiny_model, tiny_inputs):
    """A change of one corner of a film changes cells there and none at the other end."""
    model = tiny_model(perception_config=DETAIL, image_size=256)
    detail = model.model.perception.detail.eval()
    pixels = torch.randn(1, 3, 256, 256)
    before = detail(pixels)
    pixels[..., 128:160, :8] += 1.0
    changed = (detail(pixels) != before).any(1)[0]
    rows, columns = changed.nonzero().unbind(-1)
    assert changed[32:40, :2].all() and columns.max() < 32 and rows.min() > 0


def test_films_are_asked_for_where_the_pixels_are_looked_at(tiny_model):
    perception = tiny_model(perception_config=DETAIL).model.perception
    states = torch.zeros(1, perception.config.grid_size**2, perception.config.hidden_size)

    with pytest.raises(ValueError, match=r"detail_hidden_size = 6: .* pass pixel_values"):
        perception(states, states[:, 0])


@torch.no_grad()
def test_each_finding_is_graded_by_weights_of_its_own(tiny_model):
    model = tiny_model(perception_config={"projection_dim": 16, "num_severities": 4})
    head = model.model.perception.severity
    gathered = torch.randn(3, 14, head.weight.shape[-1])
    before = head(gathered)
    for film, finding in ((0, 0), (2, 13)):
        expected = head.weight[finding] @ gathered[film, finding] + head.bias[finding]
        assert_equal_outputs(before[film, finding], expected)
    head.weight[5] += 1
    changed = (head(gathered) != before).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == [5]


@torch.no_grad()
def test_an_improbable_finding_has_no_place_in_the_numbers(tiny_model):
    perception = tiny_model().model.perception
    logits = torch.tensor([[-40.0, 40.0] * 7])
    boxes = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(1, 14, 4)
    regions = torch.full((1, 17, 4), 0.5)

    values = perception.values(Gaze2ReportFindings(logits=logits, boxes=boxes, region_boxes=regions))

    assert_equal_outputs(values[0, 14:22], torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0, -0.5, 0.0, 1.0]))
    assert not values[0, 14 + 14 * 4 :].any()


@torch.no_grad()
def test_the_highest_patch_counts_towards_a_finding(tiny_model):
    perception = tiny_model().model.perception
    width, cells = perception.config.hidden_size, perception.config.grid_size**2
    patches, film = torch.randn(2, cells, width), torch.randn(2, width)
    with_scores = perception(patches, film)
    perception.finding_from_scores.zero_()

    without = perception(patches, film)

    assert_equal_outputs(with_scores.logits - without.logits, with_scores.scores.amax(-1))
    assert_equal_outputs(with_scores.maps, with_scores.scores.softmax(-1))


@torch.no_grad()
def test_text_embedding_ignores_padding(tiny_model):
    perception = tiny_model().model.perception
    states = torch.randn(1, 4, 32)

    padded = perception.embed_text(states, torch.tensor([[0, 1, 1, 0]]))

    assert_equal_outputs(padded, perception.embed_text(states[:, 1:3], torch.ones(1, 2)))
    assert perception.similarity(padded, padded).item() == pytest.approx(1 / 0.07, rel=1e-3)


# -- gaze: recorded, predicted, none ----------------------------------------------------------------------------------


@torch.no_grad()
def test_sources_mixed_in_one_batch_equal_each_alone(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model, batch_size=3, gaze="recorded")
    source = torch.stack((NONE, PREDICTED, RECORDED))

    together = model(**inputs, gaze_source=source)

    for row in range(3):
        alone = model(
            **{name: value[row : row + 1] for name, value in inputs.items()}, gaze_source=source[row : row + 1]
        )
        assert_equal_outputs(together.logits[row], alone.logits[0])
    counts = together.image_features.fixation_mask.sum(-1)
    assert counts[0] == 0
    assert counts[1] >= 3
    assert counts[2] == inputs["fixation_mask"][2].sum()


@torch.no_grad()
def test_the_three_sources_give_three_reports(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model, batch_size=1, gaze="recorded")

    logits = [model(**inputs, gaze_source=source.view(1)).logits for source in (NONE, PREDICTED, RECORDED)]

    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (logits[first] - logits[second]).abs().max() > 1e-3


@torch.no_grad()
def test_an_image_without_a_fixation_has_its_gaze_predicted(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze="recorded")
    inputs["fixation_mask"][0] = False

    features = model(**inputs).image_features

    assert features.gaze_source.tolist() == [PREDICTED, RECORDED]
    predicted = model.predict_scanpath(inputs["pixel_values"][:1])
    length = int(predicted.mask.sum())
    assert features.fixation_mask[0].sum() == length
    assert_equal_outputs(features.fixations[0, :length], predicted.fixations[0, 0, :length])
    assert_equal_outputs(
        features.fixations[1, :6][inputs["fixation_mask"][1]], inputs["fixations"][1][inputs["fixation_mask"][1]]
    )


@torch.no_grad()
def test_predicted_gaze_given_back_as_recorded_changes_nothing(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model)
    predicted = model.predict_scanpath(inputs["pixel_values"])

    given = model(**inputs, fixations=predicted.fixations[:, 0], fixation_mask=predicted.mask[:, 0])

    assert_equal_outputs(given.logits, model(**inputs).logits)


@torch.no_grad()
def test_predicted_gaze_stays_on_the_film(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model)
    film_boxes = torch.tensor([[0.0, 0.25, 1.0, 0.75], [0.5, 0.0, 1.0, 1.0]])

    features = model(**inputs, film_boxes=film_boxes).image_features

    first, second = (features.fixations[film][features.fixation_mask[film]] for film in range(2))
    assert ((first[:, 1] >= 0.25) & (first[:, 1] <= 0.75)).all()
    assert (second[:, 0] >= 0.5).all()


@torch.no_grad()
def test_recorded_gaze_spares_the_scanpath_model(tiny_model, tiny_inputs, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model.model.scanpath, "predict", lambda *args, **kwargs: pytest.fail("gaze was predicted"))

    model(**tiny_inputs(model, gaze="recorded"))


@torch.no_grad()
def test_scored_scanpath_is_the_log_probability_of_its_prediction(tiny_model, tiny_inputs):
    model = tiny_model()
    films = tiny_inputs(model)["pixel_values"]

    scanpath = model.predict_scanpath(films, num_samples=3, do_sample=True, generator=torch.Generator().manual_seed(0))

    for sample in range(3):
        scores = model.score_scanpath(films, scanpath.fixations[:, sample], scanpath.mask[:, sample])
        assert_equal_outputs(scores.sum(-1), scanpath.log_probability[:, sample], atol=1e-3)


# -- batches, padding, several images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gaze", [None, "recorded"])
@torch.no_grad()
def test_batch_equals_single(tiny_model, tiny_inputs, gaze):
    model = tiny_model()
    inputs = tiny_inputs(model, batch_size=3, gaze=gaze)

    together = model(**inputs).logits

    for row in range(3):
        alone = model(**{name: value[row : row + 1] for name, value in inputs.items()}).logits
        assert_equal_outputs(together[row], alone[0])


@pytest.mark.parametrize("gaze", [None, "recorded"])
@torch.no_grad()
def test_left_padding_changes_nothing(tiny_model, tiny_inputs, gaze):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze=gaze)
    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (4, 0))
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (4, 0))
    padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp_min(0)

    assert_equal_outputs(model(**padded).logits[:, 4:], model(**inputs).logits)


@torch.no_grad()
def test_images_of_one_prompt_stand_in_their_order(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model, batch_size=2, num_images=2, gaze="recorded")
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for prompt in range(2):
        for image in range(2):
            film = 2 * prompt + image
            alone = model.get_image_features(
                inputs["pixel_values"][film : film + 1],
                fixations=inputs["fixations"][film : film + 1],
                fixation_mask=inputs["fixation_mask"][film : film + 1],
            )
            start = 1 + image * 21
            embeds[prompt, start : start + 21] = alone.pooler_output[0]

    assert_equal_outputs(model(**inputs).logits, model(inputs_embeds=embeds).logits)


@torch.no_grad()
def test_prompts_with_different_numbers_of_images(tiny_model, tiny_inputs):
    model = tiny_model()
    two = tiny_inputs(model, batch_size=1, num_images=2, gaze="recorded")
    one = tiny_inputs(model, batch_size=1, gaze="recorded", seed=1)
    missing = two["input_ids"].shape[1] - one["input_ids"].shape[1]
    pad = torch.nn.functional.pad
    mixed = {
        "input_ids": torch.cat((two["input_ids"], pad(one["input_ids"], (missing, 0)))),
        "attention_mask": torch.cat((two["attention_mask"], pad(one["attention_mask"], (missing, 0)))),
        **{name: torch.cat((two[name], one[name])) for name in ("pixel_values", "fixations", "fixation_mask")},
    }
    mixed["position_ids"] = (mixed["attention_mask"].cumsum(-1) - 1).clamp_min(0)

    together = model(**mixed).logits

    assert_equal_outputs(together[0], model(**two).logits[0])
    assert_equal_outputs(together[1, missing:], model(**one).logits[0])


@torch.no_grad()
def test_text_alone_is_the_language_model(tiny_model):
    model = tiny_model()
    input_ids = torch.randint(10, 90, (2, 7))

    logits = model(input_ids=input_ids).logits

    assert_equal_outputs(logits, model.lm_head(model.model.language_model(input_ids=input_ids).last_hidden_state))


# -- errors -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_missing_placeholder_is_refused(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model)
    inputs["input_ids"][0, 1] = 50

    with pytest.raises(ValueError, match="41 image placeholders, but the images give 42 tokens"):
        model(**inputs)


@pytest.mark.parametrize(
    ("fixations", "sentence"),
    [
        (torch.rand(3, 4, 3), r"fixations has shape \(3, 4, 3\), but 2 images need \(2, num_fixations, 3\)"),
        (torch.rand(2, 4, 2), r"fixations has shape \(2, 4, 2\)"),
        (torch.rand(2, 11, 3), "11 fixations were given but scanpath_config.max_fixations is 10"),
    ],
)
@torch.no_grad()
def test_wrong_gaze_is_refused(tiny_model, tiny_inputs, fixations, sentence):
    model = tiny_model()

    with pytest.raises(ValueError, match=sentence):
        model(**tiny_inputs(model), fixations=fixations)


@torch.no_grad()
def test_a_grid_that_the_tower_does_not_give_is_refused(tiny_model, tiny_inputs):
    model = tiny_model(
        grid_size=9,
        vision_config=ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
            patch_size=8,
        ),
    )

    with pytest.raises(ValueError, match=r"gives 65 features .* grid_size = 9 asks for 81"):
        model(**tiny_inputs(model))


# -- training ---------------------------------------------------------------------------------------------------------


def all_losses(model, inputs):
    """Everything that the parts learn from: report, scanpath, findings, boxes, order, contrast."""
    model_outputs = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True)
    features = model_outputs.image_features
    scores = model.model.scanpath(features.last_hidden_state, inputs["fixations"], inputs["fixation_mask"])
    findings = features.findings
    text_embeds = model.model.perception.embed_text(model_outputs.hidden_states[-1], inputs["attention_mask"])
    similarity = model.model.perception.similarity(findings.image_embeds, text_embeds)
    parts = (findings.logits, findings.boxes, findings.region_boxes, features.order_scores)
    return (
        model_outputs.loss
        - scores.log_likelihood.mean()
        + sum(part.square().mean() for part in parts)
        + torch.nn.functional.cross_entropy(similarity, torch.arange(len(similarity)))
    )


def test_gradients_reach_every_part_that_learns(tiny_model, tiny_inputs):
    model = tiny_model()

    all_losses(model, tiny_inputs(model, gaze="recorded")).backward()

    untouched = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # The pooler of a ViT reads the class token, which stands for no place on the film.
    assert {name for name in untouched if "vision_tower.pooler" not in name} == set()


def test_loss_of_the_report_reaches_the_vision_tower_and_the_graph(tiny_model, tiny_inputs):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze="recorded")

    model(**inputs, labels=inputs["input_ids"]).loss.backward()

    learning = (model.model.vision_tower, model.model.fusion.layers, model.model.projector, model.model.language_model)
    silent = [
        name
        for part in learning
        for name, parameter in part.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    # The same added to every key cancels in a softmax; the pooler reads the class token.
    assert [
        name for name in silent if not name.startswith("pooler") and not re.search(r"(key|k_proj)\.bias", name)
    ] == []


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, tiny_inputs):
    def gradients(checkpointing):
        model = tiny_model(scanpath={"hidden_dropout_prob": 0.0}, fusion={"hidden_dropout_prob": 0.0}).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        all_losses(model, tiny_inputs(model, gaze="recorded")).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)

    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_reaches_the_layers_of_gaze(tiny_model):
    model = tiny_model()

    model.gradient_checkpointing_enable()

    for part in (model.model.scanpath, model.model.fusion):
        assert all(layer.gradient_checkpointing for layer in part.layers)


# -- precision and attention ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_gaze_parts_stay_in_full_precision(tiny_model, tiny_inputs, tmp_path, dtype):
    tiny_model().save_pretrained(tmp_path)

    model = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)

    parts = {"scanpath", "fusion", "perception"}
    for name, parameter in model.named_parameters():
        expected = torch.float32 if name.split(".")[1] in parts else dtype
        assert parameter.dtype == expected, name
    outputs = model(**tiny_inputs(model))
    assert outputs.logits.dtype == dtype
    assert outputs.image_features.fixations.dtype == torch.float32
    assert torch.isfinite(outputs.logits).all()


@torch.no_grad()
def test_half_precision_is_near_full_precision(tiny_model, tiny_inputs, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    inputs = tiny_inputs(model, gaze="recorded")

    half = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)

    expected = model(**inputs).logits
    error = (half(**inputs).logits.float() - expected).abs().max()
    assert error < 0.1 * expected.abs().max()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_any_attention_of_the_towers_can_be_asked_for(tiny_config, attention):
    model = Gaze2ReportForConditionalGeneration._from_config(tiny_config(), attn_implementation=attention)

    assert model.model.language_model.config._attn_implementation == attention
    assert model.model.vision_tower.config._attn_implementation == attention


# -- towers -----------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGE = {"image_size": 64, "patch_size": 8}
VISION_TOWERS = {
    "vit": lambda: ViTConfig(**SMALL, **IMAGE),
    "dinov2": lambda: Dinov2Config(**SMALL, **IMAGE, mlp_ratio=2),
    "dinov2 with registers": lambda: Dinov2WithRegistersConfig(**SMALL, **IMAGE, mlp_ratio=2, num_register_tokens=4),
    "siglip": lambda: SiglipVisionConfig(**SMALL, **IMAGE),
    # Two stages with strides 4 and 2: an 8 x 8 map of 64 pixels.
    "resnet": lambda: ResNetConfig(embedding_size=16, hidden_sizes=[24, 40], depths=[1, 1], layer_type="basic"),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[24, 40], depths=[1, 1], num_stages=2),
}
TOKENS = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT_TOWERS = {
    "llama": lambda tied: LlamaConfig(**SMALL, **TOKENS, num_key_value_heads=1, tie_word_embeddings=tied),
    "qwen3": lambda tied: Qwen3Config(**SMALL, **TOKENS, num_key_value_heads=1, head_dim=16, tie_word_embeddings=tied),
    "gemma": lambda tied: GemmaConfig(**SMALL, **TOKENS, num_key_value_heads=1, head_dim=16, tie_word_embeddings=tied),
    "gpt2": lambda tied: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_inner=64, **TOKENS, tie_word_embeddings=tied),
}


def run_save_load_and_generate(model, inputs, folder):
    expected = model(**inputs).logits
    model.save_pretrained(folder)
    loaded, info = Gaze2ReportForConditionalGeneration.from_pretrained(folder, output_loading_info=True)

    assert not any(info.values())
    assert torch.isfinite(expected).all()
    assert_equal_outputs(loaded(**inputs).logits, expected)
    generated = loaded.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape == (2, inputs["input_ids"].shape[1] + 3)
    return loaded


@pytest.mark.parametrize("vision", VISION_TOWERS)
@torch.no_grad()
def test_any_vision_tower(tiny_model, tiny_inputs, tmp_path, vision):
    model = tiny_model(vision_config=VISION_TOWERS[vision]())

    run_save_load_and_generate(model, tiny_inputs(model), tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", TEXT_TOWERS)
@torch.no_grad()
def test_any_language_model(tiny_model, tiny_inputs, tmp_path, text, tied):
    model = tiny_model(text_config=TEXT_TOWERS[text](tied))

    loaded = run_save_load_and_generate(model, tiny_inputs(model), tmp_path)

    same = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert same is tied


@torch.no_grad()
def test_features_before_the_patches_are_left_out(tiny_model, tiny_inputs):
    model = tiny_model(vision_config=VISION_TOWERS["dinov2 with registers"]())
    films = tiny_inputs(model)["pixel_values"]

    patches = model.model.get_patch_features(films).last_hidden_state

    expected = model.model.vision_tower(pixel_values=films).last_hidden_state[:, 1 + 4 :]
    assert_equal_outputs(patches, expected)


@torch.no_grad()
def test_a_feature_map_is_read_row_by_row(tiny_model, tiny_inputs):
    model = tiny_model(vision_config=VISION_TOWERS["resnet"]())
    films = tiny_inputs(model)["pixel_values"]

    patches = model.model.get_patch_features(films).last_hidden_state

    feature_map = model.model.vision_tower(pixel_values=films).last_hidden_state
    assert_equal_outputs(patches[:, 8 * 3 + 5], feature_map[:, :, 3, 5])
