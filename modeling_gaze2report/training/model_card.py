"""The card of a trained model, filled from its run: what it learned from and how, what was measured, its limits.

Nothing in a card is claimed: each figure stands with the command that printed it, and what was not measured is said.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..hub_space.card import NOTICE, evaluation_results
from ..processing.errors import DataError
from ..processing.metrics.files import write_text
from .progress import shown_losses

RUN_LOG = "training_log.json"
# A card with this line is ours to write anew.
MARK = "<!-- Written by `gaze2report train`. Without this line it is never written over. -->"
# Sources whose films, reports or gaze come under PhysioNet's credentialed licence.
CREDENTIALED = ("reflacx", "egd", "mimic-eye", "mimic-cxr", "gazesearch")


@dataclass(frozen=True)
class DataSet:
    """A folder of records and what its `dataset.json` says; an empty dictionary where there is none."""

    path: Path
    values: dict

    @property
    def source(self) -> str | None:
        return self.values.get("source")


def write_card(
    folder: str | Path, metrics_files: Sequence[str | Path] = (), data_folder: str | Path | None = None
) -> bool:
    """Write `README.md` into the folder of a trained model or adapter, from the run's log that stands there.

    A card that somebody wrote or changed is left as it is.

    Args:
        folder: of the model, with `training_log.json`.
        metrics_files: `metrics.json` files that `gaze2report evaluate` wrote.
        data_folder: folder of the prepared training data, whose `dataset.json` tells where they come from; default the
            recipe's.

    Returns:
        whether the card was written.

    Raises:
        DataError: the run's log or `dataset.json` cannot be read.
    """
    folder = Path(folder)
    card = folder / "README.md"
    if card.is_file() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return False
    write_text(card, card_text(folder, read_json(folder / RUN_LOG), metrics_files, data_folder))
    return True


def card_text(
    folder: str | Path,
    run_log: dict | None,
    metrics_files: Sequence[str | Path] = (),
    data_folder: str | Path | None = None,
) -> str:
    """The whole card, with metadata that the Hub accepts.

    Args:
        folder: of the model or adapter.
        run_log: `recipe` (its values) and `history` (log entries, each with its stage), as `training_log.json` holds
            them; `None` where there is no record of the training.
        metrics_files: `metrics.json` files that `gaze2report evaluate` wrote.
        data_folder: see [`write_card`].
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder).absolute()
    recipe = (run_log or {}).get("recipe") or {}
    history = (run_log or {}).get("history") or []
    named = recipe.get("data") or {}
    # A folder may be listed several times, so that its records come more often.
    folders = dict.fromkeys(Path(one) for one in (data_folder or named.get("path") or "", *named.get("more_paths", ())))
    data = [DataSet(one, read_json(one / "dataset.json") or {}) for one in folders]
    is_adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    base = hub_id(recipe.get("model", {}).get("checkpoint"))
    results = [one for path in metrics_files for one in evaluation_results(path)]
    is_free = all(one.source == "phantom" for one in data) and not recipe.get("model", {}).get("checkpoint")
    metadata = ModelCardData(
        language="en",
        license="apache-2.0" if is_free else "other",
        license_name=None if is_free else "see-the-terms-below",
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["chest-x-ray", "radiology", "report-generation", "eye-gaze", "scanpath"],
        base_model=base,
        model_name=folder.name if results else None,
        eval_results=results or None,
    )
    sections = [
        MARK,
        f"# {folder.name}",
        introduction(is_adapter, base),
        f"{NOTICE} It is no help to read a film of a patient: nobody has shown that it is safe.",
        "## Use\n\n" + usage(folder.name),
        "## How it was made\n\n" + training_words(recipe, data),
        "## Figures\n\n" + figures(recipe, history, metrics_files),
        "## Limits\n\n" + limits(recipe, is_free, bool(metrics_files)),
        "## Terms\n\n" + terms(data, is_free),
        "## Papers\n\nThe design follows [Gaze2Report](https://arxiv.org/abs/2604.08600), [Eyes on the "
        "Image](https://arxiv.org/abs/2508.13068) and [GazeX](https://arxiv.org/abs/2604.14316); please cite them when "
        "you build on it. This is an independent implementation, and reproduces none of their figures.",
    ]
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def introduction(is_adapter: bool, base: str | None) -> str:
    what = "An adapter for a Gaze2Report model" if is_adapter else "A Gaze2Report model"
    words = f"{what}: it writes the report of a chest film, and says where it looked and what each sentence rests on."
    return f"{words} Its base is [{base}](https://hf.co/{base})." if base else words


