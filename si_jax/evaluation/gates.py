"""All that must hold of an evaluation.

Before the attacks: whether they fit the classifier, and whether it is a function of the image alone. These
gates raise `InputError` with the value, the limit and the remedy. After them: what makes their numbers
doubtful. These give warnings. Every gate asks all attacks in the same way, by what is known of their parts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.facts import Facts
from si_jax.errors import InputError
from si_jax.evaluation.classifier import Classifier
from si_jax.evaluation.intervals import wilson
from si_jax.evaluation.pixels import Images
from si_jax.evaluation.result import AttackRecord, GradientCounts
from si_jax.evaluation.tolerances import FLOAT32, disagreement, gaps
from si_jax.outputs import Outputs
from si_jax.runtime import compilation_cache
from si_jax.threat import LINF_EPS, USUAL, Threat

Array = jax.Array

PROBE = 8  # images in a probe
CALLS = 5  # of a classifier on the same images
REPEATS = 8  # calls of what was translated: a coin of the host is seen but for one time in 128
NO_GRADIENT = 0.01  # the share of images without a gradient that is worth a warning
SHORT = 0.01  # how far a clean accuracy may be below the stated one
# The share of images that attacks without gradients may break after the others: on honest networks they break
# some too. It is the lower end of the interval that counts.
MASKED = 0.002
# What helps a gradient with NaN or infinite entries.
FINITE = (
    'put a `where` inside the root, the logarithm or the division that has no derivative there (around it '
    'NaN comes through), or give a network without it as gradient_of'
)
TOO_LARGE = 1e6  # logits whose rounding in float32 is as large as what the cross-entropy tells apart


class Part(NamedTuple):
    """A part of an attack, as the gates see it: what runs, and what is known of it.

    Attributes:
        attack: What it is called in messages.
        facts: What is known of it; None for images from elsewhere, and for a callable of the user's.
        eot_samples: Gradients averaged in each step; None where nobody knows.
        elsewhere: Whether its images were made on another classifier.
        n_targets: The number of targets that its name asks for; 0 for none.
        chooses: Whether its name says how it chooses its targets.
    """

    attack: str
    facts: Facts | None
    eot_samples: int | None
    elsewhere: bool = False
    n_targets: int = 0
    chooses: bool = False

    @property
    def without_gradient(self) -> bool | None:
        """Whether it does not see the gradient of the classifier; None if that is not known."""
        if self.facts is None:
            return True if self.elsewhere else None
        return not self.facts.uses_gradient


class Gated(Protocol):
    """An attack with its parts in order."""

    @property
    def name(self) -> str: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...


def check_labels_of(classes: int, labels: np.ndarray, what: str = 'labels') -> None:
    """Whether labels [N], or targets, are among so many classes."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        i, from_one = int(np.argmax(wrong)), labels.min() == 1 and labels.max() == classes
        raise InputError(
            f'{what}[{i}]={labels[i]} is not in [0, {classes}): the classifier has {classes} classes'
            f'{f", and {what} count from 0: give {what} - 1" if from_one else ""}'
        )


def check_fits(attack: Gated, outputs: Outputs, why_no_features: str, *, differentiable: bool = True) -> None:
    """Whether an attack can run on a classifier with outputs of these shapes.

    `why_no_features` says why features and kernel were not found, if they were looked for.
    """
    classes = outputs.logits.shape[1]
    for part in attack.parts:
        if part.facts is None:
            continue
        if part.facts.uses_gradient and not differentiable:
            raise InputError(
                f'attack {attack.name!r} follows the gradient of the classifier, which has none, as it calls '
                'a function outside of JAX (BlackBox, pure_callback): use square, rays or spsa, or say with '
                'gradient_of whose gradient to take'
            )
        if part.n_targets >= classes:
            raise InputError(
                f'attack {attack.name!r} has {part.n_targets} targets, and the classifier has {classes} '
                f'classes, the label one of them: give at most n_targets={classes - 1}'
            )
        if part.facts.reads_features and outputs.features is None:
            raise InputError(
                f'attack {attack.name!r} needs the features and the kernel of the last linear layer'
                f'{why_no_features and f", and none was found: {why_no_features}"}: let the classifier return'
                ' si_jax.Outputs(logits, features, kernel), or leave this attack out'
            )


