"""torchvision classifiers: building them, loading weights, and the one forward pass."""
