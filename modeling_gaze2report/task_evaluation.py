"""Scores of a model on every task beside the plain report: regions, phrases, boxes, questions, order, strategies.

What is asked comes from the records as in training (`training.tasks`), what is right as well. Each question, phrase or
box counts once; intervals draw whole patients.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .inference import (
    Reader,
    answer_questions,
    describe_boxes,
    generate_reports,
    ground_phrases,
    image_features,
    observe_gaze,
    recover_order,
)
from .processing.anatomy import REGION_NAMES
from .processing.grounding import asserted_findings, read_order
from .processing.image_processing_gaze2report import Film, load_film
from .processing.metrics.boxes import grounding_statistics, pairwise_iou, union_iou
from .processing.metrics.evaluation import sum_rows
from .processing.metrics.findings import answer_statistics, normalise_answer
from .processing.metrics.reports import label_statistics, label_table
from .processing.metrics.resampling import Metric, mean_statistics
from .processing.report_attributes import QUESTION_KINDS, question_kind
from .processing.report_labels import FINDINGS, split_sentences
from .processing.structured import FINDING_NOUNS
from .training.tasks import boxes_of, make_example

# Reports beside the plain one. The template writer shares its findings with the structured strategy.
REPORT_TASKS = ("grounded", "structured", "template", "reading")
# What records must hold for a metric to be there.
NEEDS = {
    "region_miou": "boxes of regions",
    "grounded_miou": "boxes of findings",
    "grounded_boxed": "grounded reports by the model that assert a finding",
    "reading_order_pairs": "reports by the model that name two findings which its gaze met one after the other",
    **{f"{task}_chexpert_rules_{kind}_f1_14": "reports" for task in REPORT_TASKS for kind in ("micro", "macro")},
    **dict.fromkeys(("answer_accuracy", "answer_token_f1"), "questions with answers"),
    **{f"answer_accuracy_{kind}": f"questions of the kind {kind}, with answers" for kind in QUESTION_KINDS},
    "answer_accuracy_blind": "questions, also in a training split beside the evaluated one",
    **{f"ground_{name}": "boxes of findings" for name in ("miou", "hit_rate_iou_30", "hit_rate_iou_50")},
    "ground_absent_accuracy": "findings labelled as absent",
    "describe_accuracy": "boxes of findings",
    "observe_miou": "sentences with times, and fixations with onsets",
    **dict.fromkeys(
        ("order_pairs", "order_exact", "order_exact_chance"), "sentences with times, and fixations with onsets"
    ),
}


@dataclass
class TaskResults:
    """What a model did on the tasks.

    Attributes:
        metrics: by name, one row of statistics a record.
        reports: label statistics of the reports by strategy, for paired comparison with the plain ones.
        lines: what was asked, said and right, for `tasks.jsonl`.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    reports: dict[str, dict[str, Metric]] = field(default_factory=dict)
    lines: list[dict] = field(default_factory=list)