def check_targets(attacks: Sequence[Gated], request: Any, classes: int, *, randomised: bool = False) -> None:
    """Whether attacks can have the targets of a request, for a classifier of so many classes."""
    if request.targets is None:
        return
    remedy = 'leave targets out, or use attacks of the PGD family, apgd-ce, apgd-t, fab-t or square'
    if randomised:
        raise InputError(
            'targets are given, and the classifier is Randomised: one image has many decisions then; leave '
            'targets out'
        )
    for attack in attacks:
        facts = [part.facts for part in attack.parts]
        if len(facts) > 1:
            raise InputError(f'{attack.name} chooses its own targets, and cannot have others: {remedy}')
        if facts[0] is None or not facts[0].aims:
            raise InputError(f'{attack.name} cannot aim at a class, and targets are given: {remedy}')
        if attack.parts[0].chooses:
            raise InputError(
                f'{attack.name} says which targets it chooses, and targets are given: leave one out'
            )
    if isinstance(request.targets, np.ndarray):
        check_labels_of(classes, request.targets, 'targets')


def check_stand_in_is_taken(attacks: Sequence[Gated]) -> None:
    """Refuses `gradient_of` if no attack takes a gradient."""
    if all(part.without_gradient for attack in attacks for part in attack.parts):
        raise InputError(
            f'gradient_of is given, and {", ".join(attack.name for attack in attacks)} '
            f'{"take" if len(attacks) > 1 else "takes"} no gradient: leave gradient_of out, or add an attack '
            "that takes one, such as 'pgd'"
        )


def probe(classifier: Classifier, images: np.ndarray, keys: Array, coarse: float = FLOAT32) -> Outputs:
    """The outputs for images [P, H, W, C] with keys [P], followed by those for the inverted images.

    The classifier is called as given, in different batches. It is not compiled: randomness of the host would
    be frozen in a compiled program. Its program has the resolution `coarse`.

    Raises:
        InputError: Two calls on the same images disagree, or the logits of an image depend on the other
            images of its batch.
    """
    outputs, difference = repeated(classifier, images, keys, coarse)
    if difference:
        given = 'on the same images'
        remedy = (
            'switch dropout and other randomness off, also that of Python and NumPy, and what counts calls; '
            'or, if it belongs to the defense, draw it from keys and wrap the function as '
            'si_jax.Randomised(function)'
        )
        if classifier.randomised:
            given = 'with the same images and keys'
            remedy = 'a Randomised classifier must draw everything from its keys'
        raise InputError(f'two calls {given} disagree by {difference}: {remedy}')
    if difference := mixed(classifier, images, keys, outputs, coarse):
        raise InputError(
            f'the logits of an image change by {difference} with the other images of its batch: put batch '
            'normalisation into evaluation mode (train=False, running averages), and let each row of a '
            'Randomised classifier use its own key only'
        )
    return outputs


def _as_original(
    original: Callable[[np.ndarray], np.ndarray], images: np.ndarray, logits: Any, coarse: float
) -> str:
    """How far what was translated is from itself, or from its translation with these logits; or ''.

    A draw of the host, or a state, was frozen in the translation as it was made.
    """
    few = [original(images[:2]) for _ in range(REPEATS)]
    for again in few[1:]:
        if difference := disagreement(few[0], again, coarse, scale_of=logits):
            return f'{difference}, as PyTorch runs the module'
    difference = disagreement(original(images), logits, coarse, scale_of=logits)
    return difference and f'{difference}, as PyTorch runs the module and as it was translated'


def repeated(
    classifier: Classifier, images: np.ndarray, keys: Array, coarse: float = FLOAT32
) -> tuple[Outputs, str]:
    """The outputs for images and inverted ones, and how far another call's are from them, in words or ''."""
    both = jnp.asarray(np.concatenate([images, 1 - images]))
    outputs = classifier.function(both, jnp.concatenate([keys, keys]))
    difference = ''
    for _ in range(CALLS - 1):
        again = classifier.function(both, jnp.concatenate([keys, keys]))
        difference = difference or disagreement(outputs.logits, again.logits, coarse)
    if not difference and classifier.original is not None:
        difference = _as_original(classifier.original, np.asarray(both), outputs.logits, coarse)
    return outputs, difference


