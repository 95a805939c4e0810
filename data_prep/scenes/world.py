"""What a scene is made of: objects, a camera and a look (light, ground, sky).

World axes: x right, y up, z towards the camera; the ground is y = 0; lengths in units of roughly one object diameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from .solids import HALF_HEIGHT

Triple = tuple[float, float, float]

COLORS: dict[str, Triple] = {
    "red": (0.84, 0.10, 0.09),
    "green": (0.13, 0.62, 0.16),
    "blue": (0.12, 0.22, 0.86),
    "yellow": (0.93, 0.80, 0.10),
    "purple": (0.58, 0.14, 0.68),
    "cyan": (0.10, 0.74, 0.80),
}
"""Albedo of each color word, linear, 0..1."""
RADII = {"small": 0.55, "large": 0.82}
MATERIALS = ("matte", "shiny")

HALF_WIDTH = 0.37
"""Tangent of half the field of view: a small object at the far end is still about 10 of 64 pixels wide."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene. `mask_id` is its id in the segmentation, drawn at random: it carries no information."""

    shape: str
    color: str
    size: str
    material: str
    x: float
    z: float
    yaw: float
    albedo: Triple
    mask_id: int

    @property
    def radius(self) -> float:
        return RADII[self.size]

    @property
    def center(self) -> Triple:
        return self.x, HALF_HEIGHT[self.shape] * self.radius, self.z


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `right`, `up`, `forward` are its orthonormal axes in the world."""

    position: Triple
    right: Triple
    up: Triple
    forward: Triple

    @classmethod
    def looking_at(cls, position: Triple, target: Triple) -> Camera:
        fx, fy, fz = (t - p for t, p in zip(target, position, strict=True))
        length = math.sqrt(fx * fx + fy * fy + fz * fz)
        fx, fy, fz = fx / length, fy / length, fz / length
        across = math.hypot(fx, fz)
        right = (-fz / across, 0.0, fx / across)
        up = (-right[2] * fy, right[2] * fx - right[0] * fz, right[0] * fy)
        return cls(position, right, up, (fx, fy, fz))

    def project(self, point: Triple) -> Triple:
        """(u, v, depth) of a world point: u right and v up, both -1..1 inside the picture; depth along the axis."""
        px, py, pz = point[0] - self.position[0], point[1] - self.position[1], point[2] - self.position[2]
        depth = px * self.forward[0] + py * self.forward[1] + pz * self.forward[2]
        u = (px * self.right[0] + py * self.right[1] + pz * self.right[2]) / (depth * HALF_WIDTH)
        v = (px * self.up[0] + py * self.up[1] + pz * self.up[2]) / (depth * HALF_WIDTH)
        return u, v, depth

    def rays(self, size: int) -> np.ndarray:
        """Directions (3, size, size) float32 through the pixel centers. Their part along `forward` is 1, so that the
        ray parameter t is the depth along the camera's axis."""
        u, v = _pixel_grid(size)
        axes = np.array([self.right, self.up, self.forward], dtype=np.float32)
        return axes[0, :, None, None] * u + axes[1, :, None, None] * v + axes[2, :, None, None]


@dataclass(frozen=True)
class Look:
    """Everything about a scene that carries no answer: light, ground and sky. Colors are linear, 0..1."""

    light: Triple
    ambient: float
    ground: Triple
    ground_checker: Triple | None
    sky_horizon: Triple
    sky_top: Triple


@dataclass(frozen=True)
class Scene:
    """Objects from left to right in the picture, and how they are seen."""

    things: tuple[Thing, ...]
    camera: Camera
    look: Look
    noise_seed: int


@cache
def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    steps = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1) * np.float32(HALF_WIDTH)
    return steps[None, :], -steps[:, None]
