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
"""Gaze2Report: a chest film in; a report, and where the model looked while writing it, out.

    vision tower -> scanpath model -> fusion graph -> projector -> language model
                                                   -> perception heads

The towers are transformers' own; the gaze parts stand in the sibling files. The system follows Gaze2Report (arXiv
2604.08600: predicted scanpath, graph, visual-gaze tokens, no gaze needed at inference), with the findings of Eyes on
the Image (arXiv 2508.13068) and the evidence of GazeX (arXiv 2604.14316). No table of the Gaze2Report paper was
available to us: layer sizes and losses are ours.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_gaze2report import Gaze2ReportConfig
from .modeling_fusion import Gaze2ReportFusionModel
from .modeling_grid import expected_heat_map, without_autocast
from .modeling_perception import Gaze2ReportFindings, Gaze2ReportPerceptionModel
from .modeling_scanpath import Gaze2ReportScanpath, Gaze2ReportScanpathModel

# Where the gaze of an image comes from: the numbers of the `gaze_source` tensor.
GAZE_SOURCES = ("none", "predicted", "recorded")
NO_GAZE, PREDICTED_GAZE, RECORDED_GAZE = range(3)


@auto_docstring(
    custom_intro="""
    All that is made of the images before any text; one row per image. Places are in [0, 1] of the square.
    """
)
@dataclass
class Gaze2ReportImageFeatures(BaseModelOutputWithPooling):
    r"""
    pooler_output (`list[torch.Tensor]`): per image the visual-gaze tokens in the width of the language model, (T, d).
    last_hidden_state (`torch.Tensor` of shape `(B, P, C)`): patch features of the vision tower.
    gaze_source (`torch.Tensor` of shape `(B,)`): 0 none, 1 predicted, 2 recorded.
    fixations (`torch.Tensor` of shape `(B, N, 3)`): the gaze that was used: x, y, duration in seconds.
    fixation_mask (`torch.Tensor` of shape `(B, N)`): true where a fixation stands.
    token_fixations (`torch.Tensor` of shape `(B, K)`): the fixation that each fixation slot holds, -1 for none.
    heat_map (`torch.Tensor` of shape `(B, P)`): where dwell time fell, summing to one.
    readout_attention (`torch.Tensor` of shape `(B, P)`): attention of the global token over the patches.
    order_scores (`torch.Tensor` of shape `(B, N)`): how late in a reading each fixation would come, whatever order they
        were given in; they compare within a film.
    findings ([`Gaze2ReportFindings`]): finding logits, maps and boxes, region boxes, image embedding.
    """

    gaze_source: torch.LongTensor | None = None
    fixations: torch.FloatTensor | None = None
    fixation_mask: torch.BoolTensor | None = None
    token_fixations: torch.LongTensor | None = None
    heat_map: torch.FloatTensor | None = None
    readout_attention: torch.FloatTensor | None = None
    order_scores: torch.FloatTensor | None = None
    findings: Gaze2ReportFindings | None = None


@auto_docstring(
    custom_intro="""
    Output of the language model without its head.
    """
)
@dataclass
class Gaze2ReportModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_features ([`Gaze2ReportImageFeatures`]): what the images gave; absent once they are in the cache.
    """

    image_features: Gaze2ReportImageFeatures | None = None


@auto_docstring(
    custom_intro="""
    Output of the language model.
    """
)
@dataclass
class Gaze2ReportCausalLMOutputWithPast(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `(1,)`): cross-entropy of the report, when `labels` are given.
    logits (`torch.Tensor` of shape `(B, L, vocab_size)`): scores of every next token.
    past_key_values (`Cache`): keys and values of the tokens so far.
    hidden_states (`tuple[torch.Tensor]`): states of the language model, on request.
    attentions (`tuple[torch.Tensor]`): attentions of the language model, on request.
    image_features ([`Gaze2ReportImageFeatures`]): what the images gave; absent once they are in the cache.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor] | None = None
    attentions: tuple[torch.FloatTensor] | None = None
    image_features: Gaze2ReportImageFeatures | None = None


class Gaze2ReportValueProjection(nn.Linear):
    """What was found in numbers -> an embedding of the language model. It begins at zero: nothing changes at first."""