def mixed(
    classifier: Classifier, images: np.ndarray, keys: Array, outputs: Outputs, coarse: float = FLOAT32
) -> str:
    """How far the logits move if other images are in the batch than in that of `repeated`, in words or ''.

    The same images come last and in reverse, among copies of one image instead of the inverted ones.
    """
    count = len(images)
    batch = jnp.asarray(np.concatenate([np.repeat(images[:1], count, axis=0), images[::-1]]))
    others = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    elsewhere = classifier.function(batch, jnp.concatenate([others, keys[::-1]]))
    moved = elsewhere.logits[count:][::-1]
    return disagreement(outputs.logits[:count], moved, coarse, scale_of=outputs.logits)


def check_compiled(compiled: Any, eager: Any, coarse: float = FLOAT32) -> None:
    """Whether the compiled classifier is the one that was given.

    `compiled` are its logits [B, K] for the first of the images with the logits `eager` [M, K].
    """
    if difference := disagreement(compiled, eager[: len(compiled)], coarse, scale_of=eager):
        raise InputError(
            f'compiled by JAX the classifier disagrees with itself by {difference}: it must depend on its '
            'arguments and on constant arrays only, not on the state of Python objects, files or the clock'
            f'{compilation_cache.suspected()}'
        )


def check_finite(logits: Any, images: Images, indices: np.ndarray, what: str) -> None:
    """Raises InputError with the first of the images, by its index, whose logits [B, K] are not finite.

    The error has the image itself as its `image`.
    """
    finite = np.isfinite(np.asarray(logits)).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        error = InputError(
            f'the classifier returns NaN or infinite logits for {what} {indices[first]}: no accuracy can be '
            'told; look for a division by zero, an overflow (half precision) or weights that have diverged. '
            'Logits of classes that no image can have should be a finite number, as -1e9. '
            "The image is this error's `image`"
        )
        error.image = images[first]
        raise error


def after(
    logits: np.ndarray,
    clean: np.ndarray,
    attacks: Sequence[Gated],
    records: Mapping[str, AttackRecord],
    there: Callable[[], list[str]],
    *,
    randomised: bool,
) -> list[str]:
    """What makes the numbers of an evaluation doubtful.

    `logits` [N, K] and the flags `clean` [N] are those of the clean images; `there` returns attacks whose
    gradient is there on these images, for the advice.
    """
    found = losses_left_out(logits.shape[1], attacks) + out_of_range(logits, attacks)
    found += single_draws(attacks, records) if randomised else []
    found += gradients(attacks, records, there, float(np.abs(logits).max())) + unconfirmed(records)
    return found + unmoved(clean, attacks, records) + masking(clean, attacks, records)


def unconfirmed(records: Mapping[str, AttackRecord]) -> list[str]:
    """Of attacks that claim one point, the nearest that they found: what no point beyond it confirmed."""
    return [
        f'{name} found a misclassified point in the ball on {refused} images which the classifier does not '
        'confirm, nor points beyond it, so they count as robust: its accuracy may be too high. Give '
        "search_precision='float32', or attacks that go on after such a point, as apgd-ce and fab-t"
        for name, record in records.items()
        if record.distances is not None and (refused := sum(stage['refused'] for stage in record.stages))
    ]


def single_draws(attacks: Sequence[Gated], records: Mapping[str, AttackRecord]) -> list[str]:
    """For a randomised classifier: the attacks must average over its draws."""
    single = [attack.name for attack in attacks if any(part.eot_samples == 1 for part in attack.parts)]
    if not single:
        return []
    remedy = "set eot_samples (20 is usual), or 'auto', which measures how many it takes"
    if not all('eot_samples' in records[name].takes for name in single):
        remedy = f'use autoattack-rand, or attacks that take eot_samples, as apgd-ce and square, and {remedy}'
    return [
        f'the classifier is randomised and {", ".join(single)} follows single draws of it, so the accuracy '
        f'is too high: {remedy}'
    ]


