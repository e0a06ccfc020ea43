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
"""Processor: films, gaze and instructions -> tensors; tokens and features -> reports with their evidence.

What a user writes is data: a placeholder or special token inside an instruction or question reaches the model as plain
text. Only prompts that `apply_chat_template` rendered (with every message's text made harmless) carry structure.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import auto_docstring, logging

from .dicom_sr import dicom_report, read_dicom_source
from .drafts import Seen, answer_contradiction, contradiction, said_in_report
from .errors import InputError
from .evidence import (
    FINDING_THRESHOLD,
    Observation,
    Rereadings,
    WrittenReport,
    attention_to_fixations,
    evidence_record,
)
from .evidence_comparison import compare_evidence
from .fhir import fhir_report
from .gaze_geometry import boxes_to_image, boxes_to_square, check_gaze, points_to_image, points_to_square
from .grounding import (
    GroundedText,
    Looking,
    box_text,
    meant_boxes,
    phrase_answer,
    pieces_without_marks,
    read_grounded_text,
    read_looking,
    read_order,
    seen_boxes,
)
from .image_processing_gaze2report import load_film
from .overlay import draw_overlay
from .overlay_html import draw_html, draw_svg
from .prompts import DEFAULT_CHAT_TEMPLATE, INSTRUCTIONS, WORD_JOINER, RenderedPrompt
from .report_attributes import SEVERITIES, UNGRADED, VIEWS
from .report_labels import FINDINGS
from .structured import Keyword, keywords_of_film, keywords_text, region_boxes_by_name, side_of_map, template_report

logger = logging.get_logger(__name__)

# Tokens before a token that settle how it is decoded: no character takes more.
DECODING_CONTEXT = 8
# Tokens kept free for an answer when the length of a prompt is checked.
ANSWER_TOKENS = 128
GAZE_SOURCES = ("none", "predicted", "recorded")


@auto_docstring
class Gaze2ReportProcessor(ProcessorMixin):
    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        image_token="<|visual_gaze|>",
        num_visual_gaze_tokens=66,
        max_fixations=50,
        finding_threshold=FINDING_THRESHOLD,
        finding_thresholds=None,
        finding_temperatures=None,
        max_context_tokens=512,
        **kwargs,
    ):
        r"""
        image_token (`str`, *optional*, defaults to `"<|visual_gaze|>"`):
            Placeholder of an image in the prompt; one token of the tokenizer.
        num_visual_gaze_tokens (`int`, *optional*, defaults to 66):
            Tokens that one image takes in the prompt; as in the model's configuration.
        max_fixations (`int`, *optional*, defaults to 50):
            Longest scanpath the model takes, in fixations. Of a longer recording the fixations dwelt on longest are
            kept, in their order.
        finding_threshold (`float`, *optional*, defaults to 0.5):
            Probability from which the evidence places a finding.
        finding_thresholds (`list[float]`, *optional*):
            Probability from which each of the 14 findings counts as seen, in the order of `FINDINGS`; chosen on
            validation data. Left out, `finding_threshold` holds for all.
        finding_temperatures (`list[float]`, *optional*):
            What the logit of each of the 14 findings is divided by before it becomes a probability; fitted on
            validation data. Left out, 1 for all.
        max_context_tokens (`int`, *optional*, defaults to 512):
            Longest sequence of the language model, in tokens: film, prompt and answer together.
        """
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"The tokenizer has no token {image_token!r}: add it with "
                f"tokenizer.add_special_tokens({{'additional_special_tokens': [{image_token!r}]}}), or name another "
                "one as image_token."
            )
        self.num_visual_gaze_tokens = num_visual_gaze_tokens
        self.max_fixations = max_fixations
        self.finding_threshold = finding_threshold
        for name, values in {
            "finding_thresholds": finding_thresholds,
            "finding_temperatures": finding_temperatures,
        }.items():
            if values is not None and (len(values) != len(FINDINGS) or min(values) <= 0):
                raise ValueError(f"{name} must be {len(FINDINGS)} numbers above 0, one for each finding, not {values}.")
            setattr(self, name, None if values is None else [float(value) for value in values])
        self.max_context_tokens = max_context_tokens
        super().__init__(image_processor, tokenizer, chat_template=chat_template or DEFAULT_CHAT_TEMPLATE)

    @property
    def model_input_names(self) -> list[str]:
        """Names that are always returned; `fixations`, `fixation_mask` and `gaze_source` follow what was given."""
        return [*self.tokenizer.model_input_names, "pixel_values", "film_boxes"]

    @auto_docstring(custom_intro="Tensors for the model.")
    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        gaze=None,
        gaze_source: str | list[str] | None = None,
        is_rendered: bool | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        images (`str`, `Path`, `PIL.Image.Image`, `np.ndarray`, `Film` or nested lists of them, *optional*):
            Films: a path (PNG, JPEG, TIFF, DICOM), a picture, or an array (H, W) or (H, W, 3). A list makes one prompt
            per film; a list of lists one prompt per inner list, with several films in it.
        text (`str` or `list[str]`, *optional*):
            Instruction or question, one for all prompts or one for each; left out, the report is asked for. A prompt
            that `apply_chat_template` rendered is taken as it is.
        gaze (`np.ndarray` or nested lists of arrays and `None`, *optional*):
            Recorded gaze per film: (N, 3) x, y in [0, 1] of the original image and duration in seconds, or `None` to
            have it predicted.
        gaze_source (`str` or `list[str]`, *optional*):
            `"recorded"`, `"predicted"`, `"none"`, or `"auto"`, the default: recorded where given, else predicted. One
            for all films or one for each.
        is_rendered (`bool`, *optional*):
            Whether `text` is a rendered prompt although it lost its type, for example in a data set.

        Returns:
            [`BatchFeature`]: `pixel_values` (num_images, 3, S, S), `film_boxes` (num_images, 4) where the film lies in
            the square, `input_ids` and `attention_mask`; `fixations` (num_images, N, 3) in the square and
            `fixation_mask` (num_images, N) when gaze was given; `gaze_source` (num_images,) when it is not automatic.
        """
        studies = None if images is None else group_images(images)
        if text is None and studies is None:
            raise InputError("There is nothing to process: give images, text or both.")
        prompts = self.render_prompts(text, studies, bool(is_rendered))
        films = None if studies is None else [film for study in studies for film in study]
        self.check_placeholders(prompts, 0 if films is None else len(films))

        text_kwargs = kwargs.get("text_kwargs", {})
        chosen = {**self.tokenizer.init_kwargs, **text_kwargs, **kwargs}
        if "padding_side" not in chosen:
            # Generation continues at the right end of prompts that differ in length.
            kwargs["padding_side"] = "left"
        if "padding" not in chosen:
            kwargs["padding"] = len(prompts) > 1
        features = super().__call__(images=films, text=[str(prompt) for prompt in prompts], **kwargs)
        if films is None:
            if gaze is not None:
                raise InputError("gaze was given without an image: give both, or neither.")
            return features

        image_sizes = np.asarray(features.pop("image_sizes"))
        side = features["pixel_values"][0].shape[-1]
        whole_film = np.broadcast_to([0.0, 0.0, 1.0, 1.0], (len(films), 4))
        features["film_boxes"] = boxes_to_square(whole_film, image_sizes, side).astype(np.float32)
        features |= self.gaze_features(gaze, gaze_source or "auto", image_sizes, side)
        return BatchFeature(
            dict(features), tensor_type=kwargs.get("return_tensors") or text_kwargs.get("return_tensors")
        )

    # -- prompts ------------------------------------------------------------------------------------------------------

    def render_prompts(self, text, studies: list[list] | None, is_rendered: bool) -> list[str]:
        """One prompt per study: rendered ones as they are, instructions as the user's turn of a conversation."""
        texts = [text] if isinstance(text, str) else list(text if text is not None else [INSTRUCTIONS["report"]])
        if not texts:
            raise InputError("There is no text to process: the list is empty. Leave text out to ask for the report.")
        for index, one in enumerate(texts):
            if not isinstance(one, str):
                raise InputError(f"text {index} (counting from 0) is a {type(one).__name__}; expected a string.")
        if is_rendered or all(isinstance(one, RenderedPrompt) for one in texts):
            return texts
        if studies is None:
            studies = [[] for _ in texts]
        if len(texts) == 1:
            texts = texts * len(studies)
        if len(texts) != len(studies):
            raise InputError(
                f"{len(texts)} texts were given for {len(studies)} prompts: give one text for all or one for each. "
                "Several films belong in one prompt when they stand in an inner list."
            )
        conversations = [
            [{"role": "user", "content": [*([{"type": "image"}] * len(study)), {"type": "text", "text": one}]}]
            for one, study in zip(texts, studies, strict=True)
        ]
        return self.apply_chat_template(conversations, add_generation_prompt=True)

    def task_prompt(
        self,
        task: str,
        question: str | None = None,
        phrase: str | None = None,
        box: Sequence[float] | None = None,
        findings: Sequence[Keyword | dict] | None = None,
        film=None,
        count: int | None = None,
    ) -> str:
        """The user's turn for a task, to be given to the processor as `text`.

        Args:
            task: one of `INSTRUCTIONS`.
            question: what is asked ("ask").
            phrase: what is looked for ("ground").
            box: x0, y0, x1, y1 in [0, 1] of the original image ("describe").
            findings: keywords ("structured"), as `post_process_findings` gives them.
            film: the film that `box` lies on.
            count: number of shuffled parts ("order").

        Raises:
            InputError: an unknown task; something that the task needs is missing, empty or no box; a question or phrase
                that does not fit into the language model's context.
        """
        if task not in INSTRUCTIONS:
            raise InputError(f"There is no task {task!r}; the tasks are {', '.join(INSTRUCTIONS)}.")
        values = {}
        if task == "ask":
            values["question"] = self.user_text("question", question)
        elif task == "ground":
            values["phrase"] = self.user_text("phrase", phrase)
        elif task == "describe":
            values["box"] = box_text(self.box_in_square(box, film))
        elif task == "structured":
            if findings is None:
                raise InputError("The task 'structured' needs findings; an empty list says that there are none.")
            values["findings"] = keywords_text(
                [one if isinstance(one, Keyword) else Keyword(**one) for one in findings]
            )
        elif task == "order":
            if count is None or count < 2:
                raise InputError(f"The task 'order' needs the count of parts, at least 2, not {count}.")
            values["count"] = count
        return INSTRUCTIONS[task].format(**values)

    def user_text(self, name: str, text: str | None) -> str:
        """A question or phrase of a user on one line, after checking that it is there and not too long."""
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"The {name} is empty: write at least a word.")
        text = " ".join(text.split())
        instruction = max(len(self.tokenizer.tokenize(one)) for one in INSTRUCTIONS.values())
        limit = self.max_context_tokens - self.num_visual_gaze_tokens - ANSWER_TOKENS - instruction
        # No token is longer than a few hundred characters: what is far too long is not even counted.
        length = len(self.tokenizer.tokenize(self.harmless_text(text[: 512 * limit])))
        if length > limit:
            raise InputError(
                f"The {name} takes {length} tokens; at most {limit} fit beside the film and the answer into the "
                f"language model's context of {self.max_context_tokens} tokens. Shorten it."
            )
        return text

    def box_in_square(self, box: Sequence[float] | None, film) -> np.ndarray:
        """A user's box in [0, 1] of the square that the model sees."""
        if film is None:
            raise InputError("A box needs the film that it lies on: give both.")
        try:
            corners = np.asarray(box, dtype=np.float64)
        except (TypeError, ValueError):
            corners = np.zeros(0)
        if corners.shape != (4,) or not np.isfinite(corners).all():
            raise InputError(f"The box must be four numbers x0, y0, x1, y1 in [0, 1] of the original image, not {box}.")
        x0, y0, x1, y1 = corners
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise InputError(
                f"The box {corners.tolist()} must have x0 < x1 and y0 < y1, all in [0, 1] of the original image."
            )
        film = load_film(film)
        return boxes_to_square(corners, (film.height, film.width), self.image_processor.size["height"])

    def check_placeholders(self, prompts: Sequence[str], num_images: int) -> None:
        num_places = sum(prompt.count(self.image_token) for prompt in prompts)
        if num_places != num_images:
            raise InputError(
                f"The prompts have places for {num_places} images ({self.image_token}), but {num_images} were given."
            )

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):
        """As transformers' own, with two differences: text inside messages is data, and the result says that it is
        structure, so that calling the processor on it needs no flag.
        """
        kwargs.setdefault("image_token", self.image_token)
        if kwargs.get("tokenize"):
            kwargs["processor_kwargs"] = (kwargs.get("processor_kwargs") or {}) | {"is_rendered": True}
        rendered = super().apply_chat_template(self.harmless_conversation(conversation), chat_template, **kwargs)
        if isinstance(rendered, str):
            return RenderedPrompt(rendered)
        if isinstance(rendered, list) and all(isinstance(one, str) for one in rendered):
            return [RenderedPrompt(one) for one in rendered]
        return rendered

    def harmless_conversation(self, conversation):
        """The conversation, or list of conversations, with every text made harmless; the user's own is not changed."""
        if isinstance(conversation, (list, tuple)):
            return [self.harmless_conversation(item) for item in conversation]
        message = dict(conversation)
        content = message.get("content")
        if isinstance(content, str):
            message["content"] = self.harmless_text(content)
        elif content:
            message["content"] = [
                part | {"text": self.harmless_text(part["text"])} if isinstance(part.get("text"), str) else dict(part)
                for part in content
            ]
        return message

    def harmless_text(self, text: str) -> str:
        """Text in which no token of the tokenizer's own making is left: a word joiner stands inside each.

        Raises:
            InputError: the text holds a lone surrogate, which no tokenizer can carry.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"The text is not valid Unicode at character {error.start}: {error.reason}.") from error
        reserved = sorted(
            {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}, key=len, reverse=True
        )
        for token in reserved:
            while len(token) > 1 and token in text:
                text = text.replace(token, token[0] + WORD_JOINER + token[1:])
        return text

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.num_visual_gaze_tokens

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Placeholders that images of these sizes take: always the same number."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_visual_gaze_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    # -- gaze ---------------------------------------------------------------------------------------------------------

    def gaze_features(self, gaze, gaze_source, image_sizes: np.ndarray, side: int) -> dict[str, np.ndarray]:
        """Fixations in the square with their mask, and the source of each image's gaze where it is not automatic."""
        num_images = len(image_sizes)
        recordings = [None] * num_images if gaze is None else flatten_gaze(gaze)
        if len(recordings) != num_images:
            raise InputError(
                f"gaze of {len(recordings)} images was given for {num_images} images: give one array (N, 3) or None "
                "for each."
            )
        recordings = [
            None if one is None else self.shorten(check_gaze(one, f"gaze of image {index}"), f"gaze of image {index}")
            for index, one in enumerate(recordings)
        ]
        features = {}
        sources = [gaze_source] * num_images if isinstance(gaze_source, str) else list(gaze_source)
        if len(sources) != num_images:
            raise InputError(f"{len(sources)} gaze sources were given for {num_images} images: give one for each.")
        numbers = [self.source_number(source, index, recordings) for index, source in enumerate(sources)]
        if any(source != "auto" for source in sources):
            features["gaze_source"] = np.array(numbers, dtype=np.int64)
        if gaze is not None:
            longest = max((len(one) for one in recordings if one is not None), default=0)
            fixations = np.zeros((num_images, longest, 3), dtype=np.float32)
            mask = np.zeros((num_images, longest), dtype=bool)
            for index, one in enumerate(recordings):
                if one is not None:
                    fixations[index, : len(one)] = points_to_square(one, image_sizes[index], side)
                    mask[index, : len(one)] = True
            features |= {"fixations": fixations, "fixation_mask": mask}
        return features

    def source_number(self, source: str, index: int, recordings: list) -> int:
        if source == "auto":
            source = "predicted" if recordings[index] is None else "recorded"
        if source not in GAZE_SOURCES:
            raise InputError(f"gaze_source = {source!r} is unknown: use 'auto', 'recorded', 'predicted' or 'none'.")
        if source == "recorded" and recordings[index] is None:
            raise InputError(f"gaze_source is 'recorded', but image {index} (counting from 0) has no gaze.")
        return GAZE_SOURCES.index(source)

    def shorten(self, gaze: np.ndarray, where: str) -> np.ndarray:
        """The fixations dwelt on longest, in their order, where there are more than the model takes."""
        if len(gaze) <= self.max_fixations:
            return gaze
        logger.warning_once(
            f"{where} has {len(gaze)} fixations; the model takes {self.max_fixations}: the longest ones are kept."
        )
        longest = np.argsort(-gaze[:, 2], kind="stable")[: self.max_fixations]
        return gaze[np.sort(longest)]

    # -- reports and evidence -----------------------------------------------------------------------------------------

    def answer_marker(self) -> str:
        """The text that stands between the last question and its answer."""
        question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        asked = self.apply_chat_template(question)
        return self.apply_chat_template(question, add_generation_prompt=True)[len(asked) :]

    def batch_decode_report(self, sequences) -> list[str]:
        """Reports from generated token ids, without the prompt where the ids hold one, and without special tokens.

        Shapes: sequences (B, L), or B sequences of token ids.
        """
        marker = self.answer_marker().strip()
        reports = []
        for text in self.tokenizer.batch_decode(sequences, skip_special_tokens=False):
            report = text.rpartition(marker)[2] if marker else text
            for token in self.tokenizer.all_special_tokens:
                report = report.replace(token, "")
            reports.append(report.strip())
        return reports

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs) -> list[str]:
        """Generated text for transformers' pipeline."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_scanpath(self, fixations, mask, image_sizes) -> list[np.ndarray]:
        """Predicted fixations in [0, 1] of each original image.

        Args:
            fixations: (B, N, 3) x, y in the square and duration in seconds.
            mask: (B, N), true where a fixation stands.
            image_sizes: (B, 2) height and width of each original image in pixels.

        Returns:
            Per image (n, 3) float64; a coordinate beside the film is put on its edge.
        """
        fixations, mask = as_numpy(fixations), as_numpy(mask).astype(bool)
        side = self.image_processor.size["height"]
        scanpaths = []
        for row, keep, size in zip(fixations, mask, image_sizes, strict=True):
            scanpath = points_to_image(row[keep].astype(np.float64), size, side)
            scanpath[:, :2] = scanpath[:, :2].clip(0, 1)
            scanpaths.append(scanpath)
        return scanpaths

    def post_process_observation(self, image_features, image_sizes) -> list[Observation]:
        """What the model saw, in [0, 1] of each original image.

        Args:
            image_features: output of the model's `get_image_features`.
            image_sizes: (B, 2) height and width of each original image in pixels.
        """
        side = self.image_processor.size["height"]
        scanpaths = self.post_process_scanpath(image_features.fixations, image_features.fixation_mask, image_sizes)
        findings = image_features.findings
        probabilities = self.finding_probabilities(findings.logits)
        return [
            Observation(
                gaze_source=GAZE_SOURCES[int(image_features.gaze_source[index])],
                fixations=scanpath,
                finding_probabilities=probabilities[index],
                finding_boxes=self.boxes_on_film(findings.boxes[index], size, side),
                region_boxes=self.boxes_on_film(findings.region_boxes[index], size, side),
                severities=likeliest_severities(log_probabilities(findings.severity_logits, index)),
                view=likeliest_view(log_probabilities(findings.view_logits, index)),
            )
            for index, (scanpath, size) in enumerate(zip(scanpaths, image_sizes, strict=True))
        ]

    def finding_probabilities(self, logits) -> np.ndarray:
        """Calibrated probabilities of the findings. Shapes: (B, 14) -> (B, 14)."""
        temperatures = np.ones(len(FINDINGS)) if self.finding_temperatures is None else self.finding_temperatures
        return (1 / (1 + np.exp(-as_numpy(logits).astype(np.float64) / temperatures))).astype(np.float32)

    @property
    def thresholds(self) -> list[float]:
        """The probability from which each finding counts as seen, in the order of `FINDINGS`."""
        return self.finding_thresholds or [self.finding_threshold] * len(FINDINGS)

    def post_process_findings(self, image_features, image_sizes) -> list[list[Keyword]]:
        """The findings that were seen on each film, as keywords with certainty, severity, region and side.

        Args:
            image_features: output of the model's `get_image_features`.
            image_sizes: (B, 2) height and width of each original image in pixels.
        """
        maps = as_numpy(image_features.findings.maps)
        lungs = as_numpy(image_features.findings.region_boxes)
        keywords = []
        for index, observation in enumerate(self.post_process_observation(image_features, image_sizes)):
            in_square = region_boxes_by_name(lungs[index])
            keywords.append(
                keywords_of_film(
                    observation.finding_probabilities,
                    self.thresholds,
                    observation.finding_boxes,
                    [side_of_map(attention, in_square) for attention in maps[index]],
                    region_boxes_by_name(observation.region_boxes),
                )
            )
        return keywords

    def parse_grounded(self, text: str) -> list[tuple[str, list[tuple[float, float, float, float]]]]:
        """Sentences with the boxes that the model wrote behind them, in [0, 1] of the square; never raises.

        Boxes that belong to no sentence come first, with an empty one.
        """
        grounded = read_grounded_text(text)
        pairs = list(zip(grounded.sentences, grounded.boxes, strict=True))
        return [("", grounded.loose_boxes), *pairs] if grounded.loose_boxes else pairs

    def post_process_grounding(
        self, texts: Sequence[str], films, image_features=None, phrases: Sequence[str] | None = None
    ) -> list[GroundedText]:
        """Texts with boxes as `text`, `sentences`, `boxes` per sentence and `loose_boxes`, in [0, 1] of each film.

        Args:
            texts: what the model wrote, as `batch_decode_report` gives it.
            films: the film of each text, as it was given to the processor.
            image_features: output of the model's `get_image_features` for the same films. With it each box becomes one
                that the perception heads saw: of the finding or region that its sentence names, else the one that
                overlaps it most. Without, boxes stay as the text has them.
            phrases: what boxes that stand in no sentence are about, for each text.
        """
        results = []
        for index, (text, film) in enumerate(zip(texts, films, strict=True)):
            grounded, film = read_grounded_text(text), load_film(film)
            seen = None
            if image_features is not None:
                findings = image_features.findings
                seen = seen_boxes(as_numpy(findings.boxes[index]), as_numpy(findings.region_boxes[index]))
            results.append(
                GroundedText(
                    grounded.text,
                    grounded.sentences,
                    [
                        self.written_boxes(boxes, film, seen, sentence)
                        for sentence, boxes in zip(grounded.sentences, grounded.boxes, strict=True)
                    ],
                    self.written_boxes(grounded.loose_boxes, film, seen, phrases[index] if phrases else ""),
                )
            )
        return results

    def post_process_phrases(self, texts: Sequence[str], phrases: Sequence[str], films, image_features) -> list[dict]:
        """What each text of the task "ground" says, as [`phrase_answer`] gives it, with boxes in [0, 1] of each film.

        Args:
            texts: what the model wrote, as `batch_decode_report` gives it.
            phrases: what it was asked for.
            films: the film of each text, as it was given to the processor.
            image_features: output of the model's `get_image_features` for the same films.
        """
        films = [load_film(film) for film in films]
        grounded = self.post_process_grounding(texts, films, image_features, phrases)
        observations = self.post_process_observation(image_features, [(film.height, film.width) for film in films])
        answers = []
        for phrase, text, film, seen in zip(phrases, grounded, films, observations, strict=True):
            answer = phrase_answer(phrase, text, seen.finding_probabilities, seen.finding_boxes, self.thresholds)
            answers.append(answer | {"warnings": [*film.warnings, *answer["warnings"]]})
        return answers

    def post_process_looking(self, texts: Sequence[str], films) -> list[Looking]:
        """What each text of the task "observe" says: sentence, clue boxes and observation box, in [0, 1] of each film.

        Args:
            texts: what the model wrote, as `batch_decode_report` gives it.
            films: the film of each text, as it was given to the processor.
        """
        results = []
        for text, film in zip(texts, films, strict=True):
            looking, film = read_looking(text), load_film(film)
            seen = self.written_boxes([looking.observation_box], film) if looking.observation_box else []
            clues = self.written_boxes(looking.clue_boxes, film)
            results.append(Looking(looking.sentence, clues, seen[0] if seen else None))
        return results

    def written_boxes(
        self, boxes: Sequence, film, seen: dict[str, list] | None = None, text: str = ""
    ) -> list[tuple[float, float, float, float]]:
        """Boxes of the square on a film, of `seen` where given those they mean; none that lie beside the film."""
        if not boxes:
            return []
        if seen is not None:
            boxes = meant_boxes(boxes, seen, text)
        side = self.image_processor.size["height"]
        moved = self.boxes_on_film(np.array(boxes), (film.height, film.width), side)
        return [tuple(box.tolist()) for box in moved if box[0] < box[2] and box[1] < box[3]]

    def post_process_order(self, texts: Sequence[str], counts: Sequence[int]) -> list[list[int] | None]:
        """The order that each text gives for its parts, as indices from 0 of the parts as they were shown, the one
        looked at first in front; `None` where a text is no order.
        """
        return [read_order(text, count) for text, count in zip(texts, counts, strict=True)]

    def contradictions(
        self, drafts: Sequence[Sequence[str]], image_features, questions: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """How far each draft of each film lies from the findings that were seen on it, in nats; 0 where it contradicts
        none. The draft to keep is the one with the smallest number.

        Args:
            drafts: per film any number of texts, as `batch_decode_report` gives them.
            image_features: output of the model's `get_image_features` for the same films.
            questions: what the texts answer, one for each film; left out, they are reports.
        """
        costs = []
        for index, (texts, seen) in enumerate(zip(drafts, self.seen_on_films(image_features), strict=True)):
            texts = [read_grounded_text(text).text for text in texts]
            if questions is None:
                several = [contradiction(said_in_report(text), seen.probabilities, seen.thresholds) for text in texts]
            else:
                several = [answer_contradiction(questions[index], text, seen) for text in texts]
            costs.append(np.array(several))
        return costs

    def seen_on_films(self, image_features) -> list[Seen]:
        """What the model saw on each film, as drafts are judged by it; boxes in [0, 1] of the square."""
        findings = image_features.findings
        return [
            Seen(
                probabilities=probabilities,
                thresholds=self.thresholds,
                boxes=as_numpy(findings.boxes[index]),
                region_boxes=as_numpy(findings.region_boxes[index]),
                severities=log_probabilities(findings.severity_logits, index),
                views=log_probabilities(findings.view_logits, index),
            )
            for index, probabilities in enumerate(self.finding_probabilities(findings.logits))
        ]

    def template_report(self, keywords: Sequence[Keyword]) -> str:
        """The deterministic report of keywords, without the language model."""
        return template_report(keywords)

    def boxes_on_film(self, boxes, image_size, side: int) -> np.ndarray:
        return boxes_to_image(as_numpy(boxes).astype(np.float64), image_size, side).clip(0, 1)

    def post_process_evidence(
        self,
        sequences,
        image_features,
        images,
        token_log_probs=None,
        token_attention=None,
        rereadings: Sequence[Rereadings] | None = None,
        model: dict | None = None,
        task: str = "report",
        strategy: str = "direct",
        prompt: str | Sequence[str] = INSTRUCTIONS["report"],
        num_drafts: int = 1,
    ) -> list[dict]:
        """Evidence records, schema `gaze2report.evidence/1`, of reports or answers on one film each.

        Boxes that the model wrote into its text (strategy "grounded") leave the text; those that the perception heads
        saw in their places become the boxes of their sentences.

        Args:
            sequences: (B, L) generated token ids, or B finished texts.
            image_features: output of the model's `get_image_features` for the same films.
            images: the films as they were given to the processor, B of them.
            token_log_probs: (B, L_new) log probabilities of the generated tokens, as `compute_transition_scores` gives
                them; without, sentences have no confidence.
            token_attention: (B, L_new, T) attention with which each generated token was written to the visual-gaze
                tokens of its film; without, sentences are tied to fixations by boxes alone.
            rereadings: per film what other scanpaths led to; without, findings do not say how many readings agree.
            model: `name_or_path`, `revision` and `package_version` of the model.
            task, strategy, prompt: how the reports were asked for; one prompt for all or one for each.
            num_drafts: of how many drafts each text is the one that contradicts the findings least.

        Raises:
            InputError: the numbers of reports, images and features differ.
        """
        films = [load_film(image) for study in group_images(images) for image in study]
        is_text = len(sequences) > 0 and isinstance(sequences[0], str)
        reports = list(sequences) if is_text else self.batch_decode_report(sequences)
        if not len(reports) == len(films) == len(image_features.fixations):
            raise InputError(
                f"{len(reports)} reports, {len(films)} images and features of {len(image_features.fixations)} images "
                "were given; evidence needs one film per report."
            )
        observations = self.post_process_observation(image_features, [(film.height, film.width) for film in films])
        prompts = [prompt] * len(films) if isinstance(prompt, str) else list(prompt)
        grounded = self.post_process_grounding(reports, films, image_features)
        records = []
        for index, (text, film, observation) in enumerate(zip(grounded, films, observations, strict=True)):
            report = WrittenReport(text.text)
            if token_log_probs is not None:
                attention = None
                if token_attention is not None:
                    attention = attention_to_fixations(
                        as_numpy(token_attention[index]),
                        as_numpy(image_features.fixations[index]),
                        as_numpy(image_features.fixation_mask[index]),
                        as_numpy(image_features.token_fixations[index]),
                    )
                report = self.written_report(text.text, sequences[index], token_log_probs[index], attention)
            report.sentence_boxes = text.boxes
            records.append(
                evidence_record(
                    report,
                    observation,
                    image=film.record,
                    model=model or {"name_or_path": None, "revision": None, "package_version": None},
                    task=task,
                    strategy=strategy,
                    prompt=prompts[index],
                    num_drafts=num_drafts,
                    warnings=film.warnings,
                    threshold=self.thresholds,
                    rereadings=None if rereadings is None else rereadings[index],
                )
            )
        return records

    def written_report(self, text: str, sequence, log_probs, fixation_attention=None) -> WrittenReport:
        """The report with the piece of text that each generated token wrote.

        Shapes: sequence (L,), log_probs (L_new,), fixation_attention (L_new, N).
        """
        token_ids = as_numpy(sequence).tolist()
        log_probs = as_numpy(log_probs).tolist()
        token_ids = token_ids[len(token_ids) - len(log_probs) :]
        special = set(self.tokenizer.all_special_ids)
        kept = [index for index, token_id in enumerate(token_ids) if token_id not in special]
        ids = [token_ids[index] for index in kept]
        # A character may take several tokens: what a token wrote is what decoding one token more adds. A few tokens
        # before it are context enough, and keep the work in proportion to the report's length.
        pieces = []
        for end in range(len(ids)):
            start = max(0, end - DECODING_CONTEXT)
            before, after = self.tokenizer.decode(ids[start:end]), self.tokenizer.decode(ids[start : end + 1])
            pieces.append(after[len(before) :])
        attention = None if fixation_attention is None else fixation_attention[kept]
        return WrittenReport(text, pieces_without_marks(pieces), [log_probs[index] for index in kept], attention)

    def draw_evidence(self, record: dict, image):
        """The film with the record's fixations, heat map and boxes, as `PIL.Image.Image`."""
        film = load_film(image)
        boxes = [(*finding["box"], finding["name"]) for finding in record["findings"] if finding["box"]]
        return draw_overlay(film.pixels, drawn_fixations(record), boxes, caption=film.name)

    def draw_sentence(self, record: dict, image, index: int):
        """The film with what one sentence of the record rests on, counting from 0, as `PIL.Image.Image`.

        Only its boxes, named after their regions, and its fixations, numbered as in the whole reading. The sentence
        stands in the footer.
        """
        film, sentence = load_film(image), record["sentences"][index]
        chosen = sentence["fixations"]
        boxes = [(*box, region or "") for box, region in zip(sentence["boxes"], sentence["box_regions"], strict=True)]
        fixations = drawn_fixations(record)[chosen]
        numbers = [fixation + 1 for fixation in chosen]
        return draw_overlay(film.pixels, fixations, boxes, caption=sentence["text"], numbers=numbers)

    def draw_html(self, record: dict, image) -> str:
        """The record as a page for a browser, in one file: the reading to play, sentences and what they rest on."""
        return draw_html(record, load_film(image).pixels)

    def draw_svg(self, record: dict, image) -> str:
        """The film with the record's reading, played once, as an SVG document."""
        return draw_svg(record, load_film(image).pixels)

    def compare_evidence(self, predicted: dict, given: dict) -> dict:
        """What changed from a film's record along predicted gaze to its record along given gaze.

        Raises:
            InputError: the records are not of one film.
        """
        return compare_evidence(predicted, given)

    def dicom_report(self, record: dict, path):
        """The record as a DICOM structured report on the DICOM file that it is about, as a `pydicom.Dataset`.

        Raises:
            InputError: pydicom or highdicom is missing, or the film is no DICOM file that a document can refer to.
        """
        return dicom_report(record, path)

    def fhir_report(self, record: dict, path=None) -> dict:
        """The record as a FHIR R4 `DiagnosticReport`, in plain JSON values.

        Args:
            record: evidence record.
            path: the film's file where it is a DICOM file, whose study and patient the report then names.

        Raises:
            InputError: the file is no DICOM file that a report can refer to.
        """
        return fhir_report(record, None if path is None else read_dicom_source(path, record))