class TaskEvaluation:
    """Asks a model everything that some records hold the answer to.

    Attributes:
        reader: model and processor.
        records: rows of a prepared data set.
        gaze_source: `"predicted"` or `"none"`; of the tasks that do not show gaze of their own.
        batch_size: films at once.
        seed: of what is drawn (absent findings, shuffled gaze).
        known_answers: questions and answers of other films, of which the commonest are right without a look at the film
            as often as `answer_accuracy_blind` says; left out without any.
        num_drafts, num_answer_drafts: most drafts of a report and of an answer, as for `inference.read_films`.
        progress: wraps the batches of a task, for a progress bar.
    """

    def __init__(
        self,
        reader: Reader,
        records: Sequence[dict],
        gaze_source: str = "predicted",
        batch_size: int = 16,
        seed: int = 0,
        known_answers: Sequence[tuple[str, str]] = (),
        num_drafts: int = 1,
        num_answer_drafts: int = 1,
        progress: Callable[[Iterable], Iterable] = lambda batches: batches,
    ):
        self.reader, self.records, self.gaze_source = reader, list(records), gaze_source
        self.batch_size, self.seed, self.progress = batch_size, seed, progress
        self.known_answers = known_answers
        self.num_drafts, self.num_answer_drafts = num_drafts, num_answer_drafts
        self.results = TaskResults()

    def run(self) -> TaskResults:
        self.reports()
        self.questions()
        self.phrases()
        self.boxes()
        self.observations()
        self.orders()
        return self.results

    # -- help ---------------------------------------------------------------------------------------------------------

    def film(self, index: int) -> Film:
        record = self.records[index]
        return load_film(record["image"], name=record["image_id"])

    def batches(self, items: Sequence) -> Iterator[Sequence]:
        for start in self.progress(range(0, len(items), self.batch_size)):
            yield items[start : start + self.batch_size]

    def line(self, index: int, task: str, asked, prediction, reference) -> None:
        record = self.records[index]
        self.results.lines.append(
            {
                "id": record["image_id"],
                "task": task,
                "asked": asked,
                "prediction": prediction,
                "reference": reference,
                "patient_id": record["patient_id"],
            }
        )

    def add(self, statistics: dict[str, Metric], owner: Sequence[int], prefix: str = "") -> None:
        """Statistics of items, summed to the records that own them."""
        for name, metric in sum_rows(statistics, owner, len(self.records)).items():
            self.results.metrics[prefix + name] = metric

    # -- tasks --------------------------------------------------------------------------------------------------------

    def reports(self) -> None:
        """Regions, and reports by every strategy."""
        processor = self.reader.processor
        indices = list(range(len(self.records)))
        written: dict[str, list[str]] = defaultdict(list)
        overlaps: list[tuple[int, float]] = []
        boxes: list[tuple[int, float]] = []
        boxed: list[tuple[int, float]] = []
        pairs: list[tuple[int, float]] = []
        for batch in self.batches(indices):
            films = [self.film(index) for index in batch]
            sizes = [(film.height, film.width) for film in films]
            features = image_features(self.reader, films, None, self.gaze_source)
            observations = processor.post_process_observation(features, sizes)
            for index, observation in zip(batch, observations, strict=True):
                overlaps += [(index, iou) for iou in region_overlaps(self.records[index], observation.region_boxes)]
            keywords = processor.post_process_findings(features, sizes)
            written["template"] += [processor.template_report(one) for one in keywords]
            prompts = {
                "grounded": [processor.task_prompt("grounded")] * len(films),
                "structured": [processor.task_prompt("structured", findings=one) for one in keywords],
                "reading": [processor.task_prompt("reading")] * len(films),
            }
            for task, asked in prompts.items():
                # A reading follows the gaze and leaves out what was not looked at: nothing to hold against it.
                drafts = 1 if task == "reading" else self.num_drafts
                sequences, _, _ = generate_reports(
                    self.reader,
                    films,
                    None,
                    self.gaze_source,
                    None,
                    asked,
                    features,
                    num_drafts=drafts,
                    name_findings=task == "structured",
                )
                texts = processor.post_process_grounding(processor.batch_decode_report(sequences), films, features)
                written[task] += [text.text for text in texts]
                if task == "grounded":
                    for index, text in zip(batch, texts, strict=True):
                        boxes += [(index, iou) for iou in report_box_overlaps(self.records[index], text)]
                        boxed += [(index, has_box) for has_box in assertions_with_box(text)]
                if task == "reading":
                    for index, text, observation in zip(batch, texts, observations, strict=True):
                        pairs += [(index, agrees) for agrees in followed_pairs(text.text, observation)]
        for name, rows in {
            "region_miou": overlaps,
            "grounded_miou": boxes,
            "grounded_boxed": boxed,
            "reading_order_pairs": pairs,
        }.items():
            if rows:
                owner, values = zip(*rows, strict=True)
                self.add({name: mean_statistics(name, values)}, owner)
        with_report = [index for index in indices if (self.records[index].get("report") or "").strip()]
        reference = label_table(self.records[index]["report"] for index in with_report)
        for task in REPORT_TASKS:
            for index in indices:
                self.line(index, task, None, written[task][index], self.records[index].get("report") or "")
            if not with_report:
                continue
            said = label_table(written[task][index] for index in with_report)
            statistics = sum_rows(label_statistics("chexpert_rules", said, reference), with_report, len(indices))
            self.results.reports[task] = statistics
            for name in ("chexpert_rules_micro_f1_14", "chexpert_rules_macro_f1_14"):
                self.results.metrics[f"{task}_{name}"] = statistics[name]

    def questions(self) -> None:
        items = [
            (index, one["question"], one["answer"])
            for index, record in enumerate(self.records)
            for one in record.get("questions") or []
            if (one["question"] or "").strip() and one["answer"]
        ]
        if not items:
            return
        said = []
        for batch in self.batches(items):
            films = [self.film(index) for index, _, _ in batch]
            asked = [question for _, question, _ in batch]
            answers = answer_questions(
                self.reader, films, asked, None, self.gaze_source, num_drafts=self.num_answer_drafts
            )
            said += [answer["report"] for answer in answers]
        for (index, question, answer), prediction in zip(items, said, strict=True):
            self.line(index, "ask", question, prediction, answer)
        owner, questions, answers = zip(*items, strict=True)
        self.add(answer_statistics(said, [[answer] for answer in answers]), owner)
        kinds = [question_kind(question) for question in questions]
        for kind in sorted(set(kinds)):
            mine = [number for number, one in enumerate(kinds) if one == kind]
            right = answer_statistics([said[number] for number in mine], [[answers[number]] for number in mine])
            self.add({f"answer_accuracy_{kind}": right["answer_accuracy"]}, [owner[number] for number in mine])
        if self.known_answers:
            blind = blind_answers(questions, self.known_answers)
            accuracy = answer_statistics(blind, [[answer] for answer in answers])["answer_accuracy"]
            self.add({"answer_accuracy_blind": accuracy}, owner)

    def phrases(self) -> None:
        generator = np.random.default_rng(self.seed)
        present, absent = [], []
        for index, record in enumerate(self.records):
            names = sorted({one["label"] for one in record.get("boxes") or []} & set(FINDING_NOUNS))
            present += [(index, FINDING_NOUNS[name][1], boxes) for name in names if (boxes := boxes_of(record, name))]
            labels = record.get("labels") or []
            missing = [
                name for name, label in zip(FINDINGS, labels, strict=False) if label == 0 and name in FINDING_NOUNS
            ]
            if missing:
                absent.append((index, FINDING_NOUNS[missing[generator.integers(len(missing))]][1], []))
        found = []
        for batch in self.batches([*present, *absent]):
            films = [self.film(index) for index, _, _ in batch]
            asked = [phrase for _, phrase, _ in batch]
            for (index, phrase, boxes), answer in zip(
                batch, ground_phrases(self.reader, films, asked, None, self.gaze_source), strict=True
            ):
                found.append(answer["boxes"])
                self.line(index, "ground", phrase, {"boxes": answer["boxes"], "text": answer["answer"]}, boxes)
        if present:
            owner, _, boxes = zip(*present, strict=True)
            self.add(grounding_statistics(found[: len(present)], boxes), owner, "ground_")
        if absent:
            nothing = [not boxes for boxes in found[len(present) :]]
            owner = [index for index, _, _ in absent]
            self.add({"ground_absent_accuracy": mean_statistics("ground_absent_accuracy", nothing)}, owner)

    def boxes(self) -> None:
        items = [
            (index, name, box)
            for index, record in enumerate(self.records)
            for name in sorted({one["label"] for one in record.get("boxes") or []} & set(FINDING_NOUNS))
            for box in boxes_of(record, name)
        ]
        right = []
        for batch in self.batches(items):
            films = [self.film(index) for index, _, _ in batch]
            asked = [box for _, _, box in batch]
            said = describe_boxes(self.reader, films, asked, None, self.gaze_source)
            for (index, name, box), answer in zip(batch, said, strict=True):
                right.append(name in asserted_findings(answer["report"]))
                self.line(index, "describe", box, answer["report"], name)
        if items:
            owner = [index for index, _, _ in items]
            self.add({"describe_accuracy": mean_statistics("describe_accuracy", right)}, owner)

    def examples(self, task: str) -> list[tuple]:
        """Number of the record and its example of a task that shows gaze of its own."""
        made = []
        for index, record in enumerate(self.records):
            example = make_example(record, task, self.reader.processor, np.random.default_rng([self.seed, index]))
            if example is not None:
                made.append((index, example))
        return made

    def observations(self) -> None:
        items, overlaps = self.examples("observe"), []
        for batch in self.batches(items):
            films = [self.film(index) for index, _ in batch]
            looked = observe_gaze(self.reader, films, [example.gaze for _, example in batch])
            right = self.reader.processor.post_process_looking([example.target for _, example in batch], films)
            for (index, _), said, true in zip(batch, looked, right, strict=True):
                shown = [] if said.observation_box is None else [said.observation_box]
                overlaps.append(union_iou(shown, [true.observation_box]))
                self.line(index, "observe", None, said._asdict(), true._asdict())
        if items:
            owner = [index for index, _ in items]
            self.add({"observe_miou": mean_statistics("observe_miou", overlaps)}, owner)

    def orders(self) -> None:
        items = self.examples("order")
        pairs, exact, chance = [], [], []
        for batch in self.batches(items):
            films = [self.film(index) for index, _ in batch]
            given = recover_order(self.reader, films, [example.gaze for _, example in batch])
            for (index, example), said in zip(batch, given, strict=True):
                true = read_order(example.target, len(example.gaze))
                pairs.append(pairs_in_order(said, true))
                exact.append(said == true)
                chance.append(1 / float(np.prod(np.arange(1, len(true) + 1))))
                self.line(index, "order", example.gaze.tolist(), said, true)
        if items:
            owner = [index for index, _ in items]
            rows = {"order_pairs": pairs, "order_exact": exact, "order_exact_chance": chance}
            self.add({name: mean_statistics(name, values) for name, values in rows.items()}, owner)


