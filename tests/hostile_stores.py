"""Runs as training leaves them, without a training, and a tree outside that nothing may touch."""

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import mlflow
import torch
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag

from src.training.run_folder import RunFolders
from src.utils.config import Config

CANARY = "CANARY-4711"
TAGS = {"model": "resnet18", "modality": "A", "data.fingerprint": "d", "split.fingerprint": "s"}
OUTPUT = Path("outputs")


def make_run(name: str, val_auc: float, *, is_signed: bool = True, has_checkpoint: bool = True) -> str:
    """A finished run of long ago in the store at hand, with all of its files and a logged model."""
    client = mlflow.MlflowClient()
    run_id = str(client.create_run("0", tags=TAGS).info.run_id)
    client.log_batch(
        run_id,
        [Metric("best_val_auc", val_auc, 1, 1)],
        [Param("experiment.name", name), Param("experiment.output_dir", "outputs")],
        [RunTag("mlflow.runName", name)],
    )
    folders = RunFolders(OUTPUT, name)
    folders.logs.mkdir(parents=True)
    folders.config.write_text(Config().to_yaml())
    folders.checkpoints.mkdir(parents=True)
    (folders.results / "val.csv").write_text("predictions")
    if is_signed:
        folders.write_run_id(run_id)
    if has_checkpoint:
        torch.save({"model_state_dict": {}, "run_id": run_id}, folders.checkpoints / "latest.pth")
    client.log_text(run_id, Config().to_yaml(), "config.yaml")
    client.log_text(run_id, "weights", "checkpoints/latest.pth")
    logged = client.create_logged_model("0", "model", run_id)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 1)])
    model = place_of(run_id).parent.parent / "models" / logged.model_id / "artifacts"
    model.mkdir(parents=True)
    (model / "MLmodel").write_text("flavors: {}\n")
    client.set_terminated(run_id, "FINISHED", 1_000_000_000_000)
    return run_id


def place_of(run_id: str) -> Path:
    """The folder of the artifacts in a store whose URIs were not edited."""
    return Path("mlruns/0").absolute() / run_id / "artifacts"


def models_of(run_id: str) -> list[str]:
    outputs = mlflow.MlflowClient().get_run(run_id).outputs
    return [model.model_id for model in outputs.model_outputs] if outputs else []


def register(run_id: str) -> None:
    """Makes a run the champion of its group."""
    client = mlflow.MlflowClient()
    client.create_registered_model("resnet18_A")
    (model,) = models_of(run_id)
    made = client.create_model_version("resnet18_A", f"models:/{model}", run_id, tags=TAGS)
    client.set_registered_model_alias("resnet18_A", "champion", made.version)


def make_outside(folder: Path, run_id: str) -> Path:
    """A tree that looks as much like the run's own files as it can."""
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    torch.save({"model_state_dict": {}, "run_id": run_id}, folder / "checkpoints/latest.pth")
    (folder / "run_id").write_text(f"{run_id}\n")
    config = Config.from_dict({"model": {"weights": f"/{CANARY}.pth"}})
    for path in ("config.yaml", "MLmodel", "meta.yaml", "training_history.csv"):
        (folder / path).write_text(config.to_yaml())
    for path in ("undelivered", "cache/packs", "predictions", "data", ".tmp-999999999-x"):
        (folder / path).mkdir(parents=True)
    header = {"run_id": run_id, "store": CANARY}
    (folder / "undelivered/journal.jsonl").write_text(f'{json.dumps(header)}\n{{"cut')
    (folder / "predictions/val.csv").write_text(CANARY)
    (folder / "cache/packs/a.npy").write_bytes(bytes(100))
    (folder / ".tmp-999999999-x/left").write_text(CANARY)
    make_old(folder)
    return folder


def make_old(folder: Path) -> None:
    """Everything below was written long ago, so that nothing is spared for being young."""
    month = time.time() - 30 * 86_400
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (month, month), follow_symlinks=False)


def edit(statement: str, *values: str) -> None:
    """Edits the store as somebody with access to its file can."""
    with closing(sqlite3.connect("mlflow.db")) as connection, connection:
        connection.execute(statement, values)


def set_param(run_id: str, key: str, value: str) -> None:
    edit("UPDATE params SET value = ? WHERE run_uuid = ? AND key = ?", value, run_id, key)


def set_artifact_uri(run_id: str, uri: str) -> None:
    edit("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", uri, run_id)


def snapshot(*folders: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of everything below folders."""
    found = {}
    for folder in folders:
        for path in (folder, *sorted(folder.rglob("*"))):
            state = path.lstat()
            content = b""
            if path.is_symlink():
                content = os.fsencode(path.readlink())
            elif path.is_file():
                content = path.read_bytes()
            found[str(path)] = (state.st_mode, 0 if path.is_dir() else state.st_mtime_ns, content)
    return found
