"""How the Space stands a crowd: visitors at once, each with a film of its own.

    python -m modeling_gaze2report.hub_space.load_study URL [--visitors 20] [--requests 200] [--seconds 120]

Every answer must be about the asker's own film (its SHA-256), none may be lost, and a visitor with a broken file must
hurt only itself. Prints the times to the first words and to the whole report, the places in the queue that were seen
and, with `--pid`, the server's memory.
"""

import argparse
import hashlib
import io
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

TIMEOUT_S = 300
# What visitors ask for, in turn; the fourth of each visitor is broken.
KINDS = ("report", "ask", "scanpaths", "broken", "ground")


@dataclass
class Outcome:
    """One request.

    Attributes:
        kind: of `KINDS`.
        fault: what was wrong with the answer; `None` where it was right.
        first_s: seconds from asking to the first words; `None` for what is no report.
        running_s: seconds from the beginning of the work, after the queue, to the first words.
        whole_s: seconds from asking to the whole answer.
        places: places in the queue that the visitor was told.
    """

    kind: str
    fault: str | None
    whole_s: float
    first_s: float | None = None
    running_s: float | None = None
    places: list[int] = field(default_factory=list)


def film_of(visitor: int, number: int, base: np.ndarray) -> bytes:
    """A film that nobody else has: the phantom with a mark of this visitor's request."""
    pixels = base.copy()
    generator = np.random.default_rng((visitor, number))
    pixels[:8, :64] = generator.integers(0, 256, (8, 64), dtype=np.uint8)
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, format="PNG")
    return memory.getvalue()


def ask(client: httpx.Client, session: str, endpoints: dict, kind: str, film: bytes) -> Outcome:
    """One request as the page makes it: upload, join the queue, listen until the end."""
    started = time.monotonic()
    data = film[: len(film) // 2] if kind == "broken" else film
    path = client.post("/upload", files={"files": ("film.png", data)}).raise_for_status().json()[0]
    words = {"ask": ["Is there a pleural effusion?"], "scanpaths": [2, 1.0], "ground": ["heart"]}
    arguments = words.get(kind, ["direct", "", None])
    body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, *arguments], "session_hash": session}
    body["fn_index"] = endpoints["report" if kind == "broken" else kind]
    outcome = Outcome(kind, "no answer", 0.0)
    client.post("/queue/join", json=body).raise_for_status()
    asked, began = time.monotonic(), None
    value, succeeded = None, False
    with client.stream("GET", f"/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            if not line.startswith("data:"):
                continue
            event = json.loads(line[5:])
            if event["msg"] == "estimation":
                outcome.places.append(event["rank"])
            elif event["msg"] == "process_starts":
                began = time.monotonic()
            elif event["msg"] in ("process_generating", "process_completed"):
                if event["msg"] == "process_generating" and '"sentences"' in line and outcome.first_s is None:
                    outcome.first_s = time.monotonic() - asked
                    outcome.running_s = time.monotonic() - (began or asked)
                if event["msg"] == "process_completed":
                    succeeded = event["success"]
                    value = (event["output"].get("data") or [None])[0]
                    break
    outcome.whole_s = time.monotonic() - started
    if kind == "broken":
        outcome.fault = "a broken film was read" if succeeded else None
    elif not succeeded:
        outcome.fault = "refused"
    elif value["image"]["sha256"] != hashlib.sha256(film).hexdigest():
        outcome.fault = "about somebody else's film"
    else:
        outcome.fault = None
    return outcome


def crowd(url: str, visitors: int, requests: int, seconds: float, phantom: str | Path) -> list[Outcome]:
    """The outcomes of `requests` requests of `visitors` visitors, spread over `seconds`."""
    base = np.asarray(Image.open(phantom).convert("L"))
    outcomes, lock = [], threading.Lock()
    config = httpx.get(url + "/config", timeout=TIMEOUT_S).json()
    endpoints = {one["api_name"]: one["id"] for one in config["dependencies"] if one["api_name"]}
    each = -(-requests // visitors)
    began = time.monotonic()

    def visit(visitor: int) -> None:
        with httpx.Client(base_url=url + "/gradio_api", timeout=TIMEOUT_S) as client:
            for number in range(min(each, requests - visitor * each)):
                # Everybody starts at once; later requests come evenly, or as soon as the one before is answered.
                time.sleep(max(0.0, began + number * seconds / each - time.monotonic()))
                kind = KINDS[(visitor + number) % len(KINDS)]
                film = film_of(visitor, number, base)
                try:
                    outcome = ask(client, f"visitor{visitor}n{number}", endpoints, kind, film)
                except Exception as error:
                    outcome = Outcome(kind, f"{type(error).__name__}: {error}", 0.0)
                with lock:
                    outcomes.append(outcome)

    threads = [threading.Thread(target=visit, args=(visitor,)) for visitor in range(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def quantiles(values: list[float]) -> str:
    if not values:
        return "none"
    shares = (0.0, 0.5, 0.9, 1.0)
    return "  ".join(f"{name} {value:.2f}" for name, value in zip(QUANTILES, np.quantile(values, shares), strict=True))


QUANTILES = ("min", "median", "90 %", "max")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", metavar="URL", help="of a Space that runs, such as http://127.0.0.1:7860")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    parser.add_argument("--film", default=str(Path(__file__).parent / "examples" / "phantom.png"))
    args = parser.parse_args(arguments)
    memory, stop = [], threading.Event()

    def watch() -> None:
        import psutil

        while not stop.wait(1):
            memory.append(psutil.Process(args.pid).memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch) if args.pid else None
    if watcher:
        watcher.start()
    # One visitor alone, first: what a report costs where nobody waits.
    alone = [one for one in crowd(args.url, 1, 5 * len(KINDS), 0, args.film) if one.first_s is not None]
    began = time.monotonic()
    outcomes = crowd(args.url, args.visitors, args.requests, args.seconds, args.film)
    took = time.monotonic() - began
    stop.set()
    if watcher:
        watcher.join()
    faults = [f"{one.kind}: {one.fault}" for one in outcomes if one.fault]
    print(f"{len(outcomes)} of {args.requests} requests of {args.visitors} visitors answered in {took:.0f} s")
    print(f"wrong answers: {len(faults)}" + "".join(f"\n  {fault}" for fault in faults[:10]))
    print(f"seconds to the first words, alone: {quantiles([one.first_s for one in alone])}")
    print(f"seconds to the whole report, alone: {quantiles([one.whole_s for one in alone])}")
    in_turn = [one.running_s for one in outcomes if one.running_s is not None]
    print(f"seconds to the first words, from one's turn: {quantiles(in_turn)}")
    print(f"seconds to the first words, queue and all: {quantiles([one.first_s for one in outcomes if one.first_s])}")
    print(f"seconds to the whole answer, queue and all: {quantiles([one.whole_s for one in outcomes])}")
    print(
        f"places in the queue that visitors were told: {quantiles([place for one in outcomes for place in one.places])}"
    )
    if memory:
        third = max(1, len(memory) // 3)
        early, late = np.median(memory[:third]), np.median(memory[-third:])
        print(f"memory, MB: {early:.0f} in the first third, {late:.0f} in the last")
    return 1 if faults or len(outcomes) != args.requests else 0


if __name__ == "__main__":
    sys.exit(main())
