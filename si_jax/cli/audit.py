"""The audit behind `evaluate.py --audit`: from names and paths to a table, a JSON file and a picture."""

from pathlib import Path
from typing import Any

from si_jax.attacks.settings import split
from si_jax.auditing.report import Audit
from si_jax.auditing.runner import audit
from si_jax.auditing.traces import check_attack
from si_jax.cli import outputs
from si_jax.cli.subject import Subject, load, sources
from si_jax.errors import InputError
from si_jax.evaluation.result import check_output
from si_jax.evaluation.settings import DEFAULTS, check_settings, takes_of
from si_jax.evaluation.state import alone, remove
from si_jax.runtime.terminal import resumable, show

EXAMPLES = 200  # unless told otherwise


def run_audit(
    subject: Subject,
    *,
    attacks: str | None,
    output: str | None,
    settings: dict[str, Any],
    transfer_from: str | None = None,
) -> Audit:
    """Audits a network; prints and writes the report.

    Args:
        subject: The network and its images; `EXAMPLES` of them unless it says how many.
        attacks: The name of one attack of the PGD family; None for PGD.
        output: The JSON file; None for one where the results of the network go.
        settings: steps, step_size, restarts and so on of `si_jax.audit`; what is None has its default.
        transfer_from: Other models, as for `si_jax.cli.evaluate.run`.

    Raises:
        InputError: A value is wrong, or the network cannot be judged.
    """
    name = (attacks or 'pgd').strip()
    if len(split(name)) > 1:
        raise InputError(f'--audit judges one attack at a time, not --attacks={name}: give one of them')
    check_attack(name)
    of_call = ('steps', 'step_size', 'restarts', 'eot_samples', 'seed', 'batch_size')
    check_settings(
        takes_of([name], {}, []), **{key: settings[key] for key in of_call if settings[key] is not None}
    )
    reads = [*subject.reads(), *outputs.of_model(transfer_from)]

    def check_outputs(path: Path) -> None:
        files = [path.with_suffix(suffix) for suffix in ('.json', '.png', '.partial')]
        files.append(path.with_name(f'{path.stem}{outputs.POINT}'))
        outputs.check('--output=FILE.json', files, reads)

    if output is not None:
        check_outputs(check_output(output))
    loaded = load(subject, at_most=EXAMPLES)
    count = len(loaded.labels)
    usual = {name: DEFAULTS[name] for name in ('steps', 'eot_samples')}
    settings = usual | {key: value for key, value in settings.items() if value is not None}
    settings |= {'attack': name, 'eps': loaded.threat.eps, 'norm': loaded.threat.norm}
    others = None if transfer_from is None else sources(transfer_from, loaded.images.shape[1:])
    choice = {'count': count, **settings} | ({'transfer_from': transfer_from} if others else {})
    path = loaded.path(output, f'audit-{name}', choice)
    if output is None:
        check_outputs(path)

    state = path.with_suffix('.partial')
    with alone(state):
        with resumable(f'what was finished is kept in {state}'), outputs.point_beside(path):
            report = audit(
                loaded.classifier,
                loaded.images,
                loaded.labels,
                indices=loaded.indices,
                progress=True,
                state_path=state,
                transfer_from=others,
                **settings,
            )
        report = loaded.named(report)
        report.save(path)
        remove(state)
    show(report.table())
    print(f'written to {path}')
    if (picture := report.picture(path)) is not None:
        print(f'curves in {picture}')
    return report