def clean(accuracy: float, highest: float, classes: int, stated: float | None, hint: str) -> list[str]:
    """Whether a checkpoint's clean accuracy tells that it was loaded as something else than it is.

    `highest` is the upper end of its 95 % interval, and `hint` what to try. Where the authors state no
    accuracy, only one near chance is suspicious.
    """
    if stated is not None and stated > max(highest, accuracy + SHORT):
        return [
            f'the clean accuracy is {100 * accuracy:.2f} %, far below the stated {100 * stated:.2f} %: {hint}'
        ]
    if highest < 2 / classes or accuracy <= 1 / classes:
        return [f'the clean accuracy, {100 * accuracy:.2f} %, is near chance ({100 / classes:g} %): {hint}']
    return []


def out_of_range(logits: np.ndarray, attacks: Sequence[Gated]) -> list[str]:
    """Whether logits [N, K] are too small or too large for the steps of an attack."""
    gap = float(np.median(gaps(logits.astype(np.float64))))
    facts = {part.attack: part.facts for attack in attacks for part in attack.parts if part.facts}
    limits = {name: getattr(known.row, 'gaps', (0.0, np.inf)) for name, known in facts.items()}
    lost = {name: limit for name, limit in limits.items() if gap > 0 and not limit[0] <= gap <= limit[1]}
    if not lost:
        return []
    least, most = next(iter(lost.values()))
    return [
        f'the two highest logits are {gap:.2g} apart (median), and {", ".join(lost)} needs {least:g} to '
        f'{most:g}: its steps cannot follow others in this precision, and it finds nothing. Return the '
        'logits times a factor, which changes no decision, or trust square and rays'
    ]


def out_of_reach(attacks: Sequence[Gated], threat: Threat) -> list[str]:
    """Which attacks reach little of the ball, as its furthest points move few pixels and they move all."""
    facts = {part.attack: part.facts for attack in attacks for part in attack.parts if part.facts}
    dense = [name for name, known in facts.items() if getattr(known.row, 'dense', False)]
    if not dense or not threat.ball.sparse:
        return []
    return [
        f'{", ".join(dense)} moves all pixels by as much, and the furthest points of an {threat.norm} ball '
        'move few: what it leaves standing says little. Trust square, which needs no gradient either, or '
        'autoattack'
    ]


def of_linf(threat: Threat) -> list[str]:
    """Whether the radius is the usual one of another norm."""
    if threat.norm not in USUAL or threat.eps != LINF_EPS:
        return []
    return [
        f'eps = 8/255 is the usual radius in linf and next to nothing in {threat.norm}, where '
        f'{USUAL[threat.norm]} is usual: nearly every network looks robust there. Give eps'
    ]


def too_short(attacks: Sequence[Gated], records: Mapping[str, AttackRecord], threat: Threat) -> list[str]:
    """Which attacks of the PGD family cannot cross the ball with all steps, of a size that was chosen."""
    short = {}
    for attack in attacks:
        steps, size = records[attack.name].steps, records[attack.name].step_size
        if steps is None or size is None or math.isclose(size, threat.eps / 4):
            continue
        if steps * size < (1 - 1e-6) * threat.eps:
            short[attack.name] = steps * size
    if not short:
        return []
    told = ', '.join(f'{name} at most {far:.3g}' for name, far in short.items())
    return [
        f'the steps of an attack lead less far than the radius, {threat.eps:.3g}: {told}. It leaves standing '
        'what a longer one breaks: give more steps, or a larger step_size (a quarter of eps is usual)'
    ]


def unmoved(clean: np.ndarray, attacks: Sequence[Gated], records: Mapping[str, AttackRecord]) -> list[str]:
    """Which attacks left every image as it was."""
    still = [
        attack.name
        for attack in attacks
        if records[attack.name].broken_by is None
        and not records[attack.name].max_perturbation
        and clean.any()
    ]
    if not still:
        return []
    return [
        f'{", ".join(still)} moved none of the {len(clean)} images, so the accuracy is the clean one and '
        'says nothing of robustness: look into the attack, or trust others, such as square, which needs no '
        'gradient'
    ]


