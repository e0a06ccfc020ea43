"""What a run of metrics leaves behind: `metrics.json`, a table to read, and `model-index` entries for a model card."""

import math
from dataclasses import dataclass, field
from importlib import metadata

from .files import plain

SCHEMA = "gaze2report.metrics/1"

# Heading, then (metric, what the table calls it, arrow for the better direction), in the order of a paper's table.
_GROUPS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Report text",
        (
            ("bleu_1", "BLEU-1", "↑"),
            ("bleu_2", "BLEU-2", "↑"),
            ("bleu_3", "BLEU-3", "↑"),
            ("bleu_4", "BLEU-4", "↑"),
            ("rouge_l", "ROUGE-L", "↑"),
            ("meteor", "METEOR", "↑"),
            ("cider", "CIDEr", "↑"),
            ("bertscore_f1", "BERTScore F1", "↑"),
        ),
    ),
    (
        "Clinical content",
        (
            ("chexpert_rules_micro_f1_14", "CheXpert rules F1-14 micro", "↑"),
            ("chexpert_rules_macro_f1_14", "CheXpert rules F1-14 macro", "↑"),
            ("chexpert_rules_micro_f1_5", "CheXpert rules F1-5 micro", "↑"),
            ("chexpert_rules_macro_f1_5", "CheXpert rules F1-5 macro", "↑"),
            ("grounded_chexpert_rules_micro_f1_14", "Grounded report, CheXpert rules F1-14 micro", "↑"),
            ("grounded_chexpert_rules_macro_f1_14", "Grounded report, CheXpert rules F1-14 macro", "↑"),
            ("structured_chexpert_rules_micro_f1_14", "Structured report, CheXpert rules F1-14 micro", "↑"),
            ("structured_chexpert_rules_macro_f1_14", "Structured report, CheXpert rules F1-14 macro", "↑"),
            ("template_chexpert_rules_micro_f1_14", "Template report, CheXpert rules F1-14 micro", "↑"),
            ("template_chexpert_rules_macro_f1_14", "Template report, CheXpert rules F1-14 macro", "↑"),
            ("reading_chexpert_rules_micro_f1_14", "Report in reading order, CheXpert rules F1-14 micro", "↑"),
            ("reading_chexpert_rules_macro_f1_14", "Report in reading order, CheXpert rules F1-14 macro", "↑"),
            ("chexbert_micro_f1_14", "CheXbert F1-14 micro", "↑"),
            ("chexbert_macro_f1_14", "CheXbert F1-14 macro", "↑"),
            ("chexbert_micro_f1_5", "CheXbert F1-5 micro", "↑"),
            ("chexbert_macro_f1_5", "CheXbert F1-5 macro", "↑"),
            ("radgraph_f1", "RadGraph F1", "↑"),
            ("ratescore", "RaTEScore", "↑"),
            ("green", "GREEN", "↑"),
            ("radcliq_v1", "RadCliQ-v1", "↓"),
        ),
    ),
    (
        "Scanpaths",
        (
            ("scanmatch", "ScanMatch", "↑"),
            ("scanmatch_duration", "ScanMatch with duration", "↑"),
            ("multimatch_shape", "MultiMatch shape", "↑"),
            ("multimatch_direction", "MultiMatch direction", "↑"),
            ("multimatch_length", "MultiMatch length", "↑"),
            ("multimatch_position", "MultiMatch position", "↑"),
            ("multimatch_duration", "MultiMatch duration", "↑"),
            ("sed", "String edit distance", "↓"),
            ("stde", "STDE", "↑"),
            ("dtw", "DTW (px)", "↓"),
            ("region_sequence", "Region sequence", "↑"),
            ("centroid_icc_x", "Centroid ICC x", "↑"),
            ("centroid_icc_y", "Centroid ICC y", "↑"),
            ("centroid_cosine", "Centroid cosine", "↑"),
        ),
    ),
    (
        "Saliency",
        (
            ("nss", "NSS", "↑"),
            ("cc", "CC", "↑"),
            ("kld", "KLD (nat)", "↓"),
            ("sim", "SIM", "↑"),
            ("auc_judd", "AUC-Judd", "↑"),
            ("sauc", "Shuffled AUC", "↑"),
            ("ig_bits", "Information gain (bit)", "↑"),
        ),
    ),
    (
        "Places, findings, answers",
        (
            ("miou", "mIoU", "↑"),
            ("hit_rate_iou_30", "Hits at IoU 0.3", "↑"),
            ("hit_rate_iou_50", "Hits at IoU 0.5", "↑"),
            ("map_50", "mAP at 0.5", "↑"),
            ("map", "mAP", "↑"),
            ("pointing_game", "Pointing game", "↑"),
            ("auroc_macro", "AUROC macro", "↑"),
            ("f1_macro", "F1 macro", "↑"),
            ("answer_accuracy", "Answer accuracy", "↑"),
            ("answer_accuracy_presence", "Answer accuracy, presence", "↑"),
            ("answer_accuracy_severity", "Answer accuracy, severity", "↑"),
            ("answer_accuracy_side", "Answer accuracy, side", "↑"),
            ("answer_accuracy_place", "Answer accuracy, place", "↑"),
            ("answer_accuracy_view", "Answer accuracy, view", "↑"),
            ("answer_accuracy_list", "Answer accuracy, list of findings", "↑"),
            ("answer_accuracy_other", "Answer accuracy, other questions", "↑"),
            ("ece", "Calibration error", "↓"),
            ("region_miou", "Regions mIoU", "↑"),
            ("ground_miou", "Phrases mIoU", "↑"),
            ("ground_hit_rate_iou_30", "Phrases, hits at IoU 0.3", "↑"),
            ("ground_hit_rate_iou_50", "Phrases, hits at IoU 0.5", "↑"),
            ("ground_absent_accuracy", "Phrases of what is absent, no box", "↑"),
            ("grounded_miou", "Boxes in the report mIoU", "↑"),
            ("grounded_boxed", "Assertions of grounded reports with a box", "↑"),
            ("describe_accuracy", "Boxes described by their finding", "↑"),
            ("answer_token_f1", "Answer token F1", "↑"),
            ("answer_accuracy_blind", "Answer accuracy without the film", "↑"),
            ("order_pairs", "Order, pairs (chance 0.5)", "↑"),
            ("order_exact", "Order, exact", "↑"),
            ("order_exact_chance", "Order, exact by chance", "↑"),
            ("observe_miou", "Observation boxes mIoU", "↑"),
            ("reading_order_pairs", "Report follows the gaze, pairs (chance 0.5)", "↑"),
        ),
    ),
)
_TITLES = {name: (title, arrow) for _, rows in _GROUPS for name, title, arrow in rows}
# The same scores under another convention or choice.
_VARIANTS = {"_uncertain_positive": ", uncertain = positive", "_best": ", best reader"}


