"""The Space: a film goes in; its report comes out with the reading and the evidence behind every sentence.

Runs as a program of its own, with transformers and the model from the Hub: `GAZE2REPORT_MODEL` (a folder or a Hub id),
or else what `space.json` beside this file names. Research software. Not for clinical use.
"""

import atexit
import base64
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp(prefix="gaze2report-space-"))

try:
    import spaces  # on ZeroGPU it must come before torch

    on_gpu = spaces.GPU(duration=60)
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
from film_view import HERE, film_view, view_of
from reading import REDRAFTING, STRATEGIES, FilmReader
from safety import (
    FILE_AGE_S,
    LOOK_EVERY_S,
    MAX_FILE,
    MAX_QUEUE,
    Refused,
    Visits,
    choice_of,
    film_of,
    for_visitors,
    gaze_of,
    number_of,
    quote_nobody_in_the_log,
    upload_folder,
    words_of,
)

NOTICE = "Research software. Not for clinical use."
MAX_READINGS = 8
DOCUMENTS = {
    "report": ("report.txt", "text/plain"),
    "evidence": ("evidence.json", "application/json"),
    "overlay": ("overlay.png", "image/png"),
    "page": ("report.html", "text/html"),
    "dicom-sr": ("report.dcm", "application/dicom"),
}
INTRODUCTION = f"""# Gaze2Report

A chest film is read as a reader's eyes would travel over it. The report comes with **where the model looked, in which
order, and what each sentence rests on**: choose a sentence, a box or a fixation, and what belongs to it lights up.

**{NOTICE}** This is no medical device and no second opinion: do not act on what it says about a patient.
"""
PRIVACY = f"""Films are read and forgotten: your files are deleted when you leave, at the latest some
{FILE_AGE_S // 60} minutes after upload. Nothing is logged, counted or passed on. Of a DICOM header only what displays
the picture is read, never who it shows; but text inside the picture stays in the picture: **upload no film that names a
patient.**"""


def settings() -> tuple[str, str | None]:
    """Which model, and which revision of it, this Space shows; never a visitor's choice."""
    if model := os.environ.get("GAZE2REPORT_MODEL"):
        return model, None
    file = HERE / "space.json"
    if not file.is_file():
        sys.exit("No model: set GAZE2REPORT_MODEL to a model folder or a Hub id.")
    values = json.loads(file.read_text(encoding="utf-8"))
    return values["model"], values["revision"]


reader = FilmReader(*settings())
load_film = sys.modules[type(reader.processor).__module__].load_film
visits = Visits()


# -- what runs the model ----------------------------------------------------------------------------------------------


@on_gpu
def read_steps(film, gaze, strategy):
    yield from reader.read(film, gaze=gaze, strategy=strategy)


@on_gpu
def ask_model(film, question):
    return reader.ask(film, question)


@on_gpu
def ground_phrase(film, phrase):
    return reader.ground(film, phrase)


@on_gpu
def draw_readings(film, number, temperature):
    return reader.scanpaths(film, number, temperature)


@on_gpu
def compare_gaze(film, gaze, strategy):
    return reader.compare(film, gaze, strategy)


def document_of(kind: str, record: dict, film) -> dict:
    """A report in one of the forms of `DOCUMENTS`: `name`, `type` and base64 `data`. It never touches the disk."""
    name, media_type = DOCUMENTS[kind]
    data = base64.b64encode(reader.document(kind, record, film)).decode()
    return {"name": f"{Path(film.name).stem}.{name}", "type": media_type, "data": data}


# -- the interface for programs ---------------------------------------------------------------------------------------
# Named here, documented in README.md. `film` and `gaze_file` are uploads (`gradio_client.handle_file`), `gaze` is text.


def report(film: dict, strategy: str = "direct", gaze: str = "", gaze_file: dict | None = None) -> dict:
    """The evidence record of a film's report, sentence by sentence as it is written."""
    choice_of(strategy, STRATEGIES, "strategy")
    loaded = film_of(film, load_film)
    for step in read_steps(loaded, gaze_of(gaze, gaze_file, loaded), strategy):
        if step["live"] in ("", REDRAFTING):
            yield step["record"]


