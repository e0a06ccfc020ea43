"""The chest of the phantom simulator: a parametrised frontal anatomy and the crude physics that makes a film of it.

The film is a map of attenuation (line integrals through soft tissue, lung, vessels and bone), to which exposure,
scatter, quantum noise, a tone curve and collimation are applied, as in a computed-radiography chain. Shapes are
closed formulas over the pixel grid or strokes drawn at twice the film's size. What has no fine detail (lungs, heart,
trunk, ribs, haze) is drawn on a grid of half the film's size and enlarged once, as a sum.

Chest coordinates: X is the distance from the midline in film widths, positive towards the patient's left (the
viewer's right); Y runs down the film in film heights. `Canvas` maps them to [0, 1] of the film. All proportions are
round figures of ours.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import itemgetter

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..anatomy import REGION_NAMES

SIDES = ("right", "left")
SIGN = {"right": -1.0, "left": 1.0}
ZONES = ("upper", "mid", "lower")
# widest normal heart as a share of the thorax; an AP film magnifies the heart
NORMAL_HEART = {"PA": 0.50, "AP": 0.54}


def clip01(values):
    """Values limited to [0, 1]."""
    return np.clip(values, 0.0, 1.0)


def round_profile(depth: np.ndarray) -> np.ndarray:
    """Thickness of a rounded body at relative depth 0 (its edge) to 1 (its inside): the profile of a quarter circle."""
    depth = clip01(depth)
    result = 2.0 - depth
    result *= depth
    return np.sqrt(result, out=result)


def smooth_step(values: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and a smooth ramp between."""
    values = clip01(values)
    result = 3.0 - 2.0 * values
    result *= values
    result *= values
    return result


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of an (H, W) array with sigma in pixels; edges repeat. Wide kernels work on a reduced copy."""
    if sigma <= 0.05:
        return image
    if sigma > 4.0:
        height, width = image.shape
        factor = max(2, int(sigma // 2))
        small = Image.fromarray(image.astype(np.float32)).resize(
            (max(4, width // factor), max(4, height // factor)), Image.Resampling.BOX
        )
        reduced = blur(np.asarray(small), sigma * small.width / width)
        return np.asarray(Image.fromarray(reduced).resize((width, height), Image.Resampling.BICUBIC))
    radius = max(1, math.ceil(2.0 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for _ in range(2):  # along the rows, then along the columns
        total = image * kernel[radius]
        for k in range(1, radius + 1):
            total[k:] += kernel[radius - k] * image[:-k]
            total[:k] += kernel[radius - k] * image[:1]
            total[:-k] += kernel[radius + k] * image[k:]
            total[-k:] += kernel[radius + k] * image[-1:]
        image = total.T
    return image


CYCLES = 64  # a texture is drawn up to this frequency, whatever the size


@lru_cache(maxsize=16)
def _amplitude(exponent: float, low_cut: float) -> np.ndarray:
    fy = np.fft.fftfreq(2 * CYCLES, 1.0 / (2 * CYCLES))[:, None]
    frequency = np.hypot(fy, np.arange(CYCLES + 1)[None, :])
    amplitude = np.where(frequency >= low_cut, np.maximum(frequency, low_cut) ** -exponent, 0.0)
    return np.where(frequency < CYCLES, amplitude, 0.0).astype(np.float32)


def power_noise(rng: np.random.Generator, size: int, exponent: float, low_cut: float = 2.0) -> np.ndarray:
    """Noise of unit variance, (size, size); its amplitude falls as frequency ** -exponent above `low_cut` cycles.

    The spectrum is drawn for at most 64 cycles whatever the size, so that the same seed gives the same texture at
    every size.
    """
    phases = rng.standard_normal((2 * CYCLES, 2 * (CYCLES + 1)), dtype=np.float32).view(np.complex64)
    values = phases * _amplitude(exponent, low_cut)
    if size < 2 * CYCLES:
        kept = size // 2
        spectrum = np.zeros((size, size // 2 + 1), dtype=np.complex64)
        spectrum[:kept, :kept] = values[:kept, :kept]
        spectrum[-kept + 1 :, :kept] = values[-kept + 1 :, :kept]
        values = spectrum
    side = min(size, 2 * CYCLES)
    texture = np.fft.irfft2(values, s=(side, side)).astype(np.float32)
    return resize(texture / max(float(texture.std()), 1e-9), size)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """A square float32 image at another size, bicubic."""
    if len(image) == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


@dataclass
class Anatomy:
    """One patient's chest and how it was filmed, in chest coordinates. Findings change some of these numbers."""

    sex: str
    age: int
    view: str  # "PA" or "AP"
    habitus: float  # 0 thin ... 1 large
    inspiration: float  # 0 poor ... 1 deep
    rotation: float  # -1 ... 1
    half_width: float  # inner half-width of the thorax at its widest
    apex: float  # Y of the lung apices
    dome: dict[str, float]  # Y of the top of each hemidiaphragm
    heart_diameter: float
    heart_top: float
    heart_axis: float  # share of the heart's diameter left of its centre
    mediastinum: float  # half-width of the upper mediastinum
    knob: float  # radius of the aortic knob
    knob_y: float
    carina_y: float
    hilum_y: dict[str, float]
    rib_spacing: float
    rib_strength: float
    rib_phase: float
    rib_slope: float
    clavicle_y: dict[str, float]
    breast: float  # 0 none ... 1 large
    scapula_in: float  # how far the scapulae overlap the lungs
    stomach_bubble: float
    vessel_prominence: float  # 1 is typical
    fat_pad: float  # beside the heart above the diaphragm, 0 none ... 1 large
    perihilar_haze: float  # of crowded vessels and soft tissue, in normal lungs too, 0 ... 0.34
    basal_haze: float
    vessel_seed: int
    texture_seed: int
    look_alikes: list[dict] = field(default_factory=list)

    @property
    def center(self) -> float:
        """X of the mediastinum; rotation moves it off the midline of the rib cage."""
        return 0.030 * self.rotation

    @property
    def angle_y(self) -> dict[str, float]:
        """Y of the costophrenic angles."""
        return {side: self.dome[side] + 0.085 for side in SIDES}

    def cage(self, y: np.ndarray | float) -> np.ndarray | float:
        """Half-width of the inside of the rib cage at height Y."""
        bottom = 0.5 * (self.angle_y["right"] + self.angle_y["left"])
        t = np.clip((y - self.apex + 0.004) / (bottom - self.apex), 0.0, 1.2)
        return (
            self.half_width * (1.0 - np.clip(1.0 - t, 0.0, 1.0) ** 2.9) ** 0.62 * (1.0 - 0.05 * np.maximum(t - 0.8, 0))
        )

    def dome_y(self, side: str, distance: np.ndarray | float) -> np.ndarray | float:
        """Y of a hemidiaphragm at a distance |X| from the midline."""
        top = 0.47 * self.half_width
        medial = np.minimum(distance - top, 0.0) / top
        lateral = np.maximum(distance - top, 0.0) / (self.half_width - top)
        return self.dome[side] + 0.030 * medial**2 + 0.085 * lateral**2.6

    def inner(self, y: float, side: str) -> float:
        """Distance |X| of the border of heart and mediastinum at height Y."""
        heights, right, left = silhouette(self)
        return float(np.interp(y, heights, right if side == "right" else left)) + SIGN[side] * self.center

    def lung_span(self, side: str, y: float) -> tuple[float, float]:
        """|X| of the medial and the lateral border of the visible lung at height Y."""
        return self.inner(y, side), float(self.cage(y))

    def lung_point(self, side: str, across: float, down: float) -> tuple[float, float]:
        """X, Y of a point in a lung: `across` 0 medial ... 1 lateral, `down` 0 apex ... 1 diaphragm."""
        y = self.apex + 0.02 + down * (self.dome[side] - self.apex - 0.02)
        low, high = self.lung_span(side, y)
        return SIGN[side] * (low + across * (high - low)), y


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draws a patient and a projection.

    Normal hearts, mediastina and lungs vary as far as the mildest findings reach: a short breath, fat, rotation and the
    magnification of an AP film widen the heart and the mediastinum and crowd the vessels.
    """
    view = "PA" if rng.random() < 0.62 else "AP"
    portable = view == "AP"
    sex = "F" if rng.random() < 0.46 else "M"
    habitus = float(clip01(rng.normal(0.4 if sex == "F" else 0.45, 0.22)))
    inspiration = float(clip01(rng.normal(0.42 if portable else 0.62, 0.20)))
    rotation = float(np.clip(rng.normal(0, 0.6 if portable else 0.35), -1, 1))
    half_width = float(np.clip(rng.normal(0.352 + 0.010 * portable, 0.026), 0.295, 0.42))
    apex = float(rng.normal(0.145 if portable else 0.125, 0.018))
    dome = float(0.605 + 0.145 * inspiration + rng.normal(0, 0.012))
    ratio = 0.435 + 0.045 * portable + 0.06 * (1 - inspiration) + 0.04 * (habitus - 0.45)
    ratio = max(0.35, float(rng.normal(ratio, 0.036)))
    widest = NORMAL_HEART[view] - float(rng.uniform(0.0, 0.03))
    ratio = min(ratio, widest)
    mediastinum = 0.070 + 0.009 * portable + 0.012 * (1 - inspiration)
    mediastinum += 0.020 * (habitus - 0.45) + 0.010 * abs(rotation)
    prominence = 0.95 + 0.10 * portable + 0.2 * (0.5 - inspiration)
    clavicle = float(apex + rng.normal(0.005 if portable else 0.035, 0.012))
    hilum = float(0.40 + 0.10 * (dome - 0.7) + rng.normal(0, 0.01))
    return Anatomy(
        sex=sex,
        age=int(np.clip(rng.normal(58, 16), 19, 92)),
        view=view,
        habitus=habitus,
        inspiration=inspiration,
        rotation=rotation,
        half_width=half_width,
        apex=apex,
        dome={"right": dome, "left": dome + float(rng.normal(0.018, 0.006))},
        heart_diameter=ratio * 2 * half_width,
        heart_top=float(0.475 + 0.08 * (dome - 0.7) + rng.normal(0, 0.018)),
        heart_axis=float(np.clip(rng.normal(0.65, 0.05), 0.54, 0.76)),
        mediastinum=float(np.clip(rng.normal(mediastinum, 0.013), 0.050, 0.115)),
        knob=float(rng.uniform(0.020, 0.038)),
        knob_y=float(rng.normal(0.305, 0.014)),
        carina_y=float(rng.normal(0.355, 0.012)),
        hilum_y={"right": hilum, "left": hilum - float(rng.normal(0.02, 0.005))},
        rib_spacing=float(np.clip(rng.normal(0.074, 0.004), 0.064, 0.084)),
        rib_strength=float(rng.uniform(0.7, 1.25)),
        rib_phase=float(rng.uniform(-0.012, 0.012)),
        rib_slope=float(rng.uniform(0.75, 1.3)),
        clavicle_y={side: clavicle + float(rng.normal(0, 0.008)) for side in SIDES},
        breast=float(rng.uniform(0.25, 1.0)) * (0.4 + 0.9 * habitus) if sex == "F" else 0.0,
        scapula_in=float(rng.uniform(0.3, 1.0) if portable else rng.uniform(0.0, 0.35)),
        stomach_bubble=float(rng.random() < 0.55) * float(rng.uniform(0.4, 1.0)),
        vessel_prominence=float(np.clip(rng.normal(prominence, 0.20), 0.6, 1.6)),
        fat_pad=float(clip01(rng.normal(0.1 + 0.8 * (habitus - 0.3), 0.25))),
        perihilar_haze=float(np.clip(rng.normal(0.05 + 0.15 * (1 - inspiration), 0.085), 0.0, 0.34)),
        basal_haze=float(np.clip(rng.normal(0.02 + 0.12 * (1 - inspiration), 0.06), 0.0, 0.24)),
        vessel_seed=int(rng.integers(2**31)),
        texture_seed=int(rng.integers(2**31)),
        look_alikes=_sample_look_alikes(rng, sex),
    )


def _sample_look_alikes(rng: np.random.Generator, sex: str) -> list[dict]:
    """Things that look like findings and are none: vessels end-on, nipple shadows, skin folds, healed ribs."""
    chosen = []
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 4))):
            chosen.append(
                {
                    "kind": "vessel end-on",
                    "side": SIDES[rng.integers(2)],
                    "across": rng.uniform(0.1, 0.35),
                    "down": rng.uniform(0.4, 0.65),
                    "radius": rng.uniform(0.005, 0.009),
                }
            )
    if rng.random() < (0.22 if sex == "F" else 0.15):
        level, across = rng.uniform(0.80, 0.92), rng.uniform(0.5, 0.65)
        for side in SIDES if rng.random() < 0.7 else SIDES[: int(rng.integers(1, 3))]:
            chosen.append({"kind": "nipple shadow", "side": side, "across": across, "down": level, "radius": 0.011})
    if rng.random() < 0.10:
        chosen.append({"kind": "skin fold", "side": SIDES[rng.integers(2)], "across": rng.uniform(0.55, 0.8)})
    if rng.random() < 0.10:
        chosen.append(
            {
                "kind": "healed rib",
                "side": SIDES[rng.integers(2)],
                "rib": int(rng.integers(4, 8)),
                "reach": rng.uniform(0.75, 0.92),
            }
        )
    return [{key: (float(v) if isinstance(v, np.floating) else v) for key, v in item.items()} for item in chosen]


class Canvas:
    """The pixel grid of one film in chest coordinates, and drawing on it.

    Args:
        size: height and width in pixels.
        tilt: rotation of the patient in the film plane, radians.
        scale: film widths per chest width.
        shift: (x, y) of the chest on the film, in [0, 1].
    """

    def __init__(self, size: int, tilt: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)):
        self.size, self.tilt, self.scale, self.shift = size, tilt, scale, shift

    @cached_property
    def X(self) -> np.ndarray:
        """X of the pixels, (H, W) float32."""
        x, y = self._axes()
        return math.cos(self.tilt) / self.scale * x + math.sin(self.tilt) / self.scale * y

    @cached_property
    def Y(self) -> np.ndarray:
        """Y of the pixels, (H, W) float32."""
        x, y = self._axes()
        return math.cos(self.tilt) / self.scale * y - math.sin(self.tilt) / self.scale * x + 0.5

    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size - 0.5
        return axis[None, :] - self.shift[0], axis[:, None] - self.shift[1]

    TABLE = (np.arange(2048) / 1280 - 0.3).astype(np.float32)

    @cached_property
    def coarse(self) -> "Canvas":
        """The grid for what has no fine detail: half as fine, but for small films, whose own grid serves."""
        return Canvas(-(-self.size // 2), self.tilt, self.scale, self.shift) if self.size >= 192 else self

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.clip((self.Y - self.TABLE[0]) * 1280, 0, 2047).astype(np.intp)

    @cached_property
    def _steps(self) -> np.ndarray:
        return np.clip(np.abs(self.X) * 1280, 0, 2047).astype(np.intp)

    def of_height(self, function, at=...) -> np.ndarray:
        """A function of Y over the pixels, looked up in steps of 1/1280 of the film: quicker than powers per pixel."""
        return np.take(np.asarray(function(self.TABLE), dtype=np.float32), self._rows[at])

    def of_distance(self, function, at=...) -> np.ndarray:
        """A function of |X| over the pixels, looked up likewise."""
        return np.take(np.asarray(function(self.TABLE - self.TABLE[0]), dtype=np.float32), self._steps[at])

    def window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        """Index of the pixels around a chest-coordinate rectangle, empty if it lies off the film."""
        points = self.to_film([(x0, y0), (x1, y0), (x0, y1), (x1, y1)]) * self.size
        low = np.clip(np.floor(points.min(axis=0)), 0, self.size).astype(int).tolist()
        high = np.clip(np.ceil(points.max(axis=0)), 0, self.size).astype(int).tolist()
        return slice(low[1], high[1]), slice(low[0], high[0])

    def to_film(self, points) -> np.ndarray:
        """Chest coordinates (N, 2) -> [0, 1] of the film (N, 2)."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        x, y = points[:, 0] * self.scale, (points[:, 1] - 0.5) * self.scale
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return np.stack([cos * x - sin * y + 0.5 + self.shift[0], sin * x + cos * y + 0.5 + self.shift[1]], axis=1)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """Box around a chest-coordinate rectangle, in [0, 1] of the film, cut to the film."""
        corners = clip01(self.to_film([(x0, y0), (x1, y0), (x0, y1), (x1, y1)]))
        low, high = corners.min(axis=0), corners.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def strokes(self, items: list[tuple[list, float, float]], soft: float = 0.0) -> tuple[tuple, np.ndarray]:
        """Draws polylines and polygons, the brightest winning where they cross.

        Args:
            items: (points in chest coordinates, width in film widths, value in [0, 1]); width 0 fills a polygon.
            soft: blur in film widths.

        Returns:
            Index of the pixels of the film around what is drawn, and their float32 values in [0, 1].
        """
        # a line that is blurred anyway needs no finer grid
        factor = 2 if self.size <= 768 and soft * self.size < 0.9 else 1
        moved = self.to_film([point for points, _, _ in items for point in points]) * self.size
        margin = 0.5 * max(width for _, width, _ in items) * self.scale * self.size + 4.0 * soft * self.size + 2.0
        low = np.clip(np.floor(moved.min(axis=0) - margin), 0, self.size).astype(int).tolist()
        high = np.clip(np.ceil(moved.max(axis=0) + margin), 0, self.size).astype(int).tolist()
        at = slice(low[1], high[1]), slice(low[0], high[0])
        across, down = high[0] - low[0], high[1] - low[1]
        if across <= 0 or down <= 0:
            return at, np.zeros((max(0, down), max(0, across)), dtype=np.float32)
        layer = Image.new("L", (across * factor, down * factor), 0)
        draw = ImageDraw.Draw(layer)
        moved = ((moved - low) * factor - 0.5).ravel().tolist()
        start, runs = 0, []
        for points, width, value in items:
            runs.append((value, width, moved[start : start + 2 * len(points)]))
            start += 2 * len(points)
        runs.sort(key=itemgetter(0))
        for value, width, film in runs:
            level = round(255 * min(1.0, value))
            if width <= 0:
                draw.polygon(film, fill=level)
                continue
            pixels = width * self.scale * self.size * factor
            if pixels < 1.0:  # thinner than the drawing grid: keep the line, thin its value instead
                level = max(1, int(level * pixels))
            joint = (
                "curve" if pixels > 4 and len(film) < 16 else None
            )  # a line of many points bends too little for gaps
            draw.line(film, fill=level, width=max(1, round(pixels)), joint=joint)
        if factor > 1:
            layer = layer.reduce(factor)
        if soft:
            layer = layer.filter(ImageFilter.BoxBlur(1.7 * soft * self.size))
        return at, np.asarray(layer, dtype=np.float32) * np.float32(1.0 / 255.0)

    def blob(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0, at=...) -> np.ndarray:
        """Squared elliptic distance of pixels from a centre: 1 on the ellipse."""
        dx, dy = self.X[at] - np.float32(x), self.Y[at] - np.float32(y)
        cos, sin = math.cos(angle), math.sin(angle)
        along = np.float32(cos / rx) * dx
        along += np.float32(sin / rx) * dy
        dy *= np.float32(cos / ry)
        dx *= np.float32(sin / ry)
        dy -= dx
        along *= along
        dy *= dy
        along += dy
        return along


