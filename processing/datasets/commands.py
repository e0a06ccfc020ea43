"""The commands `gaze2report gaze` and `gaze2report prepare`."""

import argparse
import importlib.util
import sys
from pathlib import Path

SOURCES = {
    "reflacx": "main_data/ of REFLACX, films in --images",
    "egd": "master_sheet.csv, fixations.csv, ... of EGD-CXR, films in --images",
    "mimic-eye": "patient_* folders of MIMIC-Eye, either layout",
    "mimic-cxr": "MIMIC-CXR-JPG, reports in --reports",
    "openi": "Open-i XML files or their archive, films in --images or none",
    "gazesearch": "JSON of scanpaths, films in --images or none",
    "osie": "fixations.jsonl.gz and stimuli/",
    "films": "metadata.csv of real films with licences; the permissive ones",
    "folder": "your own films with a CSV or JSONL table, or with none",
    "phantom": "generated here; needs no --root",
}


def register(subparsers) -> None:
    """Adds the two commands."""
    _register_gaze(subparsers)
    _register_prepare(subparsers)


def pairs(text: str) -> dict[str, str]:
    """`a=b,c=d` as a dictionary."""
    result = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise argparse.ArgumentTypeError(f"{part!r}: must be NAME=COLUMN, several separated by commas")
        result[name.strip()] = value.strip()
    return result


