"""Random changes of training photos, on the device, inside the training step.

Only the geometry changes, never a colour, because colour is a label. Crop, flip, rotation and RandAugment together are
one affine map, so a photo is interpolated only once. Shifts are by whole pixels and blur nothing. A photo's randomness
depends on its record number and the step, not on its place in the batch, so it is the same on one device, on eight
devices and in two processes.

How photos are interpolated depends on the platform (`jax.lax.platform_dependent`). CPUs and GPUs gather the four pixels
around each place (`sample_bilinear`). Gathers of pixels are the slowest operation of a TPU, so TPUs multiply matrices,
along one axis and then along the other (`sample_axes`, `sample_two_passes`). For photos of 224 x 224, matrix products
took 5 times as long on a CPU, and 128 photos needed 2.5 GB more memory traffic on a GPU.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Real, UInt8

from fashion_jax.config.fields import AugmentConfig

WHITE = 255.0
MAX_ERASE_AREA = 0.15  # largest share of a photo that erasing covers
# RandAugment: at magnitude 1
LARGEST_ROTATION = 30.0  # degrees
LARGEST_SHEAR = 0.3
LARGEST_SHIFT = 0.45  # of the photo's side
NUM_OPERATIONS = 6  # none, rotation, two shears, two shifts


def example_keys(key: Key[Array, ""], step: Int[Array, ""], records: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """Returns a random key for each example; it depends on the run's key, the step and the record number only."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda record: jax.random.fold_in(step_key, record))(records)


def normalize(
    images: UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: jnp.dtype | type = jnp.float32,
) -> Float[Array, "batch height width 3"]:
    """Returns (images / 255 - mean) / std for images in [0, 255]; it is computed in float32 and cast to `dtype`."""
    scale = 1 / (255.0 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * scale[None, None, None] - shift[None, None, None]).astype(dtype)


def augment(
    images: Real[Array, "batch height width 3"], keys: Key[Array, " batch"], config: AugmentConfig
) -> Float[Array, "batch height width 3"]:
    """Applies random crop (the aspect stays), shift, flip, small rotation, RandAugment and erasing to each photo.

    Args:
        images: RGB in [0, 255], uint8 or floating point.
        keys: one for each photo.
        config: probabilities and ranges. If all are off, the photos do not change at all.

    Returns:
        float32 RGB in [0, 255]. Erased areas and areas outside of the photo are white.
    """
    return jax.vmap(partial(_augment_one, config=config))(images, keys)


def _augment_one(
    image: Real[Array, "height width 3"], key: Key[Array, ""], *, config: AugmentConfig
) -> Float[Array, "height width 3"]:
    height, width, _ = image.shape
    crop_key, place_key, flip_key, turn_key, erase_key, shift_key = jax.random.split(key, 6)
    image = _shift(image, shift_key, config)
    flipped = jax.random.bernoulli(flip_key, config.flip_probability)
    if config.min_crop_area == 1 and not config.max_rotation and not config.rand_operations:
        # All moves are by whole pixels, so nothing is interpolated.
        moved = jnp.where(flipped, image[:, ::-1], image).astype(jnp.float32)
        return _erase(moved, erase_key, config)

    zoom = jnp.sqrt(jax.random.uniform(crop_key, minval=config.min_crop_area, maxval=1.0))
    room = (1 - zoom) / 2 * jnp.array([height, width], jnp.float32)
    offset = jax.random.uniform(place_key, (2,), minval=-1.0, maxval=1.0) * room
    mirror = jnp.where(flipped, -1.0, 1.0)
    angle = jnp.deg2rad(jax.random.uniform(turn_key, minval=-1.0, maxval=1.0) * config.max_rotation)

    # From a pixel of the result to the place in the photo that it comes from; both (y, x), measured from the centre.
    matrix, moved = jnp.diag(jnp.stack([jnp.ones(()), mirror])), jnp.zeros(2)
    if config.rand_operations:
        drawn, moved = draw_affine(
            jax.random.fold_in(key, 6),
            operations=config.rand_operations,
            magnitude=config.rand_magnitude,
            height=height,
            width=width,
        )
        matrix = _product(drawn, matrix)
    cosine, sine = jnp.cos(angle) * zoom, jnp.sin(angle) * zoom
    turn = jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])
    matrix, moved = _product(turn, matrix), _product(turn, moved[:, None])[:, 0] + offset
    sampled = jax.lax.platform_dependent(
        image, matrix, moved, tpu=partial(sample_two_passes, config=config), default=sample_affine
    )
    return _erase(sampled, erase_key, config)


