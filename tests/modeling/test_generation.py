"""Generation with and without recorded gaze, in place of transformers' `GenerationTesterMixin`, which its source
distribution leaves out."""

import contextlib
import copy
import inspect
from threading import Thread

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from modeling_gaze2report.modeling_gaze2report import Gaze2ReportForConditionalGeneration

GAZE = pytest.mark.parametrize("gaze", [None, "recorded"])
NEW = 6


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


def generate(model, inputs, **options):
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(**copy.deepcopy(inputs), **options)


def new_tokens(model, inputs, **options):
    return generate(model, inputs, **options)[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def greedy_by_forward(model, inputs, num_tokens=NEW):
    """Every token from a whole forward pass, without a cache."""
    inputs = copy.deepcopy(inputs)
    ended = model.generation_config.eos_token_id
    for _ in range(num_tokens):
        logits = model(**inputs).logits[:, -1]
        logits[:, ended] = -torch.inf  # as `min_new_tokens` does
        token = logits.argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat((inputs["input_ids"], token), dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs["input_ids"][:, -num_tokens:]


@contextlib.contextmanager
def counted(model):
    """Counts how often the image, the scanpath and the graph are worked out, and for how many films."""
    calls = {"image": [], "scanpath": [], "graph": []}
    core = model.model
    hooks = [
        core.vision_tower.register_forward_pre_hook(
            lambda module, args, kwargs: calls["image"].append(len(kwargs["pixel_values"])), with_kwargs=True
        ),
        core.fusion.register_forward_pre_hook(lambda module, args: calls["graph"].append(len(args[0]))),
    ]
    predict = core.scanpath.predict
    core.scanpath.predict = lambda patches, **kwargs: (
        calls["scanpath"].append(len(patches)) or predict(patches, **kwargs)
    )
    try:
        yield calls
    finally:
        del core.scanpath.predict
        for hook in hooks:
            hook.remove()


# -- forward and generate ---------------------------------------------------------------------------------------------


@GAZE
def test_forward_equals_the_first_step(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    steps = generate(
        model, inputs, max_new_tokens=1, min_new_tokens=1, return_dict_in_generate=True, output_logits=True
    )

    with torch.no_grad():
        expected = model(**inputs).logits[:, -1]
    torch.testing.assert_close(steps.logits[0], expected, rtol=1e-4, atol=1e-5)


@GAZE
def test_greedy_equals_whole_forward_passes(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    assert torch.equal(new_tokens(model, inputs), greedy_by_forward(model, inputs))


def test_recorded_gaze_reaches_the_report(model, tiny_inputs):
    inputs = tiny_inputs(model, gaze="recorded")
    without = {name: value for name, value in inputs.items() if not name.startswith("fixation")}

    def first_logits(inputs):
        return generate(model, inputs, return_dict_in_generate=True, output_logits=True).logits[0]

    assert (first_logits(inputs) - first_logits(without)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"cache_implementation": "static"}],
    ids=["greedy", "beams", "samples", "static cache"],
)
@GAZE
def test_image_scanpath_and_graph_are_worked_out_once_per_prompt(model, tiny_inputs, gaze, options):
    inputs = tiny_inputs(model, gaze=gaze)

    with counted(model) as calls:
        generate(model, inputs, **options)

    assert calls == {"image": [2], "graph": [2], "scanpath": [] if gaze else [2]}


# -- ways to decode ---------------------------------------------------------------------------------------------------


@GAZE
def test_batch_equals_single(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, batch_size=3, gaze=gaze)

    together = new_tokens(model, inputs)

    for row in range(3):
        alone = new_tokens(model, {name: value[row : row + 1] for name, value in inputs.items()})
        assert torch.equal(together[row], alone[0])


@GAZE
def test_left_padding_changes_nothing(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)
    padded = dict(inputs)
    for name in ("input_ids", "attention_mask"):
        padded[name] = torch.nn.functional.pad(inputs[name], (5, 0))

    assert torch.equal(new_tokens(model, padded), new_tokens(model, inputs))


@GAZE
def test_static_cache_equals_dynamic(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    assert torch.equal(
        new_tokens(model, inputs, cache_implementation="static", disable_compile=True), new_tokens(model, inputs)
    )


@GAZE
def test_no_cache_equals_cache(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    assert torch.equal(new_tokens(model, inputs, use_cache=False), new_tokens(model, inputs))


@GAZE
def test_sampling_is_reproducible_by_seed(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    def sample(seed):
        torch.manual_seed(seed)
        return new_tokens(model, inputs, do_sample=True)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


@GAZE
def test_cold_sampling_is_greedy(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    assert torch.equal(new_tokens(model, inputs, do_sample=True, temperature=1e-4), new_tokens(model, inputs))


@GAZE
def test_beams_score_what_forward_scores(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    found = generate(model, inputs, num_beams=3, return_dict_in_generate=True, output_scores=True)

    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        whole = inputs | {"input_ids": found.sequences, "attention_mask": torch.ones_like(found.sequences)}
        log_probs = model(**whole).logits[:, length - 1 : -1].log_softmax(-1)
    expected = log_probs.gather(-1, found.sequences[:, length:].unsqueeze(-1)).squeeze(-1).mean(-1)
    torch.testing.assert_close(found.sequences_scores, expected, rtol=1e-4, atol=1e-4)


@GAZE
def test_beams_find_a_sequence_at_least_as_likely_as_greedy(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)
    length = inputs["input_ids"].shape[1]

    @torch.no_grad()
    def log_probability(sequences):
        whole = inputs | {"input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
        log_probs = model(**whole).logits[:, length - 1 : -1].log_softmax(-1)
        return log_probs.gather(-1, sequences[:, length:].unsqueeze(-1)).sum((1, 2))

    assert (
        log_probability(generate(model, inputs, num_beams=8)) >= log_probability(generate(model, inputs)) - 1e-4
    ).all()


@GAZE
def test_several_sequences_of_one_prompt_stand_together(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    several = new_tokens(model, inputs, num_beams=4, num_return_sequences=3)

    assert several.shape == (6, NEW)
    best = new_tokens(model, inputs, num_beams=4)
    assert torch.equal(several[::3], best)


@GAZE
def test_sequences_of_several_images_keep_their_images(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, num_images=2, gaze=gaze)

    together = new_tokens(model, inputs, num_beams=3)

    for prompt in range(2):
        alone = {
            name: value[prompt : prompt + 1] if len(value) == 2 else value[2 * prompt : 2 * prompt + 2]
            for name, value in inputs.items()
        }
        assert torch.equal(together[prompt], new_tokens(model, alone, num_beams=3)[0])


@GAZE
def test_embeddings_in_place_of_ids(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)
    as_embeds = {name: value for name, value in inputs.items() if name != "input_ids"}
    as_embeds["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"]).detach()

    assert torch.equal(generate(model, as_embeds), new_tokens(model, inputs))


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens = []
        self.ended = False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@GAZE
def test_streaming_gives_the_tokens_one_by_one(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, batch_size=1, gaze=gaze)
    streamer = Collector()

    thread = Thread(target=generate, args=(model, inputs), kwargs={"streamer": streamer})
    thread.start()
    thread.join()

    assert streamer.ended
    assert streamer.tokens == generate(model, inputs)[0].tolist()


@GAZE
def test_assisted_decoding_equals_greedy(model, tiny_model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, batch_size=1, gaze=gaze)
    assistant = tiny_model(seed=1)

    assert torch.equal(new_tokens(model, inputs, assistant_model=assistant), new_tokens(model, inputs))


@GAZE
def test_prompt_lookup_decoding_equals_greedy(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, batch_size=1, gaze=gaze)

    assert torch.equal(new_tokens(model, inputs, prompt_lookup_num_tokens=2), new_tokens(model, inputs))


@GAZE
def test_prefill_in_chunks_equals_prefill_at_once(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)

    assert torch.equal(new_tokens(model, inputs, prefill_chunk_size=10), new_tokens(model, inputs))


@GAZE
def test_generation_goes_on_from_a_returned_cache(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, batch_size=1, gaze=gaze)
    expected = generate(model, inputs, max_new_tokens=6, min_new_tokens=6)

    first = generate(model, inputs, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    rest = {"input_ids": first.sequences, "attention_mask": torch.ones_like(first.sequences)}
    second = model.generate(
        **rest,
        past_key_values=first.past_key_values,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
    )

    assert torch.equal(second, expected)


@GAZE
def test_attention_kernels_agree(tiny_model, tiny_inputs, gaze):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze=gaze)
    tokens = {}

    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        tokens[kernel] = new_tokens(model, inputs)

    assert torch.equal(tokens["eager"], tokens["sdpa"])


@GAZE
def test_a_compiled_decoding_step_equals_eager(tiny_model, tiny_inputs, gaze):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze=gaze)
    expected = new_tokens(model, inputs)
    eager, compiled = model.forward, torch.compile(model.forward, backend="aot_eager", fullgraph=True, dynamic=False)
    steps = []

    def forward(*args, pixel_values=None, mm_encoder_outputs=None, **kwargs):
        # As `generate` does on an accelerator: the prompt as it comes, every further token compiled.
        if mm_encoder_outputs is not None or pixel_values is not None:
            return eager(*args, pixel_values=pixel_values, mm_encoder_outputs=mm_encoder_outputs, **kwargs)
        steps.append(1)
        return compiled(*args, **kwargs)

    forward.__signature__ = inspect.signature(eager)
    model.forward = forward
    actual = new_tokens(model, inputs, cache_implementation="static", disable_compile=True)

    assert torch.equal(actual, expected)
    assert len(steps) == NEW - 1


# -- images encoded ahead ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@GAZE
def test_images_may_be_encoded_ahead(model, tiny_inputs, gaze, options):
    inputs = tiny_inputs(model, gaze=gaze)
    expected = new_tokens(model, inputs, **options)
    of_image = {
        name: inputs.pop(name) for name in list(inputs) if name == "pixel_values" or name.startswith("fixation")
    }
    with torch.no_grad():
        features = model.get_image_features(**of_image)

    with counted(model) as calls:
        actual = new_tokens(model, inputs | {"mm_encoder_outputs": {"image": features}}, **options)

    assert torch.equal(actual, expected)
    assert calls == {"image": [], "graph": [], "scanpath": []}


@GAZE
def test_images_encoded_ahead_serve_several_generations(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)
    expected = new_tokens(model, inputs, num_beams=3)
    of_image = {
        name: inputs.pop(name) for name in list(inputs) if name == "pixel_values" or name.startswith("fixation")
    }
    with torch.no_grad():
        encoded = {"image": model.get_image_features(**of_image)}

    for _ in range(2):  # the features themselves, not a copy of them
        sequences = model.generate(
            **inputs, mm_encoder_outputs=encoded, num_beams=3, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )
        assert torch.equal(sequences[:, inputs["input_ids"].shape[1] :], expected)
    assert len(encoded["image"].pooler_output) == 2


def test_images_given_twice_are_refused(model, tiny_inputs):
    inputs = tiny_inputs(model)
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"])

    with pytest.raises(ValueError, match="both"):
        generate(model, inputs | {"mm_encoder_outputs": {"image": features}})


def test_a_misspelt_argument_is_refused(model, tiny_inputs):
    with pytest.raises(ValueError, match="fixation_masks"):
        generate(model, tiny_inputs(model), fixation_masks=torch.ones(2, 3))


@GAZE
def test_gaze_source_and_film_boxes_are_heard(model, tiny_inputs, gaze):
    inputs = tiny_inputs(model, gaze=gaze)
    extra = {"gaze_source": torch.tensor([0, 1]), "film_boxes": torch.tensor([[0.0, 0.0, 0.5, 1.0]] * 2)}

    assert torch.equal(new_tokens(model, inputs | extra), greedy_by_forward(model, inputs | extra))


@GAZE
def test_half_precision_generates(model, tiny_inputs, tmp_path, gaze):
    model.save_pretrained(tmp_path)
    half = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)

    assert new_tokens(half, tiny_inputs(half, gaze=gaze)).shape == (2, NEW)
