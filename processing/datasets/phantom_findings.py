"""The findings of the phantom simulator: which ones a film has, where, how severe, and how each changes the film.

Every category of `FINDINGS` is drawn with the sign radiologists look for (a meniscus, a pleural line without vessels
beyond it, a bat-wing haze, a step in a rib), from obvious to near the threshold of detection. Sizes, contrasts and
frequencies are ours.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from .phantom_anatomy import (
    NORMAL_HEART,
    SIDES,
    SIGN,
    ZONES,
    Anatomy,
    Canvas,
    Layers,
    clavicle_line,
    clip01,
    hilum_center,
    power_noise,
    resize,
    rib_y,
    round_profile,
    smooth_step,
)

SEVERITIES = ("minimal", "mild", "moderate", "severe")


@dataclass
class Finding:
    """One finding of a film.

    Attributes:
        category: one of `FINDINGS`.
        kind: the sign it is drawn with, such as `"nodule"` or `"pacemaker"`.
        side: `"right"`, `"left"`, `"bilateral"` or None.
        zone: `"upper"`, `"mid"`, `"lower"` or None.
        severity: 0 minimal ... 3 severe.
        strength: continuous severity in [0, 1]; contrast and size follow it.
        place: (across, down) in [0, 1] of the lung.
        count: how many (nodules, ribs).
        seed: of its shape.
        change: against the prior film: `"new"`, `"increased"`, `"decreased"`, `"unchanged"` or None without one.
        hedged: the report leaves it uncertain.
        boxes: (x0, y0, x1, y1) in chest coordinates, filled in when it is drawn.
    """

    category: str
    kind: str
    side: str | None
    zone: str | None
    strength: float
    place: tuple[float, float]
    count: int
    seed: int
    change: str | None = None
    hedged: bool = False
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def severity(self) -> int:
        return min(3, int(4 * self.strength))


# relative frequency of a finding as the first one of a film, and how much likelier others become beside it
FREQUENCY = {
    "Enlarged Cardiomediastinum": 0.06,
    "Cardiomegaly": 0.13,
    "Lung Opacity": 0.09,
    "Lung Lesion": 0.09,
    "Edema": 0.08,
    "Consolidation": 0.07,
    "Pneumonia": 0.09,
    "Atelectasis": 0.11,
    "Pneumothorax": 0.07,
    "Pleural Effusion": 0.12,
    "Pleural Other": 0.05,
    "Fracture": 0.06,
    "Support Devices": 0.14,
}
COMPANIONS = {
    "Edema": {"Cardiomegaly": 5.0, "Pleural Effusion": 5.0, "Support Devices": 2.0},
    "Cardiomegaly": {"Edema": 4.0, "Pleural Effusion": 2.5, "Support Devices": 2.0},
    "Pleural Effusion": {"Atelectasis": 5.0, "Edema": 3.0, "Consolidation": 1.5},
    "Pneumonia": {"Pleural Effusion": 2.5, "Atelectasis": 1.5},
    "Consolidation": {"Pleural Effusion": 2.5, "Support Devices": 1.5},
    "Pneumothorax": {"Fracture": 4.0, "Support Devices": 4.0},
    "Fracture": {"Pneumothorax": 3.0, "Pleural Effusion": 1.5},
    "Lung Lesion": {"Enlarged Cardiomediastinum": 2.0, "Pleural Effusion": 1.5},
    "Atelectasis": {"Support Devices": 2.0, "Pleural Effusion": 3.0},
    "Pleural Other": {"Pleural Effusion": 1.5, "Lung Opacity": 1.5},
    "Support Devices": {"Atelectasis": 2.0, "Edema": 1.5},
}
# two air-space findings on one film would be one another's look-alikes without end: at most one of these
AIRSPACE = ("Lung Opacity", "Consolidation", "Pneumonia")
COUNT_PROBABILITY = (0.30, 0.31, 0.21, 0.12, 0.06)
DEVICES = {
    "PA": ("pacemaker", "port", "sternotomy wires", "central venous catheter"),
    "AP": (
        "endotracheal tube",
        "enteric tube",
        "central venous catheter",
        "pacemaker",
        "chest tube",
        "sternotomy wires",
    ),
}


def sample_findings(rng: np.random.Generator, anatomy: Anatomy) -> list[Finding]:
    """Draws zero to four findings; about 30 % of films have none."""
    count = int(rng.choice(len(COUNT_PROBABILITY), p=COUNT_PROBABILITY))
    chosen: list[Finding] = []
    weights = dict(FREQUENCY)
    if anatomy.view == "AP":
        weights["Support Devices"] *= 2.2
    else:
        weights["Support Devices"] *= 0.6
    for _ in range(count):
        names = list(weights)
        probabilities = np.array([weights[name] for name in names])
        name = names[int(rng.choice(len(names), p=probabilities / probabilities.sum()))]
        if name == "Support Devices":
            pool = DEVICES[anatomy.view]
            for kind in rng.choice(pool, size=int(rng.choice((1, 2, 3), p=(0.6, 0.3, 0.1))), replace=False).tolist():
                chosen.append(sample_finding(rng, name, kind))
        else:
            chosen.append(sample_finding(rng, name))
        for other, factor in COMPANIONS.get(name, {}).items():
            if other in weights:
                weights[other] *= factor
        for gone in AIRSPACE if name in AIRSPACE else (name,):
            weights.pop(gone, None)
    return chosen


def sample_finding(rng: np.random.Generator, category: str, kind: str | None = None) -> Finding:
    """Draws side, zone, size and severity of one finding."""
    strength = float(rng.beta(1.5, 1.6))
    side = SIDES[int(rng.random() < 0.48)]
    zone: str | None = ZONES[int(rng.choice(3, p=(0.25, 0.30, 0.45)))]
    count = 1
    across, down = float(rng.uniform(0.25, 0.75)), 0.5
    if category in ("Cardiomegaly", "Enlarged Cardiomediastinum"):
        side = zone = None
        kind = "enlarged heart" if category == "Cardiomegaly" else "wide mediastinum"
    elif category == "Edema":
        side, zone, kind = "bilateral", None, "alveolar" if strength > 0.6 else "interstitial"
    elif category == "Pleural Effusion":
        side = "bilateral" if rng.random() < 0.3 else side
        zone, kind = None, "effusion"
    elif category == "Pneumothorax":
        kind, zone = "pneumothorax", "upper" if strength < 0.75 else None
    elif category == "Pleural Other":
        kind = str(rng.choice(("pleural thickening", "apical cap", "pleural plaques"), p=(0.5, 0.25, 0.25)))
        zone = "upper" if kind == "apical cap" else "lower"
    elif category == "Fracture":
        kind = "clavicle fracture" if rng.random() < 0.2 else "rib fracture"
        zone = None if kind == "clavicle fracture" else str(rng.choice(("upper", "mid", "lower"), p=(0.2, 0.5, 0.3)))
        count = 1 if kind == "clavicle fracture" else int(rng.choice((1, 2, 3), p=(0.55, 0.3, 0.15)))
    elif category == "Lung Lesion":
        draw = rng.random()
        kind = "nodule" if draw < 0.55 else "mass" if draw < 0.75 else "granuloma" if draw < 0.88 else "nodules"
        if kind == "nodules":
            side, zone, count = "bilateral", None, int(rng.integers(3, 8))
        strength = max(strength, 0.55) if kind == "mass" else min(strength, 0.95)
    elif category == "Atelectasis":
        kind = "linear atelectasis" if rng.random() < 0.6 else "basal atelectasis"
        side = "bilateral" if rng.random() < 0.3 else side
        zone = "lower" if kind == "basal atelectasis" or rng.random() < 0.8 else "mid"
        count = int(rng.integers(1, 4))
    elif category == "Support Devices":
        zone = None
        strength = float(rng.uniform(0.5, 1.0))
        if kind in ("endotracheal tube", "enteric tube", "sternotomy wires"):
            side = None
        elif kind in ("pacemaker", "port", "central venous catheter"):
            side = str(rng.choice(SIDES, p=(0.2, 0.8) if kind == "pacemaker" else (0.75, 0.25)))
    else:
        kind = {"Lung Opacity": "hazy opacity", "Consolidation": "consolidation", "Pneumonia": "patchy opacity"}[
            category
        ]
        if category == "Pneumonia" and rng.random() < 0.15:
            side, zone = "bilateral", "lower"
    if zone:
        down = {"upper": 0.24, "mid": 0.52, "lower": 0.80}[zone] + float(rng.uniform(-0.07, 0.07))
    return Finding(category, kind, side, zone, strength, (across, down), count, int(rng.integers(2**31)))


def hedge(rng: np.random.Generator, finding: Finding) -> bool:
    """Whether a report would leave the finding uncertain: likelier near the threshold of detection."""
    if finding.category in ("Support Devices", "Fracture") and finding.kind != "rib fracture":
        return False
    base = (0.45, 0.18, 0.06, 0.02)[finding.severity]
    return bool(rng.random() < base * (1.6 if finding.category == "Pneumonia" else 1.0))


def evolve(rng: np.random.Generator, before: list[Finding], anatomy: Anatomy) -> tuple[list[Finding], list[Finding]]:
    """Findings of a follow-up film.

    Returns:
        The findings now, each with its `change`, and those that have resolved.
    """
    now, resolved = [], []
    for finding in before:
        draw = rng.random()
        lasting = finding.category in (
            "Support Devices",
            "Lung Lesion",
            "Cardiomegaly",
            "Pleural Other",
            "Fracture",
            "Enlarged Cardiomediastinum",
        )
        if draw < (0.05 if lasting else 0.22):
            resolved.append(finding)
            continue
        change = "unchanged"
        strength = finding.strength
        if finding.category != "Support Devices" and draw > (0.75 if lasting else 0.50):
            change = "increased" if rng.random() < 0.5 else "decreased"
            strength += float(rng.uniform(0.25, 0.4)) * (1 if change == "increased" else -1)
            if not 0.02 < strength < 0.99:
                change, strength = "unchanged", finding.strength
        now.append(replace(finding, strength=strength, change=change, boxes=[]))
    names = {finding.category for finding in now}
    if len(names) < 4 and rng.random() < 0.35:
        for extra in sample_findings(rng, anatomy):
            airspace = extra.category in AIRSPACE and names & set(AIRSPACE)
            if extra.category not in names and not airspace:
                now.append(replace(extra, change="new"))
                if extra.category != "Support Devices":
                    break
    return now, resolved


def shape_anatomy(anatomy: Anatomy, findings: list[Finding]) -> Anatomy:
    """The chest with the changes of shape that its findings bring."""
    changed = replace(anatomy, dome=dict(anatomy.dome))
    for finding in findings:
        if finding.category == "Cardiomegaly":
            # from just above the widest normal heart of the projection
            share = NORMAL_HEART[anatomy.view] + 0.004 + 0.13 * finding.strength**1.6
            changed.heart_diameter = share * 2 * anatomy.half_width
            changed.heart_top -= 0.03 * finding.strength
        elif finding.category == "Enlarged Cardiomediastinum":
            changed.mediastinum = anatomy.mediastinum * (1.12 + 0.46 * finding.strength)
            changed.knob = anatomy.knob * (1.0 + 0.4 * finding.strength)
        elif finding.kind == "basal atelectasis":
            for side in _sides(finding):
                changed.dome[side] -= 0.02 + 0.06 * finding.strength
    return changed


def draw_findings(findings: list[Finding], anatomy: Anatomy, canvas: Canvas, layers: Layers) -> None:
    """Acts on the layers, finding by finding, and fills in the boxes."""
    for finding in findings:
        finding.boxes = []
        rng = np.random.default_rng(finding.seed)
        DRAWERS[finding.category](finding, anatomy, canvas, layers, rng)


def _sides(finding: Finding) -> tuple[str, ...]:
    return SIDES if finding.side == "bilateral" else (finding.side,)


def _heart(finding, anatomy, canvas, layers, rng):
    c, d = anatomy.center, anatomy.heart_diameter
    bottom = 0.5 * (anatomy.dome["left"] + anatomy.dome["right"]) + 0.03
    left = anatomy.heart_axis * d
    finding.boxes.append((c + left - d, anatomy.heart_top, c + left + 0.01 * d, bottom))


def _mediastinum(finding, anatomy, canvas, layers, rng):
    c, half = anatomy.center, anatomy.mediastinum
    finding.boxes.append((c - half, anatomy.apex + 0.03, c + half + 0.6 * anatomy.knob, anatomy.heart_top - 0.03))


def _texture(seed: int, canvas: Canvas, low_cut: float = 4.0) -> np.ndarray:
    return power_noise(np.random.default_rng(seed), canvas.size, 1.5, low_cut)


def _add_haze(layers: Layers, haze: np.ndarray, at=...) -> None:
    """Lays water density over what is there; `haze` has the coarse grid's pixels, or those of `at`."""
    layers.haze[at] = 1.0 - (1.0 - layers.haze[at]) * (1.0 - clip01(haze))


