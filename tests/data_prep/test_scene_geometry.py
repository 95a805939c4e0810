"""Depth and segmentation against an independent description of the solids: is a point inside or outside?"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from data_prep.scenes import render
from data_prep.scenes.samples import sample
from data_prep.scenes.solids import CONE_HALF, CONE_RADIUS, CUBE_HALF, CYLINDER_HALF, CYLINDER_RADIUS, SHAPES, normal
from data_prep.scenes.splits import example
from data_prep.scenes.world import Camera, Look, Scene, Thing
from tests.data_prep.stored import pixels

CAMERA = Camera.looking_at((0.1, 2.3, 6.5), (0.0, 0.5, -0.2))
LOOK = Look(
    light=(0.0, 1.0, 0.0),
    ambient=0.4,
    ground=(0.5, 0.5, 0.5),
    ground_checker=None,
    sky_horizon=(0.7, 0.7, 0.8),
    sky_top=(0.5, 0.6, 0.8),
)


def a_thing(shape: str, **changes: object) -> Thing:
    thing = Thing(shape, "red", "large", "matte", 0.2, 0.4, 0.5 if shape == "cube" else 0.0, (0.8, 0.1, 0.1), 1)
    return dataclasses.replace(thing, **changes)


def excess(thing: Thing, points: np.ndarray) -> np.ndarray:
    """Negative inside the solid, 0 on its surface, positive outside; points (3, ...)."""
    x, y, z = (points - np.reshape(thing.center, (3,) + (1,) * (points.ndim - 1))) / thing.radius
    if thing.shape == "sphere":
        return np.sqrt(x * x + y * y + z * z) - 1
    if thing.shape == "cylinder":
        return np.maximum(np.hypot(x, z) - CYLINDER_RADIUS, np.abs(y) - CYLINDER_HALF)
    if thing.shape == "cone":
        allowed = CONE_RADIUS * (CONE_HALF - y) / (2 * CONE_HALF)
        return np.maximum(np.hypot(x, z) - allowed, -CONE_HALF - y)
    c, s = math.cos(thing.yaw), math.sin(thing.yaw)
    return np.max(np.abs([c * x - s * z, y, c * z + s * x]), axis=0) - CUBE_HALF


@pytest.mark.parametrize("shape", SHAPES)
def test_depth_ends_on_the_surface_and_nothing_solid_lies_before_it(shape):
    thing = a_thing(shape)
    rays = CAMERA.rays(48)
    geometry = render.trace((thing,), CAMERA, rays)
    origin = np.reshape(CAMERA.position, (3, 1, 1))
    end = origin + np.minimum(geometry.depth, 1000) * rays

    on_object = geometry.hit == 1
    assert on_object.sum() > 100
    assert np.abs(excess(thing, end)[on_object]).max() < 1e-4
    on_ground = ~on_object & np.isfinite(geometry.depth)
    assert np.abs(end[1][on_ground] / geometry.depth[on_ground]).max() < 1e-5

    for share in np.linspace(0.3, 0.995, 150):  # march along every ray
        before = origin + share * (end - origin)
        assert excess(thing, before).min() > -1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_the_gradient_of_the_surface(shape):
    thing = a_thing(shape, x=0.0, z=0.0, yaw=0.0)
    rays = CAMERA.rays(64)
    geometry = render.trace((thing,), CAMERA, rays)
    hit = geometry.hit == 1
    points = np.reshape(CAMERA.position, (3, 1)) + geometry.depth[hit] * rays[:, hit]
    step = 2e-3
    shifts = step * np.eye(3)[:, :, None]
    gradient = np.stack([excess(thing, points + e) - excess(thing, points - e) for e in shifts])
    gradient /= np.linalg.norm(gradient, axis=0)
    own = (points - np.reshape(thing.center, (3, 1))) / thing.radius
    agreement = (gradient * normal(shape, own.astype(np.float32))).sum(0)
    assert np.mean(agreement > 0.999) > 0.95  # the rest lies on edges, where there is no gradient


def test_nearest_point_of_a_sphere_is_where_geometry_says():
    thing = a_thing("sphere")
    geometry = render.trace((thing,), CAMERA, CAMERA.rays(400))
    _, _, center_depth = CAMERA.project(thing.center)
    assert geometry.depth[geometry.hit == 1].min() == pytest.approx(center_depth - thing.radius, abs=2e-3)


def test_camera_axes_are_orthonormal_and_project_agrees_with_rays():
    axes = np.array([CAMERA.right, CAMERA.up, CAMERA.forward])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    rays = CAMERA.rays(64)
    row, column_ = 13, 50
    point = np.array(CAMERA.position) + 5.0 * rays[:, row, column_]
    u, v, depth = CAMERA.project(tuple(point.tolist()))
    assert depth == pytest.approx(5.0, abs=1e-5)
    assert ((u + 1) / 2 * 64, (1 - v) / 2 * 64) == (pytest.approx(column_ + 0.5, abs=1e-3), pytest.approx(13.5, abs=1e-3))


def test_the_nearer_object_wins_and_has_the_larger_inverse_depth():
    front = a_thing("cube", x=0.0, z=2.0, mask_id=2)
    back = a_thing("sphere", x=0.1, z=0.0, mask_id=1)
    for things in ((front, back), (back, front)):
        geometry = render.trace(things, CAMERA, CAMERA.rays(64))
        ids = render.instance_ids(things, geometry)
        inverse = render.inverse_depth(geometry).astype(int)
        alone = render.trace((front,), CAMERA, CAMERA.rays(64)).hit == 1
        np.testing.assert_array_equal(ids == 2, alone)
        assert 0 < (ids == 1).sum() < geometry.covered[things.index(back)]
        assert inverse[ids == 2].min() > inverse[ids == 1].max()
        assert (inverse.min(), inverse.max()) == (0, 65535)


def test_inverse_depth_is_the_documented_formula():
    scene = example(1, "val", 0).scene
    geometry = render.geometry_of(scene, 64)
    inverse = 1 / geometry.depth.astype(float)
    wanted = np.round(65535 * (inverse - inverse.min()) / (inverse.max() - inverse.min()))
    fields = sample(1, "val", 0, 64)
    stored = pixels(fields["depth.png"])
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, wanted)


def test_an_object_darkens_the_ground_below_the_light_and_nothing_else():
    thing = a_thing("sphere")
    empty = Scene((), CAMERA, LOOK, noise_seed=5)
    full = Scene((thing,), CAMERA, LOOK, noise_seed=5)
    difference = render.color(full, 96).astype(int).sum(-1) - render.color(empty, 96).astype(int).sum(-1)
    rays = CAMERA.rays(96)
    geometry = render.trace((thing,), CAMERA, rays)
    ground = (geometry.hit == 0) & np.isfinite(geometry.depth)
    points = np.reshape(CAMERA.position, (3, 1, 1)) + np.where(ground, geometry.depth, 0) * rays
    off_axis = np.hypot(points[0] - thing.x, points[2] - thing.z)
    edge = np.zeros_like(ground)  # pixels whose four rays may see different things
    edge[1:-1, 1:-1] = [
        [len(np.unique(geometry.hit[r - 1 : r + 2, c - 1 : c + 2])) > 1 for c in range(1, 95)] for r in range(1, 95)
    ]
    shadow = ground & ~edge & (off_axis < thing.radius - 0.1)
    away = ground & ~edge & (off_axis > thing.radius + 0.1)
    assert shadow.sum() > 20
    assert difference[shadow].max() < -150
    assert difference[away].min() == difference[away].max() == 0


def test_ids_depth_and_objects_of_stored_samples_agree():
    for index in range(40):
        fields = sample(2, "train", index, 64)
        ids, depth = pixels(fields["seg.png"]), pixels(fields["depth.png"]).astype(int)
        objects = json.loads(fields["json"])["objects"]
        assert sorted(thing["id"] for thing in objects) == list(range(1, len(objects) + 1))
        assert set(np.unique(ids)) == {0, *(thing["id"] for thing in objects)}
        for thing in objects:
            own = ids == thing["id"]
            assert own.sum() >= 40
            assert own.sum() / ids.size == pytest.approx(thing["visible"], abs=1e-5)
        by_depth = sorted(objects, key=lambda thing: thing["depth"])
        for near, far in zip(by_depth, by_depth[1:], strict=False):
            if far["depth"] - near["depth"] > near["radius"] + far["radius"]:
                assert np.median(depth[ids == near["id"]]) > np.median(depth[ids == far["id"]])


def test_ids_do_not_encode_place():
    scenes = [example(3, "train", index).scene for index in range(400)]
    leftmost = np.array([scene.things[0].mask_id for scene in scenes if len(scene.things) == 2])
    assert 0.35 < np.mean(leftmost == 1) < 0.65
