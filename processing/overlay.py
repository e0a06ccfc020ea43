"""Draws gaze and evidence on a film: heat map, scanpath, numbered fixations sized by duration, labelled boxes.

The heat map's colours run from violet to yellow in steps of equal length in the OKLab colour space, with rising
lightness, so they keep their order in grey print and for colour-blind readers; scanpath and boxes use the palette of
Okabe and Ito, which was made for the same readers. The footer stands below the film, not on it.
"""

import bisect
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFont

from .errors import InputError
from .gaze_geometry import check_gaze

FOOTER = "Research software. Not for clinical use."

# Long side of the drawn film in pixels: numbers stay legible on thumbnails, files stay small for full-size radiographs.
MIN_LONG_SIDE = 768
MAX_LONG_SIDE = 1536

# Thirteen colours of equal distance in OKLab, lightness from 0.36 to 0.93 (ours).
HEAT_COLOURS = (
    *((57, 43, 127), (87, 42, 150), (119, 42, 160), (149, 48, 155), (178, 54, 143), (203, 62, 125), (222, 78, 105)),
    *((235, 100, 84), (244, 125, 66), (250, 152, 58), (252, 180, 68), (250, 208, 96), (247, 236, 133)),
)
HEAT_OPACITY = 0.5
# Spread of one fixation in the heat map as a part of the long side: about one degree of visual angle, the size of the
# fovea's field, for a film that fills a reading screen.
HEAT_SPREAD = 0.04
SCANPATH_COLOUR = (86, 180, 233)
BOX_COLOURS = ((230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178))

# Masks are drawn at twice the size and halved: Pillow draws lines and circles without antialiasing.
_OVERSAMPLING = 2


