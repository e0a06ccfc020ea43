"""Evidence as a page and as a moving picture: one file each, with nothing fetched from anywhere.

[`draw_html`] makes a page for a browser: the film with its numbered fixations, boxes and heat map, the reading to play,
pause and step through, and the sentences; pointing at a sentence lights what it rests on, pointing at a fixation or box
lights the sentences that rest on it. [`draw_svg`] makes a picture that plays the reading once and then stands still.
Both work by keyboard or without motion where the reader asked for that, keep the order of things in shape and number
and not in colour alone (the palette is that of Okabe and Ito), and show every text of the record as text.
"""

import base64
import html
import io
import re
from collections.abc import Iterable

import numpy as np
from PIL import Image

from .overlay import (
    BOX_COLOURS,
    FOOTER,
    MIN_LONG_SIDE,
    SCANPATH_COLOUR,
    fixation_circle,
    fixation_heat_map,
    heat_picture,
    overlay_size,
)

# Neither XML nor UTF-8 can carry these: control characters, halves of surrogate pairs, and two that are no characters.
_UNPRINTABLE_RE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Seconds that a fixation takes to appear.
_APPEAR_S = 0.15

_PICTURE_STYLE = """
.box rect { fill: none; stroke-width: 3; vector-effect: non-scaling-stroke; }
.box text { font: bold 14px system-ui, sans-serif; paint-order: stroke; stroke: #000; stroke-width: 4px; fill: #fff; }
.path { stroke: CYAN; stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.fixation circle { fill: rgb(0 0 0 / 45%); stroke: CYAN; stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.fixation text { font: bold 13px system-ui, sans-serif; fill: #fff; text-anchor: middle; dominant-baseline: central;
  paint-order: stroke; stroke: #000; stroke-width: 2px; }
""".replace("CYAN", "#{:02x}{:02x}{:02x}".format(*SCANPATH_COLOUR))

_MOTION_STYLE = """
@keyframes appear { from { opacity: 0; } to { opacity: 1; } }
.timed { animation: appear APPEARs linear both; }
@media (prefers-reduced-motion: reduce) { .timed { animation: none; } }
""".replace("APPEAR", str(_APPEAR_S))

