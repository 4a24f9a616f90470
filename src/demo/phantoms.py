"""SYNTHETIC phantoms that resemble two-phase liver CT; not images of patients.

Each patient has one liver lesion, shown in an arterial (``A``) and a portal venous (``P``) phase.
Typical appearances follow the radiology of the two lesion types (LI-RADS v2018 and textbook descriptions):
a hepatocellular carcinoma enhances in the arterial phase, then washes out and shows a capsule; a
hemangioma has bright nodules along its rim in the arterial phase and fills in from there. Every lesion
is a blend of both appearances, with (almost) independent weights per phase: no phase is perfectly
separable, and both phases together are more informative than either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

_SEED = 2018
_SIZE = 64
_SLICES = (0.3, 0.5, 0.2)  # chances of 1, 2, 3 slices
_WINDOW = (-110.0, 250.0)  # HU shown as 0 and 255
_SHARED = 0.15  # share of the variance of a lesion's atypicality that both phases have in common
_SLICE_SPREAD = 0.35  # spread of the evidence between slices of one lesion
_NOISE_HU = 32.0  # before the blur; about half of it stays

Field = NDArray[np.float64]

_X = np.arange(_SIZE, dtype=np.float64)[None, :]
_Y = _X.T
_FREQUENCY_2 = np.fft.fftfreq(_SIZE)[:, None] ** 2 + np.fft.rfftfreq(_SIZE)[None, :] ** 2


# Right lobe, left lobe, spine, aorta, vena cava, stomach.
_ORGANS = np.array(
    [
        [24.0, 31.0, 20.0, 21.0],
        [40.0, 21.0, 16.0, 9.0],
        [48.0, 53.0, 7.0, 6.5],
        [51.0, 42.0, 2.8, 2.8],
        [41.0, 42.0, 3.2, 2.6],
        [59.0, 25.0, 7.0, 9.0],
    ]
)
_ORGANS_SPREAD = np.array([[1.5], [1.5], [1.0], [0.6], [0.6], [1.5]]) * (1.0, 1.0, 0.5, 0.5)


@dataclass(frozen=True)
class _Phase:
    """Attenuation in HU by tissue, and how far the classes are apart (in spreads of the evidence)."""

    name: str
    evidence: float
    liver: float
    wall: float
    aorta: float
    cava: float
    vessels: float
    spine: float


_PHASES = (
    _Phase("A", evidence=1.15, liver=75, wall=55, aorta=290, cava=70, vessels=88, spine=190),
    _Phase("P", evidence=1.25, liver=108, wall=62, aorta=160, cava=130, vessels=138, spine=180),
)


PHASES = tuple(phase.name for phase in _PHASES)


def patient_images(patient: int, label: int) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """Draw one patient; the same number and label give the same images.

    Args:
        patient: The patient's number.
        label: 0 for the hemangioma-like lesion, 1 for the HCC-like.

    Yields:
        Phase, slice number from 1, and uint8 pixels ``(64, 64)``.
    """
    # One generator for each patient: none depends on how many come before it.
    rng = np.random.default_rng((_SEED, patient))
    shape = _draw_shape(rng)
    common = rng.normal()
    evidence = [
        (2 * label - 1) * phase.evidence + np.sqrt(_SHARED) * common + np.sqrt(1 - _SHARED) * rng.normal()
        for phase in _PHASES
    ]
    for index in range(1, 2 + int(rng.choice(len(_SLICES), p=_SLICES))):
        scene = _slice(rng, shape)
        for phase, typical in zip(_PHASES, evidence, strict=True):
            yield phase.name, index, _image(rng, phase, scene, typical + _SLICE_SPREAD * rng.normal())


@dataclass(frozen=True)
class _Shape:
    """A patient's anatomy in pixels; an ellipse is (x, y, x semi-axis, y semi-axis)."""

    body: Field  # (4,)
    organs: Field  # (6, 4), in the order of _ORGANS
    waves: Field  # (4, 4): ripples of the two lobes and of the lesion, and its nodules
    vessels: Field  # (3, points): x, y and strength
    lesion: Field  # (4,): x, y, radius, aspect
    front: float  # how far a hemangioma has filled in: share of the radius that is still dark


@dataclass(frozen=True)
class _Slice:
    """One slice, the same tissue in both phases; every field is (64, 64)."""

    cover: dict[str, Field]  # share of each pixel that a tissue covers, from the back to the front
    texture: Field
    mosaic: Field
    rho: Field  # 0 at the lesion's center, 1 on its rim
    nodules: Field
    front: float


