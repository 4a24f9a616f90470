"""The only package that imports MLflow; importing the package itself does not import it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# MLflow reads this variable when it is imported; by default it logs every migration step and thread.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


@contextmanager
def project_run_errors() -> Iterator[None]:
    """Record on the run that ``mlflow run`` created, if any, the error that ends the block.

    Commands parse their arguments in this block, and ``--help`` must not wait for MLflow.
    """
    try:
        yield
    except BaseException as error:
        if os.environ.get("MLFLOW_RUN_ID"):
            from .project_run import end_project_run

            end_project_run(error)
        raise
