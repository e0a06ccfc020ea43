"""Adapters: what learns, what is saved, and that every way to load them gives the same model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GPT2Config, Qwen3Config

import modeling_gaze2report  # noqa: F401 - importing it registers the model with the auto classes
from modeling_gaze2report.hub_space import loading_check
from modeling_gaze2report.inference import load_reader
from modeling_gaze2report.processing.errors import InputError, ModelError, RecipeError
from modeling_gaze2report.training import adapters
from modeling_gaze2report.training.adapters import (
    add_lora,
    export_adapter,
    four_bit_config,
    freeze_all_but_adapters,
    merge,
)
from modeling_gaze2report.training.recipe import LoraRecipe

from ..tiny_export import build_tiny_model, export_tiny_model

NEW_TOKENS = (7, 11)
GAZE = [[0.25, 0.5, 0.2], [0.75, 0.25, 0.4]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def adapted_model(base, new_tokens=NEW_TOKENS):
    """An adapter in which every weight differs from its start."""
    torch.manual_seed(1)
    model = add_lora(load(base), LoraRecipe(rank=2, dropout=0.0), new_tokens=new_tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@torch.no_grad()
def logits_of(model, processor):
    film = np.random.default_rng(0).integers(0, 256, (80, 60), dtype=np.uint8)
    text = processor.tokenizer.decode(NEW_TOKENS)
    batches = [processor(images=film, text=text, return_tensors="pt", gaze=gaze) for gaze in (None, GAZE)]
    assert all(token in batches[0]["input_ids"] for token in NEW_TOKENS)
    return torch.cat([model.eval()(**batch).logits for batch in batches])


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    """The adapter's folder, its processor, and the logits of the model that was saved."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    processor = AutoProcessor.from_pretrained(base)
    model = adapted_model(base)
    export_adapter(model, processor, folder)
    return folder, processor, logits_of(model, processor)


# -- what learns ------------------------------------------------------------------------------------------------------


def trainable_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_trainable_parameters_are_these(base):
    model = add_lora(load(base), LoraRecipe(rank=2), new_tokens=NEW_TOKENS)

    prefix = "base_model.model.model."
    whole = {f"{prefix}{part}.modules_to_save.default." for part in ("scanpath", "fusion", "perception", "projector")}
    names = trainable_names(model)
    rest = {name for name in names if not name.startswith(tuple(whole))}
    assert rest == {
        f"{prefix}language_model.layers.{layer}.self_attn.{matrix}.lora_{side}.default.weight"
        for layer in (0, 1)
        for matrix in ("q_proj", "k_proj", "v_proj", "o_proj")
        for side in "AB"
    } | {f"{prefix}language_model.embed_tokens.token_adapter.trainable_tokens_delta.default"}
    plain = load(base)
    for part in ("scanpath", "fusion", "perception", "projector"):
        start = f"{prefix}{part}.modules_to_save.default."
        expected = {name for name, _ in getattr(plain.model, part).named_parameters()}
        assert {name.removeprefix(start) for name in names if name.startswith(start)} == expected


def test_without_new_tokens_no_embedding_learns(base):
    names = trainable_names(add_lora(load(base), LoraRecipe(rank=2)))

    assert not [name for name in names if "embed" in name and "language_model" in name]


def test_a_stage_lets_only_its_own_parts_of_the_adapter_learn(base):
    model = add_lora(load(base), LoraRecipe(rank=2), new_tokens=NEW_TOKENS)
    everything = trainable_names(model)

    freeze_all_but_adapters(model, ["scanpath"])
    assert trainable_names(model) == {name for name in everything if ".scanpath." in name}

    freeze_all_but_adapters(model, ["language_model", "lm_head"])
    assert trainable_names(model) == {name for name in everything if ".language_model." in name}


def test_a_part_outside_the_adapter_cannot_learn(base):
    model = add_lora(load(base), LoraRecipe(rank=2))

    with pytest.raises(RecipeError, match="the part vision_tower cannot learn beside LoRA"):
        freeze_all_but_adapters(model, ["vision_tower"])


