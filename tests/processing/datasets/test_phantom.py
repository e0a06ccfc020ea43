import collections
import re

import numpy as np
import pytest

from modeling_gaze2report.processing.anatomy import REGION_NAMES, REGIONS
from modeling_gaze2report.processing.datasets.phantom import generate_phantom, generate_readings
from modeling_gaze2report.processing.datasets.phantom_anatomy import Canvas, normal_layers, sample_anatomy
from modeling_gaze2report.processing.datasets.phantom_findings import (
    FREQUENCY,
    draw_findings,
    lesion_radius,
    sample_finding,
    shape_anatomy,
)
from modeling_gaze2report.processing.datasets.phantom_report import PHRASES, expand
from modeling_gaze2report.processing.datasets.phantom_study import REFERENCE, gaze_statistics
from modeling_gaze2report.processing.datasets.record import COLUMNS, check_record
from modeling_gaze2report.processing.report_labels import FINDINGS, label_report

SEED = 20


@pytest.fixture(scope="module")
def records():
    return [generate_phantom(SEED, index, 32) for index in range(260)]


def test_record_keeps_its_promises(records):
    for record in records[:50]:
        assert set(record) <= set(COLUMNS)
        full = {**dict.fromkeys(COLUMNS), "terms": [], **record}
        check_record(full, record["image_id"])
    assert records[0]["image"].dtype == np.uint8
    assert records[0]["image"].shape == (32, 32)


def test_film_depends_on_seed_and_index_alone():
    again = [generate_phantom(3, index, 64) for index in (5, 2)][1]
    alone = generate_phantom(3, 2, 64)
    other = generate_phantom(4, 2, 64)

    assert np.array_equal(again["image"], alone["image"])
    assert {k: v for k, v in again.items() if k != "image"} == {k: v for k, v in alone.items() if k != "image"}
    assert not np.array_equal(alone["image"], other["image"])


def test_only_the_pixels_depend_on_the_size():
    small, large = generate_phantom(3, 7, 48), generate_phantom(3, 7, 96)

    assert {k: v for k, v in small.items() if k != "image"} == {k: v for k, v in large.items() if k != "image"}


def test_twelve_bit_film():
    film = generate_phantom(3, 1, 64, bit_depth=12)["image"]

    assert film.dtype == np.uint16
    assert 255 < film.max() <= 4095


def test_every_category_is_there_and_a_third_of_films_are_normal(records):
    labels = np.array([record["labels"] for record in records])

    assert (labels == 1).any(axis=0).all()
    assert 0.24 < (labels[:, 0] == 1).mean() < 0.45
    assert (labels == -1).any()
    assert max(len({box["label"] for box in record["boxes"]}) for record in records) == 4


def test_no_finding_means_no_other_finding(records):
    for record in records:
        others = [
            v
            for name, v in zip(FINDINGS, record["labels"], strict=True)
            if name not in ("No Finding", "Support Devices")
        ]
        assert (record["labels"][0] == 1) == (not any(others))


def test_boxes_and_labels_name_the_same_findings(records):
    for record in records:
        boxed = {box["label"] for box in record["boxes"]}
        labelled = {n for n, v in zip(FINDINGS, record["labels"], strict=True) if v} - {"No Finding"}
        assert boxed <= labelled
        assert labelled - boxed <= {"Lung Opacity"}  # a pneumonia is described as an opacity, in its own box


def test_rule_based_labeler_reads_the_labels_out_of_the_reports(records):
    agree = [
        (label_report(record["report"])[name] or 0) == value
        for record in records
        for name, value in zip(FINDINGS, record["labels"], strict=True)
    ]

    assert np.mean(agree) > 0.995


def test_right_sided_findings_are_on_the_viewers_left(records):
    sides = collections.Counter()
    for record in records:
        for box in record["boxes"]:
            words = [s["text"].lower() for s in record["sentences"] if " and " not in s["text"]]
            for text in words:
                if box["label"] in ("Pneumothorax", "Pleural Effusion") and box["label"].split()[-1].lower() in text:
                    center = (box["x0"] + box["x1"]) / 2
                    if "right" in text and "left" not in text:
                        sides["right", center < 0.5] += 1
                    elif "left" in text and "right" not in text:
                        sides["left", center > 0.5] += 1

    assert sides["right", True] > 10 and sides["left", True] > 10
    assert sides["right", False] == sides["left", False] == 0


