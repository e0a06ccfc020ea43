"""Running a model over films: loading it with every check, and reports, scanpaths and their evidence in batches."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from . import __version__
from .configuration_gaze2report import Gaze2ReportConfig
from .hub_space.loading_check import loading_faults
from .modeling_gaze2report import RECORDED_GAZE, Gaze2ReportForConditionalGeneration, Gaze2ReportImageFeatures
from .processing.errors import InputError, ModelError
from .processing.evidence import Rereadings
from .processing.grounding import Looking
from .processing.image_processing_gaze2report import Film
from .processing.processing_gaze2report import Gaze2ReportProcessor

EMBEDDED_MODEL = "embedded"
# How a report is written: by the language model alone; with boxes in the text; from findings that were named first.
STRATEGIES = ("direct", "grounded", "structured")
WRITERS = ("model", "template")
# Longest answer to a question, phrase or box, in tokens.
MAX_ANSWER_TOKENS = 96
# Drafts are drawn of tokens at least this probable next to the likeliest one; less probable ones garble reports.
# Answers are a few words, which have to fit their question: there what is improbable may still be what was seen.
DRAFT_MIN_P, ANSWER_MIN_P = 0.1, 0.01
# Drafts of a film that are drawn before its best one is looked at again; then a report is told the findings as certain.
DRAFTS_AT_ONCE = 8


def embedded_folder() -> Path:
    """Folder of the checkpoint that comes with the package."""
    from .hub_space import export

    return Path(export.__file__).parent / "model"


@dataclass
class Reader:
    """A model and its processor, ready to read films.

    Attributes:
        model, processor: as transformers loads them.
        name: what the user called the model, for records.
    """

    model: Gaze2ReportForConditionalGeneration
    processor: Gaze2ReportProcessor
    name: str

    @property
    def description(self) -> dict:
        """The model as evidence records name it."""
        revision = getattr(self.model.config, "_commit_hash", None)
        return {"name_or_path": self.name, "revision": revision, "package_version": __version__}


def load_reader(name: str | None, device: str = "auto", dtype: str = "auto", offline: bool = False) -> Reader:
    """Load a model and refuse any that is not whole.

    Args:
        name: a local folder or a Hub id; `None` or `"embedded"` for the checkpoint that comes with the package.
        device: `"auto"` (CUDA where there is one), `"cpu"`, `"cuda"` or `"cuda:N"`.
        dtype: `"auto"` (as the model says), `"float32"`, `"bfloat16"` or `"float16"`.
        offline: never ask the Hub.

    Raises:
        ModelError: no such model, a foreign or damaged one, weights that are missing, left over or of another shape; a
            device that is not there.
    """
    name = name or EMBEDDED_MODEL
    source = str(embedded_folder()) if name == EMBEDDED_MODEL else name
    if os.path.sep in name and not os.path.isdir(name) and len(Path(name).parts) != 2:
        raise ModelError(f"{name}: no such folder, and no Hub id either (those read owner/name).")
    if name == EMBEDDED_MODEL and not os.path.isfile(os.path.join(source, "config.json")):
        raise ModelError(f"{source}: this installation comes without the embedded checkpoint; name one with --model.")
    options = {"local_files_only": offline}
    try:
        with quiet_transformers():  # the loading report is checked below, once and in our words
            check_model_type(source, name, options)
            model, report = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report
                **options,
            )
            processor = AutoProcessor.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name}: the model cannot be loaded: {first_line(error)}") from error
    found = loading_faults(report)
    faults = [
        f"{len(found[key])} {words} ({', '.join(found[key][:3])})"
        for key, words in {
            "missing_keys": "weights are missing",
            "unexpected_keys": "weights belong to no part of the model",
            "mismatched_keys": "weights have another shape",
        }.items()
        if key in found
    ]
    if faults:
        raise ModelError(f"{name}: the checkpoint does not fit the model: {'; '.join(faults)}. Export it again.")
    return Reader(model.to(choose_device(device)).eval(), processor, name)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without its progress bars and warnings."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


def check_model_type(source: str, name: str, options: dict) -> None:
    """Refuse a model of another kind before its weights, or code of its own, are touched.

    Raises:
        ModelError: another `model_type`.
        OSError: there is no configuration.
    """
    if os.path.isfile(os.path.join(source, "adapter_config.json")):
        return  # the configuration stands with the base model
    model_type = PreTrainedConfig.get_config_dict(source, **options)[0].get("model_type")
    if model_type is None:
        raise ModelError(f"{name} holds no model: its config.json is missing or names no model_type.")
    if model_type != Gaze2ReportConfig.model_type:
        raise ModelError(f"{name} is a model of type {model_type!r}, not {Gaze2ReportConfig.model_type!r}.")


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def choose_device(name: str) -> torch.device:
    """The device that `name` means here.

    Raises:
        ModelError: CUDA is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"--device {name}: use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto."
        )
    return device


