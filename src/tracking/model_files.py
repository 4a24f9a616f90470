"""Whether a logged model can be loaded, as far as can be said without loading it."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClaimError
from .places import model_place
from .store import store_errors

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

NEEDED = ("MLmodel", "data/model.pt2")
"""Files without which `src.tracking.logged_model.load_model` refuses a model of this project."""


def check_model_files(source: str) -> None:
    """Check that a logged model is there and not deleted, with its files.

    Args:
        source: Where it is, such as ``models:/m-...``.

    Raises:
        ClaimError: It is deleted, a file is missing, or the store names a folder that is not its own.
        TrackingError: The store failed.
    """
    import mlflow

    client, model_id = mlflow.MlflowClient(), source.removeprefix("models:/")
    with store_errors(f"the logged model {source} cannot be read"):
        try:
            logged = client.get_logged_model(model_id)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ClaimError(f"the logged model {source} is deleted or gone") from None
        folder = local_model_folder(logged)
        if folder is not None:
            missing = [name for name in NEEDED if not (folder / name).is_file()]
        else:
            listed = {
                entry.path
                for below in (None, "data")
                for entry in client.list_logged_model_artifacts(model_id, below)
            }
            missing = [name for name in NEEDED if name not in listed]
    if missing:
        where = folder or "the server"
        raise ClaimError(
            f"the logged model {source} lacks {', '.join(missing)} at {where}; put its files back"
        )


def local_model_folder(logged: "LoggedModel") -> Path | None:
    """Return the folder of a logged model's files on this machine; see `model_place`."""
    import mlflow

    experiment = mlflow.MlflowClient().get_experiment(logged.experiment_id)
    return model_place(
        logged.model_id,
        logged.artifact_location,
        experiment.experiment_id,
        experiment.artifact_location or "",
    )
