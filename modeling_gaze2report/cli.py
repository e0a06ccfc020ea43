"""`gaze2report COMMAND`: everything the package does, from a terminal.

Exit status: 0 everything done; 1 some inputs failed, each named on stderr, all others written; 2 nothing could be done.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import register_auto_classes, task_commands
from .processing.errors import Gaze2ReportError, InputError

NOTICE = "Research software. Not for clinical use."
# Most drafts of a report and of an answer, where the user says nothing of them.
NUM_DRAFTS, NUM_ANSWER_DRAFTS = 24, 32
# They start at once: transformers and PyTorch take seconds to import.
COMMANDS_WITHOUT_MODELS = ("gaze", "label", "score")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        if args.command not in COMMANDS_WITHOUT_MODELS:
            register_auto_classes()
        return args.run(args)
    except Gaze2ReportError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 2
    except Exception as error:
        if args.debug:
            raise
        print(f"error: {type(error).__name__}: {error} (run again with --debug for the traceback)", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gaze2report",
        description=f"Chest X-ray reports you can check: where the model looked, in which order. {NOTICE}",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    register_report(subparsers)
    register_scanpath(subparsers)
    task_commands.register(subparsers)
    register_assemble(subparsers)
    register_train(subparsers)
    register_evaluate(subparsers)
    from . import benchmark
    from .hub_space import commands as hub_commands
    from .processing.datasets import commands as dataset_commands
    from .processing.metrics import commands as metric_commands

    dataset_commands.register(subparsers)
    metric_commands.register(subparsers)
    hub_commands.register(subparsers)
    benchmark.register(subparsers)
    for command in set(subparsers.choices.values()):
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="local folder or Hub id (default: the embedded checkpoint)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: as the model says"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--offline", action="store_true", help="never ask the Hub")


def add_gaze_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gaze", metavar="FILE", help="recorded gaze: canonical JSONL or an eye tracker's export")
    parser.add_argument(
        "--gaze-format", default="auto", help="format of --gaze, as in `gaze2report gaze` (default: auto)"
    )
    parser.add_argument(
        "--gaze-source",
        default="auto",
        choices=("auto", "recorded", "predicted", "none"),
        help="auto: recorded where --gaze has it, else predicted (default: auto)",
    )


def add_draft_argument(parser: argparse.ArgumentParser, text: str, default: int, flag: str = "--num-drafts") -> None:
    parser.add_argument(
        flag,
        type=positive,
        default=default,
        metavar="N",
        help=f"most drafts of {text}: the first is the likeliest text; where it contradicts what was seen, others are "
        f"drawn, and the one that contradicts it least is kept (default: {default})",
    )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


# -- report -----------------------------------------------------------------------------------------------------------


def register_report(subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="write the report of chest films, with evidence",
        description=f"Write the report of chest films, with the evidence each sentence rests on. {NOTICE}",
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="PNG, JPEG, TIFF or DICOM (default: a bundled phantom film)"
    )
    parser.add_argument("--out", metavar="DIR", help="write NAME.txt, NAME.evidence.json and NAME.overlay.png there")
    parser.add_argument("--no-overlay", action="store_true", help="do not draw NAME.overlay.png")
    parser.add_argument(
        "--html", action="store_true", help="also NAME.html: the evidence as a page in one file, to play and point at"
    )
    parser.add_argument(
        "--svg", action="store_true", help="also NAME.svg: the reading, played once as a moving picture"
    )
    parser.add_argument(
        "--sentences", action="store_true", help="also NAME.sentence-1.png, ...: what each sentence rests on"
    )
    parser.add_argument(
        "--dicom-sr",
        action="store_true",
        help="also NAME.sr.dcm: a DICOM structured report, unverified, in the film's own study; carries the patient's "
        "name, ID, birth date, sex and the accession number of the film, as an archive needs them; DICOM films only",
    )
    parser.add_argument(
        "--fhir",
        action="store_true",
        help="also NAME.fhir.json: a FHIR R4 DiagnosticReport, preliminary; carries the patient ID and the study's "
        "identifiers of a DICOM film",
    )
    add_gaze_arguments(parser)
    parser.add_argument(
        "--compare-gaze",
        action="store_true",
        help="also print what changes from predicted gaze to that of --gaze; with --out as NAME.compare.json",
    )
    parser.add_argument(
        "--num-scanpaths",
        type=int,
        default=0,
        metavar="K",
        help="read each film along K drawn scanpaths more, and say how many agree on each finding (default: 0)",
    )
    parser.add_argument(
        "--strategy",
        default="direct",
        choices=("direct", "grounded", "structured"),
        help="direct: the language model's plain report; grounded: it writes boxes beside its sentences; structured: "
        "it writes from the findings that were seen first (default: direct)",
    )
    parser.add_argument(
        "--writer",
        default="model",
        choices=("model", "template"),
        help="of structured reports; template: fixed sentences from the findings alone, the same every time, without "
        "the language model (default: model)",
    )
    add_draft_argument(parser, "a report", NUM_DRAFTS)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="films at once (default: 8)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest report, in tokens")
    add_model_arguments(parser)
    parser.set_defaults(run=run_report)


def run_report(args) -> int:
    from transformers import set_seed

    from .inference import load_reader, read_films

    paths = [Path(image) for image in args.images] or [bundled_film()]
    if args.writer == "template" and args.strategy != "structured":
        raise InputError("--writer template writes structured reports: add --strategy structured.")
    if args.gaze_source == "recorded" and not args.gaze:
        raise InputError("--gaze-source recorded needs the recording: give --gaze FILE.")
    check_report_options(args)
    recordings = GazeFile(args.gaze, args.gaze_format, len(set(paths)) == 1) if args.gaze else None
    out = writable_folder(args.out) if args.out else None
    reader = load_reader(args.model, args.device, args.dtype, args.offline)
    set_seed(args.seed)
    failures = Failures()
    names = unique_names(paths)
    done = 0
    with Progress("report", len(paths)) as progress, ThreadPoolExecutor(max_workers=2) as pool:
        writes = []
        for batch in batches(load_films(paths, failures, pool, progress), args.batch_size):
            readings = []
            for path, film in batch:
                try:
                    wanted = "recorded" if args.compare_gaze else args.gaze_source
                    gaze, notes = recordings.of(film, wanted) if recordings else (None, [])
                    if args.dicom_sr:
                        check_dicom_source(path)
                except InputError as error:
                    failures.add(f"{path}: {error}")
                    progress.step()
                    continue
                film = dataclasses.replace(film, warnings=(*film.warnings, *notes))
                for note in film.warnings:
                    print(f"note: {printable(path)}: {note}", file=sys.stderr, flush=True)
                readings.append((path, film, gaze))
            if not readings:
                continue
            _, films, gaze = zip(*readings, strict=True)
            options = {"strategy": args.strategy, "writer": args.writer, "num_drafts": args.num_drafts}
            records = read_films(
                reader,
                films,
                gaze,
                args.gaze_source,
                args.max_new_tokens,
                num_scanpaths=args.num_scanpaths,
                **options,
            )
            comparisons = [None] * len(films)
            if args.compare_gaze:
                predicted = read_films(reader, films, None, "predicted", args.max_new_tokens, **options)
                comparisons = map(reader.processor.compare_evidence, predicted, records)
            for (path, film, _), record, comparison in zip(readings, records, comparisons, strict=True):
                if out is None:
                    print_report(path, record, len(paths) > 1)
                    done += 1
                    progress.step()
                else:
                    views = report_views(args, reader.processor, path, record, film, comparison)
                    writes.append(pool.submit(write_report, out / names[path], record, views))
                if comparison is not None:
                    print_comparison(path, comparison)
            # The next batch computes while the last one is drawn and written.
            while len(writes) > 2 * args.batch_size or (writes and writes[0].done()):
                done += finish(writes.pop(0), failures, progress)
        while writes:
            done += finish(writes.pop(0), failures, progress)
    if out is not None and len(paths) == 1 and done:
        print((out / f"{names[paths[0]]}.txt").read_text(encoding="utf-8"), end="")
    progress.summary(done, failures)
    return failures.exit_status(done)


def bundled_film() -> Path:
    """A phantom film that comes with the package."""
    from .inference import embedded_folder

    return embedded_folder().parent / "examples" / "phantom.png"


class GazeFile:
    """The recordings of `--gaze`, by film.

    Attributes:
        path, gaze_format: as the user gave them.
        is_for_one_film: whether there is one film only; a recording that names no image is then its own. Of several
            films it belongs to the one that the gaze file is named after.

    Raises:
        InputError: there is no such file.
    """

    def __init__(self, path: str, gaze_format: str, is_for_one_film: bool):
        if not Path(path).is_file():
            raise InputError(f"--gaze {path}: there is no such file.")
        self.path, self.gaze_format, self.is_for_one_film = path, gaze_format, is_for_one_film
        self.canonical: list | None = None

    def read(self, film) -> list:
        """All recordings. Canonical ones state the size of their image, so that one reading serves every film."""
        from .processing.datasets.gaze_formats import GazeOptions, read_gaze

        if self.canonical is not None:
            return self.canonical
        name = film.name if self.is_for_one_film else None
        options = GazeOptions(width=film.width, height=film.height, image_id=name)
        recordings = read_gaze(self.path, self.gaze_format, options)
        if recordings[0].extra["format"] == "canonical":
            self.canonical = recordings
        return recordings

    def of(self, film, gaze_source: str) -> tuple:
        """The gaze of a film, (N, 3) or `None`, and what a user should know about it, in sentences.

        Raises:
            InputError: the file cannot be read, or holds no recording of the film where `gaze_source` is `"recorded"`.
        """
        recordings = self.read(film)
        names = (film.name, Path(film.name).stem)
        fitting = [one for one in recordings if one.image_id in names]
        if not fitting:
            known = sorted({one.image_id for one in recordings})
            reason = f"{self.path} holds no recording of {film.name}; it has {', '.join(known[:3])}"
            reason += f" and {len(known) - 3} more" if len(known) > 3 else ""
            if gaze_source == "recorded":
                raise InputError(f"{reason}.")
            return None, [f"{reason}: recorded gaze was not used."]
        notes = list(fitting[0].notes)
        if len(fitting) > 1:
            notes.append(f"{self.path} holds {len(fitting)} recordings of {film.name}: the first one is used.")
        return fitting[0].gaze(), notes


def printable(path: Path | str) -> str:
    """A file's name, or a message with it, as any output can show it; Linux allows bytes that are no characters."""
    return str(path).encode(errors="backslashreplace").decode()


