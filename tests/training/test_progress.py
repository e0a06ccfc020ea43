"""What a run shows: lines, log, curves, samples and the estimate; and that none of it touches the training."""

import contextlib
import io
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import PrinterCallback, ProgressCallback, TrainerControl

from modeling_gaze2report.processing.errors import DataError, RecipeError
from modeling_gaze2report.training.progress import (
    BarCallback,
    LogCallback,
    attach,
    draw_curves,
    duration,
    estimate,
    number_of_steps,
    probe_step,
    read_log,
    shown_losses,
)
from modeling_gaze2report.training.recipe import PARTS, DataRecipe, LossWeights, ModelRecipe, Recipe, StageRecipe

from .one_step import make_trainer, phantoms, without_dropout

STAGE = StageRecipe(
    "report",
    list(PARTS),
    LossWeights(report=1.0, findings=0.5, scanpath=0.2),
    batch_size=2,
    max_steps=4,
    logging_steps=1,
    eval_steps=2,
    recorded_gaze=0.5,
    predicted_gaze=0.3,
)
RECIPE = Recipe("test", "unused", DataRecipe("data"), ModelRecipe(), [STAGE])
SAMPLED = 4


@pytest.fixture(scope="module")
def records():
    return phantoms(range(6))


def train(folder, records, with_progress):
    trainer = make_trainer(folder / "state", STAGE, records, *(model_and_processor := without_dropout()))
    trainer.args.save_strategy = "no"
    if with_progress:
        attach(trainer, RECIPE, STAGE, model_and_processor[1], records, folder / "records")
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def ran(tmp_path_factory, records):
    """The trainer after its four steps, the folder of its records, and what it printed."""
    folder = tmp_path_factory.mktemp("ran")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        trainer = train(folder, records, with_progress=True)
    return trainer, folder / "records", printed.getvalue()


# -- a whole run ------------------------------------------------------------------------------------------------------


def test_watching_changes_no_weight(ran, records, tmp_path):
    trainer, _, _ = ran

    alone = train(tmp_path, records, with_progress=False)

    watched = trainer.model.state_dict()
    assert all(torch.equal(value, watched[name]) for name, value in alone.model.state_dict().items())


def test_every_log_event_is_one_line(ran):
    trainer, folder, _ = ran

    lines = read_log(folder / "training_log.jsonl")

    assert [(one["step"], "eval_loss" in one) for one in lines] == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True),
    ]  # fmt: skip
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    for line, entry in zip(lines, history, strict=True):
        assert line["stage"] == "report"
        assert {name: line[name] for name in entry if name not in ("epoch",)} == {
            name: value for name, value in entry.items() if name != "epoch"
        }
    assert {"loss", "report", "findings", "scanpath", "learning_rate", "epoch", "seconds"} <= set(lines[0])
    assert [one["seconds"] for one in lines] == sorted(one["seconds"] for one in lines)


def test_where_there_is_no_terminal_events_are_plain_lines(ran):
    trainer, _, printed = ran

    lines = printed.splitlines()

    assert len(lines) == 6
    assert lines[0].startswith("report: step 1 of 4, ") and " left: loss " in lines[0] and "findings " in lines[0]
    assert lines[2].startswith("report: step 2 of 4, ") and "validation: loss " in lines[2]
    assert not any(isinstance(one, (ProgressCallback, PrinterCallback)) for one in trainer.callback_handler.callbacks)


def test_the_curves_are_drawn(ran):
    _, folder, _ = ran

    with Image.open(folder / "training_curves.png") as picture:
        assert picture.width > 800 and picture.height > 300  # three panels side by side, two rows


def test_the_same_films_are_read_at_each_evaluation(ran, records):
    _, folder, _ = ran

    names = [records[index]["image_id"] for index in (0, 1, 3, 4)]  # six records, four spread over them
    for evaluation in ("report-000002", "report-000004"):
        entries = {entry.name for entry in (folder / "samples" / evaluation).iterdir()}
        assert entries == {f"{name}{ending}" for name in names for ending in (".txt", ".overlay.png")}
    text = (folder / "samples" / "report-000002" / f"{names[0]}.txt").read_text()
    assert text.endswith(f"\n\n-- reference --\n{records[0]['report']}\n")
    with Image.open(folder / "samples" / "report-000004" / f"{names[1]}.overlay.png") as overlay:
        assert overlay.width == 768


def test_nothing_half_written_is_left(ran):
    _, folder, _ = ran

    assert not list(folder.rglob(".*"))


# -- log --------------------------------------------------------------------------------------------------------------


def state_at(step, max_steps=10):
    return SimpleNamespace(global_step=step, epoch=step / 10, max_steps=max_steps, is_world_process_zero=True)


def write_steps(path, name, steps, start=0, is_first=True):
    """The log of a stage that begins, or continues, at `start`, and then logs `steps`."""
    callback = LogCallback(name, path, is_first)
    callback.on_train_begin(None, state_at(start), TrainerControl())
    for step in steps:
        callback.on_log(None, state_at(step), TrainerControl(), logs={"loss": float(step), "epoch": step / 10})
    return callback


def places(path):
    return [(one["stage"], one["step"]) for one in read_log(path)]


def test_a_run_that_continues_takes_back_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "training_log.jsonl"
    write_steps(path, "a", [1, 2])
    write_steps(path, "b", [1, 2, 3, 4], is_first=False)

    write_steps(path, "b", [3, 4, 5], start=2, is_first=False)

    assert places(path) == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("b", 4), ("b", 5)]


