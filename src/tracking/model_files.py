"""Whether a logged model can be loaded, as far as can be said without loading it."""

from src.errors import ClaimError
from src.tracking.store import local_folder, store_errors

NEEDED = ("MLmodel", "data/model.pt2")
"""Files without which `src.tracking.logged_model.load_model` refuses a model of this project."""


def check_model_files(source: str) -> None:
    """Check that a logged model is there and not deleted, with its files.

    Args:
        source: Where it is, such as ``models:/m-...``.

    Raises:
        ClaimError: It is deleted, or a file is missing.
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
        folder = local_folder(logged.artifact_location)
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
