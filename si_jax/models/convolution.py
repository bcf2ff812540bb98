"""Convolution, with an input gradient that stays fast inside a loop on the CPU.

Inside `lax.fori_loop` XLA's CPU back end does not re-lay the weights for the input gradient of a convolution,
so that it runs naively (jax-ml/jax issue 12868). `'fast'` writes that gradient as what it is, an ordinary
convolution of the cotangent with the kernel flipped in space and transposed in (in, out), and either
direction in the form that measured fastest for so many channels. It is used on the CPU backend only;
elsewhere, and for counting FLOPs, `'lax'` is lax's own convolution with lax's own gradients.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax import lax

from si_jax.errors import unknown

CONVOLUTIONS = ('fast', 'lax')
_forced: ContextVar[str | None] = ContextVar('si_jax_convolution', default=None)


@contextmanager
def use_convolution(kind: str | None) -> Iterator[None]:
    """Within this context models are traced with the given convolution.

    The choice is made when a function is traced: one that was compiled before keeps the form it has.
    `'fast'` defines reverse-mode derivatives only (of any order); forward mode needs `'lax'`.

    Args:
        kind: `'lax'`, `'fast'`, or None for the default, `'fast'` on the CPU backend and `'lax'` elsewhere.

    Raises:
        InputError: If `kind` is none of these.
    """
    if kind is not None and kind not in CONVOLUTIONS:
        raise unknown('convolution', kind, CONVOLUTIONS)
    token = _forced.set(kind)
    try:
        yield
    finally:
        _forced.reset(token)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """Cross-correlation as torch.nn.Conv2d computes it, the same padding on all four sides.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, O], of the same dtype.
        stride: In both directions.
        padding: Zeros added on each side.

    Returns:
        [B, (H + 2 padding - k) // stride + 1, likewise, O].
    """
    kind = _forced.get() or ('fast' if jax.default_backend() == 'cpu' else 'lax')
    return _fast(x, kernel, stride, padding) if kind == 'fast' else _lax(x, kernel, stride, padding)


def _lax(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, stride_across: int | None = None
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride_across or stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


# Where other forms are faster on the CPU, as measured (docs/performance.md): images have few channels; two or
# four neighbouring pixels of a convolution with few outputs are computed as one of more outputs.
FEW_CHANNELS = 4
FEW_OUTPUTS = 32
SMALL_KERNEL = 256  # input channels times outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _fast(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    channels, outputs = kernel.shape[2:]
    if channels <= FEW_CHANNELS and (stride > 1 or outputs > FEW_OUTPUTS):
        return _product(x, kernel, stride, padding)
    if stride == 1 and kernel.shape[1] > 1 and outputs <= FEW_OUTPUTS and channels * outputs <= SMALL_KERNEL:
        width = x.shape[2] + 2 * padding - kernel.shape[1] + 1
        for pixels in (4, 2) if outputs <= FEW_CHANNELS else (2,):
            if width % pixels == 0:
                return _side_by_side(x, kernel, padding, pixels)
    return _lax(x, kernel, stride, padding)


def _side_by_side(x: jax.Array, kernel: jax.Array, padding: int, pixels: int) -> jax.Array:
    """The convolution of stride 1, `pixels` neighbours in a row at a time: each is an output of its own."""
    shifted = [jnp.pad(kernel, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)]
    found = _lax(x, jnp.concatenate(shifted, axis=3), 1, padding, stride_across=pixels)
    return found.reshape(*found.shape[:2], -1, kernel.shape[3])


def _product(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The convolution as one product of patches, each made of whole blocks of stride x stride pixels."""
    channels, features = kernel.shape[2:]
    taps = [-(-window // stride) for window in kernel.shape[:2]]
    out = [(x.shape[d + 1] + 2 * padding - kernel.shape[d]) // stride + 1 for d in (0, 1)]
    blocks = [out[d] + taps[d] - 1 for d in (0, 1)]
    edges = [(padding, blocks[d] * stride - x.shape[d + 1] - padding, 0) for d in (0, 1)]
    x = lax.pad(x, x.dtype.type(0), [(0, 0, 0), *edges, (0, 0, 0)])
    x = x.reshape(-1, blocks[0], stride, blocks[1], stride, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, *blocks, stride * stride * channels)
    patches = [x[:, i : i + out[0], j : j + out[1]] for i in range(taps[0]) for j in range(taps[1])]

    edges = [(0, taps[d] * stride - kernel.shape[d], 0) for d in (0, 1)]
    kernel = lax.pad(kernel, kernel.dtype.type(0), [*edges, (0, 0, 0), (0, 0, 0)])
    kernel = kernel.reshape(taps[0], stride, taps[1], stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return jnp.concatenate(patches, axis=3) @ kernel.reshape(-1, features)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _fast(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # The weight gradient is lax's own; where only the image is differentiated, the compiler drops it.
    (kernel_gradient,) = jax.linear_transpose(lambda w: _lax(x, w, stride, padding), kernel)(cotangent)
    return _input_gradient(cotangent, kernel, x.shape, stride, padding), kernel_gradient


def _input_gradient(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    # All forms are made of `_fast` and products, so that the gradient of a gradient (GradAlign) is fast.
    if shape[3] <= FEW_CHANNELS:
        return _product_gradient(cotangent, kernel, shape, stride, padding)
    if stride > 1:
        first, lasts = _reach(kernel.shape, stride, padding)
        computed = math.prod(stride * (last - first + 1) for last in lasts)  # taps, with those that are zero
        grouped = shape[3] < MANY_CHANNELS and computed <= 2 * math.prod(kernel.shape[:2])
        form = _grouped_gradient if grouped else _gradient_by_place
        return form(cotangent, kernel, shape, stride, padding)
    # lax.pad crops where an edge is negative: padding wider than the kernel needs.
    edges = [(size - 1 - padding, size - 1 - padding, 0) for size in kernel.shape[:2]]
    spread = lax.pad(cotangent, cotangent.dtype.type(0), [(0, 0, 0), *edges, (0, 0, 0)])
    return _fast(spread, _flipped(kernel.transpose(0, 1, 3, 2)), 1, 0)


def _flipped(kernel: jax.Array) -> jax.Array:
    """Reversed in both directions of space, written so that XLA does it once, before a loop.

    It leaves `rev` and `transpose` in the loop, and moves a concatenation out with all that it needs.
    """
    rows = reversed(range(kernel.shape[0]))
    return jnp.concatenate([lax.rev(kernel[i : i + 1], (1,)) for i in rows], axis=0)


# From so many input channels on, the gradient of a convolution with a stride is fastest as a convolution for
# each place in a block of stride x stride pixels. With fewer, one convolution for all places is faster, if at
# most half of what it computes are taps of zero.
MANY_CHANNELS = 16


def _product_gradient(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """One product gives the gradients of all patches, which are added up where the patches overlap."""
    images = jax.ShapeDtypeStruct(shape, cotangent.dtype)
    (found,) = jax.linear_transpose(lambda x: _product(x, kernel, stride, padding), images)(cotangent)
    return found


def _gradient_by_place(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """A convolution for each place in a block of stride x stride pixels, with the taps that reach it.

    Pixel stride q + r gets tap t of the cotangent's pixel q + (r + padding - t) / stride.
    """
    blocks = [-(-size // stride) for size in shape[1:3]]
    zero, whole = cotangent.dtype.type(0), (0, 0, 0)

    def place(*offsets: int) -> jax.Array:
        firsts = [(offset + padding) % stride for offset in offsets]
        taps = kernel[firsts[0] :: stride, firsts[1] :: stride]
        if 0 in taps.shape:
            return jnp.zeros((shape[0], *blocks, shape[3]), cotangent.dtype)
        edges = []
        for d in (0, 1):
            high = (offsets[d] + padding - firsts[d]) // stride
            low = high - (taps.shape[d] - 1)
            edges.append((-low, blocks[d] + high - cotangent.shape[d + 1], 0))
        spread = lax.pad(cotangent, zero, [whole, *edges, whole])
        return _fast(spread, _flipped(taps.transpose(0, 1, 3, 2)), 1, 0)

    rows = [jnp.stack([place(i, j) for j in range(stride)], axis=3) for i in range(stride)]
    found = jnp.stack(rows, axis=2).reshape(shape[0], blocks[0] * stride, blocks[1] * stride, shape[3])
    return found[:, : shape[1], : shape[2]]


def _reach(kernel: tuple[int, ...], stride: int, padding: int) -> tuple[int, list[int]]:
    """The first and, in each direction, the last t of `_grouped_gradient`."""
    return -((padding + stride - 1) // stride), [(size - 1 - padding) // stride for size in kernel[:2]]


def _grouped_gradient(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """The gradient of a block of stride x stride pixels as the outputs of one convolution of the cotangent.

    Pixel stride q + r gets tap stride t + r + padding of the cotangent's pixel q - t.
    """
    channels, outputs = kernel.shape[2:]
    first, lasts = _reach(kernel.shape, stride, padding)
    kernel_edges, cotangent_edges, blocks = [], [], []
    for d, last in enumerate(lasts):
        low = -(stride * first + padding)
        kernel_edges.append((low, stride * (last - first + 1) - kernel.shape[d] - low, 0))
        blocks.append(-(-shape[d + 1] // stride))
        cotangent_edges.append((last, blocks[d] - first - cotangent.shape[d + 1], 0))
    zero, whole = kernel.dtype.type(0), (0, 0, 0)
    kernel = lax.pad(kernel, zero, [*kernel_edges, whole, whole])
    taps = [kernel.shape[d] // stride for d in (0, 1)]
    kernel = kernel.reshape(taps[0], stride, taps[1], stride, channels, outputs).transpose(0, 2, 5, 1, 3, 4)
    kernel = _flipped(kernel.reshape(*taps, outputs, -1))
    found = _fast(lax.pad(cotangent, zero, [whole, *cotangent_edges, whole]), kernel, 1, 0)
    found = found.reshape(-1, *blocks, stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    found = found.reshape(-1, blocks[0] * stride, blocks[1] * stride, channels)
    return found[:, : shape[1], : shape[2]]


_fast.defvjp(_forward, _backward)
