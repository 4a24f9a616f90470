"""Trainings in several processes under ``torchrun``: one run, and its status tells how it ended."""

import csv
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.conftest import Process, Run
from tests.flows.processes import TINY, only_run, runs, start, wait_for_epoch

pytestmark = pytest.mark.slow

LAUNCH = ["-m", "torch.distributed.run"]
ALONE = [*LAUNCH, "--standalone", "--nproc-per-node", "2"]
TRAIN = ["-m", "src.train", *TINY, "--set", "training.schedule=none"]
LONG = [*TRAIN, "--set", "training.epochs=5000", "--set", "experiment.name=long"]


def workers(launcher: Process) -> list[psutil.Process]:
    """By their rank."""
    children = psutil.Process(launcher.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def epochs(folder: Path, name: str) -> list[int]:
    table = (folder / "outputs/logs" / name / "training_history.csv").read_text().splitlines()
    return [int(row["epoch"]) for row in csv.DictReader(table)]


@pytest.mark.usefixtures("npz")
def test_a_lost_process_fails_the_run_and_a_signal_ends_it_saved(folder: Path) -> None:
    launcher = start(folder, *ALONE, *LONG)
    wait_for_epoch(folder, launcher)
    lost = workers(launcher)[1]
    lost.kill()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    run = only_run(folder)
    assert run.info.status == "FAILED"
    message = f"process 1 of 2 (pid {lost.pid} on {socket.gethostname()}) exited without an error message"
    assert run.data.tags["error"].startswith(message)
    assert f"error: {message}" in errors
    done = len(epochs(folder, "long"))

    launcher = start(folder, *ALONE, "-m", "src.train", "--resume", run.info.run_id)
    assert launcher.stdout is not None
    assert any("long" in line for line in launcher.stdout)
    launcher.terminate()
    _, errors = launcher.communicate(timeout=60)
    assert (only_run(folder).info.status, launcher.returncode) == ("KILLED", 1), errors
    assert epochs(folder, "long") == list(range(1, len(epochs(folder, "long")) + 1))
    assert len(epochs(folder, "long")) >= done


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz")
def test_a_schedulers_signal_ends_it_saved(folder: Path) -> None:
    handled = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"]
    launcher = start(folder, *ALONE, *handled, *LONG)
    wait_for_epoch(folder, launcher)
    launcher.send_signal(signal.SIGUSR1)
    _, errors = launcher.communicate(timeout=60)
    run = only_run(folder)
    assert (run.info.status, launcher.returncode) == ("KILLED", 1), errors
    resume = f"torchrun ... -m src.train --resume {run.info.run_id}"
    assert f"error: stopped by SIGUSR1; continue with: {resume}" in errors


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz")
def test_two_launchers_are_two_nodes(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for rank in range(2):
        place = folder / f"node{rank}"
        place.mkdir()
        os.link(folder / "small.npz", place / "small.npz")
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "7", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        nodes.append(start(place, *LAUNCH, "--nnodes", "2", "--nproc-per-node", "1", *rendezvous, *TRAIN))
    outputs = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    stores = [folder / f"node{rank}" for rank in range(2) if (folder / f"node{rank}/mlflow.db").exists()]
    assert len(stores) == 1  # the first process's
    (run,) = runs(stores[0])
    assert run.info.status == "FINISHED"
    assert run.data.tags["env.processes"] == "2"
    assert len(list(folder.glob("node*/outputs/*/checkpoints/best_model.pth"))) == 1


@pytest.mark.usefixtures("npz")
def test_another_number_of_processes_goes_on_after_an_epoch(folder: Path, run_python: Run) -> None:
    short = [*TRAIN, "--set", "experiment.name=short"]
    done = run_python(*ALONE, *short)
    assert done.returncode == 0, done.stderr
    run_id = only_run(folder).info.run_id
    more = run_python("-m", "src.train", "--resume", run_id, "--set", "training.epochs=2")
    assert more.returncode == 0, more.stderr
    assert "processes was 2, now 1" in more.stderr
    assert (only_run(folder).info.status, epochs(folder, "short")) == ("FINISHED", [1, 2])