@torch.inference_mode()
def read_films(
    reader: Reader,
    films: Sequence[Film],
    gaze: Sequence[np.ndarray | None] | None = None,
    gaze_source: str = "auto",
    max_new_tokens: int | None = None,
    num_scanpaths: int = 0,
    strategy: str = "direct",
    writer: str = "model",
    num_drafts: int = 1,
) -> list[dict]:
    """Reports of one batch of films, as evidence records.

    Args:
        reader: model and processor.
        films: as `load_film` gives them.
        gaze: recorded gaze per film: (N, 3) x, y in [0, 1] of the film and duration in seconds, or `None`.
        gaze_source: `"auto"`, `"recorded"`, `"predicted"` or `"none"`, for all films.
        max_new_tokens: longest report in tokens; the model's own setting when left out.
        num_scanpaths: readings that are drawn to see how many agree on each finding; each costs a report more.
        strategy: `"direct"`, the plain report; `"grounded"`, a report that the model writes with boxes in it;
            `"structured"`, a report from the findings that were seen first. See `STRATEGIES`.
        writer: of structured reports, `"model"` or `"template"` (sentences from the findings alone; no language model).
        num_drafts: most drafts of a report. The first is the likeliest text; where it contradicts the findings that
            were seen, others are drawn, a few at once while all contradict them, of a direct or structured report the
            later ones from the findings named as certain, and the one that contradicts them least is kept.

    Raises:
        InputError: gaze that cannot be used, or `"recorded"` for a film without it; an unknown strategy or writer.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"There is no strategy {strategy!r}; use {', '.join(STRATEGIES)}.")
    if writer not in WRITERS or (writer == "template" and strategy != "structured"):
        raise InputError(f"writer {writer!r}: use 'model', or 'template' with the strategy 'structured'.")
    processor = reader.processor
    log_probs = attention = None
    if strategy == "structured":
        features = image_features(reader, films, gaze, gaze_source)
        keywords = processor.post_process_findings(features, [(film.height, film.width) for film in films])
        prompts = [processor.task_prompt("structured", findings=one) for one in keywords]
    else:
        features = None
        prompts = [processor.task_prompt({"direct": "report"}.get(strategy, strategy))] * len(films)
    if writer == "template":
        reports, num_drafts = [processor.template_report(one) for one in keywords], 1
    else:
        asked = None if strategy == "direct" else prompts
        reports, features, log_probs = generate_reports(
            reader,
            films,
            gaze,
            gaze_source,
            max_new_tokens,
            asked,
            features,
            num_drafts=num_drafts,
            name_findings=strategy != "grounded",
        )
        attention = visual_gaze_attention(reader.model, reports, log_probs.shape[1], features)
    return processor.post_process_evidence(
        reports,
        features,
        list(films),
        token_log_probs=log_probs,
        token_attention=attention,
        rereadings=reread_films(reader, films, num_scanpaths, max_new_tokens) if num_scanpaths else None,
        model=reader.description,
        strategy=strategy,
        prompt=prompts,
        num_drafts=num_drafts,
    )


def image_features(
    reader: Reader, films: Sequence[Film], gaze: Sequence[np.ndarray | None] | None = None, gaze_source: str = "auto"
) -> Gaze2ReportImageFeatures:
    """What the films give before any text; see [`read_films`] for the arguments."""
    inputs = reader.processor(images=list(films), gaze=gaze, gaze_source=gaze_source, return_tensors="pt")
    inputs = inputs.to(reader.model.device)
    images = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    return reader.model.get_image_features(**images, return_dict=True)


@torch.inference_mode()
def generate_reports(
    reader: Reader,
    films: Sequence[Film],
    gaze: Sequence[np.ndarray | None] | None = None,
    gaze_source: str = "auto",
    max_new_tokens: int | None = None,
    prompts: Sequence[str] | None = None,
    features: Gaze2ReportImageFeatures | None = None,
    streamer=None,
    num_drafts: int = 1,
    questions: Sequence[str] | None = None,
    name_findings: bool = False,
) -> tuple[torch.Tensor, Gaze2ReportImageFeatures, torch.Tensor]:
    """The same before it is made readable; see [`read_films`] for the arguments.

    Args:
        prompts: what each film is asked, as the processor's `task_prompt` gives it; left out, the report.
        features: what the films give, where it is known already.
        streamer: of `generate`, for a single film; of the first draft.
        questions: what the texts answer, where they are no reports; drafts of answers are judged by it.
        name_findings: later drafts of a report are told the findings that were seen; see [`redraft`].

    Returns:
        token ids (B, L) with the prompt, the features that the images gave, and the log probabilities (B, L_new) of the
        generated tokens.

    Raises:
        InputError: fewer than one draft.
    """
    if num_drafts < 1:
        raise InputError(f"num_drafts = {num_drafts}: a text has at least one draft.")
    model, processor = reader.model, reader.processor
    text = None if prompts is None else list(prompts)
    inputs = processor(images=list(films), text=text, gaze=gaze, gaze_source=gaze_source, return_tensors="pt")
    inputs = inputs.to(model.device)
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    # The images are read once: the same features write the report and are its evidence.
    if features is None:
        features = model.get_image_features(**inputs, return_dict=True)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if streamer is not None:
        options["streamer"] = streamer
    generated = model.generate(
        **text,
        mm_encoder_outputs={"image": features},
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    log_probs = model.compute_transition_scores(generated.sequences, generated.scores, normalize_logits=True)
    first = Texts(generated.sequences, log_probs)
    if num_drafts > 1:
        first = redraft(reader, first, text, features, num_drafts, questions, options, films if name_findings else None)
    return first.sequences, features, first.log_probs


@dataclass
class Texts:
    """Generated texts.

    Attributes:
        sequences: (B, L) token ids with the prompt.
        log_probs: (B, L_new) log probabilities of the generated tokens.
    """

    sequences: torch.Tensor
    log_probs: torch.Tensor

    def mean_log_probs(self, pad: int) -> np.ndarray:
        """Mean log probability of the tokens of each text, (B,)."""
        written = self.sequences[:, self.sequences.shape[1] - self.log_probs.shape[1] :] != pad
        sums = self.log_probs.float().masked_fill(~written, 0).sum(1)
        return (sums / written.sum(1).clamp_min(1)).cpu().numpy()

    def choose(self, rows: list[int], others: "Texts", pad: int) -> "Texts":
        """Row by row one of these texts, or of the others, which are numbered on from these."""
        width = max(self.log_probs.shape[1], others.log_probs.shape[1])
        parts = [[], []]
        for one in (self, others):
            missing = width - one.log_probs.shape[1]
            parts[0].append(torch.nn.functional.pad(one.sequences, (0, missing), value=pad))
            parts[1].append(torch.nn.functional.pad(one.log_probs, (0, missing)))
        sequences, log_probs = (torch.cat(both)[rows] for both in parts)
        # Nothing is kept of places that only the texts not chosen reached.
        prompt = sequences.shape[1] - width
        written = (sequences[:, prompt:] != pad).any(0).nonzero()
        longest = int(written.max()) + 1 if len(written) else 0
        return Texts(sequences[:, : prompt + longest], log_probs[:, :longest])


class DraftNoise(LogitsProcessor):
    """Gumbel noise on the scores: the likeliest token becomes one drawn from the distribution (the Gumbel-max trick).

    The noise is another for each seed, draft and place but the same for every film and at every call, so that a film's
    drafts do not depend on the films beside it, nor on the state of any generator. Tokens below `min_p` times the
    probability of the likeliest one are left out (min-p sampling, Nguyen et al. 2024, arXiv 2407.01082).
    """

    def __init__(self, num_drafts: int, min_p: float = DRAFT_MIN_P, seed: int = 0):
        self.num_drafts, self.min_p = num_drafts, min_p
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        uniform = torch.rand(self.num_drafts, scores.shape[-1], generator=self.generator).clamp(1e-9, 1 - 1e-7)
        noise = -(-uniform.log()).log()
        scores = scores.float()
        is_rare = scores < scores.amax(-1, keepdim=True) + math.log(self.min_p)
        scores = scores.masked_fill(is_rare, -math.inf)
        return scores + noise.to(scores.device).repeat(len(scores) // self.num_drafts, 1)


def redraft(
    reader: Reader,
    first: Texts,
    prompts: dict[str, torch.Tensor],
    features: Gaze2ReportImageFeatures,
    num_drafts: int,
    questions: Sequence[str] | None,
    options: dict,
    films: Sequence[Film] | None = None,
) -> Texts:
    """The first texts, or drafts of them that contradict less of what was seen.

    Drafts are drawn a few at once, and more of them only where all of a film so far contradict something. A report of
    which the first few all do is then written from the findings that were seen, as a structured one is, each of them
    named as certain: what is said to be possible the language model leaves out now and then.

    Args:
        first: the likeliest text of each film.
        prompts: `input_ids` and `attention_mask` (B, L) that they answer.
        features: of the films.
        num_drafts: most drafts of a film, the first text among them.
        questions: what the texts answer, where they are no reports.
        options: of `generate`.
        films: of reports whose later drafts are told the findings.
    """
    model, processor = reader.model, reader.processor
    pad = model.generation_config.pad_token_id
    pad = processor.tokenizer.pad_token_id if pad is None else pad
    texts, drawn = first, 1
    decoded = [[text] for text in processor.batch_decode_report(first.sequences)]
    lowest = np.array([cost[0] for cost in processor.contradictions(decoded, features, questions)])
    named = set()  # films whose text was written from the findings
    while drawn < num_drafts and (lowest > 0).any():
        wrong = np.flatnonzero(lowest > 0).tolist()
        number = min(DRAFTS_AT_ONCE, num_drafts - drawn)
        tokens = [features.pooler_output[index] for index in wrong for _ in range(number)]
        noise = DraftNoise(number, DRAFT_MIN_P if questions is None else ANSWER_MIN_P, seed=drawn - 1)
        asked = {name: values[wrong] for name, values in prompts.items()}
        is_named = films is not None and drawn > DRAFTS_AT_ONCE
        if is_named:
            asked = named_findings(reader, films, features, wrong)
        generated = model.generate(
            **{name: values.repeat_interleave(number, 0) for name, values in asked.items()},
            mm_encoder_outputs={"image": Gaze2ReportImageFeatures(pooler_output=tokens)},
            logits_processor=LogitsProcessorList([noise]),
            return_dict_in_generate=True,
            output_logits=True,
            **(options | {"do_sample": False, "num_beams": 1, "streamer": None}),
        )
        log_probs = model.compute_transition_scores(generated.sequences, generated.logits, normalize_logits=True)
        # Whatever they were asked, they answer what the film's first text answers.
        written = generated.sequences[:, asked["input_ids"].shape[1] :]
        prompt = prompts["input_ids"][wrong].repeat_interleave(number, 0)
        others = Texts(torch.cat((prompt, written), dim=1), log_probs)
        drafts = iter(processor.batch_decode_report(others.sequences))
        decoded = [[] for _ in range(len(lowest))]
        for index in wrong:
            decoded[index] = [next(drafts) for _ in range(number)]
        costs = processor.contradictions(decoded, features, questions)
        likelihood = others.mean_log_probs(pad).reshape(len(wrong), number)
        rows = list(range(len(lowest)))
        for place, index in enumerate(wrong):
            if costs[index].min() < lowest[index]:
                best = int(np.lexsort((-likelihood[place], costs[index]))[0])  # of equally good ones the likeliest
                rows[index], lowest[index] = len(lowest) + place * number + best, costs[index][best]
                if is_named:
                    named.add(index)
        texts = texts.choose(rows, others, pad)
        drawn += number
    if named:
        rows = sorted(named)
        texts.log_probs[rows] = own_log_probs(reader, texts, rows, prompts, features)
    return texts


def own_log_probs(
    reader: Reader,
    texts: Texts,
    rows: list[int],
    prompts: dict[str, torch.Tensor],
    features: Gaze2ReportImageFeatures,
) -> torch.Tensor:
    """How probable some of the texts are behind their own prompts: log probabilities (R, L_new) of their tokens."""
    sequences, num_new = texts.sequences[rows], texts.log_probs.shape[1]
    mask = torch.cat((prompts["attention_mask"][rows], torch.ones_like(sequences[:, -num_new:])), dim=1)
    tokens = [features.pooler_output[index] for index in rows]
    logits = reader.model(
        input_ids=sequences,
        attention_mask=mask,
        mm_encoder_outputs={"image": Gaze2ReportImageFeatures(pooler_output=tokens)},
        logits_to_keep=num_new + 1,
    ).logits
    log_probs = logits[:, :-1].float().log_softmax(-1)
    return log_probs.gather(-1, sequences[:, -num_new:, None]).squeeze(-1).to(texts.log_probs)


def named_findings(
    reader: Reader, films: Sequence[Film], features: Gaze2ReportImageFeatures, chosen: Sequence[int]
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (B, L) of the prompts that name what was seen on the chosen films as certain."""
    processor = reader.processor
    keywords = processor.post_process_findings(features, [(film.height, film.width) for film in films])
    certain = [[replace(keyword, confidence="definite") for keyword in keywords[index]] for index in chosen]
    prompts = [processor.task_prompt("structured", findings=one) for one in certain]
    inputs = processor(images=[films[index] for index in chosen], text=prompts, gaze_source="none", return_tensors="pt")
    return {name: inputs[name].to(reader.model.device) for name in ("input_ids", "attention_mask")}


