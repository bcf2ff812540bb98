"""Threat models: the set of images that an attack may return.

Pixels are in [0, 1] and eps is a fraction of that range: 8/255, not 8.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.errors import InputError, unknown

Array = jax.Array
NORMS = ('linf', 'l2')
# For L1, APGD and Square are other algorithms: sparse steps, a schedule of radii, another projection.
NO_L1 = (
    "norm 'l1' is not implemented, for no attack: evaluate with 'linf' or 'l2', or with the public PyTorch "
    "implementation (fra31/auto-attack, norm='L1')"
)


@dataclasses.dataclass(frozen=True)
class Threat:
    """The ball of radius eps around each image, intersected with [0, 1].

    Attributes:
        norm: 'linf' or 'l2'.
        eps: Radius; in (0, 1] for Linf, in (0, sqrt(H W C)] for L2 (checked by `check`).
    """

    norm: str
    eps: float

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raises InputError if the norm is unknown or eps cannot be a radius for images [H, W, C]."""
        if str(self.norm).lower() == 'l1':
            raise InputError(NO_L1)
        if self.norm not in NORMS:
            raise unknown('norm', self.norm, NORMS)
        limit = 1.0 if self.norm == 'linf' else math.sqrt(math.prod(image_shape))
        if not 0 < self.eps <= limit:  # also refuses NaN
            in_bytes = 1 < self.eps <= 255
            advice = f'did you mean {self.eps:g}/255?' if in_bytes else 'give a fraction of the pixel range'
            raise InputError(f'eps={self.eps:g} is not in (0, {limit:g}] for {self.norm}: {advice}')

    def project(self, images: Array, centre: Array) -> Array:
        """The images [B, H, W, C] moved into the ball around `centre`, then into [0, 1].

        For Linf this is the nearest point of the intersection; for L2 the ball comes first, then the range,
        as in the reference code of AutoAttack.
        """
        if self.norm == 'linf':
            images = jnp.clip(images, centre - self.eps, centre + self.eps)
        else:
            delta = images - centre
            norm = jnp.sqrt(jnp.maximum(jnp.sum(delta**2, axis=(1, 2, 3), keepdims=True), 1e-24))
            images = centre + delta * jnp.minimum(1.0, self.eps / norm)
        return jnp.clip(images, 0.0, 1.0)

    def uniform_start(self, keys: Array, images: Array) -> Array:
        """A random point of the ball for each image, projected (eq. 2 of the paper): `uniform_noise`."""
        return self.project(images + self.uniform_noise(keys, images), images)

    def uniform_noise(self, keys: Array, images: Array) -> Array:
        """A random perturbation for each image, [B, H, W, C].

        Linf: uniform in [-eps, eps] per entry. L2: uniform in the ball. Drawn from one key per image, so that
        it does not depend on the batch.

        Args:
            keys: [B] typed PRNG keys.
            images: [B, H, W, C]; shape and dtype count.
        """
        shape, dtype = images.shape[1:], images.dtype

        def draw(key: Array) -> Array:
            if self.norm == 'linf':
                return jax.random.uniform(key, shape, dtype, -self.eps, self.eps)
            direction, radius = jax.random.split(key)
            noise = jax.random.normal(direction, shape, dtype)
            length = jax.random.uniform(radius, (), dtype) ** (1.0 / math.prod(shape))
            return self.eps * length * noise / jnp.maximum(jnp.linalg.norm(noise.ravel()), 1e-12)

        return jax.vmap(draw)(keys)

    def distance(self, images: Array, centre: Array) -> Array:
        """The norm of each perturbation, [B]."""
        delta = (images - centre).reshape(len(images), -1)
        if self.norm == 'linf':
            return jnp.max(jnp.abs(delta), axis=1)
        return jnp.sqrt(jnp.sum(delta**2, axis=1))

    def audit(
        self, images: np.ndarray, centre: np.ndarray, *, source: str, indices: np.ndarray | None = None
    ) -> float:
        """Checks that an attack kept to its threat model; returns the largest perturbation.

        Computed in float64 on the host, apart from the code that made the images. The tolerance is
        1e-6 max(1, eps): the grid of 8-bit pixels at 8/255 is off by up to 2.6e-8 in float32.

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
        delta, axes = np.abs(images - centre), (1, 2, 3)
        distance = delta.max(axis=axes) if self.norm == 'linf' else np.sqrt((delta**2).sum(axis=axes))
        outside = np.abs(images - np.clip(images, 0, 1)).max(axis=axes)
        tolerance = 1e-6 * max(1.0, self.eps)
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
