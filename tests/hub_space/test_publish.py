"""Publishing, with the real client against a Hub on this machine: trees, commits, interruptions, and loading back."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, SpaceCard, constants

from modeling_gaze2report import cli
from modeling_gaze2report.hub_space import publish as publishing
from modeling_gaze2report.hub_space.card import evaluation_results
from modeling_gaze2report.hub_space.export import AUTO_MAP, HUB_FILES, hub_file_paths
from modeling_gaze2report.processing.errors import InputError, ModelError

from ..tiny_export import export_tiny_model
from .hub_stand_in import TOKEN, USER, StandIn

MODEL = f"models/{USER}/tiny"
# Without the package, as where it is not installed: the logits of each model, all with the first one's processor.
LOAD = """
import json, sys
sys.modules["modeling_gaze2report"] = None
import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor
remote = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(sys.argv[1], **remote)
inputs = processor(images=np.random.default_rng(0).integers(0, 256, (80, 60), dtype=np.uint8), return_tensors="pt")
results = {}
for name in sys.argv[1:]:
    model, info = AutoModelForImageTextToText.from_pretrained(name, output_loading_info=True, **remote)
    assert not any(info.values()), (name, info)
    results[name] = model.eval()(**inputs).logits.double().sum().item()
processor.batch_decode_report(model.generate(**inputs))
print("results", json.dumps(results))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


@contextlib.contextmanager
def running_hub():
    stand_in = StandIn()
    with pytest.MonkeyPatch.context() as patches:
        # The large-file service of the real Hub is another server; without it the client sends large files by HTTP.
        patches.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patches.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
        yield stand_in
    stand_in.close()


@pytest.fixture
def hub():
    with running_hub() as stand_in:
        yield stand_in


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def tree(exported, tmp_path):
    publishing.build_model_tree(exported, tmp_path / "tree", f"{USER}/tiny")
    return tmp_path / "tree"


def send(api, tree, repo_type="model", name="tiny"):
    return publishing.upload(api, tree, f"{USER}/{name}", repo_type, False, "Publish")


@pytest.fixture(scope="module")
def adapter(exported, tmp_path_factory):
    """A folder that peft wrote, of an adapter that changes something."""
    import peft
    import torch
    from transformers import AutoModelForImageTextToText

    adapted = peft.get_peft_model(
        AutoModelForImageTextToText.from_pretrained(exported),
        peft.LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)"),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(exported, adapter, tmp_path_factory):
    """The logits of model and adapter from the Hub, after an upload that broke off, and of the exported folder."""
    folder = tmp_path_factory.mktemp("loaded")
    with running_hub() as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        publishing.build_model_tree(exported, folder / "tree", f"{USER}/tiny")
        send(api, folder / "tree")
        publishing.build_model_tree(adapter, folder / "adapter", f"{USER}/adapter", base_model=f"{USER}/tiny")
        send(api, folder / "adapter", name="adapter")
        (folder / "tree" / "added.safetensors").write_bytes(b"x" * 2_000_000)
        hub.breaks = lambda method, path: method == "PUT"
        with pytest.raises(ModelError):
            send(api, folder / "tree")
        hub.breaks = lambda method, path: False
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, f"{USER}/tiny", f"{USER}/adapter", str(exported)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.split("results")[1])
    return {name.rpartition("/")[2]: value for name, value in results.items()}


# -- trees ------------------------------------------------------------------------------------------------------------


