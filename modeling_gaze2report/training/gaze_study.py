"""What gaze buys, film by film of a simulator's seed that was never trained on, from few training films to many.

    gaze2report prepare phantom --num-films 12700 --image-size 128 --seed 7 --out phantoms
    gaze2report prepare phantom --num-films 1000 --image-size 128 --seed 2026 --out fresh
    python -m modeling_gaze2report.training.gaze_study --data phantoms --test-data fresh --out study [key=value ...]

For each number of training films and each seed two models are trained:

* `with gaze`: by the recipe. It reads the test films with every gaze of `gaze2report evaluate --controls`: recorded,
  predicted, none, and wrong in four stated ways (`processing.metrics.controls`).
* `without gaze branch`: the same architecture with the same number of parameters and of visual-gaze tokens, trained and
  read with no gaze at all, and without the losses and tasks that show it gaze. What the recipe says of the scanpath
  model alone is left out; every other stage has the same films, seed and steps.

Test films are all films of `--test-data`, whatever their split; no patient of theirs may be among the training films.
Regimes are nested: 500 training films are the first of the 2,000. Every training and every reading of the test films
leaves its result in a file of its own, and a study that was cut off goes on after the last one. Seeds may be added to a
finished one, and regimes as well (with `--same-steps` none above the largest). `results.json` and `results.md` are
written anew after each seed of a regime.

With `--same-steps`, the default, every regime trains for the steps of the largest. With the same number of epochs, a
twentieth of the films would also mean a twentieth of the steps: a model that has not yet learnt to write shows nothing
about gaze, so what a small regime lacks should be films alone. `--no-same-steps` keeps the epochs and costs less.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import set_seed

from ..evaluation import ModelPredictor, data_name
from ..inference import Reader, load_reader
from ..processing.datasets.reading import load_split
from ..processing.errors import DataError
from ..processing.metrics.controls import GAZE_SOURCES
from ..processing.metrics.evaluation import Prediction, dataset_statistics, predict_all
from ..processing.metrics.files import write_json, write_text
from ..processing.metrics.reports import PROTOCOLS
from ..processing.metrics.resampling import Bootstrap, Metric, compare_runs, seed_summary
from ..processing.metrics.results import metric_title, number, ordered_metrics, table
from ..processing.metrics.scanpath_scoring import ScanpathScoring
from .ablation import (
    at_least_one,
    open_study,
    remove_model,
    signed_interval,
    status_of,
    study_settings,
    train_once,
)
from .data import ReportCollator, load_records
from .progress import duration, probe_batch, probe_step, unchanged
from .recipe import Recipe, StageRecipe, load_recipe
from .stages import LossModel, StageTrainer, freeze_all_but, prepare_model, training_arguments

WITH, WITHOUT = "with gaze", "without gaze branch"
# Losses and tasks that show a model recorded gaze.
GAZE_LOSSES = ("scanpath", "scanpath_map", "gaze_attention", "order")
GAZE_TASKS = ("observe", "order")
# What is read: the model and the gaze it reads with. The row of a table has the name of its gaze, the last its model's.
SYSTEMS = {**{source: (WITH, source) for source in GAZE_SOURCES}, WITHOUT: (WITHOUT, "none")}
# First minus second. What a wrong gaze costs beside the recorded one is the fairer question, for wrong gaze is made of
# recorded gaze; beside the predicted one it is what a user would lose.
CONTRASTS = (
    ("recorded", "predicted"),
    ("predicted", "none"),
    ("predicted", "other-image"),
    ("predicted", WITHOUT),
    ("predicted", "centre-bias"),
    ("predicted", "uniform"),
    ("predicted", "order-shuffled"),
    ("recorded", "none"),
    ("recorded", "other-image"),
    ("recorded", "order-shuffled"),
)
CLAIM = (("predicted", "none"), ("predicted", "other-image"))
CLAIMED = ("chexpert_rules_micro_f1_14", "chexpert_rules_macro_f1_14", "auroc_macro")
KEPT = (*CLAIMED, "f1_macro", "bleu_4", "rouge_l")
KEPT_OF_GAZE = ("scanmatch", "multimatch_position", "dtw", "cc", "nss")
SPLITS = ("train", "validation", "test")
TIMED_FILMS = 256


# -- recipes ----------------------------------------------------------------------------------------------------------


def without_gaze(recipe: Recipe) -> Recipe:
    """The recipe of a model that never meets gaze.

    Raises:
        DataError: nothing is left to learn.
    """
    stages = [changed for stage in recipe.stages if (changed := stage_without_gaze(stage)) is not None]
    if not stages:
        raise DataError(f"the recipe {recipe.name} learns nothing but gaze: there is no model without it to compare.")
    return dataclasses.replace(recipe, stages=stages)


def stage_without_gaze(stage: StageRecipe) -> StageRecipe | None:
    """A stage without the gaze branch; `None` where that leaves nothing to learn."""
    losses = dataclasses.replace(stage.losses, **dict.fromkeys(GAZE_LOSSES, 0.0))
    trainable = [part for part in stage.trainable if part != "scanpath"]
    if not trainable or not any(vars(losses).values()):
        return None
    tasks = {name: share for name, share in stage.tasks.items() if name not in GAZE_TASKS}
    return dataclasses.replace(
        stage,
        losses=losses,
        trainable=trainable,
        tasks=tasks if any(tasks.values()) else {"report": 1.0},
        recorded_gaze=0.0,
        predicted_gaze=0.0,
        recorded_gaze_end=None,
        predicted_gaze_end=None,
        soft_gaze=False,
    )


def steps_per_epoch(stage: StageRecipe, films: int) -> int:
    return math.ceil(math.ceil(films / stage.batch_size) / stage.gradient_accumulation_steps)


def steps_of(stage: StageRecipe, films: int) -> int:
    return stage.max_steps or math.ceil(steps_per_epoch(stage, films) * stage.epochs)


def recipe_of(recipe: Recipe, films: int, seed: int, model: str, same_steps_as: int | None) -> Recipe:
    """The recipe of one training.

    Args:
        films: number of training films.
        model: `WITH` or `WITHOUT`.
        same_steps_as: number of films whose steps are taken, and checked as often on validation films; `None` for the
            epochs of the recipe.
    """
    recipe = recipe if model == WITH else without_gaze(recipe)
    stages = recipe.stages
    if same_steps_as is not None:
        stages = [
            dataclasses.replace(
                stage,
                max_steps=steps_of(stage, same_steps_as),
                eval_steps=stage.eval_steps or steps_per_epoch(stage, same_steps_as),
            )
            for stage in stages
        ]
    data = dataclasses.replace(recipe.data, max_train_records=films)
    return dataclasses.replace(recipe, seed=seed, data=data, stages=stages)


# -- films ------------------------------------------------------------------------------------------------------------


def load_test_films(folder: str, limit: int | None) -> list[dict]:
    """All films of a prepared data set.

    Raises:
        DataError: there are none, or one lacks its report or gaze.
    """
    records = []
    for split in SPLITS:
        if any(Path(folder).glob(f"{split}-*.parquet")):
            records += list(load_split(folder, split))
    records = records[:limit]
    if not records:
        raise DataError(f"{folder}: there is no film; prepare the test films with `gaze2report prepare phantom`.")
    for record in records:
        for name in ("report", "fixations"):
            if not record.get(name):
                raise DataError(
                    f"{folder}: film {record['image_id']!r} has no {name}, which this study needs of every test film; "
                    "use films of the simulator."
                )
    return records


def check_films(args: argparse.Namespace, recipe: Recipe, records: list[dict]) -> None:
    """Refuse too few training films, and test films of patients that are trained on.

    Raises:
        DataError: either.
    """
    largest = max(args.regimes)
    train = load_split(args.data, recipe.data.train_split, largest).select_columns(["patient_id"])
    if len(train) < largest:
        raise DataError(
            f"{args.data} has {len(train)} training films, and a regime of {largest} was asked for: prepare more, or "
            f"give --regimes with {len(train)} at most."
        )
    trained = {str(name) for name in train["patient_id"]}
    trained |= {str(name) for name in load_split(args.data, recipe.data.validation_split)["patient_id"]}
    for record in records:
        if str(record["patient_id"]) in trained:
            raise DataError(
                f"{args.test_data}: patient {record['patient_id']!r} of film {record['image_id']!r} is also in "
                f"{args.data}: test films must come from another seed of the simulator."
            )


# -- plan -------------------------------------------------------------------------------------------------------------


def seconds_per_step(recipe: Recipe) -> dict[str, float]:
    """Seconds of a step of each stage on this machine, each measured on one batch.

    Memory that a stage has not got is left to the training itself to report.
    """
    data = dataclasses.replace(recipe.data, max_train_records=TIMED_FILMS, max_validation_records=1)
    train, validation = load_records(data, recipe.seed)
    model, processor = prepare_model(recipe, train)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in recipe.stages:
            freeze_all_but(model, stage.trainable)
            collator = ReportCollator(
                processor,
                recorded_gaze=stage.recorded_gaze,
                predicted_gaze=stage.predicted_gaze,
                tasks=stage.tasks,
                texts_per_film=stage.texts_per_film,
                with_text=bool(stage.losses.contrast),
            )
            trainer = StageTrainer(
                model=LossModel(model, stage),
                args=training_arguments(recipe, stage, Path(folder)),
                stage=stage,
                kept=set(),
                train_dataset=train,
                eval_dataset=validation,
                data_collator=collator,
            )
            batch, batch_seconds = probe_batch(trainer)
            with unchanged(trainer.model):
                probe_step(trainer, batch)  # the first one also sets things up
                step_seconds = probe_step(trainer, batch)[1]
            one = step_seconds + batch_seconds / max(1, recipe.num_workers)
            seconds[stage.name] = one * stage.gradient_accumulation_steps
    return seconds


class Plan:
    """What a study has still to do, and how long that takes by what was measured.

    Attributes:
        trainings: recipe of each training that is missing, by its folder.
        readings: how often the test films are to be read.
        step_seconds: of each stage, by its name.
        reading_seconds: of all test films once; `None` before the first time.
    """

    def __init__(self, trainings: dict[Path, Recipe], readings: int, films: int, step_seconds: dict[str, float]):
        self.trainings, self.readings, self.films = dict(trainings), readings, films
        self.step_seconds, self.reading_seconds = step_seconds, None

    def steps(self) -> int:
        return sum(
            steps_of(stage, one.data.max_train_records) for one in self.trainings.values() for stage in one.stages
        )

    def __str__(self) -> str:
        seconds = sum(
            steps_of(stage, one.data.max_train_records) * self.step_seconds[stage.name]
            for one in self.trainings.values()
            for stage in one.stages
        )
        reading = f"{self.readings} readings of {self.films} test films"
        if self.reading_seconds is not None:
            reading += f", about {duration(self.readings * self.reading_seconds)}"
        return (
            f"to do: {len(self.trainings)} trainings of {self.steps()} steps together, about {duration(seconds)} by "
            f"one measured step of each stage, and their evaluations; {reading}"
        )


# -- reading ----------------------------------------------------------------------------------------------------------


def read_films(reader: Reader, records: list[dict], source: str, args: argparse.Namespace) -> dict:
    """What a model says about the test films with one gaze."""
    set_seed(args.control_seed)
    predictions = predict_all(
        ModelPredictor(reader),
        records,
        source,
        args.control_seed,
        args.batch_size,
        lambda batches: tqdm(batches, disable=None, unit="batch"),
    )
    answers = {
        "reports": [one.report for one in predictions],
        "probabilities": [np.asarray(one.finding_probabilities).tolist() for one in predictions],
        "thresholds": np.asarray(reader.processor.thresholds).tolist(),
    }
    if source == "predicted":
        answers["fixations"] = [np.round(np.asarray(one.fixations), 4).tolist() for one in predictions]
    return answers


def metrics_of(answers: dict, records: list[dict]) -> dict[str, Metric]:
    """Metrics of one reading of the test films; of the gaze as well, where the model predicted it."""
    fixations = answers.get("fixations") or [None] * len(records)
    predictions = [
        Prediction(report, None if path is None else np.array(path).reshape(-1, 3), np.array(probabilities))
        for report, path, probabilities in zip(answers["reports"], fixations, answers["probabilities"], strict=True)
    ]
    metrics, _ = dataset_statistics(
        predictions,
        records,
        PROTOCOLS["raw"],
        scoring=ScanpathScoring() if "fixations" in answers else None,
        skip=("meteor", "cider"),  # METEOR needs Java, CIDEr the whole corpus of references
        thresholds=np.array(answers["thresholds"]),
    )
    return {name: metrics[name] for name in (*KEPT, *KEPT_OF_GAZE) if name in metrics}


# -- study ------------------------------------------------------------------------------------------------------------


def run_study(args: argparse.Namespace) -> str:
    """Train, read and score what is not there yet, and return the tables.

    Raises:
        RecipeError: a recipe that cannot be used.
        DataError: too few films, films of a patient on both sides, a folder with another study.
    """
    recipe = load_recipe(args.recipe, [f"data.path={args.data}", *args.overrides])
    records = load_test_films(args.test_data, args.max_test_records)
    check_films(args, recipe, records)
    largest = max(args.regimes) if args.same_steps else None
    out = Path(args.out)
    test = {"test_data": data_name(args.test_data), "test_films": len(records), "control_seed": args.control_seed}
    open_study(out, study_settings(recipe, study="gaze", same_steps_as=largest, **test))
    runs = {
        (films, seed, model): out / f"films-{films}" / f"seed-{seed}" / model.replace(" ", "-")
        for seed in range(args.seeds)
        for films in args.regimes
        for model in (WITH, WITHOUT)
    }
    recipes = {folder: recipe_of(recipe, *key, largest) for key, folder in runs.items()}
    answers = {
        (films, seed, system): runs[films, seed, model].with_suffix(f".{source}.json")
        for films, seed in dict.fromkeys(key[:2] for key in runs)
        for system, (model, source) in SYSTEMS.items()
    }
    todo = [key for key, file in answers.items() if not file.is_file()]
    needed = dict.fromkeys(runs[films, seed, SYSTEMS[system][0]] for films, seed, system in todo)
    missing = {folder: recipes[folder] for folder in needed if not is_trained(folder)}
    plan = Plan(missing, len(todo), len(records), seconds_per_step(recipe) if missing else {})
    print(plan, flush=True)
    patients = [str(record["patient_id"]) for record in records]
    scores: dict[int, dict[str, list[dict[str, Metric]]]] = {films: {} for films in args.regimes}
    results: dict[int, dict] = {}
    text = ""
    for seed in range(args.seeds):
        for films in args.regimes:
            readers: dict[Path, Reader] = {}
            for system, (model, source) in SYSTEMS.items():
                folder, file = runs[films, seed, model], answers[films, seed, system]
                if not file.is_file():
                    if folder not in readers:
                        readers = {folder: load_reader(str(train_once(recipes[folder], folder)), recipe.device)}
                        plan.trainings.pop(folder, None)
                    start = time.monotonic()
                    write_json(file, read_films(readers[folder], records, source, args))
                    plan.readings, plan.reading_seconds = plan.readings - 1, time.monotonic() - start
                    print(plan, flush=True)
                metrics = metrics_of(json.loads(file.read_text(encoding="utf-8")), records)
                scores[films].setdefault(system, []).append(metrics)
                words = ", ".join(f"{name} {metrics[name].score():.4f}" for name in CLAIMED if name in metrics)
                print(f"{films} films, seed {seed}, {system}: {words}", flush=True)
            if not args.keep_models:
                for model in (WITH, WITHOUT):
                    remove_model(runs[films, seed, model])
            results[films] = regime_results(scores[films], patients)
            text = write_results(args, recipe, patients, dict(sorted(results.items())))
    return text


def is_trained(folder: Path) -> bool:
    return (folder / "training_log.json").is_file()


# -- results ----------------------------------------------------------------------------------------------------------


def write_results(args: argparse.Namespace, recipe: Recipe, patients: Sequence[str], regimes: dict[int, dict]) -> str:
    """Write the tables of what is done so far; returns what `results.md` says."""
    results = {
        "study": "gaze",
        "recipe": recipe.name,
        "overrides": args.overrides,
        "data": data_name(args.data),
        "test_data": data_name(args.test_data),
        "same_steps": args.same_steps,
        "seeds": args.seeds,
        "test_films": len(patients),
        "patients": len(set(patients)),
        "regimes": regimes,
    }
    write_json(Path(args.out) / "results.json", results)
    overrides = "".join(f" {one}" for one in args.overrides)
    text = (
        f"# What gaze buys: {len(patients)} test films of {len(set(patients))} patients\n\n"
        f"Trained by the recipe {recipe.name}{overrides} on {data_name(args.data)}; test films: "
        f"{data_name(args.test_data)}. "
        + ("Every regime trains for the steps of the largest. " if args.same_steps else "")
        + "Brackets: 95 % paired bootstrap intervals over test patients, which keep the seeds; not corrected for the "
        "number of comparisons.\n"
    )
    for films, one in regimes.items():
        text += f"\n## {films} training films, {one['seeds']} of {args.seeds} seeds\n\n{regime_tables(one)}"
    write_text(Path(args.out) / "results.md", text)
    return text


def regime_results(systems: dict[str, list[dict[str, Metric]]], patients: list[str]) -> dict:
    """Scores over seeds, differences and what they say of the claim, of one number of training films."""
    rows = {
        system: {name: seed_summary([run[name].score() for run in runs]) for name in ordered_metrics(runs[0])}
        for system, runs in systems.items()
    }
    # Metrics of the gaze itself are of the predicted one alone.
    compared = {
        system: [{name: run[name] for name in KEPT if name in run} for run in runs] for system, runs in systems.items()
    }
    contrasts = {
        f"{first} minus {second}": compare_runs(compared[first], compared[second], Bootstrap(), patients)
        for first, second in CONTRASTS
    }
    verdicts = {name: verdict(contrasts, name) for name in CLAIMED if name in contrasts["predicted minus none"]}
    return {
        "seeds": len(next(iter(systems.values()))),
        "systems": rows,
        "differences": contrasts,
        "recorded_predicted_none_other_image": verdicts,
    }


def verdict(contrasts: dict, metric: str) -> str:
    """What the intervals say of: recorded at least predicted, predicted above none, predicted above other-image.

    Returns:
        "shown" where predicted is above both with intervals that exclude zero and recorded is not below predicted with
        one; "refuted" where an interval lies on the other side of zero; else "open".
    """
    recorded = contrasts["recorded minus predicted"][metric]["ci95"]
    above = [contrasts[f"{first} minus {second}"][metric]["ci95"] for first, second in CLAIM]
    if recorded[1] < 0 or any(high < 0 for _, high in above):
        return "refuted"
    return "shown" if all(low > 0 for low, _ in above) else "open"


def regime_tables(one: dict) -> str:
    names = [name for name in KEPT if name in one["systems"]["predicted"]]
    rows = [[system, *(spread(row.get(name)) for name in names)] for system, row in one["systems"].items()]
    text = table(["Gaze (mean ± SD over seeds)", *map(metric_title, names)], rows) + "\n\n"
    of_gaze = {name: row for name, row in one["systems"]["predicted"].items() if name in KEPT_OF_GAZE}
    if of_gaze:
        text += "Predicted gaze against the recorded: "
        text += ", ".join(f"{metric_title(name)} {spread(row)}" for name, row in of_gaze.items()) + ".\n\n"
    shown = [name for name in CLAIMED if name in names]
    rows = [[title, *(signed_interval(pair[name]) for name in shown)] for title, pair in one["differences"].items()]
    text += table(["Difference (95 % over patients)", *map(metric_title, shown)], rows) + "\n\n"
    words = ", ".join(
        f"{metric_title(name)}: {said}" for name, said in one["recorded_predicted_none_other_image"].items()
    )
    return text + f"Recorded ≥ predicted > none, and predicted > other-image: {words}.\n"


def spread(row: dict | None) -> str:
    if row is None:
        return "–"
    return number(row["mean"]) if row["seeds"] < 2 else f"{number(row['mean'])} ± {number(row['sd'])}"


# -- command ----------------------------------------------------------------------------------------------------------


def regimes(text: str) -> list[int]:
    """Numbers of films with commas between them, from the smallest."""
    return sorted({at_least_one(one.strip()) for one in text.split(",")})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m modeling_gaze2report.training.gaze_study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, as in `gaze2report train`")
    parser.add_argument("--data", required=True, metavar="DIR", help="films to train on, from `gaze2report prepare`")
    parser.add_argument("--test-data", required=True, metavar="DIR", help="films of another seed, all of them tested")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--recipe", default="embedded", metavar="RECIPE", help="of the model (default: embedded)")
    parser.add_argument(
        "--regimes",
        type=regimes,
        default=[500, 2000, 10000],
        metavar="N,N,...",
        help="numbers of training films (default: 500,2000,10000)",
    )
    parser.add_argument("--seeds", type=at_least_one, default=3, metavar="N", help="trainings of each (default: 3)")
    parser.add_argument(
        "--same-steps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train every regime for the steps of the largest (default), or for the epochs of the recipe",
    )
    parser.add_argument("--max-test-records", type=at_least_one, metavar="N", help="the first N test films only")
    parser.add_argument("--batch-size", type=at_least_one, default=16, metavar="N", help="test films at once (16)")
    parser.add_argument("--control-seed", type=int, default=0, metavar="K", help="of the wrong gaze (default: 0)")
    parser.add_argument("--keep-models", action="store_true", help="do not delete the models that were compared")
    args = parser.parse_intermixed_args(arguments)
    return status_of(lambda: run_study(args))


if __name__ == "__main__":
    sys.exit(main())
