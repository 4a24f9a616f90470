"""Fine-tuning of torchvision classifiers per image modality, tracked in MLflow."""

import sys

PACKAGE = __name__
"""The name under which this package was imported: child processes start its commands under the same name."""

_other = sys.modules.get("src" if PACKAGE == "mlproject" else "mlproject")
if getattr(_other, "PACKAGE", None) is not None:
    raise ImportError(
        "imported as src and as mlproject in one process, which makes every class twice; use one"
    )
