"""A classifier with its images, compiled: the forward pass that decides, and the attacks of the PGD family.

The classifier is checked first, and then run on all images by one compiled program; each attack is another.
What an attack returns is audited and goes through the program of the clean images again, so that no attack
counts a success that is none.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax import attacks as catalogue
from si_jax import losses, parallel
from si_jax.attacks.gradient import Start, starting_points
from si_jax.evaluation import checks, packing
from si_jax.evaluation.classifier import Classifier, lift
from si_jax.evaluation.last_layer import with_features
from si_jax.evaluation.result import AttackRecord
from si_jax.evaluation.saved import Arrays, Saved, digest
from si_jax.metrics import Progress
from si_jax.outputs import Outputs
from si_jax.threat import Threat

Array = jax.Array

# Folded into an image's key for the forward pass that decides; its split has taken the numbers 0 and 1.
_VERIFICATION = 2
# Images in a unit of work that is saved, in whole chunks.
GROUP = {'cpu': 512}
GROUP_ACCELERATOR = 4096


class Program:
    """A classifier with its data, compiled for the devices as it is needed.

    Args:
        classifier: The classifier.
        images: [N, H, W, C].
        labels: [N].
        indices: [N], the number of each image.
        seed: Of everything random.
        chunk: Images at once on all devices together.
        devices: Local devices.
        precision: Of the classifier inside the attacks, one of `classifier.PRECISIONS`; None for that of the
            images.
        needs_features: Whether features and kernel are looked for if the classifier returns logits alone;
            `why_no_features` says why they were not found.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        seed: int,
        chunk: int,
        devices: list[jax.Device],
        precision: str | None = None,
        needs_features: bool = False,
    ):
        self.classifier, self.devices, self.chunk = classifier, devices, chunk
        self.images, self.labels, self.indices = images, labels.astype(np.int32), indices
        self.sizes = packing.sizes(chunk, len(devices))
        self._key = jax.random.key(seed)
        self.key_impl = jax.random.key_impl(self._key)
        each = chunk // len(devices)
        example = (
            jax.ShapeDtypeStruct((each, *images.shape[1:]), images.dtype),
            jax.ShapeDtypeStruct((each,), self._key.dtype),
        )
        lifted = lift(classifier.function, *example)
        self.why_no_features = ''
        if needs_features and lifted.shape.features is None:
            found = with_features(classifier.function, *example)
            if isinstance(found, str):
                self.why_no_features = found
            else:
                lifted = lift(found, *example)
        self.outputs: Outputs = lifted.shape
        self.apply = functools.partial(lifted.apply, precision=precision)
        self.weights = parallel.replicate(lifted.weights, devices)
        self._digest = functools.partial(digest, *lifted.weights)

        def classify(weights: Any, images: Array, keys: Array) -> dict[str, Array]:
            outputs = lifted.apply(weights, images, self._verification_keys(keys))
            products = jnp.zeros_like(outputs.logits)
            if outputs.features is not None:
                products = outputs.features @ outputs.kernel
            return {'logits': outputs.logits, 'products': products}

        self._classify = parallel.compile_rows(classify, devices)

    def check_and_classify(self, *, explain: bool) -> np.ndarray:
        """The logits of the clean images [N, K], by a classifier that is found fit.

        Args:
            explain: Whether features and kernel must explain the logits.

        Raises:
            InputError: The classifier is unfit.
        """
        keys = self.keys(0)
        clean = self._map(self._classify, (self.images, keys))
        checks.check_finite(clean['logits'], self.indices, 'image')
        rows = np.arange(checks.PROBE) % len(self.images)
        probed = checks.probe(self.classifier, self.images[rows], self._verification_keys(keys[rows]))
        checks.check_compiled(clean['logits'][rows], probed.logits[: checks.PROBE])
        if explain:
            # Inverted images make the fit a test however few images there are.
            inverted = parallel.map_rows(
                self._classify, self.weights, (1 - self.images[rows], keys[rows]), self.chunk, self.devices
            )
            checks.check_explained(
                *(np.concatenate([clean[name], inverted[name]]) for name in ('logits', 'products'))
            )
        return clean['logits']

    def keys(self, run: int, name: str | None = None) -> np.ndarray:
        """The data of the key of each image, [N, ...].

        It comes from the seed, the image's number and the number of the run. The PGD family gives no name, so
        that its attacks share their noise.
        """
        number = None if name is None else np.uint32(zlib.crc32(name.encode()))
        return np.asarray(_run_keys(self._key, self.indices, number, run))

    def groups(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in the groups that are worked on, and saved, together."""
        wanted = GROUP.get(self.devices[0].platform, GROUP_ACCELERATOR)
        size = max(wanted // self.chunk, 1) * self.chunk
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def confirm(
        self, rows: np.ndarray, found: np.ndarray, keys: np.ndarray, threat: Threat, source: str
    ) -> tuple[np.ndarray, float]:
        """Audits the images that an attack returned and classifies them as the clean ones were.

        Args:
            rows: [M], which images were attacked.
            found: [M, H, W, C], what the attack made of them.
            keys: [M, ...], the data of their keys.
            threat: The ball.
            source: The attack's name, for messages.

        Returns:
            Whether each is classified correctly [M], and the largest distance from an original.
        """
        if not len(rows):
            return np.zeros(0, bool), 0.0
        largest = threat.audit(found, self.images[rows], source=source, indices=self.indices[rows])
        logits = self._map(self._classify, (found, keys))['logits']
        checks.check_finite(logits, self.indices[rows], f'what {source} made of image')
        return np.argmax(logits, axis=1) == self.labels[rows], largest

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
        saved: Saved,
    ) -> tuple[AttackRecord, np.ndarray]:
        """Runs an attack of the PGD family on all images; its final images count.

        Args:
            name: A row of `catalogue.ATTACKS`.
            threat: The ball.
            restarts: Number of runs.
            steps: Where the attack does not fix it.
            step_size: Likewise.
            eot_samples: Gradients averaged in each step.
            keep: Whether to return the adversarial images; an empty array is returned instead.
            bar: Is told of each image.
            saved: What is finished already.
        """
        attack = catalogue.ATTACKS[name]

        def search(weights: Any, images: Array, labels: Array, keys: Array, start: Array) -> Array:
            ascent = catalogue.run(
                attack,
                lambda x, keys: self.apply(weights, x, keys),
                images,
                labels,
                jax.random.wrap_key_data(keys, impl=self.key_impl),
                threat=threat,
                steps=steps,
                step_size=step_size,
                eot_samples=eot_samples,
                start=start,
            )
            return ascent.last

        begin = _starting_points(attack.start, threat, self.key_impl, tuple(self.devices))
        compiled = parallel.compile_rows(search, self.devices)

        def unit(rows: np.ndarray, keys: np.ndarray) -> Arrays:
            images, labels = self.images[rows], self.labels[rows]
            # By way of the host, as the images came: arrays laid out otherwise would compile again.
            start = parallel.map_rows(begin, (), (images, keys), self.chunk, self.devices)
            found = parallel.map_rows(
                compiled, self.weights, (images, labels, keys, start), self.chunk, self.devices
            )
            correct, largest = self.confirm(rows, found, keys, threat, name)
            return {'correct': correct, 'largest': np.float64(largest), 'images': found[: len(found) * keep]}

        runs: list[np.ndarray] = []
        largest = 0.0
        kept = np.zeros((0, *self.images.shape[1:]), self.images.dtype)
        for restart in range(restarts):
            keys, parts = self.keys(restart), []
            for number, rows in enumerate(self.groups(np.arange(len(self.images)))):
                parts.append(
                    saved.remember(f'{name}-{restart}-{number}', functools.partial(unit, rows, keys[rows]))
                )
                bar.update(len(rows))
            correct, images = (np.concatenate([part[key] for part in parts]) for key in ('correct', 'images'))
            largest = max(largest, *(float(part['largest']) for part in parts))
            if keep and not runs:
                kept = images
            elif keep:
                new = np.logical_and.reduce(runs) & ~correct
                kept[new] = images[new]
            runs.append(correct)
        steps = steps if attack.steps is None else attack.steps
        step_size = step_size if attack.step_size is None else attack.step_size * threat.eps
        return AttackRecord(np.stack(runs), steps, step_size, eot_samples, largest), kept

    def blind(self, rows: np.ndarray) -> float:
        """The share of these images where the gradient of the cross-entropy is exactly zero."""

        def zero(weights: Any, images: Array, labels: Array, keys: Array) -> Array:
            keys = self._verification_keys(keys)

            def loss(x: Array) -> Array:
                return jnp.sum(losses.cross_entropy(self.apply(weights, x, keys).logits, labels))

            return jnp.all(jax.grad(loss)(images) == 0, axis=(1, 2, 3))

        if not len(rows):
            return 0.0
        arrays = self.images[rows], self.labels[rows], self.keys(0)[rows]
        return float(np.mean(self._map(parallel.compile_rows(zero, self.devices), arrays)))

    def identity(self) -> dict[str, Any]:
        """What tells this classifier and this data from others."""
        return {
            'weights': self._digest(),
            'data': digest(self.images, self.labels, self.indices),
            'images at once': self.chunk,
        }

    def _map(self, function: Callable[..., Any], rows: tuple[np.ndarray, ...]) -> Any:
        return parallel.map_rows(function, self.weights, rows, self.sizes, self.devices)

    def _verification_keys(self, keys: Array | np.ndarray) -> Array:
        """The keys of a randomised classifier in the forward pass that decides [B], from the keys' data."""
        typed = jax.random.wrap_key_data(jnp.asarray(keys), impl=self.key_impl)
        return jax.vmap(lambda key: jax.random.fold_in(key, _VERIFICATION))(typed)


@functools.lru_cache(maxsize=16)
def _starting_points(
    start: Start, threat: Threat, key_impl: Any, devices: tuple[jax.Device, ...]
) -> Callable[..., Array]:
    """Compiles ((), images, keys) -> starts: once for all attacks, as it takes longer than they do."""

    def points(_: Any, images: Array, keys: Array) -> Array:
        return starting_points(start, threat, images, jax.random.wrap_key_data(keys, impl=key_impl))

    return parallel.compile_rows(points, list(devices))


@jax.jit
def _run_keys(key: Array, indices: Array, name: Array | None, run: Array | int) -> Array:
    def one(index: Array) -> Array:
        folded = jax.random.fold_in(key, index)
        folded = folded if name is None else jax.random.fold_in(folded, name)
        return jax.random.key_data(jax.random.fold_in(folded, run))

    return jax.vmap(one)(indices)
