"""LoRA on the language model, by recipe; the parts that are trained whole travel with the adapter.

One folder holds everything that a fine-tuning changed, in peft's own format: the low-rank updates, the gaze parts
(peft's `modules_to_save`) and the rows of new tokens (peft's `trainable_token_indices`). It loads in three ways, to the
same logits:

    AutoModelForImageTextToText.from_pretrained(adapter)        # the base model stands in adapter_config.json
    PeftModel.from_pretrained(base_model, adapter)
    base_model.load_adapter(adapter)
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import peft
import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from ..hub_space.export import write_adapter_folder
from ..modeling_gaze2report import Gaze2ReportForConditionalGeneration
from ..processing.errors import ModelError, RecipeError
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from ..quantization import quantization_config
from .recipe import LoraRecipe

# Parts that LoRA does not reach: small, or not a stack of matrices. They learn whole.
WHOLE_PARTS = ("scanpath", "fusion", "perception", "projector")
ADAPTER = "default"


def add_lora(
    model: Gaze2ReportForConditionalGeneration,
    lora: LoraRecipe,
    whole_parts: Sequence[str] = WHOLE_PARTS,
    new_tokens: Sequence[int] = (),
) -> peft.PeftModel:
    """Put adapters into `model` (in place) and return it wrapped, everything of the adapter trainable and no more.

    Args:
        model: the base; `get_base_model()` of the result gives it back, with the adapters in it.
        lora: the recipe.
        whole_parts: parts of the model that learn whole and are saved with the adapter: each part that any stage
            trains, but never the language model.
        new_tokens: ids of tokens that the language model never learned; their embeddings learn, no other's do.

    Raises:
        RecipeError: a pattern that is no regular expression, meets nothing, or reaches beyond the language model; a
            rank or dropout that cannot be.
    """
    check_targets(model, lora.target_modules)
    embedding = model.get_input_embeddings()
    embedding_name = next(name for name, module in model.named_modules() if module is embedding)
    try:
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            modules_to_save=[f"model.{part}" for part in whole_parts],
            trainable_token_indices={embedding_name: list(new_tokens)} if new_tokens else None,
        )
        adapted = peft.get_peft_model(model, config, adapter_name=ADAPTER)
    except ValueError as error:
        raise RecipeError(f"lora: {error}") from error
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and ".modules_to_save." in name:
            # Steps of the optimizer are lost in bfloat16.
            parameter.data = parameter.data.float()
    return adapted


def check_targets(model: torch.nn.Module, pattern: str) -> None:
    """Refuse a pattern that does not meet layers of the language model, and of it alone.

    Raises:
        RecipeError: saying what it meets, or which layers there are.
    """
    where = f"lora.target_modules = {pattern!r}"
    try:
        met = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    except re.error as error:
        raise RecipeError(f"{where} is no regular expression: {error}.") from error
    beyond = [name for name in met if not name.startswith("model.language_model.")]
    if beyond:
        raise RecipeError(
            f"{where} reaches beyond the language model, to {beyond[0]}: begin it with .*language_model.*"
        )
    if not met:
        layers = model.model.language_model.named_modules()
        leaves = sorted(
            {name.rpartition(".")[2] for name, module in layers if getattr(module, "weight", None) is not None}
        )
        raise RecipeError(f"{where} meets no layer; the language model's layers are called {', '.join(leaves)}.")


def freeze_all_but_adapters(model: peft.PeftModel, parts: Iterable[str]) -> None:
    """Let only the adapter's weights within the named parts learn: of the language model its low-rank updates and new
    tokens, of any other part the copy that is saved with the adapter.

    Raises:
        RecipeError: a part of which the adapter holds nothing.
    """
    model.requires_grad_(False)
    base = model.get_base_model()
    for part in parts:
        module = base.lm_head if part == "lm_head" else getattr(base.model, part)
        learning = [
            parameter
            for name, parameter in module.named_parameters()
            if name.startswith("modules_to_save.") or "lora_" in name or "trainable_tokens_delta" in name
        ]
        if not learning and part != "lm_head":  # a tied head learns with its embedding
            raise RecipeError(
                f"the part {part} cannot learn beside LoRA: it was not among the parts that learn whole when the "
                "adapter was made."
            )
        for parameter in learning:
            parameter.requires_grad_(True)


def merge(model: peft.PeftModel) -> Gaze2ReportForConditionalGeneration:
    """The model with its updates added to the weights, and no trace of peft; `model` is used up.

    Raises:
        RecipeError: the language model is in 4 bits, where the sum would be rounded to 4 bits again.
    """
    if getattr(model.get_base_model(), "is_loaded_in_4bit", False):
        raise RecipeError(
            "lora.merge: the updates cannot be added to a language model of 4 bits without loss. Export the adapter, "
            "load it on the base model in full precision, and merge there."
        )
    merged = model.merge_and_unload()
    merged.requires_grad_(True)
    return merged


def export_adapter(
    model: peft.PeftModel, processor: Gaze2ReportProcessor, folder: str | Path, base: str | None = None
) -> Path:
    """Write the adapter's folder: peft's two files, the processor, and the code that reads it.

    The folder appears whole or not at all; an adapter that was there before is replaced, its `README.md` kept.

    Args:
        model: as `add_lora` gave it, trained.
        processor: the model's processor.
        folder: where to.
        base: folder or Hub id of the base model, as `adapter_config.json` will name it; by default where it was loaded
            from.

    Raises:
        ModelError: the base model was never saved.
        InputError: the folder cannot be written, or holds something else.
    """
    base = base or model.get_base_model().name_or_path
    if not base:
        raise ModelError(
            f"{folder}: an adapter is no use without its base model, which was never saved: export the base first, or "
            "set lora.merge."
        )
    if Path(base).is_dir():
        base = Path(base).resolve()  # the adapter is found from anywhere
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base)
    return write_adapter_folder(model, processor, folder)


def four_bit_config(compute_dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """Language model in 4 bits (NF4, scales quantised too; Dettmers et al. 2023, arXiv 2305.14314), the rest as it is.

    For `AutoModelForImageTextToText.from_pretrained(folder, quantization_config=four_bit_config())`, then
    [`prepare_four_bit`] and [`add_lora`].

    Raises:
        RecipeError: there is no bitsandbytes, or no CUDA.
    """
    if not torch.cuda.is_available():
        raise RecipeError("4-bit training needs a CUDA device, and this machine has none: leave quantisation out.")
    if not is_bitsandbytes_available():
        raise RecipeError("4-bit training needs the package bitsandbytes: pip install bitsandbytes")
    return quantization_config(4, compute_dtype)


def prepare_four_bit(
    model: Gaze2ReportForConditionalGeneration, gradient_checkpointing: bool = True
) -> Gaze2ReportForConditionalGeneration:
    """Freeze a 4-bit model and ready it for adapters: norms and whatever is not quantised in float32."""
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)


__all__ = [
    "add_lora",
    "export_adapter",
    "four_bit_config",
    "freeze_all_but_adapters",
    "merge",
    "prepare_four_bit",
]