def _hazy(finding, anatomy, canvas, layers, rng):
    coarse = canvas.coarse
    x, y = anatomy.lung_point(finding.side, *finding.place)
    rx, ry = 0.05 + 0.05 * finding.strength + rng.uniform(0, 0.02), 0.05 + 0.06 * finding.strength
    d = coarse.blob(x, y, rx * 1.5, ry * 1.5, rng.uniform(-0.6, 0.6))
    field = smooth_step((1.15 - d) * 0.9 + 0.10 * _texture(finding.seed, coarse))
    _add_haze(layers, (0.18 + 0.60 * finding.strength) * field * layers.reach[finding.side])
    finding.boxes.append((x - 1.3 * rx, y - 1.3 * ry, x + 1.3 * rx, y + 1.3 * ry))


def _consolidation(finding, anatomy, canvas, layers, rng):
    coarse = canvas.coarse
    x, y = anatomy.lung_point(finding.side, *finding.place)
    rx, ry = 0.055 + 0.07 * finding.strength, 0.055 + 0.07 * finding.strength
    d = coarse.blob(x, y, rx, ry, rng.uniform(-0.4, 0.4)) + 0.22 * _texture(finding.seed, coarse)
    field = smooth_step((1.1 - d) * 1.9)
    bottom = y + ry
    if finding.side == "right" and finding.zone == "upper":
        bottom = y + 0.45 * ry
        field *= smooth_step((bottom - coarse.Y) / 0.008)
    field *= layers.reach[finding.side]
    _add_haze(layers, (0.42 + 0.5 * finding.strength) * field)
    sign = SIGN[finding.side]
    tubes = []
    for _ in range(int(3 + 3 * finding.strength)):
        angle = rng.uniform(-0.7, 0.9)
        x0, y0 = x - sign * rx * rng.uniform(0.3, 0.9), y + ry * rng.uniform(-0.5, 0.4)
        reach = rng.uniform(0.7, 1.2) * rx
        tubes.append(([(x0, y0), (x0 + sign * reach * math.cos(angle), y0 + reach * math.sin(angle))], 0.007, 0.9))
    at, values = canvas.strokes(tubes, soft=0.0015)
    layers.extra[at] -= 0.22 * values * resize(field, canvas.size)[at]
    finding.boxes.append((x - rx, y - ry, x + rx, bottom))


