"""A classifier with its images, compiled: the pass that decides, and the classifier as attacks see it.

The classifier is checked first, and then run on all images by one compiled program; each attack is another.
What an attack returns is audited and goes through the program of the clean images again, so that no attack
counts a success that is none.
"""

import dataclasses
import functools
import hashlib
import math
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.draws import key_of
from si_jax.errors import InputError
from si_jax.evaluation import cosines, eight_bit, gates, packing, sanity
from si_jax.evaluation.classifier import Classifier, Lifted, lift
from si_jax.evaluation.last_layer import with_features
from si_jax.evaluation.pixels import Images
from si_jax.evaluation.request import Request
from si_jax.evaluation.result import data_digest
from si_jax.evaluation.settings import DECISIONS
from si_jax.evaluation.surrogate import Surrogate, backward_of, check_stand_in
from si_jax.evaluation.tolerances import check_explained
from si_jax.outputs import Outputs, misclassified
from si_jax.runtime import processes, progress
from si_jax.runtime.devices import compile_rows, map_rows, replicate
from si_jax.storage.trees import digest
from si_jax.threat import Threat

Array = jax.Array

# Folded into an image's key for the forward pass that decides; its split has taken the numbers 0 and 1.
_VERIFICATION = 2
# In the name of the keys of the draws that decide: no attack has it.
_DECISIONS = 'decisions of a random classifier'
# In an identity: the name of the program whose gradient is followed.
PROGRAM = "the program of the classifier's gradient"
# Images in a unit of work that is saved, in whole chunks, and bytes that they have at most: an attack holds
# about ten arrays of their size.
GROUP = {'cpu': 512}
GROUP_ACCELERATOR = 4096
GROUP_BYTES = {'cpu': 2**24}
GROUP_BYTES_ACCELERATOR = 2**26
KEYS = 512  # that are made at once


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A classifier with its images, compiled for the devices as it is needed.

    `Network.of` makes it, and `part` and `check_and_classify` make further ones of it, which share its
    compiled programs.

    Attributes:
        classifier: The classifier as given; `traced` is what JAX made of it.
        apply: (weights, images, keys) -> `Outputs`, in the precision of the search.
        weights: Its weights, on the devices.
        gradient_of: Whose derivative the attacks take (BPDA); None for the classifier's own.
        stand_in: `gradient_of`, traced.
        why_no_features: Why features and kernel were not found, if they were looked for.
        clean_logits: [N, K], of the clean images, once they were classified; of a random classifier the mean
            over the draws that decide.
        clean_share: [N], the share of these draws in which the clean image is classified correctly; of a
            classifier that is not random bool, whether it is.
        masked: [K] bool, whether a class has one logit for all clean images and for some that were inverted.
        scale: The factor on the logits of calibrated attacks, once it was measured.
        si: What `cosines.measure` found on the clean images, once it was asked for.
        programs: Compiled programs by what they depend on.
    """

    classifier: Classifier
    request: Request
    traced: Lifted
    apply: Callable[..., Any]
    weights: Any
    gradient_of: Classifier | None
    stand_in: Lifted | None
    why_no_features: str
    clean_logits: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    clean_share: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    masked: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    scale: float | None = None
    si: dict[str, float] | None = None
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        request: Request,
        *,
        needs_features: bool = False,
        gradient_of: Classifier | None = None,
    ) -> 'Network':
        """Traces a classifier for the images of a request.

        If it returns logits alone, `needs_features` has features and kernel looked for. The attacks take the
        derivative of `gradient_of` in place of its own.

        Raises:
            InputError: JAX cannot trace it, or `gradient_of` does not fit.
        """
        images, each = request.images, request.chunk // len(request.devices)
        example = (
            jax.ShapeDtypeStruct((each, *images.shape[1:]), images.dtype),
            jax.ShapeDtypeStruct((each,), key_of(request.seed).dtype),
        )
        traced, why_no_features = _lifted(classifier, example, needs_features)
        stand_in = None
        if gradient_of is not None:
            try:
                stand_in, _ = _lifted(gradient_of, example, needs_features)
            except InputError as error:
                raise InputError(f'gradient_of: {error}') from error
            check_stand_in(stand_in.shape, traced.shape, needs_features)
        classes = traced.shape.logits.shape[1]
        # Of a source of transfer, which may be random where the classifier is not.
        decisions = (request.decisions or DECISIONS) if classifier.randomised else None
        return cls(
            classifier=classifier,
            request=dataclasses.replace(request, classes=classes, decisions=decisions),
            traced=traced,
            apply=functools.partial(traced.apply, precision=request.precision),
            weights=replicate(traced.weights, request.devices),
            gradient_of=gradient_of,
            stand_in=stand_in,
            why_no_features=why_no_features,
        )

    @property
    def images(self) -> Images:
        return self.request.images

    @functools.cached_property
    def differentiable(self) -> bool:
        """Whether attacks can take a gradient; not if Python is called that JAX cannot look into."""
        taken = self.stand_in or self.traced
        if not taken.calls_back:
            return True
        keys = self.typed(self.keys(0)[:1])

        def total(images: Array) -> Array:
            return jnp.sum(taken.apply(taken.weights, images, keys).logits)

        try:
            jax.eval_shape(jax.grad(total), self.images[:1])
        except ValueError:
            return False
        return True

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return self.request.labels.astype(np.int32)

    @property
    def devices(self) -> list[jax.Device]:
        return self.request.devices

    @functools.cached_property
    def shares(self) -> int:
        """Of how many processes the groups are made: those that began the evaluation."""
        return self.request.processes or processes.count()

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Of batches in which fewer images than `chunk` go."""
        return packing.sizes(self.request.chunk, len(self.devices))

    def pack_sizes(self, count: int) -> tuple[int, ...]:
        """Of the packs of a search that begins with so many images, of which one group is packed at once."""
        return packing.sizes_for(min(count, self.group), self.request.chunk, self.devices)

    @property
    def outputs(self) -> Outputs:
        """The shapes of what the classifier returns."""
        return self.traced.shape

    @functools.cached_property
    def clean(self) -> np.ndarray:
        """[N] bool, which clean images are classified correctly; of a random classifier by its vote."""
        return vote(self.clean_share)

    @functools.cached_property
    def _key(self) -> Array:
        return key_of(self.request.seed)

    @functools.cached_property
    def key_impl(self) -> Any:
        return jax.random.key_impl(self._key)

    def program(self, about: Any, make: Callable[[], Any]) -> Any:
        """The compiled program of this description, made when it is first asked for."""
        if about not in self.programs:
            self.programs[about] = make()
        return self.programs[about]

    def part(self, rows: np.ndarray) -> 'Network':
        """The same network with some of its images."""
        some = {name: getattr(self.request, name)[rows] for name in ('images', 'labels', 'indices')}
        if isinstance(targets := self.request.targets, np.ndarray):
            some['targets'] = targets[rows]
        request = dataclasses.replace(self.request, **some)
        return dataclasses.replace(
            self, request=request, clean_logits=self.clean_logits[rows], clean_share=self.clean_share[rows]
        )

    def map(
        self,
        function: Callable[..., Any],
        shared: Any,
        rows: tuple[Any, ...],
        on_share: Callable[[float], None] = lambda share: None,
        *,
        smaller: bool = False,
    ) -> Any:
        """`devices.map_rows` in batches of `chunk` images; of the last one may be `smaller`."""
        sizes = self.sizes if smaller else self.request.chunk
        return map_rows(function, shared, rows, sizes, self.devices, on_share)

    def typed(self, keys: Any) -> Array:
        """The keys of which these are the data."""
        return jax.random.wrap_key_data(jnp.asarray(keys), impl=self.key_impl)

    def _classify(
        self,
        images: Images,
        keys: np.ndarray,
        on_share: Callable[[float], None] = lambda share: None,
    ) -> dict[str, np.ndarray]:
        """Logits, features @ kernel and the norms of both, by the program that decides."""

        def classify(weights: Any, images: Array, keys: Array) -> dict[str, Array]:
            outputs = self.traced.apply(weights, images, self.verification_keys(keys))
            logits, features, kernel = outputs
            if features is None:
                return {'logits': logits, 'products': jnp.zeros_like(logits)}
            return {
                'logits': logits,
                'products': features @ kernel,
                'feature_norms': cosines.norms(features, axis=1),
                'weight_norms': jnp.broadcast_to(cosines.norms(kernel, axis=0), logits.shape),
            }

        compiled = self.program('classify', lambda: compile_rows(classify, self.devices))
        return self.map(compiled, self.weights, (images, keys), on_share, smaller=True)

    def check_and_classify(self, *, explain: bool) -> 'Network':
        """The same network with the logits of the clean images, by a classifier that is found fit.

        If `explain`, features and kernel must explain the logits.

        Raises:
            InputError: The classifier is unfit.
        """
        keys, rows = self.keys(0), np.arange(gates.PROBE) % len(self.images)
        few = self.images[rows], self.verification_keys(keys[rows])
        probed = gates.probe(self.classifier, *few, self.traced.coarse)
        clean = self._classify(self.images, keys, progress.done)
        gates.check_finite(clean['logits'], self.images, self.request.indices, 'image')
        if self.gradient_of is not None and self.stand_in is not None:
            try:
                gates.probe(self.gradient_of, *few, self.stand_in.coarse)
            except InputError as error:
                raise InputError(f'gradient_of: {error}') from error
        gates.check_compiled(clean['logits'][rows], probed.logits, self.traced.coarse)
        si = None
        if explain:
            # Inverted images make the fit a test however few images there are.
            inverted = self._classify(1 - self.images[rows], keys[rows])
            both = {name: np.concatenate([clean[name], inverted[name]]) for name in clean}
            check_explained(both['logits'], both['products'], self.traced.coarse)
            si = cosines.measure(**both, labels=self.labels)
        if self.request.decisions is None:
            clean['share'] = np.argmax(clean['logits'], axis=1) == self.labels
        else:
            clean['share'], clean['logits'] = self._decide(self.images, np.arange(len(self.images)))
            gates.check_finite(clean['logits'], self.images, self.request.indices, 'image')
        # Another machine's may be off by a rounding; all go by those of the first process.
        mine = {name: clean[name] for name in ('logits', 'share')} if processes.is_first() else {}
        first = processes.gather_arrays(mine)[0]
        # Of one image alone every logit is fixed; the probe has it inverted, too.
        masked = sanity.fixed(np.concatenate([first['logits'], np.asarray(probed.logits)]))
        measured = {'clean_logits': first['logits'], 'clean_share': first['share'], 'masked': masked}
        return dataclasses.replace(self, **measured, si=si)

    def _decide(self, images: Images, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The share of draws [M] in which images, made of those of the rows, are right, and the mean logits.

        The draws of a row are always the same, whatever attack made the image, and no attack has them.
        """
        decisions, classes = self.request.decisions, self.request.classes
        assert decisions is not None

        def decide(weights: Any, images: Array, labels: Array, keys: Array) -> tuple[Array, Array]:
            def draw(number: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                drawn = jax.vmap(lambda key: jax.random.fold_in(key, number))(self.typed(keys))
                logits = self.traced.apply(weights, images, drawn).logits
                return sums[0] + ~misclassified(logits, labels), sums[1] + logits / decisions

            nothing = jnp.zeros(len(labels), jnp.int32), jnp.zeros((len(labels), classes), images.dtype)
            return jax.lax.fori_loop(0, decisions, draw, nothing)

        compiled = self.program(('decide', decisions), lambda: compile_rows(decide, self.devices))
        arrays = images, self.labels[rows], self.keys(0, _DECISIONS)[rows]
        right, logits = self.map(compiled, self.weights, arrays, smaller=True)
        return right / decisions, logits

    def logits(self, images: Images, keys: np.ndarray) -> np.ndarray:
        """The logits [M, K] of images [M, H, W, C], by the program that decides; keys are their data."""
        return self._classify(images, keys)['logits']

    def keys(self, run: int, name: str | None = None) -> np.ndarray:
        """The data of the key of each image, [N, ...].

        It comes from the seed, the image's number and the number of the run. The PGD family gives no name, so
        that its attacks share their noise.
        """
        number = None if name is None else np.uint32(zlib.crc32(name.encode()))
        indices, found = self.request.indices, []
        for first in range(0, len(indices), KEYS):
            some = np.resize(indices[first : first + KEYS], KEYS)  # one shape, whatever the number of images
            found.append(np.asarray(_run_keys(self._key, some, number, run)))
        return np.concatenate(found)[: len(indices)]

    @functools.cached_property
    def group(self) -> int:
        """How many images at most are worked on, and saved, together."""
        most = GROUP_BYTES.get(self.devices[0].platform, GROUP_BYTES_ACCELERATOR)
        image = math.prod(self.images.shape[1:]) * self.images.dtype.itemsize
        return min(self._usual_group, max(most // image, self.request.chunk))

    @property
    def _usual_group(self) -> int:
        return GROUP.get(self.devices[0].platform, GROUP_ACCELERATOR)

    def groups(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in the groups that are worked on, and saved, together: some for each process."""
        chunk, wanted = self.request.chunk, self.group
        if self.shares > 1:
            wanted = -(-min(wanted, -(-len(rows) // self.shares)) // chunk) * chunk
        size = max(wanted // chunk, 1) * chunk
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def confirm(
        self, rows: np.ndarray, found: np.ndarray, keys: np.ndarray, threat: Threat, source: str
    ) -> tuple[np.ndarray, float]:
        """Audits what an attack made of the images of these rows, and classifies it as these were.

        `found` is [M, H, W, C], `keys` [M, ...] the data of the images' keys, and `source` the attack's name.

        Returns:
            Whether each is classified correctly [M], and the largest distance from an original.
        """
        share, largest = self.judge(rows, found, keys, threat, source)
        return vote(share), largest

    def judge(
        self, rows: np.ndarray, found: np.ndarray, keys: np.ndarray, threat: Threat, source: str
    ) -> tuple[np.ndarray, float]:
        """As `confirm`, but what `clean_share` is of the clean images: a share, of a random classifier.

        Its draws are always the same ones of a row, and `keys` mean nothing to it.
        """
        if not len(rows):
            return self.clean_share[:0], 0.0
        found = self.judged(found, rows, threat)
        largest = threat.audit(found, self.images[rows], source=source, indices=self.request.indices[rows])
        if self.request.decisions is None:
            logits = self.logits(found, keys)
            share = np.argmax(logits, axis=1) == self.labels[rows]
        else:
            share, logits = self._decide(found, rows)
        gates.check_finite(logits, found, self.request.indices[rows], f'what {source} made of image')
        return share, largest

    def judged(self, found: np.ndarray, rows: np.ndarray, threat: Threat) -> np.ndarray:
        """What is judged of images that an attack returned: rounded to bytes, if that is asked for."""
        return eight_bit.rounded(found, self.images[rows], threat) if self.request.eight_bit else found

    def surrogate(self, calibrated: bool = False) -> Surrogate:
        """The classifier as attacks see it: with the gradient of `gradient_of`, and with scaled logits."""
        if self.stand_in is None and not calibrated:
            return Surrogate(self.apply, self.weights)
        shared = {'classifier': self.traced.weights, 'stand in': self._stand_in_weights}
        if calibrated:
            assert self.scale is not None
            shared['scale'] = [jnp.asarray(self.scale, self.images.dtype)]

        def apply(shared: dict[str, list[Array]], images: Array, keys: Array) -> Outputs:
            outputs = self._function(shared['classifier'], shared['stand in'])(images, keys)
            return outputs._replace(logits=shared['scale'][0] * outputs.logits) if calibrated else outputs

        return Surrogate(apply, replicate(shared, self.devices))

    def eager(self) -> Callable[..., Outputs]:
        """The classifier for callables: images -> `Outputs`, or (images, keys) if it is randomised."""
        function, key = self._function(self.traced.weights, self._stand_in_weights), self._key
        nchw = self.request.layout == 'nchw'

        def outputs(images: Array, keys: Array) -> Outputs:
            return function(jnp.moveaxis(images, 1, 3) if nchw else images, keys)

        if self.classifier.randomised:
            return jax.jit(outputs)
        return jax.jit(lambda images: outputs(images, jnp.broadcast_to(key, len(images))))

    def _function(
        self, weights: list[Array], stand_in_weights: list[Array]
    ) -> Callable[[Array, Array], Outputs]:
        """(images, keys) -> `Outputs`, with the gradient that attacks take."""
        classifier = functools.partial(self.apply, weights)
        if self.stand_in is None:
            return classifier
        other = functools.partial(self.stand_in.apply, stand_in_weights, precision=self.request.precision)
        return backward_of(classifier, other)

    @property
    def _stand_in_weights(self) -> list[Array]:
        return [] if self.stand_in is None else self.stand_in.weights

    def batch_key(self, first: int, restart: int, name: str) -> Array:
        """The key of a batch that begins with image `first`, for attacks that take one key a batch."""
        key = jax.random.fold_in(self._key, np.uint32(zlib.crc32(name.encode())))
        return jax.random.fold_in(jax.random.fold_in(key, restart), self.request.indices[first])

    def identity(self) -> dict[str, Any]:
        """What tells this classifier and this data from others."""
        return {
            'weights': digest(*self.traced.weights, *self._stand_in_weights),
            'data': digest(self.images, self.labels, self.request.indices),
            'images at once': self.request.chunk,
            **({'images in a unit': self.group} if self.group < self._usual_group else {}),
            **({'processes': self.shares} if self.shares > 1 else {}),
        }

    def gradient_program(self) -> dict[str, str]:
        """A digest of the program that attacks follow: it may change where no weight and no logit does.

        It is that of one platform and one version of JAX, which are named beside it.
        """

        def pulled_back(weights: Any, other: Any, images: Array, keys: Array) -> Any:
            outputs, pull = jax.vjp(lambda images: self._function(weights, other)(images, keys)[:2], images)
            return outputs, pull(outputs)

        def forward(weights: Any, other: Any, images: Array, keys: Array) -> Any:
            return self.apply(weights, images, keys)

        follow = pulled_back if self.differentiable else forward
        rows = np.zeros(2, int)
        weights = self.traced.weights, self._stand_in_weights
        lowered = jax.jit(follow).lower(*weights, self.images[rows], self.typed(self.keys(0)[rows]))
        # A function of Python that is called back stands in the text by its address.
        text = re.sub(r'backend_config = "\d+"', '', lowered.as_text())
        return {
            'digest': hashlib.sha256(text.encode()).hexdigest()[:16],
            'jax': jax.__version__,
            'platform': jax.default_backend(),
        }

    def about_data(self) -> dict[str, Any]:
        """What a result says of the data."""
        return {
            'examples': len(self.images),
            'classes': self.request.classes,
            'digest': data_digest(self.images, self.request.labels),
        }

    def gradient_digest(self) -> dict[str, Any] | None:
        """What tells the classifier whose gradient is taken from others; None for the classifier's own."""
        return None if self.gradient_of is None else {'weights': digest(*self._stand_in_weights)}

    def verification_keys(self, keys: Array | np.ndarray) -> Array:
        """The keys of a randomised classifier in the forward pass that decides [B], from the keys' data."""
        return jax.vmap(lambda key: jax.random.fold_in(key, _VERIFICATION))(self.typed(keys))


def vote(share: np.ndarray) -> np.ndarray:
    """Whether more than half of the draws are right, from their share, or from what is bool already."""
    return share > 0.5


def programs(network: Network, sources: Mapping[str, Network]) -> dict[str, Any]:
    """The programs of an evaluation and of its sources of transfer, for its identity."""
    others = {f'{PROGRAM}, {name}': source.gradient_program() for name, source in sources.items()}
    return {PROGRAM: network.gradient_program(), **others}


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