def drawn_fixations(record: dict) -> np.ndarray:
    """Fixations of a record, (N, 3); a glance so short that rounding left nothing of it is drawn all the same."""
    fixations = [(one["x"], one["y"], max(one["duration_s"], 1e-4)) for one in record["gaze"]["fixations"]]
    return np.array(fixations).reshape(-1, 3)


def group_images(images) -> list[list]:
    """Films by prompt: one film, a list or stack of films (a prompt each), or lists of films (a prompt per inner list).

    Raises:
        InputError: an empty list.
    """
    if getattr(images, "ndim", 0) == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        return [[images]]
    if len(images) == 0:
        raise InputError("There is no image to process: the list is empty.")
    return [list(item) if isinstance(item, (list, tuple)) else [item] for item in images]


def flatten_gaze(gaze) -> list:
    """Gaze per image from one array (N, 3), a list of arrays and `None`, or lists of such lists."""
    if gaze is None or number_of_axes(gaze) in (1, 2):
        return [gaze]
    if isinstance(gaze, (list, tuple)) or number_of_axes(gaze) == 3:
        return [one for item in gaze for one in flatten_gaze(item)]
    return [gaze]


def number_of_axes(values) -> int | None:
    """Axes of an array, tensor or nested list of numbers; `None` when it is ragged or holds other things."""
    if hasattr(values, "ndim"):
        return values.ndim
    try:
        array = np.asarray(values)  # not as float: that would make NaN of None
    except (RuntimeError, TypeError, ValueError):
        return None
    return array.ndim if array.dtype.kind in "biuf" else None


def as_numpy(values) -> np.ndarray:
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def likeliest_severities(log_probs: np.ndarray | None) -> list[str | None] | None:
    """The likeliest of `SEVERITIES` for each finding that has degrees. Shapes: (14, 4) -> 14 words."""
    if log_probs is None:
        return None
    best = log_probs.argmax(-1)
    return [None if name in UNGRADED else SEVERITIES[degree] for name, degree in zip(FINDINGS, best, strict=True)]


def likeliest_view(log_probs: np.ndarray | None) -> tuple[str, float] | None:
    """The likeliest of `VIEWS` and its probability. Shapes: (2,) -> a word and a number."""
    if log_probs is None:
        return None
    return VIEWS[int(log_probs.argmax())], float(np.exp(log_probs.max()))


def log_probabilities(logits, index: int) -> np.ndarray | None:
    """Log probabilities of the classes of one film, the last dimension of its logits; `None` where there are none."""
    if logits is None:
        return None
    logits = as_numpy(logits)[index].astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


__all__ = ["Gaze2ReportProcessor"]
