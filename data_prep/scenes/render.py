"""A ray-caster for scenes: color (with shadows and highlights), exact depth, exact instance ids.

Geometry (depth, ids) is taken at the pixel centers; color is the mean of 2 x 2 rays per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .solids import BOUND, MISS, column, dot, entry, normal
from .world import HALF_WIDTH, Camera, Look, Scene, Thing, Triple

OVERSAMPLING = 2
HORIZON = np.float32(1e4)
"""Depth at which sky rays end where a finite one is needed."""
NOISE = 0.008
"""Standard deviation of the pixel noise; colors are 0..1."""


@dataclass(frozen=True)
class Geometry:
    """First hits of a grid of rays. `depth` (H, W) float32 along the camera's axis, +inf = sky; `hit` (H, W) uint8:
    0 = ground or sky, k = the scene's k-th object (from 1). `covered[k-1]` counts the rays that would meet object k if
    it were alone."""

    depth: np.ndarray
    hit: np.ndarray
    covered: tuple[int, ...]

    def visible(self) -> np.ndarray:
        """Rays (pixels) that meet each object first, shape (objects,)."""
        return np.bincount(self.hit.ravel(), minlength=len(self.covered) + 1)[1:]


@lru_cache(maxsize=1)  # placing objects and storing the accepted scene use the same geometry
def geometry_of(scene: Scene, size: int) -> Geometry:
    """What the pixel centers of a (size, size) picture see."""
    return trace(scene.things, scene.camera, scene.camera.rays(size))


def trace(things: tuple[Thing, ...], camera: Camera, rays: np.ndarray) -> Geometry:
    """First hits of `rays` (3, H, W) from the camera."""
    down = rays[1] < -1e-6
    depth = np.where(down, np.float32(-camera.position[1]) / np.where(down, rays[1], np.float32(-1)), MISS)
    hit = np.zeros(depth.shape, dtype=np.uint8)
    origin = column(camera.position)
    covered = []
    for number, thing in enumerate(things, start=1):
        rows, columns = _bounding_box(thing, camera, depth.shape[0])
        box = rays[:, rows, columns]
        t = entry(thing.shape, *_to_own_frame(thing, origin, box.reshape(3, -1))).reshape(box.shape[1:])
        nearer = t < depth[rows, columns]
        depth[rows, columns][nearer] = t[nearer]
        hit[rows, columns][nearer] = number
        covered.append(int(np.count_nonzero(t != MISS)))
    return Geometry(depth, hit, tuple(covered))


def color(scene: Scene, size: int) -> np.ndarray:
    """The picture, (size, size, 3) uint8, a pure function of the scene."""
    fine = size * OVERSAMPLING
    rays = scene.camera.rays(fine)
    geometry = trace(scene.things, scene.camera, rays)
    rays, depth, hit = rays.reshape(3, -1), geometry.depth.ravel(), geometry.hit.ravel()
    points = column(scene.camera.position) + np.minimum(depth, HORIZON) * rays
    lit = _lit(scene, points, hit)

    picture = _ground(scene.look, points, lit)
    sky = np.flatnonzero(depth == MISS)
    picture[:, sky] = _sky(scene.look, rays[:, sky])
    for number, thing in enumerate(scene.things, start=1):
        own = np.flatnonzero(hit == number)
        picture[:, own] = _surface(scene.look, thing, points[:, own], rays[:, own], lit[own])

    picture = picture.reshape(3, fine, fine)
    picture = (picture[:, 0::2, 0::2] + picture[:, 0::2, 1::2] + picture[:, 1::2, 0::2] + picture[:, 1::2, 1::2]) / 4
    noise = np.random.default_rng(scene.noise_seed).standard_normal(picture.shape, dtype=np.float32)
    levels = np.clip((picture + NOISE * noise) * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def inverse_depth(geometry: Geometry) -> np.ndarray:
    """Relative inverse depth (H, W) uint16: nearest point 65535, farthest (the sky, if any) 0."""
    inverse = 1 / geometry.depth.astype(np.float64)
    low, high = inverse.min(), inverse.max()
    return np.round(65535 * (inverse - low) / (high - low)).astype(np.uint16)


def instance_ids(things: tuple[Thing, ...], geometry: Geometry) -> np.ndarray:
    """Segmentation (H, W) uint8: each object's `mask_id`, 0 = ground or sky."""
    return np.array([0, *(thing.mask_id for thing in things)], dtype=np.uint8)[geometry.hit]


