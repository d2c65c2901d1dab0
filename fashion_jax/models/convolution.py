"""Convolutions. On CPUs, bfloat16 ones are computed as matrix products, which are much faster there.

XLA's CPU backend computes bfloat16 matrix products with float32 sums by a library that uses AMX where the processor has
it. That is five to eight times as fast as its own convolutions, which are no faster in bfloat16 than in float32. So a
k x k convolution becomes one matrix product:

1. The padded photos are flattened to (batch, pixels, channels). k copies, each shifted by one pixel, are concatenated.
2. They are multiplied with the kernel of all k rows at once: (pixels, k * channels) @ (k * channels, k * outputs).
3. The k parts of the result, each shifted by one row, are added up.

An im2col would copy each pixel k * k times; this copies it 2 * k times. The gradient of the kernel is one product of
the same shape, transposed. Data that is only moved is moved as 16-bit integers, because XLA's CPU backend would convert
bfloat16 to float32 and back.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]  # rows above and below, columns left and right

Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "rows columns channels outputs"]


def convolve(x: Images, kernel: Kernel, stride: int) -> Float[Array, "batch rows columns outputs"]:
    """Returns the convolution with k // 2 pixels of zeros on every side, as PyTorch pads it.

    When it is compiled for a CPU, a bfloat16 convolution is computed as matrix products.

    Args:
        x: NHWC.
        kernel: HWIO, square, of an odd side, of the same dtype as `x`.
        stride: 1 or 2.
    """
    direct = partial(_convolve_directly, stride=stride)
    if x.dtype != jnp.bfloat16:
        return direct(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=partial(multiply, stride=stride), default=direct)


def _convolve_directly(x: Images, kernel: Kernel, stride: int) -> Images:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def multiply(x: Images, kernel: Kernel, stride: int) -> Float[Array, "batch rows columns outputs"]:
    """Returns the convolution as matrix products.

    Args:
        x: NHWC.
        kernel: HWIO, square, of an odd side, of the same dtype as `x`.
        stride: 1 or 2.

    Returns:
        Of the dtype of `x`; sums are float32.
    """
    side = kernel.shape[0]
    assert side % 2 == 1 and kernel.shape[1] == side and stride in (1, 2)
    pad = side // 2
    if stride == 1:
        return _correlate(x, kernel, ((pad, pad), (pad, pad)))
    if side == 1:
        return _correlate(x[:, ::2, ::2], kernel, ((0, 0), (0, 0)))
    # At stride 2, each block of 2 x 2 pixels becomes one pixel with four times the channels, and the kernel has half
    # the side and stride 1. 7 of 16 of its weights are zeros for a side of 3, and 15 of 64 for 7. Computing at stride 1
    # and dropping pixels would waste three quarters of the products.
    batch, height, width, channels = x.shape
    half = (side + 1) // 2
    rows, columns = (height - 1) // 2 + half, (width - 1) // 2 + half
    below, right = 2 * rows - height - pad, 2 * columns - width - pad
    x = jnp.pad(x, ((0, 0), (pad, below), (pad, right), (0, 0)))
    x = x.reshape(batch, rows, 2, columns, 2, channels).swapaxes(2, 3).reshape(batch, rows, columns, 4 * channels)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(half, 2, half, 2, channels, -1)
    return _correlate(x, kernel.swapaxes(1, 2).reshape(half, half, 4 * channels, -1), ((0, 0), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(x: Images, kernel: Kernel, pads: Pads) -> Images:
    return _product(x, kernel, pads)


def _forward(x: Images, kernel: Kernel, pads: Pads) -> tuple[Images, tuple[Images, Kernel]]:
    return _product(x, kernel, pads), (x, kernel)


def _backward(pads: Pads, kept: tuple[Images, Kernel], gradient: Images) -> tuple[Images, Kernel]:
    x, kernel = kept
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    opposite = tuple(
        (side - 1 - before, side - 1 - after) for side, (before, after) in zip(kernel.shape[:2], pads, strict=True)
    )
    by_input = _product(gradient, turned, (opposite[0], opposite[1]))
    return by_input, _kernel_gradient(x, gradient, kernel.shape, pads).astype(kernel.dtype)


_correlate.defvjp(_forward, _backward)


def _product(x: Images, kernel: Kernel, pads: Pads) -> Images:
    rows, columns, channels, outputs = kernel.shape
    (above, below), (left, right) = pads
    height, width = x.shape[1] + above + below, x.shape[2] + left + right
    pixels, used = height * width, (height - rows + 1) * width
    # A row more than needed, for the shifts of the last pixels.
    flat = jnp.pad(_as_bits(x), ((0, 0), (above, below + (columns > 1)), (left, right), (0, 0)))
    flat = lax.optimization_barrier(flat).reshape(len(x), -1, channels)
    if columns > 1:
        flat = jnp.concatenate([flat[:, shift : shift + pixels] for shift in range(columns)], -1)
        flat = lax.optimization_barrier(flat)
    weights = kernel.transpose(1, 2, 0, 3).reshape(columns * channels, rows * outputs)
    parts = jnp.dot(_as_numbers(flat, x.dtype), weights, preferred_element_type=jnp.float32)
    parts = lax.optimization_barrier(parts)
    total = sum(
        parts[:, row * width : row * width + used, row * outputs : (row + 1) * outputs] for row in range(1, rows)
    )
    total = parts[:, :used, :outputs] + total
    return total.astype(x.dtype).reshape(len(x), -1, width, outputs)[:, :, : width - columns + 1]


def _kernel_gradient(x: Images, gradient: Images, shape: tuple[int, ...], pads: Pads) -> Kernel:
    rows, columns, channels, outputs = shape
    (above, below), (left, right) = pads
    height, width = x.shape[1] + above + below, x.shape[2] + left + right
    pixels, used = height * width, (height - rows + 1) * width
    # Transposed and copied here, as a product with its first axis summed is computed without the fast library.
    flat = lax.optimization_barrier(_as_bits(x).transpose(3, 0, 1, 2))
    flat = jnp.pad(flat, ((0, 0), (0, 0), (above, below + 1), (left, right)))
    flat = lax.optimization_barrier(flat).reshape(channels, len(x), -1)
    flat = lax.optimization_barrier(
        jnp.concatenate([flat[:, :, shift : shift + pixels] for shift in range(columns)], 0)
    )
    moved = jnp.pad(_as_bits(gradient), ((0, 0), (0, 0), (0, columns - 1), (0, 0)))
    moved = lax.optimization_barrier(moved).reshape(len(x), used, outputs)
    if rows > 1:
        shifted = [jnp.pad(moved, ((0, 0), (row * width, pixels - used - row * width), (0, 0))) for row in range(rows)]
        moved = lax.optimization_barrier(jnp.concatenate(shifted, -1))
    found = lax.dot_general(
        _as_numbers(flat, x.dtype),
        _as_numbers(moved, gradient.dtype),
        (((1, 2), (0, 1)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return found.reshape(columns, channels, rows, outputs).transpose(2, 0, 1, 3)


def _as_bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _as_numbers(x: Array, dtype: jnp.dtype) -> Array:
    return lax.bitcast_convert_type(x, dtype) if x.dtype != dtype else x