def ask(film: dict, question: str) -> dict:
    """The evidence record whose `report` is the answer to a question about a film."""
    question = words_of(question, "question")
    return ask_model(film_of(film, load_film), question)


def ground(film: dict, phrase: str) -> dict:
    """Where on a film a phrase is: `boxes` in [0, 1] of the image, `text`."""
    phrase = words_of(phrase, "phrase")
    return ground_phrase(film_of(film, load_film), phrase)


def scanpaths(film: dict, num_samples: int = 3, temperature: float = 1.0) -> dict:
    """Drawn readings of a film, the likeliest first, with the log probability of each in nats."""
    number = int(number_of(num_samples, 1, MAX_READINGS, "number of readings"))
    temperature = number_of(temperature, 0.1, 3, "temperature")
    loaded = film_of(film, load_film)
    return {"image": loaded.record, "readings": draw_readings(loaded, number, temperature)}


def compare(film: dict, gaze: str = "", gaze_file: dict | None = None, strategy: str = "direct") -> dict:
    """The records of a film read with predicted gaze and with the given one, and what differs."""
    choice_of(strategy, STRATEGIES, "strategy")
    loaded = film_of(film, load_film)
    own = gaze_of(gaze, gaze_file, loaded)
    if own is None:
        raise Refused("There is no gaze yet: give at least one fixation, or a recording.")
    return compare_gaze(loaded, own, strategy)


def document(film: dict, kind: str = "overlay", strategy: str = "direct", gaze: str = "") -> dict:
    """A film's report as a file: `name`, `type` and base64 `data`."""
    choice_of(kind, DOCUMENTS, "kind")
    choice_of(strategy, STRATEGIES, "strategy")
    loaded = film_of(film, load_film)
    for step in read_steps(loaded, gaze_of(gaze, None, loaded), strategy):
        record = step["record"]
    return document_of(kind, record, loaded)


ENDPOINTS = (report, ask, ground, scanpaths, compare, document)


# -- the page ---------------------------------------------------------------------------------------------------------


def refuse_addresses(demo: gr.Blocks) -> None:
    """Files are uploaded and never fetched: Gradio would ask any server that a request names for them."""

    def guard(move):
        async def moved(url_or_file_path):
            if str(url_or_file_path or "").lower().startswith(("http:", "https:")):
                raise gr.Error("Files are uploaded, not fetched.", print_exception=False)
            return await move(url_or_file_path)

        return moved

    for block in demo.blocks.values():
        block.async_move_resource_to_block_cache = guard(block.async_move_resource_to_block_cache)


def show_film(file, request: gr.Request):
    if not file:
        return None, None, None
    visits.note(request.session_hash, file)
    film = film_of(file, load_film)
    return view_of(film, "Film", pad=True, warnings=list(film.warnings)), None, None


def show_report(file, strategy, request: gr.Request):
    visits.note(request.session_hash, file)
    choice_of(strategy, STRATEGIES, "strategy")
    film = film_of(file, load_film)
    base = view_of(film, "Read by the model", pad=True, plays=True)
    for step in read_steps(film, None, strategy):
        done = step["done"]
        words = f"Read in {step['seconds']:.1f} s." if done else "Writing, a sentence at a time."
        parts = {"record": step["record"], "live": step["live"], "status": words}
        yield base | parts, step["record"] if done else None, None


def show_comparison(file, points, gaze_file, strategy, request: gr.Request):
    visits.note(request.session_hash, file, gaze_file)
    film = film_of(file, load_film)
    result = compare(file, points, gaze_file, strategy)
    before = view_of(film, "Predicted gaze", pad=True, record=result["predicted"])
    after = view_of(film, "Your gaze", plays=True, record=result["recorded"], changes=result["changes"])
    return before, after, result["recorded"]


def show_answer(file, question, request: gr.Request):
    visits.note(request.session_hash, file)
    record = ask(file, question)
    return " ".join((record["report"] or "The model has no answer.", *record["warnings"]))


