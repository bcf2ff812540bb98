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

from si_jax import losses
from si_jax.errors import InputError
from si_jax.evaluation import checks, packing
from si_jax.evaluation.classifier import Classifier, Lifted, lift
from si_jax.evaluation.last_layer import with_features
from si_jax.evaluation.surrogate import Attacked, backward_of, check_stand_in
from si_jax.outputs import Outputs
from si_jax.runtime import processes
from si_jax.runtime.devices import compile_rows, map_rows, replicate
from si_jax.storage.trees import digest
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
        gradient_of: Whose derivative the attacks take in place of the classifier's own.

    Attributes:
        scale: The factor on the logits of calibrated attacks; who runs one sets it.
    """

    scale: float | None = None

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
        gradient_of: Classifier | None = None,
    ):
        self.classifier, self.devices, self.chunk = classifier, devices, chunk
        self.images, self.labels, self.indices = images, labels.astype(np.int32), indices
        self.sizes = packing.sizes(chunk, len(devices))
        # Of how many processes the groups are made: those that began the evaluation.
        self.shares = processes.count()
        self.seed = seed
        self._key = jax.random.key(seed)
        self.key_impl = jax.random.key_impl(self._key)
        each = chunk // len(devices)
        example = (
            jax.ShapeDtypeStruct((each, *images.shape[1:]), images.dtype),
            jax.ShapeDtypeStruct((each,), self._key.dtype),
        )
        lifted, self.why_no_features = _lifted(classifier, example, needs_features)
        self.outputs: Outputs = lifted.shape
        self.apply = functools.partial(lifted.apply, precision=precision)
        self.weights = replicate(lifted.weights, devices)
        self._lifted, self._digest = lifted, functools.partial(digest, *lifted.weights)
        self.gradient_of = gradient_of
        self._stand_in: Callable[..., Outputs] | None = None
        self._stand_in_weights: list[Array] = []
        if gradient_of is not None:
            try:
                stand_in, _ = _lifted(gradient_of, example, needs_features)
            except InputError as error:
                raise InputError(f'gradient_of: {error}') from error
            except (TypeError, ValueError) as error:
                raise cannot_take('gradient_of', images.shape, error) from error
            check_stand_in(stand_in.shape, lifted.shape, needs_features)
            self._stand_in = functools.partial(stand_in.apply, precision=precision)
            self._stand_in_weights = stand_in.weights
            self._digest = functools.partial(digest, *lifted.weights, *stand_in.weights)

        def classify(weights: Any, images: Array, keys: Array) -> dict[str, Array]:
            outputs = lifted.apply(weights, images, self.verification_keys(keys))
            products = jnp.zeros_like(outputs.logits)
            if outputs.features is not None:
                products = outputs.features @ outputs.kernel
            return {'logits': outputs.logits, 'products': products}

        self._classify = compile_rows(classify, devices)

    def check_and_classify(
        self, *, explain: bool, on_share: Callable[[float], None] = lambda share: None
    ) -> np.ndarray:
        """The logits of the clean images [N, K], by a classifier that is found fit.

        Args:
            explain: Whether features and kernel must explain the logits.
            on_share: Is told the share of the images that is done.

        Raises:
            InputError: The classifier is unfit.
        """
        keys = self.keys(0)
        clean = self._map(self._classify, (self.images, keys), on_share)
        checks.check_finite(clean['logits'], self.indices, 'image')
        rows = np.arange(checks.PROBE) % len(self.images)
        probed = checks.probe(self.classifier, self.images[rows], self.verification_keys(keys[rows]))
        if self.gradient_of is not None:
            try:
                checks.probe(self.gradient_of, self.images[rows], self.verification_keys(keys[rows]))
            except InputError as error:
                raise InputError(f'gradient_of: {error}') from error
        checks.check_compiled(clean['logits'][rows], probed.logits[: checks.PROBE])
        if explain:
            # Inverted images make the fit a test however few images there are.
            inverted = map_rows(
                self._classify, self.weights, (1 - self.images[rows], keys[rows]), self.chunk, self.devices
            )
            checks.check_explained(
                *(np.concatenate([clean[name], inverted[name]]) for name in ('logits', 'products'))
            )
        # Another machine's may be off by a rounding; all go by those of the first process.
        return processes.gather_arrays({'logits': clean['logits']} if processes.is_first() else {})[0][
            'logits'
        ]

    def logits(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The logits [M, K] of images [M, H, W, C], by the program that decides; keys are their data."""
        return self._map(self._classify, (images, keys))['logits']

    def keys(self, run: int, name: str | None = None) -> np.ndarray:
        """The data of the key of each image, [N, ...].

        It comes from the seed, the image's number and the number of the run. The PGD family gives no name, so
        that its attacks share their noise.
        """
        number = None if name is None else np.uint32(zlib.crc32(name.encode()))
        return np.asarray(_run_keys(self._key, self.indices, number, run))

    def groups(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in the groups that are worked on, and saved, together: some for each process."""
        wanted = GROUP.get(self.devices[0].platform, GROUP_ACCELERATOR)
        wanted = min(wanted, -(-len(rows) // self.shares)) if self.shares > 1 else wanted
        wanted = -(-wanted // self.chunk) * self.chunk if self.shares > 1 else wanted
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

    def attacked(self, calibrated: bool = False) -> Attacked:
        """The classifier as attacks see it: with the gradient of `gradient_of`, and with scaled logits."""
        if self._stand_in is None and not calibrated:
            return Attacked(self.apply, self.weights)
        shared = {'own': self._lifted.weights, 'stand in': self._stand_in_weights}
        if calibrated:
            assert self.scale is not None
            shared['scale'] = [jnp.asarray(self.scale, self.images.dtype)]

        def apply(shared: dict[str, list[Array]], images: Array, keys: Array) -> Outputs:
            outputs = self._function(shared['own'], shared['stand in'])(images, keys)
            return outputs._replace(logits=shared['scale'][0] * outputs.logits) if calibrated else outputs

        return Attacked(apply, replicate(shared, self.devices))

    def eager(self) -> Callable[..., Outputs]:
        """The classifier for callables: images -> `Outputs`, or (images, keys) if it is randomised."""
        function, key = self._function(self._lifted.weights, self._stand_in_weights), self._key
        if self.classifier.randomised:
            return jax.jit(function)
        return jax.jit(lambda images: function(images, jnp.broadcast_to(key, len(images))))

    def _function(
        self, weights: list[Array], stand_in_weights: list[Array]
    ) -> Callable[[Array, Array], Outputs]:
        """(images, keys) -> `Outputs`, with the gradient that attacks take."""
        own = functools.partial(self.apply, weights)
        if self._stand_in is None:
            return own
        return backward_of(own, functools.partial(self._stand_in, stand_in_weights))

    def batch_key(self, first: int, restart: int, name: str) -> Array:
        """The key of a batch that begins with image `first`, for attacks that take one key a batch."""
        key = jax.random.fold_in(self._key, np.uint32(zlib.crc32(name.encode())))
        return jax.random.fold_in(jax.random.fold_in(key, restart), self.indices[first])

    def blind(self, rows: np.ndarray, on_share: Callable[[float], None] = lambda share: None) -> float:
        """The share of these images where the gradient of the cross-entropy is exactly zero."""

        target = self.attacked()

        def zero(shared: Any, images: Array, labels: Array, keys: Array) -> Array:
            keys = self.verification_keys(keys)

            def loss(x: Array) -> Array:
                return jnp.sum(losses.cross_entropy(target.apply(shared, x, keys).logits, labels))

            return jnp.all(jax.grad(loss)(images) == 0, axis=(1, 2, 3))

        if not len(rows):
            return 0.0
        arrays = self.images[rows], self.labels[rows], self.keys(0)[rows]
        function = compile_rows(zero, self.devices)
        zeros = map_rows(function, target.shared, arrays, self.sizes, self.devices, on_share)
        return float(np.mean(zeros))

    def identity(self) -> dict[str, Any]:
        """What tells this classifier and this data from others."""
        return {
            'weights': self._digest(),
            'data': digest(self.images, self.labels, self.indices),
            'images at once': self.chunk,
            **({'processes': self.shares} if self.shares > 1 else {}),
        }

    def gradient_digest(self) -> dict[str, Any]:
        """What tells the classifier whose gradient is taken from others."""
        return {'weights': digest(*self._stand_in_weights)}

    def _map(
        self,
        function: Callable[..., Any],
        rows: tuple[np.ndarray, ...],
        on_share: Callable[[float], None] = lambda share: None,
    ) -> Any:
        return map_rows(function, self.weights, rows, self.sizes, self.devices, on_share)

    def verification_keys(self, keys: Array | np.ndarray) -> Array:
        """The keys of a randomised classifier in the forward pass that decides [B], from the keys' data."""
        typed = jax.random.wrap_key_data(jnp.asarray(keys), impl=self.key_impl)
        return jax.vmap(lambda key: jax.random.fold_in(key, _VERIFICATION))(typed)


def cannot_take(name: str, shape: tuple[int, ...], error: Exception) -> InputError:
    """The error for another classifier that cannot be traced with these images [N, H, W, C]."""
    return InputError(
        f'{name} cannot take the images [B, {", ".join(map(str, shape[1:]))}] of the classifier: '
        f'{str(error).splitlines()[0]}'
    )


def _lifted(
    classifier: Classifier, example: tuple[jax.ShapeDtypeStruct, ...], needs_features: bool
) -> tuple[Lifted, str]:
    """The traced classifier, with features and kernel if they are needed and found, and why they were not."""
    lifted = lift(classifier.function, *example)
    if not needs_features or lifted.shape.features is not None:
        return lifted, ''
    found = with_features(classifier.function, *example)
    return (lifted, found) if isinstance(found, str) else (lift(found, *example), '')


@jax.jit
def _run_keys(key: Array, indices: Array, name: Array | None, run: Array | int) -> Array:
    def one(index: Array) -> Array:
        folded = jax.random.fold_in(key, index)
        folded = folded if name is None else jax.random.fold_in(folded, name)
        return jax.random.key_data(jax.random.fold_in(folded, run))

    return jax.vmap(one)(indices)
