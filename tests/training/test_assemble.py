"""Models from pretrained backbones: every weight accounted for, nothing computed differently, on tiny local ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    Dinov2Config,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

import modeling_gaze2report  # noqa: F401 - importing it registers the model with the auto classes
from modeling_gaze2report.cli import main
from modeling_gaze2report.hub_space.export import export_model
from modeling_gaze2report.processing.errors import ModelError
from modeling_gaze2report.training.assemble import assemble

TEXTS = ["The heart is enlarged.", "No pneumothorax.", "user assistant system"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
FILM = np.random.default_rng(0).integers(0, 256, (80, 60), dtype=np.uint8)

# Templates in the manner of the families: turns of strings, as most language models' own are.
CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message.content is string %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for message in messages %}{{ '<turn>' + message['role'] + '\n' + message['content'] | trim + '</turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = SMALL | {"image_size": 64, "patch_size": 8}
TEXT = SMALL | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512}


def save_vision(folder, model, processor=ViTImageProcessorPil):
    model.save_pretrained(folder)
    processor(size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


def save_text(folder, kind, config, template=None, special=(), rows=0, bos=False):
    """A language model with random weights and a tokenizer of its own; `rows`: embeddings beyond the tokenizer's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>", "<bos>", *special], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    if bos:
        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>" if bos else None, chat_template=template
    )
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": None, "eos_token_id": 0, "bos_token_id": 1 if bos else None}
    model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer) + rows, **config, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))  # biases and norms, too, differ from their start
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    root = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    siglip = SiglipVisionConfig(**VIT)
    dual = SiglipConfig(vision_config=VIT, text_config=SMALL | {"vocab_size": 50, "max_position_embeddings": 16})
    swin = SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    return {
        "vit": save_vision(root / "vit", ViTForImageClassification(ViTConfig(**VIT))),
        "dinov2": save_vision(root / "dinov2", AutoModel.from_config(Dinov2Config(**VIT))),
        "siglip": save_vision(root / "siglip", SiglipModel(dual)),
        "siglip vision": save_vision(root / "siglip-vision", AutoModel.from_config(siglip)),
        "swin": save_vision(root / "swin", AutoModel.from_config(swin)),
        "convnext": save_vision(
            root / "convnext",
            AutoModel.from_config(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=4)),
            ConvNextImageProcessorPil,
        ),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    torch.manual_seed(1)
    llama = [f"<|reserved_special_token_{number}|>" for number in range(3)]
    qwen = ["<|im_start|>", "<|im_end|>", "<|image_pad|>"]
    gemma = ["<turn>", "</turn>", "<unused0>", "<unused1>"]
    tied = TEXT | {"tie_word_embeddings": True}
    return {
        "llama": save_text(root / "llama", LlamaConfig, TEXT, WITH_BOS, llama, bos=True),
        "qwen3": save_text(root / "qwen3", Qwen3Config, tied, CHATML, qwen, rows=5),
        "gemma": save_text(root / "gemma", GemmaConfig, TEXT, WITH_BOS, gemma, bos=True),
        "gpt2": save_text(root / "gpt2", GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        "roomy": save_text(root / "roomy", LlamaConfig, TEXT, rows=5),
        "full": save_text(root / "full", LlamaConfig, TEXT),
    }


def vocabulary_of(folder):
    return json.loads((folder / "config.json").read_text())["vocab_size"]


# -- every weight, and nothing computed differently -------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip", "swin"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2"])
def test_any_tower_with_any_family_writes(vision, text, tower, family):
    assembly = assemble(str(vision[tower]), str(text[family]), offline=True)

    inputs = assembly.processor(images=FILM, gaze_source="none", return_tensors="pt")
    sequences = assembly.model.generate(**inputs, max_new_tokens=3)

    assert sequences.shape[1] > inputs["input_ids"].shape[1]
    assert len(assembly.processor.batch_decode_report(sequences)) == 1
    assert assembly.model.config.image_token_id not in sequences[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize(
    "tower, family",
    [
        ("vit", "llama"),
        ("dinov2", "qwen3"),
        ("siglip", "gemma"),
        ("siglip vision", "gpt2"),
        ("swin", "full"),
        ("convnext", "roomy"),
    ],
)
@torch.no_grad()
def test_saved_and_loaded_it_computes_what_its_backbones_do(vision, text, tmp_path, tower, family):
    assembly = assemble(str(vision[tower]), str(text[family]), offline=True)
    export_model(assembly.model, assembly.processor, tmp_path / "model")

    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "model")

    assert not any(info.values()), info
    assert model.config.grid_size == 8
    inputs = processor(images=FILM, gaze=[[0.2, 0.4, 0.3]], return_tensors="pt")
    pixels = inputs["pixel_values"]
    backbone = AutoModel.from_pretrained(vision[tower]).eval()
    features = getattr(backbone, "vision_model", backbone)(pixel_values=pixels).last_hidden_state
    features = features.flatten(2).transpose(1, 2) if features.dim() == 4 else features[:, -64:]
    torch.testing.assert_close(model.model.get_patch_features(pixels).last_hidden_state, features)
    ids = torch.arange(5, 15)[None]
    expected = AutoModelForCausalLM.from_pretrained(text[family]).eval()(input_ids=ids).logits
    given = model.eval()(input_ids=ids).logits[..., : vocabulary_of(text[family])]
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(**inputs).logits, assembly.model(**inputs).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_visual_gaze_token_is_as_long_as_a_word(vision, text):
    model = assemble(str(vision["vit"]), str(text["gemma"]), offline=True).model
    words = model.get_input_embeddings()(torch.arange(vocabulary_of(text["gemma"])))

    tokens = model.model.projector(torch.randn(500, model.config.fusion_config.hidden_size))

    assert words.norm(dim=-1).mean() == pytest.approx(tokens.norm(dim=-1).mean().item(), rel=0.05)


def test_the_same_seed_gives_the_same_model(vision, text):
    first, second, other = (
        assemble(str(vision["vit"]), str(text["llama"]), offline=True, seed=seed).model.model.fusion.state_dict()
        for seed in (3, 3, 4)
    )

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_towers_in_half_precision_stand_beside_gaze_parts_in_full(vision, text):
    model = assemble(str(vision["vit"]), str(text["llama"]), dtype="bfloat16", offline=True).model.model

    dtypes = {name: {one.dtype for one in part.parameters()} for name, part in model.named_children()}
    half = {"vision_tower", "language_model", "projector"}
    assert dtypes == {name: {torch.bfloat16 if name in half else torch.float32} for name in dtypes}


def test_a_tower_of_any_size_takes_the_size_that_is_asked_for(vision, text):
    config = assemble(str(vision["dinov2"]), str(text["llama"]), image_size=48, offline=True).model.config

    assert (config.image_size, config.grid_size, config.fusion_config.region_grid_size) == (48, 6, 6)


def test_what_is_missing_or_not_used_is_noted(vision, text):
    notes = assemble(str(vision["vit"]), str(text["llama"]), offline=True).notes

    assert f"{vision['vit']} has no weights for pooler: they stay random, nothing reads them." in notes
    assert f"Of {vision['vit']} these are not used: classifier." in notes


# -- the processor ----------------------------------------------------------------------------------------------------


def test_films_are_normalised_as_the_tower_is_used_to(vision, text):
    processor = assemble(str(vision["siglip"]), str(text["llama"]), offline=True).processor
    grey = np.full((64, 64), 51, dtype=np.uint8)
    grey[:8] = 200  # a film of one level is refused as blank

    pixels = processor(images=grey, return_tensors="pt")["pixel_values"]

    expected = (0.2 - torch.tensor(MEAN)) / torch.tensor(STD)  # 51 / 255 = 0.2
    torch.testing.assert_close(pixels[0, :, 32, 32], expected)


@pytest.mark.parametrize(
    "family, token, prompt",
    [
        ("llama", "<|reserved_special_token_0|>", "<bos><turn>user\n{image}Any effusion?</turn>\n<turn>model\n"),
        ("gemma", "<unused0>", "<bos><turn>user\n{image}Any effusion?</turn>\n<turn>model\n"),
        ("qwen3", "<|image_pad|>", "<|im_start|>user\n{image}Any effusion?<|im_end|>\n<|im_start|>assistant\n"),
        ("gpt2", "<|visual_gaze|>", "User: {image}Any effusion?\nAssistant: "),
    ],
)
def test_a_prompt_is_in_the_families_own_form(vision, text, family, token, prompt):
    processor = assemble(str(vision["vit"]), str(text[family]), offline=True).processor

    inputs = processor(images=FILM, text="Any effusion?", return_tensors="pt")

    expected = prompt.format(image=token * processor.num_visual_gaze_tokens)
    assert processor.image_token == token
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == expected


def test_a_chat_in_parts_and_one_in_strings_read_alike(vision, text):
    processor = assemble(str(vision["vit"]), str(text["llama"]), offline=True).processor
    turns = (("user", "Any effusion?"), ("assistant", "No."), ("user", "Sure?"))
    strings = [{"role": role, "content": words} for role, words in turns]
    parts = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in turns]

    rendered = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in (strings, parts)]
    tokens = processor.apply_chat_template(parts, add_generation_prompt=True, tokenize=True, return_dict=True)

    turn = "<turn>{}\n{}</turn>\n"
    expected = "".join(turn.format(*one) for one in turns) + "<turn>model\n"
    assert rendered == [expected, expected]
    assert processor.tokenizer.decode(tokens["input_ids"][0]) == "<bos>" + expected


