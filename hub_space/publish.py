"""A model, and a Space that shows it, on the Hub: built as a tree, proved by loading it elsewhere, sent in one commit.

Nothing is sent before the whole tree stands on the disk and a process that cannot import this package has loaded it.
The commit is atomic: a transfer that breaks off leaves the repository as it was. Files that have not changed are not
sent, and a repository in which nothing changes gets no commit. The token is the one that huggingface_hub finds:
`HF_TOKEN` or the login.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..processing.errors import Gaze2ReportError, InputError, ModelError
from .card import adapter_card, model_card

# What belongs to a model on the Hub. All else in a training folder (optimizer states, logs) stays behind, and is named.
MODEL_FILES = (
    *("config.json", "generation_config.json", "processor_config.json", "chat_template.jinja", "README.md", "LICENSE*"),
    *("*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", "LICENSE*")
# These change what loads, so that stale ones are removed from the repository; other people's files are left alone.
LOADED_FILES = ("*.py", "*.safetensors", "*.safetensors.index.json")
SPACE_FILES = ("app.py", "film_view.py", "film_view.js", "film_view.css", "reading.py", "safety.py", "requirements.txt")
# The readers of eye-tracker files, which no model folder holds: the Space gets them under their own folder names.
GAZE_READERS = ("errors.py", "datasets/gaze_formats.py", "datasets/scanpath.py")
SPACE_SETTINGS = "space.json"
CHECK_TIMEOUT_S = 900


@dataclass
class Published:
    """One repository after an upload.

    Attributes:
        url: its page.
        revision: the commit that holds the tree.
        is_new_commit: false where the repository held the same files already.
    """

    url: str
    revision: str
    is_new_commit: bool


# -- trees ------------------------------------------------------------------------------------------------------------


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter of `peft` and no whole model."""
    return (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / "config.json").is_file()


def build_model_tree(source: str | Path, folder: str | Path, repo_id: str, metrics=(), base_model: str | None = None):
    """Write the files of a model, or of an adapter, as they will stand on the Hub.

    Args:
        source: folder that `gaze2report train`, `export_model`, `save_pretrained` or `peft` wrote.
        folder: new or empty folder.
        repo_id: `owner/name`, for the card.
        metrics: `metrics.json` files whose figures become the card's `model-index`.
        base_model: Hub id of the model that an adapter belongs to; default the one that the adapter names.

    Returns:
        names of the files and folders of `source` that do not belong to a model and were left out.

    Raises:
        InputError: no model there, weights as pickles only, or an adapter of a base model that only this machine has.
    """
    source, folder = Path(source), Path(folder)
    if not source.is_dir():
        raise InputError(f"{source}: there is no such folder; name the folder of a model or an adapter.")
    wanted = ADAPTER_FILES if is_adapter(source) else MODEL_FILES
    entries = sorted(source.iterdir())
    chosen = [one for one in entries if one.is_file() and any(fnmatch(one.name, pattern) for pattern in wanted)]
    weights = "adapter_model.safetensors" if is_adapter(source) else "*.safetensors"
    if not any(fnmatch(one.name, weights) for one in chosen):
        pickles = [one.name for one in entries if one.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
        reason = f"its weights ({', '.join(pickles)}) are pickles" if pickles else "there are no weights in it"
        raise InputError(f"{source} cannot be published: {reason}; {weights} is needed.")
    folder.mkdir(parents=True, exist_ok=True)
    for one in chosen:
        link_or_copy(one, folder / one.name)
    if is_adapter(source):
        finish_adapter(folder, repo_id, base_model)
    else:
        finish_model(source, folder)
    write_card(folder, source, repo_id, metrics)
    made_here = {entry.name for entry in folder.iterdir()}
    return [entry.name for entry in entries if entry.name not in made_here and entry.name != "__pycache__"]


def link_or_copy(source: Path, target: Path) -> None:
    """The file under a second name; weights of many gigabytes are not copied where the disk allows that."""
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)


def finish_model(source: Path, folder: Path) -> None:
    """The code beside the weights, and in each configuration which class of it to take."""
    from .export import AUTO_MAP, add_processor_classes, edit_json, hub_file_paths

    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise InputError(f"{source} cannot be published: {name} is missing. `gaze2report train` writes it.")

    def add_classes(values: dict) -> None:
        values["auto_map"] = dict(AUTO_MAP)
        values.pop("_name_or_path", None)  # where the model was loaded from, on this machine

    edit_json(folder / "config.json", add_classes)
    edit_json(folder / "processor_config.json", add_processor_classes)
    for name, path in hub_file_paths().items():
        shutil.copyfile(path, folder / name)