# -- questions, phrases, boxes, order --------------------------------------------------------------------------------


@torch.inference_mode()
def answer_questions(
    reader: Reader,
    films: Sequence[Film],
    questions: Sequence[str],
    gaze: Sequence[np.ndarray | None] | None = None,
    gaze_source: str = "auto",
    max_new_tokens: int = MAX_ANSWER_TOKENS,
    streamer=None,
    num_drafts: int = 1,
) -> list[dict]:
    """Answers to one question on each film of a batch, as evidence records of the task "ask".

    Args:
        reader, films, gaze, gaze_source: as for [`read_films`].
        questions: one for each film, in plain words; placeholders and special tokens in them are words too.
        max_new_tokens: longest answer in tokens.
        streamer: of `generate`, for a single film.
        num_drafts: most drafts of an answer, as for [`read_films`].

    Raises:
        InputError: a question that is empty or does not fit into the model's context; gaze that cannot be used.
    """
    prompts = [
        reader.processor.task_prompt("ask", question=one) for one in checked_batch(films, questions, "questions")
    ]
    drafts = {"num_drafts": num_drafts, "questions": questions}
    return task_records(reader, films, "ask", prompts, gaze, gaze_source, max_new_tokens, streamer, **drafts)


@torch.inference_mode()
def describe_boxes(
    reader: Reader,
    films: Sequence[Film],
    boxes: Sequence[Sequence[float]],
    gaze: Sequence[np.ndarray | None] | None = None,
    gaze_source: str = "auto",
    max_new_tokens: int = MAX_ANSWER_TOKENS,
    streamer=None,
) -> list[dict]:
    """What is in one box of each film of a batch, as evidence records of the task "describe".

    Args:
        reader, films, gaze, gaze_source, max_new_tokens, streamer: as for [`answer_questions`].
        boxes: x0, y0, x1, y1 in [0, 1] of each film.

    Raises:
        InputError: no box; gaze that cannot be used.
    """
    prompts = [
        reader.processor.task_prompt("describe", box=box, film=film)
        for film, box in zip(films, checked_batch(films, boxes, "boxes"), strict=True)
    ]
    return task_records(reader, films, "describe", prompts, gaze, gaze_source, max_new_tokens, streamer)


