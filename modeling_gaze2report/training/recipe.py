"""Training recipes: typed, documented, read from YAML with `key=value` overrides.

A key that no recipe has is an error that names the nearest one that exists.
"""

import difflib
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml

from ..processing.datasets.record import COLUMNS
from ..processing.errors import RecipeError

PARTS = ("vision_tower", "scanpath", "fusion", "perception", "projector", "language_model", "lm_head")
RECIPE_FOLDER = Path(__file__).parent / "recipes"


UNCERTAIN = ("ignore", "positive", "negative", "soft")
# Attention projections by the names that transformers' language models give them; GPT-2 keeps three of them in one.
TARGET_MODULES = r".*\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|attn\.c_attn|attn\.c_proj)"
PRECISIONS = ("fp32", "bf16")
QUANTIZATIONS = ("none", "4bit")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class DataRecipe:
    """Where the records come from.

    Attributes:
        path: folder that `gaze2report prepare` wrote (Parquet shards and `dataset.json`), or anything that
            `datasets.load_dataset` reads: a folder of images with a `metadata.csv`, Parquet, JSON or CSV files.
        more_paths: further folders that `gaze2report prepare` wrote, whose training splits follow that of `path`.
        train_split, validation_split: names of the splits.
        max_train_records, max_validation_records: use the first so many (of each folder); `None` for all.
        normal_films: share of the training films without a finding that are used; below 1 it needs labels. Fewer are
            meant to lead a language model that is in two minds away from "normal".
        columns: name of a column of the record (`image`, `image_id`, `patient_id`, `report`, `fixations`, `labels`,
            ...) to the name of the column that holds it; columns of the record's own names need no entry.
        validation_share: share of the patients kept for validation where the data have no validation split.
        streaming: read the shards as they are needed, in place of keeping an index of all; the stages then need
            `max_steps`.
    """

    path: str
    more_paths: list[str] = field(default_factory=list)
    train_split: str = "train"
    validation_split: str = "validation"
    max_train_records: int | None = None
    max_validation_records: int | None = 256
    normal_films: float = 1.0
    columns: dict = field(default_factory=dict)
    validation_share: float = 0.1
    streaming: bool = False


@dataclass
class TokenizerRecipe:
    """A byte-level BPE tokenizer made from the reports of the training split.

    Attributes:
        vocab_size: tokens, the 256 bytes and the special tokens included.
    """

    vocab_size: int = 1024


@dataclass
class ModelRecipe:
    """A model from a checkpoint, or one from nothing: configurations of the towers and of the gaze parts.

    Attributes:
        checkpoint: folder or Hub id of a model in Hub layout, such as `gaze2report assemble` writes; its processor
            comes with it. Left out, the model starts from nothing.
        new_gaze: keep nothing of the checkpoint but vision tower and language model; scanpath model, graph, perception
            heads and projector start from nothing.
        vision: configuration of an image encoder of transformers, with its `model_type`; from nothing only.
        text: configuration of a causal language model of transformers, with its `model_type`; the vocabulary is set by
            the tokenizer; from nothing only.
        scanpath, fusion, perception: fields of the gaze parts that differ from their defaults, or the checkpoint's.
        image_size: side of the square film, in pixels; from nothing only.
        grid_size: patches along one side, as the image encoder gives them; from nothing only.
        quantization: `4bit` keeps the language model's frozen matrices in 4 bits (NF4; needs bitsandbytes and `lora`).
    """

    checkpoint: str | None = None
    new_gaze: bool = False
    vision: dict = field(default_factory=dict)
    text: dict = field(default_factory=dict)
    scanpath: dict = field(default_factory=dict)
    fusion: dict = field(default_factory=dict)
    perception: dict = field(default_factory=dict)
    image_size: int = 224
    grid_size: int = 14
    quantization: str = "none"


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


