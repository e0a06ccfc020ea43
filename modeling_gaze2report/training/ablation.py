"""What parts of the training are worth: the same training with and without each, over several seeds.

    python -m modeling_gaze2report.training.ablation gaze-supervision --data DIR --out DIR [--seeds 3] [key=value ...]
    python -m modeling_gaze2report.training.ablation modules --data DIR --out DIR [--seeds 3] [key=value ...]

* `gaze-supervision`: the first stage of the recipe that has the gaze attention loss, with it and without it (the claim
  of Eyes on the Image, arXiv 2508.13068); AUROC and F1 of the findings on test films that are read without gaze.
* `modules`: the last stage of the recipe that has any of GazeX's (arXiv 2604.14316) `observe`, `reading` and `order`,
  with all tasks and with each of the three left out, its share going to the others; labels and words of the reports,
  order and observation boxes.

The stages before the varied one are trained once per seed, those after it are left out. Both sides of a comparison have
the same seed, records, steps and test films (the split `test` of the data). Every run leaves its answers in a file of
its own; a study that was cut off goes on after the last one, and more seeds may be added to a finished one.
`results.json` and `results.md` hold the differences with intervals over test patients, and their deviation over seeds.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import set_seed

from ..evaluation import ModelPredictor, data_name
from ..inference import image_features, load_reader
from ..processing.datasets.reading import load_split
from ..processing.errors import DataError, Gaze2ReportError
from ..processing.image_processing_gaze2report import load_film
from ..processing.metrics.evaluation import Prediction, dataset_statistics
from ..processing.metrics.files import write_json, write_text
from ..processing.metrics.findings import calibration_statistics, finding_statistics
from ..processing.metrics.reports import PROTOCOLS
from ..processing.metrics.resampling import Bootstrap, Metric, Statistics, compare_runs, ratio
from ..processing.metrics.results import metric_title, number, table
from ..task_evaluation import TaskEvaluation
from .recipe import ModelRecipe, Recipe, StageRecipe, load_recipe, recipe_values
from .stages import run

MODULES = ("observe", "reading", "order")


# Parts of a recipe that say where it runs, not what comes out.
INDIFFERENT = ("output", "num_workers", "device", "report_to")


def varied_stage(study: str, recipe: Recipe) -> int:
    """The number of the stage that a study varies.

    Raises:
        DataError: no stage has what is to be switched off, or none up to it learns what the study measures.
    """
    if study == "gaze-supervision":
        having = [number for number, stage in enumerate(recipe.stages) if stage.losses.gaze_attention]
        if not having:
            raise DataError(f"no stage of the recipe {recipe.name} has a gaze attention loss to switch off.")
        if not any(stage.losses.findings for stage in recipe.stages[: having[0] + 1]):
            raise DataError(
                f"stage {recipe.stages[having[0]].name} of the recipe {recipe.name} has a gaze attention loss, but "
                "neither it nor a stage before it learns the findings, which the study compares."
            )
        return having[0]
    having = [
        number
        for number, stage in enumerate(recipe.stages)
        if stage.losses.report and any(stage.tasks.get(name) for name in MODULES)
    ]
    if not having:
        raise DataError(f"no stage of the recipe {recipe.name} learns any of the tasks {', '.join(MODULES)}.")
    return having[-1]


def variants_of_supervision(stage: StageRecipe) -> dict[str, StageRecipe]:
    """The stage with its gaze attention loss, and without."""
    off = dataclasses.replace(stage, losses=dataclasses.replace(stage.losses, gaze_attention=0.0))
    return {"with gaze supervision": stage, "without gaze supervision": off}


def variants_of_modules(stage: StageRecipe) -> dict[str, StageRecipe]:
    """The stage with all tasks, and without each of the modules that it has.

    Raises:
        DataError: it has no other task than one module.
    """
    variants = {"all modules": stage}
    for left_out in (name for name in MODULES if stage.tasks.get(name)):
        tasks = {name: share for name, share in stage.tasks.items() if name != left_out}
        if not any(tasks.values()):
            raise DataError(f"stage {stage.name} has no task but {left_out}: nothing is left without it.")
        losses = dataclasses.replace(stage.losses, order=0.0) if left_out == "order" else stage.losses
        variants[f"without {left_out}"] = dataclasses.replace(stage, tasks=tasks, losses=losses)
    return variants


def open_study(out: Path, settings: dict) -> None:
    """Note what a study is made with in `study.json`, so that answers of different settings never meet in one table.

    Raises:
        DataError: the folder holds a study with other settings.
    """
    file = out / "study.json"
    settings = json.loads(json.dumps(settings))
    if not file.is_file():
        write_json(file, settings)
        return
    before = flattened(json.loads(file.read_text(encoding="utf-8")))
    now = flattened(settings)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise DataError(
                f"{file}: a study with other settings stands there: {key} was {before.get(key)!r} and is now "
                f"{now.get(key)!r}. Give another --out, or remove that folder."
            )


def flattened(values, path: str = "") -> dict:
    """Nested mappings and lists as one mapping from dotted keys, empty ones kept."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    if not isinstance(values, dict) or not values:
        return {path: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in flattened(inner, f"{path}.{name}" if path else str(name)).items()
    }


