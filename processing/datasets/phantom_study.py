"""The phantom simulator held against published statistics of real gaze, and against real films.

`gaze2report prepare phantom --statistics --out DIR [--real-films DIR] [--probe]` prints, side by side, scanpath
statistics of the phantoms and of GazeSearch (3,870 + 517 + 488 scanpaths of radiologists, windows of six fixations),
label prevalence and co-occurrence, report variety, grey levels and power spectra, and writes a contact sheet. With
`--probe` it trains a linear model and a small network on
raw pixels: a task worth training on is solved by neither of them at once, and not hopeless either.
"""

import csv
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import DataError
from ..report_labels import FINDINGS
from .films import SUFFIXES
from .phantom import generate_phantom
from .phantom_gaze import SURVEY

WINDOW = 6  # GazeSearch cuts reads into windows of six fixations
RETURN_DISTANCE = 16 / 224
# name -> (value measured on GazeSearch, absolute tolerance of the simulator)
REFERENCE = {
    "duration 5 %, s": (0.125, 0.03),
    "duration 25 %, s": (0.210, 0.03),
    "duration 50 %, s": (0.283, 0.03),
    "duration 75 %, s": (0.385, 0.05),
    "duration 95 %, s": (0.631, 0.10),
    "duration mean, s": (0.320, 0.03),
    "log duration mean": (-1.267, 0.08),
    "log duration sd": (0.512, 0.06),
    "amplitude 5 %, widths": (0.046, 0.02),
    "amplitude 25 %, widths": (0.098, 0.03),
    "amplitude 50 %, widths": (0.171, 0.03),
    "amplitude 75 %, widths": (0.312, 0.06),
    "amplitude 95 %, widths": (0.563, 0.08),
    "amplitude mean, widths": (0.224, 0.04),
    "more horizontal than vertical": (0.606, 0.05),
    "crosses the midline": (0.340, 0.05),
    "turn below 45 degrees": (0.241, 0.05),
    "turn above 135 degrees": (0.357, 0.05),
    "returns to a fixation two or more back": (0.136, 0.05),
    "lag-1 correlation of log duration": (0.07, 0.10),
    "x mean, widths": (0.52, 0.04),
    "x sd, widths": (0.215, 0.03),
    "y mean, heights": (0.48, 0.04),
    "y sd, heights": (0.170, 0.03),
    "8 x 8 occupancy, total variation": (0.0, 0.12),
}


def gaze_statistics(scanpaths: list[list[dict]]) -> dict[str, float]:
    """The statistics of `REFERENCE` for scanpaths of fixations (x, y in [0, 1], duration_s)."""
    durations, amplitudes, horizontal, midline, turns, returns, pairs = [], [], [], [], [], [], []
    xs, ys = [], []
    for fixations in scanpaths:
        x, y = np.array([f["x"] for f in fixations]), np.array([f["y"] for f in fixations])
        d = np.array([f["duration_s"] for f in fixations])
        durations.append(d)
        xs.append(x)
        ys.append(y)
        dx, dy = np.diff(x), np.diff(y)
        amplitudes.append(np.hypot(dx, dy))
        horizontal.append(np.abs(dx) > np.abs(dy))
        midline.append((x[1:] - 0.5) * (x[:-1] - 0.5) < 0)
        angle = np.arctan2(dy, dx)
        turns.append(np.abs((np.diff(angle) + np.pi) % (2 * np.pi) - np.pi))
        pairs.append(np.stack([np.log(d[:-1]), np.log(d[1:])]))
        for start in range(0, len(x) - WINDOW + 1, WINDOW):
            px, py = x[start : start + WINDOW], y[start : start + WINDOW]
            near = [
                k >= 2 and bool((np.hypot(px[: k - 1] - px[k], py[: k - 1] - py[k]) < RETURN_DISTANCE).any())
                for k in range(WINDOW)
            ]
            returns.extend(near)
    d, a, t = np.concatenate(durations), np.concatenate(amplitudes), np.concatenate(turns)
    x, y, pair = np.concatenate(xs), np.concatenate(ys), np.concatenate(pairs, axis=1)
    grid = np.histogram2d(y, x, 8, [[0, 1], [0, 1]])[0]
    values = [*np.percentile(d, (5, 25, 50, 75, 95)), d.mean(), np.log(d).mean(), np.log(d).std()]
    values += [
        *np.percentile(a, (5, 25, 50, 75, 95)),
        a.mean(),
        np.concatenate(horizontal).mean(),
        np.concatenate(midline).mean(),
    ]
    values += [(t < np.pi / 4).mean(), (t > 3 * np.pi / 4).mean(), np.mean(returns), np.corrcoef(pair)[0, 1]]
    values += [x.mean(), x.std(), y.mean(), y.std(), 0.5 * np.abs(grid / grid.sum() - SURVEY / SURVEY.sum()).sum()]
    return dict(zip(REFERENCE, map(float, values), strict=True))


