"""Save, load, adapt: a model comes back as it went."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForImageTextToText

import modeling_gaze2report  # noqa: F401 - importing it registers the model with the auto classes
from modeling_gaze2report.modeling_gaze2report import Gaze2ReportForConditionalGeneration, Gaze2ReportModel

# What an adapter trains in full, beside the low-rank matrices on the language model.
GAZE_PARTS = ["scanpath", "fusion", "perception", "projector"]
ATTENTION = r".*language_model.*\.(q_proj|v_proj)"


@torch.no_grad()
def logits_of(model, inputs):
    return model.eval()(**inputs).logits


def assert_same(loaded, model, inputs):
    """Every weight equal, and logits equal but for sums that round differently at other addresses."""
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    tolerance = 1e-5 if model.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(logits_of(loaded, inputs), logits_of(model, inputs), rtol=tolerance, atol=tolerance)


# -- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaze", [None, "recorded"])
def test_saved_and_loaded_model_gives_equal_logits(tiny_model, tiny_inputs, tmp_path, gaze):
    model = tiny_model()
    inputs = tiny_inputs(model, gaze=gaze)
    model.save_pretrained(tmp_path)

    loaded = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path)

    assert_same(loaded, model, inputs)


def test_loading_report_is_empty(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)

    _, info = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(info.values()), info


def test_resaved_model_is_the_same_file(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "built")
    loaded = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path / "built")
    loaded.save_pretrained(tmp_path / "first")

    Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")

    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (
        tmp_path / "built" / "model.safetensors"
    ).read_bytes()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_buffers_that_are_not_saved_are_rebuilt(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = set(file.keys())

    first, second = (Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path) for _ in range(2))

    expected = dict(model.named_buffers())
    rebuilt = {name for name in expected if name not in saved}
    assert {name.split(".")[-1] for name in rebuilt} >= {"frequencies", "centres", "members"}
    for loaded in (first, second):
        buffers = dict(loaded.named_buffers())
        assert buffers.keys() == expected.keys()
        for name in rebuilt:
            assert torch.equal(buffers[name], expected[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_buffers_of_gaze_keep_their_precision(tiny_model, tmp_path, dtype):
    model = tiny_model()
    model.save_pretrained(tmp_path)

    loaded = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)

    expected = dict(model.model.fusion.named_buffers())
    for name, buffer in loaded.model.fusion.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_a_model_saved_in_half_precision_loads_with_equal_logits(tiny_model, tiny_inputs, tmp_path):
    tiny_model().save_pretrained(tmp_path / "full")
    half = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    inputs = tiny_inputs(half)
    half.save_pretrained(tmp_path / "half")

    loaded = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path / "half")

    assert loaded.dtype == torch.bfloat16
    assert_same(loaded, half, inputs)


def test_shards_load_with_equal_logits(tiny_model, tiny_inputs, tmp_path):
    model = tiny_model()
    inputs = tiny_inputs(model)

    model.save_pretrained(tmp_path, max_shard_size="200KB")

    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path)
    assert_same(loaded, model, inputs)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText])
def test_auto_classes_give_the_model_that_writes(tiny_model, tmp_path, auto_class):
    tiny_model().save_pretrained(tmp_path)

    assert type(auto_class.from_pretrained(tmp_path)) is Gaze2ReportForConditionalGeneration


def test_the_model_without_its_head_loads_from_the_whole(tiny_model, tiny_inputs, tmp_path):
    model = tiny_model()
    inputs = tiny_inputs(model)
    model.save_pretrained(tmp_path)

    base, info = Gaze2ReportModel.from_pretrained(tmp_path, output_loading_info=True)

    assert not info["missing_keys"]
    with torch.no_grad():
        states = base.eval()(**inputs).last_hidden_state
        torch.testing.assert_close(model.lm_head(states), logits_of(model, inputs), rtol=1e-5, atol=1e-5)


def test_a_missing_part_is_named_and_initialised(tiny_model, tiny_inputs, tmp_path):
    model = tiny_model()
    state = {name: value for name, value in model.state_dict().items() if "fusion" not in name}
    model.save_pretrained(tmp_path, state_dict=state)

    loaded, info = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)

    assert info["missing_keys"] == {name for name in model.state_dict() if "fusion" in name}
    assert all(parameter.isfinite().all() and parameter.abs().max() < 10 for parameter in loaded.parameters())


# -- adapters ---------------------------------------------------------------------------------------------------------

peft = pytest.importorskip("peft")


@pytest.fixture
def adapted(tiny_model, tmp_path):
    """A saved base model, and the same with a trained adapter: random low-rank matrices and changed gaze parts."""
    tiny_model().save_pretrained(tmp_path / "base")
    base = Gaze2ReportForConditionalGeneration.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=GAZE_PARTS)
    model = peft.get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "adapter")
    return model.eval(), tmp_path


def test_an_adapter_trains_the_language_model_and_the_gaze_parts_alone(adapted):
    model, _ = adapted

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    low_rank = [name for name in trained if "lora_" in name]
    assert all("language_model" in name and (".q_proj." in name or ".v_proj." in name) for name in low_rank)
    assert len(low_rank) == 2 * 2 * 2  # two matrices for q and v in two layers
    in_full = {name.split(".modules_to_save.")[0].split(".")[-1] for name in trained if "modules_to_save" in name}
    assert in_full == set(GAZE_PARTS)
    assert len(low_rank) + sum("modules_to_save" in name for name in trained) == len(trained)


def test_an_adapter_changes_the_report_and_its_gaze(adapted, tiny_inputs):
    model, folder = adapted
    base = Gaze2ReportForConditionalGeneration.from_pretrained(folder / "base")
    inputs = tiny_inputs(base, gaze="recorded")

    assert (logits_of(model, inputs) - logits_of(base, inputs)).abs().max() > 1e-2
    films = inputs["pixel_values"]
    before = base.score_scanpath(films, inputs["fixations"])
    assert (model.score_scanpath(films, inputs["fixations"]) - before).abs().max() > 1e-2


def load_with_peft_model(folder):
    base = Gaze2ReportForConditionalGeneration.from_pretrained(folder / "base")
    return peft.PeftModel.from_pretrained(base, folder / "adapter")


def load_with_load_adapter(folder):
    base = Gaze2ReportForConditionalGeneration.from_pretrained(folder / "base")
    base.load_adapter(str(folder / "adapter"))
    return base


def load_with_auto_class(folder):
    return AutoModelForImageTextToText.from_pretrained(folder / "adapter")


@pytest.mark.parametrize("load", [load_with_peft_model, load_with_load_adapter, load_with_auto_class])
@pytest.mark.parametrize("gaze", [None, "recorded"])
def test_a_loaded_adapter_gives_equal_logits(adapted, tiny_inputs, load, gaze):
    model, folder = adapted
    inputs = tiny_inputs(model, gaze=gaze)

    loaded = load(folder)

    # The same weights at other addresses: sums may round differently.
    torch.testing.assert_close(logits_of(loaded, inputs), logits_of(model, inputs), rtol=1e-5, atol=1e-5)


def test_a_loaded_adapter_generates(adapted, tiny_inputs):
    model, folder = adapted
    inputs = tiny_inputs(model)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}

    loaded = load_with_auto_class(folder).eval()

    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))


def test_a_merged_adapter_is_a_plain_model(adapted, tiny_inputs):
    model, folder = adapted
    inputs = tiny_inputs(model, gaze="recorded")
    expected = logits_of(model, inputs)

    model.merge_and_unload().save_pretrained(folder / "merged")

    merged, info = Gaze2ReportForConditionalGeneration.from_pretrained(folder / "merged", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(logits_of(merged, inputs), expected, rtol=1e-4, atol=1e-5)
    assert not (folder / "merged" / "adapter_config.json").exists()


def test_the_adapter_holds_no_weight_of_the_towers(adapted):
    _, folder = adapted

    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())

    assert not [name for name in names if "vision_tower" in name]
    assert all("lora_" in name for name in names if "language_model" in name)
    saved = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert sorted(saved["modules_to_save"]) == sorted(GAZE_PARTS)
