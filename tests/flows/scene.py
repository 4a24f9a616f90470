"""A training that something happens to in its midst, and what is left of it."""

import contextlib
import io
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from src import store as care
from src import train
from src.training.checkpoint import CheckpointStore, load_checkpoint
from tests.conftest import Process, clean_environment
from tests.flows.processes import TINY, only_run, start
from tests.images import write_npz
from tests.servers import Server
from tests.stores import place_store

OPTIONS = [*TINY, "--epochs", "6", "--set", "training.checkpoint_every_minutes=1e-9"]


@dataclass
class Scene:
    """One training in a folder of its own.

    Attributes:
        folder: Its working folder.
        stack: What has to be undone at the end.
        options: Of the command.
        uri: The store; SQLite in the folder unless something else is prepared.
        env: Further variables of the training's process.
        repairs: What must be mended once the process has ended, so that the store can be looked at.
        server: The store's, where it has one.
    """

    folder: Path
    stack: ExitStack
    options: list[str] = field(default_factory=lambda: list(OPTIONS))
    uri: str = ""
    env: dict[str, str] = field(default_factory=dict)
    repairs: list[Callable[[], object]] = field(default_factory=list)
    server: Server | None = None
    _process: Process | None = None

    def use_store(self, path: Path) -> None:
        place_store(path, f"{self.folder}/mlruns/0")
        self.uri = f"sqlite:///{path}"

    def use_server(self) -> None:
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="server-")))
        self.server = Server(folder)
        self.stack.callback(self.server.kill)
        self.server.start()
        self.uri = self.server.uri
        self.env["MLPROJECT_SERVER_PATIENCE"] = "1"

    def begin(self) -> None:
        env: dict[str, Any] = self.env | {"MLFLOW_TRACKING_URI": self.uri}
        self._process = start(self.folder, "-m", "src.train", *self.options, **env)
        self.stack.callback(self._process.wait)
        self.stack.callback(self._process.kill)

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    @property
    def results(self) -> Path:
        (found,) = self.folder.glob("outputs/exp_*")
        return found

    def hold(self) -> None:
        """Stops the process after two epochs or more, while it writes no file: then something can happen."""
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            if _rows(self.folder) >= 2:
                self.process.send_signal(signal.SIGSTOP)
                while psutil.Process(self.process.pid).status() != psutil.STATUS_STOPPED:
                    time.sleep(0.001)
                if not list(self.folder.rglob(".tmp-*")):
                    return
                self.let_go()
            time.sleep(0.003)

    def let_go(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def status(self) -> str:
        return str(only_run(self.folder, self.uri).info.status)

    def call(self, command: Callable[[list[str]], int], *args: str) -> tuple[int, str]:
        """Exit status and message of a command of ours, in this process."""
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder):
            for key, value in clean_environment(self.folder / "torch").items():
                patch.setenv(key, value)
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            with contextlib.redirect_stderr(io.StringIO()) as errors, _quiet():
                code = command(list(args))
        return code, message_of(errors.getvalue(), self.folder)

    def doctor(self) -> str:
        """What a person does about a run that stays RUNNING."""
        assert self.status() == "RUNNING"
        self.call(care.main, "doctor", "--apply")
        assert self.status() == "KILLED"
        return "after `src.store doctor --apply` (KILLED)"

    def sync(self) -> str:
        """What a person does once the server is back."""
        assert self.call(care.main, "sync", str(self.results))[0] == 0
        return f"after `src.store sync` ({self.status()})"

    def resume(self) -> tuple[int, str]:
        return self.call(train.main, "--resume", only_run(self.folder, self.uri).info.run_id)


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


def _rows(folder: Path) -> int:
    tables = list(folder.glob("outputs/logs/*/training_history.csv"))
    return len(tables[0].read_text().splitlines()) - 1 if tables else 0


def message_of(errors: str, folder: Path) -> str:
    """What a person is told, without what differs from run to run."""
    lines = errors.replace(f"{folder}/", "").splitlines()
    told = [line for line in lines if line.startswith(("error: ", "warning: "))] or lines[-1:]
    text = re.sub(r"exp_\d{8}_\d{6}_[0-9a-f]{8}", "exp_...", " / ".join(told))
    text = re.sub(r"\b[0-9a-f]{32}\b", "RUN_ID", text)
    text = re.sub(r"(\.tmp-)\d+-\w+", r"\1...", text)
    text = re.sub(r"since \d\d:\d\d:\d\d", "since HH:MM:SS", text)
    return re.sub(r"http://127\.0\.0\.1:\d+", "http://HOST:PORT", text)