def _patchy(finding, anatomy, canvas, layers, rng):
    coarse = canvas.coarse
    texture = clip01(0.75 + 0.35 * _texture(finding.seed, coarse, 9.0))
    for side in _sides(finding):
        x, y = anatomy.lung_point(side, *finding.place)
        reach = 0.05 + 0.06 * finding.strength
        total = np.zeros_like(layers.haze)
        low, high = [x, y], [x, y]
        for _ in range(int(4 + 3 * finding.strength)):
            px, py = x + rng.normal(0, 0.55 * reach), y + rng.normal(0, 0.55 * reach)
            radius = rng.uniform(0.35, 0.75) * reach
            wide = 1.15 * radius
            at = coarse.window(px - wide, py - wide, px + wide, py + wide)
            patch = smooth_step((1.3 - coarse.blob(px, py, radius, radius, at=at)) * 0.8) * rng.uniform(0.6, 1.0)
            total[at] = np.maximum(total[at], patch)
            low = [min(low[0], px - radius), min(low[1], py - radius)]
            high = [max(high[0], px + radius), max(high[1], py + radius)]
        total *= texture
        total *= layers.reach[side]
        _add_haze(layers, (0.26 + 0.68 * finding.strength) * total)
        finding.boxes.append(_within_lung(anatomy, side, (low[0], low[1], high[0], high[1])))


