"""The checkpoint that comes with the package: whole, small, described, and better than chance."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

import modeling_gaze2report  # noqa: F401 - importing it registers the model with the auto classes
from modeling_gaze2report.cli import bundled_film
from modeling_gaze2report.hub_space.export import AUTO_MAP, HUB_FILES, hub_file_paths
from modeling_gaze2report.inference import answer_questions, embedded_folder, load_reader, read_films
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.image_processing_gaze2report import load_film
from modeling_gaze2report.processing.report_attributes import SEVERITIES, severities_in_report
from modeling_gaze2report.processing.report_labels import FINDINGS, label_report

FOLDER = embedded_folder()
pytestmark = pytest.mark.skipif(
    not (FOLDER / "config.json").is_file(), reason="hub_space/model holds no checkpoint: train the recipe `embedded`"
)
MAX_MEGABYTES = 30


@pytest.fixture(scope="module")
def reader():
    return load_reader(None, device="cpu")


def test_it_loads_by_every_auto_class_with_an_empty_report():
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        _, info = auto_class.from_pretrained(FOLDER, output_loading_info=True)
        assert not any(info.values()), info
    for auto_class in (AutoConfig, AutoProcessor, AutoImageProcessor):
        auto_class.from_pretrained(FOLDER)


def test_its_code_is_the_packages_byte_for_byte():
    assert {path.name for path in FOLDER.glob("*.py")} == set(HUB_FILES)
    for name, source in hub_file_paths().items():
        assert (FOLDER / name).read_bytes() == source.read_bytes(), f"{name} is stale: export the checkpoint again"


def test_its_auto_map_is_complete():
    assert json.loads((FOLDER / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= MAX_MEGABYTES * 1e6
    assert {path.suffix for path in files} <= {".py", ".json", ".safetensors", ".md", ".jinja", ".png"}


def test_its_model_card_is_one_the_hub_understands():
    card = ModelCard.load(FOLDER / "README.md")

    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    text = card.text.lower()
    for word in ("phantom", "clinical", "limit"):
        assert word in text, f"the card says nothing of {word!r}"


def test_it_reads_the_bundled_film(reader):
    (record,) = read_films(reader, [load_film(bundled_film())])

    assert record["report"]
    assert record["gaze"]["source"] == "predicted" and len(record["gaze"]["fixations"]) >= 3


def positives(labels):
    return np.array([labels[name] == 1 for name in FINDINGS[1:]])


def test_its_reports_name_the_right_findings_more_often_than_chance(reader):
    # Phantoms of a seed that training did not use. Chance: the same reports against the other films' findings.
    phantoms = [generate_phantom(seed=100_007, index=index, image_size=128) for index in range(32)]
    films = [load_film(phantom["image"], name=phantom["image_id"]) for phantom in phantoms]
    records = [record for start in range(0, 32, 16) for record in read_films(reader, films[start : start + 16])]
    written = np.array([positives(label_report(record["report"])) for record in records])  # (32, 13)
    true = np.array([positives(dict(zip(FINDINGS, phantom["labels"], strict=True))) for phantom in phantoms])

    def f1(shift):
        other = np.roll(true, shift, axis=0)
        return 2 * (written & other).sum() / (written.sum() + other.sum())

    assert f1(0) > max(f1(shift) for shift in range(1, 32))


def test_it_grades_findings_and_tells_views_apart_and_answers_accordingly(reader):
    phantoms = [generate_phantom(seed=100_007, index=index, image_size=256) for index in range(32)]
    films = [load_film(phantom["image"], name=phantom["image_id"]) for phantom in phantoms]
    questions = ["Is this a PA or an AP view?"] * len(films)
    records = answer_questions(reader, films, questions, num_drafts=16)

    views = [record["view"]["name"] for record in records]
    assert np.mean([view == phantom["view"] for view, phantom in zip(views, phantoms, strict=True)]) >= 0.85
    assert np.mean([record["report"] == f"{view}." for record, view in zip(records, views, strict=True)]) >= 0.95
    pairs = [
        (finding["severity"], SEVERITIES[stated[finding["name"]]])
        for record, phantom in zip(records, phantoms, strict=True)
        for finding in record["findings"]
        if finding["name"] in (stated := severities_in_report(phantom["report"])) and finding["severity"]
    ]
    right = np.mean([said == true for said, true in pairs])
    chance = np.mean([said == true for said, _ in pairs for _, true in pairs])
    assert len(pairs) > 20 and right > chance + 0.2