def print_report(path: Path, record: dict, with_name: bool) -> None:
    if with_name:
        print(f"== {printable(path)}")
    print(record["report"], flush=True)


def print_comparison(path: Path, comparison: dict) -> None:
    from .processing.evidence_comparison import comparison_text

    print(f"-- {printable(path)}: from predicted to given gaze")
    print(printable(comparison_text(comparison)), flush=True)


def check_report_options(args) -> None:
    """Refuse options that would do nothing.

    Raises:
        InputError: an option for files without --out, --compare-gaze without gaze or with another source.
    """
    for name in ("html", "svg", "sentences", "dicom_sr", "fhir"):
        if getattr(args, name) and not args.out:
            raise InputError(f"--{name.replace('_', '-')} writes files: give --out DIR.")
    if args.compare_gaze and (not args.gaze or args.gaze_source not in ("auto", "recorded")):
        raise InputError(
            "--compare-gaze compares predicted gaze with a recording: give --gaze FILE, and no other source."
        )
    if args.num_scanpaths < 0:
        raise InputError(f"--num-scanpaths {args.num_scanpaths}: give 0 or more.")


def check_dicom_source(path: Path) -> None:
    """Refuse a film that no structured report can refer to, before it is read.

    Raises:
        InputError: see `read_dicom_source`.
    """
    from .processing.dicom_sr import read_dicom_source

    read_dicom_source(path, {"image": {"sha256": None}})


