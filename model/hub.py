"""The networks' weights: where they come from, what they may be used for, and whether they are here.

`networks.py` names every file that is needed and no other. huggingface_hub speaks with the hub, or with its mirror or
offline, as its own environment variables say (HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, HF_HUB_CACHE), and files lie in
its cache, where other programs find them too. What is added here: everything is asked and checked before the first
byte is downloaded, downloads go on after the process was killed, and a file that lacks its hash is never used.

What was fetched and which licences were accepted is kept as small JSON files below `home()`. Loading goes through
`locate`, which hands out only files that were checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BadWeights, MissingPart
from .networks import File, Network, networks
from .tensor_file import check_tensors, read_safetensors_header

FORMAT = "longtake-weights/1"
SPARE_BYTES = 1_000_000_000  # stays free on the disk


# ---- what is on record --------------------------------------------------------------------------------------------


def home() -> Path:
    """Folder of the records: LONGTAKE_HOME, else longtake in the user's data folder."""
    if told := os.environ.get("LONGTAKE_HOME"):
        return Path(told)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "longtake"


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """That the user of this machine accepted a licence."""

    network: str
    licence: str
    url: str
    revision: str
    accepted_at: str  # UTC
    software_version: str


@dataclass(frozen=True, kw_only=True)
class Held:
    """A checked file."""

    location: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was fetched of a network."""

    network: str
    repo: str
    revision: str | None  # the commit; None for files of a folder whose hashes are not on record
    pinned: str  # the commit that was asked for by default then
    source: str  # "hub" or "folder"
    files: Mapping[str, Held]  # by path in the repository
    recorded_at: str  # UTC
    software_version: str


def accept(network: Network) -> Acceptance:
    """Record that the user accepts the network's licence; once is enough."""
    if known := acceptance(network):
        return known
    made = Acceptance(
        network=network.name,
        licence=network.licence.name,
        url=network.licence.url,
        revision=network.revision,
        accepted_at=_now(),
        software_version=metadata.version("longtake"),
    )
    _write(home() / "licences" / f"{network.name}.json", asdict(made))
    return made


def acceptance(network: Network) -> Acceptance | None:
    """The recorded acceptance of the network's present licence."""
    tree = _read(home() / "licences" / f"{network.name}.json")
    known = None if tree is None else Acceptance(**tree)
    return known if known is not None and known.licence == network.licence.name else None


def record(network: Network) -> Record | None:
    """What was fetched of the network and is still there, with the sizes it had."""
    tree = _read(home() / "weights" / f"{network.name}.json")
    if tree is None:
        return None
    files = {path: Held(**held) for path, held in tree.pop("files").items()}
    moved = tree["pinned"] != network.revision or tree["repo"] != network.repo
    gone = any(_size(Path(held.location)) != held.num_bytes for held in files.values())
    incomplete = moved or gone or files.keys() != {file.path for file in network.files}
    return None if incomplete else Record(files=files, **tree)


def forget(network: Network) -> None:
    """Drop the record: the next `fetch` checks every file anew."""
    (home() / "weights" / f"{network.name}.json").unlink(missing_ok=True)


def locate(name: str) -> dict[str, Path]:
    """Where a network's files are, by their path in its repository.

    Raises:
        MissingPart: they have not been fetched, or their licence was not accepted; says the command to give.
    """
    (network,) = networks([name])
    check_licence(network)
    known = record(network)
    if known is None:
        raise MissingPart(f"the weights of {name} are not here: longtake weights fetch {name}")
    return {path: Path(held.location) for path, held in known.files.items()}


def provenance(name: str) -> dict[str, str | None]:
    """What a manifest says of a network: repository, revision, hash, licence and when it was accepted.

    The hash is the SHA-256 of the lines "sha256  path", sorted by path: one value for all files.

    Raises:
        MissingPart: as `locate`.
    """
    locate(name)
    (network,) = networks([name])
    known, accepted = record(network), acceptance(network)
    assert known is not None
    lines = "".join(f"{held.sha256}  {path}\n" for path, held in sorted(known.files.items()))
    return {
        "network": name,
        "repo": network.repo,
        "revision": known.revision,
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "licence": network.licence.name,
        "licence_accepted_at": accepted.accepted_at if accepted else None,
    }


# ---- what a machine must have ---------------------------------------------------------------------------------------


