"""`gaze2report benchmark`: what gaze costs, as ratios of named baselines that run in turn with it.

Weights are random and readings as long as the model allows (no reading of a random model would end for a reason), so
that nothing has to be downloaded and the gaze costs as much as it can. Every comparison is warmed up and then run in
turn, baseline and ours, several times; a row gives medians and the distance between the quartiles. The processor time
of all threads stands beside the wall time: it hardly changes when other programs use the machine.

Rows that say "compiled" decode the scanpath with `compile_decoding`, which needs a C++ compiler on a processor; where
nothing compiles they say so. The compiler starts with an empty cache, and its time is a row of its own.

Memory is the peak of the resident set while the call runs, above what was resident before it, plus the weights that the
call uses (Linux); on CUDA, the peak that PyTorch allocated, likewise.
"""

import contextlib
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .processing.errors import InputError, ModelError

MEGABYTE = 1e6
REPORT_TOKENS = 64
PROMPT_TOKENS = 20


@dataclass(frozen=True)
class Preset:
    """Sizes of the towers; the language model and the vision tower hold random weights.

    Attributes:
        description: what it is, for the table.
        device, dtype: where and in what the models run; gaze parts stay in float32.
        vision, text: class names in transformers and arguments of their configurations.
        gaze_width: width of the scanpath model and of the graph, a third of the vision tower's as in the defaults.
        image_size, patch_size: sides of the square film and of a patch, in pixels.
    """

    description: str
    device: str
    dtype: str
    vision: tuple[str, dict]
    text: tuple[str, dict]
    gaze_width: int
    image_size: int
    patch_size: int


