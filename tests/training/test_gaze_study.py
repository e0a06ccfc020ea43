"""The study of gaze on toy phantoms: cut off and continued, compared by hand from the answers it leaves."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from modeling_gaze2report.processing.metrics.controls import GAZE_SOURCES
from modeling_gaze2report.processing.report_labels import label_report
from modeling_gaze2report.training import ablation, gaze_study
from modeling_gaze2report.training.gaze_study import WITH, WITHOUT, recipe_of, steps_of, verdict
from modeling_gaze2report.training.recipe import PARTS, load_recipe
from modeling_gaze2report.training.stages import prepare_model

from .toy import TOY, write_phantoms

SHORT = [*TOY, "data.max_validation_records=1"]
MICRO = "chexpert_rules_micro_f1_14"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), num_train=8, num_validation=2)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Test films of another seed, of two splits."""
    return write_phantoms(tmp_path_factory.mktemp("fresh"), num_train=6, num_validation=0, num_test=4, seed=4)


def arguments(data, fresh, out, *more):
    return ["--data", str(data), "--test-data", str(fresh), "--out", str(out), *more, *SHORT]


@pytest.fixture(scope="module")
def study(data, fresh, tmp_path_factory):
    """Folder of a study that was cut off twice, the trainings that it did, and its readings of the test films."""
    out = tmp_path_factory.mktemp("study")
    command = arguments(data, fresh, out, "--regimes", "4,8", "--seeds", "1")
    done, run, read = [], ablation.run, gaze_study.read_films
    cuts = [4, 9]  # the third reading, and the second training

    def note(what):
        if cuts and len(done) + 1 == cuts[0]:
            del cuts[0]
            raise KeyboardInterrupt
        done.append(what)

    def noted_run(recipe):
        note("/".join(recipe.output.split("/")[-3:]))
        folder = run(recipe)
        # Hardly trained, the model would write on to the end of what it may.
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"max_new_tokens": 12}))
        return folder

    def noted_read(reader, records, source, args):
        note(source)
        return read(reader, records, source, args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "run", noted_run)
        patch.setattr(gaze_study, "read_films", noted_read)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                gaze_study.main(command)
        assert gaze_study.main(command) == 0
        assert gaze_study.main(command) == 0
    return out, done, command


def test_nothing_is_trained_or_read_twice(study):
    expected = []
    for films in (4, 8):
        folder = f"films-{films}/seed-0"
        expected += [f"{folder}/with-gaze", *GAZE_SOURCES, f"{folder}/without-gaze-branch", "none"]
    assert study[1] == expected


def test_only_answers_and_logs_are_left(study):
    out, _, _ = study

    left = {one.name for one in (out / "films-4" / "seed-0").iterdir() if not one.name.endswith("-records")}
    assert left == {*(f"with-gaze.{source}.json" for source in GAZE_SOURCES), "without-gaze-branch.none.json"}
    assert {one.name for one in out.iterdir()} == {"results.json", "results.md", "study.json", "films-4", "films-8"}


def test_the_gaze_matters_to_what_is_read_and_only_predicted_gaze_is_scored(study):
    answers = {
        source: json.loads((study[0] / "films-8" / "seed-0" / f"with-gaze.{source}.json").read_text())
        for source in GAZE_SOURCES
    }

    assert len({json.dumps(one["probabilities"]) for one in answers.values()}) == len(GAZE_SOURCES)
    assert {source for source, one in answers.items() if "fixations" in one} == {"predicted"}
    systems = json.loads((study[0] / "results.json").read_text())["regimes"]["8"]["systems"]
    assert "scanmatch" in systems["predicted"] and "scanmatch" not in systems["recorded"]


@pytest.fixture(scope="module")
def rewritten(study, fresh):
    """Results of the study with a second seed, of which and of the first the reports are right in a known share, and
    those reports: {(seed, system): reports} of the regime of 8 films. Where there are answers nothing is trained."""
    out, _, command = study
    films = gaze_study.load_test_films(str(fresh), None)
    generator = np.random.default_rng(5)
    reports = {}
    for seed in (0, 1):
        for system, (model, source) in gaze_study.SYSTEMS.items():
            name = f"{model.replace(' ', '-')}.{source}.json"
            for regime in ("films-4", "films-8"):
                answers = json.loads((out / regime / "seed-0" / name).read_text())
                share = 0.9 if system in ("predicted", "recorded") else 0.3
                shuffled = [films[index]["report"] for index in generator.permutation(len(films))]
                answers["reports"] = reports[seed, system] = [
                    film["report"] if generator.random() < share else other
                    for film, other in zip(films, shuffled, strict=True)
                ]
                (out / regime / f"seed-{seed}").mkdir(exist_ok=True)
                (out / regime / f"seed-{seed}" / name).write_text(json.dumps(answers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "run", None)
        patch.setattr(gaze_study, "read_films", None)
        assert gaze_study.main([*command, "--seeds", "2"]) == 0
    return json.loads((out / "results.json").read_text())["regimes"]["8"], reports, films


def positives(reports):
    return np.array([[label == 1 for label in label_report(report).values()] for report in reports])


def test_scores_are_means_over_seeds(rewritten):
    results, reports, films = rewritten
    true = positives(film["report"] for film in films)

    for system in gaze_study.SYSTEMS:
        scores = [f1_score(true, positives(reports[seed, system]), average="micro", zero_division=0) for seed in (0, 1)]
        row = results["systems"][system][MICRO]
        assert row["mean"] == pytest.approx(np.mean(scores))
        assert row["sd"] == pytest.approx(np.std(scores, ddof=1))


@pytest.mark.parametrize("pair", [("predicted", "none"), ("predicted", WITHOUT), ("recorded", "other-image")])
def test_differences_have_intervals_over_patients(rewritten, pair):
    results, reports, films = rewritten
    patients = sorted({film["patient_id"] for film in films})
    drawn = np.random.default_rng(0).integers(0, len(patients), size=(2000, len(patients)), dtype=np.int32)
    times = np.stack([(drawn == patients.index(film["patient_id"])).sum(1) for film in films], axis=1)
    true = positives(film["report"] for film in films)

    def micro(system, seed):
        said = positives(reports[seed, system])
        right, wrong = times @ (said & true).sum(1), times @ (said != true).sum(1)
        return 2 * right / np.maximum(2 * right + wrong, 1)

    differences = np.mean([micro(pair[0], seed) - micro(pair[1], seed) for seed in (0, 1)], axis=0)
    found = results["differences"][f"{pair[0]} minus {pair[1]}"][MICRO]
    assert found["ci95"] == pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist(), abs=1e-9)
    means = [results["systems"][system][MICRO]["mean"] for system in pair]
    assert found["difference"] == pytest.approx(means[0] - means[1])


