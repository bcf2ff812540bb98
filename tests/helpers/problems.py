"""Small classifiers and images that the tests of evaluation share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import Outputs

SHAPE = (6, 6, 2)


class Net(NamedTuple):
    """Two layers with fixed random weights: relu(x V) W + b."""

    v: jax.Array
    w: jax.Array
    b: jax.Array

    def __call__(self, images: jax.Array) -> Outputs:
        z = jax.nn.relu((images - 0.5).reshape(len(images), -1) @ self.v)
        return Outputs(z @ self.w + self.b, z, self.w)


def net(classes: int = 4, width: int = 24, seed: int = 0, dtype: str = 'float32') -> Net:
    rng = np.random.default_rng(seed)
    size = int(np.prod(SHAPE))
    return Net(
        jnp.asarray(rng.normal(size=(size, width)) / size**0.5, dtype),
        jnp.asarray(rng.normal(size=(width, classes)), dtype),
        jnp.asarray(0.1 * rng.normal(size=classes), dtype),
    )


def images_and_labels(
    count: int, classifier: Callable | None = None, dtype: str = 'float32', seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images, and the classes that the classifier gives them, or random ones, for one in ten likewise."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(count, *SHAPE)).astype(dtype)
    labels = rng.integers(0, 4, count)
    if classifier is not None:
        predicted = np.argmax(classifier(jnp.asarray(images)).logits, axis=1)
        labels = np.where(rng.uniform(size=count) < 0.9, predicted, labels)
    return images, labels