@torch.inference_mode()
def ground_phrases(
    reader: Reader,
    films: Sequence[Film],
    phrases: Sequence[str],
    gaze: Sequence[np.ndarray | None] | None = None,
    gaze_source: str = "auto",
    max_new_tokens: int = MAX_ANSWER_TOKENS,
    streamer=None,
) -> list[dict]:
    """Where on each film of a batch a phrase is: boxes that the language model points to and the perception heads saw.

    Of a finding there is a box where its calibrated probability reaches the threshold of its class, and only there; a
    warning says where the language model was of another mind.

    Args:
        reader, films, gaze, gaze_source, max_new_tokens, streamer: as for [`answer_questions`].
        phrases: one for each film: a finding, a region, or a sentence of a report.

    Returns:
        per film `phrase`, `boxes` (x0, y0, x1, y1 in [0, 1] of the film; empty where there is nothing), `answer` (a
        sentence), `findings` that the phrase names with their probabilities, `image`, `model`, `warnings`.

    Raises:
        InputError: a phrase that is empty or does not fit into the model's context; gaze that cannot be used.
    """
    processor = reader.processor
    prompts = [processor.task_prompt("ground", phrase=one) for one in checked_batch(films, phrases, "phrases")]
    sequences, features, _ = generate_reports(
        reader, films, gaze, gaze_source, max_new_tokens, prompts, streamer=streamer
    )
    answers = processor.post_process_phrases(processor.batch_decode_report(sequences), phrases, films, features)
    return [
        {"image": film.record, "model": reader.description, "task": "ground", **answer}
        for film, answer in zip(films, answers, strict=True)
    ]