def test_regions_lie_where_the_anatomy_table_expects_them(records):
    typical = np.array([region.typical_box for region in REGIONS])
    boxes = np.array([record["regions"] for record in records])

    assert boxes.shape[1:] == (len(REGION_NAMES), 4)
    assert (boxes[:, :, 2] > boxes[:, :, 0]).all() and (boxes[:, :, 3] > boxes[:, :, 1]).all()
    centers = (boxes[..., :2] + boxes[..., 2:]).mean(axis=0) / 2
    expected = (typical[:, :2] + typical[:, 2:]) / 2
    assert np.abs(centers - expected).max() < 0.10


def change_and_boxes(rng, category, strength):
    """How far a finding changes what a film is summed from, and the pixels in its boxes; both (128, 128)."""
    anatomy = sample_anatomy(rng)
    finding = sample_finding(rng, category, "pacemaker" if category == "Support Devices" else None)
    finding.strength = strength
    canvas = Canvas(128)
    plain = normal_layers(anatomy, canvas)
    shaped = shape_anatomy(anatomy, [finding])
    layers = normal_layers(shaped, canvas)
    draw_findings([finding], shaped, canvas, layers)
    names = ("lung", "heart", "vessels", "bone", "haze", "broad", "extra")
    change = sum(np.abs(getattr(layers, name) - getattr(plain, name)) for name in names)
    mask = np.zeros_like(change, dtype=bool)
    for x0, y0, x1, y1 in finding.boxes:
        (left, right), (top, bottom) = sorted((x0, x1)), sorted((y0, y1))
        mask |= (left <= canvas.X) & (right >= canvas.X) & (top <= canvas.Y) & (bottom >= canvas.Y)
    return change, mask


@pytest.mark.parametrize("category", FREQUENCY)
def test_an_obvious_finding_changes_the_film_in_its_box(category):
    rng = np.random.default_rng(1)
    for _ in range(3):
        change, mask = change_and_boxes(rng, category, 0.9)

        assert change[mask].max() > 0.05
        assert change[mask].mean() > 1.5 * change[~mask].mean()


@pytest.mark.parametrize("category", FREQUENCY)
def test_the_faintest_finding_can_still_be_seen(category):
    rng = np.random.default_rng(2)
    for _ in range(3):
        change, mask = change_and_boxes(rng, category, 0.02)

        assert change[mask].max() > 0.02


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_hearts_are_normal_up_to_the_ratio_from_which_they_are_enlarged(view):
    rng = np.random.default_rng(4)
    chests = [anatomy for anatomy in (sample_anatomy(rng) for _ in range(300)) if anatomy.view == view]
    faint = sample_finding(rng, "Cardiomegaly")
    faint.strength = 0.0
    limit = {"PA": 0.50, "AP": 0.54}[view]

    normal = [chest.heart_diameter / (2 * chest.half_width) for chest in chests]
    enlarged = shape_anatomy(chests[0], [faint])

    assert max(normal) <= limit < enlarged.heart_diameter / (2 * enlarged.half_width)
    assert np.mean(np.array(normal) > limit - 0.04) > 0.1


def test_a_nodule_ends_and_a_mass_starts_at_three_centimetres():
    millimetres = 2 * 400  # of a diameter on a film of 40 cm, per film width of radius

    assert millimetres * lesion_radius("nodule", 0.95) < 30 < millimetres * lesion_radius("mass", 0.55)


def test_prior_film_is_the_same_patients_and_the_report_compares(records):
    follow_ups = [(record, records[k - 1]) for k, record in enumerate(records) if record["prior_image_id"]]

    assert len(follow_ups) > 20
    for now, before in follow_ups:
        assert now["prior_image_id"] == before["image_id"]
        assert now["patient_id"] == before["patient_id"]
    compared = [
        bool(re.search(r"prior|previous|interval|stable|unchanged|new\b", now["report"])) for now, _ in follow_ups
    ]
    assert np.mean(compared) > 0.5


def test_patients_stay_in_one_split(records):
    splits = collections.defaultdict(set)
    for record in records:
        splits[record["patient_id"]].add(record["split"])

    assert all(len(names) == 1 for names in splits.values())
    assert {record["split"] for record in records} == {"train", "validation", "test"}


def test_readers_of_one_film_differ_in_gaze_and_agree_on_the_film():
    readings = generate_readings(SEED, 4, 5, 48)

    assert len({r["reader_id"] for r in readings}) == 5
    assert len({str(r["fixations"]) for r in readings}) == 5
    assert len({str(r["labels"]) + str(r["boxes"]) for r in readings}) == 1
    assert all(np.array_equal(r["image"], readings[0]["image"]) for r in readings)
    first = generate_phantom(SEED, 4, 48)
    assert first["fixations"] == readings[0]["fixations"] and first["report"] == readings[0]["report"]


