"""The audit behind `evaluate.py --audit`: from names and paths to a table, a JSON file and a picture."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from si_jax.auditing.report import Audit
from si_jax.auditing.runner import audit
from si_jax.auditing.traces import check_attack
from si_jax.auditing.verdicts import WARN, Check
from si_jax.cli.subject import load, sources
from si_jax.errors import InputError
from si_jax.evaluation import gates
from si_jax.evaluation.result import check_output, wilson
from si_jax.evaluation.state import remove
from si_jax.runtime.terminal import resumable, show

EXAMPLES = 200  # unless told otherwise


def run_audit(
    *,
    attacks: str | None,
    output: str | None,
    num_examples: int | None,
    stated_clean: float | None,
    settings: dict[str, Any],
    transfer_from: str | None = None,
    logit_scale: float = 1.0,
    **source: Any,
) -> Audit:
    """Audits a network from a run, a Python file or a PyTorch checkpoint; prints and writes the report.

    Args:
        attacks: The name of one attack of the PGD family; None for PGD.
        output: The JSON file; None for one where the results of the network go.
        num_examples: The first so many images; `EXAMPLES` if None, or all if there are fewer.
        stated_clean: The clean accuracy that the authors state.
        settings: steps, step_size, restarts and so on of `si_jax.audit`; what is None has its default.
        transfer_from: Other models, as for `si_jax.cli.evaluate.run`.
        logit_scale: Likewise, a factor on the logits.
        source: The other flags of `si_jax.cli.subject.load`.

    Raises:
        InputError: A value is wrong, or the network cannot be judged.
    """
    name = (attacks or 'pgd').strip()
    if ',' in name:
        raise InputError(f'--audit judges one attack at a time, not --attacks={name}: give one of them')
    check_attack(name)
    if output is not None:
        check_output(output)
    loaded = load(num_examples=num_examples, stated_clean=stated_clean, logit_scale=logit_scale, **source)
    count = min(EXAMPLES, len(loaded.labels)) if num_examples is None else num_examples
    settings = {key: value for key, value in settings.items() if value is not None}
    settings |= {'attack': name, 'eps': loaded.threat.eps, 'norm': loaded.threat.norm}
    others = None if transfer_from is None else sources(transfer_from, loaded.images.shape[1:])
    choice = {'dataset': loaded.dataset, 'count': count, **settings}
    choice |= {'transfer_from': transfer_from} if others else {}
    choice |= {'logit_scale': logit_scale} if logit_scale != 1 else {}
    digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:8]
    path = Path(output) if output else loaded.folder / f'{loaded.stem}-audit-{name}-{digest}.json'
    path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the attacks

    state = path.with_suffix('.partial')
    with resumable(f'what was finished is kept in {state}'):
        report = audit(
            loaded.classifier,
            loaded.images[:count],
            loaded.labels[:count],
            progress=True,
            state_path=state,
            transfer_from=others,
            **settings,
        )
    described = {'name': loaded.dataset, 'split': 'test', **report.dataset}
    report = dataclasses.replace(report, dataset=described, model=loaded.about)
    if loaded.hint and report.clean is not None:
        highest = wilson(round(report.clean * count), count)[1]
        found = gates.clean(report.clean, highest, report.dataset['classes'], stated_clean, loaded.hint)
        lines = tuple(Check('clean', WARN, words) for words in found)
        report = dataclasses.replace(report, checks=lines + report.checks)
    report.save(path)
    remove(state)
    show(report.table())
    print(f'written to {path}')
    if (picture := report.picture(path)) is not None:
        print(f'curves in {picture}')
    return report
