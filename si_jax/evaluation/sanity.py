"""Sanity checks: what makes the numbers of an evaluation doubtful. They become warnings in the result."""

from collections.abc import Iterator

import numpy as np

from si_jax.attacks.registry import ATTACKS, PRESETS, SEARCHES, stages
from si_jax.evaluation.result import AttackRecord

# The attacks that climb the cross-entropy of the logits, alone or as a stage.
CLIMBS_CROSS_ENTROPY = frozenset(
    {'fgsm', 'pgd', 'apgd-ce', *(name for name in PRESETS if name.startswith('autoattack'))}
)
BLIND = 0.01  # the share of images without a gradient that is worth a warning
SHORT = 0.01  # how far a clean accuracy may be below the stated one
MASKED = 0.002  # the accuracy that black-box attacks may take off after the others


def randomised(eot_samples: int, names: tuple[str, ...]) -> list[str]:
    """For a randomised classifier: the attacks must average over its draws."""
    single = [name for name in names if name in ATTACKS or name in SEARCHES]
    found = []
    if single and eot_samples == 1:
        found.append(
            'the classifier is randomised and the attacks follow single draws of it, so these accuracies are '
            'too high: set eot_samples (20 is usual)'
        )
    for name in ('autoattack', 'autoattack-plus', 'fast'):
        if name in names:
            found.append(
                f'the classifier is randomised and {name} follows single draws of it, so its accuracy is too '
                'high: use autoattack-rand'
            )
    return found


def outputs(logits: np.ndarray) -> list[str]:
    """For the logits of the clean images [N, K]: whether they look like logits."""
    if len(logits) > 1 and np.ptp(logits, axis=0).max() == 0:
        return [
            'the classifier returns the same logits for every image: no attack can change its mind, and its '
            'robust accuracy says nothing'
        ]
    if logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(axis=1), 1, rtol=0, atol=1e-4):
        return [
            'the outputs look like probabilities (all in [0, 1], and each row sums to 1), and gradients of '
            'the losses vanish through them: return the logits before the softmax'
        ]
    return []


def clean(accuracy: float, highest: float, classes: int, stated: float | None, hint: str) -> list[str]:
    """Whether a checkpoint's clean accuracy tells that it was loaded as something else than it is.

    Args:
        accuracy: The fraction measured.
        highest: The upper end of its 95 % interval.
        classes: Number of classes.
        stated: What its authors state; if None only an accuracy near chance is suspicious.
        hint: What to try.
    """
    if stated is not None and stated > max(highest, accuracy + SHORT):
        return [
            f'the clean accuracy is {100 * accuracy:.2f} %, far below the stated {100 * stated:.2f} %: {hint}'
        ]
    if highest < 2 / classes or accuracy <= 1 / classes:
        return [f'the clean accuracy, {100 * accuracy:.2f} %, is near chance ({100 / classes:g} %): {hint}']
    return []


def gradients(share: float, names: tuple[str, ...]) -> list[str]:
    """For the share of images where the gradient of the cross-entropy is exactly zero."""
    climbing = [name for name in names if name in CLIMBS_CROSS_ENTROPY]
    if share <= BLIND or not climbing:
        return []
    return [
        f'the gradient of the cross-entropy is exactly zero on {100 * share:.1f} % of the correctly '
        f'classified images, where {", ".join(climbing)} cannot see a way (logits too large for softmax, '
        'or a masked gradient): trust sipgd, dlr or apgd-t, which do not depend on the scale of the logits'
    ]


def classes(count: int, names: tuple[str, ...]) -> list[str]:
    """For the number of classes: what an attack had to leave out."""
    searches = (name for name in names if name in SEARCHES or name in PRESETS)
    used = dict.fromkeys(stage.attack for name in searches for stage in stages(name, 1))
    margin = [name for name in used if count < SEARCHES[name].dlr_classes]
    if not margin:
        return []
    return [
        f'with {count} classes the loss of {", ".join(margin)} is not defined: they used the margin instead'
    ]


def masking(clean: np.ndarray, records: dict[str, AttackRecord]) -> list[str]:
    """Whether attacks that do not see the classifier's gradient broke what those that do had left.

    Args:
        clean: [N] bool.
        records: What each attack did, in order.
    """
    left, breaking, white = clean.copy(), np.zeros(len(clean), bool), False
    culprits = []
    for name, record in records.items():
        for blind, what, broken in _parts(name, record):
            if blind:
                breaking |= broken
                culprits += [what] * (what not in culprits)
            else:
                left = left & ~broken
                white = white or blind is False
    share = float(np.mean(left & breaking))
    if not white or share <= MASKED:
        return []
    return [
        f'{", ".join(culprits)} broke {100 * share:.2f} % of the images after the attacks with gradients had '
        'failed on them: gradients are masked, and the true robust accuracy may be lower still'
    ]


def _parts(name: str, record: AttackRecord) -> Iterator[tuple[bool | None, str, np.ndarray]]:
    """The parts of an attack: whether it is blind to the gradient (None: unknown), its name, who fell."""
    protocol = record.protocol or {}
    if record.broken_by is None:
        callable_ = protocol.get('own') == 'callable'
        yield None if callable_ else False, name, ~np.logical_and.reduce(record.runs)
    elif name in SEARCHES or name in PRESETS:
        for number, stage in enumerate(stages(name, 1)):
            yield SEARCHES[stage.attack].black_box, stage.attack, record.broken_by == number
    else:  # a transfer: images made elsewhere, and then an attack from there
        yield True, name, record.broken_by == 0
        yield False, name, record.broken_by == 1