def _to_own_frame(thing: Thing, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    center = column(thing.center)
    radius = np.float32(thing.radius)
    return _rotated((origin - center) / radius, -thing.yaw), _rotated(direction / radius, -thing.yaw)


def _rotated(vectors: np.ndarray, yaw: float) -> np.ndarray:
    """Vectors (3, M) rotated about the y axis."""
    if yaw == 0:
        return vectors
    c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    return np.stack([c * vectors[0] + s * vectors[2], vectors[1], c * vectors[2] - s * vectors[0]])


def _bounding_box(thing: Thing, camera: Camera, size: int) -> tuple[slice, slice]:
    """Rows and columns that hold the projection of the object's bounding sphere."""
    u, v, depth = camera.project(thing.center)
    bound = BOUND[thing.shape] * thing.radius

    def span(center: float) -> slice:
        reach = bound * (1 + (center * HALF_WIDTH) ** 2) ** 0.5 / ((depth - bound) * HALF_WIDTH)
        first, last = ((center + sign * reach + 1) / 2 * size for sign in (-1, 1))
        return slice(max(0, int(first)), max(0, min(size, int(last) + 1)))

    return span(-v), span(u)


def _lit(scene: Scene, points: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """False where another object stands between a point (3, M) and the light."""
    light, across, upright = (column(axis) for axis in _light_frame(scene.look.light))
    along, sideways, above = dot(points, light), dot(points, across), dot(points, upright)
    lit = np.ones(points.shape[1], dtype=bool)
    for number, thing in enumerate(scene.things, start=1):
        bound = BOUND[thing.shape] * thing.radius
        center = column(thing.center)
        a, b = sideways - dot(center, across), above - dot(center, upright)
        near_beam = (a * a + b * b < bound * bound) & (along < dot(center, light) + bound)
        # The solids are convex: an object never shadows its lit side.
        shaded = np.flatnonzero(near_beam & (owner != number))
        t = entry(thing.shape, *_to_own_frame(thing, points[:, shaded], light))
        lit[shaded[t != MISS]] = False
    return lit


def _light_frame(light: Triple) -> tuple[Triple, Triple, Triple]:
    """The direction to the light and two axes across it; all orthonormal."""
    x, y, z = light
    length = math.hypot(y, z)  # not 0: the light is above the ground
    across = (0.0, z / length, -y / length)
    return light, across, (y * across[2] - z * across[1], -x * across[2], x * across[1])


def _sky(look: Look, rays: np.ndarray) -> np.ndarray:
    height = np.clip(rays[1] * 5, 0, 1)
    low, high = (column(c) for c in (look.sky_horizon, look.sky_top))
    return low + (high - low) * height


def _ground(look: Look, points: np.ndarray, lit: np.ndarray) -> np.ndarray:
    albedo = column(look.ground)
    if look.ground_checker is not None:
        other = column(look.ground_checker)
        odd = ((np.floor(points[0]) + np.floor(points[2])).astype(np.int32) & 1) * np.float32(1)
        # Squares smaller than a pixel would alias: far away they fade into their mean.
        contrast = np.clip((points[2] + 9) / 6, 0, 1)
        albedo = albedo + (other - albedo) * ((odd - 0.5) * contrast + 0.5)
    return albedo * (look.ambient + (1 - look.ambient) * np.float32(look.light[1]) * lit)


def _surface(look: Look, thing: Thing, points: np.ndarray, rays: np.ndarray, lit: np.ndarray) -> np.ndarray:
    center = column(thing.center)
    own_points = _rotated((points - center) / np.float32(thing.radius), -thing.yaw)
    normals = _rotated(normal(thing.shape, own_points), thing.yaw)
    light = column(look.light)
    facing = np.maximum(dot(normals, light), 0) * lit
    ambient = look.ambient * (0.8 + 0.2 * normals[1])  # a little less from below than from the sky
    shaded = column(thing.albedo) * (ambient + (1 - look.ambient) * facing)
    if thing.material == "matte":
        return shaded
    view = rays / np.sqrt(dot(rays, rays))
    mirrored = view - 2 * dot(view, normals) * normals
    sky_seen = np.clip(0.5 + 2 * mirrored[1], 0, 1)
    sky, ground = (column(c) for c in (look.sky_horizon, look.ground))
    reflection = ground * look.ambient + (sky - ground * look.ambient) * sky_seen
    highlight = np.maximum(dot(mirrored, light), 0) ** 12 * lit * (facing > 0)
    return 0.85 * shaded + 0.15 * reflection + 0.8 * highlight