def _draw_shape(rng: np.random.Generator) -> _Shape:
    """Draw an anatomy; lesions of both classes have the same positions, sizes and outlines."""
    organs = _ORGANS + rng.normal(size=_ORGANS.shape) * _ORGANS_SPREAD
    angle, reach = rng.uniform(0, 2 * np.pi), 0.5 * np.sqrt(rng.uniform())
    x, y, x_axis, y_axis = organs[0]
    center = (x + reach * x_axis * np.cos(angle), y + reach * y_axis * np.sin(angle))
    return _Shape(
        body=np.array([40.0, 33.0, 40.0, 30.5]) + rng.normal(size=4) * (1.5, 1.0, 2.0, 1.2),
        organs=organs,
        waves=rng.normal(size=(4, 4)),
        vessels=_branches(rng),
        lesion=np.array([*center, rng.uniform(5.0, 8.5), rng.uniform(0.8, 1.25)]),
        front=rng.uniform(0.1, 0.45),
    )


def _branches(rng: np.random.Generator, count: int = 6, points: int = 48) -> Field:
    """Return points along the vessels that leave the hilum: x, y and strength, (3, count * points)."""
    along = np.linspace(0.0, 1.0, points)
    heading = np.linspace(1.7, 5.2, count) + rng.normal(size=count) * 0.25
    angle = heading[:, None] + rng.normal(size=(count, 1)) * 0.7 * along
    distance = rng.uniform(12, 22, (count, 1)) * along
    x = 35.0 + rng.normal() + distance * np.cos(angle)
    y = 33.0 + rng.normal() + distance * np.sin(angle)
    strength = np.broadcast_to(1.3 - 0.9 * along, x.shape)
    return np.stack([x, y, strength]).reshape(3, -1)


def _slice(rng: np.random.Generator, shape: _Shape) -> _Slice:
    """Draw the next slice: the same anatomy a little further along the body."""
    body = shape.body + rng.normal(size=4) * 0.3
    right, left, spine, aorta, cava, stomach = shape.organs + rng.normal(size=shape.organs.shape) * 0.4
    waves = shape.waves + rng.normal(size=shape.waves.shape) * 0.2
    x, y, radius, aspect = shape.lesion + rng.normal(size=4) * (0.6, 0.6, 0.4, 0.05)
    liver = _cover(np.maximum(_ellipse(right, waves[0]), _ellipse(left, waves[1])))
    dx, dy = _X - x, (_Y - y) * aspect
    angle = np.arctan2(dy, dx)
    rho = np.sqrt(dx * dx + dy * dy) / (radius * _ripple(dx, dy, waves[2]))
    cover = {
        "skin": _cover(_ellipse(body)),
        "wall": _cover(_ellipse(body - (0.0, 0.0, 4.0, 4.0))),
        "fat": _cover(_ellipse(body - (0.0, 0.0, 6.5, 6.5))),
        "stomach": _cover(_ellipse(stomach)),
        "liver": liver,
        "vessels": liver * _draw_points(shape.vessels + rng.normal(size=(3, 1)) * ((0.4,), (0.4,), (0.0,))),
        "spine": _cover(_ellipse(spine)),
        "aorta": _cover(_ellipse(aorta)),
        "cava": _cover(_ellipse(cava)),
        "lesion": _cover((1.0 - rho) * radius),
    }
    a, b = waves[3, :2]
    nodules = np.clip(0.45 + 0.4 * np.sin(3 * angle + 3 * a) + 0.3 * np.sin(5 * angle + 3 * b), 0.0, 1.0)
    return _Slice(cover, _texture(rng, 2.5), _texture(rng, 1.2), rho, nodules, shape.front)


def _cover(inwards: Field) -> Field:
    """Return the share of each pixel that is covered, from its distance (pixels) inwards of an edge."""
    return np.clip(inwards + 0.5, 0.0, 1.0)


def _ellipse(row: Field, waves: Field | None = None) -> Field:
    """Return the approximate distance in pixels inwards of an ellipse; ``waves`` (4,) ripple the edge."""
    x, y = (_X - row[0]) / row[2], (_Y - row[1]) / row[3]
    edge = 1.0 if waves is None else _ripple(x, y, waves)
    inwards: Field = (edge - np.sqrt(x * x + y * y)) * min(row[2], row[3])
    return inwards