def _within_lung(anatomy: Anatomy, side: str, box):
    """A box cut to the lung's own box."""
    x0, x1 = sorted((SIGN[side] * 0.02, SIGN[side] * anatomy.half_width))
    return (max(box[0], x0), max(box[1], anatomy.apex), min(box[2], x1), min(box[3], anatomy.angle_y[side]))


def _edema(finding, anatomy, canvas, layers, rng):
    s, coarse = finding.strength, canvas.coarse
    texture = _texture(finding.seed, coarse, 12.0)
    heavier = float(rng.uniform(-0.3, 0.3))  # one side is often worse
    low = float(rng.uniform(-0.05, 0.09))  # and the haze lies higher or lower
    for side in SIDES:
        sign = SIGN[side]
        hx, hy = hilum_center(anatomy, side)
        d = coarse.blob(hx, hy + low, 0.12 + 0.07 * s, 0.17 + 0.08 * s)
        wing = np.exp(-0.9 * d) * layers.reach[side]
        _add_haze(layers, (0.06 + 0.32 * s + 0.28 * s**2) * (1.0 + sign * heavier) * wing * (0.95 + 0.07 * texture))
        lines = []
        for _ in range(int(4 + 14 * s)):  # septal lines meet the side wall at right angles
            y = rng.uniform(anatomy.dome[side] - 0.16, anatomy.angle_y[side] - 0.05)
            edge = float(anatomy.cage(y)) - 0.008
            length = rng.uniform(0.015, 0.032)
            lines.append(([(sign * edge, y), (sign * (edge - length), y + rng.normal(0, 0.002))], 0.0026, 0.8))
        at, values = canvas.strokes(lines, soft=0.0008)
        layers.extra[at] += (0.03 + 0.20 * s) * values * layers.fine_reach(side)[at]
        box = (hx - 0.15, hy + low - 0.18, hx + 0.15, hy + low + 0.18)
        finding.boxes.append(_within_lung(anatomy, side, box))
    top = anatomy.dome["right"] - 0.10
    layers.vessels *= canvas.of_height(lambda y: 1.0 + (0.06 + 0.34 * s) * smooth_step((top - y) / 0.3))
    layers.broad += (0.004 + 0.020 * s) * texture * (layers.reach["left"] + layers.reach["right"])


def _effusion(finding, anatomy, canvas, layers, rng):
    uneven = rng.uniform(0.75, 1.0, 2)
    coarse = canvas.coarse
    for k, side in enumerate(_sides(finding)):
        s = finding.strength * (uneven[k] if finding.side == "bilateral" else 1.0)
        sign, angle = SIGN[side], anatomy.angle_y[side]
        height = 0.030 + 0.05 * s + 0.34 * max(0.0, s - 0.35) ** 1.5  # of the fluid above the costophrenic angle
        top = angle - height - (0.025 + 0.075 * s)

        def surface(d, s=s, top=top):
            u = clip01(d / anatomy.half_width)
            rise = (0.025 + 0.075 * s) * (1.0 - clip01((u - 0.45) / 0.55) ** 2.5)
            return top + rise + 0.12 * (1 - s) * clip01(0.75 - u)

        at = coarse.window(0.0, top - 0.05, sign * 0.5, angle + 0.06)
        distance, y = coarse.X[at] * np.float32(sign), coarse.Y[at]
        fluid = smooth_step((y - coarse.of_distance(surface, at)) * np.float32(1 / (0.018 + 0.03 * s)) + 0.5)
        fluid *= smooth_step((coarse.of_height(anatomy.cage, at) + 0.01 - distance) / 0.01)
        fluid *= smooth_step((distance - 0.03) / 0.02)
        fluid *= smooth_step((angle + 0.03 - y) / 0.02)
        _add_haze(layers, (0.72 + 0.26 * s) * fluid, at)
        layers.broad[at] += (0.05 + 0.12 * s) * fluid * layers.reach[side][at]
        if anatomy.view == "AP" and s > 0.4:  # fluid behind the lung of a patient who lies
            veil = coarse.of_height(lambda y, s=s: 0.18 * s * smooth_step((y - anatomy.apex) / 0.6))
            _add_haze(layers, layers.reach[side] * veil)
        inner = 0.05 if s > 0.45 else max(0.05, anatomy.half_width - 0.14 - 0.2 * s)
        finding.boxes.append((sign * inner, top, sign * anatomy.half_width, angle + 0.01))


