"""The checks of an audit that attack the classifier, one unit of work after another."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from si_jax.attacks.facts import facts, for_classes
from si_jax.attacks.family import ATTACKS
from si_jax.auditing import binarization, curves, gradients, others, traces, verdicts
from si_jax.auditing.traces import Settings
from si_jax.auditing.verdicts import Check
from si_jax.evaluation.network import Network
from si_jax.evaluation.state import Arrays, remember
from si_jax.losses import margin
from si_jax.runtime import progress
from si_jax.runtime.progress import GRADIENT

MANY_DRAWS = 'the classifier is random: of many draws one is misclassified by noise alone'


class Work:
    """The checks on the correctly classified images, one at least, of a function of the image.

    `about` holds the attack and its settings, as the report does, and `sources` other classifiers by name.
    """

    def __init__(self, network: Network, about: dict[str, Any], sources: dict[str, Network]):
        self._network, self._about, self._sources = network, about, sources
        self._eps = network.request.threat.eps
        self._rows = np.flatnonzero(network.clean)
        self._planted = self._rows[: about['planted']]
        self._share = len(self._rows) / len(network.clean)
        self._random = network.classifier.randomised
        self._blind_to_scale = facts(ATTACKS[about['name']]).blind_to_scale

    def settings(self, steps: int, eps: float | None = None) -> Settings:
        """The attack at a radius, that of the audit if None, with the step size in proportion."""
        eps = self._eps if eps is None else eps
        step_size = self._about['step_size'] * eps / self._eps
        return Settings(eps, step_size, steps, min(steps, self._about['steps']))

    def cost(self) -> int:
        """Forward passes in all, roughly: what the progress is measured in."""
        about, each = self._about, GRADIENT * self._about['eot_samples']
        runs = len(set(about['eps_grid']) - {self._eps}) + about['restarts'] - 1
        steps = about['steps_grid'][-1] + runs * about['steps']
        passes = each * steps + 2 * GRADIENT + about['queries'] * (not self._random)
        passes += GRADIENT * about['steps'] * len(self._sources)
        passes += each * about['steps'] * (not self._blind_to_scale)
        return len(self._rows) * passes + len(self._planted) * self._cost_of_planted()

    def checks(self) -> tuple[list[Check], float]:
        """All of them in order, and the accuracy under the attack after all restarts."""
        about, count = self._about, len(self._network.clean)
        standard, numbers = about['steps'], about['steps_grid']
        follow = self._follower(about['name'], numbers[-1])
        long = follow('long', self.settings(numbers[-1]))
        found = [self._gradients(long), self._loss(long), self._scale(long)]

        last = {number: self._accuracy(~long['fooled'][:, number]) for number in numbers}
        last[numbers[-1]] = self._accuracy(long['last'])
        last[standard] = self._accuracy(long['marked'])
        fooled = np.logical_or.accumulate(long['fooled'], axis=1)
        survived = [self._accuracy(~fooled[:, number]) for number in numbers]
        found.append(curves.iterates(numbers, list(last.values()), survived, standard, count))
        if self._random:
            found[-1] = dataclasses.replace(found[-1], outcome=verdicts.SKIP, words=MANY_DRAWS)

        curve = []
        for eps in about['eps_grid']:
            settings = self.settings(standard, eps)
            run = long if eps == self._eps else follow(f'eps-{eps:.9g}', settings)
            curve.append(self._accuracy(run['marked']))
        found.append(curves.eps(about['eps_grid'], curve, self._network.request.classes, count))
        found.append(curves.steps(numbers, list(last.values()), standard, count))

        left, accuracies = long['marked'].astype(bool), [last[standard]]
        for restart in range(1, about['restarts']):
            left = left & follow(f'restart-{restart}', self.settings(standard), restart)['marked']
            accuracies.append(self._accuracy(left))
        found.append(curves.restarts(accuracies, count))
        white = self._everywhere(left)
        found += [self._black_box(white), self._transfer(white), self._binarization()]
        return found, accuracies[-1]

    def _follower(self, attack: str, length: int) -> Callable[..., Arrays]:
        """(unit's name, settings, restart) -> what `Follower.follow` says of all rows."""
        row = for_classes(ATTACKS[attack], self._network.request.classes)
        follower = traces.Follower(self._network, row, length)

        def follow(name: str, settings: Settings, restart: int = 0) -> Arrays:
            each = GRADIENT * self._about['eot_samples'] * settings.steps
            return self._unit(name, lambda rows: follower.follow(settings, rows, restart, attack), each)

        return follow

    def _scale(self, long: Arrays) -> Check:
        name, steps, free = self._about['name'], self._about['steps'], None
        if not self._blind_to_scale:
            run = self._follower('pgd-gap', steps)('scale', self.settings(steps))
            free = self._accuracy(run['marked'])
        return verdicts.scale(name, self._accuracy(long['marked']), free, len(self._network.clean))

    def _gradients(self, long: Arrays) -> Check:
        measure = functools.partial(gradients.measure, self._network, self._about['name'])
        found = self._unit('gradients', measure, 2 * GRADIENT)
        return verdicts.gradients(
            gradients.summary(found),
            float(np.mean(found['moves'])),
            len(self._rows),
            not_finite=float(np.mean(found['not_finite'] | long['not_finite'])),
        )

    def _loss(self, long: Arrays) -> Check:
        labels = jnp.asarray(self._network.labels[self._rows])
        before = np.asarray(margin(jnp.asarray(self._network.clean_logits[self._rows]), labels))
        losses = long['losses'][:, : self._about['steps'] + 1]
        return verdicts.loss(losses, (before, long['margin']), long['moved'])

    def _black_box(self, white: np.ndarray) -> Check:
        if self._random:
            return Check('black-box', verdicts.SKIP, MANY_DRAWS)
        queries = self._about['queries']
        box = self._unit('square', functools.partial(others.black_box, self._network, queries), queries)
        black = self._everywhere(~box['broken'])
        return verdicts.black_box(white, black, queries, float(np.mean(box['queries'])))

    def _transfer(self, white: np.ndarray) -> Check:
        settings, moved = self.settings(self._about['steps']), {}
        for number, (name, source) in enumerate(self._sources.items()):
            attack = functools.partial(others.transferred, self._network, source, name, settings)
            done = self._unit(f'transfer-{number}', attack, GRADIENT * settings.steps)
            moved[name] = self._everywhere(done['correct'])
        return verdicts.transfer(white, moved)

    def _binarization(self) -> Check:
        about, attack = self._about, traces.for_two_classes(self._about['name'])
        settings = self.settings(about['steps'])

        def test(rows: np.ndarray) -> Arrays:
            heads = binarization.heads(self._network, rows, about['points'])
            success, usable = np.zeros(len(rows), bool), heads.usable
            if usable.any():
                chosen = binarization.Heads(*(array[usable] for array in heads))
                success[usable] = binarization.attack(self._network, attack, chosen, settings, rows[usable])
            return {'usable': usable, 'random': heads.random, 'found': success}

        done = self._unit('planted', test, self._cost_of_planted(), self._planted)
        usable = done['usable']
        found, random = done['found'][usable], done['random'][usable]
        return verdicts.binarization(found, random, len(self._planted), about['points'])

    def _cost_of_planted(self) -> int:
        about = self._about
        return 2 * about['points'] + GRADIENT * about['eot_samples'] * about['steps'] * about['restarts']

    def _unit(
        self,
        name: str,
        compute: Callable[[np.ndarray], Arrays],
        passes: int,
        rows: np.ndarray | None = None,
    ) -> Arrays:
        """What `compute` says of the rows, all by default, in groups that are saved one by one."""
        progress.current().set_postfix(check=name)
        parts = []
        for number, group in enumerate(self._network.groups(self._rows if rows is None else rows)):
            with progress.part(passes * len(group)) as under_way:

                def work(group: np.ndarray = group, under_way: progress.Part = under_way) -> Arrays:
                    found = compute(group)
                    under_way.to(1.0)
                    return found

                parts.append(remember(f'{name}-{number}', work))
        return {key: np.concatenate([one[key] for one in parts]) for key in parts[0]}

    def _accuracy(self, correct: np.ndarray) -> float:
        """Over all images, from the flags of those that are classified correctly without an attack."""
        return self._share * float(np.mean(correct))

    def _everywhere(self, correct: np.ndarray) -> np.ndarray:
        flags = self._network.clean.copy()
        flags[self._rows] = correct
        return flags
