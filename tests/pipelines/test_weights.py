"""`longtake weights` as a person meets it: what is printed, exit codes, a process killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.model.networks import GROUPS, NETWORKS

from ..hub_server import COMMIT, Hub, as_environment, serve, toy

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = os.urandom(30_000_000)
FILES = {"model.pt": WEIGHTS, "config.json": b'{"width": 400}'}
SIZE = sum(map(len, FILES.values()))
ANYWHERE = "--for-another-machine"  # spares the test the loading of torch


@pytest.fixture
def server():
    with serve(Hub(files=FILES)) as server:
        yield server


@pytest.fixture
def environment(server, tmp_path):
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return keep | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "LONGTAKE_HOME": str(tmp_path / "home"),
        "TOY_NETWORKS": as_environment(toy(server)),
        "HF_TOKEN": "hf_secretsecret",
        "COLUMNS": "200",
    }


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "tests.hub_server", "weights", *map(str, words)]


@pytest.fixture
def run(environment):
    def run(*words: object, **changes: str) -> tuple[int, str, str]:
        done = subprocess.run(
            command(*words), cwd=ROOT, env=environment | changes, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "secret" not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def test_plan_fetch_verify_list(run, server, tmp_path):
    code, out, _ = run("plan", "toy")
    assert code == 0 and "model.pt  30 MB to download" in out and out.endswith("\n30 MB to download\n")
    assert not server.seen, "plans ask nothing of the hub"
    code, out, _ = run("fetch", "toy")
    assert code == 0 and out.startswith(f"toy: ready, 30 MB, commit {COMMIT}\n  Toy-1.0, https://example.org/toy\n")
    before = len(server.seen)
    code, out, _ = run("fetch", "toy", ANYWHERE, "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["state"] == "ready" and row["problem"] is None and len(server.seen) == before
    assert {name: Path(path).read_bytes() for name, path in row["files"].items()} == FILES
    code, out, _ = run("plan", "toy", "--json")
    planned = json.loads(out)
    assert code == 0 and planned["bytes_to_download"] == 0
    assert {file["file"]: file["location"] for file in planned["files"]} == row["files"]
    assert run("verify")[0] == 0
    code, out, _ = run("list", "--json")
    assert [(r["network"], r["state"], r["bytes"]) for r in json.loads(out)] == [("toy", "ready", SIZE)]
    Path(row["files"]["model.pt"]).resolve().write_bytes(WEIGHTS[:-1])
    code, out, err = run("verify", "toy")
    assert (code, out) == (1, "") and "is not here" in err


def test_verify_names_the_damaged_file(run):
    run("fetch", "toy", ANYWHERE)
    (row,) = json.loads(run("list", "--json")[1])
    Path(row["files"]["model.pt"]).resolve().write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    code, out, _ = run("verify", "--json")
    (row,) = json.loads(out)
    assert code == 1 and "model.pt has the SHA-256" in row["problem"] and row["state"] == "unchecked"
    assert run("fetch", "toy", ANYWHERE)[0] == 0 == run("verify", "toy")[0]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_same_command_goes_on(run, server, environment, number, code):
    server.cut_after, server.stall = [25_000_000], True
    with subprocess.Popen(
        command("fetch", "toy", ANYWHERE),
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert server.stalled.wait(60)
        (part,) = wait_for_part(Path(environment["HF_HOME"]), 20_971_520)
        process.send_signal(number)
        assert process.stderr is not None
        rest = process.stderr.read()
    assert process.returncode == code and "Traceback" not in rest
    kept = part.stat().st_size
    (row,) = json.loads(run("list", "--json")[1])
    assert kept == 20_971_520 and row["state"] == "incomplete", "two blocks of 10 MiB had come whole"
    assert run("fetch", "toy", ANYWHERE)[0] == 0
    assert [request.range for request in server.gets()] == [None, f"bytes={kept}-"]
    assert server.gets()[1].sent == len(WEIGHTS) - kept
    assert run("verify", "toy")[0] == 0


def wait_for_part(folder: Path, size: int) -> list[Path]:
    """What is downloaded, once so much of it has reached the disk."""
    import time

    for _ in range(600):
        parts = [path for path in folder.rglob("*part") if path.stat().st_size >= size]
        if parts:
            return parts
        time.sleep(0.05)
    raise AssertionError(f"no part of {size} bytes came")


def test_a_licence_is_asked_for_first(run, server, tmp_path):
    networks = as_environment(toy(server, must_accept=True))
    for verb in ("plan", "fetch"):
        code, _, err = run(verb, "toy", TOY_NETWORKS=networks)
        assert code == 3 and "toy is under Toy-1.0: for toys only" in err and "--accept-licence" in err
    assert not server.seen
    assert run("fetch", "toy", ANYWHERE, "--accept-licence", TOY_NETWORKS=networks)[0] == 0
    tree = json.loads((tmp_path / "home" / "licences" / "toy.json").read_text())
    assert (tree["licence"], tree["revision"]) == ("Toy-1.0", COMMIT) and tree["accepted_at"].endswith("+00:00")
    assert run("fetch", "toy", ANYWHERE, TOY_NETWORKS=networks)[0] == 0, "once is enough"


def test_one_bad_network_does_not_stop_the_others(run, server, tmp_path):
    import dataclasses

    bad = dataclasses.replace(toy(server), name="bad", repo="someone/gone")
    both = as_environment(bad, toy(server))
    code, out, err = run("fetch", "bad", "toy", ANYWHERE, TOY_NETWORKS=both)
    assert code == 1 and "someone/gone is not there (404)" in err and out.startswith("toy: ready")


def test_a_wrong_hash_is_told(run, server):
    networks = as_environment(toy(server))
    server.files = FILES | {"model.pt": WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])}
    code, _, err = run("fetch", "toy", ANYWHERE, TOY_NETWORKS=networks)
    assert code == 1 and "SHA-256" in err and json.loads(run("list", "--json")[1])[0]["files"] == {}


def test_what_the_machine_lacks(run, server, tmp_path):
    code, _, err = run("fetch", "toy", ANYWHERE, HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 3 and "cannot be reached" in err and "--from DIR" in err
    server.token = "hf_another"
    code, _, err = run("fetch", "toy", ANYWHERE)
    assert code == 3 and "set HF_TOKEN" in err
    server.token, server.claims = None, {"model.pt": {"X-Linked-Size": str(10**18)}}
    code, _, err = run("fetch", "toy", ANYWHERE, TOY_NETWORKS=as_environment(toy(server, on_record=False)))
    assert code == 3 and "1e+09 GB are to be downloaded" in err
    code, _, err = run("fetch", "toy", ANYWHERE, HF_HUB_OFFLINE="1")
    assert code == 3 and "HF_HUB_OFFLINE forbids" in err
    assert not server.gets()


def test_memory_stands_in_the_way_unless_told_otherwise(run, server):
    import dataclasses

    giant = as_environment(dataclasses.replace(toy(server), memory_bytes=10**15))
    code, _, err = run("fetch", "toy", TOY_NETWORKS=giant)
    assert code == 3 and "toy takes about 1e+06 GB of memory" in err and not server.seen
    assert run("fetch", "toy", ANYWHERE, TOY_NETWORKS=giant)[0] == 0


def test_offline_with_the_files_in_the_cache(run, environment, server, tmp_path):
    cached = "import huggingface_hub as h; [h.hf_hub_download('someone/toy', f, revision='%s') for f in %r]"
    subprocess.run([sys.executable, "-c", cached % (COMMIT, list(FILES))], env=environment, check=True, timeout=120)
    assert json.loads(run("list", "--json")[1])[0]["state"] == "unchecked"
    before = len(server.seen)
    assert run("fetch", "toy", ANYWHERE, HF_HUB_OFFLINE="1")[0] == 0
    assert len(server.seen) == before and run("verify", "toy", HF_HUB_OFFLINE="1")[0] == 0
    (tmp_path / "home" / "weights" / "toy.json").unlink()
    next((tmp_path / "hf").rglob("config.json")).resolve().write_bytes(FILES["config.json"][:-1] + b" ")
    code, _, err = run("fetch", "toy", ANYWHERE, HF_HUB_OFFLINE="1")
    assert code == 1 and "config.json has the SHA-256" in err


def test_a_folder(run, server, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    code, _, err = run("fetch", "toy", ANYWHERE, "--from", folder)
    assert code == 1 and f"{folder} has no model.pt, config.json" in err
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    code, out, _ = run("fetch", "toy", ANYWHERE, "--from", folder)
    assert code == 0 and str(folder / "model.pt") in out and not server.seen


@pytest.mark.parametrize(
    "words, answer",
    [
        (["fetch"], "NAME"),
        (["plan", "toyy"], "Did you mean toy?"),
        (["fetch", "toy", "--form", "x"], "Did you mean --from?"),
        (["fetch", "toy", "--revision", "main", "--from", "x"], "--revision is one repository's"),
        (["vrify"], 'Did you mean "verify"?'),
    ],
)
def test_wrong_usage_is_answered(run, server, words, answer):
    code, out, err = run(*words)
    assert (code, out) == (2, "") and answer in " ".join(err.split()) and not server.seen


def test_help_loads_no_hub():
    code = "import sys; from longtake.pipelines import cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"huggingface_hub", "httpx2", "torch"} & set(loaded)


def test_the_declared_networks_are_well_formed():
    for network in NETWORKS.values():
        assert len(network.revision) == 40 and set(network.revision) <= set("0123456789abcdef"), network.name
        paths = [file.path for file in network.files]
        assert len(set(paths)) == len(paths) and not any(path.startswith("/") or ".." in path for path in paths)
        for file in network.files:
            assert (file.sha256 is not None) == file.exact, "sizes on record come with hashes"
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
        biggest = max(file.num_bytes for file in network.files)
        assert network.memory_bytes > biggest / 2, "float32 files run in half that"
    for members in GROUPS.values():
        assert set(members) <= NETWORKS.keys()
    assert not GROUPS.keys() & NETWORKS.keys()
    assert {name for name, network in NETWORKS.items() if network.licence.name == "CC-BY-NC-4.0"} == {"pi3x"}
    assert NETWORKS["pi3x"].licence.must_accept
