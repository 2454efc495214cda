"""What `longtake weights` does: the networks one after another, as rows that are printed and an exit code.

Everything that can be known beforehand, for all networks named, is asked before anything is downloaded: licences,
memory, the hub's answer for each file, room on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import LongtakeError, MissingPart
from ..model import hub
from ..model.networks import NETWORKS, Network, networks

Row = dict[str, Any]


def list_networks() -> list[Row]:
    """Every network of the project, with licence and state."""
    return [_facts(network) for network in NETWORKS.values()]


def plan(names: Iterable[str]) -> tuple[list[Row], list[str]]:
    """What `fetch` would download, by the sizes on record; asks nothing of the hub.

    Returns:
        A row for each file, and in words what stands in the way: no room, not enough memory, a licence.
    """
    rows, obstacles, to_fetch = [], [], 0
    for network in networks(names):
        known, cached = hub.record(network), hub.here(network)
        for file in network.files:
            held = known.files.get(file.path) if known else None
            where = held.location if held else cached.get(file.path)
            missing = 0 if where else max(file.num_bytes - hub.part_bytes(network, file), 0)
            to_fetch += missing
            rows.append(
                {
                    "network": network.name,
                    "file": file.path,
                    "bytes": held.num_bytes if held else file.num_bytes,
                    "exact": file.exact or held is not None,
                    "size": _size(missing, file.exact),
                    "to_download": missing,
                    "location": None if where is None else str(where),
                }
            )
        obstacles += _obstacles(lambda n=network: hub.check_licence(n), lambda n=network: hub.check_memory(n))
    return rows, obstacles + _obstacles(lambda: hub.check_room(to_fetch))


def fetch(
    names: Iterable[str],
    *,
    folder: Path | None = None,
    revision: str | None = None,
    accept_licence: bool = False,
    for_another_machine: bool = False,
) -> list[Row]:
    """Get networks' files, or take those of a folder, and record them.

    Returns:
        A row for each network; `problem` is None where it is ready, else why not, in words, and `lacking` is true
        where the machine and not the files are the reason.

    Raises:
        MissingPart: something is lacking that can be known before; nothing was downloaded.
    """
    chosen = networks(names)
    if revision is not None and (len(chosen) > 1 or folder is not None):
        raise LongtakeError("--revision is one repository's: give it with one network, and without --from")
    if accept_licence:
        for network in chosen:
            hub.accept(network)
    checks = [lambda n=network: hub.check_licence(n) for network in chosen]
    if not for_another_machine:
        checks += [lambda n=network: hub.check_memory(n) for network in chosen]
    if obstacles := _obstacles(*checks):
        raise MissingPart("\n".join(obstacles))
    if folder is not None:
        return [_row(network, lambda n=network, f=folder: hub.adopt_folder(n, f)) for network in chosen]

    rows: dict[str, Row] = {}
    jobs = []
    for network in chosen:
        known = hub.record(network)
        if known is not None and revision in (None, known.revision):
            rows[network.name] = _result(network)
            continue
        try:
            jobs.append(hub.ask(network, revision))
        except MissingPart:
            if revision is not None or len(hub.here(network)) < len(network.files):
                raise
            rows[network.name] = _row(network, lambda n=network: hub.adopt_cached(n))
        except LongtakeError as error:
            rows[network.name] = _result(network, str(error))
    hub.check_room(sum(job.missing_bytes for job in jobs))
    for job in jobs:
        rows[job.network.name] = _row(job.network, lambda j=job: hub.download(j))
    return [rows[network.name] for network in chosen]


def verify(names: Iterable[str]) -> list[Row]:
    """Read the files of these networks again, or of all that are recorded; a row for each network, as of `fetch`."""
    chosen = networks(names) or [network for network in NETWORKS.values() if hub.record(network)]
    rows = []
    for network in chosen:
        problems = hub.verify(network)
        rows.append(_result(network, "; ".join(problems) or None))
    return rows


def exit_code(rows: Iterable[Row]) -> int:
    """0 all well, 1 some failed, 3 the machine lacks something."""
    failed = [row for row in rows if row["problem"]]
    return 3 if any(row["lacking"] for row in failed) else 1 if failed else 0


def _facts(network: Network) -> Row:
    known, accepted = hub.record(network), hub.acceptance(network)
    num_bytes = sum(held.num_bytes for held in known.files.values()) if known else network.num_bytes
    exact = known is not None or all(file.exact for file in network.files)
    cached = hub.here(network)
    incomplete = cached or any(hub.part_bytes(network, file) for file in network.files)
    state = "unchecked" if len(cached) == len(network.files) else "incomplete" if incomplete else "missing"
    return {
        "network": network.name,
        "state": "ready" if known else state,
        "bytes": num_bytes,
        "size": _size(num_bytes, exact),
        "use": network.use,
        "repo": network.repo,
        "revision": known.revision if known else network.revision,
        "licence": network.licence.name,
        "licence_url": network.licence.url,
        "licence_state": "free"
        if not network.licence.must_accept
        else accepted.accepted_at
        if accepted
        else "to accept",
        "memory_bytes": network.memory_bytes,
        "files": {path: held.location for path, held in known.files.items()} if known else {},
    }


def _size(num_bytes: int, exact: bool) -> str:
    return f"{'' if exact else 'about '}{hub.in_words(num_bytes)}"


def _result(network: Network, problem: str | None = None, *, lacking: bool = False) -> Row:
    return _facts(network) | {"problem": problem, "lacking": lacking}


def _row(network: Network, work: Any) -> Row:
    try:
        work()
    except MissingPart as error:
        return _result(network, str(error), lacking=True)
    except OSError as error:  # the disk is full, or may not be written
        words = f"{network.name}: {error}. What was downloaded stays: the same command goes on there"
        return _result(network, words, lacking=True)
    except LongtakeError as error:
        return _result(network, str(error))
    return _result(network)


def _obstacles(*checks: Any) -> list[str]:
    """What these checks complain of."""
    found = []
    for check in checks:
        try:
            check()
        except MissingPart as error:
            found.append(str(error))
    return found
