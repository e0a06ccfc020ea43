"""A page that computes the metric."""

import evaluate
import gradio as gr

metric = evaluate.load("chexpert_rules_f1.py")


def score(predictions: str, references: str) -> dict:
    """Scores reports given one a line."""
    return metric.compute(predictions=predictions.splitlines(), references=references.splitlines())


demo = gr.Interface(
    score,
    [
        gr.Textbox(label="Predicted reports, one a line", lines=5),
        gr.Textbox(label="Reference reports, one a line", lines=5),
    ],
    gr.JSON(label="Scores"),
    title="CheXpert rules F1",
)

if __name__ == "__main__":
    demo.launch()
