"""Real films: how far a checkpoint's findings, boxes and gaze reach, each figure next to chance.

    python -m modeling_gaze2report.training.film_study --cxr DIR --out DIR [--model DIR] [--part test]

`--cxr` is a folder of films with a `metadata.csv` (see `gaze2report prepare films`). Of the films that weights may be
trained on, the part that no patient shares with the training part is measured; `--part all` takes them all, for a
checkpoint that has seen no real film. Films with other licences are nobody's training data and always count.

* Findings: area under the ROC curve of each finding on ChestX-ray14's text-mined labels, intervals over patients;
  chance is 0.5.
* View: share of the films whose view the model tells, PA or AP, where it tells views apart; chance is the commonest
  view of the other patients' films.
* Boxes: overlap of the predicted boxes of the lungs, of heart and mediastinum, and of findings with the drawn ones;
  chance is the mean box of the same structure or finding on the other patients' films, and for regions also the box
  that the anatomy table gives for any film.
* Gaze: share of the predicted dwell time inside boxes of findings and inside the lungs; chance is the area's share of
  the film, what a Gaussian around the centre puts there, and what gaze predicted on other patients' films does.

`predictions.json` keeps what the model said: a repeated command scores it anew.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..inference import Reader, image_features, load_reader
from ..processing.anatomy import REGION_BY_NAME, REGION_NAMES
from ..processing.datasets.source_films import BOX_FINDINGS, PERMISSIVE, FilmRow, read_film_rows
from ..processing.errors import DataError
from ..processing.image_processing_gaze2report import load_film
from ..processing.metrics.boxes import pairwise_iou
from ..processing.metrics.files import write_json, write_text
from ..processing.metrics.findings import finding_statistics, finding_table
from ..processing.metrics.resampling import Bootstrap, compare_all, mean_statistics, score_all
from ..processing.metrics.results import interval, table
from ..processing.report_attributes import VIEWS, view_of
from ..processing.report_labels import FINDINGS
from .ablation import status_of

PARTS = ("test", "validation", "all")
# Structures with drawn boxes: names of the boxes, and regions of the model whose hull is compared with theirs.
STRUCTURES = {
    "right lung": ("Right Lung", ("right lung",)),
    "left lung": ("Left Lung", ("left lung",)),
    "heart and mediastinum": ("Cardiomediastinum", ("upper mediastinum", "cardiac silhouette")),
}
GRID = 256  # cells along a side, in which areas are measured
CENTRE_SIGMA = 0.2  # of the film's sides
GAZE_CHANCE = {
    "area": "Share of the area",
    "centre": "Gaussian around the centre",
    "other_films": "Gaze predicted on other films",
}
FEWEST = 5  # films of either kind below which an area under the curve says nothing


# -- predictions ------------------------------------------------------------------------------------------------------


def chosen_rows(root: str | Path, part: str, limit: int | None = None) -> list[FilmRow]:
    """Films that have something to be compared with.

    Raises:
        DataError: no table, or no film left.
    """
    every = read_film_rows(root)
    # Patients of other parts stay out with all their films, also with those that nobody may train on.
    others = {row.patient_id for row in every if row.licence_class == PERMISSIVE and part not in ("all", row.split)}
    rows = [row for row in every if row.patient_id not in others and (row.is_nih or row.boxes or row.lung_mask)]
    if not rows:
        raise DataError(f"{root}: no film of the part {part} has labels, boxes or a mask")
    return rows[:limit]


def predict(reader: Reader, root: Path, rows: Sequence[FilmRow], batch_size: int, say: Callable = print) -> list[dict]:
    """Probabilities, boxes and gaze of each film, read with predicted gaze; coordinates in [0, 1] of the film."""
    answers = []
    for start in range(0, len(rows), batch_size):
        films = [load_film(root / row.file, name=row.file) for row in rows[start : start + batch_size]]
        features = image_features(reader, films, None, "predicted")
        sizes = [(film.height, film.width) for film in films]
        for row, seen in zip(rows[start:], reader.processor.post_process_observation(features, sizes), strict=False):
            answers.append(
                {
                    "file": row.file,
                    "probabilities": np.asarray(seen.finding_probabilities, dtype=float).tolist(),
                    "finding_boxes": np.asarray(seen.finding_boxes, dtype=float).tolist(),
                    "region_boxes": np.asarray(seen.region_boxes, dtype=float).tolist(),
                    "fixations": np.asarray(seen.fixations, dtype=float).tolist(),
                    "view": None if seen.view is None else seen.view[0],
                }
            )
        if start // batch_size % 10 == 0:
            say(f"{len(answers)} of {len(rows)} films", flush=True)
    return answers


# -- findings ---------------------------------------------------------------------------------------------------------


def findings_study(rows: Sequence[FilmRow], answers: Sequence[dict], thresholds: Sequence[float]) -> dict:
    """AUROC of each finding and their mean, with intervals over patients, and how many films each rests on."""
    kept = [(row, answer) for row, answer in zip(rows, answers, strict=True) if row.is_nih]
    if not kept:
        return {}
    labels = np.array([[np.nan if one is None else one for one in row.labels()] for row, _ in kept])
    probabilities = np.array([answer["probabilities"] for _, answer in kept])
    patients = [row.patient_id for row, _ in kept]
    bootstrap = Bootstrap()
    rows_of_findings = finding_table(probabilities, labels, thresholds, bootstrap, patients, FEWEST)
    usable = [index for index, name in enumerate(FINDINGS) if "auroc" in rows_of_findings[name]]
    classes = {
        name: {"positives": row["positives"], "negatives": row["negatives"], **row.get("auroc", {})}
        for name, row in rows_of_findings.items()
    }
    macro = {}
    if usable:
        several = finding_statistics(probabilities[:, usable], labels[:, usable], np.array(thresholds)[usable])
        macro = score_all(several, bootstrap, patients)
    return {"films": len(kept), "patients": len(set(patients)), "classes": classes, "macro_over": len(usable), **macro}


def views_study(rows: Sequence[FilmRow], answers: Sequence[dict]) -> dict:
    """Whether the view of each film is told, of those that are known to be PA or AP, lying or not."""
    cases = [
        (row.patient_id, view_of(row.view), answer.get("view"))
        for row, answer in zip(rows, answers, strict=True)
        if view_of(row.view) and answer.get("view")
    ]
    if not cases:
        return {}
    patients, true, said = (np.array(column) for column in zip(*cases, strict=True))
    commonest = np.full(len(true), np.nan)
    for place, patient in enumerate(patients):
        others = true[patients != patient]
        if len(others):
            commonest[place] = max(VIEWS, key=lambda view, others=others: (others == view).sum()) == true[place]
    return compared({"model": (said == true).astype(float), "commonest": commonest}, patients.tolist())


# -- boxes ------------------------------------------------------------------------------------------------------------


def hull(boxes: Sequence[Sequence[float]]) -> list[float]:
    """The smallest box around several."""
    array = np.asarray(boxes, dtype=float)
    return [*array[:, :2].min(axis=0).tolist(), *array[:, 2:].max(axis=0).tolist()]


def mean_boxes(boxes: Sequence[Sequence[float]], patients: Sequence[str], kinds: Sequence[str]) -> np.ndarray:
    """For each box the mean box of its kind on films of other patients; NaN where there is none. Shape (N, 4)."""
    array, names, kind = np.asarray(boxes, dtype=float), np.asarray(patients), np.asarray(kinds)
    result = np.full(array.shape, np.nan)
    for place in range(len(array)):
        others = (names != names[place]) & (kind == kind[place])
        if others.any():
            result[place] = array[others].mean(axis=0)
    return result


def overlaps(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> np.ndarray:
    """IoU of boxes in pairs, (N,); NaN where a box is."""
    values = [
        float(pairwise_iou([one], [other])[0, 0]) if np.isfinite([*one, *other]).all() else np.nan
        for one, other in zip(np.asarray(first, dtype=float), np.asarray(second, dtype=float), strict=True)
    ]
    return np.array(values)


def compared(values: dict[str, np.ndarray], patients: Sequence[str]) -> dict:
    """Scores of `model` and of each way of chance on the cases that all have, and the model's differences from them."""
    bootstrap = Bootstrap()
    defined = np.isfinite(list(values.values())).all(axis=0)
    values = {name: column[defined] for name, column in values.items()}
    patients = [patient for patient, is_defined in zip(patients, defined, strict=True) if is_defined]
    if not patients:
        return {}
    metrics = {name: mean_statistics(name, column) for name, column in values.items()}
    result = {"cases": len(patients), "patients": len(set(patients)), "scores": score_all(metrics, bootstrap, patients)}
    result["differences"] = {
        name: compare_all({"value": metrics["model"]}, {"value": metric}, bootstrap, patients)["value"]
        for name, metric in metrics.items()
        if name != "model"
    }
    return result