def finish_adapter(folder: Path, repo_id: str, base_model: str | None) -> None:
    from .export import edit_json

    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = base_model or settings.get("base_model_name_or_path") or ""
    if base.count("/") != 1 or base.startswith((".", "/", "~")) or Path(base).exists():
        raise InputError(
            f"The adapter of {repo_id} belongs to the base model {base!r}, which nobody else has: publish that model "
            "first, and name it with --base-model OWNER/NAME."
        )
    edit_json(folder / "adapter_config.json", lambda values: values.update(base_model_name_or_path=base))


def write_card(folder: Path, source: Path, repo_id: str, metrics) -> None:
    """The model's own card, or a first one; with the figures of `metrics` in its metadata."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        card = adapter_card(text, repo_id, base)
    else:
        card = model_card(text, source.absolute(), repo_id, metrics)
    path.write_text(card, encoding="utf-8")


def build_space_tree(folder: str | Path, model_id: str, revision: str | None, files=()) -> None:
    """Write the files of the Space that shows a model.

    The Space loads the revision that was published with it and no other: code that somebody adds to the model later
    never runs there unseen.

    Args:
        folder: new or empty folder.
        model_id: `owner/name` of the model on the Hub.
        revision: commit of the model; `None` where it does not exist yet.
        files: names of the model's files, which the Hub then lays into the Space when it builds it.
    """
    from huggingface_hub import SpaceCard

    from .. import processing

    here, folder = Path(__file__).parent, Path(folder)
    (folder / "examples").mkdir(parents=True)
    for name in SPACE_FILES:
        shutil.copyfile(here / name, folder / name)
    for path in sorted((here / "examples").glob("phantom*")):
        shutil.copyfile(path, folder / "examples" / path.name)
    for name in GAZE_READERS:
        target = folder / "processing" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "__init__.py").touch()
        shutil.copyfile(Path(processing.__file__).parent / name, target)
    (folder / "processing" / "__init__.py").touch()
    settings = {"model": model_id, "revision": revision}
    (folder / SPACE_SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    card = SpaceCard.load(here / "README.md", ignore_metadata_errors=False)
    card.data.models = [model_id]
    preload = [model_id, ",".join(sorted(files)), revision or ""] if files else [model_id]
    card.data.preload_from_hub = [" ".join(preload).strip()]
    card.save(folder / "README.md")


# -- checks -----------------------------------------------------------------------------------------------------------


def check_tree(folder: str | Path, base_model: str | Path | None = None) -> str:
    """Load a model tree, and let it read a film, in a process that cannot import this package.

    Args:
        folder: what `build_model_tree` wrote.
        base_model: folder of an adapter's base model, where it is at hand; otherwise it is taken from the Hub.

    Returns:
        the report of the bundled phantom film.

    Raises:
        ModelError: it does not load, weights are missing or left over, or no report comes out.
    """
    program = Path(__file__).with_name("loading_check.py")
    film = Path(__file__).parent / "examples" / "phantom.png"
    with tempfile.TemporaryDirectory(prefix="gaze2report-check-") as temporary:
        environment = os.environ | {"HF_MODULES_CACHE": str(Path(temporary) / "modules"), "TQDM_DISABLE": "1"}
        tree = Path(folder).absolute()
        if not is_adapter(tree):
            environment["HF_HUB_OFFLINE"] = "1"
        elif base_model is not None:
            environment["HF_HUB_OFFLINE"] = "1"
            tree = shutil.copytree(tree, Path(temporary) / "adapter")
            finish = json.loads((tree / "adapter_config.json").read_text(encoding="utf-8"))
            finish["base_model_name_or_path"] = str(Path(base_model).absolute())
            (tree / "adapter_config.json").write_text(json.dumps(finish), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(program), str(tree), str(film)],
            cwd=temporary,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_TIMEOUT_S,
        )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it ended without a word"]
        raise ModelError(f"{folder}: what was exported does not load in a clean process: {lines[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["report"]


def sizes(folder: str | Path) -> list[tuple[str, int]]:
    """Path and bytes of every file of a tree."""
    folder = Path(folder)
    return [(str(one.relative_to(folder)), one.stat().st_size) for one in sorted(folder.rglob("*")) if one.is_file()]


# -- the Hub ----------------------------------------------------------------------------------------------------------


def connect():
    """The Hub's client and the name that the token belongs to.

    Raises:
        InputError: there is no token, or the Hub does not take it.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise InputError("No Hub token: set HF_TOKEN or run `hf auth login`. (--dry-run needs none.)")
    api = HfApi(library_name="gaze2report")
    try:
        return api, api.whoami()["name"]
    except HfHubHTTPError as error:
        raise InputError(f"The Hub does not take the token: {first_line(error)}") from error
    except Exception as error:
        raise ModelError(f"The Hub at {api.endpoint} cannot be reached: {first_line(error)}") from error


