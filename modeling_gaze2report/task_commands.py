"""`gaze2report ask`, `ground` and `describe`: one film and a question, a phrase or a box, from a terminal."""

import argparse
import json
import sys
from pathlib import Path


def register(subparsers) -> None:
    """Add the commands to the command line's parsers."""
    from .cli import NOTICE, NUM_ANSWER_DRAFTS, add_draft_argument, add_gaze_arguments, add_model_arguments

    ask = subparsers.add_parser(
        "ask",
        help="answer a question about a chest film",
        description="Answer a question about a chest film. On a terminal the answer appears as it is written. "
        f"{NOTICE}",
    )
    ask.add_argument("image", metavar="IMAGE", help="PNG, JPEG, TIFF or DICOM")
    ask.add_argument("question", metavar="QUESTION", help="in plain words")
    add_draft_argument(ask, "an answer", NUM_ANSWER_DRAFTS)
    ask.set_defaults(run=run_ask)

    ground = subparsers.add_parser(
        "ground",
        help="find where on a chest film a phrase is",
        description="Find where on a chest film a phrase is: a finding, a region, or a sentence of a report. Boxes are "
        f"x0, y0, x1, y1 in [0, 1] of the original image. {NOTICE}",
    )
    ground.add_argument("image", metavar="IMAGE", help="PNG, JPEG, TIFF or DICOM")
    ground.add_argument("phrase", metavar="PHRASE", help="for example 'left pleural effusion'")
    ground.add_argument("--out", metavar="FILE", help="PNG of the film with the boxes")
    ground.set_defaults(run=run_ground)

    describe = subparsers.add_parser(
        "describe",
        help="say what is in a box of a chest film",
        description=f"Say what is in a box of a chest film, in a sentence. {NOTICE}",
    )
    describe.add_argument("image", metavar="IMAGE", help="PNG, JPEG, TIFF or DICOM")
    describe.add_argument(
        "box", nargs=4, type=float, metavar="SIDE", help="x0, y0, x1, y1 in [0, 1] of the original image"
    )
    describe.set_defaults(run=run_describe)

    for parser in (ask, ground, describe):
        parser.add_argument("--json", action="store_true", help="JSON on standard output, for programs")
        add_gaze_arguments(parser)
        add_model_arguments(parser)


def prepare(args: argparse.Namespace) -> tuple:
    """Model, film and gaze of a command; notes go to stderr.

    Raises:
        InputError: a film or recording that cannot be used.
        ModelError: a model that cannot be used.
    """
    from transformers import set_seed

    from .cli import GazeFile
    from .inference import load_reader
    from .processing.image_processing_gaze2report import load_film

    film = load_film(args.image)
    gaze, notes = None, []
    if args.gaze:
        gaze, notes = GazeFile(args.gaze, args.gaze_format, True).of(film, args.gaze_source)
    for note in (*film.warnings, *notes):
        print(f"note: {note}", file=sys.stderr, flush=True)
    reader = load_reader(args.model, args.device, args.dtype, args.offline)
    set_seed(args.seed)
    return reader, film, gaze


def show_sentence(args: argparse.Namespace, answer) -> int:
    """Run a function that writes one answer, and print it: streamed on a terminal, else when it is whole.

    Args:
        args: of the command.
        answer: takes a model, a film, its gaze and a streamer, and returns an evidence record.
    """
    reader, film, gaze = prepare(args)
    streamer = None
    if sys.stdout.isatty() and not args.json:
        from transformers import TextStreamer

        class Shown(TextStreamer):
            """Prints the text, and remembers it."""

            text = ""

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                self.text += text
                super().on_finalized_text(text, stream_end)

        streamer = Shown(reader.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    record = answer(reader, film, gaze, streamer)
    if args.json:
        print(json.dumps(record | {"answer": record["report"]}, ensure_ascii=False, indent=1))
    elif streamer is None:
        print(record["report"])
    elif streamer.text.strip() != record["report"]:
        print(f"Kept instead, as it contradicts less of what was seen: {record['report']}")
    for warning in record["warnings"]:
        print(f"note: {warning}", file=sys.stderr)
    return 0


def run_ask(args: argparse.Namespace) -> int:
    from .inference import answer_questions

    return show_sentence(
        args,
        lambda reader, film, gaze, streamer: answer_questions(
            reader, [film], [args.question], [gaze], args.gaze_source, streamer=streamer, num_drafts=args.num_drafts
        )[0],
    )


def run_describe(args: argparse.Namespace) -> int:
    from .inference import describe_boxes

    return show_sentence(
        args,
        lambda reader, film, gaze, streamer: describe_boxes(
            reader, [film], [args.box], [gaze], args.gaze_source, streamer=streamer
        )[0],
    )


def run_ground(args: argparse.Namespace) -> int:
    from .inference import ground_phrases

    reader, film, gaze = prepare(args)
    record = ground_phrases(reader, [film], [args.phrase], [gaze], args.gaze_source)[0]
    if args.out:
        write_overlay(Path(args.out), film, record)
    if args.json:
        print(json.dumps(record, ensure_ascii=False, indent=1))
    else:
        print(record["answer"])
        for box in record["boxes"]:
            print(" ".join(f"{side:.4f}" for side in box))
    for warning in record["warnings"]:
        print(f"note: {warning}", file=sys.stderr)
    return 0


def write_overlay(path: Path, film, record: dict) -> None:
    """The film with the boxes of a phrase, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    import io

    from .processing.metrics.files import write_bytes
    from .processing.overlay import draw_overlay

    picture = draw_overlay(
        film.pixels, [], [(*box, record["phrase"][:40]) for box in record["boxes"]], caption=film.name
    )
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_bytes(path, content.getvalue())


__all__ = ["register"]
