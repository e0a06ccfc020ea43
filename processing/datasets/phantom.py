"""Phantom films with all that a model of gaze and reports learns from: gaze, timed report, boxes, labels, questions.

No public data set that needs no credentials has chest films, radiologists' gaze and reports together. Phantoms stand
in for smoke tests, for pretraining and for the checkpoint that the project ships; they are drawings, and no clinical
conclusion follows from anything measured on them.

Every film is a function of (seed, index) alone, whatever the number of processes. Two films in a row (2k and 2k + 1)
may be one patient's prior and follow-up; both then belong to one patient and one split.
"""

from dataclasses import replace

import numpy as np

from ..report_labels import FINDINGS
from .phantom_anatomy import Anatomy, Canvas, expose, normal_layers, region_boxes, sample_anatomy, sample_exposure
from .phantom_findings import Finding, draw_findings, evolve, hedge, sample_findings, shape_anatomy
from .phantom_gaze import NUM_READERS, make_reader, read_film
from .phantom_report import TOPIC_OF, indication, questions, write_report

FOLLOW_UP_SHARE = 0.35
VERSION = 3  # of what is drawn: raised whenever the same seed gives other films


def _study(seed: int, index: int) -> tuple[Anatomy, list[Finding], list[Finding], bool]:
    """Anatomy, findings, resolved findings and whether the film has a prior (film index - 1)."""
    pair, second = divmod(index, 2)
    patient = np.random.default_rng([seed, 1, pair])
    follow_up = bool(patient.random() < FOLLOW_UP_SHARE)
    own = second and not follow_up
    rng = np.random.default_rng([seed, 2, index if own else 2 * pair])
    anatomy = sample_anatomy(rng)
    findings = sample_findings(rng, anatomy)
    resolved: list[Finding] = []
    if second and follow_up:
        later = np.random.default_rng([seed, 3, index])
        fresh = sample_anatomy(later)
        anatomy = replace(
            anatomy,
            rotation=fresh.rotation,
            inspiration=fresh.inspiration,
            dome={side: anatomy.dome[side] + 0.3 * (fresh.dome[side] - anatomy.dome[side]) for side in anatomy.dome},
            scapula_in=fresh.scapula_in,
            stomach_bubble=fresh.stomach_bubble,
        )
        findings, resolved = evolve(later, findings, anatomy)
    doubt = np.random.default_rng([seed, 4, index])
    for finding in findings:
        finding.hedged = hedge(doubt, finding)
    return anatomy, findings, resolved, bool(second and follow_up)


def _labels(findings: list[Finding]) -> list[int | None]:
    """The 14 labels: what the film shows, known for every category; -1 where the report hedges."""
    labels: list[int | None] = [0] * len(FINDINGS)

    def mark(name: str, value: int) -> None:
        k = FINDINGS.index(name)
        if labels[k] != 1:
            labels[k] = value

    for finding in findings:
        mark(finding.category, -1 if finding.hedged else 1)
        if finding.category == "Pneumonia":
            mark("Lung Opacity", 1)  # every pneumonia is described as an opacity
    if all(finding.category == "Support Devices" for finding in findings):
        labels[0] = 1
    return labels


def _split(seed: int, pair: int) -> str:
    draw = np.random.default_rng([seed, 5, pair]).random()
    return "train" if draw < 0.8 else "validation" if draw < 0.9 else "test"


def generate_phantom(seed: int, index: int, image_size: int = 256, bit_depth: int = 8) -> dict:
    """One reading of one phantom film, as a canonical record of plain Python and NumPy values.

    Args:
        seed: of the data set.
        index: of the film in the data set, from 0.
        image_size: height and width in pixels; the anatomy, findings, report and gaze do not depend on it.
        bit_depth: 8 gives a uint8 film, 12 a uint16 film with values up to 4095.

    Returns:
        The data set record; `image` is an (H, W) array. `labels` are in the order of `FINDINGS`, `regions` in that of
        `REGION_NAMES`, coordinates in [0, 1] of the film.
    """
    return generate_readings(seed, index, 1, image_size, bit_depth)[0]


