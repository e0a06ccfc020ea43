"""A tiny untrained model as `gaze2report train` would export it, for the tests that need a model folder.

A test module makes the fixture from `export_tiny_model`; the folder is written once per session.
"""

from pathlib import Path

REPORTS = (
    "The heart is enlarged. There is a small left pleural effusion. No pneumothorax.",
    "The lungs are clear. The heart size is normal. No acute abnormality.",
    "Opacity in the right lower lobe may represent pneumonia.",
)
IMAGE_SIZE = 64
NUM_VISUAL_GAZE_TOKENS = 1 + 16 + 4  # global, region and fixation tokens
MAX_FIXATIONS = 10
MODEL = {
    "image_size": IMAGE_SIZE,
    "grid_size": 8,
    "vision": {
        "model_type": "vit",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    },
    "text": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "scanpath": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "num_encoder_layers": 1,
        "max_fixations": MAX_FIXATIONS,
    },
    "fusion": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "region_grid_size": 4,
        "num_fixation_slots": 4,
        "num_neighbors": 4,
    },
    "perception": {"projection_dim": 16, "num_severities": 4, "num_views": 2},
}


def build_tiny_model():
    """Model and processor; the same weights at every call, reports of at most eight tokens."""
    import torch

    from modeling_gaze2report.training.assemble import build_model, build_tokenizer
    from modeling_gaze2report.training.recipe import ModelRecipe

    torch.manual_seed(0)
    model, processor = build_model(ModelRecipe(**MODEL), build_tokenizer(REPORTS, 320))
    model.generation_config.max_new_tokens = 8
    return model.eval(), processor


def build_talking_reader():
    """A reader whose tiny model says different things of different films."""
    import torch

    from modeling_gaze2report.inference import Reader

    model, processor = build_tiny_model()
    # A fresh model's weights are so small that it says nothing at all; these let words and films differ.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "language_model" in name:
                parameter.mul_(8)
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    return Reader(model, processor, "tiny")


def noise_film(seed: int, height: int = 80, width: int = 60):
    """A film of noise."""
    import numpy as np

    from modeling_gaze2report.processing.image_processing_gaze2report import load_film

    return load_film(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8), name=f"film {seed}")


def export_tiny_model(tmp_path_factory) -> Path:
    """The model's folder in Hub layout."""
    from modeling_gaze2report.hub_space.export import export_model

    folder = tmp_path_factory.getbasetemp() / "tiny-model"
    if not folder.exists():
        export_model(*build_tiny_model(), folder)
    return folder
