"""Two processes make the step that one makes of the same records, the contrast of film and report included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_gaze2report.training.recipe import LossWeights

from .one_step import gradients_of_one_step

ROOT = Path(__file__).parents[2]
LOSSES = tuple(vars(LossWeights()))


@pytest.fixture(scope="module")
def alone():
    """One process, one batch of eight."""
    return gradients_of_one_step(8, 1, dict.fromkeys(LOSSES, 1.0))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_two_processes_equal_one(wrapper, alone, tmp_path):
    path = tmp_path / "gradients.safetensors"
    port = 29600 + os.getpid() % 300
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]

    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.training.one_step", path, "4", "1", wrapper, *LOSSES],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=400,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    together = load_file(path)
    assert together.keys() == alone.keys()
    scale = max(gradient.abs().max() for gradient in alone.values())
    for name, gradient in alone.items():
        torch.testing.assert_close(
            together[name].view_as(gradient), gradient, rtol=0, atol=1e-4 * max(1.0, scale.item()), msg=name
        )