def test_one_step_moves_the_adapter_and_nothing_of_the_base(base):
    processor = AutoProcessor.from_pretrained(base)
    model = add_lora(load(base), LoraRecipe(rank=2, dropout=0.0), new_tokens=NEW_TOKENS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    film = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    text = processor.tokenizer.decode(NEW_TOKENS)
    batch = processor(images=film, text=text, gaze=GAZE, return_tensors="pt")
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)

    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()

    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    tied = {"base_model.model.lm_head.token_adapter.trainable_tokens_delta.default"}  # the embedding's own
    assert moved - tied <= trainable_names(model)
    for part in ("projector", "fusion", "lora_B", "trainable_tokens_delta"):
        assert any(part in name for name in moved), part


def test_what_learns_is_in_full_precision_beside_a_bfloat16_language_model(base):
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)

    adapted = add_lora(model, LoraRecipe(rank=2), new_tokens=NEW_TOKENS)

    assert {one.dtype for one in adapted.parameters() if one.requires_grad} == {torch.float32}
    assert model.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "text_config, matrices",
    [
        (
            Qwen3Config(
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                vocab_size=99,
                intermediate_size=64,
                head_dim=16,
                pad_token_id=0,
            ),
            {"q_proj", "k_proj", "v_proj", "o_proj"},
        ),
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99), {"c_attn", "attn.c_proj"}),
    ],
)
def test_the_default_pattern_meets_the_attention_of_other_families(tiny_model, text_config, matrices):
    model = add_lora(tiny_model(text_config=text_config), LoraRecipe(rank=2))

    met = {name.partition(".lora_A")[0] for name in trainable_names(model) if "lora_A" in name}
    assert len(met) == len(matrices)
    assert all(name.endswith(tuple(matrices)) and "mlp" not in name for name in met)


@pytest.mark.parametrize(
    "pattern, message",
    [
        (r".*\.(query|q_proj)", r"reaches beyond the language model, to model\.vision_tower"),
        (r".*language_model.*\.(qproj)", r"meets no layer; .* are called .*q_proj"),
        (r".*language_model.*\.(q_proj", "is no regular expression"),
    ],
)
def test_a_pattern_that_goes_wrong_is_refused(base, pattern, message):
    with pytest.raises(RecipeError, match=message):
        add_lora(load(base), LoraRecipe(target_modules=pattern))


def test_a_rank_of_zero_is_refused(base):
    with pytest.raises(RecipeError, match=r"lora: .*r.* should be a positive integer"):
        add_lora(load(base), LoraRecipe(rank=0))


# -- the folder -------------------------------------------------------------------------------------------------------


