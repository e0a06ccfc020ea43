"""Clinical backends: CheXbert from a checkpoint in the published layout, and honest absence of what cannot run."""

import numpy as np
import pytest

from modeling_gaze2report.processing.metrics import clinical
from modeling_gaze2report.processing.metrics.clinical import (
    CHEXBERT_HEADS,
    BertScore,
    CheXbert,
    ClinicalBackend,
    RadEvalMetric,
    clinical_statistics,
    default_backends,
    radcliq_v1,
)
from modeling_gaze2report.processing.metrics.reports import MetricUnavailable
from modeling_gaze2report.processing.report_labels import FINDINGS

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "no",
    "small",
    "left",
    "pleural",
    "effusion",
    "heart",
    "is",
    "enlarged",
    "the",
    "lungs",
    "are",
    "clear",
    ".",
]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """Folder of a two-layer BERT's configuration and tokenizer."""
    from transformers import BertConfig, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config.save_pretrained(folder)
    return folder, config


@pytest.fixture
def checkpoint(tiny_bert, tmp_path):
    """A random checkpoint in the layout that the authors published: data-parallel names and a position buffer."""
    import torch

    torch.manual_seed(0)
    network = clinical.chexbert_network(tiny_bert[1])
    with torch.no_grad():
        for index, head in enumerate(network.linear_heads):  # make every head say one class, whatever the text
            head.weight.zero_()
            head.bias.copy_(torch.eye(head.out_features)[index % head.out_features])
    state = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(64)[None]
    path = tmp_path / "chexbert.pth"
    torch.save({"model_state_dict": state}, path)
    return path


def test_chexbert_reads_the_published_layout(tiny_bert, checkpoint):
    backend = CheXbert(checkpoint=checkpoint, bert=str(tiny_bert[0]))
    backend.load()

    labels = backend.label(["no effusion", "the heart is enlarged . the lungs are clear"])

    # Heads 0, 1, 2, 3, 4, ... say blank, positive, negative, uncertain, blank, ...; the last (No Finding) says class 1.
    meaning = [np.nan, 1, 0, -1]
    expected = np.full(14, np.nan)
    for index, name in enumerate(CHEXBERT_HEADS[:-1]):
        expected[FINDINGS.index(name)] = meaning[index % 4]
    expected[FINDINGS.index("No Finding")] = 1
    np.testing.assert_array_equal(labels, np.stack([expected, expected]))


def test_chexbert_scores_reports(tiny_bert, checkpoint):
    metrics, unavailable = clinical_statistics(
        [CheXbert(checkpoint=checkpoint, bert=str(tiny_bert[0]))], ["no effusion", ""], ["effusion", "heart"]
    )

    assert unavailable == {}
    assert metrics["chexbert_micro_f1_14"].score() == 1
    assert set(metrics) == set(CheXbert().metrics)


def test_long_reports_are_cut_at_the_models_length(tiny_bert, checkpoint):
    backend = CheXbert(checkpoint=checkpoint, bert=str(tiny_bert[0]))
    backend.load()

    assert backend.label(["effusion " * 500]).shape == (1, 14)


def test_a_checkpoint_with_code_in_it_is_refused(tiny_bert, tmp_path):
    import torch

    path = tmp_path / "evil.pth"
    torch.save({"model_state_dict": {"x": np.random.default_rng}}, path)

    with pytest.raises(MetricUnavailable, match="tensors only"):
        CheXbert(checkpoint=path, bert=str(tiny_bert[0])).load()


def test_a_checkpoint_in_another_layout_is_named(tiny_bert, tmp_path):
    import torch

    path = tmp_path / "other.pth"
    torch.save({"model_state_dict": {"weight": torch.zeros(1)}}, path)

    with pytest.raises(MetricUnavailable, match="published layout"):
        CheXbert(checkpoint=path, bert=str(tiny_bert[0])).load()


def test_a_missing_checkpoint_says_what_to_give(tiny_bert, tmp_path):
    with pytest.raises(MetricUnavailable, match="no checkpoint at"):
        CheXbert(checkpoint=tmp_path / "none.pth", bert=str(tiny_bert[0])).load()


def test_what_cannot_run_is_unavailable_and_never_zero(monkeypatch):
    monkeypatch.setattr(clinical.importlib.util, "find_spec", lambda name: None)
    backends = [RadEvalMetric("radgraph_f1", "radgraph", "radgraph_partial"), RadEvalMetric("green", "green", "green")]

    metrics, unavailable = clinical_statistics(backends, ["a"], ["a"])

    assert metrics == {}
    assert set(unavailable) == {"radgraph_f1", "green"}
    assert "pip install radeval" in unavailable["green"]


def test_a_radeval_metric_gives_its_values_per_report():
    backend = RadEvalMetric("radgraph_f1", "radgraph", "radgraph_partial")
    backend._evaluator = lambda refs, hyps: {"radgraph_partial": [0.25, 0.75]}

    assert backend.statistics(["a", "b"], ["a", "b"])["radgraph_f1"].score() == 0.5


def test_a_radeval_metric_that_fails_is_unavailable():
    backend = RadEvalMetric("green", "green", "green")
    backend._evaluator = lambda refs, hyps: {"green": [1.0]}

    with pytest.raises(MetricUnavailable, match="1 values for 2 reports"):
        backend.statistics(["a", "b"], ["a", "b"])


def test_every_default_backend_keeps_the_protocol():
    for backend in default_backends():
        assert isinstance(backend, ClinicalBackend)
        assert backend.metrics


def test_bertscore_of_a_local_encoder_with_empty_reports(tiny_bert):
    pytest.importorskip("bert_score")
    from transformers import BertModel

    folder, config = tiny_bert
    BertModel(config).save_pretrained(folder)
    backend = BertScore(str(folder), layer=1, rescale=False)
    backend.load()

    values = backend.statistics(["the heart is enlarged", ""], ["the heart is enlarged", "no effusion"])

    assert values["bertscore_f1"].values[:, 0] == pytest.approx([1, 0], abs=1e-5)


def test_radcliq_of_average_reports_is_zero():
    # At the published means every standardised part is 0; one deviation of RadGraph moves it by its coefficient.
    assert radcliq_v1([0.5379], [0.6176], [0.7648], [0.4474]) == pytest.approx(0)
    assert radcliq_v1([0.5379 + 0.3028], [0.6176], [0.7648], [0.4474]) == pytest.approx(-0.3771)