def report_views(args, processor, path: Path, record: dict, film, comparison: dict | None) -> dict:
    """What is written beside text and record: by file ending, what writes it into an open file."""

    def picture(draw, *arguments):
        return lambda file: draw(record, film, *arguments).save(file, format="PNG", compress_level=1)

    def text(make):
        return lambda file: file.write(make().encode(errors="backslashreplace"))

    views = {}
    if not args.no_overlay:
        views[".overlay.png"] = picture(processor.draw_evidence)
    if args.sentences:
        for number in range(len(record["sentences"])):
            views[f".sentence-{number + 1}.png"] = picture(processor.draw_sentence, number)
    if args.html:
        views[".html"] = text(lambda: processor.draw_html(record, film))
    if args.svg:
        views[".svg"] = text(lambda: processor.draw_svg(record, film))
    if args.dicom_sr:
        views[".sr.dcm"] = lambda file: processor.dicom_report(record, path).save_as(file, enforce_file_format=True)
    if args.fhir:
        views[".fhir.json"] = text(lambda: json_text(processor.fhir_report(record, path if is_dicom(path) else None)))
    if comparison is not None:
        views[".compare.json"] = text(lambda: json_text(comparison))
    return views


def is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def json_text(values: dict) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1) + "\n"


def write_report(stem: Path, record: dict, views: dict) -> None:
    """The files of one film: each whole or not at all, the evidence record last.

    Raises:
        InputError: a file cannot be made or written; none of them is left then.
    """
    # A file name may hold bytes that are no characters; JSON has an escape for each.
    files = {
        ".txt": lambda file: file.write((record["report"] + "\n").encode()),
        **views,
        ".evidence.json": lambda file: file.write(json_text(record).encode(errors="backslashreplace")),
    }
    written: dict[Path, Path] = {}
    try:
        for ending, write in files.items():
            final = stem.with_name(stem.name + ending)
            temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
            written[temporary] = final
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for temporary, final in written.items():
            os.replace(temporary, final)
    except OSError as error:
        raise InputError(f"{printable(stem)}: the report cannot be written: {error.strerror or error}") from error
    finally:
        for temporary in written:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def finish(write, failures: "Failures", progress: "Progress") -> int:
    """Wait for one film's files; 1 if they are there."""
    progress.step()
    try:
        write.result()
    except InputError as error:
        failures.add(str(error))
        return 0
    return 1