@dataclass
class LossWeights:
    """Weight of each loss in the sum; 0 leaves it out. See `losses.py` for the formulas.

    Attributes:
        report: cross-entropy of the tokens of reports and of the other tasks' answers.
        scanpath: negative log-likelihood per recorded fixation.
        scanpath_map: divergence of the predicted map of dwell time from the recorded one.
        gaze_attention: distance of the readout attention from the recorded heat map.
        findings: binary cross-entropy of the 14 findings.
        finding_boxes: boxes of the findings that are present.
        finding_maps: patches that the boxes of each finding cover.
        finding_crops: findings of single patches, seen by the vision tower (one that keeps its grid on small images)
            with two patches around them and no graph; small and rare findings weigh as much as others.
        region_boxes: the 17 anatomical boxes.
        contrast: image-text contrast within the batch, over all processes.
        order: order of the shuffled parts that the task `order` shows.
        severities: cross-entropy of the degrees of severity that reports and answers state; needs
            `model.perception.num_severities`.
        detail_maps: places of the findings in the pixels, cell by cell and patch by patch; like the next it teaches
            nothing but the look at the pixels, and needs `model.perception.detail_hidden_size`.
        detail_findings: binary cross-entropy of the 14 findings, of which only what the pixels add to them learns.
        views: cross-entropy of PA and AP; needs `model.perception.num_views`.
    """

    report: float = 0.0
    scanpath: float = 0.0
    scanpath_map: float = 0.0
    gaze_attention: float = 0.0
    findings: float = 0.0
    finding_boxes: float = 0.0
    finding_maps: float = 0.0
    finding_crops: float = 0.0
    region_boxes: float = 0.0
    contrast: float = 0.0
    order: float = 0.0
    severities: float = 0.0
    detail_maps: float = 0.0
    detail_findings: float = 0.0
    views: float = 0.0


@dataclass
class StageRecipe:
    """One stage of training.

    Attributes:
        name: shown in the log.
        trainable: parts of the model that learn (`vision_tower`, `scanpath`, `fusion`, `perception`, `projector`,
            `language_model`, `lm_head`); the others are frozen.
        losses: weight of each loss.
        learning_rate: peak, after 5 % of warm-up; it falls to zero along a cosine.
        learning_rates: peak of single parts, where it differs from `learning_rate`.
        epochs: passes over the training split.
        max_steps: stop after so many steps; `None` for all of the epochs.
        batch_size: records per step and process.
        gradient_accumulation_steps: batches whose gradients make one step; the negatives of the contrastive loss come
            from one batch all the same.
        weight_decay: decoupled weight decay.
        held_passes: above 0, the batches of so many passes are made before the first step and held in the memory of the
            device, films in half precision, for one that learns faster than films can be decoded; later passes go round
            them. Predicted gaze is then that of the model before the stage. Where only `projector`, `language_model`
            and `lm_head` learn, and from the report alone, visual-gaze tokens are held in place of films.
        length_groups: the language model reads a batch in so many parts, each of rows of like length. Changes no loss;
            saves time on CPUs, where padding costs as much as text.
        tasks: share of each task among the records; a record that lacks what its task needs gives its report.
        texts_per_film: tasks of each record in a step, all different; vision, gaze and graph are run once for them.
            `observe` and `order` show a gaze of their own: a record that draws one of them first has that task alone.
        recorded_gaze, predicted_gaze: shares of the records whose gaze is recorded or predicted; the rest has none. A
            record without a recording has predicted gaze or none, in the same proportion.
        recorded_gaze_end, predicted_gaze_end: the shares at the end, reached in a straight line; left out, they stay.
        soft_gaze: lets the report loss reach the scanpath model through the expected map of dwell time.
        reader_dropout: share of the records whose reader is hidden from a scanpath model that knows readers.
        uncertain_findings: what a label of -1 means to the findings loss: `ignore`, `positive`, `negative` or `soft`.
        gaze_attention_warmup: share of the stage over which the weight of the gaze attention loss grows to its full.
        logging_steps, eval_steps, save_steps: steps between log entries, evaluations (left out: each epoch) and
            checkpoints. A run that was cut off continues from the last checkpoint when the command is repeated.
    """

    name: str
    trainable: list[str]
    losses: LossWeights
    learning_rate: float = 3e-4
    learning_rates: dict = field(default_factory=dict)
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    weight_decay: float = 0.05
    held_passes: int = 0
    length_groups: int = 1
    tasks: dict = field(default_factory=lambda: {"report": 1.0})
    texts_per_film: int = 1
    recorded_gaze: float = 0.5
    predicted_gaze: float = 0.3
    recorded_gaze_end: float | None = None
    predicted_gaze_end: float | None = None
    soft_gaze: bool = False
    reader_dropout: float = 0.5
    uncertain_findings: str = "ignore"
    gaze_attention_warmup: float = 0.0
    logging_steps: int = 50
    eval_steps: int | None = None
    save_steps: int = 500


