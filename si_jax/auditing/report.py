"""The report of an audit: its verdict, the files that hold it, and the table."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from si_jax.auditing import plots
from si_jax.auditing.headings import headings
from si_jax.auditing.verdicts import FAIL, FEW, PASS, SKIP, WARN, Check, overall
from si_jax.evaluation.curves import can_be_drawn
from si_jax.evaluation.loading import SCHEMA
from si_jax.evaluation.result import replaceable
from si_jax.runtime.terminal import WIDTH, wrapped
from si_jax.storage.files import write_json
from si_jax.threat import Threat, radius

# Outcome -> how a reader is to take it.
MEANING = {
    PASS: 'nothing speaks against the accuracy that {attack} measures. That is no proof: use the worst of '
    'several attacks for the number',
    WARN: 'the accuracy that {attack} measures is too high, or has not settled: read the warnings',
    FEW: 'too few images to say whether the accuracy that {attack} measures may be trusted: audit more '
    'images',
    FAIL: 'do not trust the accuracy that {attack} measures on this classifier',
}


@dataclasses.dataclass(frozen=True)
class Audit:
    """Whether the robust accuracy that an attack measures on a classifier may be trusted.

    Attributes:
        checks: One a line of the checklist, in order.
        attack: The audited attack and its settings, in JSON's types.
        threat: The ball that the accuracy is claimed for.
        clean: The clean accuracy; None if the classifier was found unfit before.
        accuracy: That under the attack, after all restarts; likewise.
        examples: The number of images.
        seed: Of everything random.
        precision: Of the classifier in all checks.
        dataset: What is known of the data.
        environment: Versions, devices, command and commit.
        timing: Seconds.
        model: Where the classifier came from, if known.
    """

    checks: tuple[Check, ...]
    attack: dict[str, Any]
    threat: Threat
    clean: float | None
    accuracy: float | None
    examples: int
    seed: int
    precision: dict[str, str]
    dataset: dict[str, Any]
    environment: dict[str, Any]
    timing: dict[str, Any]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst outcome: 'fail', else 'warn', else 'few' (too few images to say), else 'pass'."""
        return overall(self.checks)

    @property
    def words(self) -> str:
        """The verdict as a sentence, with the checks that it rests on."""
        named = [check.name for check in self.checks if check.outcome == self.verdict]
        reasons = f' ({", ".join(named)})' if self.verdict != PASS else ''
        return MEANING[self.verdict].format(attack=self.attack['name']) + reasons

    def check(self, name: str) -> Check:
        """The line of this name."""
        return next(check for check in self.checks if check.name == name)

    def to_json(self) -> dict[str, Any]:
        """The audit in JSON's types."""
        return {
            'schema': SCHEMA,
            'kind': 'audit',
            'dataset': self.dataset,
            'model': self.model,
            'threat_model': dataclasses.asdict(self.threat),
            'seed': self.seed,
            'precision': self.precision,
            'attack': self.attack,
            'clean': self.clean,
            'accuracy': self.accuracy,
            'verdict': self.verdict,
            'words': self.words,
            'checks': {
                check.name: {
                    'outcome': check.outcome,
                    'words': check.words,
                    'evidence': check.evidence,
                    'headings': headings(check.name),
                }
                for check in self.checks
            },
            'environment': self.environment,
            'timing': self.timing,
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes `<stem>.json`, and `<stem>.png` with the curves if `picture` has a place for it.

        Raises:
            InputError: The path does not end in `.json`.
            OSError: A file cannot be written.
        """
        path = replaceable(path, ('.png',) if self.picture(path) else ())
        path.parent.mkdir(parents=True, exist_ok=True)
        about, picture = self.to_json(), self.picture(path)
        write_json(path, about)
        if picture is not None:
            plots.draw(about, picture)

    def picture(self, path: str | os.PathLike) -> Path | None:
        """Where `save(path)` puts the picture; None if there is nothing to draw, or no matplotlib."""
        drawn = self.accuracy is not None and can_be_drawn()
        return Path(path).with_suffix('.png') if drawn else None

    def table(self) -> str:
        """Verdicts and curves for a terminal of 80 columns."""
        lines = [
            f'audit of {self.attack["name"]}, {self.threat.norm} eps={radius(self.threat.eps)}, '
            f'{self.examples} images, seed {self.seed}'
        ]
        if self.clean is not None and self.accuracy is not None:
            lines += wrapped(
                '',
                f'accuracy in %: clean {100 * self.clean:.2f}, {self.attack["name"]} '
                f'{100 * self.accuracy:.2f} (steps {self.attack["steps"]}, restarts '
                f'{self.attack["restarts"]})',
            )
            lines += self._curves()
        lines.append('')
        for check in self.checks:
            outcome = check.outcome.upper() if check.outcome == FAIL else check.outcome
            lines += wrapped(f'{outcome:<5}{check.name:<14}', check.words)
        lines.append('')
        return '\n'.join(lines + wrapped('', f'verdict: {self.verdict.upper()}: {self.words}'))

    def _curves(self) -> list[str]:
        evidence = {check.name: check.evidence for check in self.checks if check.outcome != SKIP}
        runs = self.check('restarts').evidence['accuracy']
        rows = {
            'eps': ([f'{value:.4g}' for value in evidence['eps']['eps']], evidence['eps']['accuracy']),
            'steps': (list(map(str, evidence['steps']['steps'])), evidence['steps']['accuracy']),
            'restarts': ([str(1 + i) for i in range(len(runs))], runs),
        }
        lines, shown = [], (WIDTH - 14) // 8  # a row of more has the middle ones left out
        for name, (heads, values) in rows.items():
            pick = list(range(len(heads)))
            pick = pick if len(pick) <= shown else pick[: shown - 1] + pick[-1:]
            lines.append(f'  {name:<12}' + ''.join(f'{heads[i]:>8}' for i in pick))
            lines.append(f'  {"accuracy %":<12}' + ''.join(f'{100 * values[i]:>8.2f}' for i in pick))
        return lines
