"""Teaches transformers' Auto classes our classes, when it is imported."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_gaze2report import Gaze2ReportConfig
from .modeling_gaze2report import Gaze2ReportForConditionalGeneration
from .processing.image_processing_gaze2report import Gaze2ReportImageProcessor
from .processing.processing_gaze2report import Gaze2ReportProcessor

AutoConfig.register(Gaze2ReportConfig.model_type, Gaze2ReportConfig)
AutoModel.register(Gaze2ReportConfig, Gaze2ReportForConditionalGeneration)
AutoModelForImageTextToText.register(Gaze2ReportConfig, Gaze2ReportForConditionalGeneration)
AutoProcessor.register(Gaze2ReportConfig, Gaze2ReportProcessor)
AutoImageProcessor.register(Gaze2ReportConfig, image_processor_classes={"pil": Gaze2ReportImageProcessor})
