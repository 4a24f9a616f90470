"""Whatever ends a training: the run's status, the exit status, what is on disk, what a resume gives.

`python -m tests.flows.causes_table` writes what is measured here down.
"""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from src import train
from src.utils.torchvision_import import torchvision
from tests.conftest import ROOT
from tests.flows.scene import Case, Row, Scene, measure, mount, scene_in
from tests.flows.test_resume import assert_same
from tests.images import write_npz

pytestmark = pytest.mark.slow

TMPFS = ["-t", "tmpfs", "-o", "size=64m", "tmpfs"]
FAULT = """import torch.optim.optimizer as optimizer

steps = 0


def strike(*_):
    global steps
    steps += 1
    if steps == 10:
        raise {error}


optimizer.register_optimizer_step_post_hook(strike)
"""


def send(number: signal.Signals) -> Callable[[Scene], None]:
    return lambda scene: scene.process.send_signal(number)


def diverge(scene: Scene) -> None:
    scene.options += ["--set", "training.learning_rate=1e30"]
    scene.options += ["--set", "training.checkpoint_every_minutes=10"]


def fault(error: str) -> Callable[[Scene], None]:
    """The tenth step raises an error that our code knows nothing of."""

    def plant(scene: Scene) -> None:
        folder = scene.folder / "fault"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(FAULT.format(error=error))
        scene.env["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"

    return plant


def large_batches(scene: Scene) -> None:
    """From the sixth epoch on, with the backbone's gradients, a step takes many times the memory."""
    write_npz(scene.folder / "small.npz", size=160, train=128)
    scene.options += ["--set", "training.batch_size=128", "--epochs", "8"]
    start = scene.folder / "start.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=2).state_dict(), start)
    scene.options += ["--set", "training.freeze_backbone_epochs=5", "--set", f"model.weights={start}"]


def take_memory(scene: Scene) -> None:
    """From now on the process may have little more than it has."""
    limit = psutil.Process(scene.process.pid).memory_info().vms + 64 * 2**20
    resource.prlimit(scene.process.pid, resource.RLIMIT_AS, (limit, limit))


def on_small_outputs(scene: Scene) -> None:
    (scene.folder / "outputs").mkdir()
    mount(scene, *TMPFS, str(scene.folder / "outputs"))


def on_small_disk(scene: Scene) -> None:
    # Held in the midst of it, what is written beside the loop may yet replace a file, which makes space.
    scene.options += ["--set", "training.save_in_background=false"]
    mount(scene, *TMPFS, str(scene.folder))


def fill_outputs(scene: Scene) -> None:
    """Takes all space that is left."""
    with (scene.folder / "outputs/filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def make_space(scene: Scene) -> str:
    (scene.folder / "outputs/filler").unlink()
    return "with space again"


def make_space_and_doctor(scene: Scene) -> str:
    return f"{make_space(scene)}, {scene.doctor()}"


def delete_outputs(scene: Scene) -> None:
    shutil.rmtree(scene.folder / "outputs")


def store_apart(scene: Scene) -> None:
    (scene.folder / "store").mkdir()
    scene.use_store(scene.folder / "store/mlflow.db")


def read_only(name: str) -> Callable[[Scene], None]:
    def happen(scene: Scene) -> None:
        path = str(scene.folder / name)
        mount(scene, "--bind", path, path)
        done = subprocess.run(["mount", "-o", "remount,ro,bind", path], check=False)
        if done.returncode != 0:
            pytest.skip("nothing can be made read-only here")
        # What this process opens there while it is read-only stays so.
        scene.repairs.append(lambda: subprocess.run(["umount", path], check=True))

    return happen


def writable(_scene: Scene) -> str:
    return "writable again"


def writable_and_doctor(scene: Scene) -> str:
    return f"{writable(scene)}, {scene.doctor()}"


def forbid(scene: Scene) -> None:
    """Root may write where it has no permission, but not into what is immutable."""
    folder = str(scene.results / "checkpoints")
    done = subprocess.run(["chattr", "+i", folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be made immutable here: {done.stderr.strip()}")
    scene.stack.callback(subprocess.run, ["chattr", "-i", folder], check=False)


def permit(scene: Scene) -> str:
    subprocess.run(["chattr", "-i", str(scene.results / "checkpoints")], check=True)
    return "with permission again"


def server_goes(scene: Scene) -> None:
    assert scene.server is not None
    scene.server.kill()
    scene.repairs.append(scene.server.start)


def server_goes_and(number: signal.Signals) -> Callable[[Scene], None]:
    def happen(scene: Scene) -> None:
        server_goes(scene)
        scene.process.send_signal(number)

    return happen


def ctrl_c_twice(scene: Scene) -> None:
    """The second one comes while the process waits for the server to take the rest."""
    server_goes_and(signal.SIGINT)(scene)
    scene.let_go()
    caught = 1 << (signal.SIGINT - 1)
    status = Path(f"/proc/{scene.process.pid}/status")
    while int(status.read_text().split("SigCgt:")[1].split()[0], 16) & caught:
        time.sleep(0.01)  # until the first one was taken
    time.sleep(1.5)
    scene.process.send_signal(signal.SIGINT)


SERVER = Scene.use_server
CONTINUE = "continue with: python -m src.train --resume RUN_ID"
CASES: dict[str, Case] = {
    "normal end": Case("FINISHED", 0, resumed="the run is finished; raise training.epochs"),
    "non-finite loss": Case(
        "FAILED",
        1,
        ("the training loss became nan", "lower training.learning_rate"),
        prepare=diverge,
        has_checkpoint=False,
        resumed="the training loss became nan",
    ),
    "an exception that nobody foresaw": Case(
        "FAILED",
        1,
        ("RuntimeError: the sky fell",),
        prepare=fault("RuntimeError('the sky fell')"),
        has_traceback=True,
    ),
    "`sys.exit(3)` somewhere": Case("FAILED", 3, prepare=fault("SystemExit(3)")),
    "Ctrl-C": Case("KILLED", 130, (f"stopped by SIGINT; {CONTINUE}",), send(signal.SIGINT)),
    "SIGTERM": Case("KILLED", 143, (f"stopped by SIGTERM; {CONTINUE}",), send(signal.SIGTERM)),
    "its terminal is closed (SIGHUP)": Case("KILLED", 129, ("stopped by SIGHUP",), send(signal.SIGHUP)),
    "SIGUSR1, as SLURM's `--signal` sends it": Case(
        "KILLED", 138, (f"stopped by SIGUSR1; {CONTINUE}",), send(signal.SIGUSR1)
    ),
    "SIGUSR2": Case("KILLED", 140, (f"stopped by SIGUSR2; {CONTINUE}",), send(signal.SIGUSR2)),
    "kill -9, or the kernel's out-of-memory killer": Case(
        "RUNNING", -9, (), send(signal.SIGKILL), mend=Scene.doctor
    ),
    "out of memory": Case(
        "FAILED",
        1,
        ("out of memory; lower training.batch_size or data.image_size",),
        take_memory,
        prepare=large_batches,
    ),
    "disk of the outputs full": Case(
        "FAILED",
        1,
        ("No space left on device: 'outputs/exp_.../", "check the disk's free space"),
        fill_outputs,
        prepare=on_small_outputs,
        mend=make_space,
    ),
    "disk full, the store is on it as well": Case(
        "RUNNING",
        1,
        ("the run could not be marked FAILED: ", "disk is full; once", "src.store doctor --apply"),
        fill_outputs,
        prepare=on_small_disk,
        mend=make_space_and_doctor,
    ),
    "output folder deleted": Case(
        "FAILED",
        1,
        ("No such file or directory: 'outputs/", "was it deleted or moved while the command ran?"),
        delete_outputs,
        has_checkpoint=False,
        resumed="outputs/logs/exp_... does not exist",
    ),
    "output folder became read-only": Case(
        "FAILED",
        1,
        ("Read-only file system: 'outputs/exp_.../",),
        read_only("outputs"),
        mend=writable,
    ),
    "output folder, no permission any more": Case(
        "FAILED", 1, ("Operation not permitted: 'outputs/exp_.../",), forbid, mend=permit
    ),
    "store became read-only": Case(
        "RUNNING",
        1,
        ("the tracking store sqlite:///store/mlflow.db failed", "src.store doctor --apply"),
        read_only("store"),
        prepare=store_apart,
        mend=writable_and_doctor,
    ),
    "server gone": Case(
        "RUNNING",
        1,
        ("has not responded", "not delivered", "src.store sync outputs/exp_..."),
        server_goes,
        prepare=SERVER,
        mend=Scene.sync,
        mended="(FINISHED)",
        resumed="the run is finished; raise training.epochs",
    ),
    "server gone, then SIGTERM": Case(
        "RUNNING",
        143,
        ("not delivered", "src.store sync outputs/exp_...", "stopped by SIGTERM"),
        server_goes_and(signal.SIGTERM),
        prepare=SERVER,
        mend=Scene.sync,
        mended="(KILLED)",
    ),
    "server gone, then Ctrl-C twice": Case(
        "RUNNING", -2, (), ctrl_c_twice, prepare=SERVER, mend=Scene.sync, mended="(KILLED)"
    ),
    "server gone, then kill -9; the server is back": Case(
        "RUNNING", -9, (), server_goes_and(signal.SIGKILL), prepare=SERVER
    ),
}
QUICK = ["normal end", "Ctrl-C", "kill -9, or the kernel's out-of-memory killer", "disk of the outputs full"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Scene], Path]:
    """The same training, that nothing happens to."""
    done: dict[tuple[str, ...], Path] = {}

    def train_whole(scene: Scene) -> Path:
        key = tuple(scene.options)
        if key not in done:
            done[key] = run_whole(tmp_path_factory.mktemp("whole"), scene)
        return done[key]

    return train_whole


def run_whole(folder: Path, scene: Scene) -> Path:
    with scene_in(folder) as other:
        other.use_store(folder / "mlflow.db")
        shutil.copy(scene.folder / "small.npz", folder)
        code, message = other.call(train.main, *scene.options)
        assert code == 0, message
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.exhaustive) for name in CASES]
)
def test_cause(name: str, folder: Path, whole: Callable[[Scene], Path]) -> None:
    work = folder / "work"
    work.mkdir()
    with scene_in(work) as scene:
        row = measure(CASES[name], scene)
        check(CASES[name], row)
        if row.after == "FINISHED":
            assert_same(whole(scene), scene.folder, "", scene.uri)


def check(case: Case, row: Row) -> None:
    """The row is what its case says."""
    assert (row.status, row.exit_code) == (case.status, case.exit_code), row
    for words in case.words:
        assert words in row.message
    assert row.has_traceback == case.has_traceback
    if row.exit_code > 128:
        assert row.seconds < 15  # somebody waits
    assert (row.status == "FAILED") == bool(row.error and "stopped by" not in row.error)
    assert (row.epoch or 0) >= 2 * case.has_checkpoint
    assert (row.epoch is not None) == case.has_checkpoint == ("`best_model.pth`" in row.disk)
    # A kill may hit the moment of a write; whatever else ends a process, it tidies up.
    assert row.leftovers <= (row.exit_code == -signal.SIGKILL)
    assert case.mended in row.before
    if case.resumed == "identical":
        assert (row.resumed, row.after) == ((0, ""), "FINISHED")
    else:
        assert row.resumed[0] in (1, 2)
        assert case.resumed in row.resumed[1]
