"""A page that computes the metric."""

import evaluate
import gradio as gr

metric = evaluate.load("cxr_report_text.py")


def score(predictions: str, references: str, protocol: str) -> dict:
    """Scores reports given one a line."""
    return metric.compute(predictions=predictions.splitlines(), references=references.splitlines(), protocol=protocol)


demo = gr.Interface(
    score,
    [
        gr.Textbox(label="Predicted reports, one a line", lines=5),
        gr.Textbox(label="Reference reports, one a line", lines=5),
        gr.Dropdown(["raw", "r2gen-mimic", "r2gen-iu", "rexrank", "cxrmate2"], value="raw", label="Protocol"),
    ],
    gr.JSON(label="Scores"),
    title="Chest X-ray report text metrics",
)

if __name__ == "__main__":
    demo.launch()
