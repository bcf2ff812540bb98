"""Measures the accuracy of a classifier on clean images and under attacks."""

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.attacks.family import ATTACKS
from si_jax.attacks.presets import PRESETS
from si_jax.attacks.searches import SEARCHES
from si_jax.attacks.settings import file_name, split
from si_jax.cli import compare, corruptions, outputs
from si_jax.cli.audit import run_audit
from si_jax.cli.smallest import run_smallest
from si_jax.cli.subject import IMAGES, NETWORK, Subject, load, load_attribute, load_classifier, sources
from si_jax.cost import flops
from si_jax.cost.mfu import Meter
from si_jax.draws import key_of
from si_jax.errors import InputError
from si_jax.evaluation import eight_bit
from si_jax.evaluation import state as saved
from si_jax.evaluation.arrays import TARGETS
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.result import Result, check_output
from si_jax.evaluation.settings import AUTO, DEFAULTS, check_settings, parse_attacks, takes_of
from si_jax.evaluation.sweep import Sweep, check_radii, sweep
from si_jax.evaluation.union import Union, check_step_size, paths
from si_jax.runtime import compilation_cache, processes, profiling, terminal
from si_jax.runtime.sinks import Sinks, Start
from si_jax.runtime.sinks import parse as parse_sinks
from si_jax.runtime.terminal import Flag, fraction, resumable, show
from si_jax.storage.files import check_regular, remove_leftovers
from si_jax.threat import NORMS, THREATS, Threat, parse_threats

DEFAULT_ATTACKS = 'pgd,cw,dlr,sipgd'
USAGE = """
  evaluate.py --workdir=FOLDER [flags]
  evaluate.py --model=FILE.py:FUNCTION --dataset=NAME [flags]
  evaluate.py --torch_checkpoint=FILE --arch=NAME --dataset=NAME [flags]
  evaluate.py audit --workdir=FOLDER [flags]
  evaluate.py compare A.json B.json [flags]
  evaluate.py corruptions --folder=CIFAR-10-C --workdir=FOLDER [flags]"""
ABOUT = """
Measures the accuracy of a classifier on clean images and under attacks: prints
a table, and writes one JSON file with the flags of each image beside it.
`audit` checks whether an accuracy can be trusted, as does the flag --audit.
`compare` holds two such results against each other, image by image
(compare --help). `corruptions` measures the accuracy under common corruptions
(corruptions --help).

examples:
  a run of train.py, under four attacks of 20 steps
    python evaluate.py --workdir=runs/quickstart/44136fa3
  a network of the zoo, 100 images, in two norms: each has to withstand both
    python evaluate.py --model=zoo:digits-at --attacks=autoattack \\
        --num_examples=100 --threats=linf:0.2,l2:1
  your own network: build() in my_model.py returns a function of images
    python evaluate.py --model=my_model.py:build --dataset=cifar10 --eps=8/255
  whether the accuracy under PGD can be trusted: a verdict for each check
    python evaluate.py --workdir=WORKDIR --audit
  a defense without a gradient, attacked by way of the network inside it
    python evaluate.py --model=my_model.py:build --dataset=cifar10 \\
        --gradient_of=my_model.py:undefended
  an attack of your own, and what breaks another run
    python evaluate.py --workdir=WORKDIR --attacks=pgd,my_attacks.py:attack \\
        --transfer_from=WORKDIR2
  more steps and restarts for one attack than it has by default
    python evaluate.py --workdir=WORKDIR \\
        --attacks='pgd(steps=200, step_size=1/255),apgd-ce(restarts=5)'
  which of two networks is better, and whether the difference is luck
    python evaluate.py compare a.json b.json
"""
WENT_WRONG = 'the verdict of --audit is FAIL (0 if it only warns); or an attack left its ball, a fault here'
EPILOG = f"""
attacks (docs/attacks.md says what they do):
{terminal.listed('PGD family', ATTACKS)}
{terminal.listed('searches', SEARCHES)}
{terminal.listed('presets', PRESETS)}

The same command, run again after an interruption, goes on where it was.
Compiled programs are kept for the next command (SI_JAX_COMPILATION_CACHE=FOLDER
moves them, off keeps none).

{terminal.exit_status(WENT_WRONG, several=True)}
"""


