"""What the measurements of an audit say, in words.

Every function here turns numbers into one `Check`. The limits are constants with the reason beside them; a
difference of one image is never a finding.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from si_jax.evaluation import sanity
from si_jax.evaluation.gates import FINITE, MASKED, NO_GRADIENT
from si_jax.evaluation.intervals import wilson

PASS, WARN, FAIL, SKIP, FEW = 'pass', 'warn', 'fail', 'skip', 'few'

POINTS = 0.02  # an accuracy that moves by more has not settled
MISSED = 0.01  # images that the last iterate, or the white-box attack, may miss although another point exists
RISING = 0.95  # of the images whose loss must rise
FOUND = 0.95  # of the planted adversarial examples: the paper's limit
CHANCE = 0.5  # of them that random points may find, if the test is to say anything
PLANTED = 10  # images with a planted example below which the test says nothing
# The checks in order that are made if the classifier is found to be a function of the image.
CURVES = ('loss', 'scale', 'iterates', 'eps', 'steps', 'restarts')
OF_ATTACKS = ('gradients', *CURVES, 'black-box', 'transfer', 'binarization')
OF_A_FUNCTION = ('outputs', *OF_ATTACKS)


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the audit.

    Attributes:
        name: What was checked.
        outcome: 'pass', 'warn' (the number is too high, or not settled), 'fail' (the attack or the classifier
            is unfit: the number means nothing), 'few' (nothing was found, on too few images to say so) or
            'skip' (not checked).
        words: The verdict, with the numbers it rests on.
        evidence: The measurements, in JSON's types.
    """

    name: str
    outcome: str
    words: str
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)


def overall(checks: Sequence[Check]) -> str:
    """The worst outcome of all that were made."""
    return next(
        (worst for worst in (FAIL, WARN, FEW) if any(check.outcome == worst for check in checks)), PASS
    )


def judged(
    name: str,
    outcome: str,
    words: str,
    evidence: dict[str, Any],
    *,
    limit: float,
    count: int,
    share: float | None = None,
) -> Check:
    """A check that holds a share of `count` images against a limit.

    It passes only if one image is no more than the limit: else noise could hide what it looks for. A `share`
    that is one, not a difference of accuracies, gets Wilson's 95 % interval, in words and evidence.
    """
    if share is not None:
        low, high = wilson(round(share * count), count)
        evidence = {**evidence, 'ci95': [low, high]}
        words += f' ({percent(share)} of {count} images, 95 % interval {100 * low:.1f} to {percent(high)})'
    if outcome == PASS and count * limit < 1 - 1e-9:
        needed = math.ceil(1 / limit - 1e-9)
        words = f'too few images to say: {count}, and a limit of {percent(limit)} needs {needed}; {words}'
        outcome = FEW
    return Check(name, outcome, words, evidence)


def randomness(difference: str, randomised: bool, eot_samples: int) -> Check:
    """From how far two calls on the same images are apart, in words; '' if they agree."""
    evidence = {'difference': difference, 'randomised': randomised, 'eot_samples': eot_samples}
    outcome = PASS
    words = 'two calls on the same images agree' + (' for the same keys' if randomised else '')
    if difference:
        outcome, remedy = FAIL, 'switch dropout off, or wrap a random defense as si_jax.Randomised'
        if randomised:
            remedy = 'a Randomised classifier must draw everything from its keys'
        words = f'two calls on the same images disagree by {difference}: no number is reproducible; {remedy}'
    elif randomised and eot_samples == 1:
        outcome, words = WARN, 'the classifier is random and each step followed one draw of it: '
        words += 'average over draws (eot_samples, 20 is usual)'
    return Check('randomness', outcome, words, evidence)


def batch(difference: str) -> Check:
    """From how far the logits move with the other images of the batch, in words; '' if they do not."""
    outcome, words = PASS, 'the logits of an image do not depend on the rest of its batch'
    if difference:
        outcome, words = FAIL, f'the logits of an image change by {difference} with the other images of its '
        words += 'batch: put batch normalisation into evaluation mode (train=False, running averages)'
    return Check('batch', outcome, words, {'difference': difference})


def outputs(findings: Sequence[str]) -> Check:
    """From what `sanity.outputs` says of the logits of the originals."""
    if findings:
        return Check('outputs', FAIL, '; '.join(findings))
    return Check('outputs', PASS, 'they look like logits')


def si(measured: Mapping[str, float] | None, warnings: Sequence[str]) -> Check:
    """From what `cosines` measured on the originals, where the attack reads features."""
    evidence = dict(measured or {})
    if warnings:
        return Check('si', WARN, '; '.join(warnings), evidence)
    return Check('si', PASS, 'cosines and logits favour the same class', evidence)


