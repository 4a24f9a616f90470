"""Peers as their users write them: image files, a DataLoader with a worker per core, transforms per image."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers import Work
from src.evaluation.auc import auc
from src.utils.runtime import pick_autocast
from src.utils.torchvision_import import submodule

CLASSES = ("0", "1")


def write_files(work: Work) -> Path:
    """Write the images as PNG files ``SPLIT/CLASS/NUMBER.png``, once."""
    root = work.npz.with_suffix("")
    if root.exists():
        return root
    with np.load(work.npz, allow_pickle=False) as arrays:
        for split in ("train", "val"):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
            for label in CLASSES:
                (root / split / label).mkdir(parents=True)
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                Image.fromarray(image).save(root / split / CLASSES[label] / f"{number}.png")
    return root


def loaders(work: Work) -> tuple[Any, Any]:
    """Training and validation, with the project's own kinds of augmentation, one image at a time."""
    root, transforms = write_files(work), submodule("transforms.v2")
    strengths = work.config.data.augment
    shift = (strengths.translation, strengths.translation)
    moved = transforms.RandomAffine(strengths.rotation, shift, (1 - strengths.scale, 1 + strengths.scale))
    lit = transforms.ColorJitter(strengths.brightness, strengths.contrast)
    as_tensor = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)]
    as_tensor.append(transforms.Normalize([0.5], [0.25]))
    changes = [transforms.Grayscale(), transforms.RandomHorizontalFlip(), moved, lit, *as_tensor]
    folder = submodule("datasets").ImageFolder
    train = folder(str(root / "train"), transforms.Compose(changes))
    val = folder(str(root / "val"), transforms.Compose([transforms.Grayscale(), *as_tensor]))
    common: dict[str, Any] = {"batch_size": work.batch, "num_workers": len(os.sched_getaffinity(0))}
    common["persistent_workers"] = True
    return DataLoader(train, shuffle=True, **common), DataLoader(val, **common)


def network(work: Work) -> nn.Module:
    """Return the same architecture for one channel and two classes; small images use the small stem."""
    from src.models.build import build_model

    built = build_model(
        work.model, num_classes=2, channels=1, size=work.size, stem=work.config.model.stem, weights="none"
    )
    return built.model


def reference(work: Work) -> None:
    """Train as torchvision's references/classification/train.py: AMP, a line per step, checkpoints."""
    train, val = loaders(work)
    model = network(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=work.epochs)
    autocast = pick_autocast(work.config.training.precision, torch.device("cpu"))
    for epoch in range(work.epochs):
        model.train()
        for images, labels in train:
            started = time.time()
            with torch.autocast("cpu", autocast, autocast is not None):
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"loss {loss.item():.4f} img/s {len(images) / (time.time() - started):.1f}", end="\r")
        schedule.step()
        model.eval()
        with torch.inference_mode():
            scores = [(torch.softmax(model(images), 1)[:, 1], labels) for images, labels in val]
        print(auc_of(scores))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, f"model_{epoch}.pth")
        torch.save(state, "checkpoint.pth")


def auc_of(scores: list[tuple[Tensor, Tensor]]) -> float:
    """AUC over all batches."""
    positive = np.concatenate([score.float().numpy() for score, _ in scores])
    labels = np.concatenate([label.numpy() for _, label in scores])
    return auc(labels, np.stack([1 - positive, positive], 1))


def lightning(work: Work) -> None:
    """PyTorch Lightning with MLFlowLogger and ModelCheckpoint."""
    import lightning as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger
    from torchmetrics.classification import BinaryAUROC

    warnings.simplefilter("ignore")

    class Classifier(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.val_auc = network(work), BinaryAUROC()

        def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
            images, labels = batch
            loss = nn.functional.cross_entropy(self.model(images), labels)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], _number: int) -> None:
            images, labels = batch
            self.val_auc.update(torch.softmax(self.model(images), 1)[:, 1], labels)
            self.log("val_auc", self.val_auc)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    train, val = loaders(work)
    autocast = pick_autocast(work.config.training.precision, torch.device("cpu"))
    trainer = pl.Trainer(
        max_epochs=work.epochs,
        precision="32-true" if autocast is None else "bf16-mixed",
        logger=MLFlowLogger(tracking_uri="sqlite:///mlflow.db"),
        callbacks=[ModelCheckpoint(monitor="val_auc", mode="max", save_last=True)],
        num_sanity_val_steps=0,
    )
    trainer.fit(Classifier(), train, val)