def samples(text: str) -> int | str:
    return text if text == AUTO else int(text)


ATTACKING = {
    'attacks': Flag(
        'A,B,...',
        "names from the list below, with settings if you like ('pgd(steps=200),cw'), and FILE.py:FUNCTION "
        'for attacks of your own '
        f'(default: {DEFAULT_ATTACKS}; with --audit one of the PGD family: pgd)',
    ),
    'steps': Flag('N', 'of the PGD family (default: 20)', int),
    'step_size': Flag('SIZE', 'of the PGD family (default: eps / 4)', fraction),
    'restarts': Flag('N', 'of the PGD family (default: 1, with --audit 5)', int),
    'eot_samples': Flag(
        'N|auto', 'draws averaged in each step, for random defenses; auto measures (default: 1)', samples
    ),
    'decisions': Flag('N', 'fresh draws that judge each image of a random defense (default: 64)', int),
    'targets': Flag(
        'WHICH', 'classes to be reached: random, least-likely, all, or FILE.npy with one for each image'
    ),
    'gradient_of': Flag(
        'FILE.py:FUNCTION', 'a function that returns the classifier whose derivative attacks take (BPDA)'
    ),
    'transfer_from': Flag(
        'A,B', 'other models, FILE.py:FUNCTION or folders of runs: what breaks them, tried on this one'
    ),
    'threats': Flag(
        'NORM:EPS,...',
        f'several threat models in place of --norm and --eps, and their union ({",".join(THREATS)})',
    ),
    'smallest': Flag(
        None, 'how far the nearest misclassified images are, by fmn, fab or fab-t: without a radius', bool
    ),
    'eight_bit': Flag(None, 'round what attacks return to bytes before it is judged', bool),
    'individual': Flag(None, 'each stage of a cascade on all correct images', bool),
    'search_precision': Flag('NAME', 'float32, tf32 or bfloat16, of the search alone (default: by device)'),
    'seed': Flag('N', 'of everything random', int, 0),
    'batch_size': Flag('N', 'most images at once (default: by device); changes no result', int),
}


def image_format(text: str) -> str:
    if text not in ('npz', 'png'):
        raise ValueError(text)
    return text


WRITTEN = {
    'output': Flag('FILE.json', 'default: a new file in <workdir>/evaluation, or evaluation'),
    'save_images': Flag(
        'png', 'the adversarial images too, as npz, or with =png as pictures', image_format, const='npz'
    ),
    'sinks': Flag('NAME,...', 'where the accuracies go too: tensorboard, wandb, trackio or FILE.py:NAME'),
    'profile': Flag('FOLDER', 'a profile of a part of the first attack (docs/performance.md)'),
}


def fractions(text: str) -> list[float]:
    return [fraction(part) for part in text.split(',')]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(',')]


AUDIT = {
    'audit': Flag(None, 'check whether the accuracy can be trusted', bool),
    'audit_eps': Flag('EPS,...', 'radii (default: 1/4 to 8 times eps)', fractions),
    'audit_steps': Flag('N,...', 'numbers of steps (default: 10,20,50,100,500)', numbers),
    'audit_queries': Flag('N', 'of Square (default: 1000)', int),
    'audit_planted': Flag('N', 'images of the binarization test (default: 50)', int),
}
GROUPS = {
    'what is evaluated: one of the first three': NETWORK,
    'images and threat model': IMAGES,
    'attacks': ATTACKING,
    'what is written': WRITTEN,
    'several processes (docs/pods.md)': processes.FLAGS,
    'audit': AUDIT,
}


def parser() -> argparse.ArgumentParser:
    flags = terminal.parser('evaluate.py', USAGE, ABOUT, EPILOG)
    for title, table in GROUPS.items():
        terminal.add(flags.add_argument_group(title), table)
    return flags


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return processes.run('evaluate.py', functools.partial(start, argv))