def usage(name: str) -> str:
    return (
        "```python\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f'processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)\n'
        f'model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)\n'
        'inputs = processor(images=film, return_tensors="pt")  # gaze is predicted\n'
        "print(processor.batch_decode_report(model.generate(**inputs))[0])\n"
        "```"
    )


def training_words(recipe: dict, data: list[DataSet]) -> str:
    """The data, the start and the stages, and the recipe whole."""
    if not recipe:
        return "No record of the training stands beside the model."
    model = recipe["model"]
    start = f"the checkpoint {Path(model['checkpoint']).name}" if model.get("checkpoint") else "random weights"
    lines = [f"Recipe `{recipe['name']}`, from {start}, seed {recipe['seed']}."]
    if recipe.get("lora"):
        lora = recipe["lora"]
        lines.append(
            f"The language model learned by LoRA of rank {lora['rank']}, alpha {lora['alpha']}"
            f"{', merged into the weights' if lora['merge'] else ''}."
        )
    lines += [data_words(one) for one in data]
    table = [
        "| Stage | What learns | Losses (weight) | Length | Batch | Learning rate | Gaze recorded / predicted / none |",
        "|:--|:--|:--|--:|--:|--:|--:|",
    ]
    for stage in recipe["stages"]:
        losses = ", ".join(f"{name} ({weight:g})" for name, weight in stage["losses"].items() if weight)
        length = f"{stage['max_steps']} steps" if stage.get("max_steps") else f"{stage['epochs']:g} epochs"
        batch = stage["batch_size"] * stage.get("gradient_accumulation_steps", 1)
        rates = [f"{stage['learning_rate']:g}"]
        rates += [f"{part} {rate:g}" for part, rate in (stage.get("learning_rates") or {}).items()]
        table.append(
            f"| {stage['name']} | {', '.join(stage['trainable'])} | {losses} | {length} | {batch} "
            f"| {', '.join(rates)} | {gaze_shares(stage)} |"
        )
    written = yaml.safe_dump(without_places(recipe), sort_keys=False, allow_unicode=True)
    whole = f"<details><summary>The whole recipe</summary>\n\n```yaml\n{written}```\n\n</details>"
    return "\n\n".join([" ".join(lines), "\n".join(table), whole])


def gaze_shares(stage: dict) -> str:
    """Shares of recorded, predicted and no gaze, at the start and where they move at the end."""

    def words(recorded: float, predicted: float) -> str:
        return f"{recorded:g} / {predicted:g} / {round(1 - recorded - predicted, 6):g}"

    start = (stage["recorded_gaze"], stage["predicted_gaze"])
    moved = (stage.get("recorded_gaze_end"), stage.get("predicted_gaze_end"))
    end = tuple(first if last is None else last for first, last in zip(start, moved, strict=True))
    return words(*start) if end == start else f"{words(*start)} to {words(*end)}"


def data_words(data: DataSet) -> str:
    if not data.values:
        return f"Data: `{data.path.name}`; no `dataset.json` tells where they come from."
    splits = ", ".join(
        f"{part['num_records']} {name} records of {part['num_patients']} patients"
        for name, part in data.values.get("splits", {}).items()
    )
    phantoms = " Everything in it is generated: films, reports and gaze." if data.source == "phantom" else ""
    return f"Data: source `{data.source}`, {splits}.{phantoms}"


def without_places(recipe: dict) -> dict:
    """The recipe with names in place of paths: where things lie on one machine is nobody's business."""
    values = json.loads(json.dumps(recipe))
    values["output"] = Path(values["output"]).name
    values["data"]["path"] = Path(values["data"]["path"]).name
    values["data"]["more_paths"] = [Path(one).name for one in values["data"].get("more_paths", ())]
    if values["model"].get("checkpoint") and not hub_id(values["model"]["checkpoint"]):
        values["model"]["checkpoint"] = Path(values["model"]["checkpoint"]).name
    return values