@torch.inference_mode()
def observe_gaze(
    reader: Reader,
    films: Sequence[Film],
    gaze: Sequence[np.ndarray],
    max_new_tokens: int = MAX_ANSWER_TOKENS,
) -> list[Looking]:
    """What was seen with the fixations of one sentence: the sentence, clue boxes and observation box, per film.

    Args:
        reader, films: as for [`read_films`].
        gaze: (N, 3) per film, x, y in [0, 1] of the film and duration in seconds.

    Raises:
        InputError: gaze that cannot be used.
    """
    prompts = [reader.processor.task_prompt("observe")] * len(films)
    sequences, _, _ = generate_reports(reader, films, gaze, "recorded", max_new_tokens, prompts)
    return reader.processor.post_process_looking(reader.processor.batch_decode_report(sequences), films)


@torch.inference_mode()
def recover_order(reader: Reader, films: Sequence[Film], gaze: Sequence[np.ndarray]) -> list[list[int]]:
    """The order in time of shuffled fixations, or of parts of a reading shown as one fixation each.

    Read off the graph: every fixation's score says how late it would come. The language model can be asked for the same
    list (`task_prompt("order", count=K)` and `post_process_order`).

    Args:
        reader, films: as for [`read_films`].
        gaze: (K, 3) per film in any order.

    Returns:
        per film the K indices of `gaze`, the one looked at first in front.

    Raises:
        InputError: gaze that cannot be used, or more fixations than the model takes.
    """
    limit = reader.processor.max_fixations
    for film, one in zip(films, checked_batch(films, gaze, "sets of fixations"), strict=True):
        if len(one) > limit:
            raise InputError(f"{film.name}: {len(one)} fixations are to be put in order; the model takes {limit}.")
    scores = image_features(reader, films, gaze, "recorded").order_scores.cpu()
    return [row[: len(one)].argsort(stable=True).tolist() for row, one in zip(scores, gaze, strict=True)]