def boxes_study(rows: Sequence[FilmRow], answers: Sequence[dict]) -> dict:
    """Overlap with the drawn boxes of lungs, heart and mediastinum, and findings."""
    drawn = defaultdict(list)  # structure -> (patient, drawn box, predicted box, kind of box)
    for row, answer in zip(rows, answers, strict=True):
        for structure, (label, regions) in STRUCTURES.items():
            boxes = [box for name, _, box in row.boxes if name == label]
            if boxes:
                predicted = hull([answer["region_boxes"][REGION_NAMES.index(name)] for name in regions])
                # A lung that two people drew counts once, as the mean of both boxes.
                drawn[structure].append((row.patient_id, np.mean(boxes, axis=0), predicted, structure))
        for finding, boxes in boxes_of_findings(row).items():
            predicted = answer["finding_boxes"][FINDINGS.index(finding)]
            drawn["findings"].append((row.patient_id, hull(boxes), predicted, finding))
    result = {}
    for structure, cases in drawn.items():
        patients, truth, predicted, kinds = (list(part) for part in zip(*cases, strict=True))
        means = mean_boxes(truth, patients, kinds)
        values = {"model": overlaps(predicted, truth), "mean_box": overlaps(means, truth)}
        if structure in STRUCTURES:
            typical = hull([REGION_BY_NAME[name].typical_box for name in STRUCTURES[structure][1]])
            values["typical_box"] = overlaps([typical] * len(truth), truth)
        result[structure] = compared(values, patients)
    return {name: one for name, one in result.items() if one}


