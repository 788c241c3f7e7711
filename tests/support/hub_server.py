"""A small Hugging Face hub on localhost, with what `huggingface_hub` asks of it.

It serves folders as repositories and keeps what is uploaded. Every request is recorded,
with the bytes that were sent, so that tests can count what was fetched.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import urllib.parse

from tests.support.local_server import LocalServer

REPOSITORY_API = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
    r"(?:/(?P<call>revision|tree|preupload|commit)/(?P<revision>[^/?]+))?"
)
RESOLVE = re.compile(
    r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)
LFS_BATCH = re.compile(r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".tar", ".parquet", ".h5")


class HubServer(LocalServer):
    """The server.

    Attributes:
      url: of the hub, for HF_ENDPOINT.
      requests: (method, path, bytes of the answer) of each request.
      tokens: of users who may read gated and private repositories, and may write.
      read_only: the tokens that may not write.
    """

    def __init__(self):
        self.requests = []
        self.tokens = {"hf_good"}
        self.read_only = set()
        self.failure = None  # status of all answers, as of a hub that is down
        self._commits = {}  # {(kind, name): [(commit, {path: bytes})]}
        self._branches = {}  # {(kind, name): {branch or tag: commit}}
        self._restricted = {}  # {(kind, name): "gated" or "private"}
        self.blobs = {}
        super().__init__(_Handler, "hub")

    def add(self, name, files, *, kind="model", restricted="", branch="main"):
        """Commit a folder, or contents by path, to a repository; return the commit."""
        if isinstance(files, pathlib.Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in sorted(files.rglob("*"))
                if path.is_file()
            }
        files = {
            path: content if isinstance(content, bytes) else content.encode()
            for path, content in files.items()
        }
        commits = self._commits.setdefault((kind, name), [])
        content = repr((len(commits), sorted(files.items()))).encode()
        commit = hashlib.sha1(content).hexdigest()
        commits.append((commit, files))
        self._branches.setdefault((kind, name), {})[branch] = commit
        self._restricted[kind, name] = restricted
        return commit

    def files(self, name, revision="main", kind="model"):
        """Return commit and contents by path of a repository; None if there is none."""
        branches = self._branches.get((kind, name), {})
        commit = branches.get(revision, revision)
        return next(
            (c for c in self._commits.get((kind, name), []) if c[0] == commit), None
        )

    def fetched(self):
        """Return the bytes of each file whose content was sent, by its path."""
        sent = {}
        for method, path, size in self.requests:
            if method == "GET" and (match := RESOLVE.fullmatch(path)):
                sent[match["path"]] = sent.get(match["path"], 0) + size
        return sent

    def refusal(self, kind, name, token):
        """Return status and headers if a user may not read a repository."""
        if token is not None and token not in self.tokens:
            return 401, {
                "X-Error-Message": "Invalid credentials in Authorization header"
            }
        missing = {"X-Error-Code": "RepoNotFound"}
        if (kind, name) not in self._commits:
            return 401 if token is None else 404, missing
        restricted = self._restricted[kind, name]
        if restricted and token is None:
            gated = 403, {"X-Error-Code": "GatedRepo"}
            return gated if restricted == "gated" else (401, missing)
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._serve()

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def do_PUT(self):
        self._serve()

    def _serve(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._read_chunks()
        if self.hub.failure:
            return self._answer(self.hub.failure, b"the hub is down")
        if self.command in ("POST", "PUT"):
            return self._write(path, body)
        if match := RESOLVE.fullmatch(path):
            return self._resolve(match)
        if path == "/api/whoami-v2":
            if self._token() in self.hub.tokens:
                return self._json({"type": "user", "name": "me"})
            return self._answer(401, b"")
        if match := REPOSITORY_API.fullmatch(path):
            return self._describe(match)
        return self._answer(404, b"")

    def _read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _token(self):
        value = self.headers.get("Authorization")
        return value.removeprefix("Bearer ") if value else None

    def _repository(self, kind, name, revision):
        """Return commit and files; answer with an error and return None otherwise."""
        if refusal := self.hub.refusal(kind, name, self._token()):
            status, headers = refusal
            self._answer(status, b"", headers)
            return None
        found = self.hub.files(name, revision, kind)
        if found is None:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return found

    def _describe(self, match):
        revision = match["revision"] or "main"
        found = self._repository(match["kind"], match["name"], revision)
        if found is None:
            return None
        commit, files = found
        if match["call"] == "tree":
            return self._json([_entry(path, files[path]) for path in files])
        siblings = [{"rfilename": path} for path in files]
        return self._json({"id": match["name"], "sha": commit, "siblings": siblings})

    def _resolve(self, match):
        kind = "dataset" if match["kind"] else "model"
        found = self._repository(kind, match["name"], match["revision"])
        if found is None:
            return None
        commit, files = found
        content = files.get(match["path"])
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{_entry(match["path"], content)["oid"]}"',
            "Accept-Ranges": "bytes",
        }
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or len(content) - 1)
            last = min(last, len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], headers)
        return self._answer(200, content, headers)

    def _write(self, path, body):
        if self._token() not in self.hub.tokens and not path.startswith("/blobs/"):
            return self._answer(401, b"Invalid username or password.")
        if self._token() in self.hub.read_only:
            return self._answer(403, b"")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if self.hub.files(name) is None:
                self.hub.add(name, {})
            return self._json({"url": f"{self.hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.startswith("/blobs/"):
            self.hub.blobs[path.removeprefix("/blobs/")] = body
            return self._answer(200, b"")
        if LFS_BATCH.fullmatch(path):
            return self._json({"transfer": "basic", "objects": self._uploads(body)})
        match = REPOSITORY_API.fullmatch(path)
        if match and match["call"] == "preupload":
            return self._json({"files": _upload_modes(json.loads(body)["files"])})
        if match and match["call"] == "commit":
            return self._commit(match["name"], body)
        return self._answer(404, b"")

    def _uploads(self, body):
        return [
            {
                "oid": file["oid"],
                "size": file["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/blobs/{file['oid']}"}},
            }
            for file in json.loads(body)["objects"]
        ]

    def _commit(self, name, body):
        _, files = self.hub.files(name)
        files = dict(files)
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        commit = self.hub.add(name, files)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        return self._json({"commitOid": commit, "commitUrl": url})

    def _json(self, content):
        headers = {"Content-Type": "application/json"}
        return self._answer(200, json.dumps(content).encode(), headers)

    def _answer(self, status, content, headers=None):
        sent = b"" if self.command == "HEAD" else content
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, len(sent)))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(sent)


def _entry(path, content):
    """Return the listing's entry of a file; large formats are kept in LFS."""
    oid = hashlib.sha1(content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(LFS_SUFFIXES):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        entry["oid"] = sha256
    return entry


def _upload_modes(files):
    return [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
            "shouldIgnore": False,
        }
        for file in files
    ]


@contextlib.contextmanager
def hub_server(monkeypatch, cache):
    """Run a hub and point `huggingface_hub` of this process at it.

    Its constants are read from the environment when it is imported, which the tests of
    the command line do in processes of their own.
    """
    from huggingface_hub import constants

    from blip2_jax.data import hub

    server = HubServer()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url
        + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "")
    hub.forget_repositories()
    try:
        yield server
    finally:
        hub.forget_repositories()
        server.close()
