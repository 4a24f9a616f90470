"""Fine-tuning of torchvision classifiers per image modality, tracked in MLflow."""

PACKAGE = __name__
"""The name under which this package was imported: child processes start its commands under the same name."""