def boxes_of_findings(row: FilmRow, source: str = "") -> dict[str, list]:
    """Boxes of a film by the finding they show, support devices left out; of one source, where it is named."""
    found = defaultdict(list)
    for label, origin, box in row.boxes:
        finding = label if label in FINDINGS else BOX_FINDINGS.get(label)
        if finding and finding != "Support Devices" and source in origin:
            found[finding].append(box)
    return dict(found)


# -- gaze -------------------------------------------------------------------------------------------------------------


def area_of_boxes(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Cells of the film whose centres lie in a box, (GRID, GRID) bool."""
    centres = (np.arange(GRID) + 0.5) / GRID
    area = np.zeros((GRID, GRID), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        area |= ((centres >= y0) & (centres <= y1))[:, None] & ((centres >= x0) & (centres <= x1))[None]
    return area


def area_of_mask(path: Path) -> np.ndarray:
    """The same of a mask file.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L").resize((GRID, GRID), Image.Resampling.NEAREST)) > 127
    except OSError as error:
        raise DataError(f"{path}: the mask cannot be read: {error}") from error


def dwell_share(fixations: np.ndarray, area: np.ndarray) -> float:
    """Share of the dwell time inside an area; NaN without fixations."""
    fixations = np.asarray(fixations, dtype=float).reshape(-1, 3)
    if not fixations[:, 2].sum():
        return float("nan")
    cells = np.clip((fixations[:, :2] * GRID).astype(int), 0, GRID - 1)
    return float(fixations[area[cells[:, 1], cells[:, 0]], 2].sum() / fixations[:, 2].sum())


def centre_weights() -> np.ndarray:
    """A Gaussian around the centre of the film, (GRID, GRID), summing to one."""
    line = np.exp(-0.5 * (((np.arange(GRID) + 0.5) / GRID - 0.5) / CENTRE_SIGMA) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def gaze_study(root: Path, rows: Sequence[FilmRow], answers: Sequence[dict]) -> dict:
    """Dwell inside the boxes of findings and inside the lungs."""
    gaze = [np.asarray(answer["fixations"], dtype=float).reshape(-1, 3) for answer in answers]
    maps, patients_of = [], np.array([row.patient_id for row in rows])
    for fixations in gaze:
        dwell = np.zeros((GRID, GRID))
        if fixations[:, 2].sum():
            cells = np.clip((fixations[:, :2] * GRID).astype(int), 0, GRID - 1)
            np.add.at(dwell, (cells[:, 1], cells[:, 0]), fixations[:, 2] / fixations[:, 2].sum())
        maps.append(dwell)
    total, centre = np.sum(maps, axis=0), centre_weights()
    result = {}
    for name, areas in {
        "NIH boxes of findings": [area_of_findings(row, "NIH") for row in rows],
        "Expert boxes of findings": [area_of_findings(row, "GeneralBlockchain") for row in rows],
        "Lungs": [area_of_mask(root / row.lung_mask) if row.lung_mask else None for row in rows],
    }.items():
        values = defaultdict(list)
        for index, area in enumerate(areas):
            if area is None:
                continue
            own = np.sum([maps[place] for place in np.flatnonzero(patients_of == patients_of[index])], axis=0)
            others = total - own
            values["model"].append(dwell_share(gaze[index], area))
            values["area"].append(float(area.mean()))
            values["centre"].append(float(centre[area].sum()))
            values["other_films"].append(float(others[area].sum() / others.sum()) if others.sum() > 1e-9 else np.nan)
            values["patient"].append(patients_of[index])
        if values:
            patients = values.pop("patient")
            result[name] = compared({key: np.array(column) for key, column in values.items()}, patients)
    return {name: one for name, one in result.items() if one}


def area_of_findings(row: FilmRow, source: str) -> np.ndarray | None:
    boxes = [box for several in boxes_of_findings(row, source).values() for box in several]
    return area_of_boxes(boxes) if boxes else None


# -- study ------------------------------------------------------------------------------------------------------------


def run_study(args: argparse.Namespace) -> str:
    """Predict where that was not done before, score, and return the tables.

    Raises:
        DataError: data that cannot be used; predictions of another model or part in the folder.
        ModelError: a model that cannot be loaded.
    """
    if args.batch_size < 1 or (args.max_films is not None and args.max_films < 1):
        raise DataError("--batch-size and --max-films must be at least 1")
    root, out = Path(args.cxr), Path(args.out)
    rows = chosen_rows(root, args.part, args.max_films)
    asked = {"model": args.model or "embedded", "part": args.part, "files": [row.file for row in rows]}
    file = out / "predictions.json"
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        for key, value in asked.items():
            if found[key] != value:
                raise DataError(f"{file}: it was made with another {key}; remove it, or name another --out")
    else:
        reader = load_reader(args.model, args.device)
        answers = predict(reader, root, rows, args.batch_size)
        found = asked | {"thresholds": list(reader.processor.thresholds), "answers": answers}
        write_json(file, found)
    answers = found["answers"]
    results = {
        "study": "films",
        "model": asked["model"],
        "part": args.part,
        "films": len(rows),
        "patients": len({row.patient_id for row in rows}),
        "findings": findings_study(rows, answers, found["thresholds"]),
        "view": views_study(rows, answers),
        "boxes": boxes_study(rows, answers),
        "gaze": gaze_study(root, rows, answers),
        "bootstrap": Bootstrap().settings(),
    }
    write_json(out / "results.json", results)
    text = render(results)
    write_text(out / "results.md", text)
    return text


def render(results: dict) -> str:
    """The tables of a study as a page to read."""
    part = "all films" if results["part"] == "all" else f"permissive films of the part {results['part']}, all others"
    parts = [
        "# Real films",
        f"Model {results['model']}; {results['films']} films of {results['patients']} patients ({part}). Brackets: "
        "95 % bootstrap intervals over patients. Not for clinical use.",
    ]
    findings = results["findings"]
    if findings:
        rows = [
            [
                name,
                str(record["positives"]),
                str(record["negatives"]),
                interval(record) if "value" in record else "–",
            ]
            for name, record in findings["classes"].items()
        ]
        if "auroc_macro" in findings:
            rows.append([f"Mean of {findings['macro_over']}", "", "", interval(findings["auroc_macro"])])
        parts += [
            "## Findings",
            f"{findings['films']} films of ChestX-ray14, {findings['patients']} patients; text-mined labels; chance is "
            "0.5.",
            table(["Finding", "Present", "Absent", "AUROC"], rows),
        ]
    if results["view"]:
        parts += [
            "## View, share of films",
            comparison_table({"PA or AP": results["view"]}, {"commonest": "Commonest view of others"}),
        ]
    if results["boxes"]:
        parts += [
            "## Boxes, mean IoU",
            comparison_table(results["boxes"], {"mean_box": "Mean box of others", "typical_box": "Box of the table"}),
        ]
    if results["gaze"]:
        parts += ["## Gaze, share of dwell time inside", comparison_table(results["gaze"], GAZE_CHANCE)]
    return "\n\n".join(parts) + "\n"


def comparison_table(cases: dict[str, dict], chance: dict[str, str]) -> str:
    """Model and chance side by side, and the model's differences."""
    rows = []
    for name, one in cases.items():
        row = [name, str(one["cases"]), interval(one["scores"]["model"])]
        for key in chance:
            row.append(interval(one["scores"][key]) if key in one["scores"] else "–")
        for key in chance:
            record = one["differences"].get(key)
            row.append("–" if record is None else f"{record['difference']:+.3f} [{low_high(record)}]")
        rows.append(row)
    header = ["", "Cases", "Model", *chance.values(), *(f"Model minus {title.lower()}" for title in chance.values())]
    return table(header, rows)


def low_high(record: dict) -> str:
    low, high = record["ci95"]
    return f"{low:+.3f}, {high:+.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.film_study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cxr", required=True, metavar="DIR", help="folder with metadata.csv and the films")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: the embedded one)")
    parser.add_argument("--part", choices=PARTS, default="test", help="of the permissive films (default: test)")
    parser.add_argument("--max-films", type=int, metavar="N", help="the first N films only")
    parser.add_argument("--batch-size", type=int, default=8, help="films at once (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    args = parser.parse_args(arguments)
    return status_of(lambda: run_study(args))


if __name__ == "__main__":
    sys.exit(main())
