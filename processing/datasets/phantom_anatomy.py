"""The chest of the phantom simulator: a parametrised frontal anatomy and the crude physics that makes a film of it.

The film is a map of attenuation (line integrals through soft tissue, lung, vessels and bone), to which exposure,
scatter, quantum noise, a tone curve and collimation are applied, as in a computed-radiography chain. Shapes are
closed formulas over the pixel grid or strokes drawn at twice the film's size, so a film of 256 x 256 pixels costs a
few milliseconds.

Chest coordinates: X is the distance from the midline in film widths, positive towards the patient's left (the
viewer's right); Y runs down the film in film heights. `Canvas` maps them to [0, 1] of the film. All proportions are
round figures of ours.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..anatomy import REGION_NAMES

SIDES = ("right", "left")
SIGN = {"right": -1.0, "left": 1.0}
ZONES = ("upper", "mid", "lower")


def clip01(values: np.ndarray) -> np.ndarray:
    """Values limited to [0, 1]."""
    return np.minimum(np.maximum(values, 0.0), 1.0)


def round_profile(depth: np.ndarray) -> np.ndarray:
    """Thickness of a rounded body at relative depth 0 (its edge) to 1 (its inside): the profile of a quarter circle."""
    depth = clip01(depth)
    return np.sqrt(depth * (2.0 - depth))


def smooth_step(values: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and a smooth ramp between."""
    values = np.minimum(np.maximum(values, 0.0), 1.0)
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
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (radius, radius)
        padded = np.pad(image, padding, mode="edge")
        length = image.shape[axis]
        image = sum(
            weight * (padded[k : k + length] if axis == 0 else padded[:, k : k + length])
            for k, weight in enumerate(kernel)
        )
    return image