def show_places(file, phrase, record, request: gr.Request):
    visits.note(request.session_hash, file)
    found = ground(file, phrase)
    film = film_of(file, load_film)
    words = " ".join((found["text"], *found["warnings"]))
    return view_of(film, "Where it is", pad=True, record=record, boxes=found["boxes"], phrase=phrase.strip()), words


def show_readings(file, number, temperature, request: gr.Request):
    visits.note(request.session_hash, file)
    drawn = scanpaths(file, number, temperature)["readings"]
    return view_of(film_of(file, load_film), "Readings drawn from the model", pad=True, plays=True, readings=drawn)


def give_document(file, record, event: gr.EventData):
    kind = choice_of(event._data.get("kind"), DOCUMENTS, "kind")
    if record is None:
        raise Refused("There is no report yet: press “Write the report” first.")
    return document_of(kind, record, film_of(file, load_film))


def forget(request: gr.Request):
    visits.forget(request.session_hash)


DOWNLOADS_JS = """
const save = () => {
  const file = props.value;
  if (!file) return;
  const bytes = Uint8Array.from(atob(file.data), (letter) => letter.charCodeAt(0));
  const address = URL.createObjectURL(new Blob([bytes], { type: file.type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  props.value = null;
};
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-kind]");
  if (button) trigger("download", { kind: button.dataset.kind });
});
watch("value", save);
"""
DOWNLOADS_HTML = '<div class="downloads" role="group" aria-label="Downloads">{}</div>'.format(
    "".join(
        f'<button type="button" data-kind="{kind}">{label}</button>'
        for kind, label in {
            "report": "Report (text)",
            "evidence": "Evidence (JSON)",
            "overlay": "Overlay (PNG)",
            "page": "Page to share (HTML)",
            "dicom-sr": "DICOM SR",
        }.items()
    )
)