@dataclass
class Results:
    """Scores of one run.

    Attributes:
        n: number of cases.
        protocol: name of the protocol.
        settings: every parameter.
        metrics: `{"value", "ci95"}` by metric.
        comparisons: paired comparisons by the name of the other system, or of the control.
        unavailable: why a metric has no value, and what to do about it.
        extra: further sections, such as the human ceiling.
    """

    n: int
    protocol: str
    settings: dict
    metrics: dict[str, dict]
    comparisons: dict[str, dict] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        """The contents of `metrics.json`; a metric without a finite value moves to `unavailable`."""
        metrics, unavailable = {}, dict(self.unavailable)
        for name, record in self.metrics.items():
            if math.isfinite(record["value"]):
                metrics[name] = record
            else:
                unavailable.setdefault(name, "not defined on any of these cases")
        return plain(
            {
                "schema": SCHEMA,
                "n": self.n,
                "protocol": self.protocol,
                "settings": self.settings | {"package_version": package_version()},
                "metrics": metrics,
                "comparisons": self.comparisons,
                "unavailable": unavailable,
                **self.extra,
            }
        )

    def to_markdown(self, title: str = "Metrics") -> str:
        return render_markdown(self.to_json(), title)


def package_version() -> str:
    try:
        return metadata.version("gaze2report")
    except metadata.PackageNotFoundError:
        return "unknown"