def clean(findings: Sequence[str], right: int) -> list[Check]:
    """From what `sanity.decisions` says of the originals, and how many are right; nothing if all is well."""
    if not right:
        words = (
            'no image is classified correctly, so there is nothing to attack: are the labels those of these '
            'images, and do the pixels have the range and order that the network was trained on?'
        )
        return [Check('clean', FAIL, '; '.join([*findings, words]))]
    if not findings:
        return []
    return [Check('clean', WARN if findings[0].startswith(sanity.CHANCE) else FAIL, '; '.join(findings))]


def gradients(
    stages: Mapping[str, Mapping[str, float]], moves: float, count: int, *, not_finite: float = 0.0
) -> Check:
    """From `gradients.summary` and the share of the images whose logits noise of size eps changes.

    `not_finite` is the share of images with a gradient that has NaN or infinite entries.
    """
    check = _gradients(stages, moves, count)
    check.evidence['not_finite'] = not_finite
    if not not_finite:
        return check
    words = (
        f'{check.words}. It is not finite (NaN or infinite) on {percent(not_finite)} of the images at the '
        'original or on the way. Such entries counted as 0, so this attack may be weaker than on a sound '
        f'gradient: {FINITE}'
    )
    outcome = check.outcome if check.outcome == FAIL else WARN
    return dataclasses.replace(check, outcome=outcome, words=words)


def _gradients(stages: Mapping[str, Mapping[str, float]], moves: float, count: int) -> Check:
    evidence = {'stages': {name: dict(one) for name, one in stages.items()}, 'moves': moves}

    def lost(stage: str) -> float:
        return stages[stage]['zero'] + stages[stage]['tiny']

    attack = stages['attack']
    if not over(lost('attack'), NO_GRADIENT, count):
        words = f'the loss has a gradient on {percent(1 - lost("attack"))} of the images'
        if over(lost('cross-entropy'), NO_GRADIENT, count):
            share = percent(lost('cross-entropy'))
            words += f'; plain cross-entropy has lost it on {share}, where this attack has not'
        return judged(
            'gradients', PASS, words, evidence, limit=NO_GRADIENT, count=count, share=lost('attack')
        )
    kinds = [f'{word} on {percent(attack[key])}' for key, word in _KINDS if attack[key] > 0]
    words = f'the gradient of the loss is {" and ".join(kinds)} of the images. '
    if not over(lost('logits'), NO_GRADIENT, count):
        words += (
            f'It is lost after the logits (their margin has it on {percent(1 - lost("logits"))}): they are '
            'too large for softmax. Use pgd-gap, cw, dlr or apgd-t, which do not depend on their scale'
        )
    else:
        where = 'before the logits'
        if 'features' in stages:
            early = over(lost('features'), NO_GRADIENT, count)
            where = 'before the features' if early else 'in the last layer'
        words += (
            f'It is lost {where}, though noise of size eps changes the logits of {percent(moves)}: a step '
            'without a gradient (rounding, quantisation, argmax) hides the way. Use a gradient that goes '
            'around it (BPDA, gradient_of) or attacks without gradients (square, spsa, rays)'
        )
    # Sign steps still follow a gradient that is nearly lost, but badly.
    outcome = FAIL if over(attack['zero'], NO_GRADIENT, count) else WARN
    return judged('gradients', outcome, words, evidence, limit=NO_GRADIENT, count=count, share=lost('attack'))


_KINDS = (('zero', 'exactly zero'), ('tiny', 'vanishing'))


def loss(losses: np.ndarray, margins: tuple[np.ndarray, np.ndarray], moved: np.ndarray) -> Check:
    """From the loss [N, T + 1] along the attack, the margins [N] before and after, and what left its start.

    The verdict rests on the margin max_{k != y} g_k - g_y: it decides, no softmax saturates it, and an attack
    whose loss is scaled anew in each step cannot compare its own.
    """
    before, after = margins
    # A random start may raise it by chance, where no step does anything.
    rises = float(np.mean((after > before) & moved))
    steps = np.diff(losses, axis=1)
    evidence = {
        'margin_rises': rises,
        'stuck': float(np.mean(~moved)),
        'loss_rises': float(np.mean(losses[:, -1] > losses[:, 0])),
        'steps_up': float(np.mean(steps > 0)) if steps.size else 0.0,
        'steps_flat': float(np.mean(steps == 0)) if steps.size else 0.0,
        'mean': [float(value) for value in losses.mean(axis=0)],
        'median': [float(value) for value in np.median(losses, axis=0)],
    }
    words = (
        f'the attack raises the margin of {percent(rises)} of the images; '
        f'{percent(evidence["steps_up"])} of its steps raise the loss'
    )
    outcome, missed, limit = PASS, 1 - rises, 1 - RISING
    if over(missed, limit, len(before)):
        words += f'; {percent(evidence["stuck"])} of the images never leave the start'
        outcome = FAIL
    return judged('loss', outcome, f'{words}', evidence, limit=limit, count=len(before), share=missed)


