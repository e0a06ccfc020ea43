"""Fixtures that several rooms of the tests share: a tiny model and the real data."""

import os
from pathlib import Path

# Before anything imports torch: the tests run side by side (pytest-xdist), and threads would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

# The placeholder that visual-gaze tokens replace, and the ids that tiny prompts are made of.
IMAGE_TOKEN = 3
TEXT_TOKENS = range(10, 90)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared real data: `GAZE2REPORT_SHARED`, by default `../shared` beside the repository."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("GAZE2REPORT_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set GAZE2REPORT_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_config():
    """Makes the configuration of a model with two layers everywhere; keyword arguments replace any part of it."""
    from transformers import LlamaConfig, ViTConfig

    from modeling_gaze2report.configuration_gaze2report import Gaze2ReportConfig

    def make(scanpath=None, fusion=None, **kwargs):
        gaze_part = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
        scanpath_config = gaze_part | {"num_encoder_layers": 1, "max_fixations": 10} | (scanpath or {})
        fusion_config = gaze_part | {"region_grid_size": 4, "num_fixation_slots": 4, "num_neighbors": 4}
        values = {
            "vision_config": ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=64,
                patch_size=8,
            ),
            "text_config": LlamaConfig(
                hidden_size=32,
                vocab_size=99,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=64,
                max_position_embeddings=512,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            ),
            "scanpath_config": scanpath_config,
            "fusion_config": fusion_config | (fusion or {}),
            "perception_config": {"projection_dim": 16},
            "image_size": 64,
            "grid_size": 8,
            "image_token_id": IMAGE_TOKEN,
        }
        return Gaze2ReportConfig(**values | kwargs)

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """Makes a tiny `Gaze2ReportForConditionalGeneration` with random weights, in evaluation mode."""
    import torch

    from modeling_gaze2report.modeling_gaze2report import Gaze2ReportForConditionalGeneration

    def make(seed=0, **kwargs):
        torch.manual_seed(seed)
        model = Gaze2ReportForConditionalGeneration(tiny_config(**kwargs)).eval()
        # Weights as small as a fresh model's make every film look alike; these let inputs show in the outputs.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_inputs():
    """Makes films with prompts: `num_images` placeholder blocks and five text tokens per prompt."""
    import torch

    def make(model, batch_size=2, num_images=1, gaze=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        config = model.config
        size = config.image_size
        films = batch_size * num_images
        text = torch.randint(TEXT_TOKENS.start, TEXT_TOKENS.stop, (batch_size, 5), generator=generator)
        block = torch.full((batch_size, config.num_visual_gaze_tokens * num_images), config.image_token_id)
        inputs = {
            "input_ids": torch.cat((text[:, :1], block, text[:, 1:]), dim=1),
            "pixel_values": torch.randn(films, 3, size, size, generator=generator),
        }
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if gaze == "recorded":
            inputs["fixations"] = torch.rand(films, 6, 3, generator=generator)
            inputs["fixation_mask"] = torch.arange(6) < torch.randint(2, 7, (films, 1), generator=generator)
        return inputs

    return make