def generate_readings(seed: int, index: int, num_readers: int, image_size: int = 256, bit_depth: int = 8) -> list[dict]:
    """Readings of one film by several readers: same film, labels and boxes; own gaze, words and order.

    Args:
        seed: of the data set.
        index: of the film.
        num_readers: 1 to 5.
        image_size: height and width in pixels.
        bit_depth: 8 or 12.

    Returns:
        Records as of `generate_phantom`; the first is the record that it returns.
    """
    if not 1 <= num_readers <= NUM_READERS:
        raise ValueError(f"num_readers must be 1 to {NUM_READERS}, not {num_readers}")
    if bit_depth not in (8, 12):
        raise ValueError(f"bit_depth must be 8 or 12, not {bit_depth}")
    anatomy, findings, resolved, has_prior = _study(seed, index)
    anatomy = shape_anatomy(anatomy, findings)
    placing = np.random.default_rng([seed, 6, index])
    canvas = Canvas(
        image_size,
        tilt=float(placing.normal(0, 0.018)),
        scale=float(placing.uniform(0.84, 1.18)),
        shift=(float(placing.normal(0, 0.024)), float(placing.normal(0.008, 0.026))),
    )
    layers = normal_layers(anatomy, canvas)
    draw_findings(findings, anatomy, canvas, layers)
    exposing = np.random.default_rng([seed, 7, index])
    film = expose(layers, anatomy, sample_exposure(exposing, anatomy.view), canvas, exposing)
    levels = 2**bit_depth - 1
    image = np.round(film * levels).astype(np.uint8 if bit_depth == 8 else np.uint16)

    regions = region_boxes(anatomy, canvas)
    film_boxes = {id(f): [canvas.box(*_ordered(box)) for box in f.boxes] for f in findings}
    labels = _labels(findings)
    pair = index // 2
    name = f"phantom-{seed}-{index:07d}"
    shared = {
        "image": image,
        "image_id": name,
        "study_id": name,
        "patient_id": f"phantom-{seed}-p{pair:07d}" + ("" if has_prior or index % 2 == 0 else "b"),
        "split": _split(seed, pair),
        "view": anatomy.view,
        "labels": labels,
        "boxes": [
            {"label": f.category, "x0": box[0], "y0": box[1], "x1": box[2], "y1": box[3]}
            for f in findings
            for box in film_boxes[id(f)]
        ],
        "regions": [list(box) for box in regions],
        "prior_image_id": f"phantom-{seed}-{index - 1:07d}" if has_prior else None,
    }
    asking = np.random.default_rng([seed, 8, index])
    shared["indication"] = indication(asking, findings)
    shared["questions"] = questions(asking, findings, labels, anatomy)
    order = np.random.default_rng([seed, 9, index]).permutation(NUM_READERS)[:num_readers]
    records = []
    for number in order.tolist():
        reader = make_reader(seed, number)
        rng = np.random.default_rng([seed, 10, index, number])
        topics = list(reader.topic_order)
        if findings and rng.random() < 0.5:  # what strikes the eye comes first
            striking = TOPIC_OF[max(findings, key=lambda f: f.strength).category]
            topics.remove(striking)
            topics.insert(0, striking)
        sentences, impression = write_report(rng, findings, resolved, anatomy, topics, reader.terse)
        fixations, spoken = read_film(rng, reader, sentences, impression, film_boxes, regions)
        findings_text = " ".join(sentence.text for sentence in sentences)
        impression_text = " ".join(sentence.text for sentence in impression)
        records.append(
            {
                **shared,
                "reader_id": reader.reader_id,
                "findings_text": findings_text,
                "impression": impression_text,
                "report": f"FINDINGS: {findings_text} IMPRESSION: {impression_text}",
                "fixations": fixations,
                "sentences": spoken,
            }
        )
    return records


def _ordered(box):
    x0, x1 = sorted((float(box[0]), float(box[2])))
    y0, y1 = sorted((float(box[1]), float(box[3])))
    return x0, y0, x1, y1


__all__ = ["generate_phantom", "generate_readings", "VERSION"]
