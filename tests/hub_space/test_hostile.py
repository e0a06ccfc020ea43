"""A hundred hostile uploads: each is refused with a sentence or does no harm, and the Space goes on for the others."""

import hashlib
import json
import re
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from .hostile import SCRIPT, WORDS, hostile_films, hostile_recordings
from .running_space import PHANTOM

pytest.importorskip("gradio")
MAX_GROWTH_MB = 900
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def visitor(space):
    with httpx.Client(base_url=space.url + "/gradio_api", timeout=TIMEOUT_S) as client:
        yield Visitor(client)


class Visitor:
    """Somebody who talks to the Space without its page or its client."""

    def __init__(self, client):
        self.client = client

    def upload(self, name: str, data: bytes) -> str | None:
        """Where the file was put, or `None` where it was refused."""
        answer = self.client.post("/upload", files={"files": (name, data)})
        assert answer.status_code < 500, (name, answer.status_code)
        return answer.json()[0] if answer.status_code == 200 else None

    def call(self, endpoint: str, *data) -> tuple[str, object]:
        """`"complete"` and the last value, or `"error"` and the message."""
        answer = self.client.post(f"/call{endpoint}", json={"data": list(data)})
        if answer.status_code != 200:
            assert answer.status_code < 500
            return "error", answer.text
        lines = self.client.get(f"/call{endpoint}/{answer.json()['event_id']}").text
        kind, value = re.findall(r"event: (\w+)\ndata: (.*)", lines)[-1]
        return kind, json.loads(value)

    def look_at(self, path) -> tuple[str, object]:
        """The film read by the cheapest of the endpoints."""
        return self.call("/scanpaths", {"path": path}, 1, 1.0)


def is_well(visitor) -> bool:
    """Whether a good film is read as always."""
    kind, value = visitor.look_at(visitor.upload("good.png", PHANTOM.read_bytes()))
    return kind == "complete" and value[0]["image"]["sha256"] == hashlib.sha256(PHANTOM.read_bytes()).hexdigest()


def test_hostile_films_are_refused_or_harmless(space, visitor):
    films = hostile_films()
    assert len(films) + len(hostile_recordings()) >= 100
    assert is_well(visitor)
    before = space.memory()
    outcome = {}

    for name, data in films:
        path = visitor.upload(name, data)
        if path is None:
            outcome[name] = "not taken"
            continue
        assert space.uploads.resolve() in type(space.uploads)(path).resolve().parents, (name, path)
        kind, value = visitor.look_at(path)
        if kind == "error":
            message = value if isinstance(value, str) else (value or {}).get("error", "")
            assert "<" not in (message or ""), (name, message)
            outcome[name] = message
        else:
            assert value[0]["image"]["sha256"] == hashlib.sha256(data).hexdigest(), name
            assert "Doe" not in json.dumps(value) and SCRIPT not in json.dumps(value), name
            outcome[name] = "read"

    assert is_well(visitor)
    assert space.memory() - before < MAX_GROWTH_MB, f"{before:.0f} MB before, {space.memory():.0f} MB after"
    refused = (
        "script.svg",
        "page.png",
        "print.png",
        "bomb.zip",
        "30000.png",
        "gigabyte.bmp",
        "burnt.dcm",
    )
    refused += ("rows.dcm", "frames.dcm", "deflated.dcm", "photometric.dcm", "weights.pkl", "cut-60.png", "blank.png")
    assert not [name for name in refused if outcome[name] == "read"]
    assert outcome["name.dcm"] == outcome["polyglot.png"] == outcome["unsaid.dcm"] == "read"


def test_hostile_recordings_are_refused_or_harmless(space, visitor):
    film = {"path": visitor.upload("good.png", PHANTOM.read_bytes())}

    for name, data in hostile_recordings():
        path = visitor.upload(name, data)
        kind, value = visitor.call("/compare", film, "", {"path": path}, "direct")
        if kind == "error":
            assert "<" not in str(value), (name, value)
        else:
            assert all(0 <= one["x"] <= 1 and 0 <= one["y"] <= 1 for one in value[0]["recorded"]["gaze"]["fixations"])

    assert is_well(visitor)


@pytest.mark.parametrize("endpoint", ["/ask", "/ground"])
def test_hostile_words_are_words(visitor, endpoint):
    film = {"path": visitor.upload("good.png", PHANTOM.read_bytes())}

    for words in WORDS:
        kind, value = visitor.call(endpoint, film, words)
        assert kind == "complete" or "<" not in str(value), (words, value)

    assert visitor.call(endpoint, film, "x" * 5_000_000)[0] == "error"
    assert is_well(visitor)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/etc/passwd",
            "../app.py",
            "app.py",
            "file:///etc/passwd",
            "http://127.0.0.1:1/x.png",
            "https://example.com/x",
        ),
        *(
            "owner/model",
            "\\\\host\\share",
            "",
            "a\0b",
            "~/.ssh/id_rsa",
            "/proc/self/environ",
            "/dev/zero",
            "x" * 100_000,
        ),
    ],
)
def test_nothing_but_uploads_is_opened(space, visitor, path):
    for value in ({"path": path, "meta": {"_type": "gradio.FileData"}}, {"path": path}, path, [path], 7, None):
        kind, answer = visitor.call("/report", value, "direct", "", None)
        assert kind == "error" and "root:" not in str(answer)
    assert "Traceback" not in space.log.read_text()


def test_an_svg_is_never_shown_as_a_page(visitor):
    path = visitor.upload("script.svg", f"<svg xmlns='http://www.w3.org/2000/svg'>{SCRIPT}</svg>".encode())

    answer = visitor.client.get(f"/file={path}")

    assert answer.status_code != 200 or "attachment" in answer.headers.get("content-disposition", "")


@pytest.mark.parametrize("path", ["/etc/passwd", "../../app.py", "app.py", "space.json"])
def test_no_other_file_is_served(visitor, path):
    assert visitor.client.get(f"/file={path}").status_code in (403, 404)


def test_too_much_is_refused_while_it_comes(visitor):
    answer = visitor.client.post("/upload", files={"files": ("large.png", bytes(45_000_000))})

    assert answer.status_code == 413


def test_a_gigabyte_that_is_only_announced_blocks_nobody(space, visitor):
    address = urlsplit(space.url)
    with socket.create_connection((address.hostname, address.port)) as line:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        line.sendall(f"{head}Content-Length: 1000000000\r\n\r\n--b\r\n".encode())
        assert is_well(visitor)


def test_a_crowd_beyond_the_queue_is_told_to_come_back(visitor):
    film = {"path": visitor.upload("good.png", PHANTOM.read_bytes())}

    answers = [visitor.client.post("/call/scanpaths", json={"data": [film, 4, 1.0]}) for _ in range(60)]

    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused and all("queue" in answer.text.lower() for answer in refused)
    taken = [answer.json()["event_id"] for answer in answers if answer.status_code == 200]
    assert all("event: complete" in visitor.client.get(f"/call/scanpaths/{one}").text for one in taken)
    assert is_well(visitor)
