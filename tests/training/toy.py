"""The embedded recipe at toy size, and a few phantoms to run it on."""

from pathlib import Path

TOY = [
    "seed=1",
    "device=cpu",
    "tokenizer.vocab_size=300",
    *("model.image_size=56", "model.grid_size=7", "model.perception.projection_dim=8"),
    *("model.vision.embedding_size=8", "model.vision.hidden_sizes=[8, 16]", "model.vision.depths=[1, 1]"),
    *("model.text.hidden_size=20", "model.text.intermediate_size=32", "model.text.num_hidden_layers=1"),
    *("model.scanpath.hidden_size=16", "model.scanpath.intermediate_size=32", "model.scanpath.num_hidden_layers=1"),
    *("model.fusion.hidden_size=16", "model.fusion.intermediate_size=32", "model.fusion.num_hidden_layers=1"),
    *(f"stages.{number}.{setting}" for number in range(3) for setting in ("epochs=1", "batch_size=4")),
]

# The last stage with one mixture of gaze from its beginning to its end, as batches made ahead need it.
STEADY_GAZE = [f"stages.2.{name}=null" for name in ("recorded_gaze_end", "predicted_gaze_end")]
STEADY_GAZE.append("stages.2.soft_gaze=false")


def write_phantoms(folder: Path, num_train: int = 8, num_validation: int = 4, num_test: int = 0, seed: int = 3) -> Path:
    """A prepared folder of phantoms to learn from, to check and to test."""
    from datasets import Dataset

    from modeling_gaze2report.processing.datasets.phantom import generate_phantom
    from modeling_gaze2report.processing.datasets.record import empty_record, record_features

    splits = {"train": num_train, "validation": num_validation, "test": num_test}
    first = 0
    for split, count in splits.items():
        records = [
            empty_record("", "", "") | generate_phantom(seed=seed, index=index, image_size=64)
            for index in range(first, first + count)
        ]
        first += count
        if records:
            Dataset.from_list(records, features=record_features()).to_parquet(folder / f"{split}-00000.parquet")
    return folder