@pytest.mark.parametrize("family, rows", [("gpt2", 1), ("full", 1), ("roomy", 0), ("qwen3", 0), ("gemma", 0)])
def test_the_vocabulary_grows_only_where_there_is_no_room(vision, text, family, rows):
    assembly = assemble(str(vision["vit"]), str(text[family]), offline=True)

    size = vocabulary_of(text[family]) + rows
    assert assembly.model.config.text_config.vocab_size == size
    assert assembly.model.get_input_embeddings().num_embeddings == size
    assert assembly.model.lm_head.weight.shape[0] == size
    assert (assembly.model.lm_head.weight is assembly.model.get_input_embeddings().weight) == (
        family in ("gpt2", "qwen3", "gemma")
    )


# -- what cannot be put together --------------------------------------------------------------------------------------


def edit_config(source, target, **values):
    """A copy of a backbone's folder with other values in its configuration."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | values))
    return target


def refused(vision, text, **options):
    with pytest.raises(ModelError) as caught:
        assemble(str(vision), str(text), offline=True, **options)
    return str(caught.value)


def test_a_language_model_that_caps_its_logits_is_refused(vision, tmp_path):
    config = TEXT | {"final_logit_softcapping": 0.05, "query_pre_attn_scalar": 16}
    capped = save_text(tmp_path / "gemma2", Gemma2Config, config)

    assert "Gemma2ForCausalLM changes its logits after the head" in refused(vision["vit"], capped)


def test_a_language_model_whose_head_has_a_bias_is_refused(vision, tmp_path):
    biased = save_text(tmp_path / "phi", PhiConfig, SMALL)

    assert "the head of PhiForCausalLM is no plain matrix (it has a bias)" in refused(vision["vit"], biased)


def test_layers_that_are_missing_are_named(vision, text, tmp_path):
    longer = edit_config(text["llama"], tmp_path / "longer", num_hidden_layers=3)
    deeper = edit_config(vision["dinov2"], tmp_path / "deeper", num_hidden_layers=3)

    assert "9 weights are missing (layers.2." in refused(vision["vit"], longer)
    assert "weights are missing (encoder.layer.2." in refused(deeper, text["llama"])


def test_layers_that_are_left_over_are_named(vision, text, tmp_path):
    shorter = edit_config(text["llama"], tmp_path / "shorter", num_hidden_layers=1)
    shallow = edit_config(vision["siglip vision"], tmp_path / "shallow", num_hidden_layers=1)

    assert "9 weights belong to no layer of the model (layers.1." in refused(vision["vit"], shorter)
    assert "weights belong to no layer of the model (encoder.layers.1." in refused(shallow, text["llama"])


def test_weights_of_another_shape_are_named(vision, text, tmp_path):
    wider = edit_config(text["llama"], tmp_path / "wider", intermediate_size=96)

    message = refused(vision["vit"], wider)

    assert "weights have another shape than its configuration says (" in message and "down_proj" in message


def test_a_text_encoder_is_no_vision_tower(text, tmp_path):
    BertModel(BertConfig(**SMALL, vocab_size=50)).save_pretrained(tmp_path / "bert")

    assert "BertModel is no image encoder (it reads input_ids)" in refused(tmp_path / "bert", text["llama"])


def test_an_image_encoder_is_no_language_model(vision):
    message = refused(vision["vit"], vision["vit"])

    assert message.startswith(f"{vision['vit']}: the language model cannot be loaded: Unrecognized configuration class")


def test_a_size_that_the_tower_does_not_take_is_refused(vision, text):
    message = refused(vision["vit"], text["llama"], image_size=96)

    assert "ViTModel takes no image of 96 pixels" in message and "It was made for 64 pixels." in message


def test_a_tower_without_a_preprocessor_is_refused(vision, text, tmp_path):
    shutil.copytree(vision["vit"], tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()

    assert "the vision tower's preprocessor cannot be loaded" in refused(tmp_path / "vit", text["llama"])


def test_a_tower_used_to_another_scale_is_refused(vision, text, tmp_path):
    shutil.copytree(vision["vit"], tmp_path / "vit")
    file = tmp_path / "vit" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_factor": 1 / 127.5}))

    assert "does not scale display levels by 1/255" in refused(tmp_path / "vit", text["llama"])


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_model_and_says_what_it_is_made_of(vision, text, tmp_path, capsys):
    out = tmp_path / "model"

    status = main(["assemble", "--vision", str(vision["vit"]), "--text", str(text["qwen3"]), "--out", str(out)])

    assert status == 0
    printed = capsys.readouterr().out
    model = AutoModelForImageTextToText.from_pretrained(out)
    total = sum(one.numel() for one in model.parameters()) / 1e6
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.endswith(" M")}
    assert lines["in"][-2] == f"{total:,.2f}"
    assert lines["vision_tower"][1] == "ViTModel" and lines["language_model"][1] == "Qwen3Model"
    assert lines["lm_head"][-2] == "0.00"  # tied
    assert "<|image_pad|> of the tokenizer is the placeholder of an image." in printed


def test_a_command_that_cannot_work_says_so_before_loading_anything(vision, text, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    backbones = ["--vision", str(vision["vit"]), "--text", str(text["llama"])]

    assert main(["assemble", *backbones, "--out", str(tmp_path)]) == 2
    assert "holds files and no model" in capsys.readouterr().err
    assert main(["assemble", "--vision", "nowhere/to-be-found", *backbones[2:], "--out", "x", "--offline"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere/to-be-found: the vision tower's configuration cannot be")