def study_settings(recipe: Recipe, **more) -> dict:
    """The recipe without what is different from run to run of one study, and more."""
    values = {key: value for key, value in recipe_values(recipe).items() if key not in (*INDIFFERENT, "seed")}
    data = {key: value for key, value in values["data"].items() if key != "path"}
    return {"recipe": values | {"data": data}, "data": data_name(recipe.data.path), **more}


def train_once(recipe: Recipe, folder: Path) -> Path:
    """The folder of the recipe's model, trained unless it is there."""
    if not (folder / "training_log.json").is_file():
        run(dataclasses.replace(recipe, output=str(folder)))
    return folder


def remove_model(folder: Path) -> None:
    """Delete a trained model; the log of its training, beside it, stays."""
    if folder.is_dir():
        shutil.rmtree(folder)


def answers_to_findings(folder: Path, records: list[dict], batch_size: int, seed: int, device: str) -> dict:
    """Findings of the test films, read without gaze."""
    reader = load_reader(str(folder), device)
    set_seed(seed)
    probabilities = []
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        films = [load_film(record["image"], name=record["image_id"]) for record in batch]
        features = image_features(reader, films, None, "none")
        probabilities += reader.processor.finding_probabilities(features.findings.logits.cpu()).tolist()
    return {"probabilities": probabilities, "thresholds": reader.processor.thresholds}


def answers_to_tasks(folder: Path, records: list[dict], batch_size: int, seed: int, device: str) -> dict:
    """Reports of the test films, and the statistics of order and observation."""
    reader = load_reader(str(folder), device)
    set_seed(seed)
    predict = ModelPredictor(reader)
    reports = []
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        reports += [one.report for one in predict(batch, "predicted", [None] * len(batch))]
    tasks = TaskEvaluation(reader, records, batch_size=batch_size, seed=seed)
    tasks.orders()
    tasks.observations()
    return {"reports": reports, "tasks": {name: one.values.tolist() for name, one in tasks.results.metrics.items()}}


def metrics_of_findings(answers: dict, records: list[dict]) -> dict[str, Metric]:
    labels = [[np.nan if one is None else one for one in record["labels"] or [None] * 14] for record in records]
    probabilities = np.array(answers["probabilities"])
    statistics = finding_statistics(probabilities, labels, np.array(answers["thresholds"]))
    return {**statistics, "ece": calibration_statistics(probabilities, labels)}


def metrics_of_tasks(answers: dict, records: list[dict]) -> dict[str, Metric]:
    predictions = [Prediction(report) for report in answers["reports"]]
    # METEOR needs Java, and CIDEr the whole corpus of references; the others tell enough.
    text, _ = dataset_statistics(predictions, records, PROTOCOLS["raw"], skip=("meteor", "cider"))
    tasks = {name: Statistics(name, np.array(values), ratio) for name, values in answers["tasks"].items()}
    kept = ("chexpert_rules_micro_f1_14", "chexpert_rules_macro_f1_14", "bleu_4", "rouge_l")
    return {name: text[name] for name in kept if name in text} | {
        name: tasks[name] for name in ("order_pairs", "order_exact", "observe_miou") if name in tasks
    }


