"""The exported folder: loads anywhere, holds everything, replaces nothing it should not."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_relative_imports

import modeling_gaze2report
from modeling_gaze2report.hub_space import export
from modeling_gaze2report.hub_space.export import AUTO_MAP, HUB_FILES, export_model, hub_file_paths
from modeling_gaze2report.processing import processing_gaze2report
from modeling_gaze2report.processing.errors import InputError

from ..tiny_export import build_tiny_model, export_tiny_model

GAZE = [[0.25, 0.5, 0.2], [0.75, 0.25, 0.4]]
MODEL_CLASS = "Gaze2ReportForConditionalGeneration"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


@pytest.fixture(scope="module")
def model_and_processor(exported):
    model = AutoModelForImageTextToText.from_pretrained(exported).eval()
    return model, AutoProcessor.from_pretrained(exported)


@torch.no_grad()
def logits_of(model, processor, film):
    predicted = processor(images=film, return_tensors="pt")
    recorded = processor(images=film, gaze=GAZE, return_tensors="pt")
    return np.concatenate([model.eval()(**inputs).logits.numpy() for inputs in (predicted, recorded)])


# -- where the package cannot be imported -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(exported, model_and_processor, tmp_path_factory):
    """What a process without the package saw, and what this one expects: results, logits, expected logits, adapted."""
    import peft

    model, processor = model_and_processor
    folder = tmp_path_factory.mktemp("elsewhere")
    film = np.random.default_rng(0).integers(0, 256, (80, 60), dtype=np.uint8)
    np.savez(folder / "inputs.npz", film=film, gaze=GAZE)
    expected = logits_of(model, processor, film)

    adapted = peft.get_peft_model(
        AutoModelForImageTextToText.from_pretrained(exported),
        peft.LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["projector"]),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder / "adapter")
    expected_adapted = logits_of(adapted, processor, film)

    program = Path(__file__).with_name("load_without_package.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    done = subprocess.run(
        [sys.executable, str(program), str(exported), str(folder / "adapter"), str(folder / "inputs.npz"), str(folder)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((folder / "results.json").read_text())
    return results, np.load(folder / "logits.npz"), expected, expected_adapted


def test_it_loads_where_the_package_cannot_be_imported(elsewhere):
    results, logits, expected, _ = elsewhere

    assert results["package modules"] == []
    np.testing.assert_allclose(logits["first"], expected, rtol=0, atol=1e-5)


def test_every_auto_class_gives_ours(elsewhere):
    results, logits, expected, _ = elsewhere

    assert results["classes"] == {
        "AutoConfig": "configuration_gaze2report.Gaze2ReportConfig",
        "AutoModel": f"modeling_gaze2report.{MODEL_CLASS}",
        "AutoModelForImageTextToText": f"modeling_gaze2report.{MODEL_CLASS}",
        "AutoProcessor": "processing_gaze2report.Gaze2ReportProcessor",
        "AutoImageProcessor": "image_processing_gaze2report.Gaze2ReportImageProcessor",
    }
    np.testing.assert_allclose(logits["AutoModel"], expected, rtol=0, atol=1e-5)


def test_saved_again_it_loads_again_with_equal_logits(elsewhere):
    _, logits, _, _ = elsewhere

    assert np.array_equal(logits["second"], logits["first"])
    assert np.array_equal(logits["third"], logits["first"])


def test_every_loading_report_is_empty(elsewhere):
    results, *_ = elsewhere

    assert set(results["loading"]) == {"first", "AutoModel", "second", "third"}
    for name, report in results["loading"].items():
        assert not any(report.values()), (name, report)


def test_an_adapter_beside_its_base_loads(elsewhere):
    _, logits, expected, expected_adapted = elsewhere

    assert np.abs(expected_adapted - expected).max() > 1e-3  # the adapter changes something
    np.testing.assert_allclose(logits["adapter"], expected_adapted, rtol=0, atol=1e-5)


def test_a_report_is_written_without_the_package(elsewhere):
    results, *_ = elsewhere

    assert len(results["report"]) == 1 and isinstance(results["report"][0], str)


def test_the_pipeline_takes_chats_with_and_without_gaze(elsewhere):
    results, *_ = elsewhere

    for source in ("predicted", "recorded"):
        assert isinstance(results[f"pipeline {source}"], str)


# -- where the package is imported ------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoImageProcessor])
def test_with_the_package_nothing_is_asked_and_no_code_of_the_folder_runs(exported, monkeypatch, tmp_path, auto_class):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.get_class_in_module", lambda *_, **__: pytest.fail("remote code was loaded")
    )

    loaded = auto_class.from_pretrained(exported)

    assert type(loaded).__module__.startswith("modeling_gaze2report.")


def test_what_the_package_saves_asks_for_no_trust(model_and_processor, tmp_path):
    model, processor = model_and_processor

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    assert not list(tmp_path.glob("*.py"))
    assert type(AutoModel.from_pretrained(tmp_path)) is modeling_gaze2report.Gaze2ReportForConditionalGeneration


# -- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_is_flat_and_complete(exported):
    assert {entry.name for entry in exported.iterdir()} == {
        *HUB_FILES,
        *("config.json", "generation_config.json", "model.safetensors", "processor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


def test_the_code_is_the_packages_byte_for_byte(exported):
    for name, source in hub_file_paths().items():
        assert (exported / name).read_bytes() == source.read_bytes(), name


def test_the_auto_map_is_complete(exported):
    config = json.loads((exported / "config.json").read_text())
    processor = json.loads((exported / "processor_config.json").read_text())

    assert config["auto_map"] == AUTO_MAP
    assert set(AUTO_MAP) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageTextToText",
        "AutoProcessor",
        "AutoImageProcessor",
    }
    assert processor["auto_map"] == {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    assert processor["image_processor"]["auto_map"] == {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
    assert config["architectures"] == [MODEL_CLASS]


def test_weights_are_readable_like_the_other_files(exported):
    modes = {entry.name: entry.stat().st_mode for entry in exported.iterdir()}

    assert modes["model.safetensors"] == modes["config.json"]


def test_half_the_bytes_load_as_the_models_own_type(exported, model_and_processor, tmp_path):
    model, processor = model_and_processor
    film = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)

    export_model(model, processor, tmp_path / "half", dtype=torch.bfloat16)

    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.dim() > 1} == {torch.bfloat16}
    assert {value.dtype for value in stored.values() if value.dim() < 2} == {torch.float32}
    loaded, info = AutoModel.from_pretrained(tmp_path / "half", output_loading_info=True)
    assert not any(info.values())
    assert loaded.dtype == torch.float32
    # bfloat16 keeps eight bits: about 0.4 % of each weight.
    np.testing.assert_allclose(
        logits_of(loaded, processor, film), logits_of(model, processor, film), rtol=0.05, atol=0.02
    )


# -- the Hub files ----------------------------------------------------------------------------------------------------

ALLOWED = {*sys.stdlib_module_names, "torch", "torch_geometric", "transformers", "numpy", "PIL"}
ROOMS = [Path(modeling_gaze2report.__file__).parent, Path(processing_gaze2report.__file__).parent]


def test_every_file_of_the_rooms_that_models_need_is_a_hub_file():
    model_files = {path.name for path in ROOMS[0].glob("*_*.py") if re.match(r"(configuration|modeling)_", path.name)}
    processor_files = {path.name for path in ROOMS[1].glob("*.py") if path.name != "__init__.py"}

    assert model_files | processor_files == set(HUB_FILES)


def test_names_are_unique_over_both_rooms():
    names = Counter(path.name for room in ROOMS for path in room.glob("*.py") if path.name != "__init__.py")

    assert [name for name in HUB_FILES if names[name] != 1] == []


def imports_of(tree, guarded):
    """(absolute module, relative module) of every import, inside `try:` or outside."""

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            if inside == guarded:
                if isinstance(child, ast.Import):
                    yield from ((alias.name, None) for alias in child.names)
                if isinstance(child, ast.ImportFrom):
                    yield (child.module, None) if child.level == 0 else (None, "." * child.level + (child.module or ""))
            yield from walk(child, inside or isinstance(child, ast.Try))

    yield from walk(tree, False)


@pytest.mark.parametrize("name", HUB_FILES)
def test_a_hub_file_imports_what_the_hub_can_follow(name):
    path = hub_file_paths()[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    room = {sibling.stem for sibling in path.parent.glob("*.py")}

    everything = [*imports_of(tree, guarded=False), *imports_of(tree, guarded=True)]
    for module, _ in imports_of(tree, guarded=False):
        assert module is None or module.partition(".")[0] in ALLOWED, module
    for _, module in everything:
        assert module is None or re.fullmatch(r"\.\w+", module), f"{module}: one dot and one name"
        assert module is None or (module[1:] in room and f"{module[1:]}.py" in HUB_FILES), module
    assert not [module for module, _ in everything if module and module.startswith("modeling_gaze2report")]


@pytest.mark.parametrize("name", HUB_FILES)
def test_no_line_of_a_docstring_reads_as_an_import(name):
    path = hub_file_paths()[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))

    real = {module[1:] for guarded in (False, True) for _, module in imports_of(tree, guarded) if module}

    # transformers finds relative imports by a pattern over the text.
    assert set(get_relative_imports(path)) == real


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(exported, tmp_path):
    """A model folder that was there before, with a card and something of its own."""
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("my card")
    (folder / "old.bin").write_text("old")
    return folder


def test_an_export_replaces_a_model_and_keeps_its_card(model_and_processor, target):
    export_model(*model_and_processor, target)

    assert (target / "README.md").read_text() == "my card"
    assert (target / "model.safetensors").is_file() and not (target / "old.bin").exists()
    assert os.listdir(target.parent) == ["mine"]


@pytest.mark.parametrize("failing", ["write_folder", "second replace"])
def test_an_export_that_fails_leaves_the_old_model(model_and_processor, target, monkeypatch, failing):
    replace = os.replace

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    def fail_for_new(source, destination):
        return fail() if Path(source).name == "new" else replace(source, destination)

    if failing == "write_folder":
        monkeypatch.setattr(export, "write_folder", fail)
    else:
        monkeypatch.setattr(export.os, "replace", fail_for_new)

    with pytest.raises(InputError, match=r"mine: the model cannot be written there: No space left on device"):
        export_model(*model_and_processor, target)

    assert {entry.name for entry in target.iterdir()} == {"config.json", "README.md", "old.bin"}
    assert os.listdir(target.parent) == ["mine"]


def test_an_export_makes_missing_folders(model_and_processor, tmp_path):
    folder = export_model(*model_and_processor, tmp_path / "a" / "b" / "c")

    assert (folder / "config.json").is_file()


def test_an_export_to_a_relative_path_stands_in_the_current_folder(model_and_processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    export_model(*model_and_processor, "here")

    assert (tmp_path / "here" / "config.json").is_file()


def test_an_export_does_not_replace_other_files(model_and_processor, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(InputError, match="holds files and no model"):
        export_model(*model_and_processor, tmp_path)

    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_an_export_onto_a_file_is_refused(model_and_processor, tmp_path):
    (tmp_path / "model").write_text("a file")

    with pytest.raises(InputError, match="is a file"):
        export_model(*model_and_processor, tmp_path / "model")

    assert (tmp_path / "model").read_text() == "a file"


def test_a_folder_that_cannot_be_made_is_refused(model_and_processor, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot be written there"):
        export_model(*model_and_processor, tmp_path / "file" / "model")


def test_an_export_leaves_the_classes_unmarked():
    model, processor = build_tiny_model()

    # A marked class makes every later `save_pretrained` copy code and ask for trust.
    for one in (model, model.config, processor, processor.image_processor, processor.tokenizer):
        assert getattr(type(one), "_auto_class", None) is None
