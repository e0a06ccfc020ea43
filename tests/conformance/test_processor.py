"""transformers' `ProcessorTesterMixin` on `Gaze2ReportProcessor`."""

import functools
import unittest
from unittest import mock

import pytest
import transformers
import transformers_suites

if hasattr(transformers_suites, "WHY_MISSING"):
    pytest.skip(transformers_suites.WHY_MISSING, allow_module_level=True)

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers_suites.test_processing_common import ProcessorTesterMixin

from modeling_gaze2report.processing.image_processing_gaze2report import Gaze2ReportImageProcessor
from modeling_gaze2report.processing.processing_gaze2report import Gaze2ReportProcessor

# Tests of the suite that are not run, each with its reason.
SKIPPED = {
    "test_if_input_has_mismatching_tokens_and_mm_data": (
        "asks for transformers' wording: ours says how many texts, places and images there are (tests/processing)"
    ),
}
# Tests of the suite that run under a condition of ours, each with its reason.
RENDERED = "the suite writes placeholders and bare text itself: it has to say `is_rendered`, or its text is a question"
OVERRIDDEN = {
    "test_get_num_multimodal_tokens_matches_processor_call": RENDERED,
    "test_processor_text_has_no_visual": RENDERED,
    "test_subprocessor_defaults_0_text": RENDERED,
}
# What becomes of the suite; the last test of this module holds it true. "skipped by the suite" are tests of video, of
# audio and of tools, which Gaze2Report does not take.
COUNTED_VERSION = "5.23.0"
COUNTS = {"passed": 32, "skipped by the suite": 31, "skipped here": 1, "overridden": 3}


class Gaze2ReportProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = Gaze2ReportProcessor

    @classmethod
    def _setup_tokenizer(cls):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            additional_special_tokens=["<|visual_gaze|>"],
        )

    @classmethod
    def _setup_image_processor(cls):
        return Gaze2ReportImageProcessor(size={"height": 32, "width": 32})

    @staticmethod
    def prepare_processor_dict():
        return {"num_visual_gaze_tokens": 6}

    def rendered(self):
        """Every text that the processor is called with is a rendered prompt."""
        call = functools.partialmethod(Gaze2ReportProcessor.__call__, is_rendered=True)
        return mock.patch.object(Gaze2ReportProcessor, "__call__", call)

    def test_get_num_multimodal_tokens_matches_processor_call(self):
        with self.rendered():
            super().test_get_num_multimodal_tokens_matches_processor_call()

    def test_processor_text_has_no_visual(self):
        with self.rendered():
            super().test_processor_text_has_no_visual()

    def test_subprocessor_defaults_0_text(self):
        with self.rendered():
            super().test_subprocessor_defaults_0_text()


for name, reason in SKIPPED.items():
    setattr(Gaze2ReportProcessorTest, name, unittest.skip(reason)(getattr(ProcessorTesterMixin, name)))


def test_the_table_of_outcomes_is_true(count_outcomes):
    if transformers.__version__ != COUNTED_VERSION:
        pytest.skip(f"counted for transformers {COUNTED_VERSION}")

    assert count_outcomes(ProcessorTesterMixin, Gaze2ReportProcessorTest, SKIPPED, OVERRIDDEN) == COUNTS