def _pneumothorax(finding, anatomy, canvas, layers, rng):
    s, side = finding.strength, finding.side
    sign = SIGN[side]
    span = anatomy.dome[side] - anatomy.apex
    depth = 0.022 + 0.10 * s  # of the air at the apex
    reach = 0.35 + 0.55 * s  # how far down the side wall it runs

    def lung_edge(y):
        down = clip01((y - anatomy.apex) / span / reach)
        return anatomy.cage(y - depth * 0.9) - (0.012 + 0.095 * s) * (1.0 - down**2.0)

    def ends(y):
        return smooth_step((1.0 - clip01((y - anatomy.apex) / span / reach)) * 8.0)

    def air_of(grid):
        at = grid.window(0.0, anatomy.apex - 0.1, sign * 0.5, anatomy.apex + reach * span + 0.01)
        gap = grid.X[at] * np.float32(sign) - grid.of_height(lung_edge, at)  # positive in the air
        inside = resize(layers.reach[side], grid.size)[at] * grid.of_height(ends, at)
        return at, gap, inside

    at, gap, inside = air_of(canvas)
    layers.vessels[at] *= 1.0 - 0.97 * smooth_step(gap / 0.004 + 0.5) * inside
    layers.extra[at] += (0.12 + 0.16 * s) * np.exp(-((gap / (0.0028 + 0.0010 * s)) ** 2)) * inside
    at, gap, inside = air_of(canvas.coarse)
    air = np.zeros_like(layers.haze)
    air[at] = smooth_step(gap / 0.004 + 0.5) * inside
    layers.lung *= 1.0 + (0.14 + 0.16 * s) * air
    if s > 0.55:  # a collapsed lung is denser
        _add_haze(layers, 0.45 * (s - 0.45) * (1.0 - air) * layers.reach[side])
    bottom = anatomy.apex + reach * span
    widest = float(anatomy.cage(min(bottom, anatomy.apex + 0.7 * span)))
    top_inner = max(0.06, float(anatomy.cage(anatomy.apex + depth)) - 0.112 - 0.095 * s)
    finding.boxes.append((sign * top_inner, anatomy.apex - 0.005, sign * widest, anatomy.apex + 0.75 * reach * span))


def _pleural(finding, anatomy, canvas, layers, rng):
    s, side = finding.strength, finding.side
    sign, coarse = SIGN[side], canvas.coarse
    if finding.kind == "pleural plaques":
        low, high = [9.0, 9.0], [-9.0, -9.0]
        rind = np.zeros_like(layers.extra)
        for _ in range(int(2 + 4 * s)):
            x, y = anatomy.lung_point(side, rng.uniform(0.35, 0.95), rng.uniform(0.45, 0.95))
            rx, ry = rng.uniform(0.014, 0.030) + 0.016 * s, rng.uniform(0.006, 0.012) + 0.008 * s
            at = canvas.window(x - 1.2 * rx, y - 1.2 * rx, x + 1.2 * rx, y + 1.2 * rx)
            plaque = _lobulated(canvas, rng, x, y, rx, ry, 0.15, at)
            rind[at] = np.maximum(rind[at], smooth_step((1.1 - plaque) * 2.2))
            low = [min(low[0], x - rx), min(low[1], y - rx)]
            high = [max(high[0], x + rx), max(high[1], y + rx)]
        layers.extra += (0.12 + 0.50 * s) * rind
        finding.boxes.append((low[0], low[1], high[0], high[1]))
        return
    first, second = rng.uniform(0, 2 * math.pi, 2).tolist()

    def wave(along):  # the rind is uneven along the wall
        return 0.5 + 0.3 * np.sin(38 * along + first) + 0.2 * np.sin(91 * along + second)

    distance = coarse.X * np.float32(sign)
    if finding.kind == "apical cap":
        thick = coarse.of_distance(lambda d: (0.014 + 0.060 * s) * clip01(wave(d) + 0.3))
        middle, width = 0.38 * anatomy.half_width, 0.36 * anatomy.half_width
        top = coarse.of_distance(lambda d: anatomy.apex + 0.075 * ((d - middle) / width) ** 2)
        rind = smooth_step((thick - (coarse.Y - top)) / 0.010) * layers.reach[side]
        rind *= coarse.of_height(lambda y: smooth_step((anatomy.apex + 0.11 - y) / 0.04))
        box = (sign * 0.05, anatomy.apex - 0.005, sign * float(anatomy.cage(anatomy.apex + 0.07)), anatomy.apex + 0.06)
    else:  # pleural thickening
        depth = coarse.of_height(anatomy.cage) - distance  # inside the wall
        thick = coarse.of_height(lambda y: (0.012 + 0.058 * s) * clip01(wave(y) + 0.4))
        top, bottom = anatomy.dome[side] - 0.14 - 0.15 * s, anatomy.angle_y[side]
        rind = smooth_step((thick - depth) / 0.012) * smooth_step((depth + 0.004) / 0.004)
        rind *= coarse.of_height(lambda y: smooth_step((y - top) / 0.05) * smooth_step((bottom - y) / 0.03))
        box = (sign * (anatomy.half_width - 0.06), top, sign * (anatomy.half_width + 0.005), bottom)
    _add_haze(layers, (0.45 + 0.45 * s) * rind)
    layers.broad += (0.06 + 0.30 * s) * rind
    finding.boxes.append(box)