def _product(a: Float[Array, "2 2"], b: Float[Array, "2 n"]) -> Float[Array, "2 n"]:
    """A matrix product in float32 on every platform. TPUs would use bfloat16, and round places by up to 0.25 pixels."""
    return jnp.sum(a[:, :, None] * b[None], 1)


def _shift(image: Real[Array, "height width 3"], key: Key[Array, ""], config: AugmentConfig) -> Array:
    """Moves a photo by whole pixels and fills with white: the padded crop of He et al. (2016, section 4.2)."""
    height, width, _ = image.shape
    rows, columns = round(config.max_shift * height), round(config.max_shift * width)
    if not rows and not columns:
        return image
    start = jax.random.randint(key, (2,), 0, jnp.array([2 * rows + 1, 2 * columns + 1]))

    def cut_out(image: Array, start: Array) -> Array:
        padded = jnp.pad(image, ((rows, rows), (columns, columns), (0, 0)), constant_values=255)
        return jax.lax.dynamic_slice(padded, (start[0], start[1], jnp.zeros_like(start[0])), image.shape)

    def multiply(image: Array, start: Array) -> Array:
        y, x = jnp.arange(height) + start[0] - rows, jnp.arange(width) + start[1] - columns
        return sample_axes(image, y.astype(jnp.float32), x.astype(jnp.float32)).astype(image.dtype)

    return jax.lax.platform_dependent(image, start, tpu=multiply, default=cut_out)


def draw_affine(
    key: Key[Array, ""], *, operations: int, magnitude: float, height: int, width: int
) -> tuple[Float[Array, "2 2"], Float[Array, " 2"]]:
    """Draws RandAugment's operations (Cubuk et al., NeurIPS 2020) and returns them as one affine map.

    Only the geometric operations are drawn, because operations on colours would change a label. All operations have
    the same probability, and so do both signs.

    Args:
        operations: the number of operations, at least 1.
        magnitude: of each operation, as a share of the largest, in [0, 1].
        height: of the photo, in pixels.
        width: of the photo, in pixels.

    Returns:
        A matrix and an offset: a position (y, x), measured in pixels from the centre, becomes
        matrix @ position + offset.
    """
    kind_key, sign_key = jax.random.split(key)
    kinds = jax.random.randint(kind_key, (operations,), 0, NUM_OPERATIONS)
    signs = jax.random.rademacher(sign_key, (operations,), jnp.float32)
    matrix, offset = jnp.eye(2), jnp.zeros(2)
    for number in range(operations):
        one, moved = affine_operation(kinds[number], signs[number] * magnitude, height, width)
        matrix, offset = _product(one, matrix), _product(one, offset[:, None])[:, 0] + moved
    return matrix, offset


def affine_operation(
    kind: Array, strength: Array, height: int, width: int
) -> tuple[Float[Array, "2 2"], Float[Array, " 2"]]:
    """Returns one operation of RandAugment as an affine map of positions (y, x).

    Args:
        kind: an integer in [0, NUM_OPERATIONS): none, rotation, shear along x, shear along y, shift along y, shift
            along x.
        strength: in [-1, 1], as a share of the largest.
        height: of the photo, in pixels.
        width: of the photo, in pixels.
    """
    angle = jnp.deg2rad(LARGEST_ROTATION) * strength
    shear = LARGEST_SHEAR * strength
    cosine, sine, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros(()), jnp.ones(())
    still = jnp.eye(2)
    matrices = jnp.stack(
        [
            still,
            jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])]),
            jnp.stack([jnp.stack([one, zero]), jnp.stack([shear, one])]),
            jnp.stack([jnp.stack([one, shear]), jnp.stack([zero, one])]),
            still,
            still,
        ]
    )
    shift = LARGEST_SHIFT * strength
    offsets = jnp.zeros((NUM_OPERATIONS, 2)).at[4, 0].set(shift * height).at[5, 1].set(shift * width)
    return matrices[kind], offsets[kind]