_PAGE_STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1a1a1a; --soft: #f0f0f0; --edge: #767676; --lit: #ffe9a8; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181a; --ink: #ececec; --soft: #24272a; --edge: #9a9a9a; --lit: #5a4a12; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 84rem; background: var(--back); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.15rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1rem 0 .35rem; }
main { display: grid; gap: 1.25rem; grid-template-columns: minmax(0, 3fr) minmax(18rem, 2fr); }
@media (max-width: 52rem) { main { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; max-height: 85vh; background: #000; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin-top: .5rem; }
.controls input[type=range] { flex: 1 1 10rem; }
button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--edge); border-radius: .35rem;
  padding: .25rem .7rem; cursor: pointer; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
ol.sentences { list-style: none; margin: 0; padding: 0; }
ol.sentences button { display: block; width: 100%; text-align: left; margin: .25rem 0; padding: .4rem .6rem;
  overflow-wrap: anywhere; }
ol.sentences small { display: block; opacity: .85; }
ol.sentences button.lit, ol.sentences button[aria-pressed=true] { background: var(--lit); border-width: 2px; }
ol.sentences button[aria-pressed=true] { border-style: dashed; }
.unsupported::before { content: "\\26A0\\FE0E "; }
ul, dl { margin: .2rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.fixation, .box { cursor: pointer; transition: opacity .15s; }
svg.choosing .fixation:not(.lit), svg.choosing .box:not(.lit), svg.choosing .path { opacity: .15; }
.box.lit rect, .fixation.lit circle { stroke-width: 5; }
.fixation.current circle { stroke: #fff; stroke-width: 5; }
.hidden { visibility: hidden; }
.box, .fixation { outline: none; }
.box:focus-visible rect, .fixation:focus-visible circle { stroke: #fff; stroke-width: 5; }
footer { margin-top: 1.25rem; border-top: 1px solid var(--edge); padding-top: .5rem; font-weight: bold; }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
"""

# The page's own script: it reads nothing but the attributes that are written below, and text is never made code of.
_PAGE_SCRIPT = """
(() => {
  const film = document.querySelector('svg');
  const sentences = [...document.querySelectorAll('.sentences button')];
  const marks = [...film.querySelectorAll('.fixation, .box')];
  const fixations = [...film.querySelectorAll('.fixation')].sort((a, b) => a.dataset.onset - b.dataset.onset);
  const timed = [...film.querySelectorAll('[data-onset]')];
  const clock = document.querySelector('#clock'), play = document.querySelector('#play');
  const words = (element, name) => (element.getAttribute(name) || '').split(' ').filter(Boolean);
  const still = matchMedia('(prefers-reduced-motion: reduce)');
  let chosen = null, playing = null, last = 0;

  function light(element) {
    const isSentence = element && element.matches('.sentences button');
    const of = !element ? [] : isSentence ? [element.dataset.sentence] : words(element, 'data-sentences');
    film.classList.toggle('choosing', Boolean(element));
    for (const mark of marks)
      mark.classList.toggle('lit', mark === element ||
        Boolean(isSentence) && words(mark, 'data-sentences').includes(of[0]));
    for (const sentence of sentences)
      sentence.classList.toggle('lit', Boolean(element) && of.includes(sentence.dataset.sentence));
  }
  function choose(element) {
    chosen = chosen === element ? null : element;
    for (const one of [...sentences, ...marks]) one.setAttribute('aria-pressed', String(one === chosen));
    light(chosen);
  }
  for (const element of [...sentences, ...marks]) {
    element.addEventListener('pointerenter', () => light(element));
    element.addEventListener('pointerleave', () => light(chosen));
    element.addEventListener('focus', () => light(element));
    element.addEventListener('blur', () => light(chosen));
    element.addEventListener('click', () => choose(element));
    element.addEventListener('keydown', event => {
      if (element.localName !== 'g' || (event.key !== 'Enter' && event.key !== ' ')) return;
      event.preventDefault();
      choose(element);
    });
  }

  function show(time) {
    clock.value = time;
    clock.setAttribute('aria-valuetext', Number(time).toFixed(1) + ' s');
    let current = null;
    for (const one of timed) one.classList.toggle('hidden', Number(one.dataset.onset) > time);
    for (const one of fixations) if (Number(one.dataset.onset) <= time) current = one;
    const over = time >= Number(clock.max);
    for (const one of fixations) one.classList.toggle('current', one === current && !over);
  }
  function pause() {
    cancelAnimationFrame(playing);
    clearTimeout(playing);
    playing = null;
    play.textContent = 'Play';
  }
  function frame(now) {
    const time = Math.min(Number(clock.max), Number(clock.value) + (now - last) / 1000);
    last = now;
    show(time);
    // Where motion is not wanted the reading still goes on, a step every half second.
    if (time >= Number(clock.max)) pause();
    else playing = still.matches ? setTimeout(() => frame(performance.now()), 500) : requestAnimationFrame(frame);
  }
  if (play) {
    play.addEventListener('click', () => {
      if (playing !== null) return pause();
      if (Number(clock.value) >= Number(clock.max)) show(0);
      play.textContent = 'Pause';
      last = performance.now();
      playing = requestAnimationFrame(frame);
    });
    clock.addEventListener('input', () => { pause(); show(Number(clock.value)); });
    show(Number(clock.max));
  }
  const onsets = fixations.map(one => Number(one.dataset.onset));
  document.addEventListener('keydown', event => {
    if (event.key === 'Escape') choose(chosen);
    if (!clock || event.target.matches('input') || !onsets.length) return;
    const time = Number(clock.value), before = onsets.filter(one => one < time - 1e-6);
    const after = onsets.filter(one => one > time + 1e-6);
    if (event.key === 'ArrowRight') { pause(); show(after.length ? after[0] : Number(clock.max)); }
    if (event.key === 'ArrowLeft') { pause(); show(before.length ? before[before.length - 1] : 0); }
  });
  for (const box of document.querySelectorAll('[data-layer]'))
    box.addEventListener('change', () => {
      for (const one of film.querySelectorAll(box.dataset.layer)) one.style.display = box.checked ? '' : 'none';
    });
})();
"""


def draw_html(record: dict, film: np.ndarray) -> str:
    """A page of its own that shows the evidence of one report.

    Args:
        record: evidence record, schema `gaze2report.evidence/1`.
        film: uint8 (height, width) display levels, as in `Film.pixels`.

    Returns:
        The HTML document. It may stand in an `<iframe srcdoc>`; it stores nothing and asks nobody for anything.
    """
    name, fixations = record["image"]["name"], record["gaze"]["fixations"]
    total = sum(fixation["duration_s"] for fixation in fixations)
    controls = ['<label><input type="checkbox" data-layer=".box" checked> boxes</label>']
    if fixations:
        controls = [
            '<button type="button" id="play">Play</button>',
            f'<input type="range" id="clock" min="0" max="{total:.4f}" step="any" value="{total:.4f}" '
            'aria-label="Time of the reading in seconds">',
            '<label><input type="checkbox" data-layer=".heat" checked> heat map</label>',
            '<label><input type="checkbox" data-layer=".fixation, .path" checked> gaze</label>',
            *controls,
        ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    source = {"recorded": "recorded gaze", "predicted": "predicted gaze", "none": "no gaze"}[record["gaze"]["source"]]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(name)} - evidence</title>
<style>{_PICTURE_STYLE}{_PAGE_STYLE}</style>
</head>
<body>
<h1>{_text(name)}: report and evidence ({source})</h1>
<main>
<figure>
{_picture(record, film, is_page=True)}
<div class="controls">{"".join(controls)}</div>
<figcaption>Point at a sentence, a fixation or a box to see what belongs together; click to keep it, Escape to let go,
left and right arrows to step through the reading.</figcaption>
</figure>
<section aria-label="Report">
<h2>Report</h2>
<ol class="sentences">
{_sentences(record)}
</ol>
{_section("Findings", _findings(record))}
{_section("Sweep: regions never looked at", _sweep(record))}
{_section("Warnings", map(_text, record["warnings"]))}
</section>
</main>
<footer>{FOOTER}</footer>
<script>{_PAGE_SCRIPT}</script>
</body>
</html>
"""


def draw_svg(record: dict, film: np.ndarray) -> str:
    """A picture that plays the reading once, fixation by fixation, and then shows all of it.

    Args:
        record: evidence record, schema `gaze2report.evidence/1`.
        film: uint8 (height, width) display levels, as in `Film.pixels`.

    Returns:
        The SVG document, below the film a line with the file's name and the notice.
    """
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + _picture(record, film, is_page=False) + "\n"


def _picture(record: dict, film: np.ndarray, is_page: bool) -> str:
    height, width = overlay_size(*film.shape)
    band = 0 if is_page else round(height * 0.035) + 8
    layers = [f'<image href="{_film_uri(film, width, height)}" width="{width}" height="{height}"/>']
    fixations = record["gaze"]["fixations"]
    if fixations:
        # A glance that the record's rounding left nothing of is drawn all the same.
        points = np.array([(one["x"], one["y"], max(one["duration_s"], 1e-4)) for one in fixations])
        heat = heat_picture(fixation_heat_map(points, height, width), (width // 2 or 1, height // 2 or 1))
        layers.append(f'<image class="heat" href="{_uri(heat, "PNG")}" width="{width}" height="{height}"/>')
        layers += _boxes(record, width, height, is_page)
        layers += _scanpath(record, points, width, height, is_page)
    else:
        layers += _boxes(record, width, height, is_page)
    name = _text(record["image"]["name"])
    if not is_page:
        size = band * 0.5
        style = f"font: {size:.1f}px system-ui, sans-serif; dominant-baseline: central"
        middle = height + band / 2
        layers += [
            f'<rect y="{height}" width="{width}" height="{band}" fill="#181818"/>',
            f'<text x="{width - 8}" y="{middle:.1f}" style="{style}; text-anchor: end" fill="#ebebeb">{FOOTER}</text>',
        ]
        if width > 600:
            layers.append(f'<text x="8" y="{middle:.1f}" style="{style}" fill="#aaa">{name[:48]}</text>')
    style = "" if is_page else f"<style>{_PICTURE_STYLE}{_MOTION_STYLE}</style>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + band}" role="group" '
        f'aria-label="Film {name} with {len(fixations)} fixations">{style}\n' + "\n".join(layers) + "\n</svg>"
    )


def _scanpath(record, points, width, height, is_page) -> Iterable[str]:
    unit = max(width, height) / MIN_LONG_SIDE
    circles = [fixation_circle(*point, (width, height), unit) for point in points]
    onsets = np.cumsum(points[:, 2]) - points[:, 2]
    for index in range(1, len(circles)):
        (x0, y0, _), (x1, y1, _) = circles[index - 1 : index + 1]
        yield (
            f'<line class="path timed" {_time(onsets[index], is_page)} '
            f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'
        )
    # The small ones last, on top: a long dwell must not hide a glance within it.
    for index in np.argsort([-radius for *_, radius in circles], kind="stable").tolist():
        x, y, radius = circles[index]
        one = record["gaze"]["fixations"][index]
        label = f"Fixation {index + 1}, {one['duration_s']:.2f} s, {one['region'] or 'no region'}"
        yield (
            f'<g class="fixation timed" {_time(onsets[index], is_page)}{_linked(record, "fixations", index, is_page)}>'
            f"<title>{_text(label)}</title>"
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
            f'<text x="{x:.1f}" y="{y:.1f}" style="font-size: {13 * unit:.0f}px">{index + 1}</text></g>'
        )


def _time(onset: float, is_page: bool) -> str:
    return f'data-onset="{onset:.4f}"' if is_page else f'style="animation-delay: {onset:.3f}s"'


def _linked(record: dict, key: str, value, is_page: bool) -> str:
    """Attributes that tie a mark to the sentences that rest on it, and make it reachable by keyboard."""
    if not is_page:
        return ""
    sentences = " ".join(str(index) for index, one in enumerate(record["sentences"]) if value in one[key])
    return f' data-sentences="{sentences}" tabindex="0" role="button" aria-pressed="false"'


def _boxes(record: dict, width: int, height: int, is_page: bool) -> Iterable[str]:
    """Every box once: of the findings, and of the sentences."""
    labels: dict[tuple, str] = {}
    for finding in record["findings"]:
        if finding["box"]:
            labels.setdefault(tuple(finding["box"]), finding["name"])
    for sentence in record["sentences"]:
        asserted = [one["name"] for one in sentence["findings"] if one["status"] != "negative"]
        for box in sentence["boxes"]:
            labels.setdefault(tuple(box), ", ".join(asserted))
    unit = max(width, height) / MIN_LONG_SIDE
    events = ' pointer-events="all"' if is_page else ""
    for number, (box, label) in enumerate(labels.items()):
        x0, y0, x1, y1 = (side * length for side, length in zip(box, (width, height) * 2, strict=True))
        colour = "#{:02x}{:02x}{:02x}".format(*BOX_COLOURS[number % len(BOX_COLOURS)])
        baseline = y0 - 5 * unit if y0 > 24 * unit else y0 + 17 * unit
        yield (
            f'<g class="box"{_linked(record, "boxes", list(box), is_page)}><title>{_text(label or "Box")}</title>'
            f'<rect x="{x0:.2f}" y="{y0:.2f}" width="{x1 - x0:.2f}" height="{y1 - y0:.2f}" stroke="{colour}"'
            f"{events}/>"
            f'<text x="{x0 + 2:.1f}" y="{baseline:.1f}" style="font-size: {14 * unit:.0f}px">{_text(label)}</text></g>'
        )


def _sentences(record: dict) -> str:
    lines = []
    for index, sentence in enumerate(record["sentences"]):
        notes = []
        if sentence["confidence"] is not None:
            notes.append(f"confidence {sentence['confidence']:.2f}")
        if sentence["fixations"]:
            notes.append("fixations " + ", ".join(str(one + 1) for one in sentence["fixations"]))
        elif record["gaze"]["fixations"]:
            notes.append("no fixation")
        notes += [region for region in dict.fromkeys(sentence.get("box_regions", ())) if region]
        kind = ""
        if sentence.get("supported") is False:
            kind = ' class="unsupported"'
            notes.insert(0, "no visual support")
        lines.append(
            f'<li><button type="button" data-sentence="{index}" aria-pressed="false"{kind}>{_text(sentence["text"])}'
            f"<small>{_text('; '.join(notes))}</small></button></li>"
        )
    return "\n".join(lines)


def _findings(record: dict) -> Iterable[str]:
    for finding in record["findings"]:
        if finding["box"]:
            words = [f"{finding['probability']:.2f}", finding.get("severity"), finding["region"] or "no region"]
            yield _text(f"{finding['name']}: {', '.join(word for word in words if word)}")


def _sweep(record: dict) -> Iterable[str]:
    for step in record.get("sweep", ()):
        if step["missed"]:
            yield _text(f"{step['letter']}, {step['name']}: {', '.join(step['missed'])}")


def _section(title: str, items: Iterable[str]) -> str:
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f"<h2>{title}</h2>\n<ul>{lines}</ul>" if lines else ""


def _text(text: str) -> str:
    """Text of the record for any place in the document, attributes included."""
    return html.escape(_UNPRINTABLE_RE.sub("\ufffd", text))


def _film_uri(film: np.ndarray, width: int, height: int) -> str:
    picture = Image.fromarray(film)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return _uri(picture, "JPEG", quality=90)


def _uri(picture: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


__all__ = ["draw_html", "draw_svg"]