def region_overlaps(record: dict, boxes: np.ndarray) -> list[float]:
    """IoU of each region that a record has a box of."""
    regions = record.get("regions") or [None] * len(REGION_NAMES)
    return [
        float(pairwise_iou([box.tolist()], [region])[0, 0])
        for box, region in zip(boxes, regions, strict=True)
        if region is not None
    ]


def report_box_overlaps(record: dict, text) -> list[float]:
    """For each finding with boxes: IoU with the boxes behind the sentences of a grounded report that assert it."""
    names = sorted({one["label"] for one in record.get("boxes") or []} & set(FINDING_NOUNS))
    overlaps = []
    for name in names:
        said = [
            box
            for sentence, boxes in zip(text.sentences, text.boxes, strict=True)
            if name in asserted_findings(sentence)
            for box in boxes
        ]
        overlaps.append(union_iou(said, boxes_of(record, name)))
    return overlaps


def assertions_with_box(text) -> list[float]:
    """For each sentence of a grounded report that asserts a finding whether a box stands behind it."""
    return [
        float(bool(boxes))
        for sentence, boxes in zip(text.sentences, text.boxes, strict=True)
        if asserted_findings(sentence)
    ]


def followed_pairs(report: str, observation) -> list[float]:
    """For each pair of asserted findings whether the one looked at first is written first.

    A finding is looked at when a fixation first falls into its box; findings never looked at, and findings of one
    sentence, make no pair.
    """
    told: dict[str, int] = {}
    for place, sentence in enumerate(split_sentences(report)):
        for name in asserted_findings(sentence):
            told.setdefault(name, place)
    seen = {name: first_look(observation, name) for name in told}
    names = [name for name in told if seen[name] is not None]
    return [
        float((told[a] < told[b]) == (seen[a] < seen[b]))
        for number, a in enumerate(names)
        for b in names[number + 1 :]
        if told[a] != told[b] and seen[a] != seen[b]
    ]


