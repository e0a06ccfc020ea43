"""Loads an exported model the Hugging Face way where the package cannot be imported; run as a program by the tests.

    python load_without_package.py MODEL ADAPTER INPUTS.npz OUT

Writes OUT/results.json, OUT/logits.npz and the model saved again in OUT/again.
"""

import json
import sys
from pathlib import Path


class Blocked:
    """Finds nothing of the package, installed or not."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "modeling_gaze2report":
            raise ModuleNotFoundError(f"{name} is blocked")


sys.meta_path.insert(0, Blocked())

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)

REMOTE = {"trust_remote_code": True}


def main(folder: str, adapter: str, inputs: str, out: Path) -> None:
    with np.load(inputs) as arrays:
        film, gaze = arrays["film"], arrays["gaze"]
    results, logits = {"classes": {}, "loading": {}}, {}

    def note_class(name, loaded):
        kind = type(loaded)
        results["classes"][name] = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"

    @torch.no_grad()
    def logits_of(model, processor):
        predicted = processor(images=film, return_tensors="pt")
        recorded = processor(images=film, gaze=gaze, return_tensors="pt")
        return np.concatenate([model.eval()(**inputs).logits.numpy() for inputs in (predicted, recorded)])

    def load(source, auto_class=AutoModelForImageTextToText):
        model, info = auto_class.from_pretrained(source, output_loading_info=True, **REMOTE)
        return model, {name: sorted(map(str, keys)) for name, keys in info.items()}

    processor = AutoProcessor.from_pretrained(folder, **REMOTE)
    model, results["loading"]["first"] = load(folder)
    logits["first"] = logits_of(model, processor)
    note_class("AutoProcessor", processor)
    note_class("AutoModelForImageTextToText", model)
    note_class("AutoConfig", AutoConfig.from_pretrained(folder, **REMOTE))
    note_class("AutoImageProcessor", AutoImageProcessor.from_pretrained(folder, **REMOTE))
    plain, results["loading"]["AutoModel"] = load(folder, AutoModel)
    note_class("AutoModel", plain)
    logits["AutoModel"] = logits_of(plain, processor)

    inputs = processor(images=film, return_tensors="pt")
    results["report"] = processor.batch_decode_report(model.generate(**inputs))

    model.save_pretrained(out / "again")
    processor.save_pretrained(out / "again")
    for name in ("second", "third"):  # what was saved again loads, and loads alike twice
        again, results["loading"][name] = load(str(out / "again"))
        logits[name] = logits_of(again, AutoProcessor.from_pretrained(str(out / "again"), **REMOTE))
    for auto_class in (AutoModel, AutoConfig, AutoImageProcessor):
        auto_class.from_pretrained(str(out / "again"), **REMOTE)

    adapted = AutoModelForImageTextToText.from_pretrained(adapter, **REMOTE)
    logits["adapter"] = logits_of(adapted, processor)

    write = pipeline("image-text-to-text", model=folder, **REMOTE)
    picture = Image.fromarray(film)
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Write."}]}]
    for name, options in {"predicted": {}, "recorded": {"processor_kwargs": {"gaze": gaze}}}.items():
        answer = write(text=chat, max_new_tokens=4, return_full_text=False, **options)
        results[f"pipeline {name}"] = answer[0]["generated_text"]

    results["package modules"] = [name for name in sys.modules if name.partition(".")[0] == "modeling_gaze2report"]
    np.savez(out / "logits.npz", **logits)
    (out / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