@dataclass(frozen=True)
class Row:
    """What came of a cause.

    Attributes:
        status: Of the run, in MLflow.
        exit_code: Of the process.
        seconds: From the cause to the end of the process.
        message: On stderr.
        has_traceback: Whether that shows one.
        error: The run's tag.
        epoch: That ``latest.pth`` holds, None where there is none.
        disk: What is on disk, in words.
        leftovers: Temporary files.
        before: What had to be done before the resume.
        resumed: Exit status and message of the resume.
        after: The run's status at last.
    """

    status: str
    exit_code: int
    seconds: float
    message: str
    has_traceback: bool
    error: str
    epoch: int | None
    disk: str
    leftovers: int
    before: str
    resumed: tuple[int, str]
    after: str


def nothing(_scene: Scene) -> str:
    return ""


@dataclass(frozen=True)
class Case:
    """A cause, and what must come of it.

    Attributes:
        happen: Brings it about; the process is stopped after two epochs or more, and goes on afterwards.
            None: nothing happens from outside.
        status: Of the run.
        exit_code: Of the process.
        words: In the message.
        prepare: Before the training starts.
        mend: What a person does before the resume; says it.
        mended: Words of that.
        has_traceback: Whether one is shown, as of an error that nobody foresaw.
        has_checkpoint: Whether ``latest.pth`` and ``best_model.pth`` are there.
        resumed: "identical", or words of the message with which the resume ends.
    """

    status: str
    exit_code: int
    words: tuple[str, ...] = ()
    happen: Callable[[Scene], object] | None = None
    prepare: Callable[[Scene], object] = nothing
    mend: Callable[[Scene], str] = nothing
    mended: str = ""
    has_traceback: bool = False
    has_checkpoint: bool = True
    resumed: str = "identical"


@contextlib.contextmanager
def scene_in(folder: Path) -> Iterator[Scene]:
    """A folder's scene, with its data; whatever was mounted or started is gone afterwards."""
    with ExitStack() as stack:
        yield Scene(folder, stack)


def measure(case: Case, scene: Scene) -> Row:
    """Lets it happen, and looks at what is left."""
    case.prepare(scene)
    if not (scene.folder / "small.npz").exists():
        write_npz(scene.folder / "small.npz")
    if not scene.uri:
        scene.use_store(scene.folder / "mlflow.db")
    scene.begin()
    if case.happen is not None:
        scene.hold()
        case.happen(scene)
        scene.let_go()
    started = time.monotonic()
    _, errors = scene.process.communicate(timeout=120)
    seconds = time.monotonic() - started
    for repair in scene.repairs:
        repair()
    run = only_run(scene.folder, scene.uri)
    epoch, disk = on_disk(scene.folder)
    leftovers = len(list(scene.folder.rglob(".tmp-*")))
    before = case.mend(scene)
    resumed = scene.resume()
    return Row(
        status=run.info.status,
        exit_code=scene.process.wait(),
        seconds=seconds,
        message=message_of(errors, scene.folder),
        has_traceback="Traceback" in errors,
        error=run.data.tags.get("error", ""),
        epoch=epoch,
        disk=disk,
        leftovers=leftovers,
        before=before,
        resumed=resumed,
        after=scene.status(),
    )


def on_disk(folder: Path) -> tuple[int | None, str]:
    """The epoch of ``latest.pth``, and the checkpoints in words; each must open, with its sums right."""
    epoch, words = None, []
    for path in sorted(folder.glob("outputs/exp_*/checkpoints/*.pth"), reverse=True):
        state = load_checkpoint(path)
        steps = f" and {state['steps']} steps" if state["steps"] else ""
        words.append(f"`{path.name}` (epoch {state['epoch']}{steps})")
        if path == CheckpointStore(path.parent).latest:
            epoch = int(state["epoch"])
    return epoch, ", ".join(words) or "no checkpoint"


def mount(scene: Scene, *args: str) -> None:
    """Mounts something for the length of the scene; skips the test where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    done = subprocess.run(["mount", *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    scene.stack.callback(unmount, Path(args[-1]))


def unmount(path: Path) -> None:
    # Lazily: this process may have a store of it open.
    subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)
