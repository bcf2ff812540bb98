"""What needs no gradient of the classifier: a black-box attack, and images made on other classifiers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from si_jax.attacks.square import square
from si_jax.auditing.traces import Follower, Settings
from si_jax.errors import InputError
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.network import Network
from si_jax.evaluation.packing import compile_search, run_search
from si_jax.threat import Threat

PART = 100  # queries of Square between two looks at which images are done


def black_box(network: Network, threat: Threat, queries: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Square with few queries, alone, on these rows.

    Its windows shrink as they do in the 5,000 queries of the standard protocol.

    Returns:
        `broken` [M] bool and `queries` [M].
    """
    search = square(queries)
    part = PART if queries % PART == 0 else queries
    compiled = compile_search(search, part, network.apply, threat, network.key_impl, network.devices)
    keys = network.keys(0, 'square')

    def confirm(some: np.ndarray, found: np.ndarray) -> np.ndarray:
        chosen = rows[some]
        return ~network.confirm(chosen, found, keys[chosen], threat, 'square')[0]

    problem = network.images[rows], network.labels[rows], keys[rows], np.zeros(len(rows), np.int32)
    outcome = run_search(compiled, network.weights, problem, confirm, network.sizes)
    return {'broken': outcome.broken, 'queries': outcome.queries}


def sources(network: Network, classifiers: Mapping[str, Any]) -> dict[str, Network]:
    """Other classifiers by name, on the images of the audited one.

    Raises:
        InputError: One has another number of classes.
    """
    networks = {}
    for name, classifier in classifiers.items():
        networks[name] = Network.of(classifier_of(classifier), network.request)
        if networks[name].classes != network.classes:
            raise InputError(
                f'the transfer source {name!r} has {networks[name].classes} classes, the audited '
                f'classifier has {network.classes}: give one of the same classes'
            )
    return networks


def transferred(
    network: Network,
    source: Network,
    name: str,
    threat: Threat,
    settings: Settings,
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """Whether the audited classifier is right on what PGD makes of these rows [M] on another one.

    Args:
        network: The audited classifier with its data.
        source: The other one.
        name: Of the other one, for messages.
        threat: The ball.
        settings: Of PGD.
        rows: [M], which images.
    """
    follower = Follower(source, 'pgd', threat.norm, settings.steps)
    found = follower.run(settings, rows, 0).last
    return {'correct': network.confirm(rows, found, network.keys(0)[rows], threat, f'pgd on {name}')[0]}