def test_the_page_has_a_table_for_each_regime(rewritten, study):
    page = (study[0] / "results.md").read_text()

    assert "## 4 training films, 2 of 2 seeds" in page and "## 8 training films, 2 of 2 seeds" in page
    assert page.count("| predicted minus without gaze branch |") == 2
    assert page.count("Recorded ≥ predicted > none, and predicted > other-image:") == 2


@pytest.mark.parametrize(
    ("recorded", "none", "other", "said"),
    [
        ([-0.1, 0.1], [0.1, 0.2], [0.1, 0.3], "shown"),
        ([-0.1, 0.1], [-0.01, 0.2], [0.1, 0.3], "open"),
        ([-0.2, -0.1], [0.1, 0.2], [0.1, 0.3], "refuted"),
        ([0.0, 0.1], [0.1, 0.2], [-0.3, -0.1], "refuted"),
    ],
)
def test_the_claim_needs_all_three_comparisons(recorded, none, other, said):
    pairs = {"recorded minus predicted": recorded, "predicted minus none": none, "predicted minus other-image": other}

    assert verdict({name: {"f1": {"ci95": interval}} for name, interval in pairs.items()}, "f1") == said


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_the_model_without_gaze_has_the_same_size_and_sees_none(data):
    recipe = load_recipe("embedded", [f"data.path={data}", *SHORT])
    without = recipe_of(recipe, 8, 0, WITHOUT, None)

    from modeling_gaze2report.training.data import load_records

    train, _ = load_records(recipe.data)
    sizes = []
    for one in (recipe_of(recipe, 8, 0, WITH, None), without):
        model, processor = prepare_model(one, train)
        sizes.append((sum(weight.numel() for weight in model.parameters()), processor.num_visual_gaze_tokens))
    assert sizes[0] == sizes[1]
    for stage in without.stages:
        assert (stage.recorded_gaze, stage.predicted_gaze) == (0, 0)
        assert stage.recorded_gaze_end is None and stage.predicted_gaze_end is None
        assert not (stage.losses.scanpath or stage.losses.scanpath_map or stage.losses.gaze_attention)
        assert not {"order", "observe"} & set(stage.tasks) and "scanpath" not in stage.trainable
        assert set(stage.trainable) <= set(PARTS)
    # What is not about gaze alone is trained as before, for as many steps.
    names = [stage.name for stage in recipe.stages if stage.trainable != ["scanpath"]]
    assert [stage.name for stage in without.stages] == names
    assert [stage.epochs for stage in without.stages] == [one.epochs for one in recipe.stages if one.name in names]


def test_every_regime_takes_the_steps_of_the_largest(data):
    recipe = load_recipe("embedded", [f"data.path={data}", *SHORT, "stages.0.epochs=1.5"])

    same = [recipe_of(recipe, films, 0, WITH, 100) for films in (10, 100)]
    own = recipe_of(recipe, 10, 0, WITH, None)

    # 25 batches of 4 of 100 films; one and a half epochs of the first stage.
    assert [[steps_of(stage, one.data.max_train_records) for stage in one.stages] for one in same] == [[38, 25, 25]] * 2
    assert [stage.eval_steps for stage in same[0].stages] == [25, 25, 25]
    assert [one.data.max_train_records for one in same] == [10, 100]
    assert [steps_of(stage, 10) for stage in own.stages] == [5, 3, 3]


# -- errors -----------------------------------------------------------------------------------------------------------


def test_too_few_films_are_refused(data, fresh, tmp_path, capsys):
    assert gaze_study.main(arguments(data, fresh, tmp_path / "out", "--regimes", "4,9")) == 2

    assert "has 8 training films, and a regime of 9 was asked for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_films_of_the_same_seed_are_no_test_films(data, tmp_path, capsys):
    assert gaze_study.main(arguments(data, data, tmp_path / "out", "--regimes", "4")) == 2

    words = capsys.readouterr().err
    assert "test films must come from another seed of the simulator" in words and "'phantom-3-p" in words


def test_an_empty_folder_is_no_test_data(data, tmp_path, capsys):
    assert gaze_study.main(arguments(data, tmp_path, tmp_path / "out", "--regimes", "4")) == 2

    assert "there is no film; prepare the test films" in capsys.readouterr().err


def test_a_regime_is_a_number(data, fresh, tmp_path, capsys):
    with pytest.raises(SystemExit):
        gaze_study.main(arguments(data, fresh, tmp_path, "--regimes", "500,many"))
    assert "'many' is no whole number of at least 1" in capsys.readouterr().err
