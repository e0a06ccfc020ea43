"""Model cards as the Hub reads them: valid metadata, and figures as a `model-index`."""

import json
from pathlib import Path

from ..processing.errors import InputError

METRICS_SCHEMA = "gaze2report.metrics/1"
NOTICE = "**Research software. Not a medical device, not for clinical use.**"


def model_card(text: str | None, folder: str | Path, repo_id: str, metrics=()) -> str:
    """The card of a whole model.

    Args:
        text: the card that the model has already; `None` to begin one.
        folder: folder that the model was published from; the card may call it by that name.
        repo_id: `owner/name` on the Hub.
        metrics: `metrics.json` files whose figures become the `model-index`.

    Raises:
        InputError: the card's metadata or a metrics file cannot be used.
    """
    from huggingface_hub import ModelCard

    text = text or first_card(repo_id)
    # What the card calls the folder is found under another name on the Hub.
    for name in ("MODEL", f'"{Path(folder).name}"'):
        text = text.replace(f"from_pretrained({name},", f'from_pretrained("{repo_id}",')
    card = parsed(ModelCard, text)
    card.data.library_name = card.data.library_name or "transformers"
    card.data.pipeline_tag = card.data.pipeline_tag or "image-text-to-text"
    results = [result for path in metrics for result in evaluation_results(path)]
    if results:
        card.data.model_name = card.data.model_name or repo_id.partition("/")[2]
        card.data.eval_results = results
    return str(card)


def adapter_card(text: str | None, repo_id: str, base_model: str) -> str:
    """The card of an adapter, which names its base model.

    Raises:
        InputError: the card's metadata cannot be used.
    """
    from huggingface_hub import ModelCard

    card = parsed(ModelCard, text or first_adapter_card(repo_id, base_model))
    card.data.library_name = "peft"
    card.data.base_model = base_model
    card.data.pipeline_tag = card.data.pipeline_tag or "image-text-to-text"
    return str(card)


def parsed(card_class, text: str):
    try:
        return card_class(text, ignore_metadata_errors=False)
    except Exception as error:
        raise InputError(f"README.md of the model: its metadata cannot be read: {error}") from error


def evaluation_results(path: str | Path) -> list:
    """Figures of a `metrics.json` as `huggingface_hub.EvalResult`.

    Raises:
        InputError: no such file, or not of the schema `gaze2report.metrics/1`.
    """
    from huggingface_hub import EvalResult

    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON file: {error}.") from error
    if not isinstance(values, dict) or values.get("schema") != METRICS_SCHEMA:
        raise InputError(f"{path} is no {METRICS_SCHEMA} file: `gaze2report evaluate` and `score` write them.")
    settings = values.get("settings", {})
    data = str(settings.get("data") or "held-out films")
    source = settings.get("gaze_source")
    return [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Chest X-ray report generation",
            dataset_type="chest-x-ray",
            dataset_name=f"{Path(data).name}, {values['n']} films",
            dataset_split=settings.get("split"),
            metric_type=name,
            metric_name=name + (f" (gaze {source})" if source else ""),
            metric_value=one["value"],
            metric_args={"ci95": one["ci95"]} if one.get("ci95") else None,
        )
        for name, one in values["metrics"].items()
        if isinstance(one, dict) and isinstance(one.get("value"), (int, float))
    ]


def first_card(repo_id: str) -> str:
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags:
  - chest-x-ray
  - report-generation
  - eye-gaze
---

# {repo_id.partition("/")[2]}

A Gaze2Report model: it writes the report of a chest film, and says where it looked and what each sentence rests on.

{NOTICE} Its author has not said yet what it learned from and how good it is: take its output for nothing.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{repo_id}", trust_remote_code=True)
inputs = processor(images=film, return_tensors="pt")  # gaze is predicted
print(processor.batch_decode_report(model.generate(**inputs))[0])
```
"""


def first_adapter_card(repo_id: str, base_model: str) -> str:
    return f"""---
license: apache-2.0
library_name: peft
tags:
  - chest-x-ray
  - report-generation
---

# {repo_id.partition("/")[2]}

An adapter of [{base_model}](https://hf.co/{base_model}).

{NOTICE}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained("{base_model}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{repo_id}", trust_remote_code=True)
```
"""


__all__ = ["adapter_card", "evaluation_results", "model_card"]