def load_films(paths: list[Path], failures: "Failures", pool: ThreadPoolExecutor, progress: "Progress") -> Iterator:
    """Films in order, read ahead in the background; those that cannot be read are named and left out."""
    from .processing.image_processing_gaze2report import load_film

    ahead = 32
    reading = [pool.submit(load_film, path) for path in paths[:ahead]]
    for number, path in enumerate(paths):
        film = reading.pop(0)
        if number + ahead < len(paths):
            reading.append(pool.submit(load_film, paths[number + ahead]))
        try:
            yield path, film.result()
        except InputError as error:
            failures.add(str(error))
            progress.step()


def batches(items: Iterator, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def unique_names(paths: list[Path]) -> dict[Path, str]:
    """File names without their ending; a second film of the same name gets a number."""
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for path in paths:
        if path in names:
            continue
        name, number = path.stem, 2
        while name.lower() in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.lower())
        names[path] = name
    return names


def writable_folder(name: str) -> Path:
    """The folder, made if need be.

    Raises:
        InputError: it cannot be made or written to.
    """
    folder = Path(name)
    probe = folder / f".gaze2report-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{name}: this folder cannot be written to: {error.strerror or error}") from error
    return folder


class Failures:
    """Inputs that failed, named on stderr as they come."""

    def __init__(self):
        self.count = 0

    def add(self, message: str) -> None:
        self.count += 1
        print(f"failed: {printable(message)}", file=sys.stderr, flush=True)

    def exit_status(self, done: int) -> int:
        if not self.count:
            return 0
        return 1 if done else 2


class Progress:
    """A bar on a terminal, plain lines elsewhere; silent for a single film."""

    def __init__(self, name: str, total: int):
        import time

        self.name, self.total, self.count, self.clock = name, total, 0, time.monotonic
        self.start = self.said = self.clock()
        self.bar = None
        if total > 1 and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=name, unit="film")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.close()

    def step(self) -> None:
        self.count += 1
        if self.bar:
            self.bar.update()
        elif self.total > 1 and self.clock() - self.said > 10:
            self.said = self.clock()
            print(f"{self.name}: {self.count} of {self.total}", file=sys.stderr, flush=True)

    def summary(self, done: int, failures: Failures) -> None:
        if self.total > 1:
            seconds = self.clock() - self.start
            print(
                f"{self.name}: {done} films done, {failures.count} failed, {seconds:.1f} s, "
                f"{self.count / max(seconds, 1e-9):.1f} films per second",
                file=sys.stderr,
            )


# -- scanpath ---------------------------------------------------------------------------------------------------------


def register_scanpath(subparsers) -> None:
    parser = subparsers.add_parser(
        "scanpath",
        help="predict where a reader would look",
        description=f"Predict where a reader would look, as canonical scanpath lines (pixels, milliseconds). {NOTICE}",
    )
    parser.add_argument("image", metavar="IMAGE", help="PNG, JPEG, TIFF or DICOM")
    parser.add_argument(
        "--num-samples", type=positive, default=1, metavar="N", help="1: the likeliest reading; more: drawn ones"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="above 1 more varied, below 1 more alike")
    parser.add_argument("--out", metavar="FILE", help="JSONL file (default: standard output)")
    add_model_arguments(parser)
    parser.set_defaults(run=run_scanpath)


def run_scanpath(args) -> int:
    from transformers import set_seed

    from .inference import load_reader, predict_scanpaths
    from .processing.image_processing_gaze2report import load_film
    from .processing.metrics.files import write_text

    if args.temperature <= 0:
        raise InputError(f"--temperature {args.temperature}: it must be above 0.")
    film = load_film(args.image)
    reader = load_reader(args.model, args.device, args.dtype, args.offline)
    set_seed(args.seed)
    lines = [json.dumps(one) for one in predict_scanpaths(reader, film, args.num_samples, args.temperature)]
    text = "\n".join(lines) + "\n"
    if args.out:
        write_text(args.out, text)
    else:
        print(text, end="")
    return 0


