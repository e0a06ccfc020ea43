"""The Space as the Hub would run it: the published files, in a process that cannot import this package."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from modeling_gaze2report.hub_space import publish
from modeling_gaze2report.inference import embedded_folder

START_TIMEOUT_S = 300
PHANTOM = embedded_folder().parent / "examples" / "phantom.png"


@dataclass
class Space:
    """A Space that runs.

    Attributes:
        url: its address.
        uploads: folder of the visitors' files.
        log: file with everything it printed.
        process: its process.
    """

    url: str
    uploads: Path
    log: Path
    process: subprocess.Popen

    def memory(self) -> float:
        """Resident memory in megabytes."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def is_up(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(self.url + "/config", timeout=30) as answer:
            return answer.status == 200
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running_space(folder: Path):
    """A Space on a free port, with the embedded checkpoint; everything it writes goes into `folder`."""
    tree = folder / "space"
    publish.build_space_tree(tree, "owner/model", None)
    blocked = folder / "blocked"
    blocked.mkdir()
    (blocked / "modeling_gaze2report.py").write_text("raise ModuleNotFoundError('not installed here')\n")
    environment = {"PYTHONPATH": str(blocked), "GAZE2REPORT_MODEL": str(embedded_folder())}
    with running([sys.executable, "app.py"], folder, free_port(), tree, environment) as space:
        yield space


@contextlib.contextmanager
def running_demo(folder: Path):
    """The same by `gaze2report demo`, with the package."""
    port = free_port()
    command = [sys.executable, "-m", "modeling_gaze2report.cli", "demo", "--port", str(port)]
    with running(command, folder, port, folder, {}) as space:
        yield space


@contextlib.contextmanager
def running(command: list[str], folder: Path, port: int, working_folder: Path, settings: dict):
    environment = os.environ | {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    log = folder / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=working_folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    space = Space(f"http://127.0.0.1:{port}", folder / "uploads", log, process)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not space.is_up():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, "the Space does not start: " + log.read_text()[-3000:]
            time.sleep(0.3)
        yield space
    finally:
        process.terminate()
        process.wait(60)
