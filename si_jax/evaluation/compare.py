"""Two classifiers, or two attacks on one, compared image by image, from the files that `evaluate.py` wrote.

Both were measured on the same images, so their difference is far better known than either accuracy: images
that both get right, or both wrong, say nothing about it. Only the others count (McNemar, 1947).
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.attacks import registry
from si_jax.errors import InputError
from si_jax.evaluation.loading import SCHEMA, SavedResult
from si_jax.evaluation.result import Result
from si_jax.evaluation.settings import check_count
from si_jax.evaluation.table import SETTINGS, settings_of
from si_jax.runtime.terminal import WIDTH, named, titled, wrapped
from si_jax.threat import radius

RESAMPLES = 10_000
# What attacks must have in common to be compared: fields of their entries in the JSON.
PROTOCOL = (*SETTINGS, 'protocol')
LEVEL = 0.05  # of p, above which a difference is not called one
Paths = str | os.PathLike | Sequence[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How b differs from a in one accuracy, over N images and S seeds.

    Attributes:
        a: [S], the accuracy of a by seed; of a random classifier the mean share of right draws.
        b: [S].
        only_a: [S], how many images only a classifies correctly, by the vote of a random classifier.
        only_b: [S].
        mcnemar_p: [S], the exact two-sided p of McNemar's test: the probability of counts `only_a` and
            `only_b` at least as unequal if the images that the two disagree on fell to either side by a coin.
        ci95: The bootstrap interval of the mean of b - a, with the images drawn again: how far another
            sample of as many images might be off. An image of a random classifier counts by its share.
        seeds_ci95: Student's interval of the mean of b - a over seeds: how far other seeds might be off, on
            these images. None for one seed, or if all differences are equal.
        paired_t_p: The two-sided p of the paired t-test over seeds; None where `seeds_ci95` is.
    """

    a: np.ndarray
    b: np.ndarray
    only_a: np.ndarray
    only_b: np.ndarray
    mcnemar_p: np.ndarray
    ci95: tuple[float, float]
    seeds_ci95: tuple[float, float] | None
    paired_t_p: float | None

    def to_json(self) -> dict[str, Any]:
        """The difference in JSON's types."""
        many = len(self.a) > 1

        def over_seeds(values: np.ndarray) -> dict[str, Any]:
            sd = {'sd': float(np.std(values, ddof=1))} if many else {}
            return {'mean': float(np.mean(values)), **sd, 'by_seed': values.tolist()}

        return {
            'a': over_seeds(self.a),
            'b': over_seeds(self.b),
            'difference': over_seeds(self.b - self.a) | {'ci95': list(self.ci95)},
            'only_a': self.only_a.tolist(),
            'only_b': self.only_b.tolist(),
            'mcnemar_p': self.mcnemar_p.tolist(),
            'seeds_ci95': None if self.seeds_ci95 is None else list(self.seeds_ci95),
            'paired_t_p': self.paired_t_p,
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """b compared with a.

    Attributes:
        differences: By name: 'clean', each attack and 'worst_case'.
        a: The JSON files of a, one a seed.
        b: Those of b, in the same order of seeds.
        seeds: Those of the evaluations.
        threat: Norm and eps of both.
        dataset: What is known of the data of both.
        images: Their number.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        notes: What a reader of the differences must know.
        names: What to call a and b.
        attacks: The attack of a and that of b, where two attacks on one network are compared; else None.
        by_draws: Whether accuracies are mean shares of right draws, of random classifiers. McNemar's test is
            of their votes, and so says nothing of the difference.
    """

    differences: dict[str, Difference]
    a: list[str]
    b: list[str]
    seeds: list[int]
    threat: dict[str, Any]
    dataset: dict[str, Any]
    images: int
    resamples: int
    seed: int
    notes: list[str]
    names: tuple[str, str] = ('a', 'b')
    attacks: tuple[str, str] | None = None
    by_draws: bool = False

    def luck(self, one: Difference) -> float | None:
        """The probability of such a difference by luck, where a test says it."""
        if len(self.seeds) > 1:
            return None if one.paired_t_p is None else float(one.paired_t_p)
        return None if self.by_draws else float(one.mcnemar_p[0])

    @property
    def headline(self) -> str:
        """The name of the difference that counts: of the worst cases, or of what was attacked alone."""
        attacked = [name for name in self.differences if name not in ('clean', 'worst_case')]
        if len(attacked) != 1 and 'worst_case' in self.differences:
            return 'worst_case'
        return attacked[0] if attacked else 'clean'

    @property
    def sentence(self) -> str:
        """What the headline says, for a reader who skips the table; differences in percentage points."""
        one, (a, b) = self.differences[self.headline], self.names
        low, high = one.ci95
        mean = float(np.mean(one.b - one.a))
        p = self.luck(one)
        if not np.any(one.only_a + one.only_b) and not any((mean, *one.ci95)):
            what = f'{a} and {b} break the same images' if self.attacks else f'{a} and {b} are right alike'
            return f'{what}: no image of {self.images} tells them apart.'
        luck = '' if p is None else f'; such a difference by luck: {chance(p)}'
        if low <= 0 <= high or (p is not None and p > LEVEL):
            what = 'the stronger attack' if self.attacks else 'more robust'
            span = f'{self._points(mean)}, between {self._number(low)} and {self._number(high)}'
            return f'Neither is shown to be {what}: {b} less {a} is {span}{luck}.'
        best, other = (b, a) if mean > 0 else (a, b)
        least, most = sorted((abs(low), abs(high)))
        span = f'{self._points(abs(mean))}, between {self._number(least)} and {self._number(most)}'
        if self.attacks:
            return f'{other} is the stronger attack: it leaves {span}, less than {best}{luck}.'
        return f'{best} is more robust than {other} by {span}{luck}.'

    def _number(self, fraction: float) -> str:
        """A fraction in percent, with the decimals that so many images can tell."""
        value = round(100 * fraction, max(0, min(2, int(math.log10(self.images)) - 2)))
        return f'{value + 0.0:g}'

    def _points(self, fraction: float) -> str:
        return f'{self._number(fraction)} points'

    def to_json(self) -> dict[str, Any]:
        """The comparison in JSON's types; differences are b - a, as fractions."""
        return {
            'schema': SCHEMA,
            'a': self.a,
            'b': self.b,
            'seeds': self.seeds,
            'dataset': self.dataset,
            'threat_model': self.threat,
            'bootstrap': {'resamples': self.resamples, 'seed': self.seed, 'method': 'percentile'},
            'differences': {name: one.to_json() for name, one in self.differences.items()},
            'names': list(self.names),
            **({'attacks': list(self.attacks)} if self.attacks else {}),
            'sentence': self.sentence,
            'notes': self.notes,
        }

    def table(self) -> str:
        """The accuracies and their difference in percent, for a terminal of 80 columns."""
        what = [f'{attack} of ' for attack in self.attacks or ()] or ['', '']
        called = [f' ({name})' if name != side else '' for name, side in zip(self.names, 'ab', strict=True)]
        lines = [
            *_fitted(f'a{called[0]}: {what[0]}{_short(self.a)}'),
            *_fitted(f'b{called[1]}: {what[1]}{_short(self.b)}'),
            *wrapped(
                '',
                f'{self.threat["norm"]}, eps = {radius(self.threat["eps"])}, {self.images:,} images, '
                f'seed{"s" * (len(self.seeds) > 1)} {", ".join(map(str, self.seeds))}',
            ),
        ]
        single = len(self.seeds) == 1
        first = 16 if single else 12  # columns for the name
        if single:
            columns = f'{"a":>7}{"b":>7}{"b - a":>8}{"95 % interval":>18}'
            columns += f'{"only a":>7}{"only b":>7}{"McNemar p":>10}'
        else:
            columns = f'{"a (sd)":>14}{"b (sd)":>14}{"b - a (sd)":>15}{"95 % interval":>18}{"t p":>7}'
        lines.append(f'{"":<{first}}{columns}')
        for name, one in self.differences.items():
            low, high = (100 * bound for bound in one.ci95)
            interval = f'[{low:+.2f}, {high:+.2f}]'
            if single:
                a, b = 100 * one.a[0], 100 * one.b[0]
                columns = (
                    f'{a:>7.2f}{b:>7.2f}{b - a:>+8.2f}{interval:>18}'
                    f'{one.only_a[0]:>7}{one.only_b[0]:>7}{one.mcnemar_p[0]:>10.2g}'
                )
            else:
                a, b, difference = (_mean_sd(100 * x) for x in (one.a, one.b, one.b - one.a))
                p = '-' if one.paired_t_p is None else f'{one.paired_t_p:.1g}'
                columns = f'{a:>14}{b:>14}{difference:>15}{interval:>18}{p:>7}'
            lines += named(titled(name), columns, first)
        for note in self.notes:
            lines += wrapped('note: ', note)
        lines += wrapped('', self.sentence)
        return '\n'.join(lines)


def compare(
    a: Paths,
    b: Paths,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    attacks: tuple[str, str] | None = None,
    names: tuple[str, str] | None = None,
) -> Comparison:
    """Compares two classifiers, or two attacks on one, by the results of evaluations, image by image.

    Args:
        a: The JSON file that `Result.save` wrote, or several, one for each seed (of the evaluation or of the
            training), as a sequence or a comma string. The flags lie beside each as npz.
        b: Those of the other classifier, in the same order of seeds.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        attacks: The attack of a and the attack of b that are compared on one network; a and b may be the same
            file. None to compare two networks under the same attacks.
        names: What to call a and b; None for the attacks, or 'a' and 'b'.

    Raises:
        InputError: A file is missing or damaged, or the results were not measured alike: other images,
            labels, data set, norm, eps, attacks, steps, restarts, stages or seeds. The message names the
            difference and the remedy. Or a result lacks one of `attacks`, or they are of two networks.
    """
    resamples = check_count('resamples', resamples)
    seed = check_count('seed', seed, least=0)
    sides = [[Result.load(path) for path in _paths(side)] for side in (a, b)]
    seeds_a, seeds_b = ([one.about['seed'] for one in side] for side in sides)
    if seeds_a != seeds_b:
        raise InputError(
            f'the seeds differ: {seeds_a} for a, {seeds_b} for b. Results are paired in the order given: '
            'give as many for each side, measured with the same seeds in the same order'
        )
    first = sides[0][0]
    for other in (*sides[0][1:], *sides[1]):
        check_alike(first, other, same_attacks=attacks is None)
    if attacks is not None:
        attacks = _canonical(attacks[0], sides[0]), _canonical(attacks[1], sides[1])
    if names is None:
        names = attacks or ('a', 'b')
    if names[0] == names[1] or not all(names):
        raise InputError(f'names={names} must be two that differ: they tell the sides apart')
    rows = {name: (name, name) for name in first.correct}
    if attacks is not None:
        _check_attacks(sides, attacks)
        rows = {'clean': ('clean', 'clean'), f'{attacks[0]} | {attacks[1]}': attacks}

    rng = np.random.default_rng(seed)
    differences = {}
    for name, both in rows.items():
        found = list(zip(sides, both, strict=True))
        flags = [np.stack([one.correct[own] for one in side]) for side, own in found]
        shares = [np.stack([one.share[own] for one in side]) for side, own in found]
        differences[name] = _difference((flags[0], flags[1]), (shares[0], shares[1]), resamples, rng)
    return Comparison(
        differences=differences,
        a=[str(one.path) for one in sides[0]],
        b=[str(one.path) for one in sides[1]],
        seeds=seeds_a,
        threat=first.about['threat_model'],
        dataset=first.about['dataset'],
        images=len(first.labels),
        resamples=resamples,
        seed=seed,
        notes=_notes([*sides[0], *sides[1]]),
        names=(names[0], names[1]),
        attacks=attacks,
        by_draws=any('decisions' in one.about for side in sides for one in side),
    )


def chance(p: float) -> str:
    """A probability as a reader takes it: `4 %`, `below 0.01 %`."""
    return 'below 0.01 %' if p < 1e-4 else f'{100 * p:.2g} %' if p < 0.995 else '100 %'


def _canonical(attack: str, results: list[SavedResult]) -> str:
    """The name of an attack as results have it, however its settings are written."""
    about = results[0].about
    if attack in about['attacks']:
        return attack
    try:
        return registry.named(attack, about['threat_model']['norm']).name
    except InputError:  # one of the user's, or none: the check says so
        return attack


def _check_attacks(sides: list[list[SavedResult]], attacks: tuple[str, str]) -> None:
    """Raises InputError unless all results are of one network, and each side has its attack."""
    for side, attack in zip(sides, attacks, strict=True):
        for one in side:
            if attack not in one.about['attacks']:
                raise InputError(
                    f'{one.path} has no attack {attack!r}, only {", ".join(one.about["attacks"]) or "none"}: '
                    'give one of them, or another result'
                )
    for x, y in zip(*sides, strict=True):
        first, other = (one.about.get('model') for one in (x, y))
        if first != other or not np.array_equal(x.correct['clean'], y.correct['clean']):
            raise InputError(
                f'{x.path} and {y.path} are of two networks, and two attacks are compared on one: give '
                'results of one checkpoint, or leave the attacks out to compare two networks'
            )


def check_alike(first: SavedResult, other: SavedResult, *, same_attacks: bool = True) -> None:
    """Raises InputError unless both were measured alike: on the same images, in the same way.

    `same_attacks`: whether the attacks and their settings must be the same too.
    """

    def check(what: str, x: Any, y: Any, remedy: str, shown: Callable[[Any], Any] = str) -> None:
        if x != y:
            x, y = (text if text.isprintable() else repr(text) for text in (shown(x), shown(y)))
            raise InputError(
                f'{first.path} and {other.path} cannot be compared, {what}: {x} and {y}; '
                f'evaluate both {remedy}'
            )

    mine, others = first.about, other.about
    for key in ('name', 'split', 'classes'):
        x, y = (about['dataset'].get(key) for about in (mine, others))
        check(f'the data sets differ ({key})', x, y, 'on the same data set')
    x, y = len(first.indices), len(other.indices)
    check('the numbers of images differ', x, y, 'with the same --num_examples')
    for what, x, y in (('images', first.indices, other.indices), ('labels', first.labels, other.labels)):
        for i in np.flatnonzero(x != y)[:1]:
            check(f'the {what} differ, first in row {i}', x[i], y[i], 'on the same images')
    x, y = (about['dataset'].get('digest') for about in (mine, others))
    if None not in (x, y):
        check(
            'the images differ, though numbers and labels are equal (SHA-256)',
            x,
            y,
            'on the same pixels: the same preparation of the data set, in the same order',
            shown=lambda digest: str(digest)[:12],
        )
    x, y = (about.get('decisions') for about in (mine, others))
    if None not in (x, y):
        check('the numbers of draws that decide differ', x, y, 'with the same --decisions')
    x, y = (bool(about.get('eight_bit')) for about in (mine, others))
    check('only one was rounded to bytes', x, y, 'with or without --eight_bit')
    x, y = (about.get('smaller_radii', []) for about in (mine, others))
    check('what counts as broken from smaller radii differs', x, y, 'at the same radii, or at one alone')
    measured = all('eot' in about for about in (mine, others))
    for key in ('norm', 'eps'):
        x, y = mine['threat_model'][key], others['threat_model'][key]
        check(f'{key} differs', x, y, f'with the same --{key}')
    if not same_attacks:
        return
    check(
        'the attacks differ',
        list(mine['attacks']),
        list(others['attacks']),
        'with the same --attacks, or their worst cases mean different things',
        shown=','.join,
    )
    for name in mine['attacks']:
        one, two = (protocol_of(about['attacks'][name]) for about in (mine, others))
        if measured:  # eot_samples='auto' for both, and what it takes is a property of the classifier
            one, two = _without_samples(one), _without_samples(two)
        for key in PROTOCOL:
            check(f'the protocols of {name} differ in {key}', one[key], two[key], 'with the same flags')


def protocol_of(entry: dict[str, Any]) -> dict[str, Any]:
    """How an attack was run, from its entry in a result's JSON: what `PROTOCOL` names."""
    return {**settings_of(entry), 'protocol': entry.get('protocol')}


def _without_samples(value: Any) -> Any:
    """A protocol with no number of draws in it, wherever it stands."""
    if isinstance(value, dict):
        return {key: None if key == 'eot_samples' else _without_samples(one) for key, one in value.items()}
    return [_without_samples(one) for one in value] if isinstance(value, list) else value


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p of McNemar's test, from the two counts of images that one side alone has right.

    Source: McNemar (1947); exact: the smaller count is binomial(only_a + only_b, 1/2) under the hypothesis.
    """
    from scipy import stats  # takes a second: see `result`

    total = only_a + only_b
    return float(stats.binomtest(only_a, total, 0.5).pvalue) if total else 1.0


def bootstrap(values: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values` [N], with its entries drawn again.

    There are few distinct values, and a resample is known by how often it holds each: these counts are
    multinomial, so that no entry need be drawn by itself.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.quantile(drawn @ distinct / len(values), (0.025, 0.975))
    return float(low), float(high)


def _difference(
    flags: tuple[np.ndarray, np.ndarray],
    shares: tuple[np.ndarray, np.ndarray],
    resamples: int,
    rng: np.random.Generator,
) -> Difference:
    """From the flags [S, N] of both, and from what each image counts: a share, or the flag itself.

    The accuracies and their difference are means of shares. McNemar's test counts images, and an image can be
    on one side only: there the vote stands for its draws.
    """
    from scipy import stats

    a, b = flags
    only_a, only_b = (a & ~b).sum(axis=1), (b & ~a).sum(axis=1)
    a, b = shares
    accuracy_a, accuracy_b = a.mean(axis=1), b.mean(axis=1)
    by_seed = (b.sum(axis=1) - a.sum(axis=1)) / a.shape[1]
    test = stats.ttest_1samp(by_seed, 0.0) if len(a) > 1 and np.ptp(by_seed) > 0 else None
    interval = None if test is None else test.confidence_interval(0.95)
    return Difference(
        a=accuracy_a,
        b=accuracy_b,
        only_a=only_a,
        only_b=only_b,
        mcnemar_p=np.array([mcnemar(int(x), int(y)) for x, y in zip(only_a, only_b, strict=True)]),
        # The images are drawn again, not the seeds; an image's difference is its mean over them.
        ci95=bootstrap((b.sum(axis=0) - a.sum(axis=0)) / len(a), resamples, rng),
        seeds_ci95=None if interval is None else (float(interval.low), float(interval.high)),
        paired_t_p=None if test is None else float(test.pvalue),
    )


def _paths(side: Paths) -> list[Path]:
    parts = side.split(',') if isinstance(side, str) else [side] if isinstance(side, os.PathLike) else side
    paths = [Path(str(part).strip()) for part in parts]
    if not paths:
        raise InputError('no result to compare: give the JSON file that evaluate.py wrote')
    for path in paths:
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise InputError(f'{path} is given twice on one side: give one result for each seed')
    return paths


def _notes(results: list[SavedResult]) -> list[str]:
    """What need not be equal, but should be known."""
    notes = []
    precisions = {one.about['precision'].get('search') for one in results}
    if len(precisions) > 1:
        notes.append(
            f'the attacks searched in different precisions ({", ".join(sorted(map(str, precisions)))}): what '
            'they found was verified alike, but one may have found more'
        )
    without = [str(one.path) for one in results if 'digest' not in one.about['dataset']]
    if without:
        notes.append(
            f'{", ".join(without)} came from an older version and without a digest of the images: that the '
            'pixels are the same was not checked'
        )
    if any('decisions' in one.about for one in results):
        notes.append(
            'an image of a random classifier counts by the share of its draws that are right: accuracies, '
            'differences and their intervals are means of it. Only a, only b and McNemar count votes'
        )
    for one in results:
        if one.about['warnings']:
            notes.append(f'{one.path} carries warnings of its own: read them first')
    return notes


def _mean_sd(values: np.ndarray) -> str:
    return f'{np.mean(values):.2f} ({np.std(values, ddof=1):.2f})'


def _fitted(line: str) -> list[str]:
    return [line] if len(line) <= WIDTH else wrapped('', line)


def _short(paths: list[str]) -> str:
    """The paths in a line of 77 columns."""
    line = ', '.join(paths)
    return line if len(line) <= 77 else f'...{line[-74:]}'
