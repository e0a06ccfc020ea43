"""The ablations on toy phantoms: cut off and continued, compared by hand from the answers they leave."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from modeling_gaze2report.processing.datasets.reading import load_split
from modeling_gaze2report.training import ablation

from .toy import TOY, write_phantoms

SUPERVISED, UNSUPERVISED = "with-gaze-supervision", "without-gaze-supervision"
TASKS = "stages.2.tasks={report: 0.5, order: 0.5}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), num_train=8, num_validation=4, num_test=10)


@pytest.fixture(scope="module")
def test_films(data):
    return list(load_split(data, "test"))


def arguments(study, data, out, *more):
    return [study, "--data", str(data), "--out", str(out), "--seeds", "2", *TOY, "data.max_validation_records=1", *more]


def cut_off_and_continue(command, trainings_before):
    """Names of the trainings of a study that is cut off before one of them, and then repeated."""
    trained, run = [], ablation.run

    def counted(recipe):
        if len(trained) == trainings_before and not is_continued:
            raise KeyboardInterrupt
        trained.append("/".join(recipe.output.split("/")[-2:]))
        folder = run(recipe)
        # Hardly trained, the model would write on to the end of what it may.
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"max_new_tokens": 12}))
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "run", counted)
        is_continued = False
        with pytest.raises(KeyboardInterrupt):
            ablation.main(command)
        is_continued = True
        assert ablation.main(command) == 0
        assert ablation.main(command) == 0
    return trained


@pytest.fixture(scope="module")
def supervision(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("supervision")
    return out, cut_off_and_continue(arguments("gaze-supervision", data, out), 3)


@pytest.fixture(scope="module")
def modules(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("modules")
    return out, cut_off_and_continue(arguments("modules", data, out, TASKS), 2)


def read(out, seed, name):
    return json.loads((out / f"seed-{seed}" / f"{name}.json").read_text())


def draws(films):
    """How often each film is drawn in each of the 2,000 resamples of patients, (2000, films)."""
    patients = sorted({film["patient_id"] for film in films})
    drawn = np.random.default_rng(0).integers(0, len(patients), size=(2000, len(patients)), dtype=np.int32)
    times = np.stack([(drawn == number).sum(1) for number in range(len(patients))], axis=1)
    return times[:, [patients.index(film["patient_id"]) for film in films]]


def test_nothing_is_trained_twice(supervision, modules):
    assert supervision[1] == [f"seed-{seed}/{name}" for seed in (0, 1) for name in (SUPERVISED, UNSUPERVISED)]
    assert modules[1] == [f"seed-{seed}/{name}" for seed in (0, 1) for name in ("base", "all-modules", "without-order")]


def test_only_answers_and_logs_are_left(supervision, modules):
    for out, names in ((supervision[0], {SUPERVISED, UNSUPERVISED}), (modules[0], {"all-modules", "without-order"})):
        assert {one.name for one in out.iterdir()} == {"results.json", "results.md", "study.json", "seed-0", "seed-1"}
        left = {one.name for one in (out / "seed-0").iterdir() if not one.name.endswith("-records")}
        assert left == {f"{name}.json" for name in names}


def test_findings_differ_by_what_the_answers_say(supervision, test_films):
    out, _ = supervision
    labels = np.array([film["labels"] for film in test_films], dtype=float)

    def scores(answers):
        p, called = np.array(answers["probabilities"]), np.array(answers["probabilities"]) >= answers["thresholds"]
        areas, f1 = [], []
        for column in range(14):
            known = labels[:, column] >= 0
            true = labels[known, column] == 1
            if true.any() and not true.all():
                areas.append(roc_auc_score(true, p[known, column]))
            if true.any():
                f1.append(f1_score(true, called[known, column], zero_division=0))
        return np.array([np.mean(areas), np.mean(f1)])

    on, off = ([scores(read(out, seed, name)) for seed in (0, 1)] for name in (SUPERVISED, UNSUPERVISED))
    found = json.loads((out / "results.json").read_text())["comparisons"][
        "with gaze supervision minus without gaze supervision"
    ]
    for place, name in enumerate(("auroc_macro", "f1_macro")):
        per_seed = [first[place] - second[place] for first, second in zip(on, off, strict=True)]
        assert found[name]["per_seed"] == pytest.approx(per_seed)
        assert found[name]["difference"] == pytest.approx(np.mean(per_seed))
        assert found[name]["sd"] == pytest.approx(np.std(per_seed, ddof=1))
    assert any(abs(one) > 0 for one in found["auroc_macro"]["per_seed"])


def test_the_interval_resamples_patients_and_keeps_seeds(modules, test_films):
    out, _ = modules

    def resampled(name, seed):
        sums = draws(test_films) @ np.array(read(out, seed, name)["tasks"]["observe_miou"])
        return sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)

    found = json.loads((out / "results.json").read_text())["comparisons"]["all modules minus without order"]
    differences = np.mean(
        [resampled("all-modules", seed) - resampled("without-order", seed) for seed in (0, 1)], axis=0
    )
    expected = np.nanquantile(differences, [0.025, 0.975])
    assert found["observe_miou"]["ci95"] == pytest.approx(expected.tolist())
    assert {"chexpert_rules_micro_f1_14", "rouge_l", "order_pairs", "observe_miou"} <= set(found)


def test_the_table_says_what_was_compared(modules):
    page = (modules[0] / "results.md").read_text()

    assert page.startswith("# modules: 2 seeds, 10 test films of ")
    assert "## all modules minus without order" in page
    assert "| Order, pairs (chance 0.5) ↑ |" in page


@pytest.mark.parametrize(
    ("study", "overrides", "words"),
    [
        (
            "gaze-supervision",
            ["stages.0.losses.gaze_attention=0", "stages.2.losses.gaze_attention=0"],
            "no stage of the recipe embedded has a gaze attention loss to switch off",
        ),
        (
            "gaze-supervision",
            ["stages.0.losses.findings=0"],
            "neither it nor a stage before it learns the findings",
        ),
        (
            "modules",
            ["stages.2.tasks={report: 1.0}", "stages.2.losses.order=0"],
            "no stage of the recipe embedded learns any of the tasks observe, reading, order",
        ),
        ("modules", ["stages.2.tasks={order: 1.0}"], "has no task but order: nothing is left without it"),
    ],
)
def test_a_recipe_without_the_part_is_refused_before_any_training(data, tmp_path, capsys, study, overrides, words):
    assert ablation.main([*arguments(study, data, tmp_path / "out"), *overrides]) == 2

    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_split_is_named(tmp_path, capsys):
    data = write_phantoms(tmp_path, num_train=2, num_validation=1)

    assert ablation.main(arguments("modules", data, tmp_path / "out")) == 2
    assert "there is no file test-*.parquet" in capsys.readouterr().err


def test_answers_of_other_settings_are_not_mixed(supervision, data, capsys):
    command = arguments("gaze-supervision", data, supervision[0], "stages.0.learning_rate=0.5")

    assert ablation.main(command) == 2
    words = capsys.readouterr().err
    assert "recipe.stages.0.learning_rate was 0.001 and is now 0.5" in words and "Give another --out" in words


def test_no_seeds_are_refused(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablation.main(["modules", "--data", str(data), "--out", str(tmp_path), "--seeds", "0"])
    assert "'0' is no whole number of at least 1" in capsys.readouterr().err
