"""Models to be trained: from nothing, by recipe; or from pretrained backbones.

What stands between two backbones - scanpath model, graph, perception heads, projector - is new and untrained in both.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

from ..configuration_gaze2report import (
    Gaze2ReportConfig,
    Gaze2ReportFusionConfig,
    Gaze2ReportPerceptionConfig,
    Gaze2ReportScanpathConfig,
)
from ..inference import first_line, quiet_transformers
from ..modeling_gaze2report import Gaze2ReportForConditionalGeneration
from ..processing.errors import ModelError, RecipeError
from ..processing.image_processing_gaze2report import Gaze2ReportImageProcessor
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from ..processing.prompts import DEFAULT_CHAT_TEMPLATE, INSTRUCTIONS
from .recipe import ModelRecipe

PAD, END, IMAGE, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|visual_gaze|>", "<|user|>", "<|assistant|>"
GAZE_PARTS = {
    "scanpath": Gaze2ReportScanpathConfig,
    "fusion": Gaze2ReportFusionConfig,
    "perception": Gaze2ReportPerceptionConfig,
}
# Turns are opened by special tokens, which no text of a user can hold.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{ASSISTANT}' if message['role'] == 'assistant' else '{USER}' }}}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ image_token }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    f"{{% if message['role'] == 'assistant' %}}{END}{{% endif %}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `texts` that carries any text, with the special tokens of `CHAT_TEMPLATE`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, IMAGE, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *INSTRUCTIONS.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[IMAGE, USER, ASSISTANT],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(
    recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast
) -> tuple[Gaze2ReportForConditionalGeneration, Gaze2ReportProcessor]:
    """An untrained model of the recipe's shape and its processor.

    Raises:
        RecipeError: a configuration that transformers or the model refuses, with its reason.
    """
    for part, kind in GAZE_PARTS.items():
        check_fields(getattr(recipe, part), kind, f"model.{part}")
    try:
        config = Gaze2ReportConfig(
            vision_config=tower_config(recipe.vision),
            text_config=tower_config(
                recipe.text
                | {
                    "vocab_size": len(tokenizer),
                    "pad_token_id": tokenizer.pad_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "bos_token_id": None,
                }
            ),
            scanpath_config=dict(recipe.scanpath),
            fusion_config=dict(recipe.fusion),
            perception_config=dict(recipe.perception),
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            image_size=recipe.image_size,
            grid_size=recipe.grid_size,
        )
        model = Gaze2ReportForConditionalGeneration(config)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"model: {error}") from error
    model.generation_config.update(
        max_new_tokens=256, do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    size = {"height": recipe.image_size, "width": recipe.image_size}
    processor = Gaze2ReportProcessor(
        Gaze2ReportImageProcessor(size=size),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_visual_gaze_tokens=config.num_visual_gaze_tokens,
        max_fixations=config.scanpath_config.max_fixations,
        max_context_tokens=context_length(config.text_config),
    )
    return model, processor


def context_length(config) -> int:
    """Longest sequence of a language model in tokens; 4,096 where its configuration names none."""
    return getattr(config, "max_position_embeddings", None) or 4096


def check_fields(values: dict, kind: type, where: str) -> None:
    """Refuse fields that a gaze part does not have; transformers' configurations take anything.

    Raises:
        RecipeError: naming the nearest field that there is.
    """
    known = [one.name for one in fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"unknown key {where}.{key}; the nearest one is {where}.{near}.")


def tower_config(values: dict):
    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


# -- from pretrained backbones ----------------------------------------------------------------------------------------

# Tokens that language models keep for such a use, the fittest first; their embeddings are never read.
SPARE_TOKENS = (
    re.escape(IMAGE),
    r"<\|image_pad\|>|<\|image\|>|<image>|<image_soft_token>|\[IMG\]",
    r"<\|reserved_special_token_\d+\|>|<\|reserved_\d+\|>|<(reserved|extra|unused)_?\d+>|\[(unused|control_)\d+\]",
)
# Parts of vision towers that checkpoints may lack: nothing here reads them.
UNREAD_PARTS = r"(pooler|head|layernorm_pooled)(\.|$)|(.*\.)?mask_token$"
# Makes one string of the parts of a message, for templates that know only strings.
CONTENT_PARTS = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or message['content'] is none -%}"
    "{%- set flat.messages = flat.messages + [message] -%}"
    "{%- else -%}{%- set joined = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set joined.text = joined.text + image_token -%}"
    "{%- elif part['type'] == 'text' -%}{%- set joined.text = joined.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=joined.text)] -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
NO_SECOND_BOS = "{%- set bos_token = '' -%}"  # the tokenizer puts one before every text


@dataclass
class Assembly:
    """A model from pretrained backbones.

    Attributes:
        model, processor: ready for `export_model`.
        notes: what a user should know about how the parts were fitted, in sentences.
    """

    model: Gaze2ReportForConditionalGeneration
    processor: Gaze2ReportProcessor
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Each part with its class and its number of parameters; a tied head is counted with its embedding."""
        parts = {**dict(self.model.model.named_children()), "lm_head": self.model.lm_head}
        seen: set[int] = set()
        lines = []
        for name, module in parts.items():
            own = {id(one): one.numel() for one in module.parameters() if id(one) not in seen}
            seen |= set(own)
            lines.append(f"{name:<16}{type(module).__name__:<36}{sum(own.values()) / 1e6:>12,.2f} M")
        total = sum(one.numel() for one in self.model.parameters()) / 1e6
        return "\n".join([*lines, f"{'in all':<52}{total:>12,.2f} M"])


