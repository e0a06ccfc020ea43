"""The film view: what the page's JavaScript is given, and the component it lives in."""

import base64
import io
import itertools
from pathlib import Path

import gradio as gr
from PIL import Image

SHOWN_SIDE = 1024
HERE = Path(__file__).parent
# A new number tells the page that this is another film or reading, not more of the same.
_numbers = itertools.count()


def film_view(**options) -> gr.HTML:
    """The component; its value comes from [`view_of`]."""
    return gr.HTML(
        value=None,
        html_template='<section class="film-view" data-state="empty" aria-label="Film and report"></section>',
        js_on_load=(HERE / "film_view.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        **options,
    )


def picture_of(film) -> str:
    """The film as a data address: its pixels alone, no more than a screen shows, nothing of its file."""
    image = Image.fromarray(film.pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    image.save(memory, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode()


def view_of(film, title: str = "", **parts) -> dict:
    """What the page shows of a film.

    Args:
        film: as `load_film` gives it.
        title: over the film.
        parts: `record` (evidence record), `live` (unfinished words), `status`, `plays` (whether the reading starts by
            itself), `pad` (whether gaze can be given on it), `readings`, `boxes` and `phrase`, `changes`.
    """
    base = {"key": next(_numbers), "film": picture_of(film), "name": film.name, "title": title}
    return base | {"width": film.width, "height": film.height} | parts
