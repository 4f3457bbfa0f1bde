"""A server on loopback that speaks like the Hugging Face hub: dataset repositories, read, listed and committed to.

It has the endpoints that HfFileSystem and HfApi of huggingface_hub ask for, and what it answers is what that client's
code and the hub's documentation say. Where these say nothing, a comment does. Files lie in a folder by their SHA-256,
the history of commits is in memory. Xet is not offered: clients have to be told HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from .loopback import LoopbackServer, QuietHandler

Answered = tuple[int, dict[str, str], bytes]

TOKEN = "hf_nobody"
# Which files are LFS is decided by .gitattributes, with which the hub begins a dataset. These are some of it.
_LFS_SUFFIXES = (".parquet", ".tar", ".zip", ".gz", ".bin", ".npy", ".npz", ".arrow", ".safetensors")
_LFS_SUFFIXES += (".jpg", ".jpeg", ".png", ".webp", ".tiff", ".gif")
_LFS_BYTES = 10 << 20  # larger files are LFS, whatever their name
_SHORT_OID = 7
_PRECONDITION = "A commit has happened since. Please refresh and try again."
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class File:
    size: int
    sha256: str
    oid: str  # git's, of the content or, with LFS, of the pointer
    is_lfs: bool
    commit: str = ""  # the last one that touched it


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    time_s: float
    tree: dict[str, File]


@dataclass
class Repository:
    commits: list[Commit]  # the last one is the head of main
    tags: dict[str, str] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def find(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.head
        revision = self.tags.get(revision, revision)
        is_oid = len(revision) >= _SHORT_OID
        return next((each for each in self.commits if is_oid and each.oid.startswith(revision)), None)


class HubServer(LoopbackServer):
    """Repositories are made by `create`. `interfere` has the first word on every request."""

    def __init__(self, folder: Path, *, page_size: int = 1000, checks_parent: bool = True) -> None:
        self.repositories: dict[str, Repository] = {}
        self.page_size = page_size  # 1000 is the hub's
        self.checks_parent = checks_parent
        self.interfere: Callable[[Request], Answered | None] = lambda request: None
        self.loses_answers = 0  # of so many of the next commits, which are made all the same
        self.asked: Counter[str] = Counter()  # method and kind of what was asked for
        self.unknown: list[str] = []  # requests that this server knows nothing of
        self._folder = folder
        self._lock = threading.Lock()  # of a commit: the hub makes one after the other
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(_Handler)
        self._storage_url = self.url.replace("127.0.0.1", "localhost")

    def create(
        self,
        name: str,
        files: dict[str, bytes] | None = None,
        *,
        is_private: bool = False,
        is_gated: bool = False,
    ) -> Repository:
        """A dataset repository `name` (user/name) with a first commit."""
        tree = {path: self._file(data, path) for path, data in (files or {}).items()}
        # As the hub does.
        tree.setdefault(".gitattributes", self._file(b"*.parquet filter=lfs\n", ".gitattributes"))
        repository = self.repositories[name] = Repository([], {}, is_private, is_gated)
        self._add_commit(repository, "initial commit", tree)
        return repository

    def put(self, name: str, files: dict[str, bytes]) -> str:
        """A commit that somebody else makes; its oid."""
        with self._lock:
            repository = self.repositories[name]
            tree = repository.head.tree | {path: self._file(data, path) for path, data in files.items()}
            return self._add_commit(repository, "put", tree).oid

    def content(self, name: str, path: str) -> bytes:
        return self._read(self.repositories[name].head.tree[path])

    def answer(self, request: Request) -> Answered:
        self.asked[f"{request.method} {request.kind}"] += 1
        if (told := self.interfere(request)) is not None:
            return told
        match request.parts:
            case ["api", "validate-yaml"]:
                return _validate_yaml(request)
            case ["api", "datasets", user, name, *rest]:
                return self._api(request, f"{user}/{name}", rest)
            case ["datasets", user, name, "info", "lfs", "objects", "batch"]:
                return self._lfs_batch(request, f"{user}/{name.removesuffix('.git')}")
            case ["datasets", user, name, "resolve", revision, *path]:
                return self._resolve(request, f"{user}/{name}", revision, "/".join(path))
            case ["lfs", sha256] if request.method == "PUT":
                return self._take(request, sha256)
            case ["lfs", sha256]:
                return _part(request, partial(self._path(sha256).read_bytes), {"ETag": f'"{sha256}"'})
        self.unknown.append(f"{request.method} {request.path}")
        return _error(404, "", "no such endpoint")

    def _api(self, request: Request, name: str, rest: list[str]) -> Answered:
        is_writing = rest[:1] in (["preupload"], ["commit"])
        if (refused := self._refuse(request, name, is_writing=is_writing)) is not None:
            return refused
        kind, revision = (rest + ["revision", "main"])[:2] if len(rest) != 1 else (rest[0], "main")
        repository = self.repositories[name]
        commit = repository.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        match kind:
            case "revision":
                siblings = [{"rfilename": path} for path in commit.tree]
                told = {"id": name, "sha": commit.oid, "private": repository.is_private}
                return _json(told | {"gated": False, "siblings": siblings, "tags": []})
            case "tree":
                return self._tree(request, commit, "/".join(rest[2:]), repository)
            case "paths-info":
                asked = parse_qs(request.body.decode(), keep_blank_values=True)
                is_expanded = asked.get("expand", ["false"])[0].lower() == "true"
                entries = [each for path in asked["paths"] if (each := _entry_at(commit.tree, path))]
                return _json([_describe(repository, *each, is_expanded=is_expanded) for each in entries])
            case "preupload":
                return _preupload(request, commit)
            case "commit":
                return self._commit(request, name, revision)
        self.unknown.append(f"{request.method} {request.path}")
        return _error(404, "", "no such endpoint")

    def _refuse(self, request: Request, name: str, *, is_writing: bool) -> Answered | None:
        """For all but who has the token a private repository is none. Who has none is told 401 of it and of one that
        does not exist: so says a comment of the client (`hf_raise_for_status`)."""
        repository = self.repositories.get(name)
        is_known = request.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.is_private and not is_known):
            return _error(404 if is_known else 401, "RepoNotFound", "Repository not found")
        if repository.is_gated:
            return _error(403 if is_known else 401, "GatedRepo", f"Access to dataset {name} is restricted")
        if is_writing and not is_known:
            # On https the client takes any 401 for RepositoryNotFoundError.
            return _error(401, "RepoNotFound", "Invalid username or password.")
        return None

    def _tree(self, request: Request, commit: Commit, folder: str, repository: Repository) -> Answered:
        is_recursive = request.query.get("recursive") == "true"
        is_expanded = request.query.get("expand") == "true"
        if folder and not isinstance((_entry_at(commit.tree, folder) or ("", None))[1], str):
            return _error(404, "EntryNotFound", f"{folder} does not exist on this revision")
        entries = list(_below(commit.tree, folder, is_recursive=is_recursive))
        size = min(self.page_size, 50) if is_expanded else self.page_size
        start = int(request.query.get("cursor", "0"))
        page = [
            _describe(repository, *each, is_expanded=is_expanded) for each in entries[start : start + size]
        ]
        headers = {}
        if start + size < len(entries):
            query = f"recursive={str(is_recursive).lower()}&expand={str(is_expanded).lower()}"
            target = f"{self.url}{request.target.partition('?')[0]}?{query}&cursor={start + size}"
            headers["Link"] = f'<{target}>; rel="next"'
        return _json(page, headers)

    def _commit(self, request: Request, name: str, revision: str) -> Answered:
        repository = self.repositories[name]
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        with self._lock:
            if revision != "main":  # a tag or a commit cannot be committed to
                return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            parent = header.get("parentCommit", "")
            # The status and its words as issues of huggingface/datasets (7708) and dataset-viewer (2206) quote them.
            if parent and self.checks_parent and not repository.head.oid.startswith(parent):
                return _json({"error": _PRECONDITION}, status=412)
            tree = dict(repository.head.tree)
            for line in lines[1:]:
                value, path = line["value"], line["value"]["path"]
                match line["key"]:
                    case "file":
                        tree[path] = self._file(base64.b64decode(value["content"]), path, is_lfs=False)
                    case "lfsFile" if self._path(value["oid"]).exists():
                        tree[path] = self._lfs_file(value["oid"])
                    case "deletedFile" if path in tree:
                        del tree[path]
                    case "deletedFolder" if any(each.startswith(f"{path}/") for each in tree):
                        tree = {each: file for each, file in tree.items() if not each.startswith(f"{path}/")}
                    case "deletedFile" | "deletedFolder":
                        return _error(404, "EntryNotFound", "A file with this name doesn't exist")
                    case _:
                        return _json({"error": f"cannot commit {path}"}, status=400)
            commit = self._add_commit(repository, header["summary"], tree)
            if self.loses_answers:
                self.loses_answers -= 1
                return _error(500, "", "Internal Error")
        url = f"{self.url}/datasets/{name}/commit/{commit.oid}"
        return _json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _add_commit(self, repository: Repository, title: str, tree: dict[str, File]) -> Commit:
        before = repository.commits[-1] if repository.commits else Commit("", "", 0, {})
        described = json.dumps([before.oid, title, sorted((path, file.oid) for path, file in tree.items())])
        oid = hashlib.sha1(described.encode()).hexdigest()
        tree = {
            path: file if before.tree.get(path) == file else replace(file, commit=oid)
            for path, file in tree.items()
        }
        commit = Commit(oid, title, time.time(), dict(sorted(tree.items())))
        repository.commits.append(commit)
        return commit

    def _lfs_batch(self, request: Request, name: str) -> Answered:
        if (refused := self._refuse(request, name, is_writing=True)) is not None:
            return refused
        objects: list[dict[str, Any]] = []
        for each in json.loads(request.body)["objects"]:
            told = {"oid": each["oid"], "size": each["size"]}
            if not self._path(each["oid"]).exists():
                told["actions"] = {"upload": {"href": f"{self.url}/lfs/{each['oid']}", "header": {}}}
            objects.append(told)
        return _json({"transfer": "basic", "objects": objects})

    def _take(self, request: Request, sha256: str) -> Answered:
        if hashlib.sha256(request.body).hexdigest() != sha256:
            return _error(400, "", "the content is not that of the oid")
        self._keep(request.body)
        return 200, {}, b""

    def _resolve(self, request: Request, name: str, revision: str, path: str) -> Answered:
        if (refused := self._refuse(request, name, is_writing=False)) is not None:
            return refused
        commit = self.repositories[name].find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        file = commit.tree.get(path)
        if file is None:
            return _error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if file.is_lfs:  # lies on another host, where the client sends no token and no HEAD
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            return 302, headers | {"Location": f"{self._storage_url}/lfs/{file.sha256}"}, b""
        return _part(request, partial(self._read, file), headers | {"ETag": f'"{file.oid}"'})

    def _file(self, data: bytes, path: str, *, is_lfs: bool | None = None) -> File:
        if is_lfs if is_lfs is not None else _is_lfs(path, len(data)):
            return self._lfs_file(self._keep(data))
        return File(len(data), self._keep(data), _git_oid(data), is_lfs=False)

    def _lfs_file(self, sha256: str) -> File:
        size = self._path(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return File(size, sha256, _git_oid(pointer.encode()), is_lfs=True)

    def _keep(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        temporary = self._path(f"{sha256}.{threading.get_ident()}")
        temporary.write_bytes(data)
        temporary.replace(self._path(sha256))
        return sha256

    def _read(self, file: File) -> bytes:
        return self._path(file.sha256).read_bytes()

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def parts(self) -> list[str]:
        """The parts of the path; a `/` that was encoded, as in `refs%2Fpr%2F1`, belongs to its part."""
        return [unquote(part) for part in urlsplit(self.target).path.strip("/").split("/")]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def kind(self) -> str:
        match self.parts:
            case ["api", "datasets", _, _, kind, *_]:
                return kind
            case ["api", "datasets", *_]:
                return "revision"
            case ["datasets", _, _, kind, *_]:
                return kind
        return self.parts[0] if self.parts[0] != "api" else self.parts[1]


def _entry_at(tree: dict[str, File], path: str) -> tuple[str, File | str] | None:
    """A file, or what stands for a folder."""
    if path in tree:
        return path, tree[path]
    return (path, path) if any(each.startswith(f"{path}/") for each in tree) else None


def _below(tree: dict[str, File], folder: str, *, is_recursive: bool) -> Iterator[tuple[str, File | str]]:
    """Folders first, then files, as the hub has them ("tree first", a comment of the client says)."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in tree.items() if path.startswith(prefix)}
    folders: dict[str, None] = {}
    for path in inside:
        parts = path[len(prefix) :].split("/")[:-1]
        for depth in range(1, len(parts) + 1) if is_recursive else range(1, min(2, len(parts) + 1)):
            folders[prefix + "/".join(parts[:depth])] = None
    yield from ((each, each) for each in folders)
    yield from (
        (path, file) for path, file in inside.items() if is_recursive or "/" not in path[len(prefix) :]
    )


