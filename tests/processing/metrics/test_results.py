"""What is left behind: metrics.json, the tables, model-index."""

import json

import numpy as np
import pytest

from modeling_gaze2report.processing.metrics.results import Results, metric_title, model_index, render_markdown


@pytest.fixture
def results():
    return Results(
        n=12,
        protocol="raw",
        settings={"protocol": "raw"},
        metrics={
            "cider": {"value": np.float64(0.25), "ci95": [0.1, 0.4]},
            "bleu_4": {"value": 0.125, "ci95": [0.1, 0.15]},
            "meteor": {"value": float("nan"), "ci95": [float("nan")] * 2},
        },
        unavailable={"green": "needs a GPU"},
    )


def test_a_metric_without_a_value_is_unavailable(results):
    record = results.to_json()

    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record["metrics"]) == {"cider", "bleu_4"}
    assert set(record["unavailable"]) == {"meteor", "green"}


def test_tables_follow_the_order_of_papers(results):
    page = render_markdown(results.to_json())

    assert page.index("| BLEU-4 ↑ | 0.125 [0.100, 0.150] |") < page.index("| CIDEr ↑ | 0.250 [0.100, 0.400] |")
    assert "* `green`: needs a GPU" in page
    assert "12 cases, protocol `raw`" in page


def test_variants_are_named_in_words():
    assert metric_title("scanmatch_best") == "ScanMatch, best reader ↑"
    assert metric_title("chexpert_rules_micro_f1_14_uncertain_positive").endswith("uncertain = positive ↑")
    assert metric_title("my_own_metric") == "my_own_metric"


def test_model_index_is_read_by_the_hub_library(results):
    from huggingface_hub.repocard_data import model_index_to_eval_results

    index = model_index(results.to_json(), "gaze2report-tiny", "Phantoms", "phantoms")

    name, entries = model_index_to_eval_results(index)
    assert name == "gaze2report-tiny"
    assert [(entry.metric_type, entry.metric_value) for entry in entries] == [("bleu_4", 0.125), ("cider", 0.25)]
    assert entries[0].dataset_split == "test"
    assert "95 % CI 0.100 to 0.150" in entries[0].metric_name