def checked_batch(films: Sequence[Film], asked: Sequence, name: str) -> Sequence:
    if len(films) != len(asked):
        raise InputError(f"{len(asked)} {name} were given for {len(films)} films: give one for each.")
    return asked


def task_records(
    reader: Reader,
    films: Sequence[Film],
    task: str,
    prompts: list[str],
    gaze,
    gaze_source,
    max_new_tokens,
    streamer,
    num_drafts: int = 1,
    questions: Sequence[str] | None = None,
) -> list[dict]:
    sequences, features, log_probs = generate_reports(
        reader,
        films,
        gaze,
        gaze_source,
        max_new_tokens,
        prompts,
        streamer=streamer,
        num_drafts=num_drafts,
        questions=questions,
    )
    return reader.processor.post_process_evidence(
        sequences,
        features,
        list(films),
        token_log_probs=log_probs,
        token_attention=visual_gaze_attention(reader.model, sequences, log_probs.shape[1], features),
        model=reader.description,
        task=task,
        prompt=prompts,
        num_drafts=num_drafts,
    )


@torch.inference_mode()
def visual_gaze_attention(
    model: Gaze2ReportForConditionalGeneration,
    sequences: torch.Tensor,
    num_new_tokens: int,
    features: Gaze2ReportImageFeatures,
) -> torch.Tensor | None:
    """Attention with which each generated token was written to the visual-gaze tokens of its film.

    One pass over the finished texts, with the attention implementation that shows its weights. The row of a token is
    that of the position before it, where it was chosen; heads and layers are averaged.

    Args:
        model: the model that wrote.
        sequences: (B, L) token ids, prompts padded on the left, with one film each.
        num_new_tokens: how many of the L were generated.
        features: what the films gave.

    Returns:
        (B, num_new_tokens, T) float32, or `None` where the language model shows no attention weights.
    """
    if num_new_tokens == 0:
        return None
    language_model = model.model.language_model
    image_token = model.config.image_token_id
    prompts, written = sequences.split((sequences.shape[1] - num_new_tokens, num_new_tokens), dim=1)
    # A model may write a placeholder, which this pass would take for an image; it is no word of the text anyway.
    written = written.masked_fill(written == image_token, 1 if image_token == 0 else 0)
    sequences = torch.cat((prompts, written), dim=1)
    pad = model.generation_config.pad_token_id
    # A pad token inside a text is one that the model wrote: only those before the first real token are padding.
    mask = torch.ones_like(sequences, dtype=torch.bool) if pad is None else (sequences != pad).cumsum(1) > 0
    usual = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        attentions = model(
            input_ids=sequences,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            mm_encoder_outputs={"image": features},
            output_attentions=True,
            use_cache=False,
            logits_to_keep=1,
        ).attentions
    finally:
        language_model.set_attn_implementation(usual)
    length = sequences.shape[1]
    # Layers of another kind (a recurrence in a hybrid model) have no weights.
    layers = [layer for layer in attentions or () if layer is not None and layer.shape[-2:] == (length, length)]
    if not layers:
        return None
    attention = torch.stack([layer[:, :, -num_new_tokens - 1 : -1].float().mean(1) for layer in layers]).mean(0)
    return torch.stack([rows[:, place] for rows, place in zip(attention, sequences == image_token, strict=True)])