def start(argv: list[str]) -> int:
    if argv[:1] == ['compare']:
        compare.run(**vars(compare.parser().parse_args(argv[1:])))
        return terminal.OK
    if argv[:1] == ['corruptions']:
        corruptions.run(vars(corruptions.parser().parse_args(argv[1:])))
        return terminal.OK
    if argv[:1] == ['audit']:
        argv = ['--audit', *argv[1:]]
    arguments = vars(parser().parse_args(argv))
    processes.start(**{name: arguments.pop(name) for name in processes.FLAGS})
    subject = Subject.take(arguments)
    audited, *of_audit = (arguments.pop(name) for name in AUDIT)
    if audited:
        return audit(subject, arguments, of_audit)
    for name, value in zip(list(AUDIT)[1:], of_audit, strict=True):
        if value is not None:
            raise InputError(f'--{name} belongs to --audit: leave it out, or give that one')
    compilation_cache.enable()
    if arguments.pop('smallest'):
        run_smallest(subject, **arguments)
        return terminal.OK
    attacks = arguments.pop('attacks')
    run(subject, attacks=DEFAULT_ATTACKS if attacks is None else attacks, **arguments)
    return terminal.OK


def audit(subject: Subject, arguments: dict[str, Any], of_audit: list[Any]) -> int:
    """The exit status of an audit; `of_audit` has the values of the flags --audit_eps and so on."""
    if processes.count() > 1:
        raise InputError(f'--audit is for one process, and there are {processes.count()}: --distributed=off')
    if isinstance(subject.eps, tuple):
        raise InputError('--eps has several radii, and --audit takes one: give one, and --audit_eps=EPS,...')
    for name in (
        'individual',
        'search_precision',
        'save_images',
        'gradient_of',
        'profile',
        'threats',
        'sinks',
        'targets',
        'decisions',
        'eight_bit',
        'smallest',
    ):
        if arguments.pop(name):
            raise InputError(f'--{name} has no meaning with --audit: leave it out')
    settings = dict(zip(('eps_grid', 'steps_grid', 'queries', 'planted'), of_audit, strict=True))
    for name in ('steps', 'step_size', 'restarts', 'seed', 'batch_size', 'eot_samples'):
        settings[name] = arguments.pop(name)
    compilation_cache.enable()
    failed = run_audit(subject, settings=settings, **arguments).verdict == 'fail'
    return terminal.FAILED if failed else terminal.OK


