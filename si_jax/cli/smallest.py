"""`evaluate.py --smallest`: the distances of the nearest misclassified images."""

import dataclasses
from pathlib import Path
from typing import Any

from si_jax.attacks.settings import file_name, split
from si_jax.cli import outputs
from si_jax.cli.subject import Subject, load, load_classifier, without_chance
from si_jax.errors import InputError
from si_jax.evaluation import smallest
from si_jax.evaluation import state as saved
from si_jax.evaluation.intervals import wilson
from si_jax.evaluation.result import check_output
from si_jax.evaluation.smallest import Smallest
from si_jax.runtime import processes
from si_jax.runtime.terminal import resumable, show
from si_jax.storage.files import remove_leftovers

DEFAULT = 'fmn'
# Flags that it takes of those of attacks; the others have no meaning without a radius.
TAKEN = ('seed', 'batch_size', 'search_precision', 'gradient_of')


def run_smallest(
    subject: Subject, *, attacks: str | None, output: str | None, save_images: str | None, **settings: Any
) -> Smallest:
    """Measures the distances; prints and writes them.

    Args:
        subject: The network and its images; its norm may be 'l0'.
        attacks: Names, with commas between; None for `DEFAULT`.
        output: The JSON file; None for one beside other results.
        save_images: Whether to write the nearest images beside it, as npz.
        settings: The other flags of attacks and of what is written.

    Raises:
        InputError: A value is wrong, before anything is computed, or the network is unfit.
    """
    given = {name: settings.pop(name) for name in TAKEN}
    if subject.eps is not None:
        settings['eps'] = subject.eps
    if left := [name for name, value in settings.items() if value]:
        raise InputError(f'--{left[0]} has no meaning with --smallest: leave it out')
    if save_images not in (None, 'npz'):
        raise InputError('--save_images=png needs --eight_bit, which --smallest does not take')
    names = split(attacks or DEFAULT)
    if subject.norm is not None:
        smallest.check_norm(subject.norm)
        smallest.check_attacks(names, subject.norm)
    reads = [*subject.reads(), *outputs.of_model(given['gradient_of'])]

    def check_outputs(path: Path) -> None:
        files = [path, path.with_suffix('.npz'), path.with_suffix('.png'), path.with_suffix('.partial')]
        files += [path.with_name(f'{path.stem}_images.npz')] * bool(save_images)
        processes.from_first(lambda: outputs.check('--output=FILE.json', files, reads))

    if output is not None:
        check_outputs(check_output(output))
    # Distances have no ball: the norm needs no eps, and L0 has none.
    no_ball = dataclasses.replace(subject, norm=None)
    loaded = processes.agree_on_errors(lambda: load(no_ball))
    norm = subject.norm or loaded.threat.norm
    choice = {**given, 'count': len(loaded.labels), 'smallest': norm}
    path = loaded.path(output, f'smallest-{"-".join(map(file_name, names))}', choice)
    if output is None:
        check_outputs(path)
    if given['gradient_of'] is not None:
        with processes.all_or_none():
            shape = loaded.images.shape[1:]
            given['gradient_of'] = load_classifier(given['gradient_of'], shape, 'gradient_of')
    state = path.with_suffix('.partial')
    with saved.alone(state), resumable(f'what was finished is kept in {state}'), outputs.point_beside(path):
        found = smallest.smallest(
            loaded.classifier,
            loaded.images,
            loaded.labels,
            attacks=names,
            norm=norm,
            indices=loaded.indices,
            state_path=state,
            return_images=bool(save_images),
            progress=True,
            **given,
        )
        about = found.about
        right, count = int(found.clean.sum()), len(found.clean)
        unlike = loaded.against(about['dataset'], right / count, wilson(right, count)[1])
        told = loaded.doubts(about['dataset']) + unlike + without_chance(about['warnings'], unlike)
        about = {**about, 'dataset': loaded.described(about['dataset']), 'model': loaded.about}
        found = dataclasses.replace(found, about={**about, 'warnings': told})
        if processes.is_first():
            found.save(path)
            for stem in (path.stem, f'{path.stem}_images'):
                remove_leftovers(path.parent, stem)
            saved.remove(state)
    if processes.is_first():
        show(found.table())
        print(f'written to {path}')
    return found
