"""The language model in 8 or 4 bits; the vision tower, gaze, graph, findings and the head keep their precision.

Coordinates, boxes and likelihoods do not survive rounded weights, and the parts they come from are small beside a
language model of billions of parameters.
"""

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from .processing.errors import ModelError

# Everything but the layers of the language model, by their names in the whole model.
FULL_PRECISION_PARTS = (
    *(f"model.{part}" for part in ("vision_tower", "scanpath", "fusion", "perception", "projector")),
    "lm_head",
)


def quantization_config(bits: int, compute_dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """What `from_pretrained(folder, quantization_config=...)` takes to load the language model in fewer bits.

    Args:
        bits: 8 (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339) or 4 (NF4 with quantised scales, Dettmers et al.
            2023, arXiv 2305.14314).
        compute_dtype: of the products with matrices of 4 bits; those of 8 bits choose their own.

    Raises:
        ModelError: other `bits`, or there is no bitsandbytes.

    Example:

    ```python
    >>> model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=quantization_config(bits=8))
    ```
    """
    if bits not in (4, 8):
        raise ModelError(f"bits = {bits} must be 4 or 8.")
    if not is_bitsandbytes_available():
        raise ModelError(f"{bits} bits need the package bitsandbytes: pip install bitsandbytes")
    kept = list(FULL_PRECISION_PARTS)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=kept,  # its name is historical: it holds for 4 bits, too
    )


__all__ = ["FULL_PRECISION_PARTS", "quantization_config"]
