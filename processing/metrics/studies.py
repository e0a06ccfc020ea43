"""Studies behind figures that this project quotes.

Run one with `python -m modeling_gaze2report.processing.metrics.studies NAME`:

* `labeler`: precision, recall and F1 of the rule labeler against gold labels of Open-i reports;
* `ceiling`: how well the observers of a free-viewing data set (OSIE) predict each other's scanpaths;
* `speed`: the rule labeler, ScanMatch and MultiMatch against `multimatch-gaze`, the bootstrap; ratios from one run.

The data are not part of the project: each study takes their paths.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import numpy as np

from ..datasets.source_openi import OpeniSource, parse_report
from ..errors import DataError, Gaze2ReportError
from ..report_labels import label_report, sentence_statuses
from .results import number, table

# Gold categories (ChestX-ray14's) that mean the same as a CheXpert label, and those that come close.
SAME_MEANING: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Consolidation": ("Consolidation",),
    "Edema": ("Edema",),
    "Pleural Effusion": ("Effusion",),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax",),
    "Lung Lesion": ("Mass", "Nodule"),
}
NEAR_MEANING: dict[str, tuple[str, ...]] = {"Pleural Other": ("Pleural_Thickening",)}


def openi_reports(path: str | Path) -> dict[str, str]:
    """Findings and impression of Open-i reports by name (`CXR1`, ...), from the archive of XML files or a folder of
    them.

    Raises:
        DataError: a file is not such a report, or there is none.
    """
    reports = {}
    for name, content in OpeniSource(Path(path)).items():
        report = parse_report(content, name)
        sections = (report["FINDINGS"], report["IMPRESSION"])
        reports[f"CXR{Path(name).stem}"] = "\n\n".join(section for section in sections if section)
    return reports


def labeler_table(gold: str | Path, reports: dict[str, str]) -> list[dict]:
    """Counts and scores of the labeler for each gold category and in total, in both conventions for uncertain labels.

    Args:
        gold: CSV with `filename` and the ChestX-ray14 categories as 0 or 1.
        reports: report texts by name.

    Returns:
        rows with `finding`, `uncertain` ("negative" or "positive"), `tp`, `fp`, `fn`, `precision`, `recall`, `f1`.
    """
    with open(gold, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [row["filename"] for row in rows if row["filename"] not in reports]
    if missing:
        raise DataError(f"{gold}: {len(missing)} reports are not there, first {missing[0]!r}")
    labels = [label_report(reports[row["filename"]]) for row in rows]
    result = []
    for convention, positives in (("negative", (1,)), ("positive", (1, -1))):
        counts = {}
        for finding, categories in (SAME_MEANING | NEAR_MEANING).items():
            true = np.array([any(row[category] == "1" for category in categories) for row in rows])
            said = np.array([label[finding] in positives for label in labels])
            counts[finding] = np.array([(said & true).sum(), (said & ~true).sum(), (~said & true).sum()])
        same = [finding for finding in SAME_MEANING if finding != "Lung Lesion"]
        counts["micro, 7 identical categories"] = sum(counts[finding] for finding in same)
        counts["micro, 8 with Mass and Nodule = Lung Lesion"] = sum(counts[finding] for finding in SAME_MEANING)
        everything = [*SAME_MEANING, *NEAR_MEANING]
        counts["micro, 9 with Pleural_Thickening = Pleural Other"] = sum(counts[finding] for finding in everything)
        for finding, (tp, fp, fn) in counts.items():
            result.append(
                {
                    "finding": finding,
                    "uncertain": convention,
                    "tp": int(tp),
                    "fp": int(fp),
                    "fn": int(fn),
                    "precision": tp / (tp + fp) if tp + fp else float("nan"),
                    "recall": tp / (tp + fn) if tp + fn else float("nan"),
                    "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan"),
                }
            )
    return result


def run_labeler(args) -> None:
    reports = openi_reports(args.reports)
    rows = labeler_table(args.gold, reports)
    for convention in ("negative", "positive"):
        print(f"\nUncertain taken as {convention}\n")
        chosen = [row for row in rows if row["uncertain"] == convention]
        print(
            table(
                ["Finding", "TP", "FP", "FN", "Precision", "Recall", "F1"],
                [
                    [row["finding"], *(str(row[key]) for key in ("tp", "fp", "fn"))]
                    + [number(row[key]) for key in ("precision", "recall", "f1")]
                    for row in chosen
                ],
            )
        )


def run_ceiling(args) -> None:
    from .commands import progress
    from .files import read_scanpaths
    from .resampling import Bootstrap, score_all
    from .results import interval, metric_title, ordered_metrics
    from .scanpath_scoring import ScanpathScoring, group_by_image, human_ceiling
    from .scanpaths import MultiMatch, ScanMatch, ScanpathMetrics, StringEditDistance

    scanpaths = read_scanpaths(args.scanpaths)
    if args.images:
        chosen = list(group_by_image(scanpaths))[: args.images]
        scanpaths = [scanpath for scanpath in scanpaths if scanpath.image_id in set(chosen)]
    metrics = ScanpathMetrics((ScanMatch(), ScanMatch(duration_bin_s=0.05), MultiMatch(), StringEditDistance()))
    scoring = ScanpathScoring(metrics, sigma=args.sigma, prior_weight=args.prior_weight)
    scores = human_ceiling(scanpaths, scoring, progress=progress("images"))
    bootstrap = Bootstrap()
    records = score_all(scores.statistics(), bootstrap)
    readers = len(scanpaths) / len(scores.images)
    print(f"\n{len(scores.images)} images, {readers:.1f} observers each: every observer against the others\n")
    rows = [[metric_title(name), interval(records[name])] for name in ordered_metrics(records)]
    print(table(["Metric", "Mean [95 % interval]"], rows))
    print(f"\nsettings: {json.dumps(scoring.settings())}\nexcluded pairs: {json.dumps(scores.excluded_pairs)}")


def run_speed(args) -> None:
    from .files import read_scanpaths
    from .resampling import Bootstrap, mean_statistics, score_all
    from .scanpaths import MultiMatch, ScanMatch

    rows = []
    if args.reports:
        texts = list(openi_reports(args.reports).values())

        def label_all():
            sentence_statuses.cache_clear()  # sentences recur in reports: each run starts without those of the last
            for text in texts:
                label_report(text)

        seconds = _seconds(label_all)
        rows.append(["label_report", f"{len(texts) / seconds:,.0f} reports/s", "–"])
    if args.scanpaths:
        scanpaths = read_scanpaths(args.scanpaths)
        generator = np.random.default_rng(0)
        chosen = generator.integers(0, len(scanpaths), (args.pairs, 2))
        pairs = [(scanpaths[i].fixations, scanpaths[j].fixations, scanpaths[i].size) for i, j in chosen]
        pairs = [pair for pair in pairs if min(len(pair[0]), len(pair[1])) >= 3]
        reference = _multimatch_gaze_seconds(pairs) / len(pairs)
        rows.append(["multimatch-gaze", f"{1e3 * reference:.3f} ms/pair", "1.0"])
        for name, metric in (
            ("MultiMatch", MultiMatch()),
            ("ScanMatch", ScanMatch()),
            ("ScanMatch with duration", ScanMatch(duration_bin_s=0.05)),
        ):
            seconds = _seconds(lambda metric=metric: [metric(*pair) for pair in pairs]) / len(pairs)
            rows.append([name, f"{1e3 * seconds:.3f} ms/pair", f"{reference / seconds:.1f}"])
    statistics = {"mean": mean_statistics("mean", np.random.default_rng(0).random(3000))}
    seconds = _seconds(lambda: score_all(statistics, Bootstrap(2000)))
    rows.append(["2,000 resamples of 3,000 reports", f"{seconds:.2f} s", "–"])
    print(table(["What", "Speed", "Times as fast as multimatch-gaze"], rows))


def _seconds(function) -> float:
    """Process time of the fastest of three runs; other processes on the machine do not count."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def _multimatch_gaze_seconds(pairs) -> float:
    import multimatch_gaze

    def record(fixations, size):
        columns = (fixations[:, 0] * size[0], fixations[:, 1] * size[1], fixations[:, 2])
        return np.rec.fromarrays(columns, names="start_x,start_y,duration")

    records = [(record(first, size), record(second, size), list(size)) for first, second, size in pairs]
    return _seconds(lambda: [multimatch_gaze.docomparison(*triple) for triple in records])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="studies", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(required=True)
    labeler = subparsers.add_parser("labeler", help="the rule labeler against gold labels")
    labeler.add_argument("--gold", required=True, help="gold_14labels.csv")
    labeler.add_argument("--reports", required=True, help="NLMCXR_reports.tgz or a folder of its XML files")
    labeler.set_defaults(run=run_labeler)
    ceiling = subparsers.add_parser("ceiling", help="each observer against the others")
    ceiling.add_argument("--scanpaths", required=True, help="JSONL of all observers' scanpaths")
    ceiling.add_argument("--images", type=int, help="only the first N images")
    ceiling.add_argument("--sigma", type=float, default=1 / 33, help="Gaussian on a fixation, share of the width")
    ceiling.add_argument("--prior-weight", type=float, default=0.2, help="share of the centre-bias prior in a map")
    ceiling.set_defaults(run=run_ceiling)
    speed = subparsers.add_parser("speed", help="speed of the labeler, the scanpath metrics and the bootstrap")
    speed.add_argument("--reports", help="NLMCXR_reports.tgz or a folder of its XML files")
    speed.add_argument("--scanpaths", help="JSONL of scanpaths")
    speed.add_argument("--pairs", type=int, default=500)
    speed.set_defaults(run=run_speed)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except Gaze2ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
