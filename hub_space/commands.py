"""The commands `gaze2report publish` and `gaze2report demo`."""

from pathlib import Path

NOTICE = "Research software. Not for clinical use."


def register(subparsers) -> None:
    """Adds the two commands."""
    _register_publish(subparsers)
    _register_demo(subparsers)


def _register_publish(subparsers) -> None:
    parser = subparsers.add_parser(
        "publish",
        help="a model, and a Space that shows it, to the Hub",
        description="Puts a model folder (or an adapter of peft) on the Hub in one commit, after a process without "
        "this package has loaded it; with --space also a Space that shows it. Files that did not change are not sent. "
        "The token is HF_TOKEN or the login of `hf auth login`.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a model or of an adapter")
    parser.add_argument("--repo", required=True, metavar="NAME", help="OWNER/NAME, or NAME for one of your own")
    parser.add_argument("--space", metavar="NAME", help="also a Space that shows this revision of the model")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        metavar="FILE",
        help="metrics.json files whose figures stand in the card's metadata (model-index)",
    )
    parser.add_argument(
        "--base-model", metavar="OWNER/NAME", help="of an adapter: its base model on the Hub (default: as it says)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="write the trees to --out, print their sizes, send nothing"
    )
    parser.add_argument("--out", default="publish", metavar="DIR", help="folder of --dry-run (default: publish)")
    parser.set_defaults(run=run_publish)


def run_publish(args) -> int:
    from .publish import publish

    return publish(args)


def _register_demo(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the Space, on this machine",
        description=f"Runs the Space on this machine, open to this machine only. {NOTICE}",
    )
    parser.add_argument("--model", metavar="M", help="local folder or Hub id (default: the embedded checkpoint)")
    parser.add_argument("--port", type=int, default=7860, metavar="P", help="0: any free one (default: 7860)")
    parser.set_defaults(run=run_demo)


def run_demo(args) -> int:
    """Run `app.py` as the Hub does: as a program of its own, told by its environment what to show."""
    import os
    import socket
    import sys
    from importlib.util import find_spec

    from ..processing.errors import InputError

    if find_spec("gradio") is None:
        raise InputError('the demo needs the package gradio: pip install "gaze2report[space]"')
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: a port is a number from 0 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", args.port))
        except OSError as error:
            raise InputError(f"--port {args.port} cannot be used: {error.strerror}. Name another one.") from error
        port = probe.getsockname()[1]
    here = Path(__file__).parent
    model = args.model or str(here / "model")
    if Path(model).is_dir():
        model = str(Path(model).absolute())
    settings = {"GAZE2REPORT_MODEL": model, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    sys.stdout.flush()
    # In place of this process, so that whoever started it stops the Space by stopping it.
    os.execve(sys.executable, [sys.executable, str(here / "app.py")], os.environ | settings)


__all__ = ["register"]
