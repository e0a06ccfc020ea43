"""The same answers on a GPU as on a CPU. Needs a CUDA device; skipped elsewhere."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_gaze2report.modeling_gaze2report import Gaze2ReportForConditionalGeneration
from modeling_gaze2report.training.recipe import load_recipe
from modeling_gaze2report.training.stages import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def on_both(tiny_config):
    """A tiny model with random weights, on the CPU and on the GPU."""
    torch.manual_seed(0)
    model = Gaze2ReportForConditionalGeneration(tiny_config()).eval()
    return model, copy.deepcopy(model).cuda()


def films(number: int = 3) -> torch.Tensor:
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def gaze(number: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    fixations = torch.rand(number, 6, 3, generator=generator)
    return {"fixations": fixations, "fixation_mask": torch.arange(6) < torch.tensor([[6], [4], [3]])}


def test_findings_and_tokens_of_recorded_gaze_are_those_of_the_cpu(on_both):
    of_cpu, of_gpu = (
        model.get_image_features(
            films().to(model.device), **{name: one.to(model.device) for name, one in gaze().items()}
        )
        for model in on_both
    )
    torch.testing.assert_close(of_gpu.findings.logits.cpu(), of_cpu.findings.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(of_gpu.findings.boxes.cpu(), of_cpu.findings.boxes, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        torch.stack(of_gpu.pooler_output).cpu(), torch.stack(of_cpu.pooler_output), rtol=1e-3, atol=1e-4
    )


def test_likelihood_of_a_reading_is_that_of_the_cpu(on_both):
    of_cpu, of_gpu = (
        model.score_scanpath(films().to(model.device), *(one.to(model.device) for one in gaze().values()))
        for model in on_both
    )
    torch.testing.assert_close(of_gpu.cpu(), of_cpu, rtol=1e-3, atol=1e-3)


def test_gradients_of_the_graph_are_those_of_the_cpu(on_both):
    gradients = []
    for model in on_both:
        features = model.get_image_features(
            films().to(model.device), **{name: one.to(model.device) for name, one in gaze().items()}
        )
        features.findings.logits.square().sum().backward()
        gradients.append(model.model.fusion.layers[0].attention.conv.lin_key.weight.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-5)


def test_predicted_readings_are_those_of_the_cpu(on_both):
    of_cpu, of_gpu = (model.predict_scanpath(films().to(model.device)) for model in on_both)
    longest = of_cpu.mask.shape[-1]  # a GPU looks less often whether all readings have ended, and pads them longer
    assert torch.equal(of_gpu.mask[..., :longest].cpu(), of_cpu.mask)
    assert not of_gpu.mask[..., longest:].any()
    torch.testing.assert_close(of_gpu.fixations[..., :longest, :].cpu(), of_cpu.fixations, rtol=1e-3, atol=1e-3)


def test_a_recipe_trains_on_the_gpu_in_bfloat16(tmp_path):
    recipe = load_recipe(write_toy(tmp_path))
    folder = run(recipe)
    model = Gaze2ReportForConditionalGeneration.from_pretrained(folder)
    assert all(one.isfinite().all() for one in model.parameters())


def write_toy(folder) -> str:
    """Films with a report each, and a recipe for them that uses the GPU; returns its path."""
    generator = np.random.default_rng(0)
    pictures = folder / "films"
    pictures.mkdir()
    rows = ["file_name,name,patient,text,gaze"]
    for number in range(8):
        Image.fromarray(generator.integers(0, 255, (64, 64), dtype=np.uint8)).save(pictures / f"{number}.png")
        rows.append(f'{number}.png,{number},p{number},The lungs are clear.,"[[0.4, 0.5, 0.3], [0.6, 0.5, 0.2]]"')
    (pictures / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: toy
output: {folder}/model
precision: bf16
device: cuda
data: {{path: {pictures}, columns: {{image_id: name, patient_id: patient, report: text, fixations: gaze}}}}
tokenizer: {{vocab_size: 300}}
model:
  image_size: 64
  grid_size: 8
  vision: {{model_type: vit, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
    image_size: 64, patch_size: 8}}
  text: {{model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2,
    intermediate_size: 64, max_position_embeddings: 512}}
  scanpath: {{hidden_size: 32, num_attention_heads: 2, num_hidden_layers: 2, intermediate_size: 64, max_fixations: 10}}
  fusion: {{hidden_size: 32, num_attention_heads: 2, intermediate_size: 64, num_neighbors: 4, region_grid_size: 4,
    num_fixation_slots: 4}}
stages:
  - name: report
    trainable: [vision_tower, scanpath, fusion, perception, projector, language_model, lm_head]
    losses: {{report: 1.0, scanpath: 1.0, gaze_attention: 0.1}}
    max_steps: 3
    batch_size: 4
    recorded_gaze: 0.4
    predicted_gaze: 0.4
""",
        encoding="utf-8",
    )
    return str(path)
