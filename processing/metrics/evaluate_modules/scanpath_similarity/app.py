"""A page that computes the metric."""

import json

import evaluate
import gradio as gr

metric = evaluate.load("scanpath_similarity.py")


def score(prediction: str, reference: str, width: float, height: float) -> dict:
    """Scores one pair of scanpaths given as JSON lists of [x, y, duration]."""
    return metric.compute(
        predictions=[json.loads(prediction)], references=[json.loads(reference)], width=width, height=height
    )


demo = gr.Interface(
    score,
    [
        gr.Textbox(label="Predicted scanpath: JSON list of [x, y in 0 to 1, duration in s]", lines=3),
        gr.Textbox(label="Recorded scanpath", lines=3),
        gr.Number(label="Image width in pixels", value=1000),
        gr.Number(label="Image height in pixels", value=1000),
    ],
    gr.JSON(label="Scores"),
    title="Scanpath similarity",
)

if __name__ == "__main__":
    demo.launch()
