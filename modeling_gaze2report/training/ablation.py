"""What gaze is worth: the same training with and without a part of it, over several seeds.

    python -m modeling_gaze2report.training.ablation gaze-supervision --data DIR --out DIR [--seeds 3] [key=value ...]
    python -m modeling_gaze2report.training.ablation modules --data DIR --out DIR [--seeds 3] [key=value ...]

* `gaze-supervision`: the first stage of the recipe with its gaze attention loss and without it (the claim of Eyes on
  the Image, arXiv 2508.13068); AUROC and F1 of the findings on test films that are read without gaze.
* `modules`: the last stage with all tasks and with each of GazeX's (arXiv 2604.14316) `observe`, `reading` and `order`
  left out, its share going to the others; labels and words of the reports, order and observation boxes. The stages
  before it are trained once per seed.

Both sides of a comparison have the same seed, records, steps and test films. Every run leaves its answers in a file of
its own; a study that was cut off goes on after the last one. `results.json` and `results.md` hold the differences with
intervals over test patients, and their deviation over seeds.
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

from ..evaluation import ModelPredictor
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
from .recipe import ModelRecipe, Recipe, StageRecipe, load_recipe
from .stages import run

MODULES = ("observe", "reading", "order")


def variants_of_supervision(stage: StageRecipe) -> dict[str, StageRecipe]:
    """The stage with its gaze attention loss, and without.

    Raises:
        DataError: the stage has no such loss.
    """
    if not stage.losses.gaze_attention:
        raise DataError(f"stage {stage.name} of the recipe has no gaze attention loss to switch off.")
    off = dataclasses.replace(stage, losses=dataclasses.replace(stage.losses, gaze_attention=0.0))
    return {"with gaze supervision": stage, "without gaze supervision": off}


def variants_of_modules(stage: StageRecipe) -> dict[str, StageRecipe]:
    """The stage with all tasks, and without each of the modules that it has.

    Raises:
        DataError: it has none.
    """
    present = [name for name in MODULES if stage.tasks.get(name)]
    if not present:
        raise DataError(f"stage {stage.name} of the recipe has none of the tasks {', '.join(MODULES)}.")
    variants = {"all modules": stage}
    for left_out in present:
        tasks = {name: share for name, share in stage.tasks.items() if name != left_out}
        variants[f"without {left_out}"] = dataclasses.replace(stage, tasks=tasks)
    return variants


def train_once(recipe: Recipe, folder: Path) -> Path:
    """The folder of the recipe's model, trained unless it is there."""
    if not (folder / "training_log.json").is_file():
        run(dataclasses.replace(recipe, output=str(folder)))
    return folder


def answers_to_findings(folder: Path, records: list[dict], batch_size: int, seed: int) -> dict:
    """Findings of the test films, read without gaze."""
    reader = load_reader(str(folder))
    set_seed(seed)
    probabilities = []
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        films = [load_film(record["image"], name=record["image_id"]) for record in batch]
        features = image_features(reader, films, None, "none")
        probabilities += reader.processor.finding_probabilities(features.findings.logits.cpu()).tolist()
    return {"probabilities": probabilities, "thresholds": reader.processor.thresholds}


def answers_to_tasks(folder: Path, records: list[dict], batch_size: int, seed: int) -> dict:
    """Reports of the test films, and the statistics of order and observation."""
    reader = load_reader(str(folder))
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
    overrides = [f"data.path={args.data}", *args.overrides]
    recipe = load_recipe(args.recipe, overrides)
    stage = recipe.stages[0 if is_supervision else -1]
    variants = (variants_of_supervision if is_supervision else variants_of_modules)(stage)
    answer: Callable = answers_to_findings if is_supervision else answers_to_tasks
    score: Callable = metrics_of_findings if is_supervision else metrics_of_tasks
    records = list(load_split(args.data, "test", args.max_test_records))
    out = Path(args.out)
    scores: dict[str, list[dict[str, Metric]]] = {name: [] for name in variants}
    for seed in range(args.seeds):
        seeded = dataclasses.replace(recipe, seed=seed)
        if not is_supervision and len(recipe.stages) > 1:
            base = train_once(dataclasses.replace(seeded, stages=recipe.stages[:-1]), out / f"seed-{seed}" / "base")
            model = ModelRecipe(checkpoint=str(base))
            seeded = dataclasses.replace(seeded, model=model)
        for name, changed in variants.items():
            folder = out / f"seed-{seed}" / name.replace(" ", "-")
            file = folder.with_suffix(".json")
            if not file.is_file():
                train_once(dataclasses.replace(seeded, stages=[changed]), folder)
                write_json(file, answer(folder, records, args.batch_size, seed))
                if not args.keep_models:
                    shutil.rmtree(folder)
            answers = json.loads(file.read_text(encoding="utf-8"))
            scores[name].append(score(answers, records))
            print(f"seed {seed}, {name}: {summary(scores[name][-1])}", flush=True)
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
                f"{one['difference']:+.4f} [{one['ci95'][0]:+.4f}, {one['ci95'][1]:+.4f}]",
                number(one["sd"], 4),
            ]
            for name, one in comparison.items()
        ]
        header = ["Metric", "First", "Second", "Difference (95 % over patients)", "SD over seeds"]
        text += f"\n## {title}\n\n{table(header, rows)}\n"
    write_text(Path(args.out) / "results.md", text)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.ablation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("study", choices=("gaze-supervision", "modules"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, as in `gaze2report train`")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `gaze2report prepare` wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--recipe", default="embedded", help="recipe whose stage is varied (default: embedded)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--max-test-records", type=int, metavar="N", help="the first N test records only")
    parser.add_argument("--batch-size", type=int, default=16, help="test films at once (default: 16)")
    parser.add_argument("--keep-models", action="store_true", help="do not delete the models that were compared")
    args = parser.parse_intermixed_args(arguments)
    try:
        print(run_study(args))
    except Gaze2ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
