"""Random scenes whose attributes keep questions fair.

Attributes are drawn so that the text of a question does not betray its answer:
- the number of objects is uniform on 1..4, and so is the number of objects of the scene's *theme shape* on 0..3
  (`COUNTS` is a joint table with both margins uniform): "how many ... are there" has four equally likely answers;
- colors are unique in a scene, so "the red object" is never ambiguous, and every color is equally likely although some
  color-shape pairs are held out from training.
When a scene is too crowded only the places are redrawn, never the attributes: crowding must not change the odds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import render
from .solids import BOUND, FOOTPRINT, HALF_HEIGHT, SHAPES
from .world import COLORS, HALF_WIDTH, MATERIALS, RADII, Camera, Look, Scene, Thing, Triple

Pair = tuple[str, str]
"""(color, shape)."""
HELD_OUT: tuple[Pair, ...] = (("red", "cylinder"), ("blue", "cube"), ("green", "sphere"))
"""Never in training or validation, in pictures or in texts."""
ALL_PAIRS = frozenset((color, shape) for color in COLORS for shape in SHAPES)
SEEN_PAIRS = ALL_PAIRS - set(HELD_OUT)

COUNTS = (
    (0.125, 0.125, 0.00, 0.00),
    (0.080, 0.080, 0.09, 0.00),
    (0.025, 0.025, 0.10, 0.10),
    (0.020, 0.020, 0.06, 0.15),
)
"""Probability of n = 1..4 objects (rows), 0..3 of them of the theme shape (columns): rows and columns sum to 1/4."""

SIDE_MARGIN = 0.25
"""Least difference between two objects left to right, in world units at the middle of the scene (3 of 64 pixels)."""
MIDDLE_DEPTH = 6.7
NEAR_Z, FAR_Z = 2.5, -1.3
GAP = 0.06
TRIES = 20
MIN_PIXELS, MIN_SHARE, CHECK_SIZE = 60, 0.55, 64
"""An object must show this many pixels of a CHECK_SIZE picture, and this fraction of what it would show alone."""


@dataclass(frozen=True)
class Attributes:
    """What the objects are, before they have a place. `theme` is the shape whose number is balanced."""

    pairs: tuple[Pair, ...]
    sizes: tuple[str, ...]
    materials: tuple[str, ...]
    theme: str


def draw_attributes(
    rng: np.random.Generator, allowed: frozenset[Pair] = SEEN_PAIRS, required: Pair | None = None
) -> Attributes:
    """Attributes of 1-4 objects with pairs out of `allowed`; `required` (if any) is the pair of one of them."""
    cell = rng.choice(16, p=np.ravel(COUNTS))
    number, of_theme = cell // 4 + 1, cell % 4
    theme = SHAPES[rng.integers(4)]
    others = [shape for shape in SHAPES if shape != theme]
    shapes = [theme] * of_theme + [others[rng.integers(3)] for _ in range(number - of_theme)]
    rng.shuffle(shapes)
    colors: list[str] = []
    if required is not None:
        # Exchanging two shape names throughout the scene keeps all its counts.
        swap = {shapes[0]: required[1], required[1]: shapes[0]}
        shapes, theme = [swap.get(shape, shape) for shape in shapes], swap.get(theme, theme)
        colors.append(required[0])
    for shape in shapes[len(colors) :]:
        free = [color for color in COLORS if color not in colors and (color, shape) in allowed]
        weights = np.array([1 / shape_choices(color, allowed) for color in free])
        colors.append(free[rng.choice(len(free), p=weights / weights.sum())])
    return Attributes(
        pairs=tuple(zip(colors, shapes, strict=True)),
        sizes=tuple(tuple(RADII)[k] for k in rng.integers(len(RADII), size=number)),
        materials=tuple(MATERIALS[k] for k in rng.integers(len(MATERIALS), size=number)),
        theme=theme,
    )


def shape_choices(color: str, allowed: frozenset[Pair]) -> int:
    """Number of shapes that may have this color."""
    return sum((color, shape) in allowed for shape in SHAPES)


def draw_scene(rng: np.random.Generator, attributes: Attributes, look: Look) -> Scene:
    """A scene with these attributes, in which every object is visible and the left-right order is clear."""
    while True:
        camera = draw_camera(rng)
        things = _place(rng, attributes, camera)
        if things is None:
            continue
        scene = Scene(things, camera, look, noise_seed=int(rng.integers(2**31)))
        if _all_visible(scene):
            return scene


def draw_camera(rng: np.random.Generator) -> Camera:
    shake = rng.uniform(-1, 1, size=5).tolist()
    position = (0.25 * shake[0], 2.35 + 0.2 * shake[1], 6.6 + 0.2 * shake[2])
    return Camera.looking_at(position, (0.08 * shake[3], 0.5 + 0.06 * shake[4], -0.2))


def draw_look(rng: np.random.Generator) -> Look:
    """The look of training: bright, light from above and in front, plain gray ground, pale sky."""
    azimuth, elevation = rng.uniform(-1.1, 1.1), rng.uniform(0.75, 1.1)
    gray = rng.uniform(0.50, 0.64)
    tint = rng.uniform(-0.02, 0.02, size=3)
    sky = np.array([0.70, 0.76, 0.84]) + rng.uniform(-0.04, 0.04)
    return Look(
        light=_direction(azimuth, elevation),
        ambient=float(rng.uniform(0.36, 0.44)),
        ground=_triple(gray + tint),
        ground_checker=None,
        sky_horizon=_triple(sky),
        sky_top=_triple(sky - [0.16, 0.10, 0.02]),
    )


def draw_unseen_look(rng: np.random.Generator) -> Look:
    """A look that training never shows: low side light, little ambient, checkerboard ground, colored sky."""
    azimuth = rng.uniform(1.35, 1.75) * rng.choice([-1, 1])
    light_square = rng.uniform(0.62, 0.78) + rng.uniform(-0.06, 0.06, size=3)
    dark_square = rng.uniform(0.28, 0.40) + rng.uniform(-0.06, 0.06, size=3)
    skies = np.array([[0.90, 0.55, 0.30], [0.42, 0.30, 0.55], [0.35, 0.62, 0.45], [0.85, 0.60, 0.68]])
    sky = skies[rng.integers(len(skies))] + rng.uniform(-0.05, 0.05, size=3)
    return Look(
        light=_direction(azimuth, rng.uniform(0.38, 0.52)),
        ambient=float(rng.uniform(0.20, 0.26)),
        ground=_triple(light_square),
        ground_checker=_triple(dark_square),
        sky_horizon=_triple(sky),
        sky_top=_triple(sky * 0.6),
    )


def is_clear(scene: Scene) -> bool:
    """True when no object is cut by the frame, touches or is hidden by another, or has the same horizontal position."""
    places = [Footing.of(thing.shape, thing.size, thing.x, thing.z, scene.camera) for thing in scene.things]
    fits = all(place.inside_frame and place.apart_from(places[:k]) for k, place in enumerate(places))
    return fits and _all_visible(scene)


def from_left_to_right(things: list[Thing], camera: Camera) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: camera.project(thing.center)[0]))


@dataclass(slots=True)
class Footing:
    """The room an object takes on the ground (x, z, reach) and in the picture (u, inside_frame)."""

    x: float
    z: float
    reach: float
    u: float
    inside_frame: bool

    @classmethod
    def of(cls, shape: str, size: str, x: float, z: float, camera: Camera) -> Footing:
        radius = RADII[size]
        u, v, depth = camera.project((x, HALF_HEIGHT[shape] * radius, z))
        seen = 0.9 * BOUND[shape] * radius / ((depth - 0.5 * radius) * HALF_WIDTH)
        return cls(x, z, FOOTPRINT[shape] * radius, u, abs(u) + seen <= 1 and abs(v) + seen <= 1)

    def apart_from(self, others: list[Footing]) -> bool:
        for other in others:
            if abs(self.u - other.u) * HALF_WIDTH * MIDDLE_DEPTH < SIDE_MARGIN:
                return False
            if math.hypot(self.x - other.x, self.z - other.z) < self.reach + other.reach + GAP:
                return False
        return True


def _all_visible(scene: Scene) -> bool:
    geometry = render.geometry_of(scene, CHECK_SIZE)
    visible = geometry.visible()
    return bool((visible >= MIN_PIXELS).all() and (visible >= MIN_SHARE * np.array(geometry.covered)).all())


def _place(rng: np.random.Generator, attributes: Attributes, camera: Camera) -> tuple[Thing, ...] | None:
    """The objects at random places, or None when one of them found none."""
    places: list[Footing] = []
    for (_, shape), size in zip(attributes.pairs, attributes.sizes, strict=True):
        for z, side in rng.uniform((FAR_Z, -1), (NEAR_Z, 1), size=(TRIES, 2)).tolist():
            # `side` is a position in the picture, so that near and far objects spread over its whole width.
            place = Footing.of(shape, size, side * HALF_WIDTH * (camera.position[2] - z), z, camera)
            if place.inside_frame and place.apart_from(places):
                places.append(place)
                break
        else:
            return None
    number = len(places)
    mask_ids = (rng.permutation(number) + 1).tolist()
    yaws = rng.uniform(0, math.pi / 2, size=number).tolist()
    tints = rng.uniform(-0.03, 0.03, size=(number, 3))
    things = [
        Thing(
            shape=shape,
            color=color,
            size=attributes.sizes[k],
            material=attributes.materials[k],
            x=places[k].x,
            z=places[k].z,
            yaw=yaws[k] if shape == "cube" else 0.0,
            albedo=_triple(np.clip(COLORS[color] + tints[k], 0, 1)),
            mask_id=mask_ids[k],
        )
        for k, (color, shape) in enumerate(attributes.pairs)
    ]
    return from_left_to_right(things, camera)


def _direction(azimuth: float, elevation: float) -> Triple:
    """Unit vector towards the light: azimuth 0 is behind the camera, positive to the right; elevation above ground."""
    across = math.cos(elevation)
    return across * math.sin(azimuth), math.sin(elevation), across * math.cos(azimuth)


def _triple(values: np.ndarray) -> Triple:
    a, b, c = values.tolist()
    return a, b, c
