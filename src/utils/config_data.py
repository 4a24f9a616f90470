"""The data section of the settings."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .config_fields import (
    EXCLUDE,
    Classes,
    ClassName,
    Column,
    DeviceCache,
    Modalities,
    Patterns,
    Window,
    Words,
)

_AUTO_CACHE_SHARE = 0.25


class Section(BaseModel):
    """Base class of all sections: unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AugmentConfig(Section):
    """Random changes of training images, computed for whole batches on the training device."""

    horizontal_flip: Literal["auto"] | bool = Field(
        "auto", description="flip with probability 0.5; auto: unless DICOM's modality is CT or X-ray"
    )
    vertical_flip: bool = Field(False, description="flip with probability 0.5")
    rotation: float = Field(10.0, ge=0, le=180, description="maximum angle in degrees, in both directions")
    translation: float = Field(
        0.05, ge=0, le=0.5, description="maximum fraction of the image size, in both directions"
    )
    scale: float = Field(0.1, ge=0, le=0.9, description="maximum relative change of the size")
    brightness: float = Field(0.1, ge=0, le=1, description="maximum offset, as a fraction of the full range")
    contrast: float = Field(0.1, ge=0, le=1, description="maximum relative change around the image's mean")


class ColumnsConfig(Section):
    """Which columns of a table of images hold what; null: none of its columns does."""

    path: Column = Field("path", description="file of the image, relative to data.images")
    label: Column = Field("label", description="label, or a part of a class that data.classes lists")
    modality: Column | None = Field("modality", description="null: all rows are of the configured modality")
    patient_id: Column | None = Field("patient_id", description="the patient; null: see data.patient_regex")
    image_id: Column | None = Field("image_id", description="joins the modalities of a patient's images")
    split: Column | None = Field("split", description="train, val or test; null: a split is generated")


class DataConfig(Section):
    """Which images are used, and how they are read, split and augmented."""

    root_dir: str = Field(
        "demo",
        min_length=1,
        description="demo, a folder of images or with a manifest.csv, a table (.csv), or a MedMNIST .npz",
    )
    columns: ColumnsConfig = ColumnsConfig()
    images: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="table: folder that paths start at, relative to the table; null: the table's folder"
    )
    where: Annotated[dict[Column, Words], Field(min_length=1)] | None = Field(
        None, description="table: rows to use, such as {view: [PA, AP]}; null: all"
    )
    classes: Classes | None = Field(
        None,
        description="table: labels of each class, such as {sick: [flu, cold], well: [none]}; null: as is",
    )
    exclude: Patterns = Field(
        EXCLUDE,
        description="names of files and folders to ignore; {stem}: name of an image in the same folder",
    )
    allow_outside_root: bool = Field(False, description="allow a manifest to name files outside its folder")
    modalities: Modalities = Field(
        ("A",), min_length=1, description="list of modalities; several are stacked as channels"
    )
    image_size: Literal["auto"] | Annotated[int, Field(ge=8, le=4096)] = Field(
        "auto", description="side in pixels; auto: the images' own size, at most 224"
    )
    channels: Literal["auto", 1, 3] = Field(
        "auto", description="per modality: 1 gray, 3 RGB; auto: as in the images"
    )
    fit: Literal["pad", "stretch", "legacy"] = Field(
        "pad", description="images that are not square: pad with black, or stretch; legacy: as in older runs"
    )
    window: Window | None = Field(
        None,
        description="[low, high] for DICOM (in HU) and 16-bit images; "
        "null: from the file, else percentiles of the training images",
    )
    patient_regex: str | None = Field(
        None, description="group 1 of the match on the file name is the patient; null: one patient per file"
    )
    image_id_regex: str | None = Field(
        None, description="group 1 of the match on the file name joins the modalities; null: the whole name"
    )
    positive_class: ClassName | None = Field(
        None, description="the class of sensitivity (of two classes); null: the last by name"
    )
    val_fraction: float = Field(0.15, gt=0, lt=1, description="fraction of images if the data has no split")
    test_fraction: float = Field(0.15, ge=0, lt=1, description="fraction of images if the data has no split")
    stratify: Literal["auto", "images", "patients"] = Field(
        "auto",
        description="balance classes over images or patients; auto: images (demo: patients)",
    )
    split_seed: int = Field(0, ge=0, description="seed of the split; independent of training.seed")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="cross-validation: number of folds by patient, without test; null: none"
    )
    fold: int = Field(0, ge=0, description="cross-validation: the fold to validate on, from 0")
    on_leak: Literal["drop", "error", "allow"] = Field(
        "drop", description="a patient or image in two splits: drop it from training, error, or allow"
    )
    on_near_duplicate: Literal["report", "drop", "error", "group"] = Field(
        "report",
        description="val and test images similar to a training image; group: put both into one split",
    )
    near_duplicate_threshold: float = Field(0.97, gt=0, lt=1, description="correlation of their thumbnails")
    on_bad_image: Literal["error", "skip"] = Field("error", description="if an image cannot be read")
    cache_dir: str | None = Field(
        None, description="folder of decoded images; null: {experiment.output_dir}/cache"
    )
    cache_gb: float = Field(
        50.0, gt=0, description="maximum size of the cache in GB; the least recently used images are deleted"
    )
    device_cache: DeviceCache = Field(
        "auto",
        description="keep images on the GPU if they fit into this fraction of its free memory; auto: 0.25",
    )
    augment: AugmentConfig = AugmentConfig()

    @property
    def cache_share(self) -> float | None:
        """Return the fraction of a GPU's free memory for decoded images; None for none."""
        if isinstance(self.device_cache, float):
            return self.device_cache
        return _AUTO_CACHE_SHARE if self.device_cache == "auto" else None

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"data.folds is {self.folds}: fold {self.fold} not found; folds count from 0")
        return self
