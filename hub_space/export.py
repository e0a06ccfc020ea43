"""A trained model as a flat folder in Hub layout: weights, configurations, tokenizer, and the code that reads them.

transformers copies code by the imports of one class and keeps one Auto class at a time. A model that offers five is
written here in full: every Hub file of both rooms, byte for byte, and the complete `auto_map` in each configuration.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..processing.errors import InputError

HUB_FILES = (
    "configuration_gaze2report.py",
    "modeling_gaze2report.py",
    "modeling_grid.py",
    "modeling_scanpath.py",
    "modeling_fusion.py",
    "modeling_detail.py",
    "modeling_perception.py",
    "image_processing_gaze2report.py",
    "processing_gaze2report.py",
    "anatomy.py",
    "dicom_sr.py",
    "drafts.py",
    "errors.py",
    "evidence.py",
    "evidence_comparison.py",
    "fhir.py",
    "grounding.py",
    "gaze_geometry.py",
    "overlay.py",
    "overlay_html.py",
    "prompts.py",
    "report_attributes.py",
    "report_labels.py",
    "structured.py",
)
MODEL_CLASS = "modeling_gaze2report.Gaze2ReportForConditionalGeneration"
PROCESSOR_CLASS = "processing_gaze2report.Gaze2ReportProcessor"
IMAGE_PROCESSOR_CLASS = "image_processing_gaze2report.Gaze2ReportImageProcessor"
AUTO_MAP = {
    "AutoConfig": "configuration_gaze2report.Gaze2ReportConfig",
    "AutoModel": MODEL_CLASS,
    "AutoModelForImageTextToText": MODEL_CLASS,
    "AutoProcessor": PROCESSOR_CLASS,
    "AutoImageProcessor": IMAGE_PROCESSOR_CLASS,
}


def hub_file_paths() -> dict[str, Path]:
    """Where each Hub file stands in this installation."""
    from .. import configuration_gaze2report
    from ..processing import processing_gaze2report

    rooms = [Path(module.__file__).parent for module in (configuration_gaze2report, processing_gaze2report)]
    return {name: next(room / name for room in rooms if (room / name).is_file()) for name in HUB_FILES}


def export_model(model, processor, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a model folder that loads with `trust_remote_code=True` where this package is not installed.

    The folder appears whole or not at all; a model that was there before is replaced, its `README.md` kept.

    Args:
        model: `Gaze2ReportForConditionalGeneration`.
        processor: its `Gaze2ReportProcessor`.
        folder: where to; its parent must exist.
        dtype: type of the stored weight matrices (vectors and statistics stay as they are). They are loaded as the
            model's own type all the same.

    Raises:
        InputError: the folder cannot be written, or holds something else than a model.
    """
    return replace_folder(folder, lambda new: write_folder(model, processor, new, dtype))


def write_adapter_folder(model, processor, folder: str | Path) -> Path:
    """The same for an adapter: peft's two files, the processor and the code, beside no weights of the base model.

    Args:
        model: `PeftModel` around a `Gaze2ReportForConditionalGeneration`.

    Raises:
        InputError: as for a model.
    """

    def write(new: Path) -> None:
        model.save_pretrained(new, save_embedding_layers=False)
        (new / "README.md").unlink(missing_ok=True)  # peft's empty card
        for weights in new.glob("*.safetensors"):
            shutil.copymode(new / "adapter_config.json", weights)
        write_processor(processor, new)

    return replace_folder(folder, write)


def replace_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new folder, and put it in the place of `folder` when it is whole."""
    folder = Path(folder).absolute()
    check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            new = Path(temporary) / "new"
            write(new)
            if (folder / "README.md").is_file():
                shutil.copy2(folder / "README.md", new / "README.md")
            old = Path(temporary) / "old"
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(new, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
    except OSError as error:
        raise InputError(f"{folder}: the model cannot be written there: {error.strerror or error}") from error
    return folder


def check_target(folder: str | Path) -> None:
    """Refuse to replace what is no model: an export would delete it.

    Raises:
        InputError: the path is a file, or a folder that holds files but no model's or adapter's configuration.
    """
    folder = Path(folder)
    if folder.is_dir():
        others = [entry for entry in folder.iterdir() if entry.name != "README.md"]
        if others and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputError(
                f"{folder} holds files and no model; an export would replace them. Name a new or empty folder."
            )
    elif folder.exists():
        raise InputError(f"{folder} is a file; name a folder for the model.")


def write_folder(model, processor, folder: Path, dtype: torch.dtype | None) -> None:
    model.config.auto_map = dict(AUTO_MAP)
    model.config.architectures = [type(model).__name__]
    state = None
    if dtype is not None:
        state = {
            name: value.to(dtype) if value.is_floating_point() and value.dim() > 1 else value
            for name, value in model.state_dict().items()
        }
    model.save_pretrained(folder, state_dict=state)
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)  # safetensors lets nobody but the owner read
    write_processor(processor, folder)


def write_processor(processor, folder: Path) -> None:
    """The processor, and the code of both rooms."""
    processor.save_pretrained(folder)
    # What `register_for_auto_class` would write, without marking the classes for the rest of the process.
    edit_json(folder / "processor_config.json", add_processor_classes)
    for name, source in hub_file_paths().items():
        shutil.copyfile(source, folder / name)


def add_processor_classes(values: dict) -> None:
    values["auto_map"] = {"AutoProcessor": PROCESSOR_CLASS}
    values["image_processor"]["auto_map"] = {"AutoImageProcessor": IMAGE_PROCESSOR_CLASS}


def edit_json(path: Path, edit) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


__all__ = ["AUTO_MAP", "HUB_FILES", "check_target", "export_model", "hub_file_paths", "write_adapter_folder"]