def sample_affine(
    image: Real[Array, "height width 3"], matrix: Float[Array, "2 2"], offset: Float[Array, " 2"]
) -> Float[Array, "height width 3"]:
    """Returns an image whose pixel at p comes from the place matrix @ p + offset, float32; outside all is white.

    Args:
        image: RGB in [0, 255].
        matrix: of places (y, x), measured in pixels from the centre.
        offset: in pixels.
    """
    height, width, _ = image.shape
    y, x = _from_centre(height)[:, None], _from_centre(width)[None, :]
    source_y = matrix[0, 0] * y + matrix[0, 1] * x + offset[0] + (height - 1) / 2
    source_x = matrix[1, 0] * y + matrix[1, 1] * x + offset[1] + (width - 1) / 2
    return sample_bilinear(image, source_y, source_x)


def _from_centre(count: int) -> Float[Array, " count"]:
    return jnp.arange(count, dtype=jnp.float32) - (count - 1) / 2


def sample_bilinear(
    image: Real[Array, "height width 3"], y: Float[Array, "rows columns"], x: Float[Array, "rows columns"]
) -> Float[Array, "rows columns 3"]:
    """Returns an image's values at fractional pixel positions, float32 in [0, 255]; outside of it all is white.

    Args:
        image: RGB in [0, 255].
        y: rows; 0 is the centre of the first pixel.
        x: columns; 0 is the centre of the first pixel.
    """
    height, width, _ = image.shape
    # With a frame of one white pixel the border blends into white, and all positions outside are clipped to the frame.
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=255).reshape(-1, 3)
    y, x = jnp.clip(y + 1, 0, height + 1), jnp.clip(x + 1, 0, width + 1)
    top = jnp.minimum(jnp.floor(y), height).astype(jnp.int32)
    left = jnp.minimum(jnp.floor(x), width).astype(jnp.int32)
    down, right = (y - top)[..., None], (x - left)[..., None]

    def at(row: Int[Array, "rows columns"], column: Int[Array, "rows columns"]) -> Float[Array, "rows columns 3"]:
        return padded[row * (width + 2) + column].astype(jnp.float32)

    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return above * (1 - down) + below * down


def sample_axes(
    image: Real[Array, "height width 3"], y: Float[Array, " rows"], x: Float[Array, " columns"]
) -> Float[Array, "rows columns 3"]:
    """Returns `sample_bilinear` of the grid of rows `y` and columns `x`, by one matrix product for each axis.

    Products have the platform's default precision. On TPUs, bfloat16 rounds a result by up to one grey level of 255.
    """
    height, width, _ = image.shape
    rows, columns = _tent(y[:, None] - jnp.arange(height)[None]), _tent(x[:, None] - jnp.arange(width)[None])
    # White is subtracted, so that all pixels outside of the photo are zero.
    along_y = jnp.einsum("ij,jkc->ikc", rows, image.astype(jnp.float32) - WHITE)
    return jnp.einsum("ikc,lk->ilc", along_y, columns) + WHITE


def _tent(distance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The weight of a pixel in linear interpolation, by its distance."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def sample_two_passes(
    image: Real[Array, "height width 3"],
    matrix: Float[Array, "2 2"],
    offset: Float[Array, " 2"],
    *,
    config: AugmentConfig,
) -> Float[Array, "height width 3"]:
    """Returns `sample_affine` without gathers: rows are interpolated first, then columns (Catmull and Smith 1980).

    Each pixel is interpolated once along each axis. Without rotations and shears the result is that of `sample_affine`.
    With them, a pixel is interpolated from two rows as in `sample_affine`, but each row is sampled at a place that is
    up to tan(angle) pixels away from the place in `sample_affine`. On photos the difference is a fraction of a grey
    level.

    Args:
        image: RGB in [0, 255].
        matrix: of places (y, x), measured in pixels from the centre.
        offset: in pixels.
        config: bounds `matrix`.
    """
    height, width, _ = image.shape
    y, x = _from_centre(height), _from_centre(width)
    angle = config.max_rotation + config.rand_operations * config.rand_magnitude * LARGEST_ROTATION
    if not angle:
        return sample_axes(
            image,
            matrix[0, 0] * y + offset[0] + (height - 1) / 2,
            matrix[1, 1] * x + offset[1] + (width - 1) / 2,
        )  # fmt: skip
    source, (rows, columns) = image.astype(jnp.float32) - WHITE, (height, width)
    if angle > 45:
        # Beyond 45 degrees the first pass would shrink rows too much. So rows and columns of a square swap their roles.
        rows = columns = max(height, width)
        above, left = (rows - height) // 2, (columns - width) // 2
        source = jnp.pad(source, ((above, rows - height - above), (left, columns - width - left), (0, 0)))
        offset = offset + jnp.array([above - (rows - height) / 2, left - (columns - width) / 2])
        turned = jnp.abs(matrix[1, 0]) > jnp.abs(matrix[0, 0])
        source = jnp.where(turned, source.swapaxes(0, 1), source)
        matrix, offset = jnp.where(turned, matrix[::-1], matrix), jnp.where(turned, offset[::-1], offset)
    (yy, yx), (xy, xx) = matrix
    slope = xy / yy
    shear = LARGEST_SHEAR * config.rand_magnitude
    growth = ((shear + math.sqrt(shear**2 + 4)) / 2) ** config.rand_operations  # the largest factor of a length
    tangent, sine = (1.0, 1.0) if angle > 45 else (math.tan(math.radians(angle)), math.sin(math.radians(angle)))
    # First pass: each row of the photo is sampled at the columns of the result. Second pass: each column, at its rows.
    along_rows = sample_lines(
        source,
        slope * _from_centre(rows),
        (xx - slope * yx) * x + offset[1] - slope * offset[0] + (columns - 1) / 2,
        reach=math.ceil(tangent * rows / 2),
    )
    along_columns = sample_lines(
        along_rows.swapaxes(0, 1),
        yx * x,
        yy * y + offset[0] + (rows - 1) / 2,
        reach=math.ceil(growth * sine * width / 2),
    )
    return along_columns.swapaxes(0, 1) + WHITE


