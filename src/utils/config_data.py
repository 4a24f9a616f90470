"""The data section of the settings."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .config_fields import EXCLUDE, ClassName, DeviceCache, Modalities, Patterns, Window

_AUTO_CACHE_SHARE = 0.25


class Section(BaseModel):
    """A section of the settings: unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AugmentConfig(Section):
    """Random changes of training images; batches are augmented as a whole on the training device."""

    horizontal_flip: Literal["auto"] | bool = Field(
        "auto", description="mirror left and right, half of the time; auto: unless DICOM says CT or X-ray"
    )
    vertical_flip: bool = Field(False, description="mirror top and bottom, half of the time")
    rotation: float = Field(10.0, ge=0, le=180, description="up to this many degrees either way")
    translation: float = Field(0.05, ge=0, le=0.5, description="up to this share of the side, each way")
    scale: float = Field(0.1, ge=0, le=0.9, description="zoom by up to this share, in or out")
    brightness: float = Field(0.1, ge=0, le=1, description="add up to this share of the full range")
    contrast: float = Field(0.1, ge=0, le=1, description="stretch around the image's mean by this share")


class DataConfig(Section):
    """Which images, how they are split, and how they reach the network."""

    root_dir: str = Field(
        "demo",
        min_length=1,
        description="demo, a folder of images or with a manifest.csv, or a MedMNIST .npz",
    )
    exclude: Patterns = Field(
        EXCLUDE, description="names of files and folders to leave out; {stem}: beside an image of that name"
    )
    allow_outside_root: bool = Field(False, description="let a manifest name files outside its folder")
    modalities: Modalities = Field(
        ("A",), min_length=1, description="what to train on, as a list; several are stacked as channels"
    )
    image_size: Literal["auto"] | Annotated[int, Field(ge=8, le=4096)] = Field(
        "auto", description="side in pixels; auto: the images' own size, at most 224"
    )
    channels: Literal["auto", 1, 3] = Field(
        "auto", description="of each modality: 1 gray, 3 RGB; auto: what the images have"
    )
    fit: Literal["pad", "stretch", "legacy"] = Field(
        "pad", description="images that are not square: pad with black, or stretch; legacy: as older runs"
    )
    window: Window | None = Field(
        None,
        description="[low, high] for DICOM (in HU) and 16-bit images; "
        "null: the file's own, else percentiles of the training images",
    )
    patient_regex: str | None = Field(
        None, description="group 1 found in a file's name is its patient; null: each file is its own patient"
    )
    image_id_regex: str | None = Field(
        None, description="group 1 found in a file's name is what joins modalities; null: the whole name"
    )
    positive_class: ClassName | None = Field(
        None, description="the class that sensitivity is about (of two); null: the last by name"
    )
    val_fraction: float = Field(0.15, gt=0, lt=1, description="share of the images, where the split is ours")
    test_fraction: float = Field(0.15, ge=0, lt=1, description="share of the images, where the split is ours")
    stratify: Literal["auto", "images", "patients"] = Field(
        "auto",
        description="our split balances classes over images or patients; auto: images, not for the demo",
    )
    split_seed: int = Field(0, ge=0, description="seed of the split, apart from training.seed")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="cross-validation: all but test in this many parts by patient; null: none"
    )
    fold: int = Field(0, ge=0, description="cross-validation: the part to validate on, from 0")
    on_leak: Literal["drop", "error", "allow"] = Field(
        "drop", description="the same patient or image in two splits: drop it from training, error, or allow"
    )
    on_near_duplicate: Literal["report", "drop", "error", "group"] = Field(
        "report", description="val and test images like a training image; group: together in our own split"
    )
    near_duplicate_threshold: float = Field(0.97, gt=0, lt=1, description="correlation of their thumbnails")
    on_bad_image: Literal["error", "skip"] = Field("error", description="an image that cannot be read")
    cache_dir: str | None = Field(None, description="decoded images; null: {experiment.output_dir}/cache")
    cache_gb: float = Field(
        50.0, gt=0, description="of decoded images kept, in GB; the least recently used go first"
    )
    device_cache: DeviceCache = Field(
        "auto",
        description="keep decoded images on the GPU if they fit in this share of its free memory; auto: 0.25",
    )
    augment: AugmentConfig = AugmentConfig()

    @property
    def cache_share(self) -> float | None:
        """The share of a GPU's free memory for decoded images; None for none."""
        if isinstance(self.device_cache, float):
            return self.device_cache
        return _AUTO_CACHE_SHARE if self.device_cache == "auto" else None

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} is none of data.folds {self.folds}; they count from 0")
        return self