def run(
    subject: Subject,
    *,
    attacks: str,
    output: str | None,
    save_images: str | None,
    gradient_of: str | None = None,
    transfer_from: str | None = None,
    profile: str | None = None,
    threats: str | None = None,
    sinks: str | None = None,
    targets: str | None = None,
    **settings: Any,
) -> Result | Union | Sweep:
    """Evaluates a network; prints and writes the result.

    What is finished is kept in `<output without .json>.partial` until the result is written.

    Args:
        subject: The network, its images and the ball.
        attacks: Names, with commas between; 'path/to/file.py:attack' is an attack that the user wrote.
        output: The JSON file; None for one in `<workdir>/evaluation`, or in `evaluation` without a workdir.
        save_images: 'npz' or 'png', how to write the adversarial images beside it; None not to.
        gradient_of: 'path/to/file.py:build', the classifier whose derivative attacks take (BPDA).
        transfer_from: Other models, with commas between: 'path/to/file.py:build' or folders of runs.
        profile: A folder for a profile of a part of the first attack; None for none.
        threats: Threat models, 'NORM:EPS' with commas between; None for that of the subject alone.
        sinks: Names of `si_jax.runtime.sinks`, with commas between; None for none.
        targets: As for `si_jax.evaluate`; an array is a file FILE.npy.
        settings: steps, step_size, restarts, seed, batch_size, eot_samples, decisions, individual, eight_bit
            and search_precision of `si_jax.evaluate`.

    Raises:
        InputError: A value is wrong, before anything is computed, or the network is unfit.
    """
    with processes.all_or_none():
        given = [load_attribute(one, 'attacks') if '.py:' in one else one for one in split(attacks)]
    norm = subject.norm if subject.norm in NORMS else NORMS[0]
    names, custom = parse_attacks(given, norm)
    makes = parse_sinks(sinks or '', '--sinks')
    several = {} if threats is None else parse_threats(threats)
    radii = subject.eps if isinstance(subject.eps, tuple) else ()
    if not settings.get('eight_bit'):  # not in the name of the file, as before there was such a flag
        settings.pop('eight_bit', None)
    if save_images == 'png' and 'eight_bit' not in settings:
        raise InputError(
            '--save_images=png needs --eight_bit: a picture holds bytes, and would not be the image that was '
            'judged; or give --save_images for an npz file'
        )
    for name in ('eps', 'norm'):
        if several and getattr(subject, name) is not None:
            raise InputError(f'--{name} is given beside --threats, which has it: leave one of them out')
    aims = targets if targets is None or targets in TARGETS else read_targets(targets)
    reads = [*subject.reads(), *outputs.of_model(attacks, gradient_of, transfer_from, targets)]

    def check_outputs(path: Path, norm: str = NORMS[0]) -> None:
        files = [path.with_suffix('.png')] * bool(radii)
        files += [path.with_name(f'{path.stem}{outputs.POINT}')]
        swept = {str(eps): Threat(subject.norm or norm, eps) for eps in radii}
        for one in (path, *paths(path, [*several.items(), *swept.items()]).values()):
            files += [one, one.with_suffix('.npz'), one.with_suffix('.partial')]
            files += [one.with_name(f'{one.stem}_images.npz')] * (save_images == 'npz')
            files += [eight_bit.folder_of(one)] * (save_images == 'png')
        processes.from_first(lambda: outputs.check('--output=FILE.json', files, reads))

    if output is not None:
        check_outputs(check_output(output))
    # Whether the network is random is known once it is loaded: then `evaluate` asks again.
    takes = takes_of(names, custom, ['transfer'] if transfer_from else [], randomised=True)
    check_settings(takes, **settings)
    check_step_size(settings.get('step_size'), several)
    loaded = processes.agree_on_errors(lambda: load(subject))
    if not several:
        names, custom = parse_attacks(given, loaded.threat.norm)  # whose defaults names leave out
    shape = loaded.images.shape[1:]
    others: dict[str, Any] = {}
    with processes.all_or_none():
        if gradient_of is not None:
            others['gradient_of'] = load_classifier(gradient_of, shape, 'gradient_of')
        if transfer_from is not None:
            others['transfer_from'] = sources(transfer_from, shape)
    filled = {name: DEFAULTS[name] for name in DEFAULTS if settings.get(name) is None}
    choice = {'count': len(loaded.labels), **settings, **filled}
    if choice['decisions'] is None:  # no setting of the many that are not random
        del choice['decisions']
    choice |= {'gradient_of': gradient_of, 'transfer_from': transfer_from} if others else {}
    # Of several norms, whose defaults differ, the file name has the attacks as in linf.
    choice |= {'threats': list(several), 'attacks': attacks} if several else {}
    choice |= {} if targets is None else {'targets': targets}
    choice |= {'eps': radii} if radii else {}
    each = several or {'': loaded.threat}
    for threat in each.values():
        threat.check(shape)
    path = loaded.path(output, '-'.join(map(file_name, names)), choice)
    if radii:
        check_radii(radii, loaded.threat.norm, shape)
    if save_images == 'png':
        eight_bit.check_png(shape)
    if output is None or radii:
        check_outputs(path, loaded.threat.norm)

    state = path.with_suffix('.partial')
    places = paths(path, several.items()) if several else {'': path}
    states = {text: place.with_suffix('.partial') for text, place in places.items()}
    resumed = any(place.exists() for place in states.values())
    about = {'model': loaded.about, **choice, 'dataset': loaded.dataset, 'attacks': names}
    start = Start(path.with_suffix(''), path.stem, about)
    opened = contextlib.closing(Sinks(makes if processes.is_first() else {}, start))
    with saved.alone(state), opened as sink:
        kept = resumable(f'what was finished is kept in {state}')
        with kept, outputs.point_beside(path), profiling.wanted(profile) as profiled:
            shared = {'indices': loaded.indices, 'attacks': given, 'progress': True, **others, **settings}
            shared |= {'targets': aims, 'return_images': save_images is not None}
            subjects = loaded.classifier, loaded.images, loaded.labels
            results: dict[str, Result] = {}
            if radii:
                swept = sweep(*subjects, eps=radii, norm=loaded.threat.norm, state_path=state, **shared)
                results = {
                    result.threat.slug: result for result in swept.results if isinstance(result, Result)
                }
            for text, threat in {} if radii else each.items():
                place = states[text]
                results[text] = evaluate(
                    *subjects, eps=threat.eps, norm=threat.norm, state_path=place, **shared
                )
        files = {'': path}
        if several or radii:
            files = paths(path, [(text, result.threat) for text, result in results.items()])
        for text, result in results.items():
            if result.gradient_of is not None:
                result = dataclasses.replace(result, gradient_of={'model': gradient_of, **result.gradient_of})
            if save_images == 'png' and result.images is not None:
                if processes.is_first():
                    eight_bit.write_png(files[text], result.images, result.indices)
                result = dataclasses.replace(result, images=None)
            results[text] = loaded.named(result)
        whole: Result | Union | Sweep
        whole = Sweep(tuple(results.values())) if radii else Union(results) if several else results['']
        if processes.is_first():
            whole.save(path)
            for file in {path, *files.values()}:
                for stem in (file.stem, f'{file.stem}_images'):
                    remove_leftovers(path.parent, stem)
            sink.write(loaded.about.get('step', 0), numbers_of(results))
            inner = sorted(state.glob('*/')) if radii else []
            for place in (*inner, *states.values(), state):
                saved.remove(place)
    if processes.is_first():
        show(whole.table())
        for result in results.values():
            if not resumed and not radii and (speed := attained_speed(result, loaded.classifier, shape)):
                print(speed)
        if profiled:
            print(profiled.report())
        print(f'written to {path}')
    return whole