def power_noise(rng: np.random.Generator, size: int, exponent: float, low_cut: float = 2.0) -> np.ndarray:
    """Noise of unit variance, (size, size); its amplitude falls as frequency ** -exponent above `low_cut` cycles.

    The spectrum is drawn for at most 64 cycles whatever the size, so that the same seed gives the same texture at
    every size.
    """
    cycles = 64
    phases = rng.standard_normal((2 * cycles, cycles + 1, 2), dtype=np.float32)
    fy = np.fft.fftfreq(2 * cycles, 1.0 / (2 * cycles))[:, None]
    fx = np.arange(cycles + 1)[None, :]
    frequency = np.hypot(fy, fx)
    spectrum = np.zeros((size, size // 2 + 1), dtype=np.complex64)
    kept = min(cycles, size // 2)
    amplitude = np.where(frequency >= low_cut, np.maximum(frequency, low_cut) ** -exponent, 0.0)
    amplitude = np.where(frequency < cycles, amplitude, 0.0)
    values = (phases[..., 0] + 1j * phases[..., 1]) * amplitude
    spectrum[:kept, :kept] = values[:kept, :kept]
    spectrum[-kept + 1 :, :kept] = values[-kept + 1 :, :kept]
    texture = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    return texture / max(float(texture.std()), 1e-9)


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
    heart_axis: float
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
    vessel_seed: int
    texture_seed: int
    look_alikes: list[dict] = field(default_factory=list)

    @property
    def center(self) -> float:
        """X of the mediastinum; rotation moves it off the midline of the rib cage."""
        return 0.022 * self.rotation

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
    """Draws a patient and a projection."""
    view = "PA" if rng.random() < 0.62 else "AP"
    sex = "F" if rng.random() < 0.46 else "M"
    habitus = float(clip01(rng.normal(0.4 if sex == "F" else 0.45, 0.22)))
    inspiration = float(clip01(rng.normal(0.62 if view == "PA" else 0.42, 0.18)))
    half_width = float(np.clip(rng.normal(0.352 + 0.010 * (view == "AP"), 0.020), 0.30, 0.41))
    apex = float(rng.normal(0.125 if view == "PA" else 0.145, 0.018))
    dome = float(0.605 + 0.145 * inspiration + rng.normal(0, 0.012))
    ratio = float(np.clip(rng.normal(0.44 + 0.02 * (view == "AP") + 0.02 * (1 - inspiration), 0.027), 0.36, 0.495))
    clavicle = float(apex + rng.normal(0.035 if view == "PA" else 0.005, 0.012))
    hilum = float(0.40 + 0.10 * (dome - 0.7) + rng.normal(0, 0.01))
    return Anatomy(
        sex=sex,
        age=int(np.clip(rng.normal(58, 16), 19, 92)),
        view=view,
        habitus=habitus,
        inspiration=inspiration,
        rotation=float(np.clip(rng.normal(0, 0.35 if view == "PA" else 0.6), -1, 1)),
        half_width=half_width,
        apex=apex,
        dome={"right": dome, "left": dome + float(rng.normal(0.018, 0.006))},
        heart_diameter=ratio * 2 * half_width,
        heart_top=float(0.475 + 0.08 * (dome - 0.7) + rng.normal(0, 0.01)),
        heart_axis=float(rng.normal(0.62, 0.1)),
        mediastinum=float(np.clip(rng.normal(0.071 + 0.008 * (view == "AP"), 0.009), 0.055, 0.100)),
        knob=float(rng.uniform(0.024, 0.034)),
        knob_y=float(rng.normal(0.305, 0.012)),
        carina_y=float(rng.normal(0.355, 0.012)),
        hilum_y={"right": hilum, "left": hilum - float(rng.normal(0.02, 0.005))},
        rib_spacing=float(np.clip(rng.normal(0.074, 0.004), 0.064, 0.084)),
        rib_strength=float(rng.uniform(0.7, 1.25)),
        rib_phase=float(rng.uniform(-0.012, 0.012)),
        rib_slope=float(rng.uniform(0.75, 1.3)),
        clavicle_y={side: clavicle + float(rng.normal(0, 0.008)) for side in SIDES},
        breast=float(rng.uniform(0.25, 1.0)) * (0.4 + 0.9 * habitus) if sex == "F" else 0.0,
        scapula_in=float(rng.uniform(0.0, 0.35) if view == "PA" else rng.uniform(0.3, 1.0)),
        stomach_bubble=float(rng.random() < 0.55) * float(rng.uniform(0.4, 1.0)),
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
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = axis[None, :] - 0.5 - shift[0], axis[:, None] - 0.5 - shift[1]
        cos, sin = math.cos(tilt) / scale, math.sin(tilt) / scale
        self.X = (cos * x + sin * y).astype(np.float32)  # (H, W)
        self.Y = (-sin * x + cos * y + 0.5).astype(np.float32)
        self._rows = np.clip((self.Y - self.TABLE[0]) * 1280, 0, 2047).astype(np.int16)
        self._steps = np.clip(np.abs(self.X) * 1280, 0, 2047).astype(np.int16)

    TABLE = (np.arange(2048) / 1280 - 0.3).astype(np.float32)

    def of_height(self, function) -> np.ndarray:
        """A function of Y over the pixels, looked up in steps of 1/1280 of the film: quicker than powers per pixel."""
        return np.asarray(function(self.TABLE), dtype=np.float32)[self._rows]

    def of_distance(self, function) -> np.ndarray:
        """A function of |X| over the pixels, looked up likewise."""
        return np.asarray(function(self.TABLE - self.TABLE[0]), dtype=np.float32)[self._steps]

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

    def strokes(self, items: list[tuple[list, float, float]], soft: float = 0.0) -> np.ndarray:
        """Draws polylines and polygons, the brightest winning where they cross.

        Args:
            items: (points in chest coordinates, width in film widths, value in [0, 1]); width 0 fills a polygon.
            soft: blur in film widths.

        Returns:
            float32 (H, W) in [0, 1].
        """
        # a line that is blurred anyway needs no finer grid
        factor = 2 if self.size <= 768 and soft * self.size < 0.9 else 1
        side = self.size * factor
        layer = Image.new("L", (side, side), 0)
        draw = ImageDraw.Draw(layer)
        items = sorted(items, key=lambda item: item[2])
        moved = (self.to_film([point for points, _, _ in items for point in points]) * side - 0.5).tolist()
        start = 0
        for points, width, value in items:
            film = [tuple(point) for point in moved[start : start + len(points)]]
            start += len(points)
            level = round(255 * min(1.0, value))
            if width <= 0:
                draw.polygon(film, fill=level)
                continue
            pixels = width * self.scale * side
            if pixels < 1.0:  # thinner than the drawing grid: keep the line, thin its value instead
                level = max(1, int(level * pixels))
            draw.line(film, fill=level, width=max(1, round(pixels)), joint="curve" if pixels > 4 else None)
        if factor > 1:
            layer = layer.reduce(factor)
        if soft:
            layer = layer.filter(ImageFilter.BoxBlur(1.7 * soft * self.size))
        return np.asarray(layer, dtype=np.float32) * np.float32(1.0 / 255.0)

    def blob(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
        """Squared elliptic distance of every pixel from a centre: 1 on the ellipse."""
        dx, dy = self.X - np.float32(x), self.Y - np.float32(y)
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        return ((cos * dx + sin * dy) / np.float32(rx)) ** 2 + ((-sin * dx + cos * dy) / np.float32(ry)) ** 2


@dataclass
class Layers:
    """What a film is summed from; findings act on these before the sum. All (H, W) float32."""

    body: np.ndarray  # soft tissue of the trunk
    lung: np.ndarray  # aerated depth, 0 ... 1
    heart: np.ndarray  # water density of heart and vessels, 0 ... 1
    vessels: np.ndarray  # 0 ... 1
    bone: np.ndarray  # attenuation of bone
    haze: np.ndarray  # water density added inside the lung by findings, 0 ... 1
    extra: np.ndarray  # attenuation added on top: devices, calcification
    air: np.ndarray  # air outside the lung, 0 ... 1
    reach: dict[str, np.ndarray]  # soft mask of each lung


def lung_depth(anatomy: Anatomy, canvas: Canvas, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Aerated depth of one lung in [0, 1] and the mask of its field; the heart is not yet taken out."""
    distance = canvas.X * np.float32(SIGN[side])
    y = canvas.Y
    cage = canvas.of_height(anatomy.cage)
    lateral = (cage - distance) / 0.18
    neck = canvas.of_height(lambda y: 0.055 * clip01((anatomy.apex + 0.17 - y) / 0.17) ** 1.5)
    medial = (distance - 0.030 - neck - np.float32(SIGN[side] * anatomy.center)) / 0.07
    apex = anatomy.apex + 0.075 * ((np.abs(distance) - 0.38 * anatomy.half_width) / (0.36 * anatomy.half_width)) ** 2
    top = (y - apex) / 0.16
    dome = canvas.of_distance(lambda distance: anatomy.dome_y(side, distance))
    above = (dome - y) / 0.018
    depth = round_profile(lateral) * round_profile(medial) * round_profile(top)
    behind = 0.14 * round_profile((dome + 0.06 - y) / 0.06) * clip01(1.0 - clip01(above))
    mask = smooth_step(lateral * 13) * smooth_step(medial * 5) * smooth_step(top * 8) * smooth_step(above)
    return (depth * (round_profile(above) + behind)).astype(np.float32), mask.astype(np.float32)


def silhouette(anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights Y (K,) and the distances of the right and left border of heart and mediastinum from their centre."""
    half, d, knob = anatomy.mediastinum, anatomy.heart_diameter, anatomy.knob
    bottom = 0.5 * (anatomy.dome["left"] + anatomy.dome["right"]) + 0.035
    top, height = anatomy.heart_top, bottom - anatomy.heart_top
    left = [
        (anatomy.apex - 0.10, 0.085),
        (anatomy.apex, 0.072),
        (anatomy.knob_y - 1.5 * knob, 0.80 * half),
        (anatomy.knob_y - 0.2 * knob, half + 0.55 * knob),
        (anatomy.knob_y + 0.9 * knob, half + 0.35 * knob),
        (anatomy.knob_y + 1.9 * knob, 0.90 * half),
        (anatomy.knob_y + 3.3 * knob, 1.02 * half),
        (top + 0.10 * height, max(1.08 * half, 0.24 * d)),
        (top + 0.35 * height, 0.43 * d),
        (top + 0.60 * height, 0.58 * d),
        (top + 0.80 * height, 0.65 * d),
        (top + 0.93 * height, 0.62 * d),
        (bottom + 0.02, 0.50 * d),
        (bottom + 0.06, 0.30 * d),
    ]
    right = [
        (anatomy.apex - 0.10, 0.080),
        (anatomy.apex, 0.072),
        (anatomy.knob_y - 0.04, 0.90 * half),
        (anatomy.knob_y + 0.05, 0.84 * half),
        (top - 0.02, 0.90 * half),
        (top + 0.25 * height, max(0.27 * d, 0.95 * half)),
        (top + 0.55 * height, 0.345 * d),
        (top + 0.80 * height, 0.33 * d),
        (bottom, 0.25 * d),
        (bottom + 0.05, 0.17 * d),
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
    return (round_profile(to_right) * round_profile(to_left)).astype(np.float32)


def vessel_strokes(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[list, float, float]]:
    """Pulmonary vessels: trees that leave each hilum, taper and fork; denser towards the bases."""
    items: list[tuple[list, float, float]] = []
    for side in SIDES:
        sign = SIGN[side]
        hx = sign * (anatomy.mediastinum * 0.95 + 0.022) + anatomy.center
        hy = anatomy.hilum_y[side]
        angles = np.linspace(-1.25, 1.42, 11) + rng.normal(0, 0.09, 11)
        for angle in angles:
            width = 0.0115 * (1.15 if angle > 0.2 else 0.75) * rng.uniform(0.7, 1.2)
            start = (hx, hy + 0.05 * math.sin(angle))
            _grow(items, rng, anatomy, side, start, float(angle), width, 0)
        # the hilum itself: pulmonary artery and its descending branch
        items.append(
            (
                [(hx - 0.012 * sign, hy - 0.02), (hx + 0.010 * sign, hy + 0.02), (hx + 0.018 * sign, hy + 0.085)],
                0.026,
                0.85,
            )
        )
        items.append(([(hx - 0.012 * sign, hy - 0.01), (hx + 0.020 * sign, hy - 0.045)], 0.020, 0.7))
    return items


def _grow(items, rng, anatomy, side, start, angle, width, level):
    sign = SIGN[side]
    x, y = start
    points = [start]
    draws = rng.random(8).tolist()
    for k in range(3):
        step = (0.018 + 0.016 * draws[k]) * (0.75 + 0.5 * width / 0.012)
        angle += 0.55 * (draws[3 + k] - 0.5)
        x, y = x + sign * step * math.cos(angle), y + step * math.sin(angle)
        points.append((x, y))
    items.append((points, width, min(1.0, 0.30 + 45 * width)))
    if level > 4 or y > anatomy.dome[side] + 0.05 or abs(x) > anatomy.half_width or y < anatomy.apex:
        return
    spread = 0.22 + 0.28 * draws[6]
    for turn, narrower in ((-0.6 * spread, 0.62 + 0.2 * draws[7]), (spread, 0.5 + 0.25 * draws[6])):
        if width * narrower >= 0.0022:
            _grow(items, rng, anatomy, side, (x, y), angle + turn, width * narrower, level + 1)


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
            anatomy.cage(y) + 0.012, 0.3 * anatomy.half_width * np.sqrt(clip01((y - anatomy.apex + 0.06) / 0.25))
        )
    )
    u = distance / np.maximum(wall, 0.05)
    steps = np.minimum(u * 1000, 1050).astype(np.int16)
    grid = np.arange(1051) / 1000
    origin = anatomy.apex - 0.045 + anatomy.rib_phase
    total = np.zeros_like(distance)
    for part, strength, thick in (("posterior", 0.34, 0.40), ("anterior", 0.20, 0.42)):
        phase = (canvas.Y - rib_line(anatomy, grid, part).astype(np.float32)[steps] - origin) / np.float32(
            anatomy.rib_spacing
        )
        number = np.round(phase)
        offset = np.abs(phase - number) / (thick * 0.5)
        inside = smooth_step((1.0 - offset) * 2.0)
        cortex = 0.75 + 0.45 * clip01(offset) ** 3
        present = (number >= 1) & (number <= (11 if part == "posterior" else 7))
        if part == "anterior":
            extent = smooth_step((u - 0.42 - 0.03 * np.maximum(number - 4, 0)) / 0.10)
        else:
            extent = smooth_step((distance - 0.035) / 0.03)
        extent = extent * smooth_step((1.06 - u) / 0.05)
        total += strength * inside * cortex * present * extent
    rim = np.exp(-(((u - 1.0) * wall / 0.010) ** 2)) * smooth_step((canvas.Y - anatomy.apex) / 0.05)
    total += 0.22 * rim * smooth_step((max(anatomy.angle_y.values()) + 0.08 - canvas.Y) / 0.05)
    return (anatomy.rib_strength * total).astype(np.float32)


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
    clavicles = canvas.strokes([(clavicle_line(anatomy, side), 0.027, 0.8) for side in SIDES], soft=0.0036)
    core = canvas.strokes([(clavicle_line(anatomy, side), 0.015, 0.8) for side in SIDES], soft=0.004)
    bone = bone + 0.52 * clavicles - 0.18 * core
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
    bone = bone + 0.28 * canvas.strokes(blades, soft=0.005)
    x = np.abs(canvas.X - np.float32(0.25 * anatomy.center))

    def vertebra(y):
        return 0.5 + 0.5 * np.cos(2 * np.pi * (y + anatomy.rib_phase) / (0.040 + 0.012 * clip01(y)))

    spine = round_profile((0.040 - x) / 0.02) * canvas.of_height(
        lambda y: 0.42 + 0.10 * smooth_step(vertebra(y) * 1.6 - 0.2)
    )
    process = canvas.of_height(lambda y: 0.10 * smooth_step(vertebra(y) * 2 - 0.9))
    spine = spine + np.exp((x * x) * np.float32(-1 / 0.007**2)) * process
    below = canvas.of_height(lambda y: clip01((y - min(anatomy.dome.values()) - 0.05) / 0.08))
    return (bone * (1.0 - 0.65 * below) + 0.42 * spine).astype(np.float32)


def trunk(anatomy: Anatomy, canvas: Canvas) -> np.ndarray:
    """Attenuation of the soft tissue of neck, shoulders, chest wall, breasts and abdomen."""
    distance, y = np.abs(canvas.X), canvas.Y
    wall = 0.055 + 0.065 * anatomy.habitus
    shoulder_y = min(anatomy.clavicle_y.values()) - 0.05
    neck = 0.115 + 0.03 * anatomy.habitus
    slope = clip01((y - shoulder_y + 0.085) / 0.15)
    flank = anatomy.half_width + wall + 0.01 * anatomy.habitus
    arm = smooth_step((0.56 - y) / 0.30)
    edge = neck + (0.58 - neck) * slope**1.35
    edge = edge * arm + np.minimum(edge, flank + 0.08 * smooth_step((y - 0.6) / 0.35) * anatomy.habitus) * (1 - arm)
    thickness = (0.62 + 0.38 * round_profile((edge - distance) / 0.30)) * round_profile((edge - distance) / 0.045)
    vertical = canvas.of_height(lambda y: 0.96 + 0.24 * smooth_step((y - 0.35) / 0.40))
    body = (2.05 + 0.55 * anatomy.habitus) * thickness * vertical
    axilla = smooth_step((distance - anatomy.half_width - 0.5 * wall) / 0.05)
    body = body * (1.0 - 0.16 * axilla)
    domes = {side: canvas.of_distance(lambda distance, side=side: anatomy.dome_y(side, distance)) for side in SIDES}
    dome = np.where(canvas.X < 0, domes["right"], domes["left"])
    body = body * (1.0 + 0.20 * smooth_step((y - dome) / 0.07) * smooth_step((flank - distance) / 0.06))
    if anatomy.breast > 0:
        for side in SIDES:
            sign = SIGN[side]
            d = canvas.blob(
                sign * 0.24,
                0.66 + 0.05 * anatomy.breast,
                0.165 + 0.02 * anatomy.habitus,
                0.13 + 0.05 * anatomy.breast,
                sign * 0.18,
            )
            lower = smooth_step((y - 0.50) / 0.16)
            body = body + 0.62 * anatomy.breast * round_profile(1.0 - d) * lower
    return body.astype(np.float32)


def normal_layers(anatomy: Anatomy, canvas: Canvas) -> Layers:
    """The layers of a chest without findings."""
    left_depth, left_mask = lung_depth(anatomy, canvas, "left")
    right_depth, right_mask = lung_depth(anatomy, canvas, "right")
    heart = heart_shape(anatomy, canvas)
    rng = np.random.default_rng(anatomy.vessel_seed)
    vessels = canvas.strokes(vessel_strokes(anatomy, rng), soft=0.0014)
    lung = left_depth + right_depth
    trachea_x = canvas.X - np.float32(1.2 * anatomy.center)
    tube = round_profile((0.0165 - np.abs(trachea_x)) / 0.014) * smooth_step((anatomy.carina_y - canvas.Y) / 0.02)
    bronchi = canvas.strokes(
        [
            (
                [(1.2 * anatomy.center, anatomy.carina_y - 0.01), (anatomy.center - 0.062, anatomy.carina_y + 0.065)],
                0.019,
                0.8,
            ),
            (
                [(1.2 * anatomy.center, anatomy.carina_y - 0.01), (anatomy.center + 0.078, anatomy.carina_y + 0.055)],
                0.016,
                0.8,
            ),
        ],
        soft=0.0036,
    )
    air = np.maximum(tube, 0.55 * bronchi)
    if anatomy.stomach_bubble:
        bubble = canvas.blob(0.19, anatomy.dome["left"] + 0.065, 0.075 * anatomy.stomach_bubble + 0.02, 0.030)
        flat = smooth_step((canvas.Y - canvas.of_distance(lambda d: anatomy.dome_y("left", d)) - 0.016) / 0.012)
        air = np.maximum(air, 0.9 * round_profile(1.0 - bubble) * flat)
    zeros = np.zeros_like(lung)
    layers = Layers(
        body=trunk(anatomy, canvas),
        lung=lung,
        heart=heart,
        vessels=vessels,
        bone=skeleton(anatomy, canvas),
        haze=zeros.copy(),
        extra=zeros.copy(),
        air=air.astype(np.float32),
        reach={"right": right_mask, "left": left_mask},
    )
    _draw_look_alikes(anatomy, canvas, layers)
    return layers


def _draw_look_alikes(anatomy: Anatomy, canvas: Canvas, layers: Layers) -> None:
    for item in anatomy.look_alikes:
        side = item["side"]
        if item["kind"] in ("vessel end-on", "nipple shadow"):
            x, y = anatomy.lung_point(side, item["across"], item["down"])
            disc = smooth_step((1.2 - canvas.blob(x, y, item["radius"], item["radius"])) * 1.5)
            layers.extra += (0.35 if item["kind"] == "vessel end-on" else 0.22) * disc
        elif item["kind"] == "skin fold":
            top, bottom = (
                anatomy.lung_point(side, item["across"], 0.1),
                anatomy.lung_point(side, item["across"] + 0.15, 0.95),
            )
            distance = (canvas.X - np.float32(top[0])) - np.float32((bottom[0] - top[0]) / (bottom[1] - top[1])) * (
                canvas.Y - np.float32(top[1])
            )
            distance = distance * np.float32(SIGN[side])
            within = smooth_step((canvas.Y - top[1]) / 0.05) * smooth_step((bottom[1] - canvas.Y) / 0.05)
            # a fold is an edge that darkens outwards gradually, unlike a pleural line
            layers.extra += 0.16 * within * clip01(1.0 + distance / 0.09) * (distance < 0)
        elif item["kind"] == "healed rib":
            u = item["reach"]
            y = rib_y(anatomy, item["rib"], u)
            x = SIGN[side] * u * float(anatomy.cage(y))
            layers.extra += 0.16 * smooth_step((1.3 - canvas.blob(x, y, 0.018, 0.016)) * 1.2)


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
        noise=float(rng.uniform(0.006, 0.016) * (1.5 if portable else 1.0)),
        sharpen=float(rng.uniform(0.2, 0.9)),
        collimation=tuple(field),
        marker=marker,
    )


MARKER_STROKES = {
    "L": [[(0, 0), (0, 1), (0.55, 1)]],
    "R": [[(0, 1), (0, 0), (0.45, 0.02), (0.6, 0.25), (0.45, 0.48), (0, 0.5)], [(0.25, 0.5), (0.62, 1)]],
}


def expose(
    layers: Layers, anatomy: Anatomy, exposure: Exposure, canvas: Canvas, rng: np.random.Generator
) -> np.ndarray:
    """Sums the layers, exposes and develops the film.

    Returns:
        float32 (H, W) in [0, 1]; 1 is white.
    """
    size = canvas.size
    texture = power_noise(np.random.default_rng(anatomy.texture_seed), size, 1.1, low_cut=5.0)
    aerated = layers.lung * (1.0 - 0.90 * layers.heart) * (1.0 - layers.haze)
    attenuation = layers.body * (1.0 - 0.62 * aerated) * (1.0 - 0.20 * layers.air)
    attenuation += (
        0.55 * layers.heart * np.minimum(layers.body, 1.0) + layers.bone * np.minimum(layers.body, 1.0) + layers.extra
    )
    in_lung = clip01(layers.lung * 1.3) * (1.0 - 0.8 * layers.haze) * (1.0 - 0.85 * layers.heart)
    attenuation += in_lung * (0.34 * layers.vessels + 0.050 * texture)
    attenuation += np.float32(0.02) * np.minimum(layers.body, 1.0) * power_noise(rng, size, 1.6, low_cut=2.0)
    transmitted = np.exp(-attenuation)
    primary = transmitted
    scattered = blur(transmitted, 0.09 * size)
    signal = (1.0 - exposure.scatter) * primary + exposure.scatter * scattered
    grain = rng.standard_normal((size, size), dtype=np.float32)
    signal = signal * (1.0 + exposure.noise * grain / np.sqrt(np.maximum(signal, 0.02)) * math.sqrt(0.25))
    density = -np.log(np.maximum(signal, 1e-3))
    density = blur(density, 0.45)
    density = density + exposure.sharpen * 0.5 * (density - blur(density, 0.035 * size))
    # auto-ranging, as a reading device does: from the darkest lung to the heart; the abdomen may saturate
    inside = density[int(0.15 * size) : int(0.80 * size) : 4, int(0.15 * size) : int(0.85 * size) : 4]
    low, high = np.percentile(inside, (4.0, 88.0))
    scaled = (density - low) / max(float(high - low), 0.3)
    tone = exposure.lung_level + (exposure.heart_level - exposure.lung_level) * scaled
    # linear in the middle, bent at both ends
    film = np.where(tone > 0.75, 1.0 - 0.25 * np.exp(-(tone - 0.75) / 0.25), tone)
    film = np.where(film < 0.25, 0.25 * np.exp(np.minimum(film - 0.25, 0.0) / 0.25), film) - 0.02
    # where nothing attenuates, the film is black whatever the window
    film = clip01(film) * (0.04 + 0.96 * smooth_step(attenuation / 0.45))
    if exposure.marker:
        letter, x, y, height = exposure.marker
        lines = [[(x + height * px, y + height * py) for px, py in line] for line in MARKER_STROKES[letter]]
        flat = Canvas(size)
        ink = flat.strokes([([(px - 0.5, py) for px, py in line], height * 0.14, 1.0) for line in lines])
        film = np.maximum(film, 0.97 * ink)
    x0, y0, x1, y1 = exposure.collimation
    if exposure.collimation != (0.0, 0.0, 1.0, 1.0):
        axis = (np.arange(size) + 0.5) / size
        rows = smooth_step((axis - y0) / 0.006 + 0.5) * smooth_step((y1 - axis) / 0.006 + 0.5)
        columns = smooth_step((axis - x0) / 0.006 + 0.5) * smooth_step((x1 - axis) / 0.006 + 0.5)
        film = film * (0.02 + 0.98 * rows[:, None] * columns[None, :])
    return film.astype(np.float32)


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
        c - 0.35 * anatomy.heart_diameter,
        anatomy.heart_top - 0.03,
        c + 0.65 * anatomy.heart_diameter,
        bottom,
    )
    edges = np.array([boxes[name] for name in REGION_NAMES])  # (17, 4)
    corners = clip01(canvas.to_film(edges[:, [[0, 1], [2, 1], [0, 3], [2, 3]]].reshape(-1, 2))).reshape(-1, 4, 2)
    return [tuple(box) for box in np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).tolist()]