def _lobulated(canvas, rng, x, y, rx, ry, depth, at) -> np.ndarray:
    """Squared distance from the centre of a body with an uneven outline: 1 on its edge."""
    d = canvas.blob(x, y, rx, ry, rng.uniform(-0.9, 0.9), at)
    angle = np.arctan2(canvas.Y[at] - np.float32(y), canvas.X[at] - np.float32(x))
    phases = rng.uniform(0, 2 * math.pi, 3)
    uneven = sum(
        np.cos(lobes * angle + np.float32(phase)) / lobes for lobes, phase in zip((2, 3, 5), phases, strict=True)
    )
    return d * (1.0 + np.float32(depth) * uneven)


def _fracture(finding, anatomy, canvas, layers, rng):
    s, side = finding.strength, finding.side
    sign = SIGN[side]

    def add(amount, items, soft):
        at, values = canvas.strokes(items, soft)
        layers.extra[at] += amount * values

    if finding.kind == "clavicle fracture":
        line = clavicle_line(anatomy, side)
        k = int(rng.integers(5, 9))
        (x0, y0), (x1, y1) = line[k], line[k + 1]
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        add(-0.42, [([(x - 0.005, y - 0.02), (x + 0.005, y + 0.02)], 0.009 + 0.006 * s, 1.0)], 0.0012)
        drop = 0.008 + 0.028 * s
        tail = [(px, py + drop) for px, py in line[k + 1 : k + 4]]
        add(0.40, [(tail, 0.024, 0.9)], 0.002)
        finding.boxes.append((x - 0.04, y - 0.035, x + 0.04, y + 0.035))
        return
    first = {"upper": 3, "mid": 5, "lower": 7}[finding.zone]
    u = float(rng.uniform(0.80, 0.93))
    cuts, ends = [], []
    for rib in range(first, first + finding.count):
        place = min(0.95, u + float(rng.uniform(-0.04, 0.04)))
        y = rib_y(anatomy, rib, place)
        x = sign * place * float(anatomy.cage(y))
        below = rib_y(anatomy, rib, min(1.0, place + 0.05))
        slope = (below - y) / (0.05 * float(anatomy.cage(y)))
        step = 0.005 + 0.018 * s
        cuts.append(([(x - sign * 0.003, y - 0.018), (x + sign * 0.003, y + 0.018)], 0.005 + 0.006 * s, 1.0))
        for way in (-1, 1):
            x1 = x + sign * way * 0.030
            ends.append(
                ([(x + sign * way * 0.003, y + way * step), (x1, y + way * step + way * 0.030 * slope)], 0.014, 0.9)
            )
        # blood under the pleura bulges into the lung
        bx, radius = x - sign * 0.012, 0.018 + 0.020 * s
        at = canvas.window(bx - radius, y - 1.3 * radius, bx + radius, y + 1.3 * radius)
        bulge = round_profile(1.0 - canvas.blob(bx, y, 0.8 * radius, 1.2 * radius, at=at))
        layers.extra[at] += (0.04 + 0.36 * s) * bulge
        finding.boxes.append((x - 0.036, y - 0.036, x + 0.036, y + 0.036))
    add(0.18 + 0.52 * s, ends, 0.0015)
    add(-(0.25 + 0.20 * s), cuts, 0.0012)


def lesion_radius(kind: str, strength: float) -> float:
    """Radius in film widths of a lesion; a nodule ends where a mass starts, at 3 cm on a film of 40 cm."""
    return {
        "nodule": 0.012 + 0.025 * strength,
        "mass": 0.028 + 0.038 * strength,
        "granuloma": 0.008 + 0.007 * strength,
        "nodules": 0.012 + 0.014 * strength,
    }[kind]


