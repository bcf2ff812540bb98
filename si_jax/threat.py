"""Threat models: the set of images that an attack may return.

Pixels are in [0, 1] and eps is a fraction of that range: 8/255, not 8.

A threat model is a norm and a radius. All that follows from the norm stands in one class, its *ball*: how
long a perturbation is, which way a loss rises fastest, how a point is put back, how noise is drawn. Attacks
ask the ball and never the name of the norm, so that a new norm is a new ball in `BALLS`. Only algorithms that
are different ones in each norm have a table by norm of their own (Square, the hyperplanes of FAB), and APGD
is another algorithm in L1.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from si_jax import l1
from si_jax.draws import drawn
from si_jax.errors import InputError, unknown
from si_jax.runtime.terminal import fraction

Array = jax.Array
IMAGE = (1, 2, 3)  # the axes of an image in a batch [B, H, W, C]
LINF_EPS = 8 / 255  # the usual radius on colour images in Linf
USUAL = {'l2': '0.5', 'l1': '12'}  # and in the others, where that one is next to nothing


class Ball(abc.ABC):
    """The geometry of a norm, for perturbations [B, H, W, C] or [B, d].

    The methods that draw take one key and make the noise of one image, [H, W, C]; `Threat` calls them with
    one key per image, so that no image's noise depends on its batch.

    Attributes:
        words: How far an attack may move an image, as a phrase.
        tolerance: What the audit allows beyond eps, as a multiple of max(1, eps).
        sparse: Whether the furthest points of the ball are those that move few pixels.
    """

    words: str
    # The grid of 8-bit pixels at 8/255 is off by up to 2.6e-8 in float32.
    tolerance: float = 1e-6
    sparse: bool = False

    @abc.abstractmethod
    def limit(self, shape: tuple[int, ...]) -> float:
        """The largest radius that makes sense for images [H, W, C]: the distance of black from white."""

    @abc.abstractmethod
    def length(self, delta: Any, xp: Any = jnp) -> Any:
        """The norm of each perturbation, [B]; with `xp=np` in NumPy, on the host."""

    @abc.abstractmethod
    def dual_length(self, gradient: Array) -> Array:
        """The dual norm of each gradient, [B]: how much the loss rises along a direction of length 1."""

    @abc.abstractmethod
    def steepest(self, gradient: Array) -> Array:
        """The direction of length 1 in which the loss rises fastest; a zero gradient stays zero."""

    def ascend(self, images: Array, gradient: Array, length: Any) -> Array:
        """The images after a step of this length in the direction in which the loss rises fastest."""
        return images + length * self.steepest(gradient)

    @abc.abstractmethod
    def project(self, images: Array, centre: Array, eps: float) -> Array:
        """The images moved into the ball around `centre`; `Threat` then clips them to [0, 1]."""

    @abc.abstractmethod
    def uniform(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        """A uniformly random point of the ball."""

    @abc.abstractmethod
    def direction(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """A random perturbation of no particular length, of which APGD and FAB make their starts."""

    @abc.abstractmethod
    def corner(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        """A random perturbation of length eps that uses all of the ball: in Linf in every pixel."""

    @abc.abstractmethod
    def sample(
        self, rng: np.random.Generator, shape: tuple[int, ...], radius: float, *, corners: bool
    ) -> np.ndarray:
        """Random perturbations [B, H, W, C] in float64, on the host: `corner` or `uniform` by NumPy."""


class LinfBall(Ball):
    """max_i |d_i| <= eps: every pixel on its own."""

    words = 'by eps in every pixel'

    def limit(self, shape: tuple[int, ...]) -> float:
        return 1.0

    def length(self, delta: Any, xp: Any = jnp) -> Any:
        return xp.max(xp.abs(delta), axis=tuple(range(1, delta.ndim)))

    def dual_length(self, gradient: Array) -> Array:
        return jnp.sum(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)))

    def steepest(self, gradient: Array) -> Array:
        return jnp.sign(gradient)

    def ascend(self, images: Array, gradient: Array, length: Any) -> Array:
        return images + length * jnp.sign(gradient)  # PGD as everybody writes it

    def project(self, images: Array, centre: Array, eps: float) -> Array:
        return jnp.clip(images, centre - eps, centre + eps)

    def uniform(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        return drawn(jax.random.uniform, key, shape, dtype, -eps, eps)

    def direction(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return drawn(jax.random.uniform, key, shape, dtype, -1.0, 1.0)

    def corner(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        return eps * drawn(jax.random.rademacher, key, shape, dtype)

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, ...], radius: float, *, corners: bool
    ) -> np.ndarray:
        return rng.choice((-radius, radius), shape) if corners else rng.uniform(-radius, radius, shape)


class L2Ball(Ball):
    """sqrt(sum_i d_i^2) <= eps: the image as one vector."""

    words = 'by eps in Euclidean distance'

    def limit(self, shape: tuple[int, ...]) -> float:
        return math.sqrt(math.prod(shape))

    def length(self, delta: Any, xp: Any = jnp) -> Any:
        return xp.sqrt(xp.sum(delta**2, axis=tuple(range(1, delta.ndim))))

    def dual_length(self, gradient: Array) -> Array:
        largest = jnp.max(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)), keepdims=True)
        length = self.length(gradient / jnp.where(largest > 0, largest, 1.0))
        largest = largest.reshape(length.shape)
        return jnp.where(jnp.isfinite(largest), largest * length, largest)

    def steepest(self, gradient: Array) -> Array:
        # Scaled by the largest entry, as above: squares below 1e-38 and above 1e38 are lost in float32.
        largest = jnp.max(jnp.abs(gradient), axis=IMAGE, keepdims=True)
        gradient = gradient / jnp.where(largest > 0, largest, 1.0)
        norm = jnp.sqrt(jnp.sum(gradient**2, axis=IMAGE, keepdims=True))
        return gradient / jnp.where(norm > 0, norm, 1.0)

    def project(self, images: Array, centre: Array, eps: float) -> Array:
        delta = images - centre
        norm = jnp.sqrt(jnp.maximum(jnp.sum(delta**2, axis=IMAGE, keepdims=True), 1e-24))
        return centre + delta * jnp.minimum(1.0, eps / norm)

    def uniform(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        for_direction, for_radius = jax.random.split(key)
        noise = jax.random.normal(for_direction, shape, dtype)
        length = jax.random.uniform(for_radius, (), dtype) ** (1.0 / math.prod(shape))
        return eps * length * noise / jnp.maximum(jnp.linalg.norm(noise.ravel()), 1e-12)

    def direction(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.normal(key, shape, dtype)

    def corner(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        noise = jax.random.normal(key, shape, dtype)
        return eps * noise / jnp.linalg.norm(noise.ravel())

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, ...], radius: float, *, corners: bool
    ) -> np.ndarray:
        delta = rng.normal(size=shape)
        delta *= radius / self.length(delta, np).reshape(-1, 1, 1, 1)
        if not corners:
            delta *= rng.uniform(size=(shape[0], 1, 1, 1)) ** (1 / math.prod(shape[1:]))
        return delta


class L1Ball(Ball):
    """sum_i |d_i| <= eps: one budget for all pixels. Unlike the others it is projected on within [0, 1]."""

    words = 'by eps in the sum over all pixels'
    # Sums of 150,528 terms in float32.
    tolerance = 1e-5
    sparse = True

    def limit(self, shape: tuple[int, ...]) -> float:
        return float(math.prod(shape))

    def length(self, delta: Any, xp: Any = jnp) -> Any:
        return xp.sum(xp.abs(delta), axis=tuple(range(1, delta.ndim)))

    def dual_length(self, gradient: Array) -> Array:
        return jnp.max(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)))

    def steepest(self, gradient: Array) -> Array:
        """The sign of the largest entry; of several equal ones each has the same share."""
        return l1.largest(gradient, 0.0)

    def ascend(self, images: Array, gradient: Array, length: Any) -> Array:
        """Pixels in the order of their gradients, each as far as 0 or 1, until the length is spent.

        That is the step of steepest ascent in [0, 1]: the one pixel of largest gradient soon has no room.
        """
        room = jnp.where(gradient > 0, 1 - images, jnp.where(gradient < 0, images, 0))
        room = jnp.maximum(room, 0)
        return images + jnp.sign(gradient) * room * l1.fill(jnp.abs(gradient), room, length)

    def project(self, images: Array, centre: Array, eps: float) -> Array:
        return l1.project(images, centre, eps)

    def uniform(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        # With one number more than there are pixels, the sum of the others is distributed as the radius is.
        for_noise, for_radius = jax.random.split(key)
        noise = jax.random.laplace(for_noise, shape, dtype)
        return eps * noise / (jnp.sum(jnp.abs(noise)) + jax.random.exponential(for_radius, (), dtype))

    def direction(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.normal(key, shape, dtype)

    def corner(self, key: Array, shape: tuple[int, ...], dtype: Any, eps: float) -> Array:
        noise = jax.random.laplace(key, shape, dtype)
        return eps * noise / jnp.sum(jnp.abs(noise))

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, ...], radius: float, *, corners: bool
    ) -> np.ndarray:
        delta = rng.laplace(size=shape)
        delta *= radius / self.length(delta, np).reshape(-1, 1, 1, 1)
        if not corners:
            delta *= rng.uniform(size=(shape[0], 1, 1, 1)) ** (1 / math.prod(shape[1:]))
        return delta


BALLS: dict[str, Ball] = {'linf': LinfBall(), 'l2': L2Ball(), 'l1': L1Ball()}
NORMS = tuple(BALLS)
# Radii that are usual for CIFAR-10 (Croce and Hein, 2022, E-AT).
THREATS = ('linf:8/255', 'l2:0.5', 'l1:12')


def ball_of(norm: str) -> Ball:
    """The ball of a norm by name; InputError if there is none."""
    if norm == 'l0':
        raise InputError(
            "norm='l0' is for smallest perturbations (si_jax.smallest, --smallest): attacks in a ball of "
            f'fixed radius have no L0 version here; give {", ".join(BALLS)}'
        )
    if norm not in tuple(BALLS):  # a tuple, as what a caller gave may have no hash
        raise unknown('norm', norm, BALLS)
    return BALLS[norm]


def radius(eps: float) -> str:
    """A radius as a reader knows it: 8/255 and not 0.0313725."""
    if float(f'{eps:.4g}') == eps:
        return f'{eps:.4g}'
    levels = eps * 255
    return f'{round(levels)}/255' if abs(levels - round(levels)) < 1e-4 * levels else f'{eps:.6g}'


@functools.partial(jax.tree_util.register_dataclass, data_fields=['eps'], meta_fields=['norm'])
@dataclasses.dataclass(frozen=True)
class Threat:
    """The ball of radius eps around each image, intersected with [0, 1].

    For JAX it is a tree whose leaf is eps, so that it can be an argument of a compiled program.

    Attributes:
        norm: 'linf', 'l2' or 'l1', a row of `BALLS`.
        eps: Radius; in (0, 1] for Linf, (0, sqrt(H W C)] for L2, (0, H W C] for L1 (checked by `check`).
    """

    norm: str
    eps: float

    def __str__(self) -> str:
        """As `parse_threats` reads it."""
        return f'{self.norm}:{self.eps:.17g}'

    @property
    def ball(self) -> Ball:
        """The geometry of the norm; InputError if it is unknown."""
        return ball_of(self.norm)

    @property
    def slug(self) -> str:
        """Its name in that of a file."""
        return f'{self.norm}-{self.eps:.6g}'

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raises InputError if the norm is unknown or eps cannot be a radius for images [H, W, C]."""
        limit = self.ball.limit(image_shape)
        if not 0 < self.eps <= limit:  # also refuses NaN
            in_bytes = 1 < self.eps <= 255
            advice = f'did you mean {self.eps:g}/255?' if in_bytes else 'give a fraction of the pixel range'
            raise InputError(f'eps={self.eps:g} is not in (0, {limit:g}] for {self.norm}: {advice}')

    def project(self, images: Array, centre: Array) -> Array:
        """The images [B, H, W, C] moved into the ball around `centre`, then into [0, 1].

        For Linf and L1 this is the nearest point of the intersection; for L2 the ball comes first, then the
        range, as in the reference code of AutoAttack.
        """
        chex.assert_equal_shape([images, centre])
        return jnp.clip(self.ball.project(images, centre, self.eps), 0.0, 1.0)

    def uniform_start(self, keys: Array, images: Array) -> Array:
        """A random point of the ball for each image, projected (eq. 2 of the paper): `uniform_noise`."""
        return self.project(images + self.uniform_noise(keys, images), images)

    def uniform_noise(self, keys: Array, images: Array) -> Array:
        """A random perturbation for each image, [B, H, W, C], uniform in the ball.

        Args:
            keys: [B] typed PRNG keys, one per image, so that no perturbation depends on the batch.
            images: [B, H, W, C]; shape and dtype count.
        """
        return jax.vmap(lambda key: self.ball.uniform(key, images.shape[1:], images.dtype, self.eps))(keys)

    def random_direction(self, keys: Array, images: Array) -> tuple[Array, Array]:
        """`Ball.direction` for each image, [B, H, W, C], and its length, [B, 1, 1, 1]; as `uniform_noise`."""
        noise = jax.vmap(lambda key: self.ball.direction(key, images.shape[1:], images.dtype))(keys)
        return noise, self.ball.length(noise).reshape(-1, 1, 1, 1)

    def distance(self, images: Array, centre: Array) -> Array:
        """The norm of each perturbation, [B]."""
        return self.ball.length((images - centre).reshape(len(images), -1))

    def audit(
        self, images: np.ndarray, centre: np.ndarray, *, source: str, indices: np.ndarray | None = None
    ) -> float:
        """Checks that an attack kept to its threat model; returns the largest perturbation.

        Computed in float64 on the host, with NumPy, apart from the code that made the images. It allows
        `Ball.tolerance` max(1, eps) beyond eps, and nothing beyond [0, 1].

        Args:
            images: [B, H, W, C], returned by the attack.
            centre: [B, H, W, C], the original images.
            source: The attack's name, for the message.
            indices: [B], the number of each image, for the message; its position if None.

        Raises:
            AssertionError: A returned image lies outside the ball or outside [0, 1], or is not finite. This
                is a fault of the attack, never a success to be counted.
        """
        images, centre = np.asarray(images, np.float64), np.asarray(centre, np.float64)
        distance = self.ball.length(images - centre, np)
        outside = np.abs(images - np.clip(images, 0, 1)).max(axis=IMAGE)
        tolerance = self.ball.tolerance * max(1.0, self.eps)
        # Written so that NaN fails.
        wrong = ~((distance <= self.eps + tolerance) & (outside <= 0))
        if wrong.any():
            i = int(np.argmax(wrong))
            number = i if indices is None else indices[i]
            raise AssertionError(
                f'{source} left its threat model on image {number}: {self.norm} distance '
                f'{distance[i]:.9g} (limit {self.eps:.9g} + {tolerance:.0e}), {outside[i]:.3g} outside [0, 1]'
            )
        return float(distance.max(initial=0.0))


def parse_threats(threats: str | Iterable[str]) -> dict[str, Threat]:
    """The threat models by their texts, in order.

    Raises:
        InputError: A text is no 'NORM:EPS', or two are the same threat model.
    """
    found: dict[str, Threat] = {}
    for text in threats.split(',') if isinstance(threats, str) else threats:
        text = str(text).strip()
        norm, colon, eps = text.partition(':')
        try:
            radius = fraction(eps)
        except ValueError:
            radius = 0.0
        if not colon or not radius > 0:
            raise InputError(f'{text!r} is no threat model: write NORM:EPS, such as {", ".join(THREATS)}')
        ball_of(norm)
        threat = Threat(norm, radius)
        if threat.slug in {one.slug for one in found.values()}:
            raise InputError(f'{text} is given twice: give each threat model once')
        found[text] = threat
    if not found:
        raise InputError(f'no threat model is given: write some, such as {",".join(THREATS)}')
    return found