def test_a_model_tree_holds_the_model_and_the_packages_code(tree, exported):
    assert {entry.name for entry in tree.iterdir()} == {entry.name for entry in exported.iterdir()} | {"README.md"}
    for name, source in hub_file_paths().items():
        assert (tree / name).read_bytes() == source.read_bytes(), name
    assert json.loads((tree / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_a_model_saved_without_code_gets_it(exported, tmp_path):
    (tmp_path / "saved").mkdir()
    for path in exported.iterdir():
        if path.suffix != ".py":
            (tmp_path / "saved" / path.name).write_bytes(path.read_bytes())
    edited = json.loads((exported / "config.json").read_text())
    del edited["auto_map"]
    (tmp_path / "saved" / "config.json").write_text(json.dumps(edited | {"_name_or_path": "/home/somebody/model"}))

    publishing.build_model_tree(tmp_path / "saved", tmp_path / "tree", "a/b")

    assert {path.name for path in (tmp_path / "tree").glob("*.py")} == set(HUB_FILES)
    config = json.loads((tmp_path / "tree" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and "_name_or_path" not in config


def test_what_is_no_part_of_a_model_stays_behind_and_is_named(exported, tmp_path):
    source = tmp_path / "run"
    source.mkdir()
    for path in exported.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "optimizer.pt").write_bytes(b"state")
    (source / "checkpoint-10").mkdir()

    left_out = publishing.build_model_tree(source, tmp_path / "tree", "a/b")

    assert left_out == ["checkpoint-10", "optimizer.pt"]
    assert not (tmp_path / "tree" / "optimizer.pt").exists()


@pytest.mark.parametrize(("name", "message"), [("pytorch_model.bin", "are pickles"), ("notes.txt", "no weights")])
def test_a_folder_without_safe_weights_is_refused(tmp_path, name, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / name).write_text("")

    with pytest.raises(InputError, match=message):
        publishing.build_model_tree(tmp_path / "model", tmp_path / "tree", "a/b")


def test_a_model_that_does_not_load_is_not_published(tree):
    (tree / "model.safetensors").unlink()  # it is the exported model's own file under a second name
    (tree / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    with pytest.raises(ModelError, match=r"does not load in a clean process"):
        publishing.check_tree(tree)


def test_a_space_tree_names_its_model_in_one_revision(tmp_path):
    publishing.build_space_tree(tmp_path / "space", "a/b", "0123abcd" * 5, ["model.safetensors", "config.json"])

    card = SpaceCard.load(tmp_path / "space" / "README.md")
    assert json.loads((tmp_path / "space" / "space.json").read_text()) == {"model": "a/b", "revision": "0123abcd" * 5}
    assert card.data.models == ["a/b"]
    (preload,) = card.data.preload_from_hub
    repo, files, revision = preload.split(" ")
    assert (repo, files, revision) == ("a/b", "config.json,model.safetensors", "0123abcd" * 5)
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")


def test_the_space_asks_for_the_versions_that_were_tested():
    here = Path(publishing.__file__).parent
    constraints = Path(__file__).parents[2] / "constraints.txt"
    tested = dict(line.split("==") for line in constraints.read_text().split() if "==" in line)

    lines = [line for line in (here / "requirements.txt").read_text().splitlines() if "==" in line]
    pinned = dict(line.split("==") for line in lines)

    assert pinned == {name: tested[name] for name in pinned}
    assert SpaceCard.load(here / "README.md").data.sdk_version == tested["gradio"]


# -- commits ----------------------------------------------------------------------------------------------------------


def test_the_first_time_a_repository_is_made_and_gets_one_commit(hub, api, tree):
    published = send(api, tree)

    repository = hub.of(MODEL)
    assert published.is_new_commit and published.url.endswith(f"/{USER}/tiny")
    assert [message for _, message, _ in repository.commits] == ["initial commit", "Publish"]
    _, files = repository.files("main")
    assert set(files) == {entry.name for entry in tree.iterdir()} | {".gitattributes"}
    assert files["model.safetensors"] == ((tree / "model.safetensors").read_bytes(), True)


def test_the_same_tree_again_makes_no_commit_and_sends_no_weights(hub, api, tree):
    first = send(api, tree)
    uploads = [request for request in hub.requests if request[0] == "PUT"]

    again = send(api, tree)

    assert not again.is_new_commit and again.revision == first.revision
    assert len(hub.of(MODEL).commits) == 2
    assert [request for request in hub.requests if request[0] == "PUT"] == uploads and len(uploads) == 1


def test_stale_code_and_weights_go_and_other_peoples_files_stay(hub, api, tree):
    send(api, tree)
    repository = hub.of(MODEL)
    _, files = repository.files("main")
    repository.commit("by hand", files | {"old_module.py": (b"", False), "figure.svg": (b"<svg/>", False)})

    send(api, tree)

    _, files = repository.files("main")
    assert "old_module.py" not in files and "figure.svg" in files


@pytest.mark.parametrize("broken", ["/storage/", "/commit/"])
def test_an_interrupted_upload_leaves_what_was_there(hub, api, tree, broken, exported):
    first = send(api, tree)
    card = tree / "README.md"
    card.write_text(card.read_text() + "\nmore\n")
    weights = tree / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    hub.breaks = lambda method, path: broken in path and method != "GET"

    with pytest.raises(ModelError, match=r"reader/tiny was not published and is as it was before"):
        send(api, tree)

    head, files = hub.of(MODEL).files("main")
    assert head == first.revision
    assert files["model.safetensors"][0] == (exported / "model.safetensors").read_bytes()


def test_after_an_interruption_the_model_before_it_loads(loaded, exported):
    assert loaded["tiny"] == pytest.approx(loaded[exported.name], abs=1e-6)


def test_an_adapter_loads_from_the_hub_by_the_auto_class(loaded):
    assert loaded["adapter"] != pytest.approx(loaded["tiny"], abs=1e-3)


def test_an_adapter_is_published_alone_with_the_name_of_its_base(hub, api, adapter, exported, tmp_path):
    publishing.build_model_tree(adapter, tmp_path / "tree", f"{USER}/adapter", base_model=f"{USER}/tiny")
    publishing.check_tree(tmp_path / "tree", exported)
    send(api, tmp_path / "tree", name="adapter")

    _, files = hub.of(f"models/{USER}/adapter").files("main")
    assert set(files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(files["adapter_config.json"][0])["base_model_name_or_path"] == f"{USER}/tiny"
    card = ModelCard(files["README.md"][0].decode())
    assert (card.data.library_name, card.data.base_model) == ("peft", f"{USER}/tiny")


def test_an_adapter_of_a_local_model_is_refused(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/model"}')
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")

    with pytest.raises(InputError, match=r"'/home/me/model', which nobody else has.*--base-model"):
        publishing.build_model_tree(tmp_path / "adapter", tmp_path / "tree", "a/b")


# -- cards ------------------------------------------------------------------------------------------------------------


def test_figures_become_the_model_index(exported, tmp_path):
    metrics = {
        "schema": "gaze2report.metrics/1",
        "n": 278,
        "settings": {"gaze_source": "predicted"},
        "metrics": {"bleu_4": {"value": 0.082, "ci95": [0.073, 0.09]}, "radgraph_f1": None},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))

    publishing.build_model_tree(exported, tmp_path / "tree", "a/tiny", [tmp_path / "metrics.json"])

    card = ModelCard.load(tmp_path / "tree" / "README.md")
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.metric_type, result.metric_value) == ("tiny", "bleu_4", 0.082)
    assert (result.task_type, result.dataset_name) == ("image-text-to-text", "held-out films, 278 films")


def test_a_card_calls_the_model_by_its_name_on_the_hub(exported, tmp_path):
    folder = tmp_path / "my-run"
    shutil.copytree(exported, folder)
    use = "AutoModelForImageTextToText.from_pretrained({}, trust_remote_code=True)"
    lines = [use.format(name) for name in ("MODEL", '"my-run"')]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n" + "\n".join(lines))

    publishing.build_model_tree(folder, tmp_path / "tree", "a/tiny")

    card = ModelCard.load(tmp_path / "tree" / "README.md")
    assert card.text.split() == (use.format('"a/tiny"') + " " + use.format('"a/tiny"')).split()
    assert (card.data.license, card.data.library_name) == ("mit", "transformers")


def test_a_file_that_holds_no_metrics_is_named(tmp_path):
    (tmp_path / "other.json").write_text("{}")

    with pytest.raises(InputError, match=r"other.json is no gaze2report.metrics/1 file"):
        evaluation_results(tmp_path / "other.json")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_publishes_model_and_space(hub, exported, monkeypatch, capsys):
    monkeypatch.setattr(publishing, "check_tree", lambda *arguments: "fine")
    monkeypatch.setattr(publishing, "connect", lambda: (HfApi(endpoint=hub.url, token=TOKEN), USER))

    status = cli.main(["publish", "--model", str(exported), "--repo", "tiny", "--space", "show", "--private"])

    assert status == 0
    space = hub.of(f"spaces/{USER}/show")
    assert space.is_private and hub.of(MODEL).is_private
    head, _ = hub.of(MODEL).files("main")
    _, files = space.files("main")
    (preload,) = SpaceCard(files["README.md"][0].decode()).data.preload_from_hub
    assert {*HUB_FILES, "model.safetensors", "tokenizer.json"} <= set(preload.split(" ")[1].split(","))
    assert json.loads(files["space.json"][0]) == {"model": f"{USER}/tiny", "revision": head}
    printed = capsys.readouterr().out
    assert f"/{USER}/tiny  commit {head}" in printed and f"/spaces/{USER}/show  commit" in printed


def test_a_dry_run_writes_the_trees_and_asks_for_no_token(hub, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publishing, "connect", lambda: pytest.fail("the Hub was asked"))
    out = tmp_path / "out"

    status = cli.main(
        ["publish", "--model", str(exported), "--repo", "a/b", "--space", "a/c", "--dry-run", "--out", str(out)]
    )

    assert status == 0 and hub.requests == []
    assert (out / "model" / "model.safetensors").is_file() and (out / "space" / "app.py").is_file()
    printed = capsys.readouterr().out
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert f"{size:,}  bytes in all" in printed and "model/config.json" in printed


def test_without_a_token_the_command_says_where_to_get_one(exported, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    status = cli.main(["publish", "--model", str(exported), "--repo", "tiny"])

    assert status == 2
    assert "set HF_TOKEN or run `hf auth login`" in capsys.readouterr().err