def metric_title(name: str) -> str:
    """What tables call a metric, with an arrow for its better direction."""
    for ending, words in _VARIANTS.items():
        base = name.removesuffix(ending)
        if base != name and base in _TITLES:
            return f"{_TITLES[base][0]}{words} {_TITLES[base][1]}"
    title, arrow = _TITLES.get(name, (name, ""))
    return f"{title} {arrow}".strip()


def ordered_metrics(names) -> list[str]:
    """Metric names in the order of the tables; names unknown to them follow."""
    known = [name for name in _TITLES if name in names]
    return known + [name for name in names if name not in _TITLES]


def number(value: float | None, digits: int = 3) -> str:
    """A number as tables show it; a dash for none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(record: dict) -> str:
    """Value and interval of a metric, as "0.412 [0.390, 0.431]"."""
    low, high = record.get("ci95", (None, None))
    return f"{number(record['value'])} [{number(low)}, {number(high)}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join([":--"] + ["--:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def render_markdown(results: dict, title: str = "Metrics") -> str:
    """`metrics.json` as a page to read: tables like a paper's, then what could not run, then the parameters."""
    parts = [
        f"# {title}",
        f"{results['n']} cases, protocol `{results['protocol']}`. Brackets: 95 % bootstrap intervals.",
    ]
    ceiling = results.get("human_ceiling", {}).get("metrics", {})
    placed = set()
    for heading, rows in _GROUPS:
        names = [name for name, _, _ in rows if name in results["metrics"]]
        if names:
            placed.update(names)
            parts.append(f"## {heading}")
            parts.append(_metric_table(names, results["metrics"], ceiling))
    others = [name for name in results["metrics"] if name not in placed]
    if others:
        parts += ["## Further", _metric_table(others, results["metrics"], ceiling)]
    if results.get("findings"):
        parts += ["## Findings one by one", _finding_rows(results["findings"])]
    if results.get("controls"):
        parts += ["## Controls", render_controls(results["controls"])]
    shown = results.get("controls", {}).get("rows", {})
    for other, comparison in results.get("comparisons", {}).items():
        if other not in shown:
            parts += [f"## Compared with {other}", _comparison_table(comparison)]
    if results.get("unavailable"):
        parts.append("## Not available")
        parts.append("\n".join(f"* `{name}`: {reason}" for name, reason in sorted(results["unavailable"].items())))
    parts += ["## Settings", "\n".join(f"* {key}: `{value}`" for key, value in results["settings"].items())]
    return "\n\n".join(parts) + "\n"


def _metric_table(names: list[str], metrics: dict, ceiling: dict) -> str:
    header, with_ceiling = ["Metric", "Score"], any(name in ceiling for name in names)
    rows = [[metric_title(name), interval(metrics[name])] for name in names]
    if with_ceiling:
        header.append("Human ceiling")
        for name, row in zip(names, rows, strict=True):
            row.append(interval(ceiling[name]) if name in ceiling else "–")
    return table(header, rows)


def _finding_rows(findings: dict) -> str:
    """A row a finding; a dash where the films with it, or without it, are too few."""
    return table(
        ["Finding", "Films with it", "AUROC ↑", "F1 ↑"],
        [
            [name, str(row["positives"]), *(interval(row[one]) if one in row else "–" for one in ("auroc", "f1"))]
            for name, row in findings.items()
        ],
    )