def sample_lines(
    lines: Float[Array, "count length 3"], shifts: Float[Array, " count"], places: Float[Array, " n"], *, reach: int
) -> Float[Array, "count n 3"]:
    """Returns each line's values at fractional `places` plus the line's own shift; outside of a line all is 0.

    Args:
        lines: pixels; the first is at place 0.
        shifts: at most `reach` to either side.
        places: the same for all lines.
    """
    # Each line is shifted by whole pixels first: by 1, 2, 4, ... pixels, for each bit of its number.
    whole = jnp.floor(shifts)
    amount = jnp.clip(whole.astype(jnp.int32) + reach, 0, 2 * reach)
    lines = jnp.pad(lines, ((0, 0), (2 * reach, 0), (0, 0)))
    for bit in range((2 * reach).bit_length()):
        moved = jnp.pad(lines[:, 2**bit :], ((0, 0), (0, 2**bit), (0, 0)))
        lines = jnp.where(((amount >> bit) & 1)[:, None, None] == 1, moved, lines)
    # The rest of the shift and the fraction of the place are below 1 each, so three neighbours are enough. They are the
    # same for all lines.
    first = jnp.floor(places)
    neighbours = jnp.arange(3, dtype=jnp.float32)
    picked = (first + reach)[None, :, None] + neighbours[:, None, None] == jnp.arange(lines.shape[1])[None, None]
    taps = jnp.einsum("tnk,lkc->tlnc", picked.astype(jnp.float32), lines)
    fraction = (places - first)[None, None, :] + (shifts - whole)[None, :, None]
    return jnp.sum(_tent(fraction - neighbours[:, None, None])[..., None] * taps, 0)


def _erase(
    image: Float[Array, "height width 3"], key: Key[Array, ""], config: AugmentConfig
) -> Float[Array, "height width 3"]:
    """Whitens a random rectangle (random erasing, Zhong et al. 2020)."""
    if not config.erase_probability:
        return image
    height, width, _ = image.shape
    chance_key, area_key, aspect_key, place_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, minval=0.02, maxval=MAX_ERASE_AREA)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=-0.7, maxval=0.7))  # from 1:2 to 2:1
    sides = jnp.sqrt(jnp.stack([area * aspect, area / aspect])) * jnp.array([height, width], jnp.float32)
    centre = jax.random.uniform(place_key, (2,)) * jnp.array([height, width], jnp.float32)
    inside_y = jnp.abs(jnp.arange(height) + 0.5 - centre[0]) < sides[0] / 2
    inside_x = jnp.abs(jnp.arange(width) + 0.5 - centre[1]) < sides[1] / 2
    chosen = jax.random.bernoulli(chance_key, config.erase_probability)
    hidden = chosen & inside_y[:, None] & inside_x[None, :]
    return jnp.where(hidden[..., None], WHITE, image)
