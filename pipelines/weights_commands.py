"""`longtake weights ...`: what networks there are, what is needed, get it, check it; registered by `cli.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from .display import printable
from .printing import Json, complain, print_json, print_rows

Names = Annotated[str, Parameter(name="NAME", required=True)]


def list_weights(*, json: Json = False) -> None:
    """List the networks, what their weights may be used for, and which are here."""
    from .weights import list_networks

    rows = list_networks()
    if json:
        print_json(rows)
        return
    print_rows(
        {
            "network": row["network"],
            "state": row["state"],
            "size": row["size"],
            "licence": row["licence"],
            "accepted": row["licence_state"],
            "for": row["use"],
        }
        for row in rows
    )


def plan_weights(*names: Names, json: Json = False) -> int:
    """Say what would be downloaded; exit code 3 where something stands in the way. Needs no network.

    Parameters
    ----------
    names
        Networks of `longtake weights list`, or the groups annotate, generate, refine.
    """
    from ..model.hub import in_words
    from .weights import plan

    rows, obstacles = plan(names)
    total = sum(row["to_download"] for row in rows)
    if json:
        print_json({"files": rows, "bytes_to_download": total, "obstacles": obstacles})
    else:
        for row in rows:
            print(printable(f"{row['network']}  {row['file']}  {row['location'] or row['size'] + ' to download'}"))
        print(f"{'' if all(row['exact'] for row in rows) else 'about '}{in_words(total)} to download")
        for obstacle in obstacles:
            complain(obstacle)
    return 3 if obstacles else 0


def fetch_weights(
    *names: Names,
    folder: Annotated[Path | None, Parameter(name="--from")] = None,
    revision: str | None = None,
    accept_licence: bool = False,
    for_another_machine: bool = False,
    json: Json = False,
    quiet: bool = False,
) -> int:
    """Download networks' weights into the hub's cache and check them. The same command again goes on where it stopped.

    Parameters
    ----------
    names
        Networks of `longtake weights list`, or the groups annotate, generate, refine.
    folder
        Take the files of this folder instead, where they stay.
    revision
        Another commit, branch or tag than the pinned commit; for one network.
    accept_licence
        You accept the licences of these networks. Once is enough.
    for_another_machine
        Do not ask whether this one has the memory.
    quiet
        Show no progress.
    """
    from .weights import exit_code, fetch

    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    rows = fetch(
        names,
        folder=folder,
        revision=revision,
        accept_licence=accept_licence,
        for_another_machine=for_another_machine,
    )
    _print_weights(rows, json)
    return exit_code(rows)


def verify_weights(*names: Annotated[str, Parameter(name="NAME")], json: Json = False) -> int:
    """Read fetched weights again and compare sizes and hashes; exit code 1 where one is wrong.

    Parameters
    ----------
    names
        Networks or groups; all that were fetched without it.
    """
    from .weights import exit_code, verify

    rows = verify(names)
    _print_weights(rows, json)
    return exit_code(rows)


def _print_weights(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    for row in rows:
        if row["problem"]:
            complain(row["problem"])
            continue
        print(f"{row['network']}: ready, {row['size']}, commit {row['revision'] or 'unknown'}")
        print(f"  {row['licence']}, {row['licence_url']}")
        for location in row["files"].values():
            print(f"  {printable(location)}")