def assemble(
    vision: str,
    text: str,
    tokenizer: str | None = None,
    image_size: int | None = None,
    dtype: str = "auto",
    offline: bool = False,
    seed: int = 0,
) -> Assembly:
    """A full-size model from two pretrained backbones; what stands between them is untrained.

    Args:
        vision: folder or Hub id of an image encoder of transformers that gives a square grid of patches; of a model of
            image and text (SigLIP, CLIP) the image half is taken.
        text: folder or Hub id of a causal language model of transformers.
        tokenizer: folder or Hub id of its tokenizer, where that stands elsewhere.
        image_size: side of the square film in pixels, for towers that take any; by default what the tower's own
            preprocessor makes.
        dtype: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"`: as the language model is stored. The gaze parts are
            float32 in any case.
        offline: never ask the Hub.
        seed: of the new parts' weights.

    Raises:
        ModelError: a backbone that cannot be loaded whole, is of another kind, or does something that a Gaze2Report
            model would silently not do.
    """
    notes: list[str] = []
    language_model = load_language_model(text, dtype, offline, notes)
    tower = load_vision_tower(vision, language_model.dtype, offline, notes)
    text_tokenizer = load_tokenizer(tokenizer or text, offline)
    preprocessor = load_preprocessor(vision, offline)
    image_size = image_size or native_size(preprocessor, tower.config)
    grid_size = grid_of(tower, image_size, vision)
    image_token = choose_image_token(text_tokenizer, language_model, notes)

    regions = min(Gaze2ReportFusionConfig.region_grid_size, grid_size)
    try:
        config = Gaze2ReportConfig(
            vision_config=tower.config,
            text_config=language_model.config,
            fusion_config={"region_grid_size": regions},
            image_token_id=text_tokenizer.convert_tokens_to_ids(image_token),
            image_size=image_size,
            grid_size=grid_size,
        )
        set_seed(seed)
        model = join_parts(config, tower, language_model)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{vision} and {text} do not fit together: {first_line(error)}") from error
    check_weights(model)
    check_head(model, language_model, text)
    set_generation(model, language_model, text_tokenizer)
    processor = Gaze2ReportProcessor(
        Gaze2ReportImageProcessor(
            size={"height": image_size, "width": image_size},
            image_mean=list(preprocessor.image_mean) if preprocessor.do_normalize else [0.0] * 3,
            image_std=list(preprocessor.image_std) if preprocessor.do_normalize else [1.0] * 3,
        ),
        text_tokenizer,
        chat_template=adapted_template(text_tokenizer, notes),
        image_token=image_token,
        num_visual_gaze_tokens=config.num_visual_gaze_tokens,
        max_fixations=config.scanpath_config.max_fixations,
        max_context_tokens=context_length(config.text_config),
    )
    text_tokenizer.chat_template = None  # the processor's is the one
    return Assembly(model.eval(), processor, notes)


def load_part(auto_class, source: str, what: str, **options):
    """`auto_class.from_pretrained` with errors in our words."""
    try:
        with quiet_transformers():
            return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{source}: the {what} cannot be loaded: {first_line(error)}") from error


def load_language_model(source: str, dtype: str, offline: bool, notes: list[str]) -> PreTrainedModel:
    config = load_part(AutoConfig, source, "language model's configuration", local_files_only=offline)
    model, report = load_part(
        AutoModelForCausalLM,
        source,
        "language model",
        config=config.get_text_config(),
        dtype=dtype,
        local_files_only=offline,
        output_loading_info=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are in the report
    )
    check_report(model, report, source, notes, unread=None)
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(
            f"{source}: the head of {type(model).__name__} is no plain matrix (it has a bias), and Gaze2Report "
            "has no place for that. Choose another language model."
        )
    return model.eval()


