"""A Hub on loopback: enough of the Hub's HTTP API to push and load models, data sets and Spaces in tests, offline.

`huggingface_hub` reads HF_ENDPOINT when it is first imported, so code that is to talk to the fake Hub runs in a
process of its own: `hub.run("from hf_xmc import XMCDataset; ...")`. What was pushed is then in `hub.files(repo_id,
repo_type)`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from forks import Forks

LFS_SUFFIXES = (".safetensors", ".parquet", ".faiss", ".bin", ".npz", ".npy", ".arrow", ".gz", ".zip", ".png")
WITHOUT_US = "import sys; sys.modules |= dict.fromkeys(['hf_xmc', 'sentence_transformers'])\n"
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class FakeRepo:
    """A repo as its list of commits: (sha, path -> content), the last of which is `main`."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        listing = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        sha = hashlib.sha1(f"{len(self.commits)} {listing}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        if revision in ("main", "refs/heads/main", "HEAD"):
            return self.commits[-1]
        found = [commit for commit in self.commits if commit[0] == revision]
        if not found:
            raise Refusal(404, f"no revision {revision}", "RevisionNotFound")
        return found[0]


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class FakeHub:
    """The server; use it as a context manager, or through the fixture `fake_hub`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repos: dict[tuple[str, str], FakeRepo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.forks = Forks(["hf_xmc", "toys"], self.environment(), home.parent)
        self.bare_forks = Forks(["transformers.pipelines"], self.environment(), home.parent)

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.forks.close()
        self.bare_forks.close()
        self.server.shutdown()
        self.server.server_close()

    def empty(self) -> None:
        """No repo, and nothing of one in the cache."""
        self.repos.clear()
        self.lfs.clear()
        shutil.rmtree(self.home, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """The environment of a process whose Hub this is, with a cache of its own."""
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("HF_") and key not in offline and not key.lower().endswith("_proxy")
        }
        return inherited | {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "x",
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "TRITON_INTERPRET": "1",  # where kernels are asked for: there need not be a GPU
        }

    def run(self, code: str, *arguments: object) -> str:
        """Runs Python code in a process of its own; returns its stdout, raises with its stderr where it fails."""
        return self.forks.run(code, *arguments)

    def run_bare(self, code: str, *arguments: object) -> str:
        """The same in a process that has no hf_xmc and no sentence-transformers."""
        return self.bare_forks.run(WITHOUT_US + code, *arguments)

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """Path -> content of the last commit."""
        return self.repos[repo_type, repo_id].commits[-1][1]

    def add_repo(self, repo_id: str, files: dict[str, bytes], repo_type: str = "model") -> None:
        """Makes a repo without an upload."""
        self.repos[repo_type, repo_id] = FakeRepo()
        self.repos[repo_type, repo_id].commit(files)


@pytest.fixture(scope="session")
def one_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    with FakeHub(tmp_path_factory.mktemp("hub") / "hf_home") as hub:
        yield hub


@pytest.fixture
def fake_hub(one_hub: FakeHub) -> FakeHub:
    """An empty Hub."""
    one_hub.empty()
    return one_hub


@pytest.fixture(scope="session")
def forks(one_hub: FakeHub) -> Forks:
    """Processes that have imported the package, and have no other Hub than the fake one."""
    return one_hub.forks


@pytest.fixture(scope="session")
def bare_forks(one_hub: FakeHub) -> Forks:
    """Processes that have imported transformers, and nothing of ours."""
    return one_hub.bare_forks


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def _described(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if _is_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _described_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40}


def _folders(files: dict[str, bytes]) -> set[str]:
    return {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        body = self._body()
        self.hub.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        try:
            self._route(unquote(url.path), parse_qs(url.query), body)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)} if refusal.code else {}
            self._json({"error": str(refusal)}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"Content-Type": "application/json"} | (headers or {}), json.dumps(content).encode())

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path == "/api/whoami-v2":
            account = {"type": "user", "id": "1", "name": "user", "fullname": "User", "orgs": []}
            self._json(account | {"auth": {"accessToken": {"role": "write"}}})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.startswith("/lfs/"):
            self._lfs_object(path.removeprefix("/lfs/"), body)
        elif match := re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/(.*))?", path):
            self._api(match[1], match[2], match[3] or "", query, body)
        elif match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._lfs_batch(json.loads(body))
        elif match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+|refs/heads/main)/(.+)", path):
            self._resolve(match[1] or "model", match[2], match[3], match[4])
        else:
            raise Refusal(404, f"no such address: {self.command} {path}", "EntryNotFound")

    def _repo(self, repo_type: str, repo_id: str) -> FakeRepo:
        if (repo_type, repo_id) not in self.hub.repos:
            raise Refusal(404, f"no {repo_type} {repo_id}", "RepoNotFound")
        return self.hub.repos[repo_type, repo_id]

    def _repo_url(self, repo_type: str, repo_id: str) -> str:
        return f"{self.hub.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"

    def _create(self, wanted: dict[str, Any]) -> None:
        repo_type, repo_id = wanted.get("type") or "model", f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        status = 409 if (repo_type, repo_id) in self.hub.repos else 200
        self.hub.repos.setdefault((repo_type, repo_id), FakeRepo())
        self._json({"url": self._repo_url(repo_type, repo_id), "name": repo_id, "id": repo_id}, status)

    def _api(self, repo_type: str, repo_id: str, action: str, query: dict[str, list[str]], body: bytes) -> None:
        repo = self._repo(repo_type, repo_id)
        verb, _, rest = action.partition("/")
        if verb in ("", "revision"):
            self._json(self._info(repo_id, *repo.at(rest or "main")))
        elif verb == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1][0]}
            self._json({"branches": [main], "converts": [], "tags": [], "pullRequests": []})
        elif verb == "commits":
            told = {"title": "", "message": "", "authors": [], "date": DATE}
            self._json([{"id": sha} | told for sha, _ in repo.commits])
        elif verb == "tree":
            revision, _, folder = rest.partition("/")
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json(self._tree(repo.at(revision)[1], folder, recursive))
        elif verb == "paths-info":
            form = "json" not in self.headers.get("Content-Type", "")
            paths = parse_qs(body.decode()).get("paths", []) if form else json.loads(body)["paths"]
            files = repo.at(rest)[1]
            entries = [_described(path, files[path]) for path in paths if path in files]
            entries += [_described_folder(path) for path in paths if path in _folders(files)]
            self._json(entries)
        elif verb == "preupload":
            modes = {file["path"]: "lfs" if _is_lfs(file["path"]) else "regular" for file in json.loads(body)["files"]}
            told = {"shouldIgnore": False, "oid": None}
            self._json({"files": [{"path": path, "uploadMode": mode} | told for path, mode in modes.items()]})
        elif verb == "commit":
            sha = repo.commit(self._committed(repo.commits[-1][1], body))
            url = f"{self._repo_url(repo_type, repo_id)}/commit/{sha}"
            self._json({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": None})
        else:
            raise Refusal(404, f"no such address: {action}", "EntryNotFound")

    def _info(self, repo_id: str, sha: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(files.items())]
        info = {"_id": "1", "id": repo_id, "author": repo_id.split("/")[0], "sha": sha, "siblings": siblings}
        info |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return info | {"lastModified": DATE, "createdAt": DATE, "usedStorage": 0}

    def _tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        if folder and folder not in _folders(files):
            raise Refusal(404, f"no folder {folder}", "EntryNotFound")
        entries = [_described(path, data) for path, data in sorted(files.items()) if path.startswith(prefix)]
        entries += [_described_folder(path) for path in sorted(_folders(files)) if path.startswith(prefix)]
        return [entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix)]

    def _committed(self, files: dict[str, bytes], body: bytes) -> dict[str, bytes]:
        files = dict(files)
        for operation in map(json.loads, body.splitlines()):
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "copyFile":
                files[value["path"]] = files[value["srcPath"]]
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: data for path, data in files.items() if not path.startswith(folder)}
        return files

    def _lfs_batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            upload = {} if item["oid"] in self.hub.lfs else {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            objects.append({"oid": item["oid"], "size": item["size"]} | ({"actions": upload} if upload else {}))
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_object(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, f"the content is not {oid}")
        self.hub.lfs[oid] = body
        self._send(200, {})

    def _resolve(self, repo_type: str, repo_id: str, revision: str, path: str) -> None:
        sha, files = self._repo(repo_type, repo_id).at(revision)
        if path not in files:
            raise Refusal(404, f"no file {path}", "EntryNotFound")
        data, described = files[path], _described(path, files[path])
        headers = {"X-Repo-Commit": sha, "ETag": f'"{described["oid"]}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if "lfs" in described:
            oid, size = described["lfs"]["oid"], described["size"]
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(size), "ETag": f'"{oid}"'}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and data:
            start = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
            stop = min(int(wanted[2]) + 1, len(data)) if wanted[1] and wanted[2] else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self._send(206, headers, data[start:stop])
        else:
            self._send(200, headers, data)
