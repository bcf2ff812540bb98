"""What needs no gradient of the classifier: a black-box attack, and images made on other classifiers."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from si_jax.attacks.square import square
from si_jax.auditing.traces import Follower, Settings
from si_jax.errors import InputError
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.network import Program
from si_jax.evaluation.packing import compile_search, run_search
from si_jax.threat import Threat

PART = 100  # queries of Square between two looks at which images are done


def black_box(
    program: Program,
    threat: Threat,
    queries: int,
    rows: np.ndarray,
    on_share: Callable[[float], None] = lambda share: None,
) -> dict[str, np.ndarray]:
    """Square with few queries, alone, on these rows.

    Its windows shrink as they do in the 5,000 queries of the standard protocol.

    Returns:
        `broken` [M] bool and `queries` [M].
    """
    search = square(queries)
    part = PART if queries % PART == 0 else queries
    compiled = compile_search(search, part, program.apply, threat, program.key_impl, program.devices)
    keys = program.keys(0, 'square')

    def confirm(some: np.ndarray, found: np.ndarray) -> np.ndarray:
        chosen = rows[some]
        return ~program.confirm(chosen, found, keys[chosen], threat, 'square')[0]

    problem = program.images[rows], program.labels[rows], keys[rows], np.zeros(len(rows), np.int32)
    outcome = run_search(compiled, program.weights, problem, confirm, program.sizes, on_part=on_share)
    return {'broken': outcome.broken, 'queries': outcome.queries}


def sources(program: Program, classifiers: Mapping[str, Any], seed: int) -> dict[str, Program]:
    """Other classifiers by name, on the images of the audited one.

    Raises:
        InputError: One has another number of classes.
    """
    classes, programs = program.outputs.logits.shape[1], {}
    for name, classifier in classifiers.items():
        programs[name] = Program(
            classifier_of(classifier),
            program.images,
            program.labels,
            program.indices,
            seed,
            program.chunk,
            program.devices,
        )
        if (there := programs[name].outputs.logits.shape[1]) != classes:
            raise InputError(
                f'the transfer source {name!r} has {there} classes, the audited classifier has {classes}: '
                'give one of the same classes'
            )
    return programs


def transferred(
    program: Program,
    source: Program,
    name: str,
    threat: Threat,
    settings: Settings,
    rows: np.ndarray,
    on_share: Callable[[float], None] = lambda share: None,
) -> dict[str, np.ndarray]:
    """Whether the audited classifier is right on what PGD makes of these rows [M] on another one.

    Args:
        program: The audited classifier with its data.
        source: The other one.
        name: Of the other one, for messages.
        threat: The ball.
        settings: Of PGD.
        rows: [M], which images.
        on_share: Is told the share that is done.
    """
    follower = Follower(source, 'pgd', threat.norm, settings.steps)
    found = follower.run(settings, rows, 0, on_share).last
    return {'correct': program.confirm(rows, found, program.keys(0)[rows], threat, f'pgd on {name}')[0]}