def test_an_event_that_comes_again_after_a_checkpoint_is_not_written_twice(tmp_path):
    path = tmp_path / "training_log.jsonl"
    callback = write_steps(path, "a", [1, 2])
    callback.on_log(None, state_at(2), TrainerControl(), logs={"eval_loss": 0.5})

    again = write_steps(path, "a", [], start=2)
    again.on_log(None, state_at(2), TrainerControl(), logs={"eval_loss": 0.5})

    assert places(path) == [("a", 1), ("a", 2), ("a", 2)]


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    path = tmp_path / "training_log.jsonl"
    write_steps(path, "a", [1, 2])
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"stage": "a", "st')

    write_steps(path, "a", [3], start=2)

    assert places(path) == [("a", 1), ("a", 2), ("a", 3)]


def test_a_new_run_begins_a_new_log_and_its_next_stage_continues_it(tmp_path):
    path = tmp_path / "training_log.jsonl"
    write_steps(path, "a", [1, 2])
    write_steps(path, "b", [1], is_first=False)

    write_steps(path, "a", [1])
    assert places(path) == [("a", 1)]
    write_steps(path, "b", [1, 2], is_first=False)
    write_steps(path, "b", [1], is_first=False)
    assert places(path) == [("a", 1), ("b", 1)]


def test_time_goes_on_where_it_was_cut(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text(json.dumps({"stage": "a", "step": 2, "seconds": 100.0, "loss": 1.0}) + "\n")

    write_steps(path, "a", [3], start=2)

    assert 100.0 <= read_log(path)[-1]["seconds"] < 110.0


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text('{"stage": "a"}\nnonsense\n{"stage": "a"}\n')

    with pytest.raises(DataError, match=r"training_log\.jsonl, line 2"):
        read_log(path)


def test_what_stands_beside_losses_is_no_loss():
    logs = {"eval_loss": 2.0, "eval_report": 1.5, "eval_runtime": 3.0, "epoch": 1.0, "train_runtime": 9.0}

    assert shown_losses(logs) == {"loss": 2.0, "report": 1.5}
    assert shown_losses({"train_runtime": 9.0, "total_flos": 1.0, "train_loss": 2.0}) == {}


def test_several_stages_and_a_single_value_can_be_drawn(tmp_path):
    lines = [
        {"stage": "a", "step": 5, "loss": 1.0},
        {"stage": "b", "step": 5, "loss": 0.5, "report": 2.0},
        {"stage": "b", "step": 5, "eval_loss": 0.7},
    ]

    draw_curves(lines, tmp_path / "curves.png")

    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"


# -- bar --------------------------------------------------------------------------------------------------------------


def test_on_a_terminal_there_is_a_bar_with_the_losses(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    bar = BarCallback("report")

    bar.on_train_begin(None, state_at(0), TrainerControl())
    bar.on_step_end(None, state_at(5), TrainerControl())
    bar.on_log(None, state_at(5), TrainerControl(), logs={"loss": 1.25, "learning_rate": 1e-3})
    bar.on_log(None, state_at(5), TrainerControl(), logs={"eval_loss": 1.5})
    bar.on_train_end(None, state_at(10), TrainerControl())

    assert "5/10" in screen.getvalue() and "loss 1.25" in screen.getvalue()
    assert "report, step 5, validation: loss 1.5" in screen.getvalue()
    assert "learning_rate" not in screen.getvalue()


@pytest.mark.parametrize("seconds, words", [(41.4, "41 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words


# -- estimate ---------------------------------------------------------------------------------------------------------


def test_what_a_forward_pass_keeps_is_counted():
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU())
    trainer = SimpleNamespace(
        model=lambda batch: ({"report": model(batch["x"]).sum()},),
        stage=STAGE,
        args=SimpleNamespace(device=torch.device("cpu")),
        compute_loss_context_manager=contextlib.nullcontext,
    )
    trainer.model.parameters, trainer.model.buffers = model.parameters, model.buffers
    trainer.model.zero_grad = model.zero_grad

    kept, seconds = probe_step(trainer, {"x": torch.randn(8, 10)})

    # The layer keeps its input, 8 x 10 numbers of 4 bytes, and the ReLU its output, 8 x 20; the weights are no news.
    assert kept == 8 * 10 * 4 + 8 * 20 * 4
    assert seconds > 0
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize(
    "max_steps, processes, steps",
    [(-1, 1, 6), (-1, 2, 3), (7, 1, 7)],  # ten records: 3 batches of 4, 2 steps of 2 batches, 3 epochs; by two: 1, 3
)
def test_steps_are_counted(max_steps, processes, steps):
    arguments = SimpleNamespace(
        max_steps=max_steps,
        per_device_train_batch_size=4,
        world_size=processes,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
    )

    assert number_of_steps(SimpleNamespace(args=arguments, train_dataset=range(10))) == steps


def test_the_estimate_names_memory_and_time_and_leaves_no_trace(records, tmp_path):
    trainer = make_trainer(tmp_path, STAGE, records, *without_dropout())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    numbers = torch.get_rng_state()
    modes = [module.training for module in trainer.model.modules()]

    text = estimate(trainer)

    size = sum(one.numel() * 4 for one in trainer.model.parameters()) / 2**20
    assert f"weights {size:.0f} MiB, gradients {size:.0f} MiB, AdamW {2 * size:.0f} MiB, activations " in text
    assert "4 steps of " in text and "measured on one batch of 2" in text
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [module.training for module in trainer.model.modules()] == modes
    assert all(one.grad is None for one in trainer.model.parameters())


def test_a_step_that_does_not_fit_is_said_before_training(records, tmp_path, monkeypatch):
    def too_much(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = make_trainer(tmp_path, STAGE, records, *without_dropout())
    monkeypatch.setattr("modeling_gaze2report.training.progress.probe_step", too_much)

    with pytest.raises(RecipeError, match=r"a step over 2 records does not fit .* lower batch_size"):
        estimate(trainer)
