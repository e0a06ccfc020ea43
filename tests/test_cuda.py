"""The same answers on a GPU as on a CPU. Needs a CUDA device; skipped elsewhere."""

import copy

import pytest
import torch

from modeling_gaze2report.modeling_gaze2report import Gaze2ReportForConditionalGeneration
from modeling_gaze2report.training.recipe import load_recipe
from modeling_gaze2report.training.stages import run

from .training.toy import STEADY_GAZE, TOY, write_phantoms

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


@pytest.mark.parametrize("held_passes", [0, 1])
def test_a_recipe_trains_on_the_gpu_in_bfloat16(tmp_path, held_passes):
    data = write_phantoms(tmp_path / "phantoms")
    held = [*STEADY_GAZE, *(f"stages.{number}.held_passes={held_passes}" for number in range(3))]
    settings = [*TOY, *held, f"data.path={data}", f"output={tmp_path / 'model'}", "device=cuda", "precision=bf16"]
    model = Gaze2ReportForConditionalGeneration.from_pretrained(run(load_recipe("embedded", settings)))
    assert all(one.isfinite().all() for one in model.parameters())