def _ripple(x: Field, y: Field, waves: Field) -> Field:
    """Return 1 with waves of the second and third order along the angle of (x, y)."""
    a, b, c, d = 0.05 * waves
    turn = x + 1j * y
    turn /= np.abs(turn)
    square = turn * turn
    ripple: Field = 1.0 + ((a - 1j * b) * square + (c - 1j * d) * square * turn).real
    return ripple


def _draw_points(points: Field) -> Field:
    """Return the share of each pixel that points (3, n), blurred to a line, cover."""
    column, row = np.clip(np.rint(points[:2]), 0, _SIZE - 1).astype(np.intp)
    drawn: Field = np.bincount(row * _SIZE + column, points[2], _SIZE**2).astype(np.float64)
    return np.clip(_smooth(drawn.reshape(_SIZE, _SIZE), 0.8) - 0.15, 0.0, 1.0)


@cache
def _transfer(sigma: float) -> Field:
    """Return the transfer function of a Gaussian blur of ``sigma`` pixels."""
    return np.exp(-2.0 * (np.pi * sigma) ** 2 * _FREQUENCY_2)


def _smooth(field: Field, sigma: float) -> Field:
    """Apply a Gaussian blur of ``sigma`` pixels with periodic boundaries."""
    blurred: Field = np.fft.irfft2(np.fft.rfft2(field) * _transfer(sigma), s=field.shape)
    return blurred


def _texture(rng: np.random.Generator, sigma: float) -> Field:
    """Draw smooth noise of mean 0 and variance 1, (64, 64)."""
    noise = _smooth(rng.normal(size=(_SIZE, _SIZE)), sigma)
    texture: Field = (noise - noise.mean()) / noise.std()
    return texture


def _image(rng: np.random.Generator, phase: _Phase, scene: _Slice, evidence: float) -> NDArray[np.uint8]:
    """Render one slice in one phase, (64, 64)."""
    malignant = 1.0 / (1.0 + np.exp(-1.7 * evidence))
    hu = _healthy(phase, scene)
    hu += malignant * _hcc(phase, scene) + (1.0 - malignant) * _hemangioma(phase, scene)
    hu = _smooth(hu + _NOISE_HU * rng.normal(size=hu.shape), 0.6)  # blur and grain of the scanner
    low, high = _WINDOW
    return np.rint(255.0 * np.clip((hu - low) / (high - low), 0.0, 1.0)).astype(np.uint8)


def _healthy(phase: _Phase, scene: _Slice) -> Field:
    """Return the slice without the lesion, in HU."""
    values = {
        "skin": -100.0,  # mostly the fat under it
        "wall": phase.wall,
        "fat": -80.0,
        "stomach": 25.0,
        "liver": phase.liver + 5.0 * scene.texture,
        "vessels": phase.vessels,
        "spine": phase.spine + 25.0 * scene.mosaic,
        "aorta": phase.aorta,
        "cava": phase.cava,
    }
    hu = np.full((_SIZE, _SIZE), -1000.0)
    for tissue, value in values.items():
        hu += scene.cover[tissue] * (value - hu)
    return hu


def _ring(scene: _Slice, at: float, width: float) -> Field:
    """Return 1 at ``at`` of the way from the lesion's center to its rim, fading within ``width``."""
    return np.exp(-(((scene.rho - at) / width) ** 2))


def _hcc(phase: _Phase, scene: _Slice) -> Field:
    """Return what a typical hepatocellular carcinoma adds to the liver, in HU."""
    inside = scene.cover["lesion"]
    if phase.name == "A":  # lights up, unevenly
        return inside * (55.0 + 16.0 * scene.mosaic)
    return inside * (-58.0 + 10.0 * scene.mosaic) + 34.0 * _ring(scene, 1.05, 0.14)  # washout, capsule


def _hemangioma(phase: _Phase, scene: _Slice) -> Field:
    """Return what a typical hemangioma adds to the liver, in HU."""
    inside = scene.cover["lesion"]
    if phase.name == "A":  # dark, with nodules along the rim
        return inside * (-25.0 + 120.0 * scene.nodules * _ring(scene, 0.85, 0.22))
    filled = 1.0 / (1.0 + np.exp((scene.front - scene.rho) / 0.08))
    return inside * (-15.0 + (70.0 + 14.0 * scene.nodules) * filled)