def overlay_size(height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels of the drawn film, without the footer, for a film of `height` x `width` pixels."""
    long_side = max(height, width)
    scale = min(max(long_side, MIN_LONG_SIDE), MAX_LONG_SIDE) / long_side
    return max(1, round(height * scale)), max(1, round(width * scale))


def overlay_position(x: float, y: float, height: int, width: int) -> tuple[int, int]:
    """Column and row of the overlay's pixel that shows the point x, y.

    Args:
        x, y (`float`): in [0, 1] of the film.
        height, width (`int`): size of the film in pixels.
    """
    drawn_height, drawn_width = overlay_size(height, width)
    return min(int(x * drawn_width), drawn_width - 1), min(int(y * drawn_height), drawn_height - 1)


def draw_overlay(
    film: np.ndarray,
    fixations=None,
    boxes: Sequence = (),
    heat_map: np.ndarray | None = None,
    caption: str = "",
    numbers: Sequence[int] | None = None,
) -> Image.Image:
    """Draws a film with everything that was looked at and found.

    Fixations are numbered from 1 in their order; the area of a circle grows with its duration. A line joins those that
    follow each other.

    Args:
        film: uint8 (height, width) display levels, as in `Film.pixels`.
        fixations: (N, 3) x, y in [0, 1] of the film and duration in seconds, in order; `None` or empty: no gaze.
        boxes: sequence of (x0, y0, x1, y1, label) or (x0, y0, x1, y1, label, colour): corners in [0, 1] of the film, a
            text (may be empty) and a colour that Pillow understands (`"#d55e00"`, `(213, 94, 0)`).
        heat_map: (h, w) values >= 0 over the whole film, of any resolution; default: the fixations, each spread over
            one degree and weighted by its duration. Colours are relative to the largest value; zeros draw nothing.
        caption (`str`): shown at the left of the footer, for example the file's name.
        numbers: the fixations' numbers in the whole reading where only some of them are drawn; default 1, 2, 3, ...

    Returns:
        RGB `PIL.Image.Image`: the film, scaled so that its long side has `MIN_LONG_SIDE` to `MAX_LONG_SIDE` pixels, and
        below it the footer. [`overlay_position`] says where a point of the film is drawn.

    Raises:
        InputError: an array has the wrong shape or values, or a box is empty or outside the film.
    """
    film = np.asarray(film)
    if film.ndim != 2 or film.dtype != np.uint8:
        raise InputError(
            f"The film is {film.dtype} of shape {film.shape}; expected uint8 display levels (height, width)."
        )
    no_gaze = fixations is None or len(fixations) == 0
    fixations = np.zeros((0, 3)) if no_gaze else check_gaze(fixations, "fixations of the overlay").astype(np.float64)
    boxes = [_check_box(index, *box) for index, box in enumerate(boxes)]

    height, width = overlay_size(*film.shape)
    unit = max(height, width) / MIN_LONG_SIDE
    canvas = Image.fromarray(film)
    if canvas.size != (width, height):
        canvas = canvas.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = canvas.convert("RGB")

    if heat_map is None and len(fixations):
        heat_map = fixation_heat_map(fixations, height, width)
    if heat_map is not None:
        _draw_heat_map(canvas, _check_heat_map(heat_map))
    _draw_box_edges(canvas, boxes, unit)
    circles = [fixation_circle(*fixation, canvas.size, unit) for fixation in fixations]
    if circles:
        _draw_scanpath(canvas, circles, range(1, len(circles) + 1) if numbers is None else numbers, unit)
    _draw_box_labels(canvas, boxes, circles, unit)
    return _with_footer(canvas, caption, unit)


def fixation_heat_map(fixations: np.ndarray, height: int, width: int, spread: float = HEAT_SPREAD) -> np.ndarray:
    """Sum of one Gaussian per fixation, weighted by its duration.

    Args:
        fixations: (N, 3) x, y in [0, 1] of the film and duration in seconds.
        height, width (`int`): size of the film in pixels; only their ratio matters.
        spread (`float`): standard deviation of the Gaussian as a part of the long side.

    Returns:
        float64 (h, w) with 96 cells along the long side, in seconds at the centre of a lone fixation.
    """
    long_side = max(height, width)
    rows, columns = (max(1, round(96 * side / long_side)) for side in (height, width))
    x, y, duration = np.asarray(fixations, dtype=np.float64).T

    def profile(centres, cells, side):
        distance = (np.arange(cells)[None] + 0.5) / cells - centres[:, None]  # (N, cells)
        return np.exp(-0.5 * (distance * side / long_side / spread) ** 2)

    return (profile(y, rows, height) * duration[:, None]).T @ profile(x, columns, width)


def _check_box(index, x0, y0, x1, y1, label="", colour=None):
    corners = np.array([x0, y0, x1, y1], dtype=np.float64)
    if not (np.isfinite(corners).all() and 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise InputError(
            f"Box {index} (counting from 0) is ({x0}, {y0}, {x1}, {y1}); expected 0 <= x0 < x1 <= 1 and "
            "0 <= y0 < y1 <= 1."
        )
    if colour is None:
        colour = BOX_COLOURS[index % len(BOX_COLOURS)]
    if isinstance(colour, str):
        colour = ImageColor.getrgb(colour)
    return corners, str(label), tuple(colour)


def _check_heat_map(heat_map) -> np.ndarray:
    heat_map = np.asarray(heat_map, dtype=np.float64)
    if heat_map.ndim != 2 or heat_map.size == 0 or not np.isfinite(heat_map).all() or heat_map.min() < 0:
        raise InputError(f"The heat map of shape {heat_map.shape} must be (h, w) finite values that are not negative.")
    return heat_map


@lru_cache(maxsize=1)
def _heat_palette() -> tuple[list[int], list[int]]:
    """256 colours as a flat list for Pillow, and the opacity of each, 0 to 255."""
    anchors = np.linspace(0, 255, len(HEAT_COLOURS))
    colours = np.stack(
        [np.interp(np.arange(256), anchors, channel) for channel in zip(*HEAT_COLOURS, strict=True)], axis=1
    )
    # Unlooked-at film stays clear; opacity then rises quickly, for a faint colour on grey would look like a finding.
    heat = np.arange(256) / 255
    rise = np.clip((heat - 0.06) / 0.34, 0.0, 1.0)
    opacity = HEAT_OPACITY * rise * rise * (3 - 2 * rise)
    return np.rint(colours).astype(int).ravel().tolist(), np.rint(255 * opacity).astype(int).tolist()


def heat_picture(heat_map: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The heat map as a translucent RGBA picture of `size` = width, height; zeros are clear."""
    picture, mask = _heat_layers(heat_map, size)
    picture.putalpha(mask)
    return picture


def _heat_layers(heat_map: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Colours and opacity."""
    levels = Image.fromarray(np.rint(heat_map / max(heat_map.max(), 1e-12) * 255).astype(np.uint8))
    levels = levels.resize(size, Image.Resampling.BICUBIC)
    colours, opacity = _heat_palette()
    mask = levels.point(opacity)
    levels.putpalette(colours)
    return levels.convert("RGB"), mask


def _draw_heat_map(canvas: Image.Image, heat_map: np.ndarray) -> None:
    picture, mask = _heat_layers(heat_map, canvas.size)
    canvas.paste(picture, mask=mask)


def _draw_box_edges(canvas, boxes, unit) -> None:
    draw = ImageDraw.Draw(canvas)
    width = max(2, round(2.5 * unit))
    for corners, _, colour in boxes:
        x0, y0, x1, y1 = _box_pixels(corners, canvas.size)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0))
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)


def _box_pixels(corners, size) -> tuple[int, int, int, int]:
    width, height = size
    x0, y0, x1, y1 = corners * (width, height, width, height)
    return int(x0), int(y0), min(int(x1), width - 1), min(int(y1), height - 1)


def fixation_circle(x: float, y: float, duration: float, size, unit: float) -> tuple[float, float, float]:
    """Centre and radius in pixels of a fixation's circle on a drawn film of `size` = width, height.

    `unit` is the film's long side over `MIN_LONG_SIDE`. Bounds on the radius keep numbers legible and neighbours
    visible.
    """
    width, height = size
    return x * width, y * height, float(np.clip(13.0 * np.sqrt(duration / 0.3), 9.0, 38.0)) * unit


def _draw_scanpath(canvas, circles, numbers, unit) -> None:
    line, edge = 2.2 * unit, 1.6 * unit
    # Masks only as large as the scanpath: they cost more than all the rest.
    x, y, radius = np.array(circles).T
    reach = radius + edge + 2
    left, right = max(0, int((x - reach).min())), min(canvas.width, int((x + reach).max()) + 1)
    top, bottom = max(0, int((y - reach).min())), min(canvas.height, int((y + reach).max()) + 1)
    size = ((right - left) * _OVERSAMPLING, (bottom - top) * _OVERSAMPLING)
    casing, ink, discs = (Image.new("L", size) for _ in range(3))
    draw_casing, draw_ink, draw_discs = map(ImageDraw.Draw, (casing, ink, discs))
    points = [((x - left) * _OVERSAMPLING, (y - top) * _OVERSAMPLING) for x, y, _ in circles]
    radii = [radius * _OVERSAMPLING for _, _, radius in circles]
    line, edge = line * _OVERSAMPLING, edge * _OVERSAMPLING

    breaks = [index for index in range(1, len(points)) if numbers[index] != numbers[index - 1] + 1]
    for first, last in zip([0, *breaks], [*breaks, len(points)], strict=True):
        if last - first > 1:
            draw_casing.line(points[first:last], fill=150, width=round(line + 2 * edge), joint="curve")
            draw_ink.line(points[first:last], fill=235, width=round(line), joint="curve")
    # The small ones last, on top: a long dwell must not hide a glance within it.
    for index in np.argsort(radii, kind="stable")[::-1]:
        centre, outer, inner = points[index], radii[index], radii[index] - line
        draw_casing.circle(centre, outer + edge, fill=150)
        draw_ink.circle(centre, outer, fill=255)
        draw_casing.circle(centre, inner, fill=0)
        draw_ink.circle(centre, inner, fill=0)
        draw_discs.circle(centre, inner, fill=120)

    casing, ink, discs = (mask.reduce(_OVERSAMPLING) for mask in (casing, ink, discs))
    region = (left, top, right, bottom)
    canvas.paste((0, 0, 0), region, ImageChops.lighter(casing, discs))
    canvas.paste(SCANPATH_COLOUR, region, ink)

    draw = ImageDraw.Draw(canvas)
    for number, (x, y, _) in zip(numbers, circles, strict=True):
        font = _font(round((13 if number < 100 else 10) * unit))
        draw.text((x, y), str(number), (255, 255, 255), font, anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0))


def _draw_box_labels(canvas, boxes, circles, unit) -> None:
    draw = ImageDraw.Draw(canvas)
    font = _font(round(14 * unit))
    margin = round(4 * unit)
    line_height = round(20 * unit)
    occupied = [(x - radius, y - radius, x + radius, y + radius) for x, y, radius in circles]
    for corners, label, colour in boxes:
        if not label:
            continue
        x0, y0, x1, y1 = _box_pixels(corners, canvas.size)
        label = _shortened(label, font, canvas.width - 2 * margin)
        tag_width = round(font.getlength(label)) + 2 * margin
        # Above the box where nothing is hidden there, else at another of its edges.
        places = [(x0, y0 - line_height), (x1 - tag_width, y0 - line_height), (x0, y1), (x1 - tag_width, y1)]
        places += [(x0, y0 + row * line_height) for row in range(3)]
        tags = [_tag_at(place, tag_width, line_height, canvas.size) for place in places]
        tag = min(tags, key=lambda tag: sum(_overlap(tag, other) for other in occupied))
        occupied.append(tag)
        left, top, right, bottom = tag
        draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        red, green, blue = colour[:3]
        text_colour = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)
        draw.text((left + margin, top + line_height / 2), label, text_colour, font, anchor="lm")


def _tag_at(place, tag_width, line_height, size) -> tuple[int, int, int, int]:
    """The label's rectangle at or near a place, inside the picture."""
    left = max(0, min(place[0], size[0] - tag_width))
    top = max(0, min(place[1], size[1] - line_height))
    return left, top, left + tag_width, top + line_height


def _overlap(tag, other) -> bool:
    return tag[0] < other[2] and other[0] < tag[2] and tag[1] < other[3] and other[1] < tag[3]


def _with_footer(canvas, caption, unit) -> Image.Image:
    band = round(26 * unit)
    picture = Image.new("RGB", (canvas.width, canvas.height + band), (24, 24, 24))
    picture.paste(canvas)
    draw = ImageDraw.Draw(picture)
    font = _font(round(13 * unit))
    middle, margin = canvas.height + band / 2, round(8 * unit)
    right = canvas.width - margin
    draw.text((right, middle), _shortened(FOOTER, font, right - margin), (235, 235, 235), font, anchor="rm")
    room = right - font.getlength(FOOTER) - 3 * margin
    if caption and room > 0:
        draw.text((margin, middle), _shortened(caption, font, room), (170, 170, 170), font, anchor="lm")
    return picture


def _shortened(text: str, font, room: float) -> str:
    """The text on one line, its end cut off where it is wider than `room` pixels."""
    # No letter is narrower than a pixel; the cut keeps the measuring of endless texts short.
    text = " ".join(text.split())[: int(room) + 1]
    if font.getlength(text) <= room:
        return text
    kept = bisect.bisect_right(range(len(text)), room, key=lambda letters: font.getlength(text[:letters] + "..."))
    return text[: max(0, kept - 1)] + "..."


@lru_cache(maxsize=32)
def _font(size: int):
    return ImageFont.load_default(size)


__all__ = [
    "BOX_COLOURS",
    "FOOTER",
    "MIN_LONG_SIDE",
    "draw_overlay",
    "fixation_circle",
    "fixation_heat_map",
    "heat_picture",
    "overlay_position",
    "overlay_size",
]
