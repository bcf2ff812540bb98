"""Folders of runs as train.py and evaluate.py leave them, without anything trained."""

import json

import numpy as np

from si_jax.attacks.family import ATTACKS
from si_jax.evaluation.result import AttackRecord, Result
from si_jax.paper import configs
from si_jax.paper.cells import Training
from si_jax.storage.files import write_json
from si_jax.threat import Threat
from si_jax.training import recipes


def write_run(folder, source=None, *, at=None, pgd=(0.4, 0.5), pgd5=None, **overrides):
    """A run with a line for each accuracy under PGD on held-out images, the last one of its last epoch."""
    source = source or Training('digits', 'trades')
    config = recipes.plain(configs.config_of(source, {**source.overrides, **overrides}))
    folder.mkdir(parents=True)
    write_json(folder / 'config.json', config)
    last = config['epochs'] if at is None else at
    lines = []
    for i, accuracy in enumerate(pgd):
        line = {'step': 10 * (i + 1), 'epoch': last - len(pgd) + 1 + i}
        line |= {f'validation/{kind}pgd_accuracy': accuracy for kind in ('', 'calibrated_')}
        lines.append(line if pgd5 is None else line | {'pgd5_accuracy': pgd5[i]})
    (folder / 'metrics.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    return folder


def write_result(
    path,
    accuracies,
    *,
    images=397,
    dataset='digits',
    eps=0.2,
    seed=0,
    steps=20,
    restarts=1,
    model=None,
    warnings=(),
    distance=0.03,
    **about,
):
    """A result in which attacks leave so many images: a number, or a list of numbers, one a restart."""

    def flags(count):
        return np.arange(images) < count

    records = {}
    for name, counts in accuracies.items():
        if name == 'clean':
            continue
        family = name in ATTACKS
        counts = counts if isinstance(counts, list) else [counts] * (restarts if family else 1)
        records[name] = AttackRecord(
            runs=np.stack([flags(count) for count in counts]),
            steps=steps if family else None,
            step_size=eps / 4 if family else None,
            eot_samples=1,
            max_perturbation=eps,
            stages=() if family else ({'attack': name, 'accuracy': 0.5, 'average_distance': distance},),
        )
    result = Result(
        clean=flags(accuracies.get('clean', images)),
        attacks=records,
        labels=np.zeros(images, np.int32),
        indices=np.arange(images),
        threat=Threat('linf', eps),
        seed=seed,
        precision={'search': 'float32', 'verification': 'float32', 'matmul': 'highest'},
        dataset={'name': dataset, 'split': 'test', 'examples': images, 'classes': 10},
        warnings=list(warnings),
        environment={},
        timing={},
        model=model or {'workdir': 'anywhere', 'checkpoint': 'best', 'step': 20},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result.to_json() | about)
    return path
