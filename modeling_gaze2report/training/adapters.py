"""LoRA on the language model, by recipe; the gaze parts are trained whole and travel with the adapter."""

from dataclasses import dataclass

# Attention projections by the names that transformers' language models give them; GPT-2 keeps three of them in one.
TARGET_MODULES = r".*\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|c_attn|c_proj)"


@dataclass
class LoraRecipe:
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) in place of training the language model whole.

    Attributes:
        rank: rank of each update; 16 is usual, more only where a larger data set asks for it.
        alpha: an update counts alpha / rank times.
        dropout: dropout before each update, while training.
        target_modules: regular expression over the full names of modules, matched whole. It must stay inside
            `language_model`: the vision tower has layers of the same names.
        merge: at the end, add the updates to the weights and export a model without adapters.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    target_modules: str = TARGET_MODULES
    merge: bool = False


__all__ = ["LoraRecipe"]
