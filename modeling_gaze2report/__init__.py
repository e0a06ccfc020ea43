"""Gaze2Report: chest X-ray reports you can check.

Importing this package teaches transformers' Auto classes our model and processor, so that a local folder loads without
`trust_remote_code` and without a question:

    import modeling_gaze2report
    model = AutoModelForImageTextToText.from_pretrained(folder)

Nearly all of the import's time is transformers' own, and registering cannot do without it. The command line therefore
starts without; there a command that needs models registers them when it runs.
"""

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gaze2report")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

# An installation has the rooms `processing` and `hub_space` inside this folder; a checkout has them beside it, and
# Python takes the checkout where it is started in its root.
if not os.path.isdir(os.path.join(__path__[0], "processing")):
    __path__.append(os.path.dirname(__path__[0]))

# Where each public name lives; a module is imported when one of its names is asked for.
_MODULES = {
    "configuration_gaze2report": (
        "Gaze2ReportConfig",
        "Gaze2ReportScanpathConfig",
        "Gaze2ReportFusionConfig",
        "Gaze2ReportPerceptionConfig",
    ),
    "modeling_gaze2report": ("Gaze2ReportForConditionalGeneration", "Gaze2ReportModel"),
    "modeling_scanpath": ("Gaze2ReportScanpathModel",),
    "modeling_fusion": ("Gaze2ReportFusionModel",),
    "modeling_perception": ("Gaze2ReportPerceptionModel",),
    "processing.processing_gaze2report": ("Gaze2ReportProcessor",),
    "processing.image_processing_gaze2report": ("Gaze2ReportImageProcessor",),
    "processing.errors": ("Gaze2ReportError", "InputError", "DataError", "RecipeError", "ModelError"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_HOMES, "register_auto_classes"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register_auto_classes() -> None:
    """Teach transformers' Auto classes our classes; doing it again changes nothing."""
    importlib.import_module(".auto_classes", __name__)


def _started_by_command_line() -> bool:
    """Whether this process is `gaze2report ...` or `python -m modeling_gaze2report.cli ...`."""
    program = os.path.splitext(os.path.basename(sys.orig_argv[1] if len(sys.orig_argv) > 1 else ""))[0]
    return program in ("gaze2report", "gaze2report-script") or sys.orig_argv[1:3] == ["-m", f"{__name__}.cli"]


if not _started_by_command_line():
    register_auto_classes()