def full_name(name: str, owner: str) -> str:
    """`owner/name` of a repository.

    Raises:
        InputError: the Hub takes no such name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    repo_id = name if "/" in name else f"{owner}/{name}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{name!r} is no name of a Hub repository: {first_line(error)}") from error
    return repo_id


def upload(api, folder: str | Path, repo_id: str, repo_type: str, is_private: bool, message: str) -> Published:
    """Bring a repository to hold the files of a tree, in one commit or, where it does already, in none.

    Args:
        api: `huggingface_hub.HfApi`.
        folder: the tree.
        repo_id, repo_type: `owner/name`; `"model"` or `"space"`. Made if missing.
        is_private: for a repository that is made now.
        message: of the commit.

    Raises:
        ModelError: the Hub refuses, or the transfer breaks off; the repository is as it was then.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    folder = Path(folder)
    try:
        options = {"space_sdk": "gradio"} if repo_type == "space" else {}
        url = api.create_repo(repo_id, repo_type=repo_type, private=is_private, exist_ok=True, **options)
        before = api.repo_info(repo_id, repo_type=repo_type)
        here = {path for path, _ in sizes(folder)}
        there = {one.rfilename for one in before.siblings or []}
        stale = [path for path in there - here if any(fnmatch(path, pattern) for pattern in LOADED_FILES)]
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=folder / path) for path in sorted(here)]
        operations += [CommitOperationDelete(path_in_repo=path) for path in sorted(stale)]
        commit = api.create_commit(
            repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=before.sha
        )
    except Gaze2ReportError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        raise ModelError(
            f"{repo_id} was not published and is as it was before: {first_line(error)}{cause} Run the command again."
        ) from error
    if is_private and not before.private:
        print(f"note: {repo_id} exists and is public; --private does not change that.", file=sys.stderr)
    return Published(str(url), commit.oid, commit.oid != before.sha)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- the command ------------------------------------------------------------------------------------------------------


def publish(args) -> int:
    """`gaze2report publish`; see there for the arguments."""
    if args.space and is_adapter(args.model):
        raise InputError("--space needs a whole model: merge the adapter (`merge_and_unload`) and export that first.")
    api, owner = (None, "you") if args.dry_run else connect()
    repo_id = full_name(args.repo, owner)
    space_id = full_name(args.space, owner) if args.space else None
    with tempfile.TemporaryDirectory(prefix="gaze2report-publish-") as temporary:
        trees = empty_folder(args.out) if args.dry_run else Path(temporary)
        tree = trees / "model"
        left_out = build_model_tree(args.model, tree, repo_id, args.metrics, args.base_model)
        if left_out:
            print(f"note: left out, as no part of a model: {', '.join(left_out)}", file=sys.stderr)
        print("checking that it loads in a clean process", file=sys.stderr, flush=True)
        print(f"it reads the phantom film: {check_tree(tree, local_base(args))}", file=sys.stderr, flush=True)
        if args.dry_run:
            if space_id:
                build_space_tree(trees / "space", repo_id, None, loaded_files(tree))
            print_tree(trees)
            return 0
        model = upload(api, tree, repo_id, "model", args.private, "Publish the model")
        print(f"{model.url}  {'commit ' + model.revision if model.is_new_commit else 'unchanged'}")
        if space_id:
            build_space_tree(trees / "space", repo_id, model.revision, loaded_files(tree))
            space = upload(api, trees / "space", space_id, "space", args.private, "Publish the Space")
            print(f"{space.url}  {'commit ' + space.revision if space.is_new_commit else 'unchanged'}")
    return 0


def loaded_files(tree: Path) -> list[str]:
    """The files of a model tree that loading it reads."""
    return [name for name, _ in sizes(tree) if not name.startswith(("README", "LICENSE"))]


def local_base(args) -> Path | None:
    """The base model of an adapter, where the adapter names a folder of this machine."""
    if not is_adapter(args.model):
        return None
    settings = json.loads((Path(args.model) / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(settings.get("base_model_name_or_path") or "")
    return base if base.is_dir() and (base / "config.json").is_file() else None


def empty_folder(name: str) -> Path:
    """The folder, made if need be.

    Raises:
        InputError: there is something in it already, or it cannot be made.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{name} is not empty: name a new folder with --out.")
    except OSError as error:
        raise InputError(f"{name}: this folder cannot be made: {error.strerror or error}") from error
    return folder


def print_tree(folder: Path) -> None:
    total = 0
    for path, size in sizes(folder):
        print(f"{size:>12,}  {path}")
        total += size
    print(f"{total:>12,}  bytes in all, in {folder}")


__all__ = [
    "Published",
    "build_model_tree",
    "build_space_tree",
    "check_tree",
    "connect",
    "full_name",
    "is_adapter",
    "publish",
    "sizes",
    "upload",
]