def _describe(repository: Repository, path: str, entry: File | str, *, is_expanded: bool) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"type": "directory", "oid": _git_oid(path.encode()), "size": 0, "path": path}
    told: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.is_lfs:
        told["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
    if is_expanded:
        commit = next(each for each in repository.commits if each.oid == entry.commit)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(commit.time_s))
        told["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": moment}
    return told


def _preupload(request: Request, commit: Commit) -> Answered:
    files = []
    for each in json.loads(request.body)["files"]:
        path = each["path"]
        told = {"path": path, "shouldIgnore": False}
        told["uploadMode"] = "lfs" if _is_lfs(path, each["size"]) else "regular"
        # Of a file that is there what the client compares with its own (`CommitOperationAdd._local_oid`).
        if (file := commit.tree.get(path)) is not None:
            told["oid"] = file.sha256 if file.is_lfs else file.oid
        files.append(told)
    return _json({"files": files})


def _is_lfs(path: str, size: int) -> bool:
    return path.lower().endswith(_LFS_SUFFIXES) or size > _LFS_BYTES


def _validate_yaml(request: Request) -> Answered:
    """Whether the head of a card is YAML, and its `configs` a list; the hub looks at more."""
    _, found, rest = json.loads(request.body)["content"].partition("---\n")
    try:
        head = yaml.safe_load(rest.partition("\n---")[0]) if found else {}
        errors = [] if isinstance(head.get("configs", []), list) else ['"configs" must be an array']
    except yaml.YAMLError as error:
        errors = [f"bad YAML: {error}"]
    told = [{"message": each} for each in errors]
    return _json({"errors": told, "warnings": []}, status=400 if told else 200)


def _part(request: Request, read: Callable[[], bytes], headers: dict[str, str]) -> Answered:
    try:
        data = read()
    except FileNotFoundError:
        return _error(404, "", "no such object")
    headers = {"Content-Type": "application/octet-stream", **headers}
    asked = request.headers.get("range", "")
    if not asked:
        return 200, headers, data
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1 if first and last else len(data), len(data))
    if start >= len(data):
        return 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b""
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return 206, headers, data[start:stop]


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(content: Any, headers: dict[str, str] | None = None, *, status: int = 200) -> Answered:
    return status, _JSON | (headers or {}), json.dumps(content).encode()


def _error(status: int, code: str, message: str) -> Answered:
    headers = {"X-Error-Message": quote(message, safe=" ,.:'()/%")} | ({"X-Error-Code": code} if code else {})
    return _json({"error": message}, headers, status=status)


class _Handler(QuietHandler):
    def do_GET(self) -> None:
        world: HubServer = getattr(self.server, "world")  # noqa: B009
        body = self._read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, told, data = world.answer(Request(self.command, self.path, headers, body))
        self.send_response(status)
        for name, value in told.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_PUT = do_POST = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)
