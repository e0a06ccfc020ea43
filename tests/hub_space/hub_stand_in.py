"""A small Hub on this machine, for the real `huggingface_hub` client: repositories with commits, and large files apart.

It answers the endpoints that creating, committing and loading use, as the Hub does: preupload decides what is a large
file and names the present content of each path; large files go up by the LFS batch endpoint and a signed address; a
commit comes as lines of JSON and succeeds whole or not at all; `resolve` gives commit and ETag, and redirects for large
files.
"""

# ruff: noqa: RET503, SIM102 - a handler that has answered is done

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"
USER = "reader"
LARGE = 1_000_000
LARGE_NAMES = re.compile(r"\.(safetensors|png|dcm|bin)$")
REPO = r"(?P<prefix>(?:spaces/|datasets/)?)(?P<repo>[\w.-]+/[\w.-]+)"
API = r"/api/(?P<kind>models|spaces|datasets)/(?P<repo>[\w.-]+/[\w.-]+)"


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repository:
    """Commits, the last one the present: message, and for every path its bytes and whether they are a large file."""

    def __init__(self, is_private: bool):
        self.is_private = is_private
        self.commits: list[tuple[str, str, dict]] = []
        self.commit("initial commit", {".gitattributes": (b"*.safetensors filter=lfs\n", False)})

    def commit(self, message: str, files: dict) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{message}{sorted(files)}".encode()).hexdigest()
        self.commits.append((digest, message, files))
        return digest

    def files(self, revision: str) -> tuple[str, dict] | None:
        for digest, _, files in reversed(self.commits):
            if revision in ("main", digest):
                return digest, files
        return None


