import pytest
from transformers import LlamaConfig, ViTConfig

from modeling_gaze2report.configuration_gaze2report import (
    Gaze2ReportConfig,
    Gaze2ReportFusionConfig,
    Gaze2ReportPerceptionConfig,
    Gaze2ReportScanpathConfig,
)


def test_an_image_takes_66_tokens_by_default():
    config = Gaze2ReportConfig()

    assert config.num_visual_gaze_tokens == 1 + 49 + 16


def test_default_towers_are_the_reference_recipe():
    config = Gaze2ReportConfig()

    assert (config.vision_config.model_type, config.text_config.model_type) == ("dinov2", "qwen3")


def test_saved_and_loaded_configuration_is_equal(tiny_config, tmp_path):
    config = tiny_config(scanpath={"return_sigma": 0.1}, fusion={"graph_implementation": "pyg"})

    config.save_pretrained(tmp_path)

    assert Gaze2ReportConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_gaze_parts_read_the_shared_numbers_from_the_top(tiny_config):
    config = tiny_config(
        vision_config=ViTConfig(
            hidden_size=48, num_attention_heads=2, num_hidden_layers=1, image_size=80, patch_size=8
        ),
        grid_size=10,
        scanpath={"max_fixations": 7},
        fusion={"hidden_size": 40, "num_attention_heads": 2},
    )

    assert (config.scanpath_config.vision_hidden_size, config.fusion_config.vision_hidden_size) == (48, 48)
    parts = (config.scanpath_config, config.fusion_config, config.perception_config)
    assert [part.grid_size for part in parts] == [10, 10, 10]
    assert config.fusion_config.max_fixations == 7
    assert (config.perception_config.hidden_size, config.perception_config.text_hidden_size) == (40, 32)


def test_channels_of_a_staged_tower_are_those_of_its_last_stage():
    config = Gaze2ReportConfig(vision_config={"model_type": "convnext", "hidden_sizes": [8, 16, 24, 40]})

    assert config.vision_hidden_size == 40


def test_towers_and_parts_may_be_dicts_or_objects():
    vision, text = ViTConfig(hidden_size=32), LlamaConfig(hidden_size=32, vocab_size=99)
    scanpath = {"hidden_size": 64, "num_attention_heads": 4}

    as_objects = Gaze2ReportConfig(
        vision_config=vision, text_config=text, scanpath_config=Gaze2ReportScanpathConfig(**scanpath)
    )
    as_dicts = Gaze2ReportConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), scanpath_config=dict(scanpath)
    )

    assert as_objects.to_diff_dict() == as_dicts.to_diff_dict()
    assert isinstance(as_dicts.vision_config, ViTConfig)
    assert isinstance(as_dicts.scanpath_config, Gaze2ReportScanpathConfig)


def test_loading_keeps_every_number_of_a_part_that_is_overridden_in_one(tiny_config, tmp_path):
    tiny_config(scanpath={"max_fixations": 7}).save_pretrained(tmp_path)

    config = Gaze2ReportConfig.from_pretrained(tmp_path, scanpath_config={"return_sigma": 0.2})

    assert (config.scanpath_config.return_sigma, config.scanpath_config.max_fixations) == (0.2, 7)
    assert config.scanpath_config.hidden_size == 32


@pytest.mark.parametrize(("of_text", "of_top", "expected"), [(True, False, True), (False, True, True), (False,) * 3])
def test_tying_of_the_language_model_is_seen_at_the_top(of_text, of_top, expected):
    text = LlamaConfig(hidden_size=32, vocab_size=99, tie_word_embeddings=of_text)

    assert Gaze2ReportConfig(text_config=text, tie_word_embeddings=of_top).tie_word_embeddings is expected


@pytest.mark.parametrize(
    ("config_class", "values", "sentence"),
    [
        (Gaze2ReportScanpathConfig, {"hidden_size": 30}, r"hidden_size = 30 must be a multiple of .* = 16"),
        (Gaze2ReportScanpathConfig, {"min_fixations": 0}, "min_fixations = 0 must lie between 1 and"),
        (Gaze2ReportScanpathConfig, {"min_fixations": 9, "max_fixations": 8}, "and max_fixations = 8"),
        (Gaze2ReportScanpathConfig, {"return_sigma": 0.0}, "return_sigma = 0.0 must be above 0"),
        (Gaze2ReportFusionConfig, {"hidden_size": 30}, "hidden_size = 30 must be a multiple"),
        (Gaze2ReportFusionConfig, {"grid_size": 5}, "lower it to 5 or less"),
        (Gaze2ReportFusionConfig, {"num_neighbors": 196}, "number of patches minus one, 195"),
        (Gaze2ReportFusionConfig, {"num_neighbors": 0}, "num_neighbors = 0 must lie between"),
        (Gaze2ReportFusionConfig, {"heat_map_sigma": -1.0}, "must be above 0"),
        (Gaze2ReportFusionConfig, {"graph_implementation": "sparse"}, "graph_implementation"),
        (Gaze2ReportConfig, {"image_token_id": 200_000}, "image_token_id = 200000 lies outside the vocabulary"),
        (Gaze2ReportPerceptionConfig, {"num_findings": "many"}, "num_findings"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence_that_names_it(config_class, values, sentence):
    with pytest.raises(Exception, match=sentence):
        config_class(**values)


def test_checks_of_a_part_speak_of_the_shared_numbers(tiny_config):
    with pytest.raises(ValueError, match="region_grid_size = 4 needs at least as many patches"):
        tiny_config(grid_size=3)
