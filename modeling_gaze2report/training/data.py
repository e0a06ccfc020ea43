"""Canonical records -> training batches."""

from dataclasses import dataclass

import numpy as np
import torch

from ..processing.anatomy import REGION_NAMES
from ..processing.gaze_geometry import boxes_to_square
from ..processing.image_processing_gaze2report import load_film
from ..processing.processing_gaze2report import Gaze2ReportProcessor
from ..processing.report_labels import FINDINGS

IGNORED = -100


@dataclass
class ReportCollator:
    """Makes a batch of canonical records: prompt and report for the language model, targets for everything else.

    The prompt comes from the processor exactly as at inference; the report follows it, with its end token. Only the
    report's tokens carry a language loss.

    Attributes:
        processor: the model's processor.
        recorded_gaze, predicted_gaze: shares of the records whose gaze is recorded or predicted; the rest has none. A
            record without gaze has none where it would be recorded.
        seed: of the draw.
        max_report_tokens: longer reports are cut.
    """

    processor: Gaze2ReportProcessor
    recorded_gaze: float = 0.5
    predicted_gaze: float = 0.3
    seed: int = 0
    max_report_tokens: int = 256

    def __post_init__(self):
        self.generator = np.random.default_rng(self.seed)

    def __call__(self, records: list[dict]) -> dict[str, torch.Tensor]:
        films = [load_film(record["image"], name=record["image_id"]) for record in records]
        sizes = [(film.height, film.width) for film in films]
        gaze = [gaze_of(record) for record in records]
        sources = [self.draw_source(one) for one in gaze]
        batch = self.processor(images=films, gaze=gaze, gaze_source=sources, return_tensors="pt", padding=True)
        side = batch["pixel_values"].shape[-1]
        prompts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        reports = [self.report_tokens(record) for record in records]
        batch |= join(prompts, reports, self.processor.tokenizer.pad_token_id)
        batch["labels_findings"] = torch.tensor([label_row(record) for record in records])
        for name, (boxes, mask) in {
            "finding": stack_boxes([finding_boxes(record) for record in records], sizes, side),
            "region": stack_boxes([region_boxes(record) for record in records], sizes, side),
        }.items():
            batch[f"{name}_boxes"], batch[f"{name}_mask"] = boxes, mask
        return dict(batch)

    def draw_source(self, gaze: np.ndarray | None) -> str:
        draw = self.generator.random()
        if gaze is not None and draw < self.recorded_gaze:
            return "recorded"
        is_predicted = self.recorded_gaze <= draw < self.recorded_gaze + self.predicted_gaze
        return "predicted" if is_predicted else "none"

    def report_tokens(self, record: dict) -> list[int]:
        tokenizer = self.processor.tokenizer
        text = self.processor.harmless_text(record["report"] or "")
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [*tokens[: self.max_report_tokens], tokenizer.eos_token_id] if tokens else []


def join(prompts: list[torch.Tensor], reports: list[list[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Prompt and report of each record in one row, padded on the right; labels on the report alone."""
    longest = max(len(prompt) + len(report) for prompt, report in zip(prompts, reports, strict=True))
    input_ids = torch.full((len(prompts), longest), pad_token_id)
    labels = torch.full((len(prompts), longest), IGNORED)
    attention_mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, (prompt, report) in enumerate(zip(prompts, reports, strict=True)):
        end = len(prompt) + len(report)
        input_ids[row, :end] = torch.cat((prompt, torch.tensor(report, dtype=torch.long)))
        labels[row, len(prompt) : end] = torch.tensor(report, dtype=torch.long)
        attention_mask[row, :end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def gaze_of(record: dict) -> np.ndarray | None:
    """(N, 3) x, y, duration in seconds of the fixations on the film; `None` without any."""
    rows = [(one["x"], one["y"], one["duration_s"]) for one in record.get("fixations") or []]
    rows = [row for row in rows if 0 <= row[0] <= 1 and 0 <= row[1] <= 1 and row[2] > 0]
    return np.array(rows, dtype=np.float32) if rows else None


def label_row(record: dict) -> list[float]:
    labels = record.get("labels") or [None] * len(FINDINGS)
    return [float("nan") if label is None else float(label) for label in labels]


def finding_boxes(record: dict) -> np.ndarray:
    """(14, 4) hull of the boxes of each finding, NaN where there is none."""
    boxes = np.full((len(FINDINGS), 4), np.nan)
    for one in record.get("boxes") or []:
        if one["label"] in FINDINGS:
            row = FINDINGS.index(one["label"])
            box = np.array([one["x0"], one["y0"], one["x1"], one["y1"]])
            boxes[row, :2] = np.fmin(boxes[row, :2], box[:2])
            boxes[row, 2:] = np.fmax(boxes[row, 2:], box[2:])
    return boxes


def region_boxes(record: dict) -> np.ndarray:
    """(17, 4) anatomical boxes, NaN where there is none."""
    rows = record.get("regions") or [None] * len(REGION_NAMES)
    return np.array([[np.nan] * 4 if row is None else row for row in rows], dtype=np.float64)


def stack_boxes(boxes: list[np.ndarray], sizes: list[tuple[int, int]], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in the square, (B, K, 4), and which of them exist, (B, K)."""
    rows = [boxes_to_square(np.nan_to_num(one), size, side) for one, size in zip(boxes, sizes, strict=True)]
    exists = [~np.isnan(one).any(-1) for one in boxes]
    return torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor(np.array(exists))


__all__ = ["ReportCollator"]