def figures(recipe: dict, history: list[dict], metrics_files: Sequence[str | Path]) -> str:
    parts = [metrics_table(path) for path in metrics_files]
    if not metrics_files:
        parts.append(
            "Its reports have not been evaluated: `gaze2report evaluate --data DIR --split test --controls --out DIR` "
            "does it, and says what its gaze buys."
        )
    rows = []
    for stage in dict.fromkeys(entry["stage"] for entry in history):
        entries = [entry for entry in history if entry["stage"] == stage and "eval_loss" in entry]
        if entries:
            before, after = (shown_losses(one) for one in (entries[0], entries[-1]))
            rows += [
                f"| {stage} | {name} | {before[name]:.4g} | {value:.4g} |"
                for name, value in after.items()
                if name in before
            ]
    if rows:
        command = f"gaze2report train {recipe.get('name', 'RECIPE')}"
        if recipe:
            named = without_places(recipe)["data"]
            command += f" data.path={named['path']}"
            command += f" data.more_paths='[{', '.join(named['more_paths'])}]'" if named["more_paths"] else ""
        parts.append(
            "While it was trained, on the validation split, before and after each stage (losses, the lower the better; "
            "`auroc`: of the findings, chance is 0.5; `location_gain`: nats per fixation over centre bias). "
            "Printed by\n\n"
            f"```bash\n{command}\n```\n\n"
            "| Stage | Measure | Before | After |\n|:--|:--|--:|--:|\n" + "\n".join(rows)
        )
    return "\n\n".join(parts)


def metrics_table(path: str | Path) -> str:
    """One evaluation as a table, with the command that prints it."""
    values = read_json(Path(path))
    settings = values.get("settings", {})
    place = f"{Path(settings['data']).name}, " if settings.get("data") else ""
    folder = settings.get("data_folder") or "DIR"
    words = f"{values['n']} films"
    if settings.get("gaze_source"):
        words += f", gaze {settings['gaze_source']}"
    split = settings.get("split") or "test"
    lines = [
        f"On {place}{split} ({words}, protocol {values.get('protocol')}); brackets are 95 % intervals. Printed by",
        "",
        f"```bash\ngaze2report evaluate --data {folder} --split {split} --out results\n```",
        "",
        "| Metric | Value |",
        "|:--|--:|",
    ]
    for name, one in values.get("metrics", {}).items():
        if isinstance(one, dict) and isinstance(one.get("value"), (int, float)):
            ci = one.get("ci95")
            interval = f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else ""
            lines.append(f"| {name} | {one['value']:.3f}{interval} |")
    if missing := values.get("unavailable"):
        lines += ["", f"Not computed: {', '.join(sorted(missing))}."]
    return "\n".join(lines)


def limits(recipe: dict, is_free: bool, is_evaluated: bool) -> str:
    lines = ["It was made for frontal chest films of adults; other views, other ages and photographs are outside."]
    if is_free:
        lines.append(
            "It has never learned from a real film, report or reader. On a real film its output means nothing."
        )
    lines += [
        "Where it looked is a prediction unless gaze was recorded. A fixation beside a sentence does not prove that "
        "the sentence came from there.",
        "A report can be fluent and wrong: findings invented, missed, or on the wrong side.",
        "Its confidence and its probabilities are not calibrated unless the figures above say so.",
    ]
    if not is_evaluated:
        lines.append("How good it is has not been measured beyond the losses above.")
    size = (recipe.get("model") or {}).get("image_size")
    if size and not recipe["model"].get("checkpoint"):
        lines.append(f"It sees films at {size} x {size} pixels; what is small at that size is lost.")
    return "\n".join(f"* {line}" for line in lines)


def terms(data: list[DataSet], is_free: bool) -> str:
    if is_free:
        return "Apache-2.0. It learned from generated phantoms alone."
    words = "The licences of its data and of its base model decide how it may be used and shared."
    for licence in dict.fromkeys(one.values.get("licence") for one in data):
        words += f"\n\nOf the data: {licence}" if licence else ""
    if any(one.source in CREDENTIALED for one in data):
        words += (
            "\n\nIt learned from credentialed data of PhysioNet: such models are usually shared behind a gate, with "
            "those who hold the same credentials. Set the repository to gated before making it public."
        )
    return words


def hub_id(name: str | None) -> str | None:
    """`name` if it reads as a Hub id and is no local folder."""
    if not name or Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    return name


def read_json(path: Path) -> dict | None:
    """The JSON object in a file; `None` where there is no file.

    Raises:
        DataError: the file is no JSON object.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: it cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: it must hold a JSON object.")
    return values


__all__ = ["card_text", "write_card"]
