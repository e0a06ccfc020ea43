"""Two processes make the step that one makes of the same records, the contrast of film and report included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from modeling_gaze2report.hub_space.export import export_model
from modeling_gaze2report.training import recipe as recipes
from modeling_gaze2report.training.progress import read_log
from modeling_gaze2report.training.recipe import load_recipe
from modeling_gaze2report.training.stages import run

from .one_step import UNDRAWN_LOSSES, gradients_of_one_step, without_dropout
from .toy import write_phantoms

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = Path(recipes.__file__).parent / "accelerate"


@pytest.fixture(scope="module")
def alone():
    """One process, one batch of eight."""
    return gradients_of_one_step(8, 1, dict.fromkeys(UNDRAWN_LOSSES, 1.0))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_two_processes_equal_one(wrapper, alone, tmp_path):
    path = tmp_path / "gradients.safetensors"
    port = 29600 + os.getpid() % 300
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]

    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.training.one_step", path, "4", "1", wrapper, *UNDRAWN_LOSSES],
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


# -- accelerate launch ------------------------------------------------------------------------------------------------


def fine_tuning(data, checkpoint, output, batch_size):
    """A recipe for two steps over four records each, and its overrides."""
    return [
        "finetune",
        *(f"data.path={data}", f"model.checkpoint={checkpoint}", f"output={output}", "num_workers=0", "device=cpu"),
        *("stages.0.max_steps=2", f"stages.0.batch_size={batch_size}", "stages.0.logging_steps=1"),
    ]


def test_the_shipped_launch_trains_whole_and_as_one_process_does(tmp_path):
    data = write_phantoms(tmp_path, num_train=8, num_validation=2)
    checkpoint = export_model(*without_dropout(), tmp_path / "checkpoint")
    name, *overrides = fine_tuning(data, checkpoint, tmp_path / "alone", batch_size=4)
    run(load_recipe(name, overrides))
    launch = ["-m", "accelerate.commands.launch", f"--main_process_port={29300 + os.getpid() % 300}"]

    done = subprocess.run(
        [
            *(sys.executable, *launch, "--config_file", CONFIGURATIONS / "ddp.yaml"),
            *("-m", "modeling_gaze2report.training", *fine_tuning(data, checkpoint, tmp_path / "both", batch_size=2)),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("stage report: finished") + done.stdout.count("the model is in") == 1
    assert not (tmp_path / "both-checkpoints").exists()
    log = read_log(tmp_path / "both-records" / "training_log.jsonl")
    events = [(line["step"], "eval_loss" in line) for line in log]
    assert len(events) == len(set(events)) and {(1, False), (2, False)} <= set(events)
    start, alone, both = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("checkpoint", "alone", "both")
    )
    assert alone.keys() == both.keys()
    moved = sum((alone[key] - start[key]).double().square().sum() for key in start).sqrt()
    apart = sum((alone[key] - both[key]).double().square().sum() for key in start).sqrt()
    assert moved > 0 and apart < 0.02 * moved


@pytest.mark.parametrize("name, kind", [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("deepspeed", "DEEPSPEED")])
def test_every_key_of_a_configuration_is_the_launchers(name, kind):
    path = CONFIGURATIONS / f"{name}.yaml"
    known = {action.dest for action in launch_command_parser()._actions}

    configuration = ClusterConfig.from_yaml_file(path)  # refuses keys that it does not know

    assert configuration.distributed_type.value == kind
    assert {*(configuration.fsdp_config or {}), *(configuration.deepspeed_config or {})} <= known


def test_the_launcher_asks_for_fsdp2_by_layers(monkeypatch):
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGURATIONS / "fsdp2.yaml"), "train.py"])
    arguments, *_ = _validate_launch_command(arguments)
    for key, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(key, value)

    plugin = FullyShardedDataParallelPlugin()

    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