PRESETS = {
    "cpu-small": Preset(
        description="ViT-S/16 at 224 px, Llama shape of 135M parameters, float32",
        device="cpu",
        dtype="float32",
        vision=(
            "ViTConfig",
            {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
        ),
        text=(
            "LlamaConfig",
            {
                "hidden_size": 576,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "intermediate_size": 1536,
                "vocab_size": 49152,
                "tie_word_embeddings": True,
            },
        ),
        gaze_width=128,
        image_size=224,
        patch_size=16,
    ),
    "gpu-4b": Preset(
        description="ViT-B/14 at 518 px, Qwen3 shape of 4B parameters, bfloat16",
        device="cuda",
        dtype="bfloat16",
        vision=(
            "Dinov2Config",
            {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        ),
        text=(
            "Qwen3Config",
            {
                "hidden_size": 2560,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "intermediate_size": 9728,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
        ),
        gaze_width=256,
        image_size=518,
        patch_size=14,
    ),
}


@dataclass
class Row:
    """One line of the table.

    Attributes:
        group: the name by which `--rows` chooses it.
        what, baseline: what was run, and what it is compared with.
        ours, against: medians of both, in `unit`; `against` is `None` where nothing is compared, `ours` where nothing
            was run, for the reason that stands in the place of the baseline.
        spread: distance between the quartiles of each, in `unit`.
        ratio: ours / baseline: the median of the ratios of runs that followed one another.
        processor_ratio: the same of the processor time of all threads, where it was measured.
        limit: the mark that `ratio` has to keep, `None` where there is none.
        strict: whether the ratio has to stay below the mark.
    """

    group: str
    what: str
    baseline: str
    unit: str
    ours: float | None
    against: float | None = None
    spread: tuple[float, ...] = ()
    ratio: float | None = None
    processor_ratio: float | None = None
    limit: float | None = None
    strict: bool = False
    met: bool | None = field(init=False, default=None)

    def __post_init__(self):
        if self.limit is not None and self.ratio is not None:
            self.met = self.ratio < self.limit if self.strict else self.ratio <= self.limit


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Seconds of every run of one function: wall time, and processor time of all threads."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def time_in_turn(functions: dict[str, Callable], repeats: int, device: str = "cpu") -> dict[str, Timing]:
    """Run the functions one after the other, once unmeasured and then `repeats` times."""
    timings = {name: Timing() for name in functions}
    for number in range(repeats + 1):
        for name, function in functions.items():
            synchronize(device)
            wall, processor = time.perf_counter(), time.process_time()
            function()
            synchronize(device)
            if number:
                timings[name].wall.append(time.perf_counter() - wall)
                timings[name].processor.append(time.process_time() - processor)
    return timings


def quartile_distance(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def ratio_of(ours: list[float], baseline: list[float]) -> float:
    """Median of the ratios of neighbouring runs: what slows the machine for a while slows both."""
    return statistics.median(mine / theirs for mine, theirs in zip(ours, baseline, strict=True))


def summed(first: Timing, second: Timing) -> Timing:
    """Of two functions, run by run."""
    return Timing(
        [a + b for a, b in zip(first.wall, second.wall, strict=True)],
        [a + b for a, b in zip(first.processor, second.processor, strict=True)],
    )


def compared(
    group: str, what: str, baseline: str, ours: Timing, against: Timing, limit: float | None = None, strict=False
) -> Row:
    """A row of times, in milliseconds."""
    return Row(
        group,
        what,
        baseline,
        "ms",
        ours=1e3 * statistics.median(ours.wall),
        against=1e3 * statistics.median(against.wall),
        spread=(1e3 * quartile_distance(ours.wall), 1e3 * quartile_distance(against.wall)),
        ratio=ratio_of(ours.wall, against.wall),
        processor_ratio=ratio_of(ours.processor, against.processor) if min(against.processor) > 0 else None,
        limit=limit,
        strict=strict,
    )


def peak_memory(function: Callable, weights: int, device: str) -> float | None:
    """Peak memory of a call in bytes, with `weights` bytes of weights; see the module's docstring. `None`: unknown."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return weights + torch.cuda.max_memory_allocated() - before
    import ctypes

    try:
        # Memory that was freed but kept would hide what the call asks for.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        function()
        return weights + resident("VmHWM") - before
    except (OSError, AttributeError):
        return None


def resident(name: str) -> int:
    """Bytes by the name of /proc/self/status: VmRSS now, VmHWM at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status holds no {name}")


def bytes_of(*modules) -> int:
    """Memory of the weights of several modules, shared ones once."""
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())


# -- models -----------------------------------------------------------------------------------------------------------


def vision_config(preset: Preset, image_size: int):
    import transformers

    name, values = preset.vision
    return getattr(transformers, name)(**values, image_size=image_size, patch_size=preset.patch_size)


def gaze_configs(preset: Preset, max_fixations: int = 50) -> dict:
    width = preset.gaze_width
    return {
        "scanpath_config": {"hidden_size": width, "intermediate_size": 4 * width, "max_fixations": max_fixations},
        "fusion_config": {"hidden_size": width, "intermediate_size": 2 * width},
    }


def make_report_model(preset: Preset):
    """Gaze2Report with random weights, whose readings are as long as they may be."""
    import torch
    import transformers

    from .configuration_gaze2report import Gaze2ReportConfig
    from .modeling_gaze2report import Gaze2ReportForConditionalGeneration

    name, values = preset.text
    config = Gaze2ReportConfig(
        vision_config=vision_config(preset, preset.image_size),
        text_config=getattr(transformers, name)(**values),
        image_size=preset.image_size,
        grid_size=preset.image_size // preset.patch_size,
        image_token_id=values["vocab_size"] - 1,
        **gaze_configs(preset),
    )
    torch.manual_seed(0)
    with torch.device(preset.device):
        model = Gaze2ReportForConditionalGeneration(config).eval()
    dtype = getattr(torch, preset.dtype)
    for part in (model.model.vision_tower, model.model.language_model, model.model.projector, model.lm_head):
        part.to(dtype)
    never_end(model.model.scanpath)
    return model


def never_end(scanpath) -> None:
    import torch

    with torch.no_grad():
        scanpath.stop.bias.fill_(-50)


def make_llava(preset: Preset, model, num_tokens: int | None = None):
    """transformers' LLaVA on the towers of `model`: with all patches, or with their means in `num_tokens` groups."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = LlavaConfig(
        vision_config=model.config.vision_config,
        text_config=model.config.text_config,
        image_token_id=model.config.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    with torch.device(preset.device):
        projector = LlavaMultiModalProjector(config).to(getattr(torch, preset.dtype))
    llava.model.vision_tower = model.model.vision_tower
    llava.model.language_model = model.model.language_model
    llava.lm_head = model.lm_head
    llava.model.multi_modal_projector = (
        projector if num_tokens is None else torch.nn.Sequential(mean_groups(num_tokens), projector)
    )
    return llava.eval()


def mean_groups(num_tokens: int):
    """Module: mean features of `num_tokens` groups of neighbouring patches, (B, P, C) -> (B, T, C)."""
    import torch

    class MeanGroups(torch.nn.Module):
        def forward(self, patches):
            return torch.nn.functional.adaptive_avg_pool1d(patches.transpose(1, 2), num_tokens).transpose(1, 2)

    return MeanGroups()


def prompts(
    preset: Preset, model, batch_size: int, num_image_tokens: int, num_text_tokens: int = PROMPT_TOKENS
) -> dict:
    import torch

    generator = torch.Generator().manual_seed(1)
    text = torch.randint(10, 1000, (batch_size, num_text_tokens), generator=generator)
    image = torch.full((batch_size, num_image_tokens), model.config.image_token_id)
    pixels = torch.randn(batch_size, 3, preset.image_size, preset.image_size, generator=generator)
    input_ids = torch.cat((image, text), dim=1).to(preset.device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixels.to(preset.device, getattr(torch, preset.dtype)),
    }


# -- compiling --------------------------------------------------------------------------------------------------------


class NotCompiledError(RuntimeError):
    """There is nothing on this machine that compiles."""


@contextlib.contextmanager
def empty_compiler_cache() -> Iterator[None]:
    """What was compiled before does not count, and what is compiled is forgotten."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def compiled_twin(scanpath, predict: Callable) -> tuple:
    """A second model on the same weights whose decoding is compiled, and the seconds that its first reading took.

    Args:
        scanpath: scanpath model; it stays as it is.
        predict: takes a model, predicts what is to be measured.

    Raises:
        NotCompiledError: there is no compiler, or it failed.
    """
    import torch

    torch.compiler.reset()  # or another size of the same code would count as a recompilation, of which few are allowed
    twin = copy.copy(scanpath)
    twin.compile_decoding()
    start = time.perf_counter()
    try:
        predict(twin)
    except RuntimeError as error:  # of TorchDynamo, of Inductor and of the compiler behind it
        raise NotCompiledError(str(error).strip().splitlines()[0]) from error
    return twin, time.perf_counter() - start


def check_same_readings(compiled, eager) -> None:
    """Nine of ten readings are equal: rounding may turn the draw of a cell, and everything after it.

    Raises:
        ModelError: fewer are.
    """
    near = (compiled.fixations - eager.fixations).abs().amax((-2, -1)) < 1e-3
    if near.float().mean() < 0.9:
        raise ModelError("compiled and eager decoding give different readings; their times say nothing.")


def not_compiled(group: str, what: str, error: NotCompiledError) -> Row:
    return Row(group, what, f"not run: {error}", "", ours=None)


# -- rows -------------------------------------------------------------------------------------------------------------


class Benchmark:
    """The rows of one preset; each method makes one group of them.

    Args:
        preset: sizes.
        repeats: measured runs of every function.
        say: what to do with lines about the progress.
    """

    def __init__(self, preset: Preset, repeats: int, say: Callable[[str], None]):
        self.preset = preset
        self.repeats = repeats
        self.say = say
        self.profile: list[tuple[str, int, float]] = []
        self.growth_points: list[dict] = []
        self._model = None

    @property
    def model(self):
        if self._model is None:
            self.say("building the models")
            self._model = make_report_model(self.preset)
        return self._model

    def time(self, functions: dict[str, Callable]) -> dict[str, Timing]:
        return time_in_turn(functions, self.repeats, self.preset.device)

    def report(self, model, inputs: dict, **options) -> Callable:
        """A function that writes reports of 64 tokens, greedily."""
        import torch

        @torch.inference_mode()
        def run():
            return model.generate(
                **inputs,
                max_new_tokens=REPORT_TOKENS,
                min_new_tokens=REPORT_TOKENS,
                do_sample=False,
                pad_token_id=0,
                **options,
            )

        return run

    def reports(self) -> list[Row]:
        """Reports of 64 tokens with predicted gaze, against no gaze and against LLaVA with all patches."""
        num_tokens = self.model.config.num_visual_gaze_tokens
        num_patches = self.model.config.grid_size**2
        no_gaze = make_llava(self.preset, self.model, num_tokens)
        llava = make_llava(self.preset, self.model)
        rows = []
        for batch_size in (1, 8):
            ours = prompts(self.preset, self.model, batch_size, num_tokens)
            functions = {
                "ours": self.report(self.model, ours),
                "no gaze": self.report(no_gaze, ours),
                "LLaVA": self.report(llava, prompts(self.preset, self.model, batch_size, num_patches)),
            }
            timings = self.time(functions)
            films = f"report of {REPORT_TOKENS} tokens, batch {batch_size}"
            without = f"no scanpath, no graph, {num_tokens} tokens"
            everything = f"LLaVA, {num_patches} patch tokens"
            weights = {"ours": self.model, "no gaze": no_gaze, "LLaVA": llava}
            memory = {
                name: peak_memory(functions[name], bytes_of(weights[name]), self.preset.device) for name in functions
            }
            for name, baseline, limit in (("no gaze", without, 1.10), ("LLaVA", everything, 1.0)):
                strict = name == "LLaVA"
                rows.append(
                    compared("report", f"{films}: time", baseline, timings["ours"], timings[name], limit, strict)
                )
                if memory["ours"] is not None:
                    rows.append(
                        Row(
                            "report",
                            f"{films}: peak memory",
                            baseline,
                            "MB",
                            memory["ours"] / MEGABYTE,
                            memory[name] / MEGABYTE,
                            ratio=memory["ours"] / memory[name],
                            limit=limit,
                            strict=strict,
                        )
                    )
            self.say_rows(rows[-4:])
            self.profile += blocks_of(functions["ours"], self.model, batch_size, self.preset.device)
        return rows

    def generation(self) -> list[Row]:
        """One report of 64 tokens by what transformers offers for generation, against its default."""
        import torch

        model = self.model
        inputs = prompts(self.preset, model, 1, model.config.num_visual_gaze_tokens)
        with torch.inference_mode():
            encoded = {"image": model.get_image_features(inputs["pixel_values"], return_dict=True)}
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        report = self.report(model, inputs)

        def report_eagerly():
            usual = model.config.text_config._attn_implementation
            model.model.language_model.set_attn_implementation("eager")
            try:
                report()
            finally:
                model.model.language_model.set_attn_implementation(usual)

        functions = {
            "default": report,
            "static cache": self.report(model, inputs, cache_implementation="static"),
            "eager attention": report_eagerly,
            "prompt lookup, 3 tokens": self.report(model, inputs, prompt_lookup_num_tokens=3),
            "beam search, 3 beams": self.report(model, inputs, num_beams=3),
            "film encoded ahead": self.report(model, text, mm_encoder_outputs=encoded),
        }
        timings = self.time(functions)
        rows = [
            compared(
                "generation",
                f"report of {REPORT_TOKENS} tokens, {name}",
                "greedy, dynamic cache, the default attention",
                timings[name],
                timings["default"],
            )
            for name in functions
            if name != "default"
        ]
        self.say_rows(rows)
        return rows

    def training(self) -> list[Row]:
        """One step of LoRA on the language model with the gaze parts trained whole, half the gaze predicted."""
        import torch

        try:
            import peft

            from .training.adapters import LoraRecipe, add_lora, freeze_all_but_adapters
            from .training.losses import scanpath_loss
        except ModuleNotFoundError as error:
            raise InputError(
                f'the row "training" needs the package {error.name}: pip install "gaze2report[train]"'
            ) from error

        batch_size, text_tokens = 4, 100
        model, self._model = self.model, None  # adapters stay in it
        num_tokens = model.config.num_visual_gaze_tokens
        no_gaze = make_llava(self.preset, model, num_tokens)
        adapted = add_lora(model, LoraRecipe())
        freeze_all_but_adapters(adapted, ("language_model", "scanpath", "fusion", "perception", "projector"))
        no_gaze.model.multi_modal_projector.requires_grad_(True)
        inputs = prompts(self.preset, model, batch_size, num_tokens, text_tokens)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
        fixations = torch.rand(batch_size, 30, 3, device=self.preset.device)
        mask = torch.ones(batch_size, 30, dtype=torch.bool, device=self.preset.device)
        mixed = torch.arange(batch_size, device=self.preset.device) % 2 + 1  # predicted and recorded in turn
        core = adapted.get_base_model()

        def with_gaze():
            output = core(**inputs, labels=labels, fixations=fixations, fixation_mask=mask, gaze_source=mixed)
            scores = core.model.scanpath(output.image_features.last_hidden_state.detach(), fixations, mask)
            return output.loss + scanpath_loss(scores.log_likelihood, mask)

        def without_gaze():
            return no_gaze(**inputs, labels=labels).loss

        def step_of(loss_of, module):
            learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(learning, lr=1e-5)

            def step():
                module.train()
                loss_of().backward()
                optimizer.step()
                optimizer.zero_grad()

            return step

        del peft
        scanpath = core.model.scanpath.predict.__self__  # the model itself, where peft has put a wrapper around it
        functions = {"": step_of(with_gaze, core)}
        what = f"training step, LoRA, gaze half recorded and half predicted, batch {batch_size}"
        refused = []
        try:
            shape = (batch_size, scanpath.config.grid_size**2, scanpath.config.vision_hidden_size)
            patches = torch.randn(shape, device=self.preset.device)
            twin, _ = compiled_twin(scanpath, lambda model: model.predict(patches))
        except NotCompiledError as error:
            refused.append(not_compiled("training", f"{what}, compiled decoding", error))
        else:

            def with_compiled():
                scanpath.decode_step = twin.decode_step
                try:
                    return with_gaze()
                finally:
                    del scanpath.decode_step

            functions[", compiled decoding"] = step_of(with_compiled, core)
        timings = self.time(functions | {"baseline": step_of(without_gaze, no_gaze)})
        rows = [
            compared(
                "training",
                what + how,
                f"the same without scanpath and graph, {num_tokens} tokens",
                timings[how],
                timings["baseline"],
                1.15,
            )
            for how in functions
        ]
        rows += refused
        self.say_rows(rows)
        return rows

    def graph(self) -> list[Row]:
        """The dense twin of one layer of default width against PyG's own, on the same weights and edges."""
        import torch

        from .configuration_gaze2report import Gaze2ReportFusionConfig
        from .modeling_fusion import Gaze2ReportFusionModel
        from .modeling_grid import heat_map

        batch_size, num_fixations, num_patches = 16, 16, 14 * 14
        device = self.preset.device
        torch.manual_seed(0)
        with torch.device(device):
            fusion = Gaze2ReportFusionModel(Gaze2ReportFusionConfig()).eval()
            patches = torch.randn(batch_size, num_patches, fusion.config.vision_hidden_size)
            fixations = torch.rand(batch_size, num_fixations, 3)
            states = torch.randn(batch_size, 1 + num_patches + num_fixations, fusion.config.hidden_size)
        mask = torch.ones_like(fixations[..., 0], dtype=torch.bool)
        heat = heat_map(fixations, mask, fusion.grid(), fusion.config.heat_map_sigma)
        graph = fusion.build_graph(patches, fixations, mask, heat)
        edge_index, edge_attr = graph.edges()
        attention = fusion.layers[0].attention

        def dense(states):
            return attention.attend_dense(states, graph)[0]

        def sparse(states):
            return attention.conv(states.flatten(0, 1), edge_index, edge_attr).view_as(states)

        def forward(layer):
            def run():
                with torch.no_grad():
                    layer(states)

            return run

        def both(layer):
            def run():
                leaf = states.detach().requires_grad_()
                layer(leaf).square().mean().backward()

            return run

        largest = (dense(states) - sparse(states)).abs().max().item()
        if largest > 1e-3:
            raise ModelError(f"dense and sparse graph layers differ by {largest:.1e}; their times say nothing.")
        rows = []
        films = f"B = {batch_size}, {num_patches} patches + {num_fixations} fixations, {edge_index.shape[1]} edges"
        for name, run, limit in (("forward", forward, 0.12), ("forward + backward", both, 0.2)):
            timings = self.time({"ours": run(dense), "baseline": run(sparse)})
            rows.append(
                compared(
                    "graph",
                    f"graph layer {name}, {films}",
                    "PyG sparse TransformerConv, same weights and edges",
                    timings["ours"],
                    timings["baseline"],
                    limit,
                )
            )
        self.say_rows(rows)
        return rows

    def scanpath(self) -> list[Row]:
        """40 fixations, 8 samples per film, of the default width, against decoding every step anew."""
        import torch

        from .configuration_gaze2report import Gaze2ReportScanpathConfig
        from .modeling_scanpath import Gaze2ReportScanpathModel

        torch.manual_seed(0)
        with torch.device(self.preset.device):
            scanpath = Gaze2ReportScanpathModel(Gaze2ReportScanpathConfig(max_fixations=40)).eval()
        never_end(scanpath)
        rows, compiling = [], []
        for batch_size in (1, 8):
            patches = torch.randn(batch_size, 196, scanpath.config.vision_hidden_size, device=self.preset.device)

            def predict(model, patches=patches, use_cache=True):
                generator = torch.Generator(self.preset.device).manual_seed(0)
                return model.predict(patches, num_samples=8, do_sample=True, generator=generator, use_cache=use_cache)

            what = f"40 fixations, 8 samples per film, batch {batch_size}"
            functions = {"": lambda predict=predict: predict(scanpath)}
            try:
                twin, seconds = compiled_twin(scanpath, predict)
            except NotCompiledError as error:
                compiling.append(not_compiled("scanpath", f"{what}, compiled", error))
            else:
                check_same_readings(predict(twin), predict(scanpath))
                functions[", compiled"] = lambda predict=predict, twin=twin: predict(twin)
                compiling.append(
                    Row("scanpath", f"{what}: compiling, once, with its first reading", "none", "s", seconds)
                )
            baseline = {"baseline": lambda predict=predict: predict(scanpath, use_cache=False)}
            timings = self.time(functions | baseline)
            rows += [
                compared(
                    "scanpath",
                    what + how,
                    "the same decoder without cache",
                    timings[how],
                    timings["baseline"],
                    0.35,
                )
                for how in functions
            ]
        rows += compiling
        self.say_rows(rows)
        return rows

    def images(self) -> list[Row]:
        """Films from arrays, against transformers' own processor for ViT; and films per second from files."""
        import numpy as np
        from transformers import ViTImageProcessorPil

        from .processing.image_processing_gaze2report import Gaze2ReportImageProcessor

        generator = np.random.default_rng(0)
        # Smooth, as films are: noise would cost the PNG decoder more than any film does.
        small = generator.integers(0, 256, (64, 53), dtype=np.uint8)
        grey = np.kron(small, np.ones((38, 38), dtype=np.uint8))  # 2432 x 2014
        colour = np.repeat(grey[..., None], 3, axis=-1)
        size = {"height": self.preset.image_size, "width": self.preset.image_size}
        ours, baseline = Gaze2ReportImageProcessor(size=size), ViTImageProcessorPil(size=size, do_convert_rgb=False)
        timings = self.time(
            {
                "ours": lambda: ours([colour] * 4, return_tensors="pt"),
                "baseline": lambda: baseline([colour] * 4, return_tensors="pt"),
            }
        )
        rows = [
            compared(
                "images",
                f"preparing 4 films, {grey.shape[0]} x {grey.shape[1]} x 3, uint8",
                "ViTImageProcessorPil on the same arrays",
                timings["ours"],
                timings["baseline"],
                1.2,
            )
        ]
        with tempfile.TemporaryDirectory() as folder:
            for what, path in film_files(grey, Path(folder)).items():
                timing = self.time({"ours": lambda path=path: ours(str(path), return_tensors="pt")})["ours"]
                per_second = [1 / seconds for seconds in timing.wall]
                rows.append(
                    Row(
                        "images",
                        f"preparing a film, {what}",
                        "none",
                        "films/s",
                        ours=statistics.median(per_second),
                        spread=(quartile_distance(per_second),),
                    )
                )
        self.say_rows(rows)
        return rows

    def growth(self) -> list[Row]:
        """Graph and scanpath against the vision tower, as films, readings and batches grow."""
        axes = {
            "patches": [{"num_patches": count, "num_fixations": 16, "batch_size": 4} for count in (196, 784, 1369)],
            "fixations": [{"num_patches": 196, "num_fixations": count, "batch_size": 8} for count in (16, 32, 64)],
            "batch": [{"num_patches": 196, "num_fixations": 16, "batch_size": count} for count in (1, 8, 64)],
        }
        rows, compiling = [], []
        for axis, points in axes.items():
            shares: dict[str, list[float]] = {}
            for sizes in points:
                functions, scanpath, predict = growth_functions(self.preset, **sizes)
                try:
                    twin, seconds = compiled_twin(scanpath, predict)
                except NotCompiledError as error:
                    refused = not_compiled("growth", "graph + compiled scanpath, all sizes", error)
                else:
                    functions["compiled scanpath"] = lambda predict=predict, twin=twin: predict(twin)
                    compiling.append(seconds)
                timings = self.time(functions)
                words = ", ".join(
                    f"{value} {name.removeprefix('num_').replace('_size', '')}" for name, value in sizes.items()
                )
                point = {"axis": axis, **sizes, "share": {}}
                point |= {name: 1e3 * statistics.median(timing.wall) for name, timing in timings.items()}
                for name in ("scanpath", "compiled scanpath"):
                    if name not in timings:
                        continue
                    gaze = summed(timings[name], timings["graph"])
                    row = compared(
                        "growth", f"graph + {name}, {words}", "the vision tower", gaze, timings["tower"], 0.25
                    )
                    rows.append(row)
                    shares.setdefault(name, []).append(row.ratio)
                    point["share"][name] = row.ratio
                    self.say_rows([row])
                self.growth_points.append(point)
            largest = list(points[-1].values())[list(AXIS_FIELDS).index(axis)]
            growing = [
                Row(
                    "growth",
                    f"share of graph + {name}, {axis} x {largest}",
                    "the same share at the smallest size",
                    "of the tower",
                    ours=share[-1],
                    against=share[0],
                    ratio=share[-1] / share[0],
                    limit=1.0,
                )
                for name, share in shares.items()
            ]
            self.say_rows(growing)
            rows += growing
        if compiling:
            what = f"compiling the scanpath's step, once for each of {len(compiling)} sizes"
            last = Row("growth", what, "none", "s", ours=sum(compiling))
        else:
            last = refused
        self.say_rows([last])
        return [*rows, last]

    def startup(self) -> list[Row]:
        """Starting up: importing, and one report from the command line with the embedded checkpoint."""
        from .inference import embedded_folder

        film = str(embedded_folder().parent / "examples" / "phantom.png")
        commands = {
            "import modeling_gaze2report": ["-c", "import modeling_gaze2report"],
            "gaze2report --help": ["-m", "modeling_gaze2report.cli", "--help"],
            "gaze2report report FILM": ["-m", "modeling_gaze2report.cli", "report", film],
        }
        rows = []
        for what, arguments in commands.items():
            seconds, peaks = [], []
            for _ in range(max(3, self.repeats // 2)):
                second, peak = run_program([sys.executable, *arguments])
                seconds.append(second)
                peaks.append(peak)
            rows.append(
                Row(
                    "startup",
                    f"{what}: time",
                    "none",
                    "s",
                    statistics.median(seconds),
                    spread=(quartile_distance(seconds),),
                )
            )
            rows.append(Row("startup", f"{what}: peak memory", "none", "MB", max(peaks) / MEGABYTE))
        self.say_rows(rows)
        return rows

    def say_rows(self, rows: list[Row]) -> None:
        for row in rows:
            self.say(line_of(row))


AXIS_FIELDS = ("patches", "fixations", "batch")
GROUPS = {
    "report": Benchmark.reports,
    "generation": Benchmark.generation,
    "graph": Benchmark.graph,
    "scanpath": Benchmark.scanpath,
    "images": Benchmark.images,
    "growth": Benchmark.growth,
    "startup": Benchmark.startup,
    "training": Benchmark.training,
}


def growth_functions(preset: Preset, num_patches: int, num_fixations: int, batch_size: int) -> tuple:
    """Vision tower, scanpath model and graph on films of `num_patches` patches.

    Returns:
        the three to be called by name; the scanpath model; what predicts its readings, of any such model.
    """
    import torch
    from transformers import AutoModel

    from .configuration_gaze2report import Gaze2ReportFusionConfig, Gaze2ReportScanpathConfig
    from .modeling_fusion import Gaze2ReportFusionModel
    from .modeling_scanpath import Gaze2ReportScanpathModel

    grid_size = round(num_patches**0.5)
    size = grid_size * preset.patch_size
    width = preset.vision[1]["hidden_size"]
    shared = {"grid_size": grid_size, "vision_hidden_size": width}
    parts = gaze_configs(preset, num_fixations)
    torch.manual_seed(0)
    dtype = getattr(torch, preset.dtype)
    with torch.device(preset.device):
        tower = AutoModel.from_config(vision_config(preset, size)).to(dtype).eval()
        scanpath = Gaze2ReportScanpathModel(Gaze2ReportScanpathConfig(**parts["scanpath_config"], **shared)).eval()
        fusion = Gaze2ReportFusionModel(
            Gaze2ReportFusionConfig(**parts["fusion_config"], **shared, max_fixations=num_fixations)
        ).eval()
        pixels = torch.randn(batch_size, 3, size, size, dtype=dtype)
        patches = torch.randn(batch_size, num_patches, width)
        fixations = torch.rand(batch_size, num_fixations, 3)
    never_end(scanpath)

    def predict(model):
        return model.predict(patches)

    functions = {
        "tower": lambda: tower(pixel_values=pixels),
        "scanpath": lambda: predict(scanpath),
        "graph": lambda: fusion(patches, fixations),
    }
    return {name: torch.no_grad()(function) for name, function in functions.items()}, scanpath, predict


def film_files(grey, folder: Path) -> dict[str, Path]:
    """The film as 16-bit PNG and, where pydicom is installed, as uncompressed DICOM."""
    import numpy as np
    import PIL.Image

    deep = grey.astype(np.uint16) * 16
    height, width = deep.shape
    PIL.Image.fromarray(deep).save(folder / "film.png")
    files = {f"16-bit PNG {height} x {width}": folder / "film.png"}
    try:
        import pydicom
        from pydicom.dataset import FileMetaDataset
    except ModuleNotFoundError:
        return files
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation, dataset.BurnedInAnnotation = "DX", "MONOCHROME2", "NO"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = height, width, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = deep.tobytes()
    dataset.save_as(folder / "film.dcm", enforce_file_format=True)
    files[f"12-bit DICOM {height} x {width}"] = folder / "film.dcm"
    return files


# A program's peak counts from its parent's size at the start: a small one starts it.
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
null = os.open(os.devnull, os.O_WRONLY)
silent = [(os.POSIX_SPAWN_DUP2, null, stream) for stream in (1, 2)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss)
"""


def run_program(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident bytes of a program.

    Raises:
        ModelError: it failed.
    """
    import subprocess

    launched = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, *command], capture_output=True, text=True)
    if launched.returncode:
        raise ModelError(f"`{' '.join(command)}` cannot be started: {launched.stderr.strip().splitlines()[-1]}")
    status, seconds, peak = launched.stdout.split()
    if status != "0":
        raise ModelError(f"`{' '.join(command)}` ended with status {status}.")
    return float(seconds), float(peak) * (1 if platform.system() == "Darwin" else 1024)


@contextlib.contextmanager
def block_clock(model, device: str) -> Iterator[dict[str, list[float]]]:
    """Clocks the blocks of a model; gives their seconds, one number per call, as they come."""
    core = model.model
    seconds: dict[str, list[float]] = {}
    methods = [
        (core.vision_tower, "forward", "vision tower"),
        (core.scanpath, "predict", "scanpath"),
        (core.fusion, "forward", "graph"),
        (core.perception, "forward", "perception heads"),
        (core.projector, "forward", "projector"),
        (core.language_model, "forward", "language model"),
        (model.lm_head, "forward", "language model's head"),
    ]

    def clocked(method, name):
        def run(*args, **kwargs):
            synchronize(device)
            start = time.perf_counter()
            result = method(*args, **kwargs)
            synchronize(device)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            return result

        return run

    for module, method, name in methods:
        setattr(module, method, clocked(getattr(module, method), name))
    try:
        yield seconds
    finally:
        for module, method, _ in methods:
            delattr(module, method)


def blocks_of(report: Callable, model, batch_size: int, device: str) -> list[tuple[str, int, float]]:
    """Where the time of one report goes: block, batch size, milliseconds."""
    with block_clock(model, device) as seconds:
        synchronize(device)
        start = time.perf_counter()
        report()
        synchronize(device)
        total = time.perf_counter() - start
    first, *rest = seconds.pop("language model")
    parts = {name: sum(times) for name, times in seconds.items()}
    parts["language model, prompt"] = first
    parts[f"language model, {len(rest)} tokens"] = sum(rest)
    parts["generate() around them"] = total - sum(parts.values())
    return [(name, batch_size, 1e3 * part) for name, part in parts.items()]


# -- showing ----------------------------------------------------------------------------------------------------------


def line_of(row: Row) -> str:
    if row.ours is None:
        return f"{row.what}: {row.baseline}"
    number = f"{row.ours:,.1f}" if row.ours >= 10 else f"{row.ours:.3f}"
    line = f"{row.what}: {number} {row.unit}"
    if row.against is not None:
        line += f", {row.ratio:.3f} x {row.baseline}"
    if row.limit is not None:
        line += f" ({'met' if row.met else 'MISSED'}: {'below' if row.strict else 'at most'} {row.limit:g})"
    return line


def table_of(rows: list[Row]) -> str:
    """All rows as a Markdown table."""
    lines = [
        "| row | baseline in the same run | ours (IQR) | baseline (IQR) | unit | ratio | processor time | mark | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = [f" ({value:.3g})" for value in row.spread] + ["", ""]
        cells = [
            row.what,
            row.baseline,
            "" if row.ours is None else f"{row.ours:.4g}{spread[0]}",
            "" if row.against is None else f"{row.against:.4g}{spread[1]}",
            row.unit,
            "" if row.ratio is None else f"{row.ratio:.3f}",
            "" if row.processor_ratio is None else f"{row.processor_ratio:.3f}",
            "" if row.limit is None else f"{'<' if row.strict else '≤'} {row.limit:g}",
            "" if row.met is None else ("yes" if row.met else "NO"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def profile_table(profile: list[tuple[str, int, float]]) -> str:
    """Milliseconds and shares of every block, one column per batch size."""
    batches = sorted({batch for _, batch, _ in profile})
    totals = {batch: sum(part for _, other, part in profile if other == batch) for batch in batches}
    lines = [
        "| where a report's time goes | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---" * (1 + len(batches)) + "|",
    ]
    for name in dict.fromkeys(name for name, _, _ in profile):
        cells = []
        for batch in batches:
            part = sum(part for other, size, part in profile if (other, size) == (name, batch))
            cells.append(f"{part:.1f} ms ({part / totals[batch]:.1%})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def growth_table(points: list[dict]) -> str:
    lines = [
        "| axis | patches | fixations | batch | tower (ms) | scanpath (ms) | graph (ms) | share "
        "| compiled scanpath (ms) | share |",
        "|---" * 10 + "|",
    ]
    for p in points:
        compiled = ["", ""]
        if "compiled scanpath" in p:
            compiled = [f"{p['compiled scanpath']:.1f}", f"{p['share']['compiled scanpath']:.3f}"]
        cells = [p["axis"], p["num_patches"], p["num_fixations"], p["batch_size"]]
        cells += [f"{p[name]:.1f}" for name in ("tower", "scanpath", "graph")]
        cells += [f"{p['share']['scanpath']:.3f}", *compiled]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def draw_growth(points: list[dict], path: Path) -> None:
    """The growth table as a picture.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise InputError('--plot needs the package matplotlib: pip install "gaze2report[train]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure, plots = pyplot.subplots(1, len(axes), figsize=(4 * len(axes), 3.4), sharey=True, squeeze=False)
    for axis, plot in zip(axes, plots[0], strict=True):
        chosen = [point for point in points if point["axis"] == axis]
        sizes = [point["batch_size" if axis == "batch" else f"num_{axis}"] for point in chosen]
        places = range(len(sizes))
        graph = [point["graph"] / point["tower"] for point in chosen]
        scanpath = [point["scanpath"] / point["tower"] for point in chosen]
        plot.bar(places, graph, label="graph")
        plot.bar(places, scanpath, bottom=graph, label="scanpath")
        if all("compiled scanpath" in point for point in chosen):
            compiled = [(point["graph"] + point["compiled scanpath"]) / point["tower"] for point in chosen]
            plot.plot(places, compiled, "kD", label="graph + compiled scanpath")
        plot.axhline(0.25, color="black", linewidth=1, linestyle="--")
        plot.set_xticks(places, [f"{size:,}" for size in sizes])
        plot.set_xlabel(axis)
    plots[0][0].set_ylabel("share of the vision tower's time")
    plots[0][-1].legend()
    figure.tight_layout()
    with temporary(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
    pyplot.close(figure)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` when all went well."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def machine(threads: int, device: str) -> dict:
    """What ran, for the record; the load says how busy others kept it."""
    import torch
    import torch_geometric
    import transformers

    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "torch_geometric": torch_geometric.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_1_5_15_minutes": os.getloadavg(),
    }
    if device == "cuda":
        facts["device"] = torch.cuda.get_device_name()
    return facts


# -- the command ------------------------------------------------------------------------------------------------------


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "benchmark",
        help="measure what gaze costs, as ratios of named baselines",
        description="Measure what gaze costs in time and memory, as ratios of baselines that run in turn with it. "
        "Random weights, nothing is downloaded.",
    )
    parser.add_argument(
        "--preset",
        default="cpu-small",
        choices=tuple(PRESETS),
        help="; ".join(f"{name}: {preset.description}" for name, preset in PRESETS.items()) + " (default: cpu-small)",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="GROUP",
        default=list(GROUPS),
        choices=tuple(GROUPS),
        help=f"of {', '.join(GROUPS)}",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measured runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of PyTorch (default: 2)")
    parser.add_argument("--out", metavar="FILE", help="JSON file with every row, the profile and the machine")
    parser.add_argument("--plot", metavar="FILE", help="PNG file with the growth of the gaze's share")
    parser.set_defaults(run=run_benchmark)


def run_benchmark(args) -> int:
    import torch
    from transformers.utils import logging

    if args.repeats < 1 or args.threads < 1:
        raise InputError("--repeats and --threads must be at least 1.")
    if args.plot and "growth" not in args.rows:
        raise InputError('--plot draws the row group "growth": add it to --rows.')
    for path in (args.out, args.plot):
        if path and not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {Path(path).absolute().parent}.")
    preset = PRESETS[args.preset]
    if preset.device == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"--preset {args.preset} needs a CUDA device, and this machine has none; use cpu-small.")
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    load_before = os.getloadavg()
    benchmark = Benchmark(preset, args.repeats, lambda line: print(line, file=sys.stderr, flush=True))
    with empty_compiler_cache():
        rows = [row for name, measure in GROUPS.items() if name in args.rows for row in measure(benchmark)]
    facts = machine(args.threads, preset.device) | {"load_before": load_before}
    print(f"Preset {args.preset}: {preset.description}; {args.threads} threads of {os.cpu_count()} cores; ", end="")
    print(f"load {load_before[0]:.1f} before, {facts['load_1_5_15_minutes'][0]:.1f} after.\n")
    print(table_of(rows))
    if benchmark.profile:
        print(f"\n{profile_table(benchmark.profile)}")
    if benchmark.growth_points:
        print(f"\n{growth_table(benchmark.growth_points)}")
    if args.plot:
        draw_growth(benchmark.growth_points, Path(args.plot))
    if args.out:
        record = {
            "preset": args.preset,
            "repeats": args.repeats,
            "machine": facts,
            "rows": [asdict(row) for row in rows],
            "profile": [dict(zip(("block", "batch", "ms"), part, strict=True)) for part in benchmark.profile],
            "growth": benchmark.growth_points,
        }
        with temporary(Path(args.out)) as unfinished:
            unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    missed = [row.what for row in rows if row.met is False]
    print(f"\n{sum(row.met is True for row in rows)} marks met, {len(missed)} missed.")
    return 0


__all__ = ["PRESETS", "Benchmark", "Preset", "Row", "register"]
