"""Training recipes: typed, documented, read from YAML with `key=value` overrides.

A key that no recipe has is an error that names the nearest one that exists.
"""

import difflib
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml

from ..processing.errors import RecipeError

RECIPE_FOLDER = Path(__file__).parent / "recipes"


@dataclass
class DataRecipe:
    """Where the records come from.

    Attributes:
        path: folder that `gaze2report prepare` wrote (Parquet shards and `dataset.json`).
        train_split, validation_split: names of the splits.
        max_train_records, max_validation_records: use the first so many; `None` for all.
    """

    path: str
    train_split: str = "train"
    validation_split: str = "validation"
    max_train_records: int | None = None
    max_validation_records: int | None = 256


@dataclass
class TokenizerRecipe:
    """A byte-level BPE tokenizer made from the reports of the training split.

    Attributes:
        vocab_size: tokens, the 256 bytes and the special tokens included.
    """

    vocab_size: int = 1024


@dataclass
class ModelRecipe:
    """A model from nothing: configurations of the towers and the gaze parts, as in `Gaze2ReportConfig`.

    Attributes:
        vision: configuration of an image encoder of transformers, with its `model_type`.
        text: configuration of a causal language model of transformers, with its `model_type`; the vocabulary is set by
            the tokenizer.
        scanpath, fusion, perception: fields of the gaze parts that differ from their defaults.
        image_size: side of the square film, in pixels.
        grid_size: patches along one side, as the image encoder gives them.
    """

    vision: dict
    text: dict
    scanpath: dict = field(default_factory=dict)
    fusion: dict = field(default_factory=dict)
    perception: dict = field(default_factory=dict)
    image_size: int = 224
    grid_size: int = 14


@dataclass
class LossWeights:
    """Weight of each loss in the sum; 0 leaves it out. See `losses.py` for the formulas.

    Attributes:
        report: cross-entropy of the report's tokens.
        scanpath: negative log-likelihood per recorded fixation.
        gaze_attention: distance of the readout attention from the recorded heat map.
        findings: binary cross-entropy of the 14 findings.
        finding_boxes: boxes of the findings that are present.
        region_boxes: the 17 anatomical boxes.
    """

    report: float = 0.0
    scanpath: float = 0.0
    gaze_attention: float = 0.0
    findings: float = 0.0
    finding_boxes: float = 0.0
    region_boxes: float = 0.0


@dataclass
class StageRecipe:
    """One stage of training.

    Attributes:
        name: shown in the log.
        trainable: parts of the model that learn (`vision_tower`, `scanpath`, `fusion`, `perception`, `projector`,
            `language_model`, `lm_head`); the others are frozen.
        losses: weight of each loss.
        learning_rate: peak, after 5 % of warm-up; it falls to zero along a cosine.
        epochs: passes over the training split.
        batch_size: records per step.
        weight_decay: decoupled weight decay.
        recorded_gaze, predicted_gaze: shares of the records whose gaze is recorded or predicted; the rest has none.
    """

    name: str
    trainable: list[str]
    losses: LossWeights
    learning_rate: float = 3e-4
    epochs: float = 1.0
    batch_size: int = 16
    weight_decay: float = 0.05
    recorded_gaze: float = 0.5
    predicted_gaze: float = 0.3


@dataclass
class Recipe:
    """Everything a run needs.

    Attributes:
        name: name of the recipe.
        output: folder of the trained model, in Hub layout.
        data, tokenizer, model, stages: see there.
        seed: seed of initial weights, order of the data and the mixing of gaze.
        num_workers: processes that decode images beside the training process.
    """

    name: str
    output: str
    data: DataRecipe
    model: ModelRecipe
    stages: list[StageRecipe]
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    seed: int = 0
    num_workers: int = 0


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
    return build(Recipe, values, file.name, "")


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
    "DataRecipe",
    "LossWeights",
    "ModelRecipe",
    "Recipe",
    "StageRecipe",
    "TokenizerRecipe",
    "load_recipe",
    "recipe_values",
]