def test_the_adapter_changes_the_logits(base, exported):
    _, processor, expected = exported

    assert (logits_of(load(base), processor) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("way", ["auto class", "PeftModel", "load_adapter"])
def test_the_folder_loads_in_three_ways_to_equal_logits(base, exported, way):
    folder, processor, expected = exported

    if way == "auto class":
        model = load(folder)
    elif way == "PeftModel":
        model = PeftModel.from_pretrained(load(base), folder)
    else:
        model = load(base)
        info = model.load_adapter(str(folder))
        # The head is tied: its copy of the new tokens' rows is the embedding's, and stands in no file.
        assert info.missing_keys <= {"lm_head.token_adapter.trainable_tokens_delta.default"}
        assert not info.unexpected_keys and not info.mismatched_keys

    torch.testing.assert_close(logits_of(model, processor), expected, rtol=0, atol=1e-5)


def test_the_folder_holds_no_weight_of_the_base_and_the_whole_processor(exported):
    from safetensors.torch import load_file

    folder, _, _ = exported

    names = {entry.name for entry in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert not {"model.safetensors", "config.json"} & names
    stored = load_file(folder / "adapter_model.safetensors")
    parts = {name.removeprefix("base_model.model.model.").partition(".")[0] for name in stored}
    assert parts == {"language_model", "scanpath", "fusion", "perception", "projector"}
    assert {name.rpartition("self_attn.")[2] for name in stored if "self_attn" in name and "language" in name} == {
        f"{matrix}.lora_{side}.weight" for matrix in ("q_proj", "k_proj", "v_proj", "o_proj") for side in "AB"
    }


def test_the_command_line_reads_with_an_adapter(base, exported):
    folder, _, expected = exported

    reader = load_reader(str(folder), device="cpu", offline=True)

    torch.testing.assert_close(logits_of(reader.model, reader.processor), expected, rtol=0, atol=1e-5)


def test_the_folder_reads_where_the_package_cannot_be_imported(exported, tmp_path):
    folder, _, _ = exported
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60), dtype=np.uint8)).save(tmp_path / "film.png")
    program = """
import sys

class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "modeling_gaze2report":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
sequences = model.generate(**processor(images="film.png", return_tensors="pt"), max_new_tokens=2)
print(type(model).__module__.partition(".")[0], len(processor.batch_decode_report(sequences)))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}

    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert done.stdout.split() == ["transformers_modules", "1"], done.stderr[-3000:]


def test_new_tokens_in_a_tied_head_are_no_fault(exported, tmp_path):
    folder, _, _ = exported
    film = loading_check.__file__.replace("loading_check.py", "examples/phantom.png")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}

    done = subprocess.run(
        [sys.executable, loading_check.__file__, str(folder), film],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert set(json.loads(done.stdout)) == {"report"}, done.stderr[-3000:]


def test_any_other_weight_that_is_missing_is_a_fault():
    missing = ["model.fusion.norm.weight", "lm_head.token_adapter.trainable_tokens_delta.default"]

    found = loading_check.loading_faults(
        {"missing_keys": missing, "unexpected_keys": [], "mismatched_keys": [("a", 1)]}
    )

    assert found == {"missing_keys": ["model.fusion.norm.weight"], "mismatched_keys": ["('a', 1)"]}


def test_the_base_can_be_named_as_it_will_be_on_the_hub(base, tmp_path):
    processor = AutoProcessor.from_pretrained(base)

    export_adapter(adapted_model(base, ()), processor, tmp_path / "adapter", base="someone/their-base")

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/their-base"


def test_a_base_named_from_here_is_found_from_elsewhere(base, tmp_path, monkeypatch):
    processor = AutoProcessor.from_pretrained(base)
    monkeypatch.chdir(base.parent)

    export_adapter(adapted_model(base, ()), processor, tmp_path / "adapter", base=base.name)

    monkeypatch.chdir(tmp_path)
    assert load("adapter").peft_config["default"].base_model_name_or_path == str(base.resolve())


def test_an_adapter_of_a_base_that_was_never_saved_is_refused(tmp_path):
    model, processor = build_tiny_model()

    with pytest.raises(ModelError, match=r"export the base first, or set lora\.merge"):
        export_adapter(add_lora(model, LoraRecipe(rank=2)), processor, tmp_path / "adapter")

    assert not list(tmp_path.iterdir())


def test_an_adapter_replaces_an_adapter_and_nothing_else(base, tmp_path):
    processor = AutoProcessor.from_pretrained(base)
    model = adapted_model(base, ())
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").write_text("years of work")

    export_adapter(model, processor, tmp_path / "adapter")
    export_adapter(model, processor, tmp_path / "adapter")
    with pytest.raises(InputError, match="holds files and no model"):
        export_adapter(model, processor, tmp_path / "files")


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merged_equals_unmerged(base, exported):
    _, processor, expected = exported

    merged = merge(adapted_model(base))

    assert type(merged).__name__ == "Gaze2ReportForConditionalGeneration"
    assert set(merged.state_dict()) == set(load(base).state_dict())
    torch.testing.assert_close(logits_of(merged, processor), expected, rtol=0, atol=1e-5)


def test_the_merged_model_is_saved_and_loaded_as_any_other(base, exported, tmp_path):
    from modeling_gaze2report.hub_space.export import export_model

    _, processor, expected = exported

    export_model(merge(adapted_model(base)), processor, tmp_path / "merged")
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)

    assert not any(info.values()), info
    torch.testing.assert_close(logits_of(model, processor), expected, rtol=0, atol=1e-5)


# -- four bits --------------------------------------------------------------------------------------------------------


def test_four_bits_without_cuda_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(RecipeError, match="needs a CUDA device"):
        four_bit_config()


def test_four_bits_without_bitsandbytes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(adapters, "is_bitsandbytes_available", lambda: False)

    with pytest.raises(RecipeError, match="pip install bitsandbytes"):
        four_bit_config()