def load_vision_tower(source: str, dtype: torch.dtype, offline: bool, notes: list[str]) -> PreTrainedModel:
    config = load_part(AutoConfig, source, "vision tower's configuration", local_files_only=offline)
    model, report = load_part(
        AutoModel,
        source,
        "vision tower",
        config=getattr(config, "vision_config", None) or config,
        dtype=dtype,
        local_files_only=offline,
        output_loading_info=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
    )
    if model.main_input_name != "pixel_values":
        raise ModelError(f"{source}: {type(model).__name__} is no image encoder (it reads {model.main_input_name}).")
    check_report(model, report, source, notes, unread=UNREAD_PARTS)
    return model.eval()


def check_report(model: PreTrainedModel, report: dict, source: str, notes: list[str], unread: str | None) -> None:
    """Account for every weight: what a part of another use left over is noted, anything else refused.

    Args:
        unread: pattern of the weights that may be missing.

    Raises:
        ModelError: weights that are missing, of another shape, or left over although they belong to the model's parts.
    """
    prefix = model.base_model_prefix + "."
    parts = {name.removeprefix(prefix).partition(".")[0] for name in model.state_dict()}
    names = {key: [str(one).removeprefix(prefix) for one in report[key]] for key in ("missing_keys", "unexpected_keys")}
    names["mismatched_keys"] = [str(one[0]) for one in report["mismatched_keys"]]
    missing = [name for name in names["missing_keys"] if not (unread and re.match(unread, name))]
    left_over = [name for name in names["unexpected_keys"] if name.partition(".")[0] in parts]
    for faults, words in (
        (missing, "weights are missing"),
        (left_over, "weights belong to no layer of the model"),
        (names["mismatched_keys"], "weights have another shape than its configuration says"),
    ):
        if faults:
            raise ModelError(f"{source}: {len(faults)} {words} ({', '.join(sorted(faults)[:3])}): it is not whole.")
    if without := sorted({name.partition(".")[0] for name in names["missing_keys"]}):
        notes.append(f"{source} has no weights for {', '.join(without)}: they stay random, nothing reads them.")
    if beside := sorted({name.partition(".")[0] for name in names["unexpected_keys"]}):
        notes.append(f"Of {source} these are not used: {', '.join(beside)}.")


def load_tokenizer(source: str, offline: bool) -> PreTrainedTokenizerBase:
    tokenizer = load_part(AutoTokenizer, source, "tokenizer", local_files_only=offline)
    if tokenizer.eos_token is None:
        raise ModelError(f"{source}: the tokenizer has no end token (eos_token): a report could never end.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_preprocessor(source: str, offline: bool):
    preprocessor = load_part(AutoImageProcessor, source, "vision tower's preprocessor", local_files_only=offline)
    if getattr(preprocessor, "do_normalize", None) is None or (
        preprocessor.do_normalize and not (preprocessor.image_mean and preprocessor.image_std)
    ):
        raise ModelError(f"{source}: its preprocessor does not say how it normalises images (image_mean, image_std).")
    if not preprocessor.do_rescale or not math.isclose(preprocessor.rescale_factor, 1 / 255, rel_tol=1e-3):
        raise ModelError(f"{source}: its preprocessor does not scale display levels by 1/255; films are scaled so.")
    return preprocessor


def native_size(preprocessor, config) -> int:
    """Side in pixels of what the tower's preprocessor makes of an image."""
    crop = preprocessor.crop_size if getattr(preprocessor, "do_center_crop", False) else None
    size = dict(crop or preprocessor.size or {})
    side = size.get("height") or size.get("shortest_edge") or getattr(config, "image_size", None)
    if not isinstance(side, int):
        raise ModelError("The vision tower does not say for which size of image it was made: give --image-size.")
    return side


@torch.no_grad()
def grid_of(tower: PreTrainedModel, image_size: int, source: str) -> int:
    """Patches along one side, as the tower gives them for a square of `image_size` pixels.

    Raises:
        ModelError: the tower takes no such image, or gives no square grid.
    """
    try:
        output = tower(pixel_values=torch.zeros(1, 3, image_size, image_size, dtype=tower.dtype))
        features = output.last_hidden_state
    except (ValueError, RuntimeError, AttributeError, TypeError, IndexError) as error:
        native = getattr(tower.config, "image_size", None)
        hint = f" It was made for {native} pixels." if native else ""
        raise ModelError(
            f"{source}: {type(tower).__name__} takes no image of {image_size} pixels: {first_line(error)}{hint}"
        ) from error
    if features.dim() == 4 and features.shape[-1] == features.shape[-2]:
        return features.shape[-1]
    patch = getattr(tower.config, "patch_size", None)
    if features.dim() == 3:
        num_features = features.shape[1]
        # Before the patches stand class and register tokens; a pyramid gives fewer patches than its first layer's.
        by_patch = image_size // patch if isinstance(patch, int) else 0
        grid = by_patch if 0 < by_patch**2 <= num_features else math.isqrt(num_features)
        if grid > 1 and num_features - grid**2 <= 16:
            return grid
    raise ModelError(
        f"{source}: {type(tower).__name__} gives features of shape {tuple(features.shape)} for {image_size} x "
        f"{image_size} pixels; Gaze2Report needs a square grid of patches, (1, P, C) or (1, C, G, G)."
    )


def choose_image_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, notes: list[str]) -> str:
    """A spare token of the vocabulary as the placeholder of an image, or a new one at its end."""
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    rows = model.get_input_embeddings().num_embeddings
    for pattern in SPARE_TOKENS:
        token = next((one for one in vocabulary if re.fullmatch(pattern, one)), None)
        if token is not None and tokenizer.convert_tokens_to_ids(token) < rows:
            tokenizer.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
            notes.append(f"{token} of the tokenizer is the placeholder of an image.")
            return token
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    notes.append(f"The new token {IMAGE} is the placeholder of an image.")
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))
        notes.append(
            f"The language model has {len(tokenizer)} embeddings now, {len(tokenizer) - rows} more than before."
        )
    return IMAGE


