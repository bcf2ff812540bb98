"""What a run measures on held-out images after an epoch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from si_jax import attacks, data
from si_jax.data import Dataset
from si_jax.draws import key_of
from si_jax.outputs import Outputs, as_outputs, cosine, scaled_logits
from si_jax.runtime import processes
from si_jax.runtime.devices import compile_rows, local, map_rows, replicate
from si_jax.runtime.progress import passing
from si_jax.threat import Threat

Array = jax.Array


def _forward(model: nn.Module) -> Callable[[Any, Array], Outputs]:
    return lambda variables, images: as_outputs(model.apply(variables, images, train=False))


def compile_pgd(
    model: nn.Module, *, threat: Threat, steps: int, step_size: float
) -> Callable[..., dict[str, Array]]:
    """Compiles ((variables, factor), images, labels, keys) -> whether each image is classified rightly after
    PGD on the logits times the factor; the network is in evaluation mode."""
    forward = _forward(model)

    def attacked(shared: tuple[Any, Array], images: Array, labels: Array, keys: Array) -> Array:
        variables, factor = shared
        attack = attacks.ATTACKS['pgd']._replace(score=scaled_logits(factor))
        ascent = attacks.run(
            attack,
            lambda x, _: forward(variables, x),
            images,
            labels,
            keys,
            threat=threat,
            steps=steps,
            step_size=step_size,
        )
        return jnp.argmax(forward(variables, ascent.last).logits, axis=1) == labels

    return compile_rows(attacked)


def map_over_processes(
    function: Callable[..., Any],
    shared: Any,
    rows: Any,
    chunk: int,
    on_share: Callable[[float], None] = lambda share: None,
) -> Any:
    """`devices.map_rows` with the rows [N, ...], the same in every process, shared among the processes.

    All get all results. `function` returns a flat dictionary of rows, or one array of them; `shared` is
    replicated over the devices of this process, and `chunk` counts rows at once on them.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    # One row at least: with fewer than there are processes some do the first one's work again.
    most = min(processes.count(), count)
    mine = processes.share(count) if most == processes.count() else slice(0, count)
    part_of = jax.tree.map(lambda leaf: leaf[mine], rows)
    done = map_rows(function, shared, part_of, chunk, on_share=on_share)
    if most < processes.count() or processes.count() == 1:
        return done
    parts = processes.gather_arrays(done if isinstance(done, dict) else {'rows': done})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return whole if isinstance(done, dict) else whole['rows']


class HeldOut:
    """Natural and robust accuracy on held-out images, and the figures that say how far to trust them.

    The start of every image's attack depends on the seed and its index only, so epochs are compared on the
    same noise. The network computes in the precision it is trained in. Several processes share the images, of
    which there must be some. `batch_size` counts images at once on all devices of a process; 0 stands for 64
    a device on the CPU, 256 elsewhere. `steps` and `step_size` (a fraction of the pixel range) are PGD's.
    `by_class` has the three accuracies of the last call for each class, as `class_3/natural_accuracy`.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        *,
        threat: Threat,
        steps: int,
        step_size: float,
        seed: int,
        batch_size: int = 0,
    ):
        devices = jax.local_device_count()
        each = batch_size // devices if batch_size else (64 if jax.default_backend() == 'cpu' else 256)
        most = -(-len(dataset.labels) // processes.count())
        self._chunk = devices * max(1, min(each, -(-most // devices)))
        images = np.asarray(data.to_unit(jnp.asarray(dataset.images), dataset.scale, np.float32))
        base = key_of(seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(base, i), 0))(np.arange(len(images)))
        self._rows = images, np.asarray(dataset.labels), keys

        self.by_class: dict[str, float] = {}
        forward = _forward(model)

        def clean(variables: Any, images: Array, labels: Array, keys: Array) -> dict[str, Array]:
            del keys
            outputs = forward(variables, images)
            cosines, top = cosine(outputs), jax.lax.top_k(outputs.logits, 2)[0]
            prediction = jnp.argmax(outputs.logits, axis=1)
            assert outputs.features is not None
            return {
                'prediction': prediction,
                'natural_accuracy': prediction == labels,
                'decision_agreement': prediction == jnp.argmax(cosines, axis=1),
                'feature_norm': jnp.linalg.norm(outputs.features, axis=1),
                'true_cosine': jnp.take_along_axis(cosines, labels[:, None], axis=1)[:, 0],
                'gap': top[:, 0] - top[:, 1],
            }

        self._kernel = jax.jit(lambda variables: forward(variables, jnp.asarray(self._rows[0][:1])).kernel)
        self._clean = compile_rows(clean)
        self._attacked = compile_pgd(model, threat=threat, steps=steps, step_size=step_size)

    def __call__(self, params: Any, batch_stats: Any) -> dict[str, float]:
        """The figures for these (replicated) weights.

        Returns:
            natural_accuracy; pgd_accuracy; calibrated_pgd_accuracy, under PGD on logits scaled by 2 / (median
            natural gap between the two highest), which does not favour weights with inflated or deflated
            logits as plain PGD does; median_gap; decision_agreement, the share of images on which the largest
            cosine and the largest logit agree; feature_norm, mean |z|; true_cosine, mean cosine of the true
            class; predicted_classes, how many classes the images get, and most_predicted_class, the one that
            most of them get; weight_norm and weight_norm_spread, mean and standard deviation of |W_k| over
            the classes.
        """
        variables = local({'params': params, 'batch_stats': batch_stats})
        clean = self._map(self._clean, variables, 'held-out images')
        gap = float(np.median(clean.pop('gap')))
        counts = np.bincount(clean.pop('prediction'))
        figures = {name: float(np.mean(rows)) for name, rows in clean.items()}
        correct = {'natural_accuracy': clean['natural_accuracy']}
        factors = {'pgd_accuracy': 1.0, 'calibrated_pgd_accuracy': 2.0 / max(gap, 1e-12)}
        for name, factor in factors.items():
            shared = variables, replicate(np.float32(factor), jax.local_devices())
            what = f'held-out images, {name.removesuffix("_accuracy")}'
            correct[name] = self._map(self._attacked, shared, what)
            figures[name] = float(np.mean(correct[name]))
        self.by_class = _by_class(correct, self._rows[1])
        norms = np.linalg.norm(np.asarray(self._kernel(variables), np.float64), axis=0)
        return {
            **figures,
            'median_gap': gap,
            'predicted_classes': int(np.count_nonzero(counts)),
            'most_predicted_class': int(np.argmax(counts)),
            'weight_norm': float(norms.mean()),
            'weight_norm_spread': float(norms.std()),
        }

    def _map(self, function: Callable[..., Any], shared: Any, what: str) -> Any:
        """The function of all held-out images, with a passing word about how far it is."""
        count = len(self._rows[1])
        with passing(count, what, processes.is_first()) as on_share:
            return map_over_processes(function, shared, self._rows, self._chunk, on_share)


def _by_class(correct: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """The mean of flags [N] over the images of each class that there is."""
    return {
        f'class_{label}/{name}': float(np.mean(flags[labels == label]))
        for label in np.unique(labels)
        for name, flags in correct.items()
    }