def check_licence(network: Network) -> None:
    """Raises MissingPart where a licence that restricts the use was not accepted."""
    licence = network.licence
    if licence.must_accept and acceptance(network) is None:
        raise MissingPart(
            f"{network.name} is under {licence.name}: {licence.words} ({licence.url}). "
            f"Accept it once: longtake weights fetch {network.name} --accept-licence"
        )


def check_room(num_bytes: int) -> None:
    """Raises MissingPart where the hub's cache has no room for this many more bytes."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    free = free_bytes(folder)
    if num_bytes and num_bytes + SPARE_BYTES > free:
        raise MissingPart(
            f"{in_words(num_bytes)} are to be downloaded into {folder}, where {in_words(free)} are free and "
            f"{in_words(SPARE_BYTES)} stay so. Free some, or set HF_HUB_CACHE to a folder on a larger disk"
        )


def free_bytes(folder: Path) -> int:
    """Room for the user in the file system that has, or will have, this folder."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def check_memory(network: Network) -> None:
    """Raises MissingPart where neither a GPU nor the machine has the memory that the network takes."""
    vram, ram = machine_memory()
    if max(vram, ram) < network.memory_bytes:
        gpu = f"the largest GPU has {in_words(vram)}" if vram else "there is no GPU"
        raise MissingPart(
            f"{network.name} takes about {in_words(network.memory_bytes)} of memory; {gpu}, and the machine has "
            f"{in_words(ram)}. To fetch it for another machine: --for-another-machine"
        )


def machine_memory() -> tuple[int, int]:
    """Bytes of the GPU with the most memory (0 without one), and of the machine or this container."""
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    vram = max((torch.cuda.get_device_properties(i).total_memory for i in devices), default=0)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (told := limit.read_text().strip()).isdigit():
        ram = min(ram, int(told))
    return vram, ram


def in_words(num_bytes: int) -> str:
    """Such as 5.44 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} B"


# ---- fetching -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as the hub has it."""

    file: File
    num_bytes: int
    etag: str
    cached: Path | None  # in the hub's cache already, not yet checked
    part: Path  # what an earlier run got of it
    part_bytes: int

    @property
    def missing_bytes(self) -> int:
        return 0 if self.cached else self.num_bytes - self.part_bytes


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network that is to be fetched: asked for, not yet downloaded."""

    network: Network
    revision: str
    remotes: tuple[Remote, ...]

    @property
    def missing_bytes(self) -> int:
        return sum(remote.missing_bytes for remote in self.remotes)


def here(network: Network, revision: str | None = None) -> dict[str, Path]:
    """The network's files that are in the hub's cache, by path; nothing is asked of the hub, nothing is checked."""
    from huggingface_hub import try_to_load_from_cache

    found = {}
    for file in network.files:
        path = try_to_load_from_cache(network.repo, file.path, revision=revision or network.revision)
        if isinstance(path, str):
            found[file.path] = Path(path)
    return found


def ask(network: Network, revision: str | None = None) -> Job:
    """What the hub has of the network's files; downloads nothing.

    Args:
        revision: a commit, branch or tag in place of the pinned one. It is resolved to its commit here.

    Raises:
        MissingPart: no network, offline mode, no right to read the repository.
        BadWeights: no such repository, revision or file, or files that are not those on record.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    commit, remotes = revision or network.revision, []
    for file in network.files:
        with _told(network, file):
            found = get_hf_file_metadata(hf_hub_url(network.repo, file.path, revision=commit), headers=_headers())
        where = f"{network.name}: {file.path} of {network.repo}"
        if found.commit_hash is None or found.size is None or not re.fullmatch(r"\w[\w.-]{7,127}", found.etag or ""):
            raise BadWeights(f"{where}: the server does not state commit, size and hash; HF_ENDPOINT names no hub")
        if not remotes and not _is_commit(commit):
            commit = found.commit_hash
        if found.commit_hash != commit:
            raise BadWeights(
                f"{where}: asked for commit {commit}, got {found.commit_hash}. Is HF_ENDPOINT a full mirror?"
            )
        if commit == network.revision and file.exact and found.size != file.num_bytes:
            raise BadWeights(f"{where}: the server has {found.size} bytes, on record are {file.num_bytes}")
        assert found.etag is not None
        part = _part(network, found.etag)
        remotes.append(
            Remote(
                file=file,
                num_bytes=found.size,
                etag=found.etag,
                cached=here(network, commit).get(file.path),
                part=part,
                part_bytes=min(_size(part) or 0, found.size),
            )
        )
    return Job(network=network, revision=commit, remotes=tuple(remotes))


