"""The commands `score`, `score-scanpaths` and `label`, and the studies behind published figures.

Nothing heavy is imported until a command runs.
"""

import argparse
import sys
from pathlib import Path

PROTOCOL_NAMES = ("raw", "r2gen-mimic", "r2gen-iu", "rexrank", "cxrmate2")


def register(subparsers) -> None:
    """Adds this room's commands to the command line's parsers."""
    _register_score(subparsers)
    _register_score_scanpaths(subparsers)
    _register_label(subparsers)


def add_bootstrap_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every scoring command has."""
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default %(default)s)")


def _register_score(subparsers) -> None:
    parser = subparsers.add_parser(
        "score",
        help="metrics of any system's reports",
        description="Scores reports against references. PREDICTIONS is JSONL with id, prediction, reference (a text or "
        "a list of texts) and optionally patient_id, which makes intervals draw whole patients.",
    )
    parser.add_argument("predictions", metavar="PREDICTIONS.jsonl")
    parser.add_argument("--out", required=True, metavar="metrics.json", help="a .md beside it holds the same as tables")
    parser.add_argument(
        "--protocol", choices=PROTOCOL_NAMES, default="raw", help="how text is cleaned and scored (default %(default)s)"
    )
    parser.add_argument("--compare", metavar="OTHER.jsonl", help="another system's reports on the same ids")
    parser.add_argument(
        "--max-reference-tokens",
        type=int,
        metavar="N",
        help="cut references to N words, as R2Gen does (100 for MIMIC, 60 for IU), to compare with its tables",
    )
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        choices=("bleu", "rouge_l", "cider", "meteor", "chexpert_rules", "clinical"),
        help="metrics to leave out (clinical: all that need model weights)",
    )
    parser.add_argument("--chexbert", metavar="FILE", help="CheXbert's public checkpoint, chexbert.pth")
    parser.add_argument(
        "--bert", default="bert-base-uncased", metavar="DIR", help="BERT configuration and tokenizer for CheXbert"
    )
    parser.add_argument("--bertscore-model", metavar="DIR", help="encoder for BERTScore (default distilroberta-base)")
    parser.add_argument("--device", default="cpu", help="device of the metrics that need one (default %(default)s)")
    parser.add_argument("--download", action="store_true", help="let metrics fetch their weights from the Hub")
    add_bootstrap_arguments(parser)
    parser.set_defaults(run=run_score)


def run_score(args) -> int:
    from dataclasses import replace

    from ..errors import DataError
    from .clinical import clinical_statistics, default_backends
    from .files import read_predictions, write_json, write_text
    from .reports import PROTOCOLS, library_versions, report_statistics
    from .resampling import Bootstrap, compare_all, score_all
    from .results import Results

    ours = read_predictions(args.predictions)
    protocol = PROTOCOLS[args.protocol]
    if args.max_reference_tokens is not None:
        protocol = replace(protocol, max_reference_tokens=args.max_reference_tokens)
    bootstrap = Bootstrap(resamples=args.resamples, seed=args.seed)

    def statistics(predictions: list[str]):
        metrics, unavailable = report_statistics(predictions, ours.references, protocol, args.skip)
        if "clinical" not in args.skip:
            backends = default_backends(args.chexbert, args.bert, args.bertscore_model, args.device)
            first_references = [group[0] for group in ours.references]
            more, missing = clinical_statistics(
                backends, predictions, first_references, local_files_only=not args.download, report=_say
            )
            metrics |= more
            unavailable |= missing
        return metrics, unavailable

    metrics, unavailable = statistics(ours.predictions)
    comparisons = {}
    if args.compare:
        theirs = read_predictions(args.compare, need_references=False)
        if set(theirs.ids) != set(ours.ids):
            only_ours = sorted(set(ours.ids) - set(theirs.ids))
            only_theirs = sorted(set(theirs.ids) - set(ours.ids))
            example = f"lacks {only_ours[0]!r}" if only_ours else f"has {only_theirs[0]!r} besides"
            raise DataError(
                f"{args.compare}: {len(only_ours)} ids missing and {len(only_theirs)} unknown ({example}); a paired "
                f"comparison needs the ids of {args.predictions}"
            )
        by_id = dict(zip(theirs.ids, zip(theirs.predictions, theirs.references, strict=True), strict=True))
        for name, references in zip(ours.ids, ours.references, strict=True):
            if by_id[name][1] and by_id[name][1] != references:
                raise DataError(f"{args.compare}: id {name!r} has another reference than in {args.predictions}")
        other, _ = statistics([by_id[name][0] for name in ours.ids])
        comparisons[Path(args.compare).name] = compare_all(metrics, other, bootstrap, ours.patients)
    results = Results(
        n=len(ours.ids),
        protocol=protocol.name,
        settings={
            **protocol.settings(),
            "labels": "uncertain = negative, not mentioned = negative; *_uncertain_positive: uncertain = positive",
            "macro_f1": "classes that are positive in neither text of any report are left out",
            "predictions": Path(args.predictions).name,
            "empty_predictions": sum(not text.strip() for text in ours.predictions),
            "bootstrap": bootstrap.settings(),
            "clustered_by": "report" if ours.patients is None else "patient_id",
            "clusters": len(ours.ids) if ours.patients is None else len(set(ours.patients)),
            "libraries": library_versions(),
        },
        metrics=score_all(metrics, bootstrap, ours.patients),
        comparisons=comparisons,
        unavailable=unavailable,
    )
    _write_results(results, args.out, f"Reports of {Path(args.predictions).name}", write_json, write_text)
    return 0


def _write_results(results, out: str, title: str, write_json, write_text) -> None:
    page = results.to_markdown(title)
    write_json(out, results.to_json())
    write_text(Path(out).with_suffix(".md"), page)
    print(page)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _register_score_scanpaths(subparsers) -> None:
    parser = subparsers.add_parser(
        "score-scanpaths",
        help="scanpath and saliency metrics of any system",
        description="Scores predicted scanpaths against readers'. Both files are JSONL with image_id, X and Y in "
        "pixels, T in milliseconds, and optionally reader_id, patient_id, width and height; an image may have several "
        "lines in each. Where it has several readers, the human ceiling is computed as well.",
    )
    parser.add_argument("predictions", metavar="PRED.jsonl")
    parser.add_argument("references", metavar="REF.jsonl")
    parser.add_argument("--width", type=float, metavar="W", help="image width in pixels, for lines that do not say")
    parser.add_argument("--height", type=float, metavar="H", help="image height in pixels, for lines that do not say")
    parser.add_argument("--out", required=True, metavar="metrics.json", help="a .md beside it holds the same as tables")
    parser.add_argument("--compare", metavar="OTHER.jsonl", help="another system's scanpaths on the same images")
    parser.add_argument("--time-unit", choices=("ms", "s"), default="ms", help="unit of T (default %(default)s)")
    parser.add_argument("--prior", metavar="TRAIN.jsonl", help="scanpaths on other images, for the centre bias")
    parser.add_argument("--scanmatch-bins", type=int, nargs=2, default=(16, 12), metavar=("COLUMNS", "ROWS"))
    parser.add_argument("--scanmatch-threshold", type=float, default=3.5, metavar="CELLS")
    parser.add_argument("--scanmatch-duration-bin-ms", type=float, default=50.0, metavar="MS")
    parser.add_argument("--sed-bins", type=int, nargs=2, default=(5, 5), metavar=("COLUMNS", "ROWS"))
    parser.add_argument(
        "--sigma", type=float, default=None, metavar="SHARE", help="of the Gaussian on a fixation, share of the width"
    )
    parser.add_argument("--no-ceiling", action="store_true", help="do not compare the readers with each other")
    add_bootstrap_arguments(parser)
    parser.set_defaults(run=run_score_scanpaths)


def run_score_scanpaths(args) -> int:
    from dataclasses import replace

    from ..errors import InputError
    from .files import read_scanpaths, write_json, write_text
    from .resampling import Bootstrap, compare_all, score_all
    from .results import Results
    from .scanpath_scoring import (
        Prior,
        ScanpathScoring,
        ceiling_section,
        centroid_statistics,
        human_ceiling,
        score_scanpaths,
    )
    from .scanpaths import (
        DynamicTimeWarping,
        MultiMatch,
        RegionSequence,
        ScaledTimeDelayEmbedding,
        ScanMatch,
        ScanpathMetrics,
        StringEditDistance,
    )

    if (args.width is None) != (args.height is None):
        raise InputError("--width and --height belong together; give both or neither")
    size = None if args.width is None else (args.width, args.height)
    bins, threshold = tuple(args.scanmatch_bins), args.scanmatch_threshold
    scoring = ScanpathScoring(
        ScanpathMetrics(
            (
                ScanMatch(bins, threshold),
                ScanMatch(bins, threshold, duration_bin_s=args.scanmatch_duration_bin_ms / 1000),
                MultiMatch(),
                StringEditDistance(tuple(args.sed_bins)),
                ScaledTimeDelayEmbedding(),
                DynamicTimeWarping(),
                RegionSequence(),
            )
        )
    )
    if args.sigma is not None:
        scoring = replace(scoring, sigma=args.sigma)
    predictions = read_scanpaths(args.predictions, size, args.time_unit)
    references = read_scanpaths(args.references, size, args.time_unit)
    if args.prior:
        prior = Prior(read_scanpaths(args.prior, size, args.time_unit), scoring, leave_out=False)
    else:
        prior = Prior(references, scoring)
    bootstrap = Bootstrap(resamples=args.resamples, seed=args.seed)
    scores = score_scanpaths(predictions, references, scoring, prior, progress("images"))
    statistics = scores.statistics() | centroid_statistics(predictions, references)
    comparisons, extra = {}, {}
    if args.compare:
        others = read_scanpaths(args.compare, size, args.time_unit)
        other = score_scanpaths(others, references, scoring, prior, progress("images")).statistics()
        other |= centroid_statistics(others, references)
        comparisons[Path(args.compare).name] = compare_all(statistics, other, bootstrap, scores.patients)
    if not args.no_ceiling:
        extra |= ceiling_section(human_ceiling(references, scoring, prior, progress("ceiling")), bootstrap)
    results = Results(
        n=len(scores.images),
        protocol="scanpath",
        settings={
            **scoring.settings(),
            "aggregation": "mean over predictions and readers of an image, then over images",
            "excluded_pairs": scores.excluded_pairs,
            "centre_bias": f"scanpaths of {Path(args.prior).name}" if args.prior else "readers on all other images",
            "predictions": Path(args.predictions).name,
            "references": Path(args.references).name,
            "predictions_per_image": len(predictions) / len(scores.images),
            "readers_per_image": len(references) / len(scores.images),
            "time_unit": args.time_unit,
            "bootstrap": bootstrap.settings(),
            "clustered_by": "image" if scores.patients is None else "patient_id",
        },
        metrics=score_all(statistics, bootstrap, scores.patients),
        comparisons=comparisons,
        unavailable=scores.unavailable,
        extra=extra,
    )
    _write_results(results, args.out, f"Scanpaths of {Path(args.predictions).name}", write_json, write_text)
    return 0


def progress(what: str):
    """Wraps a sequence in a progress bar on a terminal, and in a line every tenth of it elsewhere."""

    def wrap(items):
        items = list(items)
        if sys.stderr.isatty():
            from tqdm import tqdm

            yield from tqdm(items, desc=what, file=sys.stderr)
            return
        step = max(1, len(items) // 10)
        for index, item in enumerate(items, start=1):
            yield item
            if len(items) >= 100 and index % step == 0:
                print(f"{what}: {index} of {len(items)}", file=sys.stderr, flush=True)

    return wrap


def _register_label(subparsers) -> None:
    parser = subparsers.add_parser(
        "label",
        help="14 CheXpert-style labels of reports by rules",
        description="Reads 14 findings from reports by rules (no model). REPORTS is JSONL with id and report; "
        "labels.csv has id and the 14 names: 1 positive, 0 negative, -1 uncertain, empty not mentioned. Lines that "
        "cannot be read are named, the others are labelled, and the exit status is 1.",
    )
    parser.add_argument("reports", metavar="REPORTS.jsonl")
    parser.add_argument("--out", required=True, metavar="labels.csv")
    parser.set_defaults(run=run_label)


def run_label(args) -> int:
    from .labeling import label_file

    count, failures = label_file(args.reports, args.out)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(f"{count} reports labelled: {args.out}")
    return 1 if failures else 0