def scale(name: str, accuracy: float, free: float | None, count: int) -> Check:
    """From the accuracy under the attack, and under one that does not see the scale of the logits."""
    if free is None:
        return Check('scale', SKIP, f'{name} is blind to the scale of the logits itself')
    evidence = {'accuracy': accuracy, 'pgd-gap': free}
    gap = accuracy - free
    words = 'pgd-gap, which does not see the scale of the logits, is '
    words += f'higher by {points(-gap)}' if gap < 0 else f'lower by {points(gap)} at equal steps'
    if over(gap, POINTS, count):
        return Check('scale', WARN, f'{words}: the number is too high by at least that', evidence)
    return judged('scale', PASS, words, evidence, limit=POINTS, count=count)


def black_box(white: np.ndarray, black: np.ndarray, budget: int, mean_queries: float) -> Check:
    """From the flags [N] 'still classified correctly' under the audited attack and under Square alone."""
    accuracy, only = float(np.mean(black)), int(np.sum(white & ~black))
    evidence = {
        'white_box': float(np.mean(white)),
        'black_box': accuracy,
        'budget': budget,
        'mean_queries': mean_queries,
        'only_black_box': only,
    }
    words = f'{percent(accuracy)} by Square with {budget} queries, which alone breaks {only} images'
    return _weaker('black-box', words, white, black, evidence)


def transfer(white: np.ndarray, moved: Mapping[str, np.ndarray]) -> Check:
    """From the flags under the audited attack and under images made on other classifiers."""
    if not moved:
        return Check('transfer', SKIP, 'no other classifier to make images on was given')
    evidence = {
        'white_box': float(np.mean(white)),
        'accuracy': {name: float(np.mean(flags)) for name, flags in moved.items()},
    }
    black = np.logical_and.reduce(list(moved.values()))
    evidence['only_transfer'] = only = int(np.sum(white & ~black))
    words = f'{percent(np.mean(black))} by images made on {", ".join(moved)}, which alone break {only} images'
    return _weaker('transfer', words, white, black, evidence)


def _weaker(name: str, words: str, white: np.ndarray, black: np.ndarray, evidence: dict[str, Any]) -> Check:
    """Whether an attack without gradients broke what the audited one left, from the flags under both."""
    only, only_white = int(np.sum(white & ~black)), int(np.sum(black & ~white))
    evidence['only_white_box'] = only_white
    outcome, words = PASS, f'{percent(np.mean(white))} is left by the attack, {words}'
    # By Wilson's interval, as the gate of an evaluation.
    if only > only_white and wilson(only - only_white, len(white))[0] > MASKED:
        outcome, words = FAIL, f'{words}: gradients may be masked'
    elif only > max(MISSED * len(white), 1.5):
        outcome, words = WARN, f'{words}: the attack misses what is there; use autoattack for the number'
    share = only / len(white)
    return judged(name, outcome, words, evidence, limit=MISSED, count=len(white), share=share)


def binarization(found: np.ndarray, random: np.ndarray, tried: int, points: int) -> Check:
    """From whether the attack found each planted example [M], and the share of random points that did."""
    evidence: dict[str, Any] = {'images': tried, 'usable': len(found), 'points': points}
    if tried < PLANTED:
        words = (
            f'too few images to say: {tried} correctly classified ones were tried, and {PLANTED} are needed'
        )
        words += ': more images, and `planted` (--audit_planted) of them'
        return Check('binarization', FEW, words, evidence)
    if len(found) < PLANTED:
        words = f'only {len(found)} of {tried} images allow for a planted adversarial example '
        words += f'(too few features for {points} points, or equal logits)'
        return Check('binarization', SKIP, words, evidence)
    success = float(np.mean(found))
    # What as many random points as there are find, at least one of them.
    chance = float(np.mean(1 - (1 - random) ** points))
    evidence |= {'found': success, 'random_point': float(np.mean(random)), 'random_search': chance}
    words = (
        f'the attack finds {percent(success)} of {len(found)} planted adversarial examples, a random point '
        f'{percent(evidence["random_point"])}'
    )
    outcome, missed, limit = PASS, 1 - success, 1 - FOUND
    if over(missed, limit, len(found)):
        outcome, words = FAIL, f'{words}: it would miss real ones too'
    elif evidence['random_point'] > CHANCE:
        outcome, words = WARN, f'{words}, too many for the test to tell'
    return judged('binarization', outcome, words, evidence, limit=limit, count=len(found), share=missed)


def over(share: float, limit: float, count: int) -> bool:
    """Whether a share of `count` images is above its limit, and more than one of them."""
    return share > limit + 1e-9 and share * count > 1.5


def percent(share: Any) -> str:
    """The share in words."""
    return f'{100 * share:.1f} %'


def points(share: float, sign: bool = False) -> str:
    """A difference of shares in words."""
    return f'{100 * share:{"+" if sign else ""}.1f} points'