def film_statistics(films: list[np.ndarray]) -> dict[str, float]:
    """Grey levels (0 to 255) and log10 power by octave of frequency (films standardised and windowed)."""
    stack = np.stack([film.astype(np.float64) for film in films])
    result = {
        "grey mean": stack.mean(),
        "grey sd between films": stack.mean(axis=(1, 2)).std(),
        "grey sd within a film": stack.std(axis=(1, 2)).mean(),
    }
    for share, value in zip(
        (5, 25, 50, 75, 95), np.percentile(stack, (5, 25, 50, 75, 95), axis=(1, 2)).mean(axis=1), strict=True
    ):
        result[f"grey {share} %"] = value
    side = stack.shape[1]
    window = np.hanning(side)[:, None] * np.hanning(side)[None, :]
    frequency = np.hypot(np.fft.fftfreq(side, 1 / side)[:, None], np.fft.fftfreq(side, 1 / side)[None, :])
    standard = (stack - stack.mean(axis=(1, 2), keepdims=True)) / stack.std(axis=(1, 2), keepdims=True)
    power = np.mean([np.abs(np.fft.fft2(film * window)) ** 2 for film in standard], axis=0)
    for low in (2, 4, 8, 16, 32, 64):
        result[f"log10 power, {low}-{2 * low} cycles"] = np.log10(
            power[(frequency >= low) & (frequency < 2 * low)].mean()
        )
    return {name: float(value) for name, value in result.items()}


