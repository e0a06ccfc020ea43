"""Loads a model folder the Hugging Face way where this package cannot be imported, and lets it read a film.

    python loading_check.py FOLDER FILM

Prints one JSON object with the report; any fault ends it with the reason as the last line. Run by `publish`.
"""

import json
import os
import sys


class Blocked:
    """Finds nothing of the package, installed or not."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "modeling_gaze2report":
            raise ModuleNotFoundError(f"{name} is blocked")


def loading_faults(report: dict) -> dict[str, list[str]]:
    """What the loading report of transformers finds wrong, by kind; empty for a model that is whole.

    A tied head is said to miss the new tokens of an adapter: they are the embedding's own, which are loaded.
    """
    names = {kind: sorted(map(str, keys)) for kind, keys in report.items()}
    tied = "lm_head.token_adapter."
    names["missing_keys"] = [name for name in names.get("missing_keys", ()) if not name.startswith(tied)]
    return {kind: found for kind, found in names.items() if found}


def main(folder: str, film: str) -> None:
    sys.meta_path.insert(0, Blocked())
    from transformers import AutoModelForImageTextToText, AutoProcessor

    remote = {"trust_remote_code": True}
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **remote)
    if faults := loading_faults(report):
        sys.exit(f"the weights do not fit the model: {faults}")
    source = folder
    if os.path.isfile(os.path.join(folder, "adapter_config.json")):
        with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
            source = json.load(file)["base_model_name_or_path"]
    processor = AutoProcessor.from_pretrained(source, **remote)
    inputs = processor(images=film, return_tensors="pt")
    print(json.dumps({"report": processor.batch_decode_report(model.eval().generate(**inputs))[0]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