def _lesion(finding, anatomy, canvas, layers, rng):
    s = finding.strength
    for number in range(finding.count):
        radius = lesion_radius(finding.kind, s)
        if finding.kind == "nodules":
            side = SIDES[number % 2]
            across, down = rng.uniform(0.2, 0.85), rng.uniform(0.2, 0.9)
            radius *= rng.uniform(0.8, 1.3)
        else:
            side = finding.side
            across, down = finding.place
        x, y = anatomy.lung_point(side, across, down)
        edge = 0.16 if finding.kind == "granuloma" else 0.30
        wide = 1.6 * radius
        at = canvas.window(x - wide, y - wide, x + wide, y + wide)
        d = _lobulated(canvas, rng, x, y, radius, radius * rng.uniform(0.85, 1.15), 0.12, at)
        body = smooth_step((1.0 + edge - d) / (2 * edge) * 0.9)
        contrast = {"granuloma": 0.50 + 0.6 * s, "mass": 0.32 + 0.75 * s}.get(finding.kind, 0.18 + 0.95 * s)
        if finding.kind == "mass" and rng.random() < 0.2:  # cavity
            body *= 1.0 - 0.65 * smooth_step((0.42 - d) * 4.0)
        layers.extra[at] += contrast * body
        if finding.kind in ("nodule", "mass") and s > 0.6:
            spikes = []
            for angle in rng.uniform(0, 2 * math.pi, 9):
                reach = radius * rng.uniform(1.2, 1.7)
                spikes.append(
                    (
                        [
                            (x + 0.8 * radius * math.cos(angle), y + 0.8 * radius * math.sin(angle)),
                            (x + reach * math.cos(angle), y + reach * math.sin(angle)),
                        ],
                        0.003,
                        0.6,
                    )
                )
            at, values = canvas.strokes(spikes, soft=0.001)
            layers.extra[at] += 0.16 * values
        finding.boxes.append((x - 1.15 * radius, y - 1.15 * radius, x + 1.15 * radius, y + 1.15 * radius))


def _atelectasis(finding, anatomy, canvas, layers, rng):
    s, coarse = finding.strength, canvas.coarse
    for side in _sides(finding):
        sign = SIGN[side]
        if finding.kind == "linear atelectasis":
            bands = []
            base = 0.52 if finding.zone == "mid" else 0.86
            low, high = [9.0, 9.0], [-9.0, -9.0]
            for _ in range(finding.count):
                start = anatomy.lung_point(side, rng.uniform(0.1, 0.3), base + rng.uniform(-0.10, 0.06))
                end = (start[0] + sign * rng.uniform(0.07, 0.15) * (0.7 + 0.6 * s), start[1] + rng.uniform(-0.03, 0.03))
                bands.append(([start, end], 0.005 + 0.006 * s, 0.9))
                low = [min(low[0], start[0], end[0]), min(low[1], start[1], end[1])]
                high = [max(high[0], start[0], end[0]), max(high[1], start[1], end[1])]
            at, values = canvas.strokes(bands, soft=0.0015)
            layers.extra[at] += (0.15 + 0.32 * s) * values * layers.fine_reach(side)[at]
            finding.boxes.append((low[0] - 0.01, low[1] - 0.012, high[0] + 0.01, high[1] + 0.012))
        else:
            below = coarse.Y - coarse.of_distance(lambda d, side=side: anatomy.dome_y(side, d))
            wedge = smooth_step(below * np.float32(1 / (0.06 + 0.07 * s)) + 1.0) * layers.reach[side]
            wedge *= clip01(0.8 + 0.2 * _texture(finding.seed, coarse, 7.0))
            _add_haze(layers, (0.30 + 0.45 * s) * wedge)
            finding.boxes.append(
                (
                    sign * 0.06,
                    anatomy.dome[side] - 0.07 - 0.06 * s,
                    sign * anatomy.half_width,
                    anatomy.dome[side] + 0.06,
                )
            )


