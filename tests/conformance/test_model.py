"""transformers' `ModelTesterMixin` and `ConfigTester` on Gaze2Report."""

import unittest
from unittest import mock

import pytest
import torch
import transformers
import transformers_suites

if hasattr(transformers_suites, "WHY_MISSING"):
    pytest.skip(transformers_suites.WHY_MISSING, allow_module_level=True)

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.testing_utils import torch_device
from transformers_suites.test_configuration_common import ConfigTester
from transformers_suites.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from modeling_gaze2report.configuration_gaze2report import (
    Gaze2ReportConfig,
    Gaze2ReportFusionConfig,
    Gaze2ReportPerceptionConfig,
    Gaze2ReportScanpathConfig,
)
from modeling_gaze2report.modeling_gaze2report import Gaze2ReportForConditionalGeneration, Gaze2ReportModel

# Tests of the suite that are not run, each with its reason.
SKIPPED = {
    "test_generation_tester_mixin_inheritance": (
        "the distribution holds no GenerationTesterMixin: tests/modeling/test_generation.py covers generation"
    ),
}
# Tests of the suite that run under a condition of ours, each with its reason.
OVERRIDDEN = {
    "test_model_outputs_equivalence": (
        "the suite subtracts outputs, which torch refuses for the boolean fixation_mask: it is shown as 0 and 1"
    ),
}
# What becomes of the suite on a machine without accelerator; the last test of this module holds it true. "skipped by
# the suite" are tests that skip themselves: they want an accelerator, DeepSpeed, flash attention or kernels, or a part
# that Gaze2Report does not have, such as experts, an encoder-decoder or a sliding window.
COUNTED_VERSION = "5.23.0"
COUNTS = {"passed": 111, "skipped by the suite": 44, "skipped here": 1, "overridden": 1}


class Gaze2ReportModelTester:
    """A model with two layers in the towers and one in the gaze parts, and films with prompts for it."""

    def __init__(self, parent, batch_size=3, num_text_tokens=5, num_fixations=6, is_training=True):
        self.parent = parent
        self.batch_size = batch_size
        self.num_fixations = num_fixations
        self.is_training = is_training
        self.image_token_id = 3
        self.image_size = 32
        self.num_channels = 3
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 2
        self.vision_config = {
            "model_type": "vit",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 37,
            "image_size": self.image_size,
            "patch_size": 8,
        }
        self.text_config = {
            "model_type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 37,
            "vocab_size": 99,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        self.gaze_config = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 37,
        }
        self.vocab_size = self.text_config["vocab_size"]
        self.num_visual_gaze_tokens = self.get_config().num_visual_gaze_tokens
        self.seq_length = self.num_visual_gaze_tokens + num_text_tokens
        self.encoder_seq_length = self.seq_length

    def get_config(self):
        return Gaze2ReportConfig(
            vision_config=dict(self.vision_config),
            text_config=dict(self.text_config),
            scanpath_config=self.gaze_config | {"num_encoder_layers": 1, "max_fixations": 8},
            fusion_config=self.gaze_config | {"region_grid_size": 2, "num_fixation_slots": 3, "num_neighbors": 3},
            perception_config={"projection_dim": 16},
            image_token_id=self.image_token_id,
            image_size=self.image_size,
            grid_size=4,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        size = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        input_ids = ids_tensor([self.batch_size, self.seq_length], config.text_config.vocab_size - 10) + 10
        input_ids[:, : self.num_visual_gaze_tokens] = self.image_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones(input_ids.shape, dtype=torch.long, device=torch_device),
            "pixel_values": floats_tensor(size),
            "fixations": floats_tensor((self.batch_size, self.num_fixations, 3)),
            "fixation_mask": torch.ones(self.batch_size, self.num_fixations, dtype=torch.bool, device=torch_device),
        }
        return config, inputs


class Gaze2ReportModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (Gaze2ReportModel, Gaze2ReportForConditionalGeneration)
    _is_composite = True
    # The report's loss trains the report: the scanpath model and the perception heads have losses of their own.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = Gaze2ReportModelTester(self)
        self.config_tester = ConfigTester(self, config_class=Gaze2ReportConfig, has_text_modality=False)
        # The suite looks up here which class computes a loss and which labels it wants.
        for names, name in (
            (MODEL_MAPPING_NAMES, "Gaze2ReportModel"),
            (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "Gaze2ReportForConditionalGeneration"),
        ):
            patch = mock.patch.dict(names, {"gaze2report": name})
            patch.start()
            self.addCleanup(patch.stop)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_outputs_equivalence(self):
        get_image_features = Gaze2ReportModel.get_image_features

        def with_numbers(*args, **kwargs):
            features = get_image_features(*args, **kwargs)
            features.fixation_mask = features.fixation_mask.long()
            return features

        with mock.patch.object(Gaze2ReportModel, "get_image_features", with_numbers):
            super().test_model_outputs_equivalence()


for name, reason in SKIPPED.items():
    setattr(Gaze2ReportModelTest, name, unittest.skip(reason)(getattr(ModelTesterMixin, name)))


@pytest.mark.parametrize(
    "config_class", [Gaze2ReportScanpathConfig, Gaze2ReportFusionConfig, Gaze2ReportPerceptionConfig]
)
def test_configuration_of_a_gaze_part(config_class):
    parent = unittest.TestCase()
    tester = ConfigTester(
        parent,
        config_class=config_class,
        has_text_modality=False,
        common_properties=["hidden_size"],
        hidden_size=64,
        grid_size=8,
    )

    tester.run_common_tests()


def test_the_table_of_outcomes_is_true(count_outcomes):
    if transformers.__version__ != COUNTED_VERSION or torch.accelerator.is_available():
        pytest.skip(f"counted for transformers {COUNTED_VERSION} on a machine without accelerator")

    assert count_outcomes(ModelTesterMixin, Gaze2ReportModelTest, SKIPPED, OVERRIDDEN) == COUNTS