def gradients(
    attacks: Sequence[Gated],
    records: Mapping[str, AttackRecord],
    there: Callable[[], list[str]],
    largest: float,
) -> list[str]:
    """Whether the attacks that follow gradients had gradients to follow.

    Args:
        attacks: All of them, in order.
        records: What each did.
        there: Returns the attacks whose gradient is there on these images, to name in the advice.
        largest: The largest absolute value of a clean logit.
    """
    without: dict[str, GradientCounts] = {}
    broken: dict[str, GradientCounts] = {}
    of_source: dict[str, GradientCounts] = {}
    for attack in attacks:
        for part, counts in zip(attack.parts, records[attack.name].gradients, strict=False):
            if counts is None:
                continue
            zero, not_finite = (of_source, of_source) if part.elsewhere else (without, broken)
            if counts.zero > NO_GRADIENT * counts.attacked:
                zero.setdefault(part.attack, counts)
            if counts.not_finite:
                not_finite.setdefault(part.attack, counts)
    found = []
    for name, one in of_source.items():
        found.append(
            f'{name}: the gradient of its source is exactly zero on {one.zero} and not finite on '
            f'{one.not_finite} of {one.attacked} images, so what it carries over says little: give another '
            'source, or leave it out'
        )
    if without:
        cases = ', '.join(f'{name} on {one.zero} of {one.attacked}' for name, one in without.items())
        low, high = _interval(without, lambda one: one.zero)
        names = there()
        remedy = (
            f'the gradient of {", ".join(names)} is there: trust these'
            if names
            else 'no attack has one there: give the same network without the step that has no gradient as '
            'gradient_of (BPDA), or trust square and rays, which need none'
        )
        found.append(
            f'the gradient is exactly zero where attacks start, so that they see no way: {cases} images '
            f'({low:.1f} to {high:.1f} % of others like them). What these attacks leave standing says '
            f'little; {remedy}; an audit says more'
        )
    if broken:
        cases = ', '.join(f'{name} on {one.not_finite} of {one.attacked}' for name, one in broken.items())
        low, high = _interval(broken, lambda one: one.not_finite)
        remedy = FINITE
        if largest > TOO_LARGE:
            remedy = (
                f'the logits reach {largest:.3g}, where the cross-entropy cannot be computed in float32: use '
                'attacks that the scale of the logits does not mislead, such as cw, pgd-cal or apgd-t, or '
                'return the logits divided by that'
            )
        found.append(
            f"the classifier's gradient is not finite (NaN or infinite) at points of the ball: {cases} "
            f'images ({low:.1f} to {high:.1f} % of others like them). Such entries counted as 0, so these '
            f'attacks may be weaker than on a sound gradient: {remedy}'
        )
    return found


def _interval(
    cases: Mapping[str, GradientCounts], count: Callable[[GradientCounts], int]
) -> tuple[float, float]:
    """Wilson's interval in percent of the attack with most images that count."""
    worst = max(cases.values(), key=lambda one: count(one) / one.attacked)
    low, high = wilson(count(worst), worst.attacked)
    return 100 * low, 100 * high


def losses_left_out(count: int, attacks: Sequence[Gated]) -> list[str]:
    """For the number of classes: which attacks took another loss than their own."""
    parts = [part for attack in attacks for part in attack.parts]
    margin = dict.fromkeys(part.attack for part in parts if part.facts and count < part.facts.loss_classes)
    if not margin:
        return []
    return [
        f'with {count} classes the loss of {", ".join(margin)} is not defined: they used the margin instead'
    ]


def masking(clean: np.ndarray, attacks: Sequence[Gated], records: Mapping[str, AttackRecord]) -> list[str]:
    """Whether attacks that do not see the classifier's gradient broke what those that do had left."""
    left, breaking, white = clean.copy(), np.zeros(len(clean), bool), False
    culprits: list[str] = []
    for attack in attacks:
        record = records[attack.name]
        for number, part in enumerate(attack.parts):
            # Where there are no stages, whatever fooled the classifier in any run.
            fell = (
                ~np.logical_and.reduce(record.runs)
                if record.broken_by is None
                else record.broken_by == number
            )
            if part.without_gradient:
                breaking |= fell
                culprits += [part.attack] * (part.attack not in culprits)
            else:
                left = left & ~fell
                white = white or part.without_gradient is False
    count = int(np.sum(left & breaking))
    if not white or not count:
        return []
    low, high = wilson(count, len(clean))
    if low <= MASKED:
        return []
    return [
        f'{", ".join(culprits)} broke {count} of {len(clean)} images ({100 * low:.2f} to {100 * high:.2f} % '
        'of others like them) after the attacks with gradients had failed on them: gradients may be masked, '
        'and the true robust accuracy lower still: an audit says more, and more images narrow the interval'
    ]
