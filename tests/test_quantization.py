import pytest
import torch
from transformers.quantizers.quantizers_utils import should_convert_module

from modeling_gaze2report import quantization
from modeling_gaze2report.processing.errors import ModelError
from modeling_gaze2report.quantization import quantization_config

from .tiny_export import build_tiny_model


@pytest.fixture
def installed(monkeypatch):
    """bitsandbytes, as far as making a configuration goes."""
    monkeypatch.setattr(quantization, "is_bitsandbytes_available", lambda: True)


@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_language_models_layers_are_rounded(bits, installed):
    config = quantization_config(bits)

    rounded = {
        name
        for name, module in build_tiny_model()[0].named_modules()
        if isinstance(module, torch.nn.Linear) and should_convert_module(name, config.llm_int8_skip_modules)
    }

    assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
    matrices = [f"self_attn.{one}_proj" for one in "qkvo"] + [f"mlp.{one}_proj" for one in ("gate", "up", "down")]
    assert rounded == {f"model.language_model.layers.{layer}.{matrix}" for layer in (0, 1) for matrix in matrices}


def test_a_number_of_bits_that_is_not_offered_is_refused(installed):
    with pytest.raises(ModelError, match="bits = 3 must be 4 or 8"):
        quantization_config(3)


def test_fewer_bits_without_bitsandbytes_are_refused(monkeypatch):
    monkeypatch.setattr(quantization, "is_bitsandbytes_available", lambda: False)

    with pytest.raises(ModelError, match="8 bits need the package bitsandbytes"):
        quantization_config(8)