def _comparison_table(comparison: dict) -> str:
    rows = []
    for name in ordered_metrics(comparison):
        record = comparison[name]
        low, high = record["ci95"]
        difference = f"{_signed(record['difference'])} [{_signed(low)}, {_signed(high)}]"
        rows.append([metric_title(name), difference, number(record["p"], 4), number(record["p_holm"], 4)])
    return table(["Metric", "Difference", "p", "p (Holm)"], rows)


def _signed(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:+.3f}"


# What the controls' table shows and corrects over; all other metrics are in `metrics.json`.
CONTROL_METRICS = (
    "bleu_4",
    "rouge_l",
    "cider",
    "chexpert_rules_micro_f1_14",
    "chexpert_rules_micro_f1_5",
    "chexbert_micro_f1_14",
    "radgraph_f1",
    "auroc_macro",
    "f1_macro",
    "miou",
    "answer_accuracy",
)


def control_columns(metrics) -> list[str]:
    """The metrics among the given ones that the controls' table shows; all when it knows none of them."""
    return [name for name in CONTROL_METRICS if name in metrics] or ordered_metrics(metrics)


def render_controls(controls: dict) -> str:
    """The one table of gaze sources: scores of the baseline, and of the others with paired differences from it.

    Args:
        controls: `{"baseline": name, "rows": {name: {"metrics": ..., "differences": ...}}}` as from
            `controls.compare_sources`.
    """
    baseline = controls["baseline"]
    available = controls["rows"][baseline]["metrics"]
    names = control_columns(available)
    rows, significant = [], []
    for source, row in controls["rows"].items():
        cells = [f"**{source}**" if source == baseline else source]
        for name in names:
            record = row["metrics"].get(name)
            difference = row.get("differences", {}).get(name)
            if record is None:
                cells.append("–")
            elif difference is None:
                cells.append(interval(record))
            else:
                low, high = difference["ci95"]
                p = difference["p_holm"]
                star = "\\*" if p is not None and p < 0.05 else ""
                change = f"{_signed(difference['difference'])} [{_signed(low)}, {_signed(high)}]{star}"
                cells.append(f"{number(record['value'])} ({change})")
        shown = [record for name, record in row.get("differences", {}).items() if name in names]
        if any(record["p_holm"] is not None and record["p_holm"] < 0.05 for record in shown):
            significant.append(source)
        rows.append(cells)
    note = (
        f"In parentheses: difference from **{baseline}** with its paired 95 % bootstrap interval; \\* p < 0.05 after "
        "Holm's correction over this table."
    )
    if significant:
        verdict = f"Differ from {baseline} in at least one of these metrics: {', '.join(significant)}."
    else:
        verdict = f"No gaze source differs from {baseline} in these metrics: nothing here shows that the gaze is used."
    return table(["Gaze", *[metric_title(name) for name in names]], rows) + f"\n\n{note}\n\n{verdict}"


def model_index(
    results: dict,
    model_name: str,
    dataset_name: str,
    dataset_type: str,
    task_type: str = "image-text-to-text",
    split: str = "test",
) -> list[dict]:
    """Results as the `model-index` of a model card's front matter.

    Args:
        results: contents of a `metrics.json`.
        model_name: name of the model.
        dataset_name: name of the data set, for people.
        dataset_type: its Hub id, or a name of letters, digits, `-` and `_`.
        task_type: the Hub's name of the task.
        split: which split was scored.
    """
    metrics = []
    for name in ordered_metrics(results["metrics"]):
        record = results["metrics"][name]
        low, high = record.get("ci95", (None, None))
        entry = {"type": name, "value": round(record["value"], 4), "name": metric_title(name).rstrip(" ↑↓")}
        if low is not None and high is not None:
            entry["name"] += f" (95 % CI {low:.3f} to {high:.3f}, n = {results['n']}, protocol {results['protocol']})"
        metrics.append(entry)
    return [
        {
            "name": model_name,
            "results": [
                {
                    "task": {"type": task_type},
                    "dataset": {"name": dataset_name, "type": dataset_type, "split": split},
                    "metrics": metrics,
                }
            ],
        }
    ]
