"""transformers' `ImageProcessingTestMixin` on `Gaze2ReportImageProcessor`."""

import unittest

import pytest
import transformers
import transformers_suites

if hasattr(transformers_suites, "WHY_MISSING"):
    pytest.skip(transformers_suites.WHY_MISSING, allow_module_level=True)

from transformers_suites.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from modeling_gaze2report.processing.image_processing_gaze2report import Gaze2ReportImageProcessor

# Tests of the suite that are not run, each with its reason.
SKIPPED = {
    "test_new_models_require_torchvision_backend": (
        "a rule for models inside transformers: films are read without torchvision, which cannot open 16-bit or DICOM"
    ),
}
# Tests of the suite that run under a condition of ours, each with its reason.
OVERRIDDEN = {}
# What becomes of the suite; the last test of this module holds it true. "skipped by the suite" are tests that compare
# two backends, are marked slow, or look for a check of arguments or a mutable default that is not there.
COUNTED_VERSION = "5.23.0"
COUNTS = {"passed": 19, "skipped by the suite": 8, "skipped here": 1}


class Gaze2ReportImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": Gaze2ReportImageProcessor}


class Gaze2ReportImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Gaze2ReportImageProcessingTester


for name, reason in SKIPPED.items():
    setattr(Gaze2ReportImageProcessingTest, name, unittest.skip(reason)(getattr(ImageProcessingTestMixin, name)))


def test_the_table_of_outcomes_is_true(count_outcomes):
    if transformers.__version__ != COUNTED_VERSION:
        pytest.skip(f"counted for transformers {COUNTED_VERSION}")

    assert count_outcomes(ImageProcessingTestMixin, Gaze2ReportImageProcessingTest, SKIPPED, OVERRIDDEN) == COUNTS
