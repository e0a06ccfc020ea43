"""A run that is killed and started again ends in the same weights, bit by bit, as one that never was."""

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from modeling_gaze2report.processing.errors import InputError, RecipeError
from modeling_gaze2report.training import stages
from modeling_gaze2report.training.progress import read_log
from modeling_gaze2report.training.recipe import load_recipe
from modeling_gaze2report.training.stages import MANIFEST, WRITING, is_whole, last_checkpoint, run

from .toy import TOY, write_phantoms

# Two stages of eight steps, a checkpoint after each, dropout and mixed gaze and tasks as in the real recipe.
SHORT = [
    *TOY,
    "stages.1.max_steps=1",
    *(f"stages.{number}.{setting}" for number in (0, 2) for setting in ("epochs=2", "batch_size=2", "save_steps=1")),
    "data.max_validation_records=2",
]
FIRST, LAST = "0-perception", "2-report"
# Seconds that a run may take on a busy machine.
PATIENCE = 500


def train(data, output, *overrides):
    run(load_recipe("embedded", [*SHORT, f"data.path={data}", f"output={output}", *overrides]))


def weights(output):
    return (Path(output) / "model.safetensors").read_bytes()


def evaluations(output):
    """The log's lines of the validation data, without their times."""
    lines = [line for line in read_log(output.with_name("model-records") / "training_log.jsonl") if "eval_loss" in line]
    times = (
        "seconds",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
        "eval_model_preparation_time",
    )
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with everything imported, and share no state with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_gaze2report.training.stages"])
    return context


@pytest.fixture(scope="module")
def uninterrupted(data, processes, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "model"
    process = processes.Process(target=train, args=(data, output))
    process.start()
    process.join(timeout=PATIENCE)
    assert process.exitcode == 0
    return output


def wait_for(condition, process):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive() and time.monotonic() < end, "the run ended before the moment to kill it"
        time.sleep(0.002)


def by_step(lines: list[dict]) -> dict[tuple, str]:
    return {(line["stage"], line["step"]): json.dumps(line, sort_keys=True) for line in lines}


@pytest.mark.timeout(3 * PATIENCE)
def test_killed_again_and_again(data, processes, uninterrupted, tmp_path):
    output = tmp_path / "model"
    state = tmp_path / "model-checkpoints"
    samples = tmp_path / "model-records" / "samples"
    chance = random.Random(0)
    moments = [
        lambda: last_checkpoint(state / FIRST) is not None,
        # While a checkpoint is being written.
        lambda: (state / FIRST / WRITING).is_dir() and last_checkpoint(state / FIRST) is not None,
        lambda: last_checkpoint(state / LAST) is not None,
        # In an evaluation, between two sample reports: of step 8 where that of step 4 was cut off before its first.
        lambda: any(samples.glob("report-00000[48]/*.txt")),
        # After the last step, while the findings are calibrated or the model is written.
        lambda: is_whole(state / LAST / "final"),
    ]
    for place, moment in enumerate(moments):
        process = processes.Process(target=train, args=(data, output))
        process.start()
        wait_for(moment, process)
        time.sleep(chance.uniform(0, 0.3) if place in (0, 2) else 0)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not output.exists()

    process = processes.Process(target=train, args=(data, output))
    process.start()
    process.join(timeout=PATIENCE)

    assert process.exitcode == 0
    assert weights(output) == weights(uninterrupted)
    # An evaluation that was cut off after its step's checkpoint is not made up for; every other one is there, once.
    whole, continued = by_step(evaluations(uninterrupted)), by_step(evaluations(output))
    assert len(continued) == len(evaluations(output)) >= len(whole) - len(moments)
    assert continued.items() <= whole.items()
    assert not state.exists()


def test_a_full_disk_stops_with_the_last_checkpoint_whole(data, tmp_path, monkeypatch):
    output = tmp_path / "model"
    folder = tmp_path / "model-checkpoints" / FIRST
    written = []

    def save_until_full(state, path):
        written.append(path)
        if len(written) == 3:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save_file(state, path)

    save_file = stages.save_file
    monkeypatch.setattr(stages, "save_file", save_until_full)
    with pytest.raises(InputError, match=r"No space left on device.*MiB are free.*checkpoint-2, is whole"):
        train(data, output)

    assert last_checkpoint(folder).name == "checkpoint-2" and is_whole(folder / "checkpoint-2")
    assert not (folder / WRITING).exists() and not output.exists()


def test_a_checkpoint_with_a_piece_missing_is_passed_over(tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"12345")
        stages.seal(folder)
    (tmp_path / "checkpoint-2" / "weights").write_bytes(b"123")

    assert last_checkpoint(tmp_path).name == "checkpoint-1"
    (tmp_path / "checkpoint-1" / MANIFEST).unlink()
    assert last_checkpoint(tmp_path) is None


def test_another_recipe_does_not_continue_the_run(data, tmp_path):
    recipe = load_recipe("embedded", [*SHORT, f"data.path={data}", f"output={tmp_path / 'model'}"])
    stages.open_state(recipe)
    recipe.seed = 7

    with pytest.raises(RecipeError, match="differs in seed"):
        stages.open_state(recipe)
