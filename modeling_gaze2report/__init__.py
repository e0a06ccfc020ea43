"""Gaze2Report: chest X-ray reports you can check.

Importing this package teaches transformers' Auto classes our model and processor, so that a local folder loads without
`trust_remote_code` and without a question:

    import modeling_gaze2report
    model = AutoModelForImageTextToText.from_pretrained(folder)
"""

from importlib.metadata import PackageNotFoundError, version

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .configuration_gaze2report import (
    Gaze2ReportConfig,
    Gaze2ReportFusionConfig,
    Gaze2ReportPerceptionConfig,
    Gaze2ReportScanpathConfig,
)
from .modeling_fusion import Gaze2ReportFusionModel
from .modeling_gaze2report import Gaze2ReportForConditionalGeneration, Gaze2ReportModel
from .modeling_perception import Gaze2ReportPerceptionModel
from .modeling_scanpath import Gaze2ReportScanpathModel
from .processing.errors import DataError, Gaze2ReportError, InputError, ModelError, RecipeError
from .processing.image_processing_gaze2report import Gaze2ReportImageProcessor
from .processing.processing_gaze2report import Gaze2ReportProcessor

try:
    __version__ = version("gaze2report")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

AutoConfig.register(Gaze2ReportConfig.model_type, Gaze2ReportConfig)
AutoModel.register(Gaze2ReportConfig, Gaze2ReportForConditionalGeneration)
AutoModelForImageTextToText.register(Gaze2ReportConfig, Gaze2ReportForConditionalGeneration)
AutoProcessor.register(Gaze2ReportConfig, Gaze2ReportProcessor)
AutoImageProcessor.register(Gaze2ReportConfig, image_processor_classes={"pil": Gaze2ReportImageProcessor})

__all__ = [
    "Gaze2ReportConfig",
    "Gaze2ReportScanpathConfig",
    "Gaze2ReportFusionConfig",
    "Gaze2ReportPerceptionConfig",
    "Gaze2ReportForConditionalGeneration",
    "Gaze2ReportModel",
    "Gaze2ReportScanpathModel",
    "Gaze2ReportFusionModel",
    "Gaze2ReportPerceptionModel",
    "Gaze2ReportProcessor",
    "Gaze2ReportImageProcessor",
    "Gaze2ReportError",
    "InputError",
    "DataError",
    "RecipeError",
    "ModelError",
]