class Gaze2ReportProjector(nn.Module):
    """Visual-gaze tokens -> embeddings of the language model, at the scale that its own embeddings have.

    With `perception_config.project_findings` the global token, which comes first, also takes in what was found in
    numbers: behind the norms, where what is rare or faint does not drown among all else that a token says.

    Shapes: tokens (B, T, D), values (B, V), which nothing is made of without that switch -> (B, T, d).
    """

    def __init__(self, config: Gaze2ReportConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.norm_in = nn.LayerNorm(config.fusion_config.hidden_size, eps=config.fusion_config.layer_norm_eps)
        self.linear_1 = nn.Linear(config.fusion_config.hidden_size, 2 * width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(2 * width, width)
        self.norm_out = nn.LayerNorm(width, eps=config.fusion_config.layer_norm_eps)
        self.scale = nn.Parameter(torch.empty(()))
        self.values = None
        # CODEPATH: the embedded checkpoint tells findings in numbers; models made without that switch do not.
        if config.perception_config.project_findings:
            self.values = Gaze2ReportValueProjection(config.perception_config.num_values, width)

    def forward(self, tokens: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        states = self.linear_2(self.act(self.linear_1(self.norm_in(tokens))))
        states = self.scale * self.norm_out(states)
        if self.values is None:
            return states
        told = self.values(values).unsqueeze(1)
        return states + nn.functional.pad(told, (0, 0, 0, states.shape[1] - 1))


@auto_docstring
class Gaze2ReportPreTrainedModel(PreTrainedModel):
    config: Gaze2ReportConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Coordinates and likelihoods do not survive half precision: one bfloat16 step at x = 0.5 is a pixel of 256.
    _keep_in_fp32_modules_strict = ["scanpath", "fusion", "perception"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Gaze2ReportValueProjection):
            init.zeros_(module.weight)
        if isinstance(module, Gaze2ReportProjector):
            # A unit-norm layer output times this has the norm of a freshly initialised text embedding.
            init.constant_(module.scale, getattr(self.config.text_config, "initializer_range", 0.02))


@auto_docstring(
    custom_intro="""
    Vision tower, scanpath model, fusion graph, perception heads, and the language model without its head.
    """
)
class Gaze2ReportModel(Gaze2ReportPreTrainedModel):
    def __init__(self, config: Gaze2ReportConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.scanpath = Gaze2ReportScanpathModel(config.scanpath_config)
        self.fusion = Gaze2ReportFusionModel(config.fusion_config)
        self.perception = Gaze2ReportPerceptionModel(config.perception_config)
        self.projector = Gaze2ReportProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_patch_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        r"""
        Run the vision tower; `last_hidden_state` of the output is (B, P, C), row by row, whatever the tower gives.

        Raises:
            ValueError: the tower gives fewer features than `grid_size` x `grid_size`.
        """
        outputs = self.vision_tower(pixel_values=pixel_values, return_dict=True, **kwargs)
        features = outputs.last_hidden_state
        if features.dim() == 4:
            features = features.flatten(2).transpose(1, 2)  # a feature map (B, C, G, G)
        num_patches = self.config.grid_size**2
        if features.shape[1] < num_patches:
            raise ValueError(
                f"The vision tower gives {features.shape[1]} features for images of {tuple(pixel_values.shape[-2:])} "
                f"pixels, but grid_size = {self.config.grid_size} asks for {num_patches}: set grid_size to the tower's "
                f"patches along one side, and image_size to the size it was built for."
            )
        # What stands before the patches (class and register tokens) is left out.
        outputs.last_hidden_state = features[:, features.shape[1] - num_patches :]
        return outputs

    @can_return_tuple
    @auto_docstring(custom_intro="Everything that the images give: gaze, graph, findings and visual-gaze tokens.")
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        film_boxes: torch.FloatTensor | None = None,
        fixations: torch.FloatTensor | None = None,
        fixation_mask: torch.BoolTensor | None = None,
        gaze_source: torch.LongTensor | None = None,
        soft_gaze: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Gaze2ReportImageFeatures:
        r"""
        film_boxes (`torch.FloatTensor` of shape `(num_images, 4)`, *optional*):
            x0, y0, x1, y1 of the film inside the square; predicted gaze stays inside.
        fixations (`torch.FloatTensor` of shape `(num_images, num_fixations, 3)`, *optional*):
            Recorded gaze: x, y in [0, 1] of the square, duration in seconds, in the order of reading.
        fixation_mask (`torch.BoolTensor` of shape `(num_images, num_fixations)`, *optional*):
            True where a fixation stands. An image with none has its gaze predicted.
        gaze_source (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            0 no gaze, 1 predicted, 2 recorded, per image. Left out: recorded where there is a fixation, else predicted.
        soft_gaze (`bool`, *optional*, defaults to `False`):
            Let gradients reach the scanpath model through the map that it expects of predicted gaze. Changes no value.
        """
        outputs = self.get_patch_features(pixel_values, **kwargs)
        patches = outputs.last_hidden_state
        fixations, fixation_mask, gaze_source = self.select_gaze(
            patches, film_boxes, fixations, fixation_mask, gaze_source
        )
        expected = (
            self.expected_heat_map(patches, fixations, fixation_mask, gaze_source, film_boxes) if soft_gaze else None
        )
        fused = self.fusion(patches, fixations, fixation_mask, expected_heat_map=expected)
        findings = self.perception(fused.patch_states, fused.global_state, pixel_values=pixel_values)
        tokens = self.perception.mark_tokens(fused.tokens, findings, self.config.fusion_config.region_grid_size)
        dtype = self.projector.linear_1.weight.dtype
        tokens = self.projector(tokens.to(dtype), self.perception.values(findings).to(dtype))
        return Gaze2ReportImageFeatures(
            pooler_output=list(tokens),
            last_hidden_state=patches,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            gaze_source=gaze_source,
            fixations=fixations,
            fixation_mask=fixation_mask,
            token_fixations=fused.token_fixations,
            heat_map=fused.heat_map,
            readout_attention=fused.readout_attention,
            order_scores=self.perception.score_order(fused.fixation_states),
            findings=findings,
        )

    def select_gaze(
        self,
        patches: torch.Tensor,
        film_boxes: torch.Tensor | None,
        fixations: torch.Tensor | None,
        fixation_mask: torch.Tensor | None,
        gaze_source: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Recorded, predicted or no gaze for every image. Returns fixations (B, N, 3), mask (B, N) and source (B,)."""
        num_images, device = patches.shape[0], patches.device
        max_fixations = self.config.scanpath_config.max_fixations
        if fixations is None:
            fixations = torch.zeros(num_images, 0, 3, device=device)
        elif fixations.shape[0] != num_images or fixations.shape[-1] != 3:
            raise ValueError(
                f"fixations has shape {tuple(fixations.shape)}, but {num_images} images need "
                f"({num_images}, num_fixations, 3): x, y and duration."
            )
        if fixations.shape[1] > max_fixations:
            raise ValueError(
                f"{fixations.shape[1]} fixations were given but scanpath_config.max_fixations is {max_fixations}: cut "
                "the scanpath, or build the model with a larger max_fixations."
            )
        if fixation_mask is None:
            fixation_mask = torch.ones(fixations.shape[:2], dtype=torch.bool, device=device)
        fixation_mask = fixation_mask.bool()
        if gaze_source is None:
            gaze_source = torch.where(fixation_mask.any(-1), RECORDED_GAZE, PREDICTED_GAZE)
        is_predicted = gaze_source == PREDICTED_GAZE
        fixation_mask = fixation_mask & (gaze_source == RECORDED_GAZE).unsqueeze(-1)
        # One look at the values spares a whole decoding where nothing is to be predicted.
        if not torch.compiler.is_compiling() and not is_predicted.any():
            return fixations.float(), fixation_mask, gaze_source

        predicted = self.scanpath.predict(patches, film_boxes=film_boxes)
        longest = max(fixations.shape[1], predicted.mask.shape[-1])
        fixations = nn.functional.pad(fixations.float(), (0, 0, 0, longest - fixations.shape[1]))
        fixation_mask = nn.functional.pad(fixation_mask, (0, longest - fixation_mask.shape[1]))
        missing = longest - predicted.mask.shape[-1]
        predicted_fixations = nn.functional.pad(predicted.fixations[:, 0], (0, 0, 0, missing))
        predicted_mask = nn.functional.pad(predicted.mask[:, 0], (0, missing))
        fixations = torch.where(is_predicted[:, None, None], predicted_fixations, fixations)
        return fixations, torch.where(is_predicted[:, None], predicted_mask, fixation_mask), gaze_source

    @without_autocast
    def expected_heat_map(
        self,
        patches: torch.Tensor,
        fixations: torch.Tensor,
        fixation_mask: torch.Tensor,
        gaze_source: torch.Tensor,
        film_boxes: torch.Tensor | None,
    ) -> torch.Tensor:
        """Where the scanpath model expects the dwell time of its own predictions, (B, P); a constant for other gaze."""
        predicted_mask = fixation_mask & (gaze_source == PREDICTED_GAZE).unsqueeze(-1)
        scores = self.scanpath(patches, fixations, predicted_mask, film_boxes=film_boxes)
        return expected_heat_map(
            scores.location_log_probs,
            fixations,
            predicted_mask,
            self.fusion.grid(),
            self.config.fusion_config.heat_map_sigma,
        )

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.BoolTensor:
        """Where visual-gaze tokens belong, (B, L, 1), after checking that there are as many places as tokens."""
        if input_ids is None:
            placeholder = self.get_input_embeddings()(
                torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            )
            mask = (inputs_embeds == placeholder).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        num_places = mask.sum()
        mask = mask.unsqueeze(-1).to(inputs_embeds.device)
        torch_compilable_check(
            num_places * inputs_embeds.shape[-1] == image_features.numel(),
            f"The prompt holds {num_places} image placeholders, but the images give {image_features.shape[0]} tokens: "
            f"each image needs exactly {self.config.num_visual_gaze_tokens} placeholders.",
        )
        return mask

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        film_boxes: torch.FloatTensor | None = None,
        fixations: torch.FloatTensor | None = None,
        fixation_mask: torch.BoolTensor | None = None,
        gaze_source: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, Gaze2ReportImageFeatures] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Gaze2ReportModelOutputWithPast:
        r"""
        film_boxes (`torch.FloatTensor` of shape `(num_images, 4)`, *optional*):
            x0, y0, x1, y1 of the film inside the square.
        fixations (`torch.FloatTensor` of shape `(num_images, num_fixations, 3)`, *optional*):
            Recorded gaze: x, y in [0, 1] of the square, duration in seconds.
        fixation_mask (`torch.BoolTensor` of shape `(num_images, num_fixations)`, *optional*):
            True where a fixation stands.
        gaze_source (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            0 no gaze, 1 predicted, 2 recorded, per image.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": ...}` with the output of `get_image_features`, in place of `pixel_values`.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_features = mm_encoder_outputs.get("image") if mm_encoder_outputs is not None else None
        if pixel_values is not None:
            image_features = self.get_image_features(
                pixel_values=pixel_values,
                film_boxes=film_boxes,
                fixations=fixations,
                fixation_mask=fixation_mask,
                gaze_source=gaze_source,
                return_dict=True,
            )
        if image_features is not None:
            tokens = torch.cat(list(image_features.pooler_output)).to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds, image_features=tokens)
            inputs_embeds = inputs_embeds.masked_scatter(mask, tokens)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return Gaze2ReportModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
        )


@auto_docstring(custom_intro="The model that writes reports.")
class Gaze2ReportForConditionalGeneration(Gaze2ReportPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: Gaze2ReportConfig):
        super().__init__(config)
        self.model = Gaze2ReportModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Most language models call their input embedding `embed_tokens`; GPT-2 says `wte`, others other things.
        embedding = self.model.language_model.get_input_embeddings()
        name = next(name for name, module in self.model.language_model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def _expand_inputs_for_generation(self, **kwargs):
        # `generate` repeats visual-gaze tokens per beam inside the features it was given. A caller who uses the same
        # features twice would then see one film's tokens in another's prompt, so it works on a copy.
        encoded = kwargs.get("mm_encoder_outputs")
        if encoded is not None:
            kwargs["mm_encoder_outputs"] = {name: copy.copy(features) for name, features in encoded.items()}
        return super()._expand_inputs_for_generation(**kwargs)

    @auto_docstring
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        film_boxes: torch.FloatTensor | None = None,
        fixations: torch.FloatTensor | None = None,
        fixation_mask: torch.BoolTensor | None = None,
        gaze_source: torch.LongTensor | None = None,
        soft_gaze: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Gaze2ReportImageFeatures:
        r"""
        film_boxes (`torch.FloatTensor` of shape `(num_images, 4)`, *optional*):
            x0, y0, x1, y1 of the film inside the square.
        fixations (`torch.FloatTensor` of shape `(num_images, num_fixations, 3)`, *optional*):
            Recorded gaze: x, y in [0, 1] of the square, duration in seconds.
        fixation_mask (`torch.BoolTensor` of shape `(num_images, num_fixations)`, *optional*):
            True where a fixation stands.
        gaze_source (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            0 no gaze, 1 predicted, 2 recorded, per image.
        soft_gaze (`bool`, *optional*, defaults to `False`):
            Let gradients reach the scanpath model through the map that it expects of predicted gaze. Changes no value.
        """
        return self.model.get_image_features(
            pixel_values=pixel_values,
            film_boxes=film_boxes,
            fixations=fixations,
            fixation_mask=fixation_mask,
            gaze_source=gaze_source,
            soft_gaze=soft_gaze,
            **kwargs,
        )

    @torch.no_grad()
    def predict_scanpath(
        self,
        pixel_values: torch.FloatTensor,
        num_samples: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        film_boxes: torch.FloatTensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Gaze2ReportScanpath:
        """Where a reader would look.

        Args:
            pixel_values: (B, 3, S, S) films from the processor.
            num_samples: readings per film.
            do_sample: draw readings; otherwise the likeliest one.
            temperature: above 1 more varied, below 1 more alike.
            film_boxes: (B, 4) x0, y0, x1, y1 of the film inside the square; nothing beside it is looked at.
            generator: source of randomness for sampling.

        Returns:
            fixations (B, num_samples, N, 3) as x, y in [0, 1] of the square and duration in seconds, mask
            (B, num_samples, N) and log_probability (B, num_samples).
        """
        patches = self.model.get_patch_features(pixel_values).last_hidden_state
        return self.model.scanpath.predict(
            patches,
            num_samples=num_samples,
            do_sample=do_sample,
            temperature=temperature,
            film_boxes=film_boxes,
            generator=generator,
        )

    def score_scanpath(
        self,
        pixel_values: torch.FloatTensor,
        fixations: torch.FloatTensor,
        fixation_mask: torch.BoolTensor | None = None,
        film_boxes: torch.FloatTensor | None = None,
    ) -> torch.FloatTensor:
        """How well the model foresaw given fixations: log-likelihood per fixation, (B, N) nats, 0 where masked.

        Args:
            pixel_values: (B, 3, S, S) films from the processor.
            fixations: (B, N, 3) x, y in [0, 1] of the square and duration in seconds.
            fixation_mask: (B, N), true where a fixation stands; the true ones come first.
            film_boxes: (B, 4) x0, y0, x1, y1 of the film inside the square.

        Raises:
            ValueError: more fixations than `scanpath_config.max_fixations`.
        """
        patches = self.model.get_patch_features(pixel_values).last_hidden_state
        return self.model.scanpath(patches, fixations, fixation_mask, film_boxes=film_boxes).log_likelihood

    def predict_findings(
        self,
        pixel_values: torch.FloatTensor,
        fixations: torch.FloatTensor | None = None,
        fixation_mask: torch.BoolTensor | None = None,
        film_boxes: torch.FloatTensor | None = None,
    ) -> Gaze2ReportFindings:
        """Findings and regions: logits (B, 14), maps (B, 14, P), boxes (B, 14, 4), region_boxes (B, 17, 4); where the
        model grades findings and tells views apart, severity_logits (B, 14, 4) and view_logits (B, 2) as well.

        Args:
            pixel_values: (B, 3, S, S) films from the processor.
            fixations: (B, N, 3) recorded gaze; predicted when left out.
            fixation_mask: (B, N), true where a fixation stands.
            film_boxes: (B, 4) x0, y0, x1, y1 of the film inside the square.
        """
        return self.model.get_image_features(
            pixel_values, film_boxes=film_boxes, fixations=fixations, fixation_mask=fixation_mask, return_dict=True
        ).findings

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        film_boxes: torch.FloatTensor | None = None,
        fixations: torch.FloatTensor | None = None,
        fixation_mask: torch.BoolTensor | None = None,
        gaze_source: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, Gaze2ReportImageFeatures] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Gaze2ReportCausalLMOutputWithPast:
        r"""
        film_boxes (`torch.FloatTensor` of shape `(num_images, 4)`, *optional*):
            x0, y0, x1, y1 of the film inside the square.
        fixations (`torch.FloatTensor` of shape `(num_images, num_fixations, 3)`, *optional*):
            Recorded gaze: x, y in [0, 1] of the square, duration in seconds.
        fixation_mask (`torch.BoolTensor` of shape `(num_images, num_fixations)`, *optional*):
            True where a fixation stands.
        gaze_source (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            0 no gaze, 1 predicted, 2 recorded, per image.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": ...}` with the output of `get_image_features`, in place of `pixel_values`.

        Example:

        ```python
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor

        >>> processor = AutoProcessor.from_pretrained("hub_space/model", trust_remote_code=True)
        >>> model = AutoModelForImageTextToText.from_pretrained("hub_space/model", trust_remote_code=True)
        >>> inputs = processor(images="film.png", return_tensors="pt")
        >>> print(processor.batch_decode_report(model.generate(**inputs))[0])
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            film_boxes=film_boxes,
            fixations=fixations,
            fixation_mask=fixation_mask,
            gaze_source=gaze_source,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, keep])

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return Gaze2ReportCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=outputs.image_features,
        )


__all__ = [
    "GAZE_SOURCES",
    "Gaze2ReportPreTrainedModel",
    "Gaze2ReportModel",
    "Gaze2ReportForConditionalGeneration",
    "Gaze2ReportImageFeatures",
]
