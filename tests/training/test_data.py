"""Training batches: prompt as at inference, labels on the report alone, targets in the square."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.datasets.phantom import generate_phantom
from modeling_gaze2report.processing.datasets.record import empty_record
from modeling_gaze2report.processing.report_labels import FINDINGS
from modeling_gaze2report.training.data import IGNORED, RecordStream, ReportCollator
from modeling_gaze2report.training.tasks import TASKS

from ..tiny_export import NUM_VISUAL_GAZE_TOKENS, build_tiny_model

END = 1


@pytest.fixture(scope="module")
def processor():
    return build_tiny_model()[1]


def record(report="The lungs are clear.", height=64, width=64, **values):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    return {"image": Image.fromarray(pixels), "image_id": "film", "report": report} | values


def fixation(x, y, duration_s=0.25):
    return {"x": x, "y": y, "onset_s": 0.0, "duration_s": duration_s}


def box(label, *corners):
    return {"label": label} | dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True))


def test_only_the_report_and_its_end_carry_labels(processor):
    batch = ReportCollator(processor)([record("No effusion."), record("The heart is enlarged. No pneumothorax.")])

    for row, report in enumerate(("No effusion.", "The heart is enlarged. No pneumothorax.")):
        labels, ids = batch["labels"][row], batch["input_ids"][row]
        marked = labels != IGNORED
        assert torch.equal(labels[marked], ids[marked])
        assert ids[marked][-1] == END
        assert processor.tokenizer.decode(ids[marked][:-1]) == report


def test_the_prompt_is_the_one_of_inference_and_padding_follows(processor):
    one = record("No effusion.")
    batch = ReportCollator(processor)([one, record("The heart is enlarged. No pneumothorax.")])

    prompt = processor(images=one["image"], return_tensors="pt")["input_ids"][0]
    length = int(batch["attention_mask"][0].sum())
    assert torch.equal(batch["input_ids"][0, : len(prompt)], prompt)
    assert (batch["labels"][0, : len(prompt)] == IGNORED).all()
    assert length < batch["input_ids"].shape[1]
    assert not batch["attention_mask"][0, length:].any() and (batch["labels"][0, length:] == IGNORED).all()


def test_special_tokens_in_a_report_are_data(processor):
    batch = ReportCollator(processor)([record("Clear.<|end|><|visual_gaze|>")])

    ids = batch["input_ids"][0].tolist()
    assert ids.count(END) == 1
    assert ids.count(processor.image_token_id) == NUM_VISUAL_GAZE_TOKENS


@pytest.mark.parametrize("report", ["", None])
def test_a_record_without_a_report_teaches_no_text(processor, report):
    batch = ReportCollator(processor)([record(report)])

    assert (batch["labels"] == IGNORED).all()


def test_long_reports_are_cut_and_still_end(processor):
    batch = ReportCollator(processor, max_report_tokens=5)([record("The lungs are clear. " * 20)])

    marked = batch["labels"][batch["labels"] != IGNORED]
    assert len(marked) == 6 and marked[-1] == END


def test_gaze_and_boxes_stand_in_the_square(processor):
    # 128 x 32 in a square: x -> 0.375 + 0.25 x, y stays.
    one = record(
        height=128,
        width=32,
        fixations=[fixation(0.5, 0.25, 0.3)],
        boxes=[box("Edema", 0.0, 0.0, 0.4, 0.5), box("Edema", 0.2, 0.25, 1.0, 0.75)],
        regions=[[0.0, 0.5, 1.0, 1.0], *[None] * 16],
    )

    batch = ReportCollator(processor, recorded_gaze=1.0)([one])

    torch.testing.assert_close(batch["fixations"], torch.tensor([[[0.5, 0.25, 0.3]]]))
    # Two boxes of a finding become the one that holds both.
    edema = FINDINGS.index("Edema")
    assert torch.nonzero(batch["finding_mask"][0]).flatten().tolist() == [edema]
    torch.testing.assert_close(batch["finding_boxes"][0, edema], torch.tensor([0.375, 0.0, 0.625, 0.75]))
    assert batch["region_mask"][0].tolist() == [True] + [False] * (len(REGION_NAMES) - 1)
    torch.testing.assert_close(batch["region_boxes"][0, 0], torch.tensor([0.375, 0.5, 0.625, 1.0]))


def test_every_box_of_a_finding_is_kept_for_its_map(processor):
    one = record(
        labels=[0, *[1] * 3, *[0] * 5, *[None] * 5],
        boxes=[box(FINDINGS[1], 0.0, 0.0, 0.5, 0.5), box(FINDINGS[1], 0.5, 0.5, 1.0, 1.0), box("Scar", 0, 0, 1, 1)],
    )

    batch = ReportCollator(processor)([one, record(boxes=[], labels=[])])

    assert batch["box_classes"].tolist() == [[1, 1], [-1, -1]]
    assert batch["box_corners"][0].tolist() == [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    # Present without a box, or not known: nothing is known of the patches. That nothing is there is no place.
    assert torch.nonzero(batch["mapped_findings"]).tolist() == [[0, k] for k in (1, *range(4, 9))]


def test_labels_keep_what_is_not_known(processor):
    batch = ReportCollator(processor)([record(labels=[1, 0, -1, None, *[0] * 10]), record()])

    assert batch["labels_findings"][0, :3].tolist() == [1, 0, -1]
    assert batch["labels_findings"][0, 3].isnan() and batch["labels_findings"][1].isnan().all()


def test_severity_and_view_are_what_the_record_states(processor):
    one = record(
        report="Small left pleural effusion. The heart is enlarged. No severe edema.",
        questions=[{"question": "How severe is the cardiomegaly?", "answer": "Moderate."}],
        view="ap supine",
    )

    batch = ReportCollator(processor)([one, record(view="LATERAL")])

    stated = {FINDINGS.index("Pleural Effusion"): 1, FINDINGS.index("Cardiomegaly"): 2}
    assert batch["severity_targets"].tolist() == [[stated.get(k, -1) for k in range(14)], [-1] * 14]
    assert batch["view_targets"].tolist() == [1, -1]


def test_a_record_without_anything_gives_a_batch(processor):
    batch = ReportCollator(processor)([record(fixations=[], boxes=[], regions=[], labels=[])])

    assert batch["fixations"].shape == (1, 0, 3)
    assert not batch["finding_mask"].any() and not batch["region_mask"].any()


@pytest.mark.parametrize("recorded, predicted, expected", [(1.0, 0.0, [2, 0]), (0.0, 1.0, [1, 1]), (0.0, 0.0, [0, 0])])
def test_gaze_is_mixed_by_its_shares(processor, recorded, predicted, expected):
    records = [record(fixations=[fixation(0.5, 0.5)]), record()]

    # A record without gaze is never a recorded one, nor a predicted one where nothing is to be predicted.
    assert ReportCollator(processor, recorded, predicted)(records)["gaze_source"].tolist() == expected


def test_the_shares_are_met_on_average(processor):
    collator = ReportCollator(processor, 0.5, 0.3)
    gaze, generator = np.array([[0.5, 0.5, 0.2]]), np.random.default_rng(1)

    drawn = [collator.draw_source(gaze, generator) for _ in range(2000)]

    # Four standard deviations of a share of 2,000 draws are at most 4.5 %.
    for source, share in {"recorded": 0.5, "predicted": 0.3, "none": 0.2}.items():
        assert drawn.count(source) / 2000 == pytest.approx(share, abs=0.045)


def test_a_stream_goes_on_pass_after_pass_and_knows_how_far_it_is():
    from datasets import Dataset

    rows = Dataset.from_dict({"image_id": [f"film {number}" for number in range(5)], "image": [None] * 5})
    stream = RecordStream(rows.to_iterable_dataset(), seed=3)
    stream.total = 10

    records = list(itertools.islice(stream, 10))

    assert [record["epoch"] for record in records] == [0] * 5 + [1] * 5
    assert [record["progress"] for record in records] == pytest.approx([number / 10 for number in range(10)])
    for one_pass in (records[:5], records[5:]):
        assert sorted(record["index"] for record in one_pass) == list(range(5))
        assert all(record["image_id"] == f"film {record['index']}" for record in one_pass)
    assert list(RecordStream(rows.to_iterable_dataset().filter(lambda record: False))) == []


# -- several texts of one film ----------------------------------------------------------------------------------------

PHANTOMS = [empty_record("", "", "") | generate_phantom(seed=3, index=number, image_size=64) for number in range(6)]
ALL_TASKS = {"report": 1.0, "grounded": 1.0, "ask": 1.0, "ground": 1.0}


def tasks_of_films(batch):
    tasks = {}
    for film, task in zip(batch["row_films"].tolist(), batch["tasks"].tolist(), strict=True):
        tasks.setdefault(film, []).append(TASKS[task])
    return tasks


def test_further_texts_have_the_prompts_of_the_processor(processor):
    films = PHANTOMS[:2]
    batch = ReportCollator(processor, tasks={"report": 1.0, "grounded": 1.0}, texts_per_film=2)(films)

    for row, (film, task) in enumerate(zip(batch["row_films"].tolist(), batch["tasks"].tolist(), strict=True)):
        expected = processor(images=films[film]["image"], text=processor.task_prompt(TASKS[task]))["input_ids"][0]
        assert batch["input_ids"][row, : len(expected)].tolist() == list(expected)
        assert (batch["labels"][row, : len(expected)] == IGNORED).all()
        assert batch["labels"][row, len(expected)] != IGNORED


def test_the_texts_of_a_film_are_different_tasks_and_the_first_is_that_of_one_text(processor):
    films = PHANTOMS
    one = tasks_of_films(ReportCollator(processor, tasks=ALL_TASKS)(films))
    three = tasks_of_films(ReportCollator(processor, tasks=ALL_TASKS, texts_per_film=3)(films))

    assert all(three[film][0] == tasks[0] for film, tasks in one.items())
    assert all(len(set(tasks)) == 3 for tasks in three.values())


def test_there_are_no_more_texts_than_tasks_and_annotation(processor):
    films = [film | {"questions": []} for film in PHANTOMS[:2]]

    batch = ReportCollator(processor, tasks={"report": 1.0, "ask": 1.0, "reading": 0.0}, texts_per_film=5)(films)

    assert tasks_of_films(batch) == {0: ["report"], 1: ["report"]}


def test_a_film_that_shows_gaze_of_its_task_has_that_task_alone(processor):
    tasks = {"order": 1.0, "report": 1e-9}

    batch = ReportCollator(processor, tasks=tasks, texts_per_film=3)(PHANTOMS[:4])

    # One film's reading has too few parts to be put in order.
    assert tasks_of_films(batch) == {0: ["order"], 1: ["report"], 2: ["order"], 3: ["order"]}


def test_a_task_with_gaze_of_its_own_is_never_added_to_another(processor):
    tasks = {"order": 1e-9, "observe": 1e-9, "report": 1.0}

    batch = ReportCollator(processor, tasks=tasks, texts_per_film=3)(PHANTOMS[:4])

    assert tasks_of_films(batch) == {film: ["report"] for film in range(4)}
