"""Makes transformers' own test suites importable as `transformers_suites`, from the source distribution of the
installed version.

The distribution is fetched once into a folder outside the repository, by `pip download`. Set
`GAZE2REPORT_TRANSFORMERS_SDIST` to an archive or an unpacked folder to use that instead. What the distribution leaves
out (generation and export suites, helpers for its own CI) is replaced by empty stand-ins: their tests do not run here.
Where nothing can be fetched, the test modules are skipped with the reason.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import transformers
from PIL import Image

PACKAGE = "transformers_suites"
# What a configuration of any model accepts; the distribution leaves the original table out.
COMMON_CONFIG_VALUES = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "architectures": ["AnyModel"],
    "id2label": {0: "normal"},
    "label2id": {"normal": 0},
    "problem_type": "regression",
}
# Markers that the suites set on tests of accelerators and of generation.
SUITE_MARKERS = (
    *("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "flex_attention_test"),
    *("torch_compile_test", "torch_export_test", "generate", "slow"),
)

outcomes_by_class = defaultdict(dict)


def unpacked_distribution() -> Path:
    """Folder that holds `tests/` of the installed transformers. Raises RuntimeError where it cannot be had."""
    name = f"transformers-{transformers.__version__}"
    given = os.environ.get("GAZE2REPORT_TRANSFORMERS_SDIST")
    if given and Path(given).is_dir():
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gaze2report" / "conformance"
    folder = cache / name
    if folder.is_dir() and not given:
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        archive = Path(given) if given else download(Path(scratch))
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if member.name.startswith(f"{name}/tests/")]
            tar.extractall(scratch, members, filter="data")
        unpacked = Path(scratch) / name
        if not unpacked.is_dir():
            raise RuntimeError(f"{archive} is not the source distribution of {name}")
        if not folder.exists():
            os.replace(unpacked, folder)
    return folder


def download(folder: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1"]
    command += ["--no-deps", "--no-binary", "transformers"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(f"pip download {requirement} failed: {done.stderr.strip().splitlines()[-1:]}")
    return next(folder.glob("transformers-*.tar.gz"))


def add_module(name: str, path: Path | None = None, **attributes) -> None:
    module = types.ModuleType(name)
    if path is not None:
        module.__path__ = [str(path)]
    vars(module).update(attributes)
    sys.modules[name] = module


def expose(folder: Path) -> None:
    """`tests/` of the distribution as a package, with stand-ins for what it imports and does not hold."""
    tests = folder / "tests"
    if not (tests / "test_modeling_common.py").is_file():
        raise RuntimeError(f"{folder} holds no tests/test_modeling_common.py")
    (tests / "__init__.py").touch()  # the suites load it and the distribution leaves it out
    add_module(PACKAGE, tests)
    for missing in ("exporters", "generation", "utils"):
        add_module(f"{PACKAGE}.{missing}", tests / missing)
    add_module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    add_module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    add_module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG_VALUES)
    picture = folder / "picture.png"
    if not picture.exists():
        Image.effect_noise((320, 240), 64).convert("RGB").save(picture)
    add_module(
        "fetch_hub_objects_for_ci",
        # The suites' pictures stand on the Hub; any picture will do.
        url_to_local_path=lambda url: str(picture) if url.endswith((".png", ".jpg")) else url,
    )


try:
    expose(unpacked_distribution())
except Exception as error:  # no network, no pip, a full disk: the reason is told, and the suites are skipped
    add_module(PACKAGE, WHY_MISSING=f"transformers' own suites are not available: {error}")


def pytest_configure(config):
    for marker in SUITE_MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by transformers' suites")


def pytest_runtest_logreport(report):
    """Keep what became of each test, for the tables that the modules hold."""
    class_name, _, name = report.location[2].rpartition(".")
    of_class = outcomes_by_class[class_name]
    counts = report.when == "call" or report.outcome != "passed"
    if counts and of_class.get(name) != "failed":
        of_class[name] = report.outcome


@pytest.fixture
def count_outcomes():
    """Counts what became of a suite's tests in a class: passed, skipped, overridden (and passed), failed."""

    def count(suite, test_class, skipped, overridden):
        outcomes = outcomes_by_class[test_class.__name__]
        names = {name for name in dir(suite) if name.startswith("test_") and callable(getattr(suite, name))}
        if not names <= outcomes.keys():
            pytest.skip(f"only part of {test_class.__name__} ran in this process")
        counts = Counter()
        for name in names:
            kind = outcomes[name]
            if kind == "skipped":
                kind = "skipped here" if name in skipped else "skipped by the suite"
            elif kind == "passed" and name in overridden:
                kind = "overridden"
            counts[kind] += 1
        return dict(counts)

    return count
