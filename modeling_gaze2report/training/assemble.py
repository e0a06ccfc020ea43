"""Models to be trained: a tokenizer and weights from nothing, by recipe."""

import difflib
from collections.abc import Iterable
from dataclasses import fields

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from ..configuration_gaze2report import (
    Gaze2ReportConfig,
    Gaze2ReportFusionConfig,
    Gaze2ReportPerceptionConfig,
    Gaze2ReportScanpathConfig,
)
from ..modeling_gaze2report import Gaze2ReportForConditionalGeneration
from ..processing.errors import RecipeError
from ..processing.image_processing_gaze2report import Gaze2ReportImageProcessor
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from ..processing.prompts import INSTRUCTIONS
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
    )
    return model, processor


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


__all__ = ["build_model", "build_tokenizer"]
