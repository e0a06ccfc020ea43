import os
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_gaze2report

ROOT = Path(__file__).parents[1]


def command_line(*arguments):
    """A run of the command, with the names of all modules that it imported on its standard error."""
    return subprocess.run(
        [sys.executable, "-m", "modeling_gaze2report.cli", *arguments],
        env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def imported(run):
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("arguments", [["--help"], ["benchmark", "--help"], ["report", "--help"]])
def test_help_needs_no_models(arguments):
    run = command_line(*arguments)

    assert run.returncode == 0
    assert "usage: gaze2report" in run.stdout
    assert imported(run).isdisjoint({"torch", "transformers", "torch_geometric"})


def test_labelling_needs_no_models(tmp_path):
    (tmp_path / "reports.jsonl").write_text('{"id": "a", "report": "Small left pleural effusion."}\n')

    run = command_line("label", str(tmp_path / "reports.jsonl"), "--out", str(tmp_path / "labels.csv"))

    assert run.returncode == 0, run.stderr.splitlines()[-1]
    assert "torch" not in imported(run)


def test_a_command_that_needs_models_finds_them_registered():
    run = command_line("report", "--max-new-tokens", "4")

    assert run.returncode == 0, run.stderr.splitlines()[-1]
    assert run.stdout.strip()


def test_importing_the_package_registers_its_classes():
    program = (
        "import modeling_gaze2report; from transformers import AutoConfig, AutoModelForImageTextToText as Auto; "
        "config = AutoConfig.for_model('gaze2report'); print(Auto._model_mapping[type(config)].__name__)"
    )

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500, check=True)

    assert run.stdout.strip() == "Gaze2ReportForConditionalGeneration"


def test_every_public_name_is_there():
    names = [getattr(modeling_gaze2report, name).__name__ for name in modeling_gaze2report.__all__]

    assert names == modeling_gaze2report.__all__
    assert set(names) <= set(dir(modeling_gaze2report))
    with pytest.raises(AttributeError, match="no attribute 'Gaze2Report'"):
        modeling_gaze2report.Gaze2Report  # noqa: B018


def test_a_checkout_that_is_not_installed_finds_its_rooms():
    """Python started in the root of a clone imports the clone, whatever stands installed beside it."""
    code = (
        "import sys; sys.meta_path[:] = [one for one in sys.meta_path if 'Editable' not in repr(one)]; "
        "import modeling_gaze2report.hub_space.export as export, modeling_gaze2report.processing.errors as errors; "
        "print(export.__file__, errors.__file__, sep=chr(10))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=500)

    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(ROOT / "hub_space" / "export.py"), str(ROOT / "processing" / "errors.py")]