def numbers_of(results: Mapping[str, Result]) -> dict[str, float]:
    """The accuracies of results by threat model ('' for the only one) under the names that sinks get."""
    return {
        '/'.join(filter(None, (text, name, 'accuracy'))): accuracy
        for text, result in results.items()
        for name, accuracy in result.accuracy.items()
    }


def read_targets(path: str) -> np.ndarray:
    """The classes in a file of --targets.

    Raises:
        InputError: It cannot be read, or is no array.
    """
    try:
        with open(check_regular(path), 'rb') as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f'--targets={path} cannot be read ({error}): give one of {", ".join(TARGETS)}, or a file that '
            'np.save wrote, one class for each image'
        ) from error


def attained_speed(result: Result, classifier: Any, image_shape: tuple[int, ...]) -> str:
    """What the attacks of a result reached, compilation included; '' if there were none that can be counted.

    Forward passes and the gradients of images count; custom attacks that are callables do not, nor
    do transfer and the passes that decide.
    """
    passes, seconds = 0.0, 0.0
    for name, record in result.attacks.items():
        if any('forward_passes' not in stage for stage in record.stages) or record.reached is not None:
            continue  # of transfer and of several targets, whose passes are not counted
        if record.stages:
            passes += sum(stage['forward_passes'] + stage['backward_passes'] for stage in record.stages)
        elif record.steps is not None:
            passes += 2.0 * record.steps * (record.eot_samples or 1) * record.runs.size
        else:
            continue
        seconds += result.timing['parts'][name]
    if not seconds:
        return ''
    key = jax.eval_shape(lambda: jax.random.split(key_of(0), 1))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    one = flops.count(classifier_of(classifier).function, image, key)
    meter = Meter(one, result.precision['search'], jax.local_device_count())
    return 'attacks: ' + meter.describe(passes / seconds) + ', compilation included'
