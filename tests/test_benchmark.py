import json
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

from modeling_gaze2report import benchmark
from modeling_gaze2report.benchmark import Benchmark, Preset, Row
from modeling_gaze2report.cli import main
from modeling_gaze2report.configuration_gaze2report import Gaze2ReportScanpathConfig
from modeling_gaze2report.modeling_scanpath import Gaze2ReportScanpath, Gaze2ReportScanpathModel
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


def test_ways_to_generate_are_compared_with_the_default_and_leave_the_model_as_it_was():
    run = Benchmark(TINY, repeats=1, say=lambda line: None)
    before = run.model.model.language_model.config._attn_implementation

    rows = run.generation()

    ways = ("static cache", "eager attention", "prompt lookup, 3 tokens", "beam search, 3 beams", "film encoded ahead")
    assert [row.what for row in rows] == [f"report of 64 tokens, {way}" for way in ways]
    assert all(row.ratio > 0 and row.limit is None and row.met is None for row in rows)
    assert run.model.model.language_model.config._attn_implementation == before


def test_the_clock_of_the_blocks_leaves_the_model_as_it_was():
    model = benchmark.make_report_model(TINY)

    with benchmark.block_clock(model, "cpu"):
        assert "forward" in vars(model.model.fusion)

    assert "forward" not in vars(model.model.fusion)
    assert "predict" not in vars(model.model.scanpath)


# -- compiling --------------------------------------------------------------------------------------------------------


def make_scanpath():
    config = Gaze2ReportScanpathConfig(
        hidden_size=32,
        intermediate_size=64,
        num_encoder_layers=1,
        num_hidden_layers=1,
        vision_hidden_size=32,
        grid_size=4,
        max_fixations=4,
    )
    scanpath = Gaze2ReportScanpathModel(config).eval()
    benchmark.never_end(scanpath)
    return scanpath


def predict(scanpath):
    patches = torch.linspace(-1, 1, 2 * 16 * 32).view(2, 16, 32)
    return scanpath.predict(patches, num_samples=5, do_sample=True, generator=torch.Generator().manual_seed(0))


def test_a_compiled_twin_reads_as_the_model_does_and_leaves_it_eager(monkeypatch):
    scanpath = make_scanpath()
    compile_decoding = Gaze2ReportScanpathModel.compile_decoding
    # Everything but the code generator, which takes half a minute.
    monkeypatch.setattr(
        Gaze2ReportScanpathModel, "compile_decoding", lambda self: compile_decoding(self, backend="eager")
    )

    twin, seconds = benchmark.compiled_twin(scanpath, predict)

    assert seconds > 0
    assert twin.start is scanpath.start
    assert "decode_step" in vars(twin)
    assert "decode_step" not in vars(scanpath)
    benchmark.check_same_readings(predict(twin), predict(scanpath))


def test_where_nothing_compiles_the_row_says_why(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("No working C++ compiler found\nmore lines")

    monkeypatch.setattr(Gaze2ReportScanpathModel, "compile_decoding", lambda self: setattr(self, "decode_step", refuse))

    with pytest.raises(benchmark.NotCompiledError) as caught:
        benchmark.compiled_twin(make_scanpath(), predict)

    row = benchmark.not_compiled("scanpath", "40 fixations, compiled", caught.value)
    assert row.met is None
    assert benchmark.line_of(row) == "40 fixations, compiled: not run: No working C++ compiler found"
    last = benchmark.table_of([row]).splitlines()[-1]
    assert last == "| 40 fixations, compiled | not run: No working C++ compiler found |  |  |  |  |  |  |  |"


def test_different_readings_are_not_timed():
    there = Gaze2ReportScanpath(fixations=torch.zeros(2, 5, 3, 3))
    one_off, two_off = torch.zeros(2, 5, 3, 3), torch.zeros(2, 5, 3, 3)
    one_off[0, 0, 2, 1] = two_off[0, 0, 2, 1] = two_off[1, 4, 0, 2] = 0.1

    benchmark.check_same_readings(Gaze2ReportScanpath(fixations=one_off), there)  # one of ten
    with pytest.raises(ModelError, match="different readings"):
        benchmark.check_same_readings(Gaze2ReportScanpath(fixations=two_off), there)


def test_the_compiler_starts_with_an_empty_cache_that_does_not_stay(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "before")

    with benchmark.empty_compiler_cache():
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert list(folder.iterdir()) == []
        (folder / "kernel.so").touch()

    assert not folder.exists()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "before"


def test_a_training_step_is_timed_with_eager_and_with_compiled_decoding(monkeypatch):
    pytest.importorskip("peft")
    compile_decoding = Gaze2ReportScanpathModel.compile_decoding
    compiled_graphs = []

    def backend(graph, inputs):
        def run(*arguments):
            compiled_graphs.append(graph)
            return graph.forward(*arguments)

        return run

    monkeypatch.setattr(
        Gaze2ReportScanpathModel, "compile_decoding", lambda self: compile_decoding(self, backend=backend)
    )

    rows = Benchmark(TINY, repeats=1, say=lambda line: None).training()

    assert [row.what.partition("batch 4")[2] for row in rows] == ["", ", compiled decoding"]
    assert {row.limit for row in rows} == {1.15}
    # 50 steps each: the first reading, one step of training to warm up, one that is measured; one graph for all.
    assert len(compiled_graphs) == 3 * 50
    assert len(set(map(id, compiled_graphs))) == 1


def growth_of(monkeypatch, compiled_twin):
    """Rows and points where a tower takes 1 s, a graph 0.25 s, a scanpath 0.5 s and a compiled one 0.125 s."""
    names = {"tower": 1.0, "scanpath": 0.5, "graph": 0.25, "compiled scanpath": 0.125}

    def time_in_turn(functions, repeats, device):
        return {name: benchmark.Timing([names[name]], [names[name]]) for name in functions}

    monkeypatch.setattr(benchmark, "time_in_turn", time_in_turn)
    monkeypatch.setattr(
        benchmark,
        "growth_functions",
        lambda preset, **sizes: (dict.fromkeys(("tower", "scanpath", "graph")), None, None),
    )
    monkeypatch.setattr(benchmark, "compiled_twin", compiled_twin)
    run = Benchmark(TINY, repeats=1, say=lambda line: None)
    return run.growth(), run.growth_points


def test_growth_shows_eager_and_compiled_decoding_side_by_side(monkeypatch, tmp_path):
    rows, points = growth_of(monkeypatch, lambda scanpath, predict: (None, 20.0))

    shares = {row.what.split(",")[0]: row.ratio for row in rows if row.baseline == "the vision tower"}
    assert shares == {"graph + scanpath": 0.75, "graph + compiled scanpath": 0.375}
    assert (rows[-1].what, rows[-1].ours) == ("compiling the scanpath's step, once for each of 9 sizes", 180.0)
    last = benchmark.growth_table(points).splitlines()[-1]
    assert last == "| batch | 196 | 16 | 64 | 1000.0 | 500.0 | 250.0 | 0.750 | 125.0 | 0.375 |"
    benchmark.draw_growth(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_growth_goes_on_where_nothing_compiles(monkeypatch):
    def refuse(scanpath, predict):
        raise benchmark.NotCompiledError("No working C++ compiler found")

    rows, points = growth_of(monkeypatch, refuse)

    assert sum(row.baseline == "the vision tower" for row in rows) == 9
    assert rows[-1].baseline == "not run: No working C++ compiler found"
    last = benchmark.growth_table(points).splitlines()[-1]
    assert last == "| batch | 196 | 16 | 64 | 1000.0 | 500.0 | 250.0 | 0.750 |  |  |"


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
