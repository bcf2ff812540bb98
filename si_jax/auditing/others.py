"""What needs no gradient of the classifier: a black-box attack, and images made on other classifiers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from si_jax.attacks.family import ATTACKS
from si_jax.attacks.square import square
from si_jax.auditing.traces import Follower, Settings
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.network import Network
from si_jax.evaluation.packing import compile_search, run_search
from si_jax.evaluation.transfer import traced

PART = 100  # queries of Square between two looks at which images are done


def black_box(network: Network, queries: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Square with few queries, alone, on these rows.

    Its windows shrink as they do in the 5,000 queries of the standard protocol. `broken` is [M] bool.
    """
    threat, keys = network.request.threat, network.keys(0, 'square')
    part = PART if queries % PART == 0 else queries
    sizes = network.pack_sizes(len(rows))
    compiled = compile_search(
        square(queries), part, network.apply, threat, network.key_impl, network.devices, sizes
    )

    def confirm(some: np.ndarray, found: np.ndarray) -> np.ndarray:
        chosen = rows[some]
        return ~network.confirm(chosen, found, keys[chosen], threat, 'square')[0]

    problem = network.images[rows], network.labels[rows], keys[rows], np.zeros(len(rows), np.int32)
    outcome = run_search(compiled, network.weights, problem, confirm)
    return {'broken': outcome.broken, 'queries': outcome.queries}


def sources(network: Network, classifiers: Mapping[str, Any]) -> dict[str, Network]:
    """Other classifiers by name, on the images of the audited one, for attacks without EOT.

    Raises:
        InputError: One cannot take these images, or has another number of classes.
    """
    request = dataclasses.replace(network.request, eot_samples=1)
    return {
        name: traced(name, classifier_of(one, request.layout), request) for name, one in classifiers.items()
    }


def transferred(
    network: Network, source: Network, name: str, settings: Settings, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Whether the audited classifier is right on what PGD makes of these rows [M] on another, `source`."""
    found = Follower(source, ATTACKS['pgd'], settings.steps).run(settings, rows, 0).last
    threat, keys = network.request.threat, network.keys(0)[rows]
    return {'correct': network.confirm(rows, found, keys, threat, f'pgd on {name}')[0]}