def first_look(observation, name: str) -> int | None:
    """The number of the first fixation in the box of a finding."""
    x0, y0, x1, y1 = observation.finding_boxes[FINDINGS.index(name)]
    x, y = observation.fixations[:, 0], observation.fixations[:, 1]
    inside = np.flatnonzero((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))
    return int(inside[0]) if len(inside) else None


def blind_answers(questions: Sequence[str], known: Sequence[tuple[str, str]]) -> list[str]:
    """The commonest of the known answers to each question; to a question that is not among them, the commonest of all.

    Args:
        known: questions and answers of other films; at least one.
    """
    of_question, of_all = defaultdict(Counter), Counter()
    for question, answer in known:
        of_question[normalise_answer(question)][answer] += 1
        of_all[answer] += 1
    return [of_question.get(normalise_answer(question), of_all).most_common(1)[0][0] for question in questions]


def chance_levels(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """What the scores of the order and of the answers are by chance, or without a look at the film, by their names."""
    levels = {}
    if "order_pairs" in metrics:
        counts = metrics["order_pairs"].values[:, 1:]
        levels["order_pairs"] = replace(metrics["order_pairs"], values=np.hstack((0.5 * counts, counts)))
        levels["order_exact"] = metrics["order_exact_chance"]
    if "answer_accuracy_blind" in metrics:
        levels["answer_accuracy"] = metrics["answer_accuracy_blind"]
    return levels


def pairs_in_order(said: list[int] | None, true: list[int]) -> float:
    """Share of the pairs of parts whose order in time is right; 0 for an answer that is no order."""
    if said is None:
        return 0.0
    place = {part: number for number, part in enumerate(said)}
    pairs = [(a, b) for number, a in enumerate(true) for b in true[number + 1 :]]
    return float(np.mean([place[a] < place[b] for a, b in pairs]))


__all__ = ["NEEDS", "REPORT_TASKS", "TaskEvaluation", "TaskResults", "chance_levels"]