class StandIn:
    """The server; `url` is what `HF_ENDPOINT` becomes.

    Attributes:
        repositories: by `models/OWNER/NAME` or `spaces/OWNER/NAME`.
        objects: large files by their SHA-256, whether or not a commit names them.
        requests: method and path of every request.
        breaks: called with method and path; true breaks the connection off in the middle.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.breaks = lambda method, path: False
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Large files lie with another host: the client takes what the Hub says of a file from before that redirect.
        self.storage = f"http://localhost:{self.server.server_port}/storage"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def of(self, name: str) -> Repository:
        return self.repositories[name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *arguments):
        pass

    def handle_any(self):
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        self.hub.requests.append((self.command, path))
        if self.hub.breaks(self.command, path):
            self.rfile.read(min(65536, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return None
        self.body = self.read_body()
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return function(self, **match.groupdict())
        self.answer(404, {"error": f"no such endpoint: {path}"}, {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content, headers: dict | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.answer(401, {"error": "Invalid credentials in Authorization header"})
        return False

    def repository(self, name: str) -> Repository | None:
        if (found := self.hub.repositories.get(name)) is None:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return found

    # -- accounts and repositories ------------------------------------------------------------------------------------

    def whoami(self):
        if self.may_write():
            self.answer(200, {"type": "user", "name": USER, "orgs": []})

    def create(self):
        if not self.may_write():
            return None
        wish = json.loads(self.body)
        repo = f"{wish.get('organization') or USER}/{wish['name']}"
        name = f"{wish.get('type') or 'model'}s/{repo}"
        address = f"{self.hub.url}/{'' if name.startswith('models') else name.split('/')[0] + '/'}{repo}"
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this repo", "url": address})
        is_private = wish.get("visibility") == "private" or bool(wish.get("private"))
        self.hub.repositories[name] = Repository(is_private)
        self.answer(200, {"url": address, "name": repo})

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        valid = re.match(r"---\n.+?\n---\n", content, re.DOTALL)
        self.answer(200 if valid else 400, {"errors": [] if valid else [{"message": "no metadata"}], "warnings": []})

    def info(self, kind, repo, revision="main"):
        if (found := self.repository(f"{kind}/{repo}")) is None:
            return None
        if (state := found.files(revision)) is None:
            return self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in sorted(state[1])]
        values = {"id": repo, "sha": state[0], "private": found.is_private, "siblings": siblings, "tags": []}
        self.answer(200, values | {"modelId": repo, "downloads": 0, "likes": 0})

    def tree(self, kind, repo, revision, folder=""):
        if (found := self.repository(f"{kind}/{repo}")) is None:
            return None
        if (state := found.files(revision)) is None:
            return self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        inside = {path: value for path, value in state[1].items() if path.startswith(folder)}
        if not inside:
            return self.answer(404, {"error": f"{folder} does not exist"}, {"X-Error-Code": "EntryNotFound"})
        self.answer(
            200,
            [
                {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
                | ({"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 130}} if large else {})
                for path, (data, large) in sorted(inside.items())
            ],
        )

    # -- commits ------------------------------------------------------------------------------------------------------

    def preupload(self, kind, repo, revision):
        if not self.may_write() or (found := self.repository(f"{kind}/{repo}")) is None:
            return
        _, files = found.files("main")
        answers = []
        for wish in json.loads(self.body)["files"]:
            large = wish["size"] > LARGE or bool(LARGE_NAMES.search(wish["path"]))
            oid = None
            if wish["path"] in files:
                data, was_large = files[wish["path"]]
                oid = sha256(data) if was_large else git_hash(data)
            mode = "lfs" if large else "regular"
            answers.append({"path": wish["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": answers})

    def batch(self, prefix, repo):
        if not self.may_write():
            return
        answers = []
        for wish in json.loads(self.body)["objects"]:
            answer = {"oid": wish["oid"], "size": wish["size"]}
            if wish["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.storage}/{wish['oid']}", "header": {}}}
            answers.append(answer)
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self.answer(200, {"transfer": "basic", "objects": answers}, headers)

    def store(self, oid):
        if sha256(self.body) != oid:
            return self.answer(400, {"error": "the content is not what its name says"})
        self.hub.objects[oid] = self.body
        self.answer(200, b"")

    def commit(self, kind, repo, revision):
        if not self.may_write() or (found := self.repository(f"{kind}/{repo}")) is None:
            return None
        head, files = found.files("main")
        files, message = dict(files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            elif item["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.answer(400, {"error": f"{value['path']} was never uploaded"})
                files[value["path"]] = (self.hub.objects[value["oid"]], True)
            elif item["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return self.answer(404, {"error": "A file with this name doesn't exist"})
        digest = found.commit(message, files)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{digest}", "commitOid": digest, "success": True})

    # -- loading ------------------------------------------------------------------------------------------------------

    def resolve(self, prefix, repo, revision, path):
        if (found := self.repository(f"{prefix.rstrip('/') or 'models'}/{repo}")) is None:
            return None
        if (state := found.files(revision)) is None:
            return self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": state[0]}
        if path not in state[1]:
            return self.answer(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        data, large = state[1][path]
        if not large:
            return self.answer(200, data, headers | {"ETag": f'"{git_hash(data)}"'})
        headers |= {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        self.answer(302, b"", headers | {"Location": f"{self.hub.storage}/{sha256(data)}"})

    def fetch(self, oid):
        data = self.hub.objects.get(oid)
        self.answer(404, b"") if data is None else self.answer(200, data, {"ETag": f'"{oid}"'})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ROUTES = (
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate_yaml),
    (("GET",), API, Handler.info),
    (("GET",), API + r"/revision/(?P<revision>[\w.-]+)", Handler.info),
    (("GET",), API + r"/tree/(?P<revision>[\w.-]+)(?:/(?P<folder>.*))?", Handler.tree),
    (("POST",), API + r"/preupload/(?P<revision>[\w.-]+)", Handler.preupload),
    (("POST",), API + r"/commit/(?P<revision>[\w.-]+)", Handler.commit),
    (("POST",), "/" + REPO + r"\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), r"/storage/(?P<oid>\w+)", Handler.store),
    (("GET", "HEAD"), r"/storage/(?P<oid>\w+)", Handler.fetch),
    (("GET", "HEAD"), "/" + REPO + r"/resolve/(?P<revision>[\w.-]+)/(?P<path>.+)", Handler.resolve),
)