@dataclass
class Recipe:
    """Everything a run needs.

    Attributes:
        name: name of the recipe.
        output: folder of the trained model, in Hub layout.
        data, tokenizer, model, lora, stages: see there.
        seed: seed of initial weights, order of the data and the mixing of gaze and tasks.
        num_workers: processes that decode images beside the training process.
        device: `cuda`, `cpu`, or `auto` for a GPU where there is one.
        precision: `fp32`, or `bf16` for mixed precision.
        gradient_checkpointing: compute the towers' activations twice to keep fewer in memory.
        compile: compile vision tower and language model with torch.compile.
        report_to: experiment trackers, such as `tensorboard` or `wandb`.
    """

    name: str
    output: str
    data: DataRecipe
    model: ModelRecipe
    stages: list[StageRecipe]
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    lora: LoraRecipe | None = None
    seed: int = 0
    num_workers: int = 0
    device: str = "auto"
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    report_to: list[str] = field(default_factory=list)


def load_recipe(path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: a YAML file, or the name of a shipped recipe such as `embedded`.
        overrides: `key=value`, the key with dots for what lies deeper (`data.path=phantoms`, `stages.0.epochs=2`) and
            the value as YAML.

    Raises:
        RecipeError: no such file, broken YAML, a key that does not exist, a value of the wrong type.
    """
    file = Path(path)
    if not file.is_file():
        file = RECIPE_FOLDER / f"{path}.yaml"
    if not file.is_file():
        shipped = ", ".join(sorted(one.stem for one in RECIPE_FOLDER.glob("*.yaml")))
        raise RecipeError(f"{path}: no such recipe file, and no shipped recipe of that name; shipped are {shipped}.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file.name}: not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file.name}: the recipe must be a mapping of keys to values, not {values!r}.")
    for override in overrides or []:
        apply_override(values, override)
    recipe = build(Recipe, values, file.name, "")
    check(recipe, file.name)
    return recipe


def check(recipe: Recipe, file: str) -> None:
    """Refuse values that no run can use.

    Raises:
        RecipeError: naming the key and what would be right.
    """
    from .tasks import TASKS

    check_choice(recipe.device, DEVICES, file, "device")
    check_choice(recipe.precision, PRECISIONS, file, "precision")
    check_choice(recipe.model.quantization, QUANTIZATIONS, file, "model.quantization")
    if recipe.model.checkpoint is None and not (recipe.model.vision and recipe.model.text):
        raise RecipeError(f"{file}: model needs a checkpoint, or vision and text to start from nothing.")
    if recipe.model.checkpoint is not None and (recipe.model.vision or recipe.model.text):
        raise RecipeError(f"{file}: model has a checkpoint, whose towers are fixed: leave out vision and text.")
    if recipe.model.new_gaze and (recipe.model.checkpoint is None or recipe.model.quantization != "none"):
        raise RecipeError(f"{file}: model.new_gaze needs model.checkpoint, and none of its weights in 4 bits.")
    if recipe.model.quantization != "none" and not (recipe.lora and recipe.model.checkpoint):
        raise RecipeError(f"{file}: model.quantization = 4bit needs model.checkpoint and lora.")
    check_names(recipe.data.columns, COLUMNS, file, "data.columns")
    if not 0 <= recipe.data.normal_films <= 1:
        raise RecipeError(f"{file}: data.normal_films = {recipe.data.normal_films} is a share, from 0 to 1.")
    if recipe.data.more_paths and recipe.data.streaming:
        raise RecipeError(f"{file}: data.more_paths cannot be read with data.streaming; leave one of them out.")
    if not recipe.stages:
        raise RecipeError(f"{file}: stages is empty; a recipe needs at least one.")
    if len({stage.name for stage in recipe.stages}) < len(recipe.stages):
        raise RecipeError(f"{file}: two stages have the same name.")
    for index, stage in enumerate(recipe.stages):
        where = f"stages.{index}"
        check_choice(stage.uncertain_findings, UNCERTAIN, file, f"{where}.uncertain_findings")
        check_names(stage.tasks, TASKS, file, f"{where}.tasks")
        check_names(stage.learning_rates, PARTS, file, f"{where}.learning_rates")
        check_names(stage.trainable, PARTS, file, f"{where}.trainable")
        if "vision_tower" in stage.trainable and recipe.model.quantization != "none":
            raise RecipeError(f"{file}: {where}.trainable: quantized parts cannot learn; leave out vision_tower.")
        if not any(vars(stage.losses).values()):
            raise RecipeError(f"{file}: {where}.losses: every weight is 0; the stage has nothing to learn from.")
        for start, end in (
            (stage.recorded_gaze, stage.predicted_gaze),
            (
                stage.recorded_gaze if stage.recorded_gaze_end is None else stage.recorded_gaze_end,
                stage.predicted_gaze if stage.predicted_gaze_end is None else stage.predicted_gaze_end,
            ),
        ):
            if min(start, end) < 0 or start + end > 1 + 1e-9:
                raise RecipeError(
                    f"{file}: {where}: the shares of recorded and predicted gaze, {start} and {end}, must be at least "
                    "0 and at most 1 together."
                )
        if not all(isinstance(share, (int, float)) and share >= 0 for share in stage.tasks.values()):
            raise RecipeError(f"{file}: {where}.tasks: shares must be numbers of at least 0.")
        if stage.held_passes < 0:
            raise RecipeError(f"{file}: {where}.held_passes = {stage.held_passes} is a number of passes, at least 0.")
        if stage.held_passes and (
            recipe.data.streaming
            or stage.soft_gaze
            or stage.recorded_gaze_end is not None
            or stage.predicted_gaze_end is not None
        ):
            raise RecipeError(
                f"{file}: {where}.held_passes = {stage.held_passes} holds batches made ahead, which neither a stream "
                "(data.streaming) nor gaze that changes on the way (soft_gaze, recorded_gaze_end, predicted_gaze_end) "
                "can be; leave one of them out."
            )
        if stage.losses.order and not stage.tasks.get("order"):
            raise RecipeError(
                f"{file}: {where}.losses.order = {stage.losses.order} needs what the task order shows: give it "
                f"a share in {where}.tasks."
            )
        if stage.texts_per_film < 1:
            raise RecipeError(f"{file}: {where}.texts_per_film = {stage.texts_per_film} must be at least 1.")
        if not sum(stage.tasks.values()):
            raise RecipeError(f"{file}: {where}.tasks: one share must be above 0.")
        if recipe.data.streaming and stage.max_steps is None:
            raise RecipeError(f"{file}: {where}.max_steps is missing; streamed data do not say how many they are.")


def check_choice(value: str, choices: tuple[str, ...], file: str, where: str) -> None:
    if value not in choices:
        raise RecipeError(f"{file}: {where} = {value!r} must be one of {', '.join(choices)}.")


def check_names(names, known: tuple[str, ...], file: str, where: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"{file}: {where}: unknown {name!r}; the nearest one is {near!r}.")


def apply_override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"{override!r} is no override: write key=value, for example data.path=phantoms.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is not readable as YAML: {error}") from error
    *path, last = key.split(".")
    try:
        for step in path:
            values = values[int(step)] if isinstance(values, list) else values.setdefault(step, {})
        values[int(last) if isinstance(values, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{override!r}: the recipe has no such place; parts of a list go by their number from 0, as in "
            "stages.0.epochs=2."
        ) from error


def build(kind: type, values, file: str, where: str):
    """An object of the dataclass `kind` from a mapping, its parts built likewise."""
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: {where or 'the recipe'} must be a mapping of keys to values, not {values!r}.")
    known = {one.name: one for one in fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"{file}: unknown key {where}{key}; the nearest one is {where}{near}.")
    types = typing.get_type_hints(kind)
    parts = {}
    for name, one in known.items():
        if name in values:
            parts[name] = convert(types[name], values[name], file, f"{where}{name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise RecipeError(f"{file}: the key {where}{name} is missing.")
    return kind(**parts)


def convert(kind, value, file: str, where: str):
    """`value` as `kind`; whole numbers pass for floats, nothing else is bent."""
    if is_dataclass(kind):
        return build(kind, value, file, f"{where}.")
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise RecipeError(f"{file}: {where} must be a list, not {value!r}.")
        (item,) = typing.get_args(kind)
        return [convert(item, one, file, f"{where}.{index}") for index, one in enumerate(value)]
    allowed = typing.get_args(kind) or (kind,)
    part = next((one for one in allowed if is_dataclass(one)), None)
    if part is not None:
        return None if value is None else build(part, value, file, f"{where}.")
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and bool not in allowed) or not isinstance(value, allowed):
        names = " or ".join("nothing" if one is type(None) else one.__name__ for one in allowed)
        hint = " YAML takes 1e-3 for text: write 1.0e-3." if float in allowed and is_number(value) else ""
        raise RecipeError(f"{file}: {where} = {value!r} must be of type {names}.{hint}")
    return value


def is_number(value) -> bool:
    """Whether a text reads as a number."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def recipe_values(recipe: Recipe) -> dict:
    """The recipe as plain values, defaults included, for logs and model cards."""
    return asdict(recipe)


__all__ = [
    "PARTS",
    "DataRecipe",
    "LoraRecipe",
    "LossWeights",
    "ModelRecipe",
    "Recipe",
    "StageRecipe",
    "TokenizerRecipe",
    "load_recipe",
    "recipe_values",
]