# -- assemble ---------------------------------------------------------------------------------------------------------


def register_assemble(subparsers) -> None:
    parser = subparsers.add_parser(
        "assemble",
        help="put an untrained model together from pretrained backbones",
        description="Put a full-size model together from a pretrained image encoder and a pretrained language model; "
        "what stands between them is new and untrained. Train it with `gaze2report train`.",
    )
    parser.add_argument(
        "--vision", required=True, metavar="ID", help="image encoder with a square grid of patches: folder or Hub id"
    )
    parser.add_argument("--text", required=True, metavar="ID", help="causal language model: folder or Hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the model, in Hub layout")
    parser.add_argument("--tokenizer", metavar="ID", help="its tokenizer, where that stands elsewhere")
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="side of the square film in pixels, for towers that take any (default: the tower's own)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the backbones (default: as the language model is stored); the gaze parts are float32",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the new parts' weights (default: 0)")
    parser.add_argument("--offline", action="store_true", help="never ask the Hub")
    parser.set_defaults(run=run_assemble)


def run_assemble(args) -> int:
    from .hub_space.export import check_target, export_model

    try:
        from .training.assemble import assemble
    except ModuleNotFoundError as error:
        raise InputError(f'assembling needs the package {error.name}: pip install "gaze2report[train]"') from error
    check_target(args.out)
    assembly = assemble(args.vision, args.text, args.tokenizer, args.image_size, args.dtype, args.offline, args.seed)
    folder = export_model(assembly.model, assembly.processor, args.out)
    print(assembly.table())
    config = assembly.model.config
    print(
        f"Films of {config.image_size} x {config.image_size} pixels, {config.grid_size} x {config.grid_size} patches, "
        f"{config.num_visual_gaze_tokens} visual-gaze tokens."
    )
    for note in assembly.notes:
        print(note)
    print(folder)
    return 0


# -- train ------------------------------------------------------------------------------------------------------------


def register_train(subparsers) -> None:
    recipes = Path(__file__).parent / "training" / "recipes"
    shipped = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
    parser = subparsers.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe: a YAML file or the name of a shipped one, with key=value overrides. "
        "The log, the learning curves and sample reports go to OUTPUT-records. A run that was cut off continues when "
        "the command is repeated. On several GPUs: "
        "accelerate launch -m modeling_gaze2report.training RECIPE [key=value ...]",
    )
    parser.add_argument("recipe", metavar="RECIPE", help=f"YAML file, or a shipped recipe: {shipped}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.path=phantoms seed=1")
    parser.set_defaults(run=run_train)


def run_train(args) -> int:
    try:
        from .training.model_card import write_card
        from .training.recipe import load_recipe
        from .training.stages import run
    except ModuleNotFoundError as error:
        raise InputError(f'training needs the package {error.name}: pip install "gaze2report[train]"') from error
    folder = run(load_recipe(args.recipe, args.overrides))
    if os.environ.get("RANK", "0") == "0":  # of the processes that accelerate launched
        write_card(folder)
        print(folder)
    return 0


# -- evaluate ---------------------------------------------------------------------------------------------------------


def register_evaluate(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="run a model over a prepared data set and score it",
        description="Run a model over a prepared data set and score it; writes predictions.jsonl, metrics.json and "
        "metrics.md.",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `gaze2report prepare` wrote")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--gaze-source",
        default="predicted",
        choices=("recorded", "predicted", "none"),
        help="of the system's own result (default: predicted)",
    )
    parser.add_argument("--controls", action="store_true", help="also with every other source of gaze, in one table")
    parser.add_argument(
        "--tasks",
        action="store_true",
        help="also grounded and structured reports, questions, phrases, boxes, regions and order, in the same "
        "tables; answers go to tasks.jsonl",
    )
    parser.add_argument("--max-records", type=positive, metavar="N", help="the first N records only")
    add_draft_argument(parser, "a report", NUM_DRAFTS)
    add_draft_argument(parser, "an answer", NUM_ANSWER_DRAFTS, "--num-answer-drafts")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="films at once (default: 16)")
    parser.add_argument(
        "--protocol", default="raw", help="of the text metrics, as in `gaze2report score` (default: raw)"
    )
    add_model_arguments(parser)
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args) -> int:
    try:
        from .evaluation import evaluate_model
    except ModuleNotFoundError as error:
        raise InputError(f'evaluation needs the package {error.name}: pip install "gaze2report[eval]"') from error
    print(evaluate_model(args), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