def download(job: Job) -> Record:
    """Get what is missing, check every file, and record them.

    What was got stays when this is interrupted, and the next call goes on there. A file that turns out wrong is
    removed, also one that was in the cache before.

    Raises:
        MissingPart: the network or the room on the disk ended on the way.
        BadWeights: a file does not have its hash.
    """
    network, held = job.network, {}
    for remote in job.remotes:
        known = remote.file.sha256 if job.revision == network.revision else None
        expected = known or remote.etag
        kept = None
        if remote.cached is not None:
            try:
                kept = _check(remote.cached, remote.num_bytes, expected)
            except BadWeights:
                _discard(network, remote.cached)
        if kept is None:
            with _told(network, remote.file):
                kept = _download_file(network, job.revision, remote, expected)
        held[remote.file.path] = kept
    return _record(network, "hub", job.revision, held)


def adopt_cached(network: Network) -> Record | None:
    """Check and record files that are in the hub's cache, without the hub; None where some are not there.

    Raises:
        BadWeights: a file does not have its size or hash.
    """
    found = here(network)
    return None if len(found) < len(network.files) else _adopt(network, "hub", found)


def adopt_folder(network: Network, folder: Path) -> Record:
    """Check and record files of a folder, where they stay.

    Args:
        folder: holds the files as the repository does, or below OWNER/REPOSITORY or REPOSITORY.

    Raises:
        BadWeights: a file is not there, or does not have its size or hash.
    """
    roots = [folder / network.repo, folder / network.repo.partition("/")[2], folder]
    for root in roots:
        if all((root / file.path).is_file() for file in network.files):
            return _adopt(network, "folder", {file.path: (root / file.path).absolute() for file in network.files})
    lacking = ", ".join(file.path for file in network.files if not (folder / file.path).is_file())
    raise BadWeights(f"{network.name}: {folder} has no {lacking} (nor do {roots[0]} and {roots[1]} have all files)")


def _adopt(network: Network, source: str, found: Mapping[str, Path]) -> Record:
    held = {}
    for file in network.files:
        path = found[file.path]
        held[file.path] = _check(path, file.num_bytes if file.exact else None, file.sha256)
        if path.suffix == ".safetensors":
            read_safetensors_header(path)
    known = source == "hub" or all(file.sha256 for file in network.files)
    return _record(network, source, network.revision if known else None, held)


def _record(network: Network, source: str, revision: str | None, held: Mapping[str, Held]) -> Record:
    made = Record(
        network=network.name,
        repo=network.repo,
        revision=revision,
        pinned=network.revision,
        source=source,
        files=dict(held),
        recorded_at=_now(),
        software_version=metadata.version("longtake"),
    )
    _write(home() / "weights" / f"{network.name}.json", asdict(made))
    return made


def _discard(network: Network, path: Path) -> None:
    """Remove a file from the hub's cache, and what it links to there."""
    blob = path.resolve()
    path.unlink()
    if blob.parent == _blobs(network).resolve():
        blob.unlink(missing_ok=True)


def _download_file(network: Network, revision: str, remote: Remote, expected: str) -> Held:
    """Download into the part, check it, make it a blob of the hub's cache, and let huggingface_hub link it there.

    huggingface_hub's own download starts anew in every process: its partial files have random names.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get

    blob = remote.part.with_name(remote.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with open(remote.part, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a process that fetches the same file is waited for
        if not blob.exists():
            if file.seek(0, os.SEEK_END) > remote.num_bytes:
                file.truncate(0)
            http_get(
                hf_hub_url(network.repo, remote.file.path, revision=revision),
                file,
                resume_size=file.seek(0, os.SEEK_END),
                headers=_headers() | {"Accept-Encoding": "identity"},
                expected_size=remote.num_bytes,
                displayed_filename=f"{network.name}: {remote.file.path}",
            )
            file.flush()
            os.fsync(file.fileno())
            try:
                checked = _check(remote.part, remote.num_bytes, expected)
            except BadWeights:
                file.truncate(0)
                raise
            remote.part.rename(blob)
        else:
            checked = _check(blob, remote.num_bytes, expected)
            remote.part.unlink(missing_ok=True)
    linked = hf_hub_download(network.repo, remote.file.path, revision=revision)
    return replace(checked, location=linked)


def part_bytes(network: Network, file: File) -> int:
    """How much of a file an earlier run got; 0 where that is not known before the hub is asked."""
    return 0 if file.sha256 is None else _size(_part(network, file.sha256)) or 0


def _part(network: Network, etag: str) -> Path:
    return _blobs(network) / f"{etag}.longtake-part"


def _blobs(network: Network) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{network.repo.replace('/', '--')}" / "blobs"


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="longtake", library_version=metadata.version("longtake"))


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@contextmanager
def _told(network: Network, file: File) -> Iterator[None]:
    """Turns the errors of huggingface_hub into words; never shows what it sent, a token might be in it."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise MissingPart(
            f"{network.name} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it. "
            f"Unset that, or copy the files and give their folder: longtake weights fetch {network.name} --from DIR"
        ) from error
    except errors.HfHubHTTPError as error:
        _tell_status(network, file, error, error.response.status_code, constants.ENDPOINT)
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # pyright: ignore[reportPrivateImportUsage]
        raise MissingPart(
            f"{network.name}: {constants.ENDPOINT} cannot be reached or broke off ({type(error).__name__}). What was "
            f"downloaded stays: the same command goes on there. A mirror is named by HF_ENDPOINT, a proxy by "
            f"HTTPS_PROXY; without a network: --from DIR"
        ) from error


