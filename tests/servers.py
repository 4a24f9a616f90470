"""``mlflow server`` on loopback, as a process that can be killed and started again."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

from src.tracking.store import open_store
from tests.conftest import clean_environment


def make_store(folder: Path) -> Path:
    """MLflow's SQLite file as it makes it; the migrations take seconds, a copy nothing."""
    with contextlib.chdir(folder):
        open_store()
    return folder / "mlflow.db"


def place_store(empty_store: Path, path: Path, artifacts: str) -> Path:
    """Puts a new store at ``path``, whose default experiment keeps its artifacts at ``artifacts``."""
    shutil.copy(empty_store, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", (artifacts,))
    return path


class Server:
    """A server with a store and artifacts of its own in ``folder``; always on the same port."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.folder = folder
        self.store = place_store(empty_store, folder / "mlflow.db", "mlflow-artifacts:/0")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.store}"]
        command += ["--artifacts-destination", f"{self.folder}/served"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                # Its job runners, seven processes, serve nothing that is tested here.
                env=clean_environment(self.folder / "torch")
                | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends it and all its workers without a word."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None