def _devices(finding, anatomy, canvas, layers, rng):
    c = anatomy.center
    sign = SIGN.get(finding.side, 1.0)
    bottom = 0.5 * (anatomy.dome["left"] + anatomy.dome["right"]) + 0.03
    items: list[tuple[list, float, float]] = []
    svc = (c - 0.75 * anatomy.mediastinum, anatomy.carina_y - 0.07)
    clavicle = clavicle_line(anatomy, finding.side or "right")
    value = 0.9
    if finding.kind == "pacemaker":
        x, y = sign * 0.265, anatomy.clavicle_y[finding.side] + 0.115
        at = canvas.window(x - 0.05, y - 0.05, x + 0.05, y + 0.05)
        can = canvas.blob(x, y, 0.045, 0.036, 0.4 * sign, at)
        layers.extra[at] += 1.1 * smooth_step((1.0 - can**2) * 4) + 0.4 * smooth_step((0.5 - can) * 4)
        tip = (c + 0.30 * anatomy.heart_diameter, bottom - 0.055)
        lead = _curve(
            [
                (x, y - 0.03),
                (sign * 0.14, anatomy.clavicle_y[finding.side] + 0.045),
                (svc[0] + 0.02, svc[1]),
                (svc[0] - 0.012, svc[1] + 0.16),
                (c - 0.02, bottom - 0.07),
                tip,
            ]
        )
        items.append((lead, 0.0042, value))
        if rng.random() < 0.5:
            items.append(([*lead[: int(len(lead) * 0.62)], (svc[0] - 0.02, svc[1] + 0.13)], 0.0042, value))
        finding.boxes.append((x - 0.05, y - 0.045, x + 0.05, y + 0.045))
    elif finding.kind == "endotracheal tube":
        tip = anatomy.carina_y - float(rng.uniform(0.02, 0.08))
        for offset in (-0.0065, 0.0065):
            items.append(
                ([(1.2 * c + offset + 0.006, -0.02), (1.2 * c + offset, 0.12), (1.2 * c + offset, tip)], 0.003, 0.7)
            )
        items.append(([(1.2 * c + 0.0065, 0.0), (1.2 * c + 0.0065, tip)], 0.0022, 1.0))
        finding.boxes.append((1.2 * c - 0.016, 0.02, 1.2 * c + 0.016, tip))
    elif finding.kind == "enteric tube":
        items.append(
            (
                _curve(
                    [
                        (c + 0.008, -0.02),
                        (c + 0.012, 0.30),
                        (c + 0.02, bottom - 0.02),
                        (c + 0.09, bottom + 0.06),
                        (c + 0.17, bottom + 0.10),
                    ]
                ),
                0.0055,
                0.75,
            )
        )
        finding.boxes.append((c - 0.01, 0.02, c + 0.18, min(1.0, bottom + 0.11)))
    elif finding.kind in ("central venous catheter", "port"):
        if finding.kind == "port":
            x, y = sign * 0.235, anatomy.clavicle_y[finding.side] + 0.135
            at = canvas.window(x - 0.024, y - 0.024, x + 0.024, y + 0.024)
            d = canvas.blob(x, y, 0.022, 0.022, at=at)
            layers.extra[at] += 0.75 * smooth_step((1.0 - d) * 3) - 0.3 * smooth_step((0.3 - d) * 3)
            path = [
                (x, y - 0.02),
                clavicle[4],
                (svc[0] + 0.02 * (1 if sign > 0 else -0.5), svc[1] - 0.03),
                svc,
                (svc[0] - 0.006, svc[1] + rng.uniform(0.05, 0.14)),
            ]
            box = (x - 0.03, y - 0.03, x + 0.03, y + 0.03)
        else:
            neck = (sign * 0.07, 0.0)
            path = [
                neck,
                (sign * 0.055, anatomy.clavicle_y["right"] + 0.02),
                (svc[0] + (0.05 if sign > 0 else 0.0), svc[1] - 0.02),
                svc,
                (svc[0] - 0.006, svc[1] + rng.uniform(0.04, 0.15)),
            ]
            xs, ys = [p[0] for p in path], [p[1] for p in path]
            box = (min(xs) - 0.012, max(0.0, min(ys)), max(xs) + 0.012, max(ys) + 0.01)
        items.append((_curve(path), 0.0048, 0.85))
        finding.boxes.append(box)
    elif finding.kind == "chest tube":
        start = (sign * (anatomy.half_width + 0.12), anatomy.dome[finding.side] - 0.02)
        end = anatomy.lung_point(finding.side, 0.45, rng.uniform(0.12, 0.45))
        path = _curve(
            [
                start,
                (sign * anatomy.half_width * 0.97, anatomy.dome[finding.side] - 0.11),
                (sign * anatomy.half_width * 0.82, 0.5 * (end[1] + anatomy.dome[finding.side]) - 0.04),
                end,
            ]
        )
        at, values = canvas.strokes([(path, 0.016, 1.0)], soft=0.001)
        layers.extra[at] += 0.10 * values
        items.append((path, 0.0035, 1.0))
        xs, ys = [p[0] for p in path], [p[1] for p in path]
        finding.boxes.append((min(xs), min(ys) - 0.01, max(xs), max(ys) + 0.01))
    else:  # sternotomy wires
        for k in range(int(rng.integers(5, 8))):
            y = 0.22 + 0.062 * k
            dx = rng.normal(0, 0.003)
            ring = [
                (c * 0.6 + dx + 0.014 * math.cos(a), y + 0.008 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 9)
            ]
            items.append((ring, 0.003, 1.0))
        finding.boxes.append((0.6 * c - 0.024, 0.205, 0.6 * c + 0.024, y + 0.015))
    at, values = canvas.strokes(items, soft=0.0008)
    layers.extra[at] += 0.75 * values


def _curve(points: list[tuple[float, float]], per_segment: int = 6) -> list[tuple[float, float]]:
    """Catmull-Rom spline through points."""
    p = [points[0], *points, points[-1]]
    curve = []
    for k in range(1, len(p) - 2):
        for t in np.linspace(0, 1, per_segment, endpoint=k == len(p) - 3).tolist():
            curve.append(
                tuple(
                    0.5
                    * (
                        2 * p[k][i]
                        + (p[k + 1][i] - p[k - 1][i]) * t
                        + (2 * p[k - 1][i] - 5 * p[k][i] + 4 * p[k + 1][i] - p[k + 2][i]) * t**2
                        + (3 * p[k][i] - p[k - 1][i] - 3 * p[k + 1][i] + p[k + 2][i]) * t**3
                    )
                    for i in (0, 1)
                )
            )
    return curve


DRAWERS = {
    "Enlarged Cardiomediastinum": _mediastinum,
    "Cardiomegaly": _heart,
    "Lung Opacity": _hazy,
    "Lung Lesion": _lesion,
    "Edema": _edema,
    "Consolidation": _consolidation,
    "Pneumonia": _patchy,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
    "Pleural Other": _pleural,
    "Fracture": _fracture,
    "Support Devices": _devices,
}