def adapted_template(tokenizer: PreTrainedTokenizerBase, notes: list[str]) -> str:
    """The language model's own chat template, able to take messages in parts."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        notes.append("The tokenizer has no chat template: turns open with 'User: ' and 'Assistant: '.")
        return DEFAULT_CHAT_TEMPLATE
    tokens = tokenizer("a")["input_ids"]
    adds_bos = tokenizer.bos_token_id is not None and tokens[0] == tokenizer.bos_token_id
    return CONTENT_PARTS + (NO_SECOND_BOS if adds_bos else "") + template


def join_parts(
    config: Gaze2ReportConfig, tower: PreTrainedModel, language_model: PreTrainedModel
) -> Gaze2ReportForConditionalGeneration:
    """The whole model; the backbones are put in as they are, not copied."""
    with torch.device("meta"):
        model = Gaze2ReportForConditionalGeneration(config)
    inner = model.model
    inner.vision_tower = tower
    inner.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()
    for name, sub_config in (
        ("scanpath", config.scanpath_config),
        ("fusion", config.fusion_config),
        ("perception", config.perception_config),
        ("projector", config),
    ):
        part = type(getattr(inner, name))(sub_config)
        for module in part.modules():
            model._init_weights(module)
        setattr(inner, name, part)
    # A unit-norm token of the projector shall be as long as the text's own embeddings are on average.
    embedding = inner.language_model.get_input_embeddings()
    with torch.no_grad():
        tokens = embedding(torch.arange(min(embedding.num_embeddings, 8192)))
        inner.projector.scale.fill_(tokens.float().norm(dim=-1).mean() / tokens.shape[-1] ** 0.5)
    inner.projector.to(language_model.dtype)
    model.tie_weights()
    return model


def check_weights(model: Gaze2ReportForConditionalGeneration) -> None:
    """Refuse a model whose weights are not those that its configuration will ask for.

    Raises:
        ModelError: naming a weight that differs.
    """
    with torch.device("meta"):
        expected = Gaze2ReportForConditionalGeneration(model.config).state_dict()
    given = model.state_dict()
    for name in sorted(expected.keys() | given.keys()):
        shapes = [tuple(weights[name].shape) if name in weights else "nothing" for weights in (given, expected)]
        if shapes[0] != shapes[1]:
            raise ModelError(f"The backbones give {name} the shape {shapes[0]}, the configuration {shapes[1]}.")


@torch.no_grad()
def check_head(model: Gaze2ReportForConditionalGeneration, language_model: PreTrainedModel, source: str) -> None:
    """Refuse a language model that does more to its logits than one matrix does (soft-capping, scaling).

    Raises:
        ModelError: the logits of a text differ.
    """
    text = torch.arange(1, 9).unsqueeze(0) % model.config.text_config.vocab_size
    text = text.masked_fill(text == model.config.image_token_id, 0)
    before = language_model(input_ids=text).logits.float()
    after = model(input_ids=text).logits.float()
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * before.abs().max().item()):
        raise ModelError(
            f"{source}: {type(language_model).__name__} changes its logits after the head (largest difference "
            f"{(before - after).abs().max().item():.3g}), which a Gaze2Report model would not do. Choose another one."
        )


def set_generation(
    model: Gaze2ReportForConditionalGeneration, language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The language model's end tokens; greedy decoding, and never a placeholder."""
    ends = language_model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    model.generation_config.update(
        max_new_tokens=256,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=list(dict.fromkeys([tokenizer.eos_token_id, *ends])),
        bos_token_id=tokenizer.bos_token_id,
        suppress_tokens=[model.config.image_token_id],
    )


__all__ = ["Assembly", "assemble", "build_model", "build_tokenizer"]
