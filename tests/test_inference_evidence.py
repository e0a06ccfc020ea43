"""What inference adds to the evidence: attention to visual-gaze tokens, and readings along drawn scanpaths."""

import numpy as np
import pytest
import torch
from transformers import set_seed

from modeling_gaze2report import inference
from modeling_gaze2report.inference import (
    generate_reports,
    read_films,
    recover_order,
    reread_films,
    visual_gaze_attention,
)
from modeling_gaze2report.modeling_gaze2report import Gaze2ReportImageFeatures
from modeling_gaze2report.processing.errors import InputError

from .tiny_export import NUM_VISUAL_GAZE_TOKENS, build_talking_reader
from .tiny_export import noise_film as film


@pytest.fixture(scope="module")
def reader():
    reader = build_talking_reader()
    reader.model.generation_config.eos_token_id = None
    return reader


def test_an_order_goes_by_the_scores_of_the_fixations(reader, monkeypatch):
    scores = torch.tensor([[0.5, 0.1, -1.0, -9.0], [0.0, 2.0, 1.0, -0.5]])
    features = Gaze2ReportImageFeatures(order_scores=scores)
    monkeypatch.setattr(inference, "image_features", lambda *rest: features)

    # The fourth score of the first film belongs to no fixation of it.
    assert recover_order(reader, [film(0), film(1)], [np.ones((3, 3)), np.ones((4, 3))]) == [[2, 1, 0], [3, 0, 2, 1]]


def test_an_order_holds_every_fixation_once_and_is_that_of_the_film_alone(reader):
    gaze = [np.random.default_rng(seed).random((count, 3)) for seed, count in enumerate((2, 5))]
    films = [film(0), film(1)]

    orders = recover_order(reader, films, gaze)

    assert [sorted(order) for order in orders] == [[0, 1], [0, 1, 2, 3, 4]]
    assert orders == [recover_order(reader, [one], [own])[0] for one, own in zip(films, gaze, strict=True)]


def test_more_fixations_than_the_model_takes_have_no_order(reader):
    limit = reader.processor.max_fixations

    with pytest.raises(InputError, match=rf"film 0: {limit + 1} fixations .* the model takes {limit}"):
        recover_order(reader, [film(0)], [np.full((limit + 1, 3), 0.5)])


PROMPTS = ["Write the report of this chest X-ray.", "Is there an effusion, and on which side is it to be seen?"]


def test_each_token_has_the_attention_of_the_place_where_it_was_chosen(reader):
    sequences, features, log_probs = generate_reports(reader, [film(0)])
    num_new = log_probs.shape[1]

    with torch.inference_mode():
        attention = visual_gaze_attention(reader.model, sequences, num_new, features)

        # By hand: a pass over the text up to a token shows, in its last row, what choosing the token attended to.
        language_model = reader.model.model.language_model
        usual = language_model.config._attn_implementation
        language_model.set_attn_implementation("eager")
        places = (sequences[0] == reader.model.config.image_token_id).nonzero().flatten()
        for number in range(num_new):
            end = sequences.shape[1] - num_new + number
            outputs = reader.model(
                input_ids=sequences[:, :end], mm_encoder_outputs={"image": features}, output_attentions=True
            )
            expected = torch.stack([layer[0, :, -1].mean(0) for layer in outputs.attentions]).mean(0)[places]
            torch.testing.assert_close(attention[0, number], expected, rtol=1e-4, atol=1e-6)
        language_model.set_attn_implementation(usual)
    assert attention.shape == (1, num_new, NUM_VISUAL_GAZE_TOKENS)


def test_padding_changes_nothing(reader):
    films = [film(0), film(1, 60, 80)]
    together, features, log_probs = generate_reports(reader, films, prompts=PROMPTS)
    num_new = log_probs.shape[1]

    with torch.inference_mode():
        attention = visual_gaze_attention(reader.model, together, num_new, features)
        for index in range(2):
            alone, own_features, own = generate_reports(reader, [films[index]], prompts=[PROMPTS[index]])
            assert alone[0, -own.shape[1] :].tolist() == together[index, -num_new:].tolist()
            expected = visual_gaze_attention(reader.model, alone, own.shape[1], own_features)
            torch.testing.assert_close(attention[index], expected[0], rtol=1e-3, atol=1e-5)


def test_a_placeholder_that_the_model_wrote_is_no_image(reader):
    sequences, features, log_probs = generate_reports(reader, [film(0)])
    num_new = log_probs.shape[1]

    with torch.inference_mode():
        sequences[0, -num_new + 1] = reader.model.config.image_token_id
        attention = visual_gaze_attention(reader.model, sequences, num_new, features)

    assert attention.shape == (1, num_new, NUM_VISUAL_GAZE_TOKENS) and attention.isfinite().all()


def test_the_model_attends_as_before_afterwards(reader):
    sequences, features, log_probs = generate_reports(reader, [film(0)])
    config = reader.model.model.language_model.config
    before = config._attn_implementation

    with torch.inference_mode():
        visual_gaze_attention(reader.model, sequences, log_probs.shape[1], features)

    assert config._attn_implementation == before != "eager"


def test_nothing_written_has_no_attention(reader):
    sequences, features, _ = generate_reports(reader, [film(0)])

    assert visual_gaze_attention(reader.model, sequences, 0, features) is None


def test_drawn_readings_differ_and_repeat_with_their_seed(reader):
    films = [film(0), film(1)]

    runs = []
    for seed in (0, 0, 1):
        set_seed(seed)
        runs.append(reread_films(reader, films, 3))

    for rereadings in runs:
        assert [one.finding_probabilities.shape for one in rereadings] == [(3, 14)] * 2
        assert [len(one.reports) for one in rereadings] == [3, 3]
    first, again, other = (np.array([one.finding_probabilities for one in run]) for run in runs)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first[0], axis=0)) > 1


def test_records_say_what_their_confidence_rests_on(reader):
    (record,) = read_films(reader, [film(0)], num_scanpaths=2)

    assert record["confidence_from"] == {"token_probability": True, "num_scanpaths": 2}
    assert all(set(finding["agreement"]) == {"probability", "report"} for finding in record["findings"])