def _tell_status(network: Network, file: File, error: Exception, status: int, endpoint: str) -> NoReturn:
    from huggingface_hub import errors

    what = f"{network.name}: {endpoint}/{network.repo}"
    token = "set HF_TOKEN, or log in with `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        raise MissingPart(f"{what} is gated: ask for access on that page, then {token}") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise BadWeights(f"{what} has no such revision. Another one: --revision COMMIT (main is the newest)") from error
    if isinstance(error, errors.EntryNotFoundError):
        raise BadWeights(f"{what} has no file {file.path} at that revision") from error
    if status in (401, 403):
        raise MissingPart(f"{what} may not be read, or is not there ({status}): {token}") from error
    if status == 404:
        raise BadWeights(f"{what} is not there (404). Does HF_ENDPOINT name the hub or a full mirror?") from error
    raise MissingPart(f"{what} answers {status}. What was downloaded stays: try the same command later") from error


# ---- checking -------------------------------------------------------------------------------------------------------


def verify(network: Network, shapes: Mapping[str, Mapping[str, Sequence[int]]] | None = None) -> list[str]:
    """Read every recorded file again; a network with problems is forgotten, so that fetching repairs it.

    Args:
        shapes: by file, the names and shapes of the tensors that it must hold, for safetensors files.

    Returns:
        The problems in words; empty where all is well.
    """
    known = record(network)
    if known is None:
        return [f"{network.name} is not here: longtake weights fetch {network.name}"]
    problems = []
    for path, held in known.files.items():
        location = Path(held.location)
        try:
            _check(location, held.num_bytes, held.sha256)
            if location.suffix == ".safetensors":
                check_tensors(location, (shapes or {}).get(path))
        except (BadWeights, OSError) as error:
            problems.append(str(error))
    if problems:
        forget(network)
    return problems


def _check(path: Path, num_bytes: int | None, expected: str | None) -> Held:
    """The file, where it has this size and hash; raises BadWeights.

    Args:
        expected: a SHA-256, or the SHA-1 that git has for a small file; other entity tags tell nothing.
    """
    size = path.stat().st_size
    if num_bytes is not None and size != num_bytes:
        raise BadWeights(f"{path} has {size} bytes, not {num_bytes}. Fetch it again")
    digest = _digest(path, hashlib.sha256())
    if expected is not None and len(expected) == 64 and digest != expected:
        raise BadWeights(
            f"{path} has the SHA-256 {digest}, not {expected}: it is damaged or another file. Fetch it again"
        )
    if expected is not None and len(expected) == 40:
        found = _digest(path, hashlib.sha1(b"blob %d\0" % size))
        if found != expected:
            raise BadWeights(f"{path} has git's hash {found}, not {expected}. Fetch it again")
    return Held(location=str(path), num_bytes=size, sha256=digest)


def _digest(path: Path, hasher: Any) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hasher).hexdigest()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(path: Path, tree: Mapping[str, Any]) -> None:
    """Whole or not at all, whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    fresh.write_text(json.dumps({"format": FORMAT, **tree}, indent=1), encoding="utf-8")
    fresh.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    """The record; None where there is none in this format: what is not on record is asked and checked anew."""
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return tree if isinstance(tree, dict) and tree.pop("format", None) == FORMAT else None
