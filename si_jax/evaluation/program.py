"""A classifier with its images, compiled: the clean forward pass and the attacks.

The classifier is checked first, and then run on all images by one compiled program; each attack is another.
What an attack returns is audited and goes through the program of the clean images again, so that no attack
counts a success that is none.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import attacks as catalogue
from si_jax import parallel
from si_jax.attacks.gradient import Start, starting_points
from si_jax.evaluation import checks
from si_jax.evaluation.classifier import Classifier, lift
from si_jax.evaluation.result import AttackRecord
from si_jax.metrics import Progress
from si_jax.outputs import Outputs
from si_jax.threat import Threat

Array = jax.Array

# Folded into an image's key for the forward pass that decides; its split has taken the numbers 0 and 1.
_VERIFICATION = 2


class Program:
    """A classifier with its data, compiled for the devices as it is needed."""

    def __init__(
        self,
        classifier: Classifier,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        seed: int,
        chunk: int,
        devices: list[jax.Device],
    ):
        self.classifier, self._devices, self._chunk = classifier, devices, chunk
        self._positions = np.arange(len(images))
        self._images, self._labels, self._indices = images, labels.astype(np.int32), indices
        self._key = jax.random.key(seed)
        each = chunk // len(devices)
        lifted = lift(
            classifier.function,
            jax.ShapeDtypeStruct((each, *images.shape[1:]), images.dtype),
            jax.ShapeDtypeStruct((each,), self._key.dtype),
        )
        self.outputs: Outputs = lifted.shape
        self._apply = lifted.apply
        self._weights = parallel.replicate(lifted.weights, devices)

        def classify(weights: Any, images: Array, labels: Array, keys: Array) -> dict[str, Array]:
            outputs = lifted.apply(weights, images, _verification_keys(keys))
            products = jnp.zeros_like(outputs.logits)
            if outputs.features is not None:
                products = outputs.features @ outputs.kernel
            return {
                'correct': jnp.argmax(outputs.logits, axis=1) == labels,
                'logits': outputs.logits,
                'products': products,
            }

        self._classify = parallel.compile_rows(classify, devices)

    def check_and_classify(self, *, explain: bool) -> np.ndarray:
        """Whether each clean image [N] is classified correctly, by a classifier that is found fit.

        Args:
            explain: Whether features and kernel must explain the logits.

        Raises:
            InputError: The classifier is unfit.
        """

        def classify(weights: Any, positions: np.ndarray, *rows: Any) -> dict[str, Array]:
            del positions
            return self._classify(weights, *rows)

        clean = self._map(classify, restart=0)
        checks.check_finite(clean['logits'], self._indices, 'image')
        rows = np.arange(checks.PROBE) % len(self._images)
        keys = _verification_keys(_run_keys(self._key, self._indices, 0)[rows])
        probed = checks.probe(self.classifier, self._images[rows], keys)
        checks.check_compiled(clean['logits'][rows], probed.logits[: checks.PROBE])
        if explain:
            assert probed.features is not None and probed.kernel is not None
            # The probe's inverted images make the fit a test however few images there are.
            checks.check_explained(
                np.concatenate([clean['logits'], probed.logits]),
                np.concatenate([clean['products'], probed.features @ probed.kernel]),
            )
        return clean['correct']

    def attack(
        self,
        name: str,
        threat: Threat,
        restarts: int,
        steps: int,
        step_size: float,
        eot_samples: int,
        *,
        keep: bool,
        bar: Progress,
    ) -> tuple[AttackRecord, np.ndarray]:
        """Runs an attack on all images, audits what it returns, and classifies that again.

        Args:
            name: A row of the catalogue.
            threat: The ball.
            restarts: Number of runs.
            steps: Where the attack does not fix it.
            step_size: Likewise.
            eot_samples: Gradients averaged in each step.
            keep: Whether to return the adversarial images; an empty array is returned instead.
            bar: Is told of each image.
        """
        attack = catalogue.ATTACKS[name]

        def search(weights: Any, images: Array, labels: Array, keys: Array, start: Array) -> Array:
            ascent = catalogue.run(
                attack,
                lambda x, keys: self._apply(weights, x, keys),
                images,
                labels,
                keys,
                threat=threat,
                steps=steps,
                step_size=step_size,
                eot_samples=eot_samples,
                start=start,
            )
            return ascent.last

        begin = _starting_points(attack.start, threat, tuple(self._devices))
        compiled = parallel.compile_rows(search, self._devices)
        largest = 0.0

        def chunk(weights: Any, positions: np.ndarray, images: np.ndarray, *rows: Any) -> dict[str, Any]:
            nonlocal largest
            # By way of the host, as the clean images came: arrays laid out otherwise would compile again.
            found = np.asarray(compiled(weights, images, *rows, begin((), images, rows[-1])))
            verdict = self._classify(weights, found, *rows)
            after, before = (array.reshape(-1, *array.shape[2:]) for array in (found, images))
            distance = threat.audit(after, before, source=name, first=int(positions.flat[0]))
            largest = max(largest, distance)
            logits = np.asarray(verdict['logits'])
            logits = logits.reshape(-1, logits.shape[-1])
            checks.check_finite(logits, self._indices[positions.ravel()], f'what {name} made of image')
            bar.update(len(np.unique(positions)))
            return {'correct': verdict['correct']} | ({'images': found} if keep else {})

        runs: list[np.ndarray] = []
        kept = np.zeros((0, *self._images.shape[1:]), self._images.dtype)
        for restart in range(restarts):
            run = self._map(chunk, restart)
            if keep and not runs:
                kept = run['images']
            elif keep:
                new = np.logical_and.reduce(runs) & ~run['correct']
                kept[new] = run['images'][new]
            runs.append(run['correct'])
        steps = steps if attack.steps is None else attack.steps
        step_size = step_size if attack.step_size is None else attack.step_size * threat.eps
        return AttackRecord(np.stack(runs), steps, step_size, eot_samples, largest), kept

    def _map(self, function: Callable[..., Any], restart: int) -> Any:
        """Applies (weights, positions, images, labels, keys) to all images, a chunk at a time."""
        keys = _run_keys(self._key, self._indices, restart)
        rows = self._positions, self._images, self._labels, keys
        return parallel.map_rows(function, self._weights, rows, self._chunk, self._devices)


@functools.lru_cache(maxsize=16)
def _starting_points(start: Start, threat: Threat, devices: tuple[jax.Device, ...]) -> Callable[..., Array]:
    """Compiles ((), images, keys) -> starts: once for all attacks, as it takes longer than they do."""

    def points(_: Any, images: Array, keys: Array) -> Array:
        return starting_points(start, threat, images, keys)

    return parallel.compile_rows(points, list(devices))


@jax.jit
def _run_keys(key: Array, indices: Array, restart: Array | int) -> Array:
    """The key of each image and restart, [N]: it has no attack name, so attacks share their noise."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), restart))(indices)


def _verification_keys(keys: Array) -> Array:
    """The keys of a randomised classifier in the forward pass that decides, [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _VERIFICATION))(keys)
