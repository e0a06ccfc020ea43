"""Clinical metrics that need model weights, behind one small protocol.

A backend says what it is called, loads itself from local files (or, when allowed, from the Hub) and scores reports.
What cannot run raises `MetricUnavailable` with the reason and the remedy; the runner records that and never a 0.

CheXbert is read by this project's own loader from the public checkpoint file. RadGraph, RaTEScore, GREEN and RadCliQ
run through the `radeval` package where it is installed: it asks for packages that would replace this project's
PyTorch, so it belongs in an environment of its own.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from ..report_labels import FINDINGS
from .reports import MetricUnavailable, label_statistics
from .resampling import Statistics, mean_statistics

# Order of the heads in the public checkpoint; the last one (No Finding) has two classes, the others four.
CHEXBERT_HEADS: tuple[str, ...] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
CHEXBERT_REPOSITORY, CHEXBERT_FILE = "StanfordAIMI/RRG_scorers", "chexbert.pth"
_CHEXBERT_CLASSES = np.array([np.nan, 1.0, 0.0, -1.0])  # blank, positive, negative, uncertain


@runtime_checkable
class ClinicalBackend(Protocol):
    """What a clinical metric must offer.

    Attributes:
        name: name of the metric family.
        metrics: names of the metrics it gives.
        requires: what must be installed or given, for people.
    """

    name: str
    metrics: tuple[str, ...]
    requires: str

    def load(self, local_files_only: bool = True, cache_dir: str | None = None) -> None:
        """Loads weights; raises `MetricUnavailable` when it cannot."""

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Statistics]:
        """Per-report statistics; raises `MetricUnavailable` when it cannot."""


_LABEL_METRICS = tuple(
    f"chexbert_{average}_f1_{size}{ending}"
    for ending in ("", "_uncertain_positive")
    for size in (14, 5)
    for average in ("micro", "macro")
)


@dataclass
class CheXbert:
    """CheXbert (Smit et al. 2020, arXiv 2004.09167): a BERT with 14 heads that labels reports.

    Attributes:
        checkpoint: the public checkpoint file; None looks for it in the Hub's cache.
        bert: folder or Hub id of the BERT whose configuration and tokenizer it uses.
        device: PyTorch device.
        batch_size: reports a step.
    """

    checkpoint: str | os.PathLike | None = None
    bert: str = "bert-base-uncased"
    device: str = "cpu"
    batch_size: int = 32
    name: str = "chexbert"
    metrics: tuple[str, ...] = _LABEL_METRICS
    requires: str = f"{CHEXBERT_FILE} of {CHEXBERT_REPOSITORY} and bert-base-uncased, on disk or in the Hub's cache"

    def load(self, local_files_only: bool = True, cache_dir: str | None = None) -> None:
        try:
            import torch
            from transformers import AutoConfig, AutoTokenizer
        except ImportError as error:
            raise MetricUnavailable(self.name, f"needs torch and transformers ({error})") from error
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                self.bert, local_files_only=local_files_only, cache_dir=cache_dir
            )
            config = AutoConfig.from_pretrained(self.bert, local_files_only=local_files_only, cache_dir=cache_dir)
        except (OSError, ValueError) as error:
            remedy = "give its folder with --bert DIR, or fetch it with --download"
            raise MetricUnavailable(self.name, f"no configuration and tokenizer of {self.bert!r}: {remedy}") from error
        path = self._find_checkpoint(local_files_only, cache_dir)
        try:
            # weights_only refuses anything but tensors: a checkpoint is data, never code.
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise MetricUnavailable(self.name, f"{path} is no checkpoint of tensors only ({error})") from error
        self._model = chexbert_network(config)
        try:
            self._model.load_state_dict(chexbert_state(stored))
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            first = str(error).strip().splitlines()[0]
            raise MetricUnavailable(self.name, f"{path} is not in CheXbert's published layout ({first})") from error
        self._model.to(self.device).eval()

    def _find_checkpoint(self, local_files_only: bool, cache_dir: str | None) -> Path:
        if self.checkpoint is not None:
            path = Path(self.checkpoint)
            if not path.is_file():
                raise MetricUnavailable(self.name, f"no checkpoint at {path}")
            return path
        from huggingface_hub import hf_hub_download

        try:
            return Path(
                hf_hub_download(
                    CHEXBERT_REPOSITORY, CHEXBERT_FILE, local_files_only=local_files_only, cache_dir=cache_dir
                )
            )
        except Exception as error:
            reason = f"no checkpoint: give {CHEXBERT_FILE} of {CHEXBERT_REPOSITORY} with --chexbert FILE"
            raise MetricUnavailable(self.name, reason) from error

    def label(self, texts: Sequence[str]) -> np.ndarray:
        """Labels of reports in the order of `FINDINGS`, shape (n, 14): 1, 0, -1 (uncertain), NaN (not mentioned)."""
        import torch

        table = np.full((len(texts), len(FINDINGS)), np.nan)
        columns = [FINDINGS.index(name) for name in CHEXBERT_HEADS]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: little padding
        limit = self._model.bert.config.max_position_embeddings
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self._tokenizer(
                [" ".join(texts[i].split()) for i in chosen],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                logits = self._model(batch["input_ids"], batch["attention_mask"])
            classes = np.stack([head.argmax(dim=1).cpu().numpy() for head in logits], axis=1)
            labels = _CHEXBERT_CLASSES[classes]
            labels[:, -1] = np.where(classes[:, -1] == 1, 1.0, np.nan)
            table[np.ix_(chosen, columns)] = labels
        return table

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Statistics]:
        return label_statistics("chexbert", self.label(predictions), self.label(references))


def chexbert_network(config):
    """CheXbert's network: BERT, and on its first token 13 heads of four classes and one of two.

    Args:
        config: a `BertConfig`.
    """
    import torch
    from transformers import BertModel

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = BertModel(config)
            self.linear_heads = torch.nn.ModuleList(
                torch.nn.Linear(config.hidden_size, 4 if name != "No Finding" else 2) for name in CHEXBERT_HEADS
            )

        def forward(self, input_ids, attention_mask):
            first = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
            return [head(first) for head in self.linear_heads]

    return Network()


def chexbert_state(stored: dict) -> dict:
    """The checkpoint's tensors under today's names: no data-parallel prefix, no position buffer."""
    state = stored.get("model_state_dict", stored)
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    state.pop("bert.embeddings.position_ids", None)
    return state


@dataclass
class RadEvalMetric:
    """A metric of the `radeval` package, loaded when it is asked for.

    Attributes:
        name: name of the metric here.
        key: name of the metric there.
        output: key of its values per report in what it returns.
        higher_is_better: its direction.
    """

    name: str
    key: str
    output: str
    higher_is_better: bool = True
    requires: str = "the radeval package and its weights from the Hub"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.name,)

    def load(self, local_files_only: bool = True, cache_dir: str | None = None) -> None:
        if importlib.util.find_spec("radeval") is None:
            raise MetricUnavailable(
                self.name, "needs radeval, in an environment of its own (it replaces torch): pip install radeval"
            )
        if local_files_only:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if cache_dir is not None:
            os.environ.setdefault("HF_HUB_CACHE", str(cache_dir))
        try:
            import radeval

            # Its vendored RadGraph still imports the package by its former name.
            sys.modules.setdefault("RadEval", radeval)
            self._evaluator = radeval.RadEval(metrics=[self.key], per_sample=True, show_progress=False)
        except Exception as error:
            raise MetricUnavailable(self.name, f"radeval could not load it: {_first_line(error)}") from error

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Statistics]:
        try:
            output = self._evaluator(refs=list(references), hyps=list(predictions))
            values = np.asarray(output[self.output], dtype=np.float64).ravel()
        except Exception as error:
            raise MetricUnavailable(self.name, f"radeval could not compute it: {_first_line(error)}") from error
        if len(values) != len(predictions):
            raise MetricUnavailable(self.name, f"radeval gave {len(values)} values for {len(predictions)} reports")
        return {self.name: mean_statistics(self.name, values, self.higher_is_better)}


@dataclass
class BertScore:
    """BERTScore F1 (Zhang et al. 2020) with a stated model, layer, idf and rescaling.

    An empty report scores 0 and is never shown to the model: the library fails on it. So does a tokenizer without a
    length limit, which is given the model's own.

    Attributes:
        model: folder or Hub id of the encoder.
        layer: which layer's states are compared; None takes the library's choice for the model.
        rescale: rescale with the library's English baseline.
        device: PyTorch device.
    """

    model: str = "distilroberta-base"
    layer: int | None = None
    rescale: bool = True
    device: str = "cpu"
    name: str = "bertscore"
    metrics: tuple[str, ...] = ("bertscore_f1",)
    requires: str = "pip install bert-score, and the encoder's weights on disk or in the Hub's cache"

    def settings(self) -> dict:
        return {"model": self.model, "layer": self.layer, "rescale_with_baseline": self.rescale, "idf": False}

    def load(self, local_files_only: bool = True, cache_dir: str | None = None) -> None:
        try:
            from bert_score import BERTScorer
        except ImportError as error:
            raise MetricUnavailable(self.name, "needs bert-score: pip install bert-score") from error
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.model, local_files_only=local_files_only, cache_dir=cache_dir)
            self._scorer = BERTScorer(
                model_type=str(self.model),
                num_layers=self.layer,
                rescale_with_baseline=self.rescale,
                lang="en" if self.rescale else None,
                device=self.device,
            )
        except Exception as error:
            reason = f"encoder {str(self.model)!r} could not be loaded: give its folder with --bertscore-model"
            raise MetricUnavailable(self.name, reason) from error
        limit = getattr(config, "max_position_embeddings", 512)
        self._scorer._tokenizer.model_max_length = min(self._scorer._tokenizer.model_max_length, limit, 512)

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Statistics]:
        scores = np.zeros(len(predictions))
        pairs = [(p, r) for p, r in zip(predictions, references, strict=True)]
        filled = [i for i, (p, r) in enumerate(pairs) if p.strip() and r.strip()]
        if filled:
            try:
                _, _, f1 = self._scorer.score([pairs[i][0] for i in filled], [pairs[i][1] for i in filled])
            except Exception as error:
                raise MetricUnavailable(self.name, f"bert-score failed: {_first_line(error)}") from error
            scores[filled] = f1.cpu().numpy()
        return {"bertscore_f1": mean_statistics("bertscore_f1", scores)}


def radcliq_v1(radgraph: np.ndarray, bertscore: np.ndarray, semb: np.ndarray, bleu_2: np.ndarray) -> np.ndarray:
    """RadCliQ-v1 (Yu et al. 2023) of each report from its four parts; lower is better.

    The parts are standardised with the published means and deviations and weighted with the published coefficients.

    Args:
        radgraph, bertscore, semb, bleu_2: RadGraph F1, BERTScore (distilroberta-base, rescaled), cosine of the CheXbert
            embeddings and BLEU-2, shape (n,) each.
    """
    parts = np.stack([np.asarray(part, dtype=np.float64) for part in (radgraph, bertscore, semb, bleu_2)], axis=-1)
    mean = np.array([0.5379, 0.6176, 0.7648, 0.4474])
    deviation = np.array([0.3028, 0.2243, 0.2539, 0.2989])
    weight = np.array([-0.3771, -0.3703, -0.2526, 0.0])
    return ((parts - mean) / deviation) @ weight


def default_backends(
    chexbert: str | None = None,
    bert: str = "bert-base-uncased",
    bertscore_model: str | None = None,
    device: str = "cpu",
) -> list[ClinicalBackend]:
    """The backends that a run tries, in order."""
    return [
        CheXbert(checkpoint=chexbert, bert=bert, device=device),
        BertScore(device=device) if bertscore_model is None else BertScore(bertscore_model, device=device),
        RadEvalMetric("radgraph_f1", "radgraph", "radgraph_partial"),
        RadEvalMetric("ratescore", "ratescore", "ratescore"),
        RadEvalMetric("green", "green", "green"),
        RadEvalMetric("radcliq_v1", "radcliq", "radcliqv1", higher_is_better=False),
    ]


def clinical_statistics(
    backends: Sequence[ClinicalBackend],
    predictions: Sequence[str],
    references: Sequence[str],
    local_files_only: bool = True,
    cache_dir: str | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Runs every backend that can run.

    Args:
        backends: what to try.
        predictions, references: reports, one reference each.
        local_files_only: whether the Hub may be asked for weights.
        cache_dir: where downloaded weights lie.
        report: told the name of each backend that starts.

    Returns:
        metrics by name, and the reason for each metric that could not run.
    """
    metrics: dict[str, Statistics] = {}
    unavailable: dict[str, str] = {}
    for backend in backends:
        try:
            backend.load(local_files_only=local_files_only, cache_dir=cache_dir)
            report(backend.name)
            metrics.update(backend.statistics(predictions, references))
        except MetricUnavailable as error:
            unavailable.update(dict.fromkeys(backend.metrics, error.reason))
    return metrics, unavailable


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