def real_films(folder: Path, count: int) -> list[np.ndarray]:
    """Up to `count` films of a folder, 256 x 256; those without findings if it has a metadata.csv (file, findings).

    Raises:
        DataError: no film is there.
    """
    table = folder / "metadata.csv"
    if table.is_file():
        with open(table, encoding="utf-8", newline="") as file:
            paths = [
                folder / row["file"] for row in csv.DictReader(file) if row.get("findings") in ("No Finding", "Normal")
            ]
    else:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no film was found")
    step = max(1, len(paths) // count)
    return [
        np.asarray(Image.open(path).convert("L").resize((256, 256), Image.Resampling.BOX))
        for path in paths[::step][:count]
    ]


def draw_record(record: dict) -> Image.Image:
    """A film with its finding boxes (yellow) and its scanpath (cyan to magenta in time, circles by duration)."""
    image = Image.fromarray(record["image"]).convert("RGB")
    draw, side = ImageDraw.Draw(image), image.width
    for box in record["boxes"]:
        draw.rectangle([box["x0"] * side, box["y0"] * side, box["x1"] * side, box["y1"] * side], outline=(255, 220, 0))
        draw.text((box["x0"] * side + 2, box["y0"] * side + 1), box["label"], fill=(255, 220, 0))
    points = [(f["x"] * side, f["y"] * side) for f in record["fixations"]]
    for k, (point, fixation) in enumerate(zip(points, record["fixations"], strict=True)):
        share = k / max(1, len(points) - 1)
        colour = (int(255 * share), int(200 * (1 - share)), 255)
        if k:
            draw.line([points[k - 1], point], fill=colour)
        radius = 2 + 6 * fixation["duration_s"]
        draw.ellipse([point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius], outline=colour)
    return image


def tile(images: list[Image.Image], columns: int) -> Image.Image:
    """Images of one size side by side."""
    side = images[0].width
    sheet = Image.new("RGB", (columns * side, -(-len(images) // columns) * side))
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * side, k // columns * side))
    return sheet


def run_study(
    num_films: int, image_size: int, seed: int, out: Path, real: Path | None = None, probe: bool = False
) -> int:
    """Prints the statistics and writes `contact_sheet.png`; 1 if a gaze statistic is out of its tolerance."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    records = [generate_phantom(seed, index, 32) for index in range(num_films)]
    found = gaze_statistics([record["fixations"] for record in records])
    print(f"gaze of {num_films} phantom readings against GazeSearch (windows of real reads)")
    print(f"{'':44}{'phantom':>9}{'real':>9}{'allowed':>9}")
    outside = 0
    for name, (value, tolerance) in REFERENCE.items():
        wrong = abs(found[name] - value) > tolerance
        outside += wrong
        print(f"{name:44}{found[name]:9.3f}{value:9.3f}{tolerance:9.3f}{'   OUT' if wrong else ''}")
    lengths = np.array([len(record["fixations"]) for record in records])
    print(
        f"fixations per reading: mean {lengths.mean():.1f}, 5 % {np.percentile(lengths, 5):.0f}, 95 % "
        f"{np.percentile(lengths, 95):.0f}\n"
    )

    labels = np.array([record["labels"] for record in records])
    print(f"{'label':28}{'present':>9}{'hedged':>9}   most frequent beside it")
    for k, name in enumerate(FINDINGS):
        beside = (
            sorted(
                ((labels[labels[:, k] == 1] == 1).mean(axis=0)[j], other) for j, other in enumerate(FINDINGS) if j != k
            )
            if (labels[:, k] == 1).any()
            else []
        )
        text = ", ".join(f"{other} {share:.2f}" for share, other in reversed(beside[-3:]) if share > 0)
        print(f"{name:28}{(labels[:, k] == 1).mean():9.3f}{(labels[:, k] == -1).mean():9.3f}   {text}")
    counts = Counter(len({box["label"] for box in record["boxes"]}) for record in records)
    print("categories on a film: " + ", ".join(f"{k}: {counts[k] / num_films:.2f}" for k in sorted(counts)))
    sentences = {sentence["text"] for record in records for sentence in record["sentences"]}
    words = np.array([len(record["report"].split()) for record in records])
    print(
        f"reports: {len(sentences)} distinct sentences, {words.mean():.1f} words on average (5 % "
        f"{np.percentile(words, 5):.0f}, 95 % {np.percentile(words, 95):.0f})\n"
    )

    start, used = time.perf_counter(), time.process_time()
    timed = [generate_phantom(seed, index, image_size) for index in range(min(60, num_films))]
    wall, used = time.perf_counter() - start, time.process_time() - used
    print(
        f"one process, {image_size} px, film and annotations: {len(timed) / wall:.1f} films a second, "
        f"{1000 * used / len(timed):.1f} ms of processor time each"
    )
    sheet = [generate_phantom(seed, index, 256) for index in range(24)]
    left = tile([draw_record(record) for record in sheet], 6)
    left.save(out / "contact_sheet.png")
    print(f"{out / 'contact_sheet.png'}: 24 phantoms with boxes and scanpaths")
    normal = []
    index = 0
    while len(normal) < min(120, num_films):
        if records[index % num_films]["labels"][0] == 1:
            normal.append(generate_phantom(seed, index % num_films, 256)["image"])
        index += 1
        if index >= num_films:
            break
    statistics = {"phantom": film_statistics(normal)}
    if real:
        films = real_films(real, 120)
        statistics["real"] = film_statistics(films)
        pictures = (
            [Image.fromarray(film).convert("RGB") for film in normal[:24]],
            [Image.fromarray(film).convert("RGB") for film in films[:24]],
        )
        both = Image.new("RGB", (2 * 4 * 256 + 32, 6 * 256), (255, 255, 255))
        both.paste(tile(pictures[0], 4), (0, 0))
        both.paste(tile(pictures[1], 4), (4 * 256 + 32, 0))
        both.save(out / "normal_films.png")
        print(f"{out / 'normal_films.png'}: normal phantoms on the left, real normal films on the right")
    print(f"{'normal films at 256 px':32}" + "".join(f"{name:>10}" for name in statistics))
    for name in statistics["phantom"]:
        print(f"{name:32}" + "".join(f"{values[name]:10.2f}" for values in statistics.values()))
    if probe:
        run_probe(num_films, seed)
    return 1 if outside else 0


PROBE_SIZE = 96


def _probe_network(outputs: int):
    """Four convolutions; the strongest response anywhere beside a coarse map, so that a small lesion counts."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            layers, width = [], 1
            for channels in (16, 32, 64, 128):
                layers += [
                    nn.Conv2d(width, channels, 3, padding=1),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                ]
                width = channels
            self.features = nn.Sequential(*layers)
            self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(width * (1 + 3 * 3), outputs))

        def forward(self, films):
            features = self.features(films)  # (B, 128, 6, 6)
            grid = nn.functional.avg_pool2d(features, 2).flatten(1)
            return self.head(torch.cat([features.amax(dim=(2, 3)), grid], dim=1))

    return Network()


OBVIOUS = 0.5  # strength from which a finding counts as obvious


def run_probe(num_films: int, seed: int, epochs: int = 12) -> dict[str, dict[str, float]]:
    """Prints the AUROC of a linear model on raw pixels and of a small network, for all and for obvious findings.

    Films from `num_films` on serve as the test. Hedged findings are left out; "obvious" compares films whose finding
    has at least half of the full strength with films that lack it.
    """
    import torch
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    from .phantom import _study

    test = max(300, num_films // 4)
    films, labels, strengths = [], [], []
    for index in range(num_films + test):
        record = generate_phantom(seed, index, PROBE_SIZE)
        films.append(record["image"])
        labels.append(record["labels"])
        strength = dict.fromkeys(FINDINGS, 0.0)
        for finding in _study(seed, index)[1]:
            strength[finding.category] = max(strength[finding.category], finding.strength)
        strengths.append([strength[name] for name in FINDINGS])
    x = np.stack(films).astype(np.float32) / 255.0
    x -= x[:num_films].mean()
    x /= x[:num_films].std()
    y, s = np.array(labels), np.array(strengths)

    pca = PCA(n_components=min(200, num_films // 4), svd_solver="randomized", random_state=0)
    low = pca.fit_transform(x[:num_films].reshape(num_films, -1))
    low_test = pca.transform(x[num_films:].reshape(test, -1))
    scale = low.std(axis=0)
    linear = np.zeros((test, len(FINDINGS)))
    for k in range(len(FINDINGS)):
        known = y[:num_films, k] >= 0
        if len(set(y[:num_films, k][known])) == 2:
            model = LogisticRegression(C=0.01, max_iter=500).fit(low[known] / scale, y[:num_films, k][known])
            linear[:, k] = model.decision_function(low_test / scale)

    torch.manual_seed(0)
    net = _probe_network(len(FINDINGS))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    films_t = torch.from_numpy(x)[:, None]
    target = torch.from_numpy(y.astype(np.float32))
    steps = epochs * (num_films // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(1, steps))
    for _ in range(epochs):
        net.train()
        order = torch.randperm(num_films)
        for start in range(0, num_films - 31, 32):
            batch = order[start : start + 32]
            shift = torch.randint(-4, 5, (2,)).tolist()
            inputs = torch.roll(films_t[batch], shift, dims=(2, 3)).to(device)
            goal = target[batch].to(device)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(inputs), goal.clamp(min=0), reduction="none"
            )
            loss = (loss * (goal >= 0)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
    with torch.inference_mode():
        deep = torch.cat([net(part.to(device)).cpu() for part in films_t[num_films:].split(64)]).numpy()

    result = {}
    print(
        f"\nAUROC on {test} films after training on {num_films}, {PROBE_SIZE} px (linear: raw pixels; network: 4 "
        "convolutions)"
    )
    print(f"{'':28}{'linear':>9}{'network':>9}{'linear':>11}{'network':>9}")
    print(f"{'':28}{'all':>9}{'all':>9}{'obvious':>11}{'obvious':>9}")
    for k, name in enumerate(FINDINGS):
        truth, strength = y[num_films:, k], s[num_films:, k]
        known = truth >= 0
        obvious = (truth == 0) | ((truth == 1) & ((strength >= OBVIOUS) | (name == "No Finding")))
        row = {}
        for title, mask in (("all", known), ("obvious", known & obvious)):
            for kind, scores in (("linear", linear), ("network", deep)):
                both = len(set(truth[mask])) == 2
                row[f"{kind} {title}"] = float(roc_auc_score(truth[mask], scores[mask, k])) if both else float("nan")
        result[name] = row
        print(
            f"{name:28}{row['linear all']:9.3f}{row['network all']:9.3f}"
            f"{row['linear obvious']:11.3f}{row['network obvious']:9.3f}"
        )
    means = {key: float(np.nanmean([row[key] for row in result.values()])) for key in next(iter(result.values()))}
    print(
        f"{'mean':28}{means['linear all']:9.3f}{means['network all']:9.3f}"
        f"{means['linear obvious']:11.3f}{means['network obvious']:9.3f}"
    )
    return result


__all__ = ["REFERENCE", "film_statistics", "gaze_statistics", "run_probe", "run_study"]
