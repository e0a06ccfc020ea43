"""What an installation holds and does, for a built wheel and a plain `pip install .`."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_gaze2report.cli import bundled_film
from modeling_gaze2report.hub_space.export import HUB_FILES
from modeling_gaze2report.inference import embedded_folder

from .tiny_export import export_tiny_model

ROOT = Path(__file__).parents[1]
ROOMS = {
    "modeling_gaze2report": ROOT / "modeling_gaze2report",
    "modeling_gaze2report.processing": ROOT / "processing",
    "modeling_gaze2report.hub_space": ROOT / "hub_space",
}
# Where a build works; a checkout that was built before must not leak into a new build.
COPIED = ("pyproject.toml", "README.md", "LICENSE", "modeling_gaze2report", "processing", "hub_space")

# Of files that the package reads or serves beside its code.
DATA_SUFFIXES = {".yaml", ".json", ".js", ".css", ".txt", ".safetensors", ".jinja", ".png", ".dcm"}

# Asked once, before anything is built: while it is being trained, no test sees half of it.
HAS_CHECKPOINT = (embedded_folder() / "config.json").is_file() and bundled_film().is_file()


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def isolation():
    """How pip builds the project: by the setuptools that is here if it is new enough, else by one it fetches."""
    needed = int(re.fullmatch(r"setuptools>=(\d+)", pyproject()["build-system"]["requires"][0])[1])
    try:
        here = int(metadata.version("setuptools").partition(".")[0])
    except metadata.PackageNotFoundError:
        here = 0
    return ["--no-build-isolation"] if here >= needed else []


def run(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def package_folders():
    """Every folder of the rooms that is a package, by the name it is imported under."""
    for package, room in ROOMS.items():
        for folder in [room, *(path for path in room.rglob("*") if path.is_dir())]:
            if (folder / "__init__.py").is_file():
                yield ".".join((package, *folder.relative_to(room).parts)), folder


# -- without building -------------------------------------------------------------------------------------------------


def test_every_package_is_in_the_distribution():
    assert sorted(pyproject()["tool"]["setuptools"]["packages"]) == sorted(dict(package_folders()))


def test_the_program_is_the_command_line():
    assert pyproject()["project"]["scripts"] == {"gaze2report": "modeling_gaze2report.cli:main"}


def test_inference_needs_what_the_hub_files_import_and_no_more():
    names = {requirement.split(">")[0].split("=")[0] for requirement in pyproject()["project"]["dependencies"]}

    assert names == {"torch", "torch-geometric", "transformers", "safetensors", "huggingface-hub", "numpy", "pillow"}


# -- installed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The tracked files of the project, as a fresh clone has them, with changes that are not committed."""
    folder = tmp_path_factory.mktemp("source")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *COPIED, cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation())
    run(*pip, "-w", folder, source, cwd=folder)
    (path,) = folder.glob("gaze2report-*.whl")
    return path


def fresh_environment(folder):
    """A virtual environment that sees this one's dependencies but not this one's installation of the project."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    current = Path(np.__file__).parents[1]
    for entry in current.iterdir():
        # An editable installation of the project stands there as `__editable__...` files or finders.
        if not entry.name.startswith(("__editable__", "gaze2report", "modeling_gaze2report")):
            (dependencies / entry.name).symlink_to(entry)
    (site / "dependencies.pth").write_text(str(dependencies))
    return folder / "bin" / "python"


def install(python, what):
    run(python, "-m", "pip", "install", "-q", "--no-deps", *isolation(), what, cwd=python.parent)


@pytest.fixture(scope="module", params=["wheel", "source"])
def installed(request, tmp_path_factory):
    """Python of an environment in which a built wheel, or the source tree, was installed."""
    python = fresh_environment(tmp_path_factory.mktemp(f"venv-{request.param}"))
    install(python, request.getfixturevalue(request.param))
    return python


def test_the_wheel_holds_every_room_and_nothing_of_the_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    for package, folder in package_folders():
        for path in folder.glob("*.py"):
            assert f"{package.replace('.', '/')}/{path.name}" in names
    for package, folder in ROOMS.items():
        for path in folder.rglob("*"):
            if path.suffix in DATA_SUFFIXES:
                assert f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}" in names
    assert {name.split("/")[0] for name in names} == {"modeling_gaze2report", next(
        name.split("/")[0] for name in names if ".dist-info/" in name)}  # fmt: skip
    assert not [name for name in names if "test" in Path(name).name.lower() and name.endswith(".py")]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_the_checkpoint_and_the_film(wheel):
    if not HAS_CHECKPOINT:
        pytest.skip("hub_space/model holds no checkpoint: train the recipe `embedded`")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    room = "modeling_gaze2report/hub_space"
    files = (*HUB_FILES, "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md")
    assert {f"{room}/model/{name}" for name in files} <= names
    assert f"{room}/examples/phantom.png" in names


def test_an_installation_runs_the_main_job_beside_a_file_named_processing(installed, tmp_path, tmp_path_factory):
    for name in ("processing", "hub_space", "tests", "evidence"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file was imported')")
    model = []
    if not HAS_CHECKPOINT:
        pixels = np.random.default_rng(0).integers(0, 256, (80, 60), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "phantom.png")
        model = ["phantom.png", "--model", export_tiny_model(tmp_path_factory)]

    run(installed.with_name("gaze2report"), "report", *model, "--out", "out", cwd=tmp_path)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "phantom.evidence.json",
        "phantom.overlay.png",
        "phantom.txt",
    ]


def test_an_installation_adds_one_name_to_what_can_be_imported(installed):
    program = (
        "import importlib.util as u, pathlib, modeling_gaze2report as m;"
        "print(pathlib.Path(m.__file__).parents[1].name, m.__version__, "
        "[name for name in ('processing', 'hub_space', 'tests') if u.find_spec(name)])"
    )

    done = run(installed, "-c", program, cwd=installed.parent)

    assert done.stdout.split(maxsplit=2) == ["site-packages", pyproject()["project"]["version"], "[]\n"]
