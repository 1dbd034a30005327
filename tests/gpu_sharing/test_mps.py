"""MPS: what its daemon says, as it says it, and a daemon that is a script."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpu_sharing.devices import mps
from gpu_sharing.devices.mps import Daemon, Findings, MpsFailed, Server, compare, environment, pids, status
from gpu_sharing.units import GiB


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("6847\n", (6847,)),
        ("6847\n6912\r\n  7001 \n\n", (6847, 6912, 7001)),
        ("Cannot find MPS control daemon process\n", None),
    ],
)
def test_process_numbers_are_read_one_a_line(text: str, expected: tuple[int, ...] | None) -> None:
    assert pids(text) == expected


def test_words_where_numbers_were_asked_for_are_not_taken_for_an_empty_list() -> None:
    with pytest.raises(ValueError, match="'Server 5 not found' where process numbers"):
        pids("Server 5 not found\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ACTIVE\n", "ACTIVE"), ("Fault\n", "FAULT"), ("", "UNKNOWN"), ("INITIALIZING.", "INITIALIZING")],
)
def test_a_servers_status_is_its_first_word(text: str, expected: str) -> None:
    assert status(text) == expected


def test_workers_are_compared_with_clients() -> None:
    servers = [Server(1, "ACTIVE", frozenset({10, 99})), Server(2, "FAULT", frozenset({11, 12}))]
    found = compare({0: 10, 1: 11, 2: 13}, servers)
    assert found == Findings(missing=(2,), faulted=(1,), strangers=(12, 99))
    assert found.to_restart == (1, 2)
    assert compare({0: 10}, []).missing == (0,)


def test_a_worker_is_told_its_daemon_its_part_and_its_memory() -> None:
    given = environment("/p", "/l", percentage=33.3, memory_bytes=2 * GiB, low_priority=True)
    assert given == {
        "CUDA_MPS_PIPE_DIRECTORY": "/p",
        "CUDA_MPS_LOG_DIRECTORY": "/l",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "33.3",
        "CUDA_MPS_CLIENT_PRIORITY": "1",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=2048M",
    }
    for percentage in (0, 101):
        with pytest.raises(ValueError, match="percentage: must be above 0"):
            environment("/p", "/l", percentage=percentage)
    with pytest.raises(ValueError, match="memory_bytes"):
        environment("/p", "/l", percentage=1, memory_bytes=5)


SCRIPT = """#!/bin/sh
if [ "$1" = "-f" ]; then
  {start}
  echo "$$" > "$CUDA_MPS_PIPE_DIRECTORY/control"
  while [ -e "$CUDA_MPS_PIPE_DIRECTORY/control" ]; do sleep 0.05; done
  exit 0
fi
[ -e "$CUDA_MPS_PIPE_DIRECTORY/control" ] || {{ echo "Cannot find MPS control daemon process"; exit 1; }}
while read -r verb what; do
  case "$verb" in
    get_server_list) echo 500 ;;
    get_server_status) echo ACTIVE ;;
    get_client_list) printf '10\\n11\\n' ;;
    quit) rm "$CUDA_MPS_PIPE_DIRECTORY/control" ;;
  esac
done
"""


def script(folder: Path, start: str = ":") -> str:
    path = folder / "nvidia-cuda-mps-control"
    path.write_text(SCRIPT.format(start=start))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_daemon_is_started_asked_and_ended_with_its_folders(tmp_path: Path) -> None:
    daemon = Daemon(script(tmp_path))
    daemon.start()
    assert daemon.is_alive
    assert daemon.servers() == [Server(500, "ACTIVE", frozenset({10, 11}))]
    assert Path(daemon.pipe).is_dir()
    assert stat.S_IMODE(os.stat(daemon.pipe).st_mode) == 0o700
    daemon.stop()
    assert not daemon.is_alive
    assert not Path(daemon.pipe).exists()
    daemon.stop()


def test_a_daemon_that_does_not_answer_is_told_with_what_it_wrote(tmp_path: Path) -> None:
    daemon = Daemon(script(tmp_path, 'echo "no permission"; exit 1'))
    with pytest.raises(MpsFailed, match="does not answer: no permission"):
        daemon.start()
    assert not daemon.is_alive
    missing = Daemon(str(tmp_path / "nothing"))
    with pytest.raises(MpsFailed, match="nothing -f"):
        missing.start()


def test_a_daemon_of_somebody_elses_is_found_where_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "binary", lambda: script(tmp_path))
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert mps.found() is None
    (tmp_path / "control").touch()
    assert mps.found() == f"a daemon answers at {tmp_path}"
    monkeypatch.setattr(mps, "binary", lambda: None)
    assert mps.found() is None
