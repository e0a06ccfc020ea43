"""Training by recipe: `python -m modeling_gaze2report.training RECIPE.yaml [key=value ...]`."""
