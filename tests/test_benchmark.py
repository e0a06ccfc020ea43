import json
import mmap
import sys

import pytest
import torch

from modeling_gaze2report import benchmark
from modeling_gaze2report.benchmark import Benchmark, Preset, Row
from modeling_gaze2report.cli import main
from modeling_gaze2report.processing.errors import ModelError

TINY = Preset(
    description="two layers of everything",
    device="cpu",
    dtype="float32",
    vision=(
        "ViTConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    ),
    text=(
        "LlamaConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 1100,
        },
    ),
    gaze_width=32,
    image_size=64,
    patch_size=8,
)


# -- measuring --------------------------------------------------------------------------------------------------------


def test_functions_run_in_turn_and_the_first_round_is_not_counted():
    order = []

    timings = benchmark.time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)

    assert order == ["a", "b"] * 3
    assert [len(timing.wall) for timing in timings.values()] == [2, 2]
    assert [len(timing.processor) for timing in timings.values()] == [2, 2]


def test_the_ratio_is_the_median_of_the_ratios_of_neighbouring_runs():
    # Runs two to four of both fell into a busy minute: the ratios 0.5, 0.5, 0.6, 0.4, 0.5 do not show it.
    assert benchmark.ratio_of([1, 10, 12, 8, 1], [2, 20, 20, 20, 2]) == 0.5


def test_spread_is_the_distance_between_the_quartiles():
    assert benchmark.quartile_distance([1, 2, 3, 4, 100]) == 2  # quartiles 2 and 4
    assert benchmark.quartile_distance([7]) == 0


@pytest.mark.parametrize(
    ("ratio", "limit", "strict", "met"),
    [(1.1, 1.1, False, True), (1.11, 1.1, False, False), (1.0, 1.0, True, False), (0.99, 1.0, True, True)],
)
def test_a_mark_is_met_at_it_or_below_it(ratio, limit, strict, met):
    row = Row("graph", "ours", "theirs", "ms", ours=ratio, against=1.0, ratio=ratio, limit=limit, strict=strict)

    assert row.met is met


def test_a_row_without_a_mark_is_neither_met_nor_missed():
    assert Row("startup", "import", "none", "s", ours=1.0).met is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_what_a_call_holds_at_most():
    def call():
        hold(100_000_000)
        hold(200_000_000)

    def hold(size):  # asked of the system and given back to it: an allocator may keep what was freed
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))

    peak = benchmark.peak_memory(call, weights=1_000_000_000, device="cpu")

    # A few pages may have been the process's before.
    assert 1.19e9 <= peak < 1.25e9


@pytest.mark.skipif(sys.platform == "win32", reason="there is no wait4")
def test_peak_memory_of_a_program_is_its_own():
    held = bytearray(b"x") * 300_000_000  # by this process, which starts it

    seconds, peak = benchmark.run_program([sys.executable, "-S", "-c", "bytearray(100_000_000)"])

    assert len(held) > 2 * peak > 200_000_000
    assert seconds > 0


def test_a_program_that_fails_is_named():
    with pytest.raises(ModelError, match="ended with status 3"):
        benchmark.run_program([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_shared_weights_count_once():
    linear = torch.nn.Linear(10, 10, bias=False)

    assert benchmark.bytes_of(linear, torch.nn.Sequential(linear, torch.nn.Linear(10, 1))) == 4 * (100 + 10 + 1)


# -- models -----------------------------------------------------------------------------------------------------------


def test_baselines_run_on_the_same_towers():
    model = benchmark.make_report_model(TINY)

    llava = benchmark.make_llava(TINY, model)
    no_gaze = benchmark.make_llava(TINY, model, num_tokens=66)

    for other in (llava, no_gaze):
        assert other.model.vision_tower is model.model.vision_tower
        assert other.model.language_model is model.model.language_model
        assert not any(parameter.is_meta for parameter in other.parameters())
    pixels = torch.zeros(1, 3, 64, 64)
    assert [len(other.get_image_features(pixels).pooler_output[0]) for other in (llava, no_gaze)] == [64, 66]


def test_readings_of_the_random_model_are_as_long_as_they_may_be():
    model = benchmark.make_report_model(TINY)

    scanpath = model.predict_scanpath(torch.zeros(1, 3, 64, 64))

    assert scanpath.mask.sum() == model.config.scanpath_config.max_fixations


def test_reports_are_compared_with_both_baselines_and_profiled_by_block():
    run = Benchmark(TINY, repeats=1, say=lambda line: None)

    rows = run.reports()

    compared = [(row.what.partition(": ")[2], row.limit) for row in rows if "batch 8" in row.what]
    assert compared == [("time", 1.1), ("peak memory", 1.1), ("time", 1.0), ("peak memory", 1.0)]
    assert {row.baseline for row in rows} == {"no scanpath, no graph, 66 tokens", "LLaVA, 64 patch tokens"}
    blocks = {name for name, _, _ in run.profile}
    assert {"vision tower", "scanpath", "graph", "language model, prompt", "language model, 63 tokens"} <= blocks
    assert all(milliseconds > 0 for _, _, milliseconds in run.profile)


def test_the_clock_of_the_blocks_leaves_the_model_as_it_was():
    model = benchmark.make_report_model(TINY)

    with benchmark.block_clock(model, "cpu"):
        assert "forward" in vars(model.model.fusion)

    assert "forward" not in vars(model.model.fusion)
    assert "predict" not in vars(model.model.scanpath)


# -- showing ----------------------------------------------------------------------------------------------------------


def test_the_table_names_baseline_mark_and_whether_it_was_met():
    row = Row("graph", "layer", "sparse", "ms", 30.0, 100.0, (1.5, 4.0), ratio=0.3, limit=0.12)

    last = benchmark.table_of([row]).splitlines()[-1]

    assert last == "| layer | sparse | 30 (1.5) | 100 (4) | ms | 0.300 |  | ≤ 0.12 | NO |"


def test_the_profile_gives_shares_by_batch_size():
    lines = benchmark.profile_table([("graph", 1, 25.0), ("tower", 1, 75.0), ("graph", 8, 10.0), ("tower", 8, 90.0)])

    assert lines.splitlines()[2:] == [
        "| graph | 25.0 ms (25.0%) | 10.0 ms (10.0%) |",
        "| tower | 75.0 ms (75.0%) | 90.0 ms (90.0%) |",
    ]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        Benchmark, "graph", lambda self: [Row("graph", "layer", "sparse", "ms", 1, 2, (), 0.5, limit=1)]
    )
    monkeypatch.setitem(benchmark.GROUPS, "graph", Benchmark.graph)

    status = main(["benchmark", "--rows", "graph", "--threads", "1", "--out", str(tmp_path / "rows.json")])

    assert status == 0
    record = json.loads((tmp_path / "rows.json").read_text())
    assert record["rows"][0]["ratio"] == 0.5
    assert record["rows"][0]["met"] is True
    assert len(record["machine"]["load_1_5_15_minutes"]) == 3
    assert "| layer | sparse |" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--repeats", "0"], "at least 1"),
        (["--rows", "graph", "--plot", "growth.png"], "add it to --rows"),
        (["--out", "nowhere/rows.json"], "there is no folder"),
    ],
)
def test_impossible_requests_are_refused(arguments, sentence, capsys):
    assert main(["benchmark", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_preset_says_what_it_needs(capsys):
    assert main(["benchmark", "--preset", "gpu-4b"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