def four_numbers(text: str) -> tuple[float, ...]:
    """`x0,y0,x1,y1` as four floats."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r}: must be four numbers x0,y0,x1,y1")
    return values


def _register_gaze(subparsers) -> None:
    parser = subparsers.add_parser(
        "gaze",
        help="any eye-tracker export to canonical fixations",
        description="Reads an eye-tracker export and writes one canonical scanpath a line (JSONL): "
        "pixels of the original image, milliseconds. "
        "What was assumed and what was left out is said on stderr.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="exports; .gz is unpacked")
    parser.add_argument(
        "--format", default="auto", choices=("auto", "egd", "reflacx", "gazesearch", "eyelink", "tobii", "pupil", "csv")
    )
    parser.add_argument("--width", type=float, help="of the original image in pixels")
    parser.add_argument("--height", type=float, help="of the original image in pixels")
    parser.add_argument("--out", metavar="F.jsonl", help="by default stdout")
    parser.add_argument(
        "--columns",
        type=pairs,
        default={},
        metavar="x=NAME,...",
        help="csv: x, y, duration, onset, time, image, reader = your column, or its number from 0 without a header",
    )
    parser.add_argument("--units", choices=("px", "norm", "screen"), help="csv: what x and y are in")
    parser.add_argument("--time-unit", choices=("s", "ms", "us"))
    parser.add_argument(
        "--placement",
        type=four_numbers,
        metavar="X0,Y0,X1,Y1",
        help="where the image stood on the screen, in screen pixels; by default it filled the screen",
    )
    parser.add_argument(
        "--detect",
        choices=("idt", "ivt"),
        default="idt",
        help="how raw samples become fixations: by dispersion (I-DT) or velocity (I-VT)",
    )
    parser.add_argument("--dispersion", type=float, default=1.0, help="of I-DT, degrees (default 1)")
    parser.add_argument("--velocity", type=float, default=30.0, help="of I-VT, degrees per second (default 30)")
    parser.add_argument("--min-duration", type=float, default=0.1, help="of a fixation, seconds (default 0.1)")
    parser.add_argument(
        "--pixels-per-degree", type=float, help="of the original image as it was shown; by default its width / 27"
    )
    parser.add_argument("--image-id", help="for formats that name no image; by default the file's name")
    parser.add_argument("--encoding", help="of text files, such as cp1252")
    parser.set_defaults(run=run_gaze)


def run_gaze(args) -> int:
    """Reads every file; a file that fails is named and the others are written."""
    from ..errors import InputError
    from .gaze_formats import GazeOptions, read_gaze
    from .scanpath import canonical_line, write_canonical

    options = GazeOptions(
        width=args.width,
        height=args.height,
        placement=args.placement,
        columns=args.columns,
        units=args.units,
        time_unit=args.time_unit,
        detection=args.detect,
        dispersion=args.dispersion,
        velocity=args.velocity,
        min_duration_s=args.min_duration,
        pixels_per_degree=args.pixels_per_degree,
        image_id=args.image_id,
        encoding=args.encoding,
    )
    scanpaths, failed = [], 0
    for name in args.files:
        try:
            found = read_gaze(name, args.format, options)
        except InputError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        scanpaths.extend(found)
        print(
            f"{name}: {found[0].extra['format']}, {len(found)} scanpaths, {sum(map(len, found))} fixations",
            file=sys.stderr,
        )
        said: dict[str, int] = {}
        for scanpath in found:
            for note in scanpath.notes:
                said[note] = said.get(note, 0) + 1
        for note, count in said.items():
            print(f"  {note}" + (f" ({count} scanpaths)" if count > 1 else ""), file=sys.stderr)
    if not scanpaths:
        return 2
    if args.out:
        write_canonical(scanpaths, args.out)
    else:
        for scanpath in scanpaths:
            print(canonical_line(scanpath))
    return 1 if failed else 0


def _register_prepare(subparsers) -> None:
    lines = "\n".join(f"  {name:<11} {text}" for name, text in SOURCES.items())
    parser = subparsers.add_parser(
        "prepare",
        help="a data set to canonical records (Parquet)",
        description="Writes Parquet shards and dataset.json. "
        "A run that was killed goes on where it stopped when it is started again.\n\nsources:\n" + lines,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=tuple(SOURCES), metavar="SOURCE")
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the data set")
    parser.add_argument("--out", type=Path, metavar="DIR", help="to write")
    parser.add_argument(
        "--num-proc", type=int, default=1, metavar="N", help="processes (default 1); the result does not depend on it"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="reflacx, egd: MIMIC-CXR-JPG; openi, gazesearch: the films"
    )
    parser.add_argument("--reports", type=Path, metavar="DIR", help="mimic-cxr: the free-text reports")
    parser.add_argument(
        "--report", choices=("dictated", "clinical"), default="dictated", help="mimic-eye: which report"
    )
    parser.add_argument("--views", choices=("frontal", "all"), default="frontal", help="mimic-cxr")
    parser.add_argument(
        "--split",
        choices=("official", "image", "patient"),
        help="reflacx: official (default) or patient; gazesearch: image (default, leak-free) or official",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="folder: CSV or JSONL")
    parser.add_argument(
        "--columns",
        type=pairs,
        default={},
        metavar="report=NAME,...",
        help="folder: record column = the table's column",
    )
    parser.add_argument("--max-side", type=int, metavar="PX", help="make larger films smaller (JPEG, quality 95)")
    parser.add_argument(
        "--records-per-shard",
        type=int,
        metavar="N",
        help="items in a unit of work, which writes one file per split (default a fortieth of all, 100 to 1000)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another data set in --out")
    phantom = parser.add_argument_group("phantom")
    phantom.add_argument("--num-films", type=int, default=1000, metavar="N")
    phantom.add_argument("--image-size", type=int, default=256, metavar="S")
    phantom.add_argument("--seed", type=int, default=0, metavar="K")
    phantom.add_argument("--readers", type=int, default=1, metavar="R", help="readings per film, 1 to 5")
    phantom.add_argument("--encoding", choices=("jpeg", "png", "png16"), default="jpeg")
    phantom.add_argument(
        "--statistics",
        action="store_true",
        help="write no data set: print the simulator's statistics beside real gaze's, and a contact sheet to --out",
    )
    phantom.add_argument(
        "--real-films",
        type=Path,
        metavar="DIR",
        help="with --statistics: a folder of real normal films to set beside the phantoms",
    )
    phantom.add_argument(
        "--probe", action="store_true", help="with --statistics: how far raw pixels and a small network get"
    )
    parser.set_defaults(run=run_prepare)


def make_source(args):
    """The source that the arguments ask for."""
    from ..errors import DataError

    if args.source == "phantom":
        from .source_phantom import PhantomSource

        return PhantomSource(args.num_films, args.image_size, args.seed, args.readers, args.encoding)
    if args.root is None:
        raise DataError(f"prepare {args.source}: give --root: {SOURCES[args.source]}")
    if not args.root.exists():
        raise DataError(f"{args.root}: no such file or folder")
    if args.source == "reflacx":
        from .source_reflacx import ReflacxSource

        return ReflacxSource(args.root, args.images, args.split or "official", args.max_side)
    if args.source == "egd":
        from .source_egd import EgdSource

        return EgdSource(args.root, args.images, args.max_side)
    if args.source == "mimic-eye":
        from .source_mimic_eye import MimicEyeSource

        return MimicEyeSource(args.root, args.report, args.max_side)
    if args.source == "mimic-cxr":
        from .source_mimic_cxr import MimicCxrSource

        return MimicCxrSource(args.root, args.reports, args.views, args.max_side)
    if args.source == "openi":
        from .source_openi import OpeniSource

        return OpeniSource(args.root, args.images, args.max_side)
    if args.source == "gazesearch":
        from .source_scanpaths import GazeSearchSource

        return GazeSearchSource(args.root, args.images, args.split or "image", args.max_side)
    if args.source == "osie":
        from .source_scanpaths import OsieSource

        return OsieSource(args.root, args.max_side)
    if args.source == "films":
        from .source_films import FilmsSource

        return FilmsSource(args.root, args.max_side)
    from .source_folder import FolderSource

    return FolderSource(args.root, args.table, args.columns, args.max_side)


def run_prepare(args) -> int:
    """Prepares a source; 1 if something was lost or the audit of the splits failed, each said on stderr."""
    from ..errors import DataError

    if args.out is None:
        raise DataError("prepare: give --out, the folder to write")
    if args.source == "phantom" and args.statistics:
        from .phantom_study import run_study

        return run_study(args.num_films, args.image_size, args.seed, args.out, args.real_films, args.probe)
    missing = [name for name in ("datasets", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f'preparing data needs {" and ".join(missing)}: pip install "gaze2report[train]"')
    from .splits import audit_message
    from .writing import prepare

    if args.num_proc < 1 or (args.records_per_shard is not None and args.records_per_shard < 1):
        raise DataError("--num-proc and --records-per-shard must be at least 1")
    if args.max_side is not None and args.max_side < 32:
        raise DataError("--max-side must be at least 32 pixels")
    summary = prepare(make_source(args), args.out, args.num_proc, args.records_per_shard, args.overwrite)
    for name, part in summary["splits"].items():
        print(
            f"{name}: {part['num_records']} records, {part['num_images']} films, {part['num_patients']} patients, "
            f"{part['num_fixations']} fixations"
        )
    status = 0
    for reason in summary["dropped"]["reasons"]:
        print(f"dropped ({reason['lost']}): {reason['reason']}: {reason['count']}", file=sys.stderr)
        if reason["lost"] == "record" and "merged" not in reason["reason"]:
            status = 1
    if summary["dropped"]["count"]:
        print(f"the full list is in {args.out / 'dropped.jsonl'}", file=sys.stderr)
    if not summary["audit"]["passed"]:
        print(f"error: {audit_message(summary['audit'])}; see audit in {args.out / 'dataset.json'}", file=sys.stderr)
        status = 1
    return status


__all__ = ["register"]
