# Copyright 2026 The Gaze2Report authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Configuration of Gaze2Report: two towers that transformers knows, and three gaze parts of our own.

Lengths on the film are shares of the side of the square that the image processor makes (0.07 of a 224-pixel square is
16 pixels); times are seconds.
"""

from typing import Literal

from transformers import AutoConfig

# `strict` is huggingface_hub's; Hub files take it from where transformers' own configurations find it.
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec, strict
from transformers.utils import auto_docstring


@auto_docstring
@strict
class Gaze2ReportScanpathConfig(PreTrainedConfig):
    r"""Configuration of the scanpath model: where a reader looks next, for how long, and when the reading ends.

    Args:
        vision_hidden_size (`int`, defaults to 768): channels of a patch feature. Set by `Gaze2ReportConfig`.
        grid_size (`int`, defaults to 14): patches along one side of the square. Set by `Gaze2ReportConfig`.
        hidden_size (`int`, defaults to 256): width of encoder and decoder.
        num_encoder_layers (`int`, defaults to 3): transformer layers over the patches.
        num_hidden_layers (`int`, defaults to 4): causal transformer layers over the fixations.
        num_attention_heads (`int`, defaults to 4): heads of every attention.
        intermediate_size (`int`, defaults to 1024): width of the feed-forward blocks.
        hidden_act (`str`, defaults to `"gelu"`): activation of the feed-forward blocks.
        hidden_dropout_prob (`float`, defaults to 0.1): dropout after attention and feed-forward blocks.
        layer_norm_eps (`float`, defaults to 1e-5): epsilon of every layer norm.
        max_fixations (`int`, defaults to 50): longest scanpath, in fixations; a reading ends here at the latest.
        min_fixations (`int`, defaults to 3): shortest scanpath of the deterministic decoding, in fixations. Sampling
            follows the model's own density and may end earlier.
        num_duration_components (`int`, defaults to 4): components of the log-normal mixture over durations.
        return_sigma (`float`, defaults to 0.07): reach of the inhibition of return, as a share of the square's side.
        num_readers (`int`, defaults to 0): readers with an embedding of their own; 0 = readers are not told apart.
            Index 0 of the embedding is the unknown reader.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
    """

    model_type = "gaze2report_scanpath"
    base_config_key = "scanpath_config"

    vision_hidden_size: int = 768
    grid_size: int = 14
    hidden_size: int = 256
    num_encoder_layers: int = 3
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5
    max_fixations: int = 50
    min_fixations: int = 3
    num_duration_components: int = 4
    return_sigma: float = 0.07
    num_readers: int = 0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"scanpath_config.hidden_size = {self.hidden_size} must be a multiple of 4 x num_attention_heads "
                f"= {4 * self.num_attention_heads}, so that heads and position embeddings divide it evenly."
            )
        if not 1 <= self.min_fixations <= self.max_fixations:
            raise ValueError(
                f"scanpath_config.min_fixations = {self.min_fixations} must lie between 1 and max_fixations = "
                f"{self.max_fixations}."
            )
        if self.return_sigma <= 0:
            raise ValueError(f"scanpath_config.return_sigma = {self.return_sigma} must be above 0 (0.07 is usual).")


@auto_docstring
@strict
class Gaze2ReportFusionConfig(PreTrainedConfig):
    r"""Configuration of the graph that fuses patches and fixations into visual-gaze tokens.

    Args:
        vision_hidden_size (`int`, defaults to 768): channels of a patch feature. Set by `Gaze2ReportConfig`.
        grid_size (`int`, defaults to 14): patches along one side of the square. Set by `Gaze2ReportConfig`.
        max_fixations (`int`, defaults to 50): longest scanpath, in fixations. Set by `Gaze2ReportConfig`.
        hidden_size (`int`, defaults to 256): width of a node.
        num_hidden_layers (`int`, defaults to 3): graph layers.
        num_attention_heads (`int`, defaults to 4): heads of the graph attention.
        intermediate_size (`int`, defaults to 512): width of the feed-forward blocks.
        hidden_act (`str`, defaults to `"gelu"`): activation of the feed-forward blocks.
        hidden_dropout_prob (`float`, defaults to 0.1): dropout after attention and feed-forward blocks.
        layer_norm_eps (`float`, defaults to 1e-5): epsilon of every layer norm.
        graph_implementation (`"dense"` or `"pyg"`, defaults to `"dense"`): masked attention over all pairs of nodes, or
            PyTorch Geometric's sparse message passing. Same weights, same result; dense is faster, PyG the reference.
        num_neighbors (`int`, defaults to 9): feature-space neighbours that each patch listens to.
        gaze_direction (`float`, defaults to 1.0): weight of the gaze term in the distance that picks those neighbours
            (0 = image features alone).
        heat_map_sigma (`float`, defaults to 0.07): blur of a fixation, as a share of the square's side. It also links
            a fixation to the patches within two sigmas.
        revisit_distance (`float`, defaults to 0.07): two fixations nearer than this (and not consecutive) are a
            revisit, as a share of the square's side.
        max_linked_patches (`int`, defaults to 9): patches that one fixation is linked to.
        region_grid_size (`int`, defaults to 7): region tokens along one side; 7 gives 49.
        num_fixation_slots (`int`, defaults to 16): tokens for the fixations dwelt on longest, in the order of reading.
        use_temporal_edges (`bool`, defaults to `True`): link consecutive fixations. Off for ablation.
        use_gaze_nodes (`bool`, defaults to `True`): give fixations nodes of their own. Off for ablation.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
    """

    model_type = "gaze2report_fusion"
    base_config_key = "fusion_config"

    vision_hidden_size: int = 768
    grid_size: int = 14
    max_fixations: int = 50
    hidden_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5
    graph_implementation: Literal["dense", "pyg"] = "dense"
    num_neighbors: int = 9
    gaze_direction: float | int = 1.0
    heat_map_sigma: float = 0.07
    revisit_distance: float = 0.07
    max_linked_patches: int = 9
    region_grid_size: int = 7
    num_fixation_slots: int = 16
    use_temporal_edges: bool = True
    use_gaze_nodes: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"fusion_config.hidden_size = {self.hidden_size} must be a multiple of 4 x num_attention_heads "
                f"= {4 * self.num_attention_heads}, so that heads and position embeddings divide it evenly."
            )
        if self.region_grid_size > self.grid_size:
            raise ValueError(
                f"fusion_config.region_grid_size = {self.region_grid_size} needs at least as many patches along a "
                f"side, but grid_size = {self.grid_size}: lower it to {self.grid_size} or less."
            )
        if not 0 < self.num_neighbors < self.grid_size**2:
            raise ValueError(
                f"fusion_config.num_neighbors = {self.num_neighbors} must lie between 1 and the number of patches "
                f"minus one, {self.grid_size**2 - 1}."
            )
        if self.heat_map_sigma <= 0 or self.revisit_distance <= 0:
            raise ValueError("fusion_config.heat_map_sigma and revisit_distance must be above 0 (0.07 is usual).")

    def items(self) -> tuple:
        """No fused kernels: `from_pretrained` reads a `config.fusion_config` as its own table of those."""
        return ()

    @property
    def num_visual_gaze_tokens(self) -> int:
        """Tokens that one image takes in the prompt: 1 global, the regions, the fixation slots."""
        return 1 + self.region_grid_size**2 + self.num_fixation_slots


@auto_docstring
@strict
class Gaze2ReportPerceptionConfig(PreTrainedConfig):
    r"""Configuration of the heads that name findings, place regions and embed image and text for contrast.

    Args:
        hidden_size (`int`, defaults to 256): width of a fused node. Set by `Gaze2ReportConfig`.
        grid_size (`int`, defaults to 14): patches along one side of the square. Set by `Gaze2ReportConfig`.
        text_hidden_size (`int`, defaults to 1024): width of the language model. Set by `Gaze2ReportConfig`.
        num_findings (`int`, defaults to 14): finding classes, in the order of the CheXpert label set.
        num_regions (`int`, defaults to 17): anatomical regions.
        num_severities (`int`, defaults to 0): degrees of severity that each finding is graded into; 0 for no grading.
        num_views (`int`, defaults to 0): views that films are told apart by; 0 for none.
        detail_hidden_size (`int`, defaults to 0): width of the convolutions that look for thin and small findings in
            the pixels; 0 for no such look. 48 is the embedded checkpoint's.
        projection_dim (`int`, defaults to 128): width of the image and text embeddings for contrast.
        project_findings (`bool`, defaults to `False`): tell the language model what was found in numbers as well:
            logits and boxes, behind the projector's norms, on the global visual-gaze token.
        logit_scale_init (`float`, defaults to 2.6593): logarithm of the initial inverse temperature, ln(1 / 0.07).
        layer_norm_eps (`float`, defaults to 1e-5): epsilon of every layer norm.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights.
    """

    model_type = "gaze2report_perception"
    base_config_key = "perception_config"

    hidden_size: int = 256
    grid_size: int = 14
    text_hidden_size: int = 1024
    num_findings: int = 14
    num_regions: int = 17
    num_severities: int = 0
    num_views: int = 0
    detail_hidden_size: int = 0
    projection_dim: int = 128
    project_findings: bool = False
    logit_scale_init: float = 2.6593
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.detail_hidden_size and self.detail_hidden_size < 6:
            raise ValueError(
                f"perception_config.detail_hidden_size = {self.detail_hidden_size} must be 0 for none, or 6 or more "
                "(48 is usual)."
            )

    @property
    def num_values(self) -> int:
        """Numbers that say what was found: a logit and a box for each finding, a box for each region."""
        return 5 * self.num_findings + 4 * self.num_regions


@auto_docstring
@strict
class Gaze2ReportConfig(PreTrainedConfig):
    r"""Configuration of the whole model: film -> scanpath -> graph -> visual-gaze tokens -> report.

    Args:
        vision_config (`dict` or `PreTrainedConfig`): any image encoder of transformers that gives a square grid of
            patch features, as a sequence (ViT, DINOv2, SigLIP, ...) or as a feature map (ResNet, ConvNeXt, ...). The
            reference recipe is RAD-DINO, a DINOv2 ViT-B/14.
        text_config (`dict` or `PreTrainedConfig`): any causal language model of transformers.
        scanpath_config (`dict` or [`Gaze2ReportScanpathConfig`]): where a reader looks.
        fusion_config (`dict` or [`Gaze2ReportFusionConfig`]): the graph.
        perception_config (`dict` or [`Gaze2ReportPerceptionConfig`]): findings, regions, contrast.
        image_token_id (`int`, defaults to 0): id of the placeholder that visual-gaze tokens replace in the prompt.
        image_size (`int`, defaults to 224): side of the square film, in pixels.
        grid_size (`int`, defaults to 14): patches along one side of the square, as the vision tower gives them.
        vision_hidden_size (`int`, *optional*): channels of a patch feature; taken from `vision_config` when left out.
        tie_word_embeddings (`bool`, defaults to `False`): share input and output embeddings; true as well when
            `text_config` says so.
        initializer_range (`float`, defaults to 0.02): standard deviation of the projector's initial weights.
    """

    model_type = "gaze2report"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
        "scanpath_config": SubConfigSpec(config_class=Gaze2ReportScanpathConfig),
        "fusion_config": SubConfigSpec(config_class=Gaze2ReportFusionConfig),
        "perception_config": SubConfigSpec(config_class=Gaze2ReportPerceptionConfig),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    scanpath_config: dict | PreTrainedConfig | None = None
    fusion_config: dict | PreTrainedConfig | None = None
    perception_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 0
    image_size: int = 224
    grid_size: int = 14
    vision_hidden_size: int | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        # The gaze parts read what they share from here, so that one number stands in one place. It happens before
        # they are built: their own checks then speak of the numbers that will be used.
        if self.vision_hidden_size is None:
            self.vision_hidden_size = channels_of(self.vision_config)
        shared = {"vision_hidden_size": self.vision_hidden_size, "grid_size": self.grid_size}
        self.scanpath_config = with_fields(self.scanpath_config, shared)
        max_fixations = field_of(self.scanpath_config, "max_fixations", Gaze2ReportScanpathConfig.max_fixations)
        self.fusion_config = with_fields(self.fusion_config, shared | {"max_fixations": max_fixations})
        self.perception_config = with_fields(
            self.perception_config,
            {
                "hidden_size": field_of(self.fusion_config, "hidden_size", Gaze2ReportFusionConfig.hidden_size),
                "grid_size": self.grid_size,
            },
        )
        super().__post_init__(**kwargs)
        self.perception_config.text_hidden_size = self.text_config.hidden_size
        # As in LLaVA: the tying of the language model must be visible at the top, or its head is silently untied.
        if not self.tie_word_embeddings and getattr(self.text_config, "tie_word_embeddings", False):
            self.tie_word_embeddings = True
        if self.image_token_id >= self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id = {self.image_token_id} lies outside the vocabulary of text_config "
                f"({self.text_config.vocab_size} tokens): enlarge the vocabulary or choose another token."
            )

    @property
    def num_visual_gaze_tokens(self) -> int:
        """Tokens that one image takes in the prompt."""
        return self.fusion_config.num_visual_gaze_tokens


def field_of(config: dict | PreTrainedConfig | None, name: str, default):
    """Value of one field of a sub-configuration given as a dict, an object or not at all."""
    if isinstance(config, dict):
        return config.get(name, default)
    return getattr(config, name, default)


def with_fields(config: dict | PreTrainedConfig | None, fields: dict) -> dict | PreTrainedConfig:
    """The sub-configuration with `fields` set, whichever way it was given."""
    if config is None or isinstance(config, dict):
        return (config or {}) | fields
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def channels_of(vision_config: dict | PreTrainedConfig | None) -> int:
    """Channels of a vision tower's last feature map, from the names that transformers' configurations use."""
    hidden_sizes = field_of(vision_config, "hidden_sizes", None)
    return hidden_sizes[-1] if hidden_sizes else field_of(vision_config, "hidden_size", 768)


__all__ = [
    "Gaze2ReportScanpathConfig",
    "Gaze2ReportFusionConfig",
    "Gaze2ReportPerceptionConfig",
    "Gaze2ReportConfig",
]