def run_study(args: argparse.Namespace) -> str:
    """Train and score what is not there yet, and return the table.

    Raises:
        RecipeError: a recipe that cannot be used.
        DataError: a recipe without the part that is to be switched off; a split that is not there.
    """
    is_supervision = args.study == "gaze-supervision"
    recipe = load_recipe(args.recipe, [f"data.path={args.data}", *args.overrides])
    number = varied_stage(args.study, recipe)
    variants = (variants_of_supervision if is_supervision else variants_of_modules)(recipe.stages[number])
    answer: Callable = answers_to_findings if is_supervision else answers_to_tasks
    score: Callable = metrics_of_findings if is_supervision else metrics_of_tasks
    records = list(load_split(args.data, "test", args.max_test_records))
    out = Path(args.out)
    open_study(out, study_settings(recipe, study=args.study, test_films=len(records)))
    scores: dict[str, list[dict[str, Metric]]] = {name: [] for name in variants}
    for seed in range(args.seeds):
        seeded = dataclasses.replace(recipe, seed=seed)
        base = out / f"seed-{seed}" / "base"
        for name, changed in variants.items():
            folder = out / f"seed-{seed}" / name.replace(" ", "-")
            file = folder.with_suffix(".json")
            if not file.is_file():
                model = recipe.model
                if number:
                    before = dataclasses.replace(seeded, stages=recipe.stages[:number])
                    model = ModelRecipe(checkpoint=str(train_once(before, base)))
                train_once(dataclasses.replace(seeded, model=model, stages=[changed]), folder)
                write_json(file, answer(folder, records, args.batch_size, seed, recipe.device))
            if not args.keep_models:
                remove_model(folder)
            answers = json.loads(file.read_text(encoding="utf-8"))
            scores[name].append(score(answers, records))
            print(f"seed {seed}, {name}: {summary(scores[name][-1])}", flush=True)
        if not args.keep_models:
            remove_model(base)
    return write_results(args, recipe, records, scores)


def summary(metrics: dict[str, Metric]) -> str:
    return ", ".join(f"{name} {metric.score():.4f}" for name, metric in metrics.items())


def write_results(
    args: argparse.Namespace, recipe: Recipe, records: list[dict], scores: dict[str, list[dict[str, Metric]]]
) -> str:
    """Compare the first variant with each other one; returns what `results.md` says."""
    first, *others = scores
    patients = [str(record["patient_id"]) for record in records]
    comparisons = {
        f"{first} minus {other}": compare_runs(scores[first], scores[other], Bootstrap(), patients) for other in others
    }
    results = {
        "study": args.study,
        "recipe": recipe.name,
        "overrides": args.overrides,
        "seeds": args.seeds,
        "test_films": len(records),
        "patients": len(set(patients)),
        "comparisons": comparisons,
    }
    write_json(Path(args.out) / "results.json", results)
    text = f"# {args.study}: {args.seeds} seeds, {len(records)} test films of {len(set(patients))} patients\n"
    for title, comparison in comparisons.items():
        rows = [
            [
                metric_title(name),
                number(one["first"], 4),
                number(one["second"], 4),
                signed_interval(one),
                number(one["sd"], 4),
            ]
            for name, one in comparison.items()
        ]
        header = ["Metric", "First", "Second", "Difference (95 % over patients)", "SD over seeds"]
        text += f"\n## {title}\n\n{table(header, rows)}\n"
    write_text(Path(args.out) / "results.md", text)
    return text


def signed_interval(one: dict) -> str:
    """A difference of `compare_runs` with its interval."""
    return f"{one['difference']:+.4f} [{one['ci95'][0]:+.4f}, {one['ci95'][1]:+.4f}]"


def at_least_one(text: str) -> int:
    """An argument that counts something.

    Raises:
        argparse.ArgumentTypeError: it is no whole number, or below 1.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def status_of(study: Callable[[], str]) -> int:
    """Run a study as a command: print what it says; the exit status, 2 with a line on stderr where it cannot be run."""
    try:
        print(study())
    except Gaze2ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.ablation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("study", choices=("gaze-supervision", "modules"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, as in `gaze2report train`")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `gaze2report prepare` wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--recipe", default="embedded", metavar="RECIPE", help="whose stage is varied (default: embedded)"
    )
    parser.add_argument("--seeds", type=at_least_one, default=3, metavar="N", help="runs of each side (default: 3)")
    parser.add_argument("--max-test-records", type=at_least_one, metavar="N", help="the first N test records only")
    parser.add_argument(
        "--batch-size", type=at_least_one, default=16, metavar="N", help="test films at once (default: 16)"
    )
    parser.add_argument("--keep-models", action="store_true", help="do not delete the models that were compared")
    args = parser.parse_intermixed_args(arguments)
    return status_of(lambda: run_study(args))


if __name__ == "__main__":
    sys.exit(main())