@torch.inference_mode()
def reread_films(
    reader: Reader, films: Sequence[Film], num_scanpaths: int, max_new_tokens: int | None = None
) -> list[Rereadings]:
    """Findings and plain reports of each film along `num_scanpaths` scanpaths drawn from the model."""
    model, processor = reader.model, reader.processor
    inputs = processor(images=list(films), return_tensors="pt").to(model.device)
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    scanpath = model.predict_scanpath(**inputs, num_samples=num_scanpaths, do_sample=True)
    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    sizes = [(film.height, film.width) for film in films]
    probabilities, reports = [], []
    for number in range(num_scanpaths):
        features = model.get_image_features(
            **inputs,
            fixations=scanpath.fixations[:, number],
            fixation_mask=scanpath.mask[:, number],
            gaze_source=torch.full((len(films),), RECORDED_GAZE, device=model.device),
            return_dict=True,
        )
        observations = processor.post_process_observation(features, sizes)
        probabilities.append([observation.finding_probabilities for observation in observations])
        sequences = model.generate(**text, mm_encoder_outputs={"image": features}, **options)
        reports.append(processor.batch_decode_report(sequences))
    return [
        Rereadings(np.array([one[index] for one in probabilities]), [one[index] for one in reports])
        for index in range(len(films))
    ]


@torch.inference_mode()
def predict_scanpaths(reader: Reader, film: Film, num_samples: int = 1, temperature: float = 1.0) -> Iterator[dict]:
    """Predicted readings of one film as canonical scanpath lines, with the log probability of each in nats.

    One reading is the likeliest; several are drawn.
    """
    inputs = reader.processor(images=[film], return_tensors="pt").to(reader.model.device)
    scanpath = reader.model.predict_scanpath(
        inputs["pixel_values"],
        num_samples=num_samples,
        do_sample=num_samples > 1,
        temperature=temperature,
        film_boxes=inputs["film_boxes"],
    )
    size = (film.height, film.width)
    readings = reader.processor.post_process_scanpath(scanpath.fixations[0], scanpath.mask[0], [size] * num_samples)
    for number, (reading, log_probability) in enumerate(zip(readings, scanpath.log_probability[0], strict=True)):
        duration_ms = reading[:, 2] * 1000
        yield {
            "image_id": film.name,
            "reader_id": f"predicted-{number}",
            "width": film.width,
            "height": film.height,
            "X": np.round(reading[:, 0] * film.width, 2).tolist(),
            "Y": np.round(reading[:, 1] * film.height, 2).tolist(),
            "T": np.round(duration_ms, 1).tolist(),
            "onset": np.round(np.cumsum(duration_ms) - duration_ms, 1).tolist(),
            "log_probability": round(float(log_probability), 4),
        }


__all__ = [
    "EMBEDDED_MODEL",
    "STRATEGIES",
    "WRITERS",
    "Reader",
    "answer_questions",
    "choose_device",
    "describe_boxes",
    "embedded_folder",
    "generate_reports",
    "ground_phrases",
    "image_features",
    "load_reader",
    "observe_gaze",
    "predict_scanpaths",
    "read_films",
    "recover_order",
    "reread_films",
    "visual_gaze_attention",
]