def build() -> gr.Blocks:
    """The page and the interface for programs."""

    def guarded(function):
        return for_visitors(function, lambda message: gr.Error(message, print_exception=False))

    # Whatever runs the model waits in one queue; the page shows everybody's place in it.
    of_model = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    light = {"concurrency_limit": 4, "api_visibility": "private"}
    with gr.Blocks(title="Gaze2Report", analytics_enabled=False, delete_cache=(LOOK_EVERY_S, FILE_AGE_S)) as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2):
                film = gr.File(label="Chest film: PNG, JPEG or DICOM", type="filepath", elem_id="film", height=140)
            with gr.Column(scale=1):
                strategy = gr.Radio(
                    [("Direct", "direct"), ("Grounded", "grounded"), ("Structured", "structured")],
                    value="direct",
                    label="How the report is written",
                    info="Grounded: with boxes in the text. Structured: from the findings.",
                )
                write = gr.Button("Write the report", variant="primary", elem_id="write")
                stop = gr.Button("Stop", elem_id="stop")
        gr.Examples(
            [[str(path)] for path in sorted((HERE / "examples").glob("phantom*")) if "overlay" not in path.name],
            inputs=[film],
            label="Phantoms (generated, of nobody)",
            api_visibility="private",
        )
        with gr.Row(elem_id="views"):
            with gr.Column():
                view = film_view(elem_id="first-view", elem_classes="film-holder")
            with gr.Column():
                second = film_view(elem_id="second-view", elem_classes="film-holder")
        record = gr.State(None, time_to_live=FILE_AGE_S)
        with gr.Tab("Your gaze"):
            gr.Markdown(
                "Where would you look? Press *Look with the pointer* under the film, then click where you look; hold "
                "for a longer fixation. Or upload an eye tracker's export (EyeLink, Tobii, Pupil, Gazepoint, CSV)."
            )
            with gr.Row():
                points = gr.Textbox(
                    label="Fixations: x, y, seconds; a line each, x and y from 0 to 1",
                    lines=4,
                    max_lines=8,
                    elem_id="gaze-points",
                )
                gaze_file = gr.File(label="Eye tracker's file", type="filepath", elem_id="gaze-file", height=140)
            with gr.Row():
                compare_button = gr.Button("Read with my gaze and compare", variant="primary", elem_id="compare")
                clear = gr.Button("Clear my gaze", elem_id="clear-gaze")
        with gr.Tab("Ask"):
            question = gr.Textbox(label="Question", placeholder="Is there a pleural effusion?", elem_id="question")
            ask_button = gr.Button("Ask", elem_id="ask")
            answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
        with gr.Tab("Find"):
            phrase = gr.Textbox(label="What to find", placeholder="enlarged heart", elem_id="phrase")
            find_button = gr.Button("Show it on the film", elem_id="find")
            found = gr.Textbox(label="Found", interactive=False, elem_id="found")
        with gr.Tab("Readings"):
            number = gr.Slider(1, MAX_READINGS, value=3, step=1, label="How many readings")
            temperature = gr.Slider(0.1, 3, value=1, step=0.1, label="Temperature: above 1 more varied")
            sample = gr.Button("Draw readings", elem_id="sample")
        with gr.Tab("Download"):
            downloads = gr.HTML(html_template=DOWNLOADS_HTML, js_on_load=DOWNLOADS_JS, apply_default_css=False)
        gr.Markdown(PRIVACY)

        film.change(guarded(show_film), [film], [view, second, record], show_progress="hidden", **light)
        reading = write.click(guarded(show_report), [film, strategy], [view, record, second], **of_model)
        stop.click(None, cancels=[reading], api_visibility="private")
        comparing = {"fn": guarded(show_comparison), "inputs": [film, points, gaze_file, strategy]}
        compare_button.click(**comparing, outputs=[view, second, record], **of_model)
        clear.click(lambda: ("", None), None, [points, gaze_file], **light)
        gr.on([ask_button.click, question.submit], guarded(show_answer), [film, question], [answer], **of_model)
        gr.on(
            [find_button.click, phrase.submit],
            guarded(show_places),
            [film, phrase, record],
            [view, found],
            **of_model,
        )
        sample.click(guarded(show_readings), [film, number, temperature], [view], **of_model)
        downloads.download(guarded(give_document), [film, record], [downloads], show_progress="hidden", **light)
        demo.unload(forget)
        for endpoint in ENDPOINTS:
            gr.api(guarded(endpoint), api_name=endpoint.__name__, concurrency_id="model", concurrency_limit=1)
    refuse_addresses(demo)
    return demo.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def theme() -> gr.themes.Base:
    """Gradio's own, with fonts of the visitor's machine and text of a contrast over 4.5."""
    return gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        button_primary_background_fill="#0b5cad",
        button_primary_background_fill_hover="#084a8c",
        button_primary_background_fill_dark="#0b5cad",
        button_primary_text_color="#ffffff",
        body_text_color_subdued="#52525b",
        body_text_color_subdued_dark="#c4c4cc",
        block_info_text_color="#52525b",
        block_info_text_color_dark="#c4c4cc",
    )


def warm_up() -> None:
    """Read the bundled phantom once: the first visitor does not wait for what is made at the first use."""
    film = load_film(str(HERE / "examples" / "phantom.png"))
    for _ in read_steps(film, None, "direct"):
        pass


def forget_everything(*_) -> None:
    """Delete all uploads, which go with the program."""
    shutil.rmtree(upload_folder(), ignore_errors=True)


def leave(*_) -> None:
    forget_everything()
    os._exit(0)  # at once: nobody's work is worth waiting for


if __name__ == "__main__":
    atexit.register(forget_everything)
    signal.signal(signal.SIGTERM, leave)
    print(NOTICE, flush=True)
    quote_nobody_in_the_log()
    warm_up()
    build().launch(
        theme=theme(),
        # Not as `css`: Gradio drops container queries when it rewrites that.
        head=f"<style>{(HERE / 'film_view.css').read_text(encoding='utf-8')}</style>",
        max_file_size=MAX_FILE,
        ssr_mode=False,
        run_history=False,
        footer_links=["api"],
        enable_monitoring=False,
        quiet=os.environ.get("GAZE2REPORT_QUIET") == "1",
    )
