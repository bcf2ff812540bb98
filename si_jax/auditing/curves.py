"""What the curves of an audit say: accuracy over radii, steps and restarts."""

import itertools
from collections.abc import Sequence

from si_jax.auditing.verdicts import (
    FAIL,
    MISSED,
    PASS,
    POINTS,
    SKIP,
    WARN,
    Check,
    judged,
    over,
    percent,
    points,
)

LEFT = 0.02  # the accuracy that may be left at the largest radius


def iterates(
    steps: Sequence[int], last: Sequence[float], any_iterate: Sequence[float], at: int, count: int
) -> Check:
    """From the accuracies if the last iterate counts, and if any does, after some numbers of steps."""
    place = list(steps).index(at)
    missed = last[place] - any_iterate[place]
    evidence = {'steps': list(steps), 'last': list(last), 'any': list(any_iterate), 'missed': missed}
    words = f'{percent(missed)} of the images were misclassified on the way, but not by iterate {at}'
    outcome = PASS
    if over(missed, MISSED, count):
        outcome, words = WARN, f'{words}: count any iterate (apgd-ce, autoattack)'
    return judged('iterates', outcome, words, evidence, limit=MISSED, count=count, share=max(missed, 0.0))


def eps(radii: Sequence[float], accuracy: Sequence[float], classes: int, count: int) -> Check:
    """From the accuracy over radii, in rising order."""
    evidence = {'eps': list(radii), 'accuracy': list(accuracy)}
    left, largest = accuracy[-1], radii[-1]
    words = f'{percent(left)} is left at eps = {largest:.4g}'
    outcome, rises = PASS, [b - a for a, b in itertools.pairwise(accuracy)]
    if over(left, LEFT, count) and left > 1 / classes:
        outcome = FAIL
        words += ', more than chance: the attack is stuck (or the radii end too early)'
    elif over(left, LEFT, count):
        outcome, words = WARN, f'{words}: it should be about 0'
    elif over(max(rises, default=0.0), POINTS, count):
        worse = radii[rises.index(max(rises)) + 1]
        outcome, words = WARN, f'the accuracy rises by {points(max(rises))} up to eps = {worse:.4g}, though '
        words += 'the ball holds the smaller one: the attack searches badly there'
    return judged('eps', outcome, words, evidence, limit=LEFT, count=count, share=left)


def steps(numbers: Sequence[int], accuracy: Sequence[float], at: int, count: int) -> Check:
    """From the accuracy after some numbers of steps, in rising order, one of them the standard one."""
    evidence = {'steps': list(numbers), 'accuracy': list(accuracy), 'standard': at}
    change = accuracy[-1] - accuracy[list(numbers).index(at)]
    words = f'{numbers[-1]} steps instead of {at} change the accuracy by {points(change, sign=True)}'
    if over(abs(change), POINTS, count):
        remedy = 'use more steps' if change < 0 else 'the last iterate is no good one; use apgd-ce'
        return Check('steps', WARN, f'{words}: {remedy}', evidence)
    return judged('steps', PASS, words, evidence, limit=POINTS, count=count)


def restarts(accuracy: Sequence[float], count: int) -> Check:
    """From the accuracy after 1, 2, ... restarts."""
    evidence = {'accuracy': list(accuracy)}
    if len(accuracy) == 1:
        return Check('restarts', SKIP, 'one run only', evidence)
    gain = accuracy[0] - accuracy[-1]
    words = f'{len(accuracy)} runs instead of one take off {points(gain)}'
    outcome = PASS
    if over(gain, POINTS, count):
        outcome, words = WARN, f'{words}: one run is not enough here'
    return judged('restarts', outcome, words, evidence, limit=POINTS, count=count, share=max(gain, 0.0))