@dataclass
class Layers:
    """What a film is summed from; findings act on these before the sum. All float32.

    `vessels` and `extra` have the film's size (H, W), all others that of `canvas.coarse`.
    """

    canvas: Canvas
    body: np.ndarray  # soft tissue of the trunk
    lung: np.ndarray  # aerated depth, 0 ... 1
    heart: np.ndarray  # water density of heart and vessels, 0 ... 1
    bone: np.ndarray  # attenuation of bone
    haze: np.ndarray  # water density added inside the lung by findings, 0 ... 1
    broad: np.ndarray  # attenuation added on top without fine detail
    air: np.ndarray  # air outside the lung, 0 ... 1
    vessels: np.ndarray  # 0 ... 1
    extra: np.ndarray  # attenuation added on top: devices, lines, calcification, steps in bone
    reach: dict[str, np.ndarray]  # soft mask of each lung

    def fine_reach(self, side: str) -> np.ndarray:
        """The soft mask of a lung at the film's size."""
        return resize(self.reach[side], self.canvas.size)


def lung_depth(anatomy: Anatomy, canvas: Canvas, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Aerated depth of one lung in [0, 1] and the mask of its field; the heart is not yet taken out."""
    distance = canvas.X * np.float32(SIGN[side])
    y = canvas.Y
    lateral = (canvas.of_height(anatomy.cage) - distance) * np.float32(1 / 0.18)
    start = 0.030 + SIGN[side] * anatomy.center
    neck = canvas.of_height(lambda y: 0.055 * clip01((anatomy.apex + 0.17 - y) / 0.17) ** 1.5 + start)
    medial = (distance - neck) * np.float32(1 / 0.07)
    middle, width = 0.38 * anatomy.half_width, 0.36 * anatomy.half_width
    top = (y - canvas.of_distance(lambda d: anatomy.apex + 0.075 * ((d - middle) / width) ** 2)) * np.float32(1 / 0.16)
    below = canvas.of_distance(lambda distance: anatomy.dome_y(side, distance)) - y  # of the dome
    above = clip01(below * np.float32(1 / 0.018))
    depth = round_profile(lateral) * round_profile(medial) * round_profile(top)
    behind = 0.14 * round_profile(below * np.float32(1 / 0.06) + 1.0) * (1.0 - above)
    mask = smooth_step(lateral * 13) * smooth_step(medial * 5) * smooth_step(top * 8) * smooth_step(above)
    depth *= round_profile(above) + behind
    return depth, mask


def silhouette(anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights Y (K,) and the distances of the right and left border of heart and mediastinum from their centre."""
    bottom = 0.5 * (anatomy.dome["left"] + anatomy.dome["right"]) + 0.035
    return _silhouette(
        anatomy.mediastinum,
        anatomy.heart_diameter,
        anatomy.heart_axis,
        anatomy.heart_top,
        bottom,
        anatomy.knob,
        anatomy.knob_y,
        anatomy.apex,
    )


@lru_cache(maxsize=4)
def _silhouette(half, d, axis, top, bottom, knob, knob_y, apex):
    height = bottom - top
    to_left, to_right = axis / 0.65 * d, (1 - axis) / 0.35 * d
    left = [
        (apex - 0.10, 0.085),
        (apex, 0.072),
        (knob_y - 1.5 * knob, 0.80 * half),
        (knob_y - 0.2 * knob, half + 0.55 * knob),
        (knob_y + 0.9 * knob, half + 0.35 * knob),
        (knob_y + 1.9 * knob, 0.90 * half),
        (knob_y + 3.3 * knob, 1.02 * half),
        (top + 0.10 * height, max(1.08 * half, 0.24 * to_left)),
        (top + 0.35 * height, 0.43 * to_left),
        (top + 0.60 * height, 0.58 * to_left),
        (top + 0.80 * height, 0.65 * to_left),
        (top + 0.93 * height, 0.62 * to_left),
        (bottom + 0.02, 0.50 * to_left),
        (bottom + 0.06, 0.30 * to_left),
    ]
    right = [
        (apex - 0.10, 0.080),
        (apex, 0.072),
        (knob_y - 0.04, 0.90 * half),
        (knob_y + 0.05, 0.84 * half),
        (top - 0.02, 0.90 * half),
        (top + 0.25 * height, max(0.27 * to_right, 0.95 * half)),
        (top + 0.55 * height, 0.345 * to_right),
        (top + 0.80 * height, 0.33 * to_right),
        (bottom, 0.25 * to_right),
        (bottom + 0.05, 0.17 * to_right),
    ]
    heights = np.linspace(-0.2, 1.2, 1121)
    borders = []
    for points in (right, left):
        ys, xs = np.array(points).T
        curve = np.interp(heights, np.maximum.accumulate(ys + 1e-6 * np.arange(len(ys))), xs)
        kernel = np.exp(-0.5 * (np.arange(-24, 25) / 9.6) ** 2)
        borders.append(np.convolve(np.pad(curve, 24, mode="edge"), kernel / kernel.sum(), mode="valid"))
    return heights, borders[0], borders[1]


def heart_shape(anatomy: Anatomy, canvas: Canvas) -> np.ndarray:
    """Water density of heart, great vessels and aortic knob, 0 ... 1."""
    x = canvas.X - np.float32(anatomy.center)
    heights, right, left = silhouette(anatomy)
    to_right = (x + canvas.of_height(lambda y: np.interp(y, heights, right))) / 0.050
    to_left = (canvas.of_height(lambda y: np.interp(y, heights, left)) - x) / 0.065
    return round_profile(to_right) * round_profile(to_left)


def vessel_strokes(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[list, float, float]]:
    """Pulmonary vessels: trees that leave each hilum, taper and fork; denser towards the bases."""
    items: list[tuple[list, float, float]] = []
    starts, angles, widths, sides = [], [], [], []
    for side in SIDES:
        sign = SIGN[side]
        hx = sign * (anatomy.mediastinum * 0.95 + 0.022) + anatomy.center
        hy = anatomy.hilum_y[side]
        angle = np.linspace(-1.25, 1.42, 11) + rng.normal(0, 0.09, 11)
        starts.append(np.stack([np.full(11, hx), hy + 0.05 * np.sin(angle)], axis=1))
        angles.append(angle)
        widths.append(0.0115 * np.where(angle > 0.2, 1.15, 0.75) * rng.uniform(0.7, 1.2, 11))
        sides.append(np.full(11, sign))
        # the hilum itself: pulmonary artery and its descending branch
        items.append(
            (
                [(hx - 0.012 * sign, hy - 0.02), (hx + 0.010 * sign, hy + 0.02), (hx + 0.018 * sign, hy + 0.085)],
                0.026,
                0.85,
            )
        )
        items.append(([(hx - 0.012 * sign, hy - 0.01), (hx + 0.020 * sign, hy - 0.045)], 0.020, 0.7))
    _grow(items, rng, anatomy, *map(np.concatenate, (starts, angles, widths, sides)))
    return items


def _grow(items, rng, anatomy, start, angle, width, sign) -> None:
    """Branches of one generation, then of the next: start (K, 2), angle, width and sign of the side (K,)."""
    for _ in range(6):
        draws = rng.random((8, len(width)))
        turned = angle + np.cumsum(0.55 * (draws[3:6] - 0.5), axis=0)  # (3, K)
        step = (0.018 + 0.016 * draws[:3]) * (0.75 + 0.5 * width / 0.012)
        moves = np.stack([sign * step * np.cos(turned), step * np.sin(turned)], axis=2)
        points = np.concatenate([start[None], start + np.cumsum(moves, axis=0)])  # (4, K, 2)
        values = np.minimum(1.0, 0.30 + 45 * width)
        items.extend(zip(points.transpose(1, 0, 2).tolist(), width.tolist(), values.tolist(), strict=True))
        x, y = points[-1].T
        dome = np.where(sign < 0, anatomy.dome["right"], anatomy.dome["left"])
        grows = (y <= dome + 0.05) & (np.abs(x) <= anatomy.half_width) & (y >= anatomy.apex)
        spread = 0.22 + 0.28 * draws[6]
        children = [
            (-0.6 * spread, width * (0.62 + 0.2 * draws[7])),
            (spread, width * (0.5 + 0.25 * draws[6])),
        ]
        kept = [grows & (narrow >= 0.0022) for _, narrow in children]
        angle = np.concatenate([(turned[-1] + turn)[keep] for (turn, _), keep in zip(children, kept, strict=True)])
        width = np.concatenate([narrow[keep] for (_, narrow), keep in zip(children, kept, strict=True)])
        start = np.concatenate([points[-1][keep] for keep in kept])
        sign = np.concatenate([sign[keep] for keep in kept])
        if not len(width):
            return


def rib_line(anatomy: Anatomy, u: np.ndarray | float, part: str) -> np.ndarray | float:
    """How far below its vertebra a rib runs at u = |X| / cage half-width (0 spine ... 1 side wall)."""
    if part == "posterior":
        return anatomy.rib_slope * (-0.012 * np.sin(np.pi * np.minimum(u, 1.0) ** 0.7) + 0.075 * u**3.2)
    return anatomy.rib_slope * 0.075 + 0.135 * (1.0 - u) + 0.02 * np.sin(np.pi * u)


def rib_y(anatomy: Anatomy, rib: int, u: float, part: str = "posterior") -> float:
    """Y of the middle of rib 1, 2, ... at relative distance u."""
    return anatomy.apex - 0.045 + anatomy.rib_phase + rib * anatomy.rib_spacing + float(rib_line(anatomy, u, part))


def ribs(anatomy: Anatomy, canvas: Canvas) -> np.ndarray:
    """Attenuation of the ribs."""
    distance = np.abs(canvas.X)
    wall = canvas.of_height(
        lambda y: np.maximum(
            np.maximum(
                anatomy.cage(y) + 0.012, 0.3 * anatomy.half_width * np.sqrt(clip01((y - anatomy.apex + 0.06) / 0.25))
            ),
            0.05,
        )
    )
    u = distance / wall
    steps = np.minimum(u * 1000, 1050).astype(np.intp)
    grid = np.arange(1051) / 1000
    origin = anatomy.apex - 0.045 + anatomy.rib_phase
    edge = smooth_step((1.06 - u) * np.float32(20))
    total = np.zeros_like(distance)
    for part, strength, thick in (("posterior", 0.34, 0.40), ("anterior", 0.20, 0.42)):
        line = ((rib_line(anatomy, grid, part) + origin) / anatomy.rib_spacing).astype(np.float32)
        phase = canvas.Y * np.float32(1 / anatomy.rib_spacing) - np.take(line, steps)
        number = np.rint(phase)
        phase -= number
        offset = np.abs(phase) * np.float32(2 / thick)
        inside = smooth_step(2.0 - 2.0 * offset)
        np.minimum(offset, 1.0, out=offset)
        cortex = offset * offset * offset
        cortex *= 0.45
        cortex += 0.75
        if part == "anterior":
            extent = smooth_step((u - 0.42 - 0.03 * np.maximum(number - 4, 0)) * 10)
        else:
            extent = smooth_step((distance - 0.035) * np.float32(1 / 0.03))
        inside *= cortex
        inside *= extent
        inside *= (number >= 1) & (number <= (11 if part == "posterior" else 7))
        total += strength * inside
    total *= edge
    lowest = max(anatomy.angle_y.values()) + 0.08
    ends = canvas.of_height(lambda y: 0.22 * smooth_step((y - anatomy.apex) / 0.05) * smooth_step((lowest - y) / 0.05))
    total += ends * np.exp(-(((distance - wall) * 100) ** 2))
    return anatomy.rib_strength * total


def clavicle_line(anatomy: Anatomy, side: str) -> list[tuple[float, float]]:
    """Points of a clavicle from its sternal to its acromial end."""
    sign, y = SIGN[side], anatomy.clavicle_y[side]
    start = 0.030 + sign * anatomy.rotation * 0.016
    return [
        (sign * (start + t * 0.335) + 0, y + 0.052 - 0.085 * t + 0.022 * math.sin(2 * math.pi * t))
        for t in np.linspace(0, 1, 14).tolist()
    ]


def skeleton(anatomy: Anatomy, canvas: Canvas) -> np.ndarray:
    """Attenuation of ribs, clavicles, scapulae, humeral heads and spine."""
    bone = ribs(anatomy, canvas)
    for width, strength in ((0.027, 0.52), (0.015, -0.18)):  # the core of a bone attenuates less than its cortex
        at, values = canvas.strokes([(clavicle_line(anatomy, side), width, 0.8) for side in SIDES], soft=0.0036)
        bone[at] += strength * values
    blades = []
    for side in SIDES:
        sign, base = SIGN[side], anatomy.half_width * (1.06 - 0.24 * anatomy.scapula_in)
        top = anatomy.clavicle_y[side]
        blades.append(
            (
                [
                    (sign * (base - 0.01), top + 0.06),
                    (sign * (base + 0.015), top + 0.20),
                    (sign * (base + 0.055), top + 0.37),
                    (sign * (base + 0.085), top + 0.33),
                    (sign * (base + 0.11), top + 0.10),
                    (sign * (base + 0.07), top + 0.02),
                ],
                0.0,
                0.55,
            )
        )
        blades.append(
            (
                [
                    (sign * (base - 0.01), top + 0.06),
                    (sign * (base + 0.015), top + 0.20),
                    (sign * (base + 0.055), top + 0.37),
                ],
                0.007,
                0.9,
            )
        )
        blades.append(([(sign * (base + 0.0), top + 0.085), (sign * (base + 0.12), top + 0.02)], 0.022, 0.8))
        joint, upper_arm = sign * (anatomy.half_width + 0.135), sign * (anatomy.half_width + 0.175)
        circle = np.linspace(0, 2 * math.pi, 17)
        head = np.stack([joint + 0.043 * np.cos(circle), top + 0.06 + 0.048 * np.sin(circle)], axis=1)
        blades.append((head.tolist(), 0.0, 0.75))
        blades.append(([(joint, top + 0.07), (upper_arm, top + 0.17), (upper_arm, top + 0.46)], 0.052, 0.65))
    at, values = canvas.strokes(blades, soft=0.005)
    bone[at] += 0.28 * values
    x = np.abs(canvas.X - np.float32(0.25 * anatomy.center))

    def vertebra(y):
        return 0.5 + 0.5 * np.cos(2 * np.pi * (y + anatomy.rib_phase) / (0.040 + 0.012 * clip01(y)))

    bone *= canvas.of_height(lambda y: 1.0 - 0.65 * clip01((y - min(anatomy.dome.values()) - 0.05) / 0.08))
    middle = canvas.window(0.25 * anatomy.center - 0.045, -0.3, 0.25 * anatomy.center + 0.045, 1.3)
    x = x[middle]
    spine = round_profile((0.040 - x) / 0.02) * canvas.of_height(
        lambda y: 0.42 + 0.10 * smooth_step(vertebra(y) * 1.6 - 0.2), middle
    )
    process = canvas.of_height(lambda y: 0.10 * smooth_step(vertebra(y) * 2 - 0.9), middle)
    spine += np.exp((x * x) * np.float32(-1 / 0.007**2)) * process
    bone[middle] += 0.42 * spine
    return bone


def trunk(anatomy: Anatomy, canvas: Canvas) -> np.ndarray:
    """Attenuation of the soft tissue of neck, shoulders, chest wall, breasts and abdomen."""
    distance, y = np.abs(canvas.X), canvas.Y
    wall = 0.055 + 0.065 * anatomy.habitus
    shoulder_y = min(anatomy.clavicle_y.values()) - 0.05
    neck = 0.115 + 0.03 * anatomy.habitus
    flank = anatomy.half_width + wall + 0.01 * anatomy.habitus

    def outline(y):
        edge = neck + (0.58 - neck) * clip01((y - shoulder_y + 0.085) / 0.15) ** 1.35
        arm = smooth_step((0.56 - y) / 0.30)
        belly = np.minimum(edge, flank + 0.08 * smooth_step((y - 0.6) / 0.35) * anatomy.habitus)
        return edge * arm + belly * (1 - arm)

    inside = canvas.of_height(outline) - distance
    body = 0.62 + 0.38 * round_profile(inside * np.float32(1 / 0.30))
    body *= round_profile(inside * np.float32(1 / 0.045))
    body *= canvas.of_height(lambda y: (2.05 + 0.55 * anatomy.habitus) * (0.96 + 0.24 * smooth_step((y - 0.35) / 0.40)))
    # less behind the axilla
    body *= canvas.of_distance(lambda d: 1.0 - 0.16 * smooth_step((d - anatomy.half_width - 0.5 * wall) / 0.05))
    domes = {side: canvas.of_distance(lambda distance, side=side: anatomy.dome_y(side, distance)) for side in SIDES}
    below = y - np.where(canvas.X < 0, domes["right"], domes["left"])
    organs = smooth_step(below * np.float32(1 / 0.07))
    organs *= canvas.of_distance(lambda d: 0.20 * smooth_step((flank - d) / 0.06))
    organs += 1.0
    body *= organs
    if anatomy.breast > 0:
        rx, ry = 0.165 + 0.02 * anatomy.habitus, 0.13 + 0.05 * anatomy.breast
        middle = 0.66 + 0.05 * anatomy.breast
        for side in SIDES:
            x = SIGN[side] * 0.24
            at = canvas.window(x - 1.1 * rx, 0.48, x + 1.1 * rx, middle + 1.2 * ry)
            d = canvas.blob(x, middle, rx, ry, SIGN[side] * 0.18, at)
            lower = canvas.of_height(lambda y: 0.62 * anatomy.breast * smooth_step((y - 0.50) / 0.16), at)
            body[at] += round_profile(1.0 - d) * lower
    return body


def normal_layers(anatomy: Anatomy, canvas: Canvas) -> Layers:
    """The layers of a chest without findings."""
    coarse = canvas.coarse
    left_depth, left_mask = lung_depth(anatomy, coarse, "left")
    right_depth, right_mask = lung_depth(anatomy, coarse, "right")
    rng = np.random.default_rng(anatomy.vessel_seed)
    vessels = np.zeros((canvas.size, canvas.size), dtype=np.float32)
    at, values = canvas.strokes(vessel_strokes(anatomy, rng), soft=0.0014)
    vessels[at] = anatomy.vessel_prominence * values
    lung = left_depth + right_depth
    layers = Layers(
        canvas=canvas,
        body=trunk(anatomy, coarse),
        lung=lung,
        heart=heart_shape(anatomy, coarse),
        bone=skeleton(anatomy, coarse),
        haze=_crowding(anatomy, coarse),
        broad=np.zeros_like(lung),
        air=_airways(anatomy, coarse),
        vessels=vessels,
        extra=np.zeros_like(vessels),
        reach={"right": right_mask, "left": left_mask},
    )
    _draw_look_alikes(anatomy, canvas, layers)
    return layers


def _crowding(anatomy: Anatomy, canvas: Canvas) -> np.ndarray:
    """Water density of a normal lung around the hila and above the diaphragm."""
    d = np.minimum(*(canvas.blob(*hilum_center(anatomy, side), 0.13, 0.19) for side in SIDES))
    haze = np.exp(-0.9 * d)
    haze *= anatomy.perihilar_haze
    for side, share in (("left", anatomy.heart_axis), ("right", 1.0 - anatomy.heart_axis)):
        x, y = anatomy.center + SIGN[side] * share * anatomy.heart_diameter, anatomy.dome[side] - 0.005
        rx, ry = 0.03 + 0.05 * anatomy.fat_pad, 0.03 + 0.045 * anatomy.fat_pad
        at = canvas.window(x - 1.2 * rx, y - 1.2 * ry, x + 1.2 * rx, y + 1.2 * ry)
        haze[at] += 0.6 * anatomy.fat_pad * smooth_step(1.2 - canvas.blob(x, y, rx, ry, at=at))
    low = min(anatomy.dome.values())
    haze += canvas.of_height(lambda y: anatomy.basal_haze * smooth_step((y - low + 0.20) / 0.24))
    return clip01(haze)


def hilum_center(anatomy: Anatomy, side: str) -> tuple[float, float]:
    """X, Y of the middle of the perihilar lung."""
    return SIGN[side] * (anatomy.mediastinum + 0.055) + anatomy.center, anatomy.hilum_y[side] + 0.06


def _airways(anatomy: Anatomy, canvas: Canvas) -> np.ndarray:
    """Air of trachea, main bronchi and stomach, 0 ... 1."""
    middle, carina = 1.2 * anatomy.center, anatomy.carina_y
    air = np.zeros_like(canvas.X)
    at = canvas.window(middle - 0.02, -0.3, middle + 0.02, carina + 0.01)
    tube = round_profile((0.0165 - np.abs(canvas.X[at] - np.float32(middle))) / 0.014)
    air[at] = tube * canvas.of_height(lambda y: smooth_step((carina - y) / 0.02), at)
    bronchi = [
        ([(middle, carina - 0.01), (anatomy.center - 0.062, carina + 0.065)], 0.019, 0.8),
        ([(middle, carina - 0.01), (anatomy.center + 0.078, carina + 0.055)], 0.016, 0.8),
    ]
    at, values = canvas.strokes(bronchi, soft=0.0036)
    air[at] = np.maximum(air[at], 0.55 * values)
    if anatomy.stomach_bubble:
        x, y, rx = 0.19, anatomy.dome["left"] + 0.065, 0.075 * anatomy.stomach_bubble + 0.02
        at = canvas.window(x - rx, y - 0.03, x + rx, y + 0.03)
        dome = canvas.of_distance(lambda d: anatomy.dome_y("left", d), at)
        flat = smooth_step((canvas.Y[at] - dome - 0.016) / 0.012)
        air[at] = np.maximum(air[at], 0.9 * round_profile(1.0 - canvas.blob(x, y, rx, 0.030, at=at)) * flat)
    return air


def _draw_look_alikes(anatomy: Anatomy, canvas: Canvas, layers: Layers) -> None:
    for item in anatomy.look_alikes:
        side = item["side"]
        if item["kind"] in ("vessel end-on", "nipple shadow"):
            x, y = anatomy.lung_point(side, item["across"], item["down"])
            radius = item["radius"]
            at = canvas.window(x - 1.2 * radius, y - 1.2 * radius, x + 1.2 * radius, y + 1.2 * radius)
            disc = smooth_step((1.2 - canvas.blob(x, y, radius, radius, at=at)) * 1.5)
            layers.extra[at] += (0.35 if item["kind"] == "vessel end-on" else 0.22) * disc
        elif item["kind"] == "skin fold":
            (x0, y0), (x1, y1) = (
                anatomy.lung_point(side, item["across"], 0.1),
                anatomy.lung_point(side, item["across"] + 0.15, 0.95),
            )
            at = canvas.window(min(x0, x1) - 0.1, y0, max(x0, x1) + 0.1, y1)
            distance = (
                canvas.X[at] - np.float32(x0) - np.float32((x1 - x0) / (y1 - y0)) * (canvas.Y[at] - np.float32(y0))
            )
            distance *= np.float32(SIGN[side])
            within = smooth_step((canvas.Y[at] - y0) / 0.05) * smooth_step((y1 - canvas.Y[at]) / 0.05)
            # a fold is an edge that darkens outwards gradually, unlike a pleural line
            layers.extra[at] += 0.16 * within * clip01(1.0 + distance / 0.09) * (distance < 0)
        elif item["kind"] == "healed rib":
            u = item["reach"]
            y = rib_y(anatomy, item["rib"], u)
            x = SIGN[side] * u * float(anatomy.cage(y))
            at = canvas.window(x - 0.022, y - 0.022, x + 0.022, y + 0.022)
            layers.extra[at] += 0.16 * smooth_step((1.3 - canvas.blob(x, y, 0.018, 0.016, at=at)) * 1.2)


@dataclass(frozen=True)
class Exposure:
    """How the film was taken and processed."""

    lung_level: float  # grey of the darkest lung, 0 ... 1
    heart_level: float  # grey of the heart
    scatter: float
    noise: float
    sharpen: float
    collimation: tuple[float, float, float, float]  # x0, y0, x1, y1 of the open field, [0, 1] of the film
    marker: tuple[str, float, float, float] | None  # letter, x, y, height


def sample_exposure(rng: np.random.Generator, view: str) -> Exposure:
    """Draws exposure, contrast, scatter, noise, collimation and a side marker."""
    portable = view == "AP"
    field = [0.0, 0.0, 1.0, 1.0]
    if rng.random() < 0.3:
        for edge in range(4):
            if rng.random() < 0.5:
                field[edge] = float(rng.uniform(0.005, 0.035)) if edge < 2 else float(1 - rng.uniform(0.005, 0.035))
    marker = None
    if rng.random() < 0.85:
        letter = "L" if rng.random() < 0.6 else "R"
        x = rng.uniform(0.88, 0.95) if letter == "L" else rng.uniform(0.05, 0.12)
        marker = (letter, float(x), float(rng.uniform(0.05, 0.13)), float(rng.uniform(0.03, 0.05)))
    return Exposure(
        lung_level=float(np.clip(rng.normal(0.26 + 0.09 * portable, 0.085), 0.06, 0.48)),
        heart_level=float(np.clip(rng.normal(0.80, 0.06), 0.62, 0.92)),
        scatter=float(rng.uniform(0.10, 0.28) + 0.10 * portable),
        noise=float(rng.uniform(0.008, 0.019) * (1.5 if portable else 1.0)),
        sharpen=float(rng.uniform(0.2, 0.9)),
        collimation=tuple(field),
        marker=marker,
    )


MARKER_STROKES = {
    "L": [[(0, 0), (0, 1), (0.55, 1)]],
    "R": [[(0, 1), (0, 0), (0.45, 0.02), (0.6, 0.25), (0.45, 0.48), (0, 0.5)], [(0.25, 0.5), (0.62, 1)]],
}


TONES = np.linspace(-1.0, 3.0, 16385, dtype=np.float32)
# linear in the middle, bent at both ends
_bent = np.where(TONES > 0.75, 1.0 - 0.25 * np.exp(-(TONES - 0.75) / 0.25), TONES)
_bent = np.where(_bent < 0.25, 0.25 * np.exp(np.minimum(_bent - 0.25, 0.0) / 0.25), _bent) - 0.02
CURVE = clip01(_bent).astype(np.float32)


def develop(tone: np.ndarray) -> np.ndarray:
    """The tone curve: grey in [0, 1] of a scaled density (H, W), looked up."""
    steps = np.clip((tone + 1.0) * 4096.0 + 0.5, 0, len(CURVE) - 1)
    return np.take(CURVE, steps.astype(np.int32))


def expose(
    layers: Layers, anatomy: Anatomy, exposure: Exposure, canvas: Canvas, rng: np.random.Generator
) -> np.ndarray:
    """Sums the layers, exposes and develops the film.

    Returns:
        float32 (H, W) in [0, 1]; 1 is white.
    """
    size, coarse = canvas.size, canvas.coarse.size
    texture = power_noise(np.random.default_rng(anatomy.texture_seed), coarse, 1.1, low_cut=5.0)
    uneven = power_noise(rng, coarse, 1.6, low_cut=2.0)
    clear = 1.0 - layers.haze
    tissue = np.minimum(layers.body, 1.0)
    aerated = layers.lung * (1.0 - 0.90 * layers.heart) * clear
    in_lung = clip01(layers.lung * 1.3) * (0.2 + 0.8 * clear) * (1.0 - 0.85 * layers.heart)
    broad = layers.body * (1.0 - 0.62 * aerated) * (1.0 - 0.20 * layers.air)
    broad += tissue * (0.55 * layers.heart + layers.bone + 0.02 * uneven)
    broad += layers.broad
    broad += 0.050 * in_lung * texture
    attenuation = 0.34 * resize(in_lung, size)
    attenuation *= layers.vessels
    attenuation += resize(broad, size)
    attenuation += layers.extra
    signal = np.exp(-attenuation)
    scattered = blur(signal, 0.09 * size)
    signal *= 1.0 - exposure.scatter
    signal += exposure.scatter * scattered
    np.maximum(signal, 1e-3, out=signal)
    density = -np.log(signal)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    grain /= np.sqrt(np.maximum(signal, 0.02, out=signal), out=signal)
    grain *= 0.5 * exposure.noise
    density -= grain  # the noise of the signal, to first order
    density = blur(density, 0.45)
    density *= 1.0 + 0.5 * exposure.sharpen
    density -= 0.5 * exposure.sharpen * blur(density, 0.035 * size) * np.float32(1 / (1.0 + 0.5 * exposure.sharpen))
    # auto-ranging, as a reading device does: from the darkest lung to the heart; the abdomen may saturate
    inside = density[int(0.15 * size) : int(0.80 * size) : 4, int(0.15 * size) : int(0.85 * size) : 4]
    low, high = np.percentile(inside, (4.0, 88.0))
    gain = (exposure.heart_level - exposure.lung_level) / max(float(high - low), 0.3)
    density *= np.float32(gain)
    density += np.float32(exposure.lung_level - gain * low)
    film = develop(density)
    # where nothing attenuates, the film is black whatever the window
    film *= 0.04 + 0.96 * smooth_step(attenuation * np.float32(1 / 0.45))
    if exposure.marker:
        letter, x, y, height = exposure.marker
        lines = [[(x + height * px, y + height * py) for px, py in line] for line in MARKER_STROKES[letter]]
        flat = Canvas(size)
        at, ink = flat.strokes([([(px - 0.5, py) for px, py in line], height * 0.14, 1.0) for line in lines])
        film[at] = np.maximum(film[at], 0.97 * ink)
    x0, y0, x1, y1 = exposure.collimation
    if exposure.collimation != (0.0, 0.0, 1.0, 1.0):
        axis = (np.arange(size) + 0.5) / size
        rows = smooth_step((axis - y0) / 0.006 + 0.5) * smooth_step((y1 - axis) / 0.006 + 0.5)
        columns = smooth_step((axis - x0) / 0.006 + 0.5) * smooth_step((x1 - axis) / 0.006 + 0.5)
        film *= (0.02 + 0.98 * rows[:, None] * columns[None, :]).astype(np.float32)
    return film


def region_boxes(anatomy: Anatomy, canvas: Canvas) -> list[tuple[float, float, float, float]]:
    """Boxes of the 17 regions in the order of `REGION_NAMES`, in [0, 1] of the film."""
    boxes = {}
    for side in SIDES:
        sign, dome, angle = SIGN[side], anatomy.dome[side], anatomy.angle_y[side]
        levels = [
            anatomy.apex,
            anatomy.apex + 0.34 * (dome - anatomy.apex),
            anatomy.apex + 0.66 * (dome - anatomy.apex),
            angle,
        ]
        inner = 0.03
        outer = anatomy.half_width
        boxes[f"{side} lung"] = (sign * inner, levels[0], sign * outer, angle)
        for zone, top, bottom in zip(ZONES, levels[:-1], levels[1:], strict=True):
            widest = float(max(anatomy.cage(top + 0.02), anatomy.cage(bottom)))
            boxes[f"{side} {zone} lung zone"] = (sign * inner, top, sign * widest, bottom)
        hx, hy = anatomy.mediastinum * 0.75, anatomy.hilum_y[side]
        boxes[f"{side} hilar structures"] = (
            sign * hx + anatomy.center,
            hy - 0.085,
            sign * (hx + 0.115) + anatomy.center,
            hy + 0.115,
        )
        boxes[f"{side} costophrenic angle"] = (
            sign * (outer - 0.12),
            angle - 0.115,
            sign * (outer + 0.005),
            angle + 0.015,
        )
        line = np.asarray(clavicle_line(anatomy, side))
        low, high = line.min(axis=0), line.max(axis=0)
        boxes[f"{side} clavicle"] = (low[0], low[1] - 0.016, high[0], high[1] + 0.016)
    c, half = anatomy.center, anatomy.mediastinum
    boxes["trachea"] = (1.2 * c - 0.024, 0.03, 1.2 * c + 0.024, anatomy.carina_y)
    boxes["upper mediastinum"] = (c - half, anatomy.apex, c + half + 0.02, anatomy.heart_top - 0.03)
    bottom = 0.5 * (anatomy.dome["left"] + anatomy.dome["right"]) + 0.035
    boxes["cardiac silhouette"] = (
        c - (1 - anatomy.heart_axis) * anatomy.heart_diameter,
        anatomy.heart_top - 0.03,
        c + anatomy.heart_axis * anatomy.heart_diameter,
        bottom,
    )
    edges = np.array([boxes[name] for name in REGION_NAMES])  # (17, 4)
    corners = clip01(canvas.to_film(edges[:, [[0, 1], [2, 1], [0, 3], [2, 3]]].reshape(-1, 2))).reshape(-1, 4, 2)
    return [tuple(box) for box in np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).tolist()]
