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


def main(folder: str, film: str) -> None:
    sys.meta_path.insert(0, Blocked())
    from transformers import AutoModelForImageTextToText, AutoProcessor

    remote = {"trust_remote_code": True}
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **remote)
    faults = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    if faults:
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