def test_gaze_is_within_the_tolerances_of_published_statistics(records):
    found = gaze_statistics([record["fixations"] for record in records])

    outside = {
        name: found[name] for name, (value, tolerance) in REFERENCE.items() if abs(found[name] - value) > tolerance
    }
    assert not outside


def test_lesions_are_looked_at_longer_than_their_area_explains(records):
    ratios = []
    for record in records:
        boxes = [
            b for b in record["boxes"] if b["label"] in ("Lung Lesion", "Pneumonia", "Consolidation", "Lung Opacity")
        ]
        if not boxes:
            continue
        box = boxes[0]
        total = sum(f["duration_s"] for f in record["fixations"])
        inside = sum(
            f["duration_s"]
            for f in record["fixations"]
            if box["x0"] <= f["x"] <= box["x1"] and box["y0"] <= f["y"] <= box["y1"]
        )
        area = (box["x1"] - box["x0"]) * (box["y1"] - box["y0"])
        ratios.append(inside / total / area)

    assert np.median(ratios) > 3


def test_speech_follows_gaze(records):
    lags = []
    for record in records:
        lesions = {
            b["label"]: b for b in record["boxes"] if b["label"] in ("Pneumothorax", "Lung Lesion", "Consolidation")
        }
        for label, box in lesions.items():
            word = {"Lung Lesion": r"nodule|mass", "Pneumothorax": "pneumothorax", "Consolidation": "consolidation"}[
                label
            ]
            spoken = next((s["start_s"] for s in record["sentences"] if re.search(word, s["text"].lower())), None)
            seen = [
                f["onset_s"]
                for f in record["fixations"]
                if box["x0"] <= f["x"] <= box["x1"] and box["y0"] <= f["y"] <= box["y1"]
            ]
            if spoken is not None and seen:
                lags.append(spoken - min(seen))

    assert len(lags) > 15
    assert np.mean(np.array(lags) > 0) > 0.9


def test_sentences_are_timed_in_order_and_make_up_the_report(records):
    for record in records[:60]:
        starts = [s["start_s"] for s in record["sentences"]]
        ends = [s["end_s"] for s in record["sentences"]]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        text = " ".join(s["text"] for s in record["sentences"])
        assert text == f"{record['findings_text']} {record['impression']}"


def test_reports_vary_and_read_as_english(records):
    sentences = collections.Counter(s["text"] for record in records for s in record["sentences"])

    assert len(sentences) > 700
    wrong = [
        t
        for t in sentences
        if re.search(r"[{}\[\]|]|  | ,| \.|\ba [aeio]|\ban [^aeiouh]|is no .* is (seen|identified)|\.\.", t)
    ]
    assert wrong == []
    assert all((text[0].isupper() or text[0].isdigit()) and text.endswith(".") for text in sentences)
    lengths = [len(record["report"].split()) for record in records]
    assert 30 <= np.mean(lengths) <= 60 and max(lengths) <= 130


def test_every_phrase_is_filled_without_leftovers():
    rng = np.random.default_rng(0)
    slots = set()
    for scale, *groups in PHRASES.values():
        for template in (template for group in groups for template in group):
            text = expand(rng, template)
            slots |= set(re.findall(r"\{(\w+)\}", text))
        assert scale in ("small", "degree", "density")
    known = {
        "severity",
        "side",
        "place",
        "where",
        "base",
        "bases",
        "change",
        "adverb",
        "size",
        "displaced",
        "nondisplaced",
        "fracture",
        "fractures",
        "isare",
        "ofribs",
        "tip",
        "a",
    }
    assert {slot.lower() for slot in slots} <= known


def test_answers_agree_with_the_labels(records):
    asked = collections.Counter()
    for record in records:
        labels = dict(zip(FINDINGS, record["labels"], strict=True))
        for item in record["questions"]:
            match = re.search(r"(cardiomegaly|pneumothorax|fracture|atelectasis)\b.*\?", item["question"].lower())
            if match and item["answer"] in ("Yes.", "No."):
                asked[item["answer"]] += 1
                assert (labels[match.group(1).capitalize()] == 1) == (item["answer"] == "Yes.")
            if "PA or an AP" in item["question"]:
                assert item["answer"] == record["view"] + "."

    assert asked["Yes."] > 5 and asked["No."] > 5


def test_wrong_arguments_say_what_is_right():
    with pytest.raises(ValueError, match="num_readers must be 1 to 5"):
        generate_readings(0, 0, 6)
    with pytest.raises(ValueError, match="bit_depth must be 8 or 12"):
        generate_phantom(0, 0, 32, bit_depth=16)
