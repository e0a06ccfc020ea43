"""The evaluate modules: loadable offline from their folders, and nothing but the package's own numbers."""

import ast
import runpy
import socket
from pathlib import Path

import pytest

from modeling_gaze2report.processing.metrics.reports import PROTOCOLS, report_statistics

FOLDER = Path(__file__).parents[3] / "processing" / "metrics" / "evaluate_modules"
MODULES = ("cxr_report_text", "chexpert_rules_f1", "scanpath_similarity")


@pytest.fixture
def evaluate(monkeypatch):
    """The evaluate library on a machine without network."""
    library = pytest.importorskip("evaluate")

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return library


@pytest.mark.parametrize("name", MODULES)
def test_a_module_loads_offline_and_passes_its_cases(name, evaluate):
    metric = evaluate.load(str(FOLDER / name), keep_in_memory=True)
    cases = runpy.run_path(str(FOLDER / name / "tests.py"))["test_cases"]
    size = {"width": 100, "height": 100} if name == "scanpath_similarity" else {}

    for case in cases:
        result = metric.compute(predictions=case["predictions"], references=case["references"], **size)
        assert {key: result[key] for key in case["result"]} == pytest.approx(case["result"])


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_the_layout_of_a_space(name):
    import yaml

    folder = FOLDER / name
    front = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])

    assert {file.name for file in folder.iterdir() if file.is_file()} == {
        "README.md",
        "app.py",
        "requirements.txt",
        "tests.py",
        f"{name}.py",
    }
    assert front["sdk"] == "gradio"
    assert front["tags"] == ["evaluate", "metric"]
    assert (folder / front["app_file"]).is_file()
    assert "gaze2report" in (folder / "requirements.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_imports_stand_one_to_a_line(name):
    # evaluate reads imports with a regular expression that fails on several in one line.
    tree = ast.parse((FOLDER / name / f"{name}.py").read_text(encoding="utf-8"))

    assert all(len(node.names) == 1 for node in tree.body if isinstance(node, ast.Import))


def test_the_text_module_gives_the_packages_numbers(evaluate):
    said, true = ["Heart is normal. No effusion."], ["Heart size is normal. No pleural effusion."]
    metrics, _ = report_statistics(said, [true], PROTOCOLS["r2gen-mimic"], ["meteor"])

    result = evaluate.load(str(FOLDER / "cxr_report_text"), keep_in_memory=True).compute(
        predictions=said, references=true, protocol="r2gen-mimic"
    )

    assert result["bleu_2"] == metrics["bleu_2"].score()
    assert result["protocol"] == "r2gen-mimic"
