"""Convolution, with an input gradient that stays fast inside a loop on the CPU.

Inside `lax.fori_loop` XLA's CPU back end does not re-lay the weights for the input gradient of a convolution,
so that it runs naively (jax-ml/jax issue 12868). `'fast'` writes that gradient as what it is, an ordinary
convolution of the cotangent with the kernel flipped in space and transposed in (in, out), and either
direction in the form that measured fastest for so many channels. It is used on the CPU backend only;
elsewhere, and for counting FLOPs, `'lax'` is lax's own convolution with lax's own gradients.
"""

import functools
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


def chosen_convolution() -> str:
    """The convolution, one of `CONVOLUTIONS`, that models are traced with here."""
    return _forced.get() or ('fast' if jax.default_backend() == 'cpu' else 'lax')


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
    return (_fast if chosen_convolution() == 'fast' else _lax)(x, kernel, stride, padding)


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


# Where other forms are faster on the CPU, as measured (docs/performance.md): images have few channels; two,
# four or eight neighbouring pixels of a convolution with few outputs are computed as one of more outputs.
FEW_CHANNELS = 4
FEW_OUTPUTS = 32
SMALL_KERNEL = 256  # input channels times outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _fast(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    if _is_product(kernel, stride):
        return _product(x, kernel, stride, padding)
    channels, outputs = kernel.shape[2:]
    if stride == 1 and kernel.shape[1] > 1 and outputs <= FEW_OUTPUTS and channels * outputs <= SMALL_KERNEL:
        height, width = (x.shape[d] + 2 * padding - kernel.shape[d - 1] + 1 for d in (1, 2))
        for rows, columns in ((2, 4), (1, 4), (1, 2)) if outputs <= FEW_CHANNELS else ((1, 2),):
            if height % rows == width % columns == 0:
                return _side_by_side(x, kernel, padding, rows, columns)
    return _lax(x, kernel, stride, padding)


def _is_product(kernel: jax.Array, stride: int) -> bool:
    channels, outputs = kernel.shape[2:]
    return channels <= FEW_CHANNELS and (stride > 1 or outputs > FEW_OUTPUTS)


def _side_by_side(x: jax.Array, kernel: jax.Array, padding: int, rows: int, columns: int) -> jax.Array:
    """The convolution of stride 1, `rows` x `columns` neighbours at a time: each is an output of its own."""
    channels, outputs = kernel.shape[2:]
    shifts = [((i, rows - 1 - i), (j, columns - 1 - j)) for i in range(rows) for j in range(columns)]
    kernel = jnp.concatenate([jnp.pad(kernel, (*shift, (0, 0), (0, 0))) for shift in shifts], axis=3)
    window = kernel.shape[1]
    if 2 < channels <= FEW_CHANNELS and rows == 1 and columns == 2 and window % 2 == 0:
        # Eigen reads 8 channels at once: those of two pixels, of four channels each.
        more = 4 - channels
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, more)))
        x = x.reshape(*x.shape[:2], -1, 8)
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0)))
        kernel = kernel.reshape(-1, window // 2, 8, 2 * outputs)
        found = _lax(x, kernel, 1, 0)
    else:
        found = _lax(x, kernel, rows, padding, stride_across=columns)
    batch, high, wide = found.shape[:3]
    found = found.reshape(batch, high, wide, rows, columns, outputs).transpose(0, 1, 3, 2, 4, 5)
    return found.reshape(batch, high * rows, wide * columns, outputs)


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
    # Where only the image is differentiated, the compiler drops the gradient of the kernel.
    x, kernel = residuals
    return (
        _input_gradient(cotangent, kernel, x.shape, stride, padding),
        _kernel_gradient(cotangent, x, kernel, stride, padding),
    )


def _kernel_gradient(
    cotangent: jax.Array, x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> jax.Array:
    if stride == 1:
        return jax.linear_transpose(lambda w: _lax(x, w, stride, padding), kernel)(cotangent)[0]
    # One product for each tap. With a stride lax's own form lays out the image anew, and XLA computes all
    # that led to it (normalisation, the sums of residual blocks) once more, in the order slowest to read.
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    high, wide = ((size - 1) * stride + 1 for size in cotangent.shape[1:3])
    taps = [
        lax.dot_general(
            x[:, i : i + high : stride, j : j + wide : stride], cotangent, (((0, 1, 2), (0, 1, 2)), ((), ()))
        )
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return jnp.stack(taps).reshape(kernel.shape)


def _input_gradient(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    if _is_product(kernel, stride):
        # One product gives the gradients of all patches, which are added up where the patches overlap.
        images = jax.ShapeDtypeStruct(shape, cotangent.dtype)
        return jax.linear_transpose(lambda x: _product(x, kernel, stride, padding), images)(cotangent)[0]
    return _gradient_of_remainders(cotangent, kernel, shape, stride, padding)


def _gradient_of_remainders(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """The pixels stride q + r of each remainder r, in both directions, as one convolution of the cotangent.

    Tap i reaches them where it leaves the remainder (r + padding) mod stride too, and meets pixel
    q + (r + padding - i) / stride of the cotangent there. So no tap meets a zero that a stride leaves. The
    convolution is `_fast` again, which keeps the gradient of a gradient (GradAlign) fast.
    """
    kernel = kernel.transpose(0, 1, 3, 2)
    blocks = [-(-size // stride) for size in shape[1:3]]

    def taps_and_edges(d: int, r: int) -> tuple[slice, tuple[int, int, int]]:
        taps = range((r + padding) % stride, kernel.shape[d], stride)
        low = len(taps) - 1 - (r + padding) // stride
        # lax.pad crops where an edge is negative (padding wider than the kernel needs).
        high = blocks[d] + len(taps) - 1 - low - cotangent.shape[d + 1]
        return slice(taps.start, None, stride), (low, high, 0)

    def part(r: int, c: int) -> jax.Array:
        (rows, above), (columns, beside) = taps_and_edges(0, r), taps_and_edges(1, c)
        taps = kernel[rows, columns]
        if taps.size == 0:
            return jnp.zeros((shape[0], *blocks, shape[3]), cotangent.dtype)
        whole = (0, 0, 0)
        spread = lax.pad(cotangent, cotangent.dtype.type(0), (whole, above, beside, whole))
        return _fast(spread, _flipped(taps), 1, 0)

    # Stacked as wholes and then woven: XLA is slow at joining single pixels.
    remainders = range(stride)
    found = jnp.stack([part(r, c) for r in remainders for c in remainders], axis=1)
    found = found.reshape(-1, stride, stride, *blocks, shape[3]).transpose(0, 3, 1, 4, 2, 5)
    return found.reshape(-1, blocks[0] * stride, blocks[1] * stride, shape[3])[:, : shape[1], : shape[2]]


def _flipped(kernel: jax.Array) -> jax.Array:
    """Reversed in both directions of space, written so that XLA does it once, before a loop.

    It leaves `rev` and `transpose` in the loop, and moves a concatenation out with all that it needs.
    """
    along, across = (0, 1) if kernel.shape[0] > 1 else (1, 0)
    pieces = [
        lax.rev(lax.slice_in_dim(kernel, i, i + 1, axis=along), (across,))
        for i in reversed(range(kernel.shape[along]))
    ]
    return jnp.concatenate(pieces, axis=along)


_fast.defvjp(_forward, _backward)
