"""The four solids: where a ray enters one, and the surface normal there.

Every solid is described in a unit frame (center at the origin, y up); an object of size `radius` standing on the
ground is that frame scaled by `radius` and lifted by `HALF_HEIGHT * radius`. Rays keep their parameter t under this
change of frame, so an entry found here is the entry in the world.

All functions take `origin` and `direction` of shape (3, M) or (3, 1) (they broadcast) and assume origins outside.
"""

from __future__ import annotations

import numpy as np

SHAPES = ("sphere", "cube", "cylinder", "cone")

CUBE_HALF = 0.80
CYLINDER_RADIUS, CYLINDER_HALF = 0.82, 0.90
CONE_RADIUS, CONE_HALF = 1.00, 1.00
CONE_SLOPE = CONE_RADIUS / (2 * CONE_HALF)

HALF_HEIGHT = {"sphere": 1.0, "cube": CUBE_HALF, "cylinder": CYLINDER_HALF, "cone": CONE_HALF}
BOUND = {
    "sphere": 1.0,
    "cube": CUBE_HALF * 3**0.5,
    "cylinder": (CYLINDER_RADIUS**2 + CYLINDER_HALF**2) ** 0.5,
    "cone": (CONE_RADIUS**2 + CONE_HALF**2) ** 0.5,
}
"""Radius of the bounding sphere about the center, in units of the object's radius."""
FOOTPRINT = {"sphere": 1.0, "cube": CUBE_HALF * 2**0.5, "cylinder": CYLINDER_RADIUS, "cone": CONE_RADIUS}
"""Radius of the vertical cylinder that holds the solid: two objects touch at most when these do."""

MISS = np.float32(np.inf)


def entry(shape: str, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Ray parameter t (M,) at which each ray enters the solid, +inf for rays that miss it or point away from it."""
    t = _ENTRY[shape](origin, direction)
    return np.where(t > 0, t, MISS)


def normal(shape: str, point: np.ndarray) -> np.ndarray:
    """Outward unit normals (3, M) at surface points (3, M) of the solid's unit frame."""
    return _NORMAL[shape](point)


def column(vector: tuple[float, float, float]) -> np.ndarray:
    """A triple as (3, 1) float32, ready to broadcast over points."""
    return np.array(vector, dtype=np.float32)[:, None]


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products (M,) of vectors (3, M) or (3, 1); much faster than a reduction over an axis of length 3."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _sphere_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    a, b = dot(d, d), dot(o, d)
    discriminant = b * b - a * (dot(o, o) - 1)
    t = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.where(discriminant > 0, t, MISS)


def _sphere_normal(p: np.ndarray) -> np.ndarray:
    return p / np.sqrt(dot(p, p))


def _cube_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    first, last = _slab(o, d, CUBE_HALF)
    enter = np.maximum(np.maximum(first[0], first[1]), first[2])
    leave = np.minimum(np.minimum(last[0], last[1]), last[2])
    return np.where(enter < leave, enter, MISS)


def _cube_normal(p: np.ndarray) -> np.ndarray:
    face = np.abs(p).argmax(0)
    out = np.zeros_like(p)
    columns = np.arange(p.shape[1])
    out[face, columns] = np.sign(p[face, columns])
    return out


def _cylinder_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    # The solid is the intersection of an infinite cylinder and a slab, both convex: so a ray is inside each for one interval.
    a = d[0] * d[0] + d[2] * d[2]
    b = o[0] * d[0] + o[2] * d[2]
    discriminant = b * b - a * (o[0] * o[0] + o[2] * o[2] - CYLINDER_RADIUS**2)
    root = np.sqrt(np.maximum(discriminant, 0))
    first, last = _slab(o[1], d[1], CYLINDER_HALF)
    enter = np.maximum((-b - root) / a, first)
    leave = np.minimum((-b + root) / a, last)
    return np.where((discriminant > 0) & (enter < leave), enter, MISS)


def _cylinder_normal(p: np.ndarray) -> np.ndarray:
    side = p / np.sqrt(p[0] * p[0] + p[2] * p[2])
    cap = np.abs(p[1]) > CYLINDER_HALF * (1 - 1e-4)
    return np.stack([np.where(cap, 0, side[0]), np.where(cap, np.sign(p[1]), 0), np.where(cap, 0, side[2])])


def _cone_entry(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    # Apex at y = +CONE_HALF. The double cone is not convex, so every candidate surface point is tested separately.
    drop = CONE_HALF - o[1]
    k = CONE_SLOPE**2
    a = d[0] * d[0] + d[2] * d[2] - k * d[1] * d[1]
    b = o[0] * d[0] + o[2] * d[2] + k * drop * d[1]
    discriminant = b * b - a * (o[0] * o[0] + o[2] * o[2] - k * drop * drop)
    root = np.sqrt(np.maximum(discriminant, 0))
    a = np.where(np.abs(a) < 1e-7, np.float32(1e-7), a)
    nearest = np.full(discriminant.shape, MISS)
    for t in ((-b - root) / a, (-b + root) / a):
        on_side = (discriminant > 0) & (np.abs(o[1] + t * d[1]) <= CONE_HALF)
        nearest = np.minimum(nearest, np.where(on_side, t, MISS))
    t = (-CONE_HALF - o[1]) / _nonzero(d[1])
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    return np.minimum(nearest, np.where(x * x + z * z <= CONE_RADIUS**2, t, MISS))


def _cone_normal(p: np.ndarray) -> np.ndarray:
    across = np.sqrt(p[0] * p[0] + p[2] * p[2])
    length = np.maximum(across, 1e-6) * (1 + CONE_SLOPE**2) ** 0.5
    return np.stack([p[0] / length, across * CONE_SLOPE / length, p[2] / length])


def _slab(o: np.ndarray, d: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last t at which the coordinate lies within +-half."""
    inverse = 1 / _nonzero(d)
    low, high = (-half - o) * inverse, (half - o) * inverse
    return np.minimum(low, high), np.maximum(low, high)


def _nonzero(d: np.ndarray) -> np.ndarray:
    return np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)


_ENTRY = {"sphere": _sphere_entry, "cube": _cube_entry, "cylinder": _cylinder_entry, "cone": _cone_entry}
_NORMAL = {"sphere": _sphere_normal, "cube": _cube_normal, "cylinder": _cylinder_normal, "cone": _cone_normal}
