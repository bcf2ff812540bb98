"""Measures the accuracy of a classifier on clean images and under attacks."""

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from si_jax.attacks.registry import ATTACKS, PRESETS, SEARCHES
from si_jax.cli import compare
from si_jax.cli.audit import run_audit
from si_jax.cli.subject import _classifier, _own_attack, load, sources
from si_jax.cost import flops
from si_jax.cost.mfu import Meter
from si_jax.errors import InputError
from si_jax.evaluation import gates
from si_jax.evaluation import state as saved
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.request import parse_attacks
from si_jax.evaluation.result import Result, check_output
from si_jax.runtime import compilation_cache, processes, profiling, terminal
from si_jax.runtime.terminal import fraction, resumable, show

DEFAULT_ATTACKS = 'pgd,cw,dlr,sipgd'
USAGE = """
  evaluate.py --workdir=FOLDER [flags]
  evaluate.py --model=FILE.py:FUNCTION --dataset=NAME [flags]
  evaluate.py --torch_checkpoint=FILE --arch=NAME --dataset=NAME [flags]
  evaluate.py audit --workdir=FOLDER [flags]
  evaluate.py compare A.json B.json [flags]"""
ABOUT = """
Measures the accuracy of a classifier on clean images and under attacks: prints
a table, and writes one JSON file with the flags of each image beside it.
`audit` checks whether an accuracy can be trusted, as does the flag --audit.
`compare` holds two such results against each other, image by image
(compare --help).

examples:
  a run of train.py, under four attacks of 20 steps
    python evaluate.py --workdir=runs/quickstart/44136fa3
  a network of the zoo under AutoAttack, on the first 100 images
    python evaluate.py --model=zoo:digits-at --attacks=autoattack \\
        --num_examples=100
  your own network: build() in my_model.py returns a function of images
    python evaluate.py --model=my_model.py:build --dataset=cifar10 --eps=8/255
  weights of PyTorch
    python evaluate.py --torch_checkpoint=trades.pt --arch=wrn_34_10 \\
        --normalise=none --dataset=cifar10
  whether the accuracy under PGD can be trusted: a verdict for each check
    python evaluate.py --workdir=WORKDIR --audit
  a defense without a gradient, attacked by way of the network inside it
    python evaluate.py --model=my_model.py:build --dataset=cifar10 \\
        --gradient_of=my_model.py:undefended
  an attack of your own, and what breaks another run
    python evaluate.py --workdir=WORKDIR --attacks=pgd,my_attacks.py:attack \\
        --transfer_from=WORKDIR2
  which of two networks is better, and whether the difference is luck
    python evaluate.py compare a.json b.json
"""
EPILOG = f"""
attacks (docs/attacks.md says what they do):
{terminal.listed('PGD family', ATTACKS)}
{terminal.listed('searches', SEARCHES)}
{terminal.listed('presets', PRESETS)}

The same command, run again after an interruption, goes on where it was.
Compiled programs are kept for the next command (SI_JAX_COMPILATION_CACHE=FOLDER
moves them, off keeps none).

{terminal.exit_status('a check of --audit failed; or an attack left its ball, a fault here', several=True)}
"""


def parser() -> argparse.ArgumentParser:
    flags = terminal.parser('evaluate.py', USAGE, ABOUT, EPILOG)
    what = flags.add_argument_group('what is evaluated: one of the first three')
    what.add_argument('--workdir', metavar='FOLDER', help='of a run of train.py')
    what.add_argument(
        '--model',
        metavar='FILE.py:FUNCTION',
        help='a function that returns a classifier or nn.Module; or zoo:NAME, or a file of weights FILE.npz',
    )
    what.add_argument(
        '--torch_checkpoint', metavar='FILE', help='PyTorch weights, of torch.save or safetensors'
    )
    what.add_argument(
        '--checkpoint',
        default='best',
        metavar='WHICH',
        help='of --workdir: best, last or a step (default: %(default)s)',
    )
    what.add_argument(
        '--arch',
        metavar='NAME',
        help='of --torch_checkpoint: resnet18, resnet50, preact_resnet18, wrn_<depth>_<width>, small_cnn',
    )
    what.add_argument(
        '--variant', metavar='NAME', help='of --arch, where two have the same names (the error lists them)'
    )
    what.add_argument(
        '--normalise',
        metavar='NAME',
        help='what the authors of the checkpoint do to images: none, cifar10 or 2x-1 (default: none)',
    )
    what.add_argument(
        '--stated_clean',
        type=fraction,
        metavar='FRACTION',
        help='the clean accuracy that they state: the result warns if this one is far below',
    )
    what.add_argument(
        '--logit_scale',
        type=fraction,
        default=1.0,
        metavar='FACTOR',
        help='multiply the logits: the decision stays, what PGD climbs does not (default: 1)',
    )

    images = flags.add_argument_group('images and threat model')
    images.add_argument(
        '--dataset',
        metavar='NAME',
        help="the test split of cifar10, cifar100, svhn or digits (default: the run's)",
    )
    images.add_argument(
        '--data_dir',
        metavar='FOLDER',
        help='with <name>_test.npz, or data_dir of tensorflow-datasets (default: its own)',
    )
    images.add_argument(
        '--num_examples',
        type=int,
        metavar='N',
        help='only the first N images (default: all, 200 with --audit)',
    )
    images.add_argument(
        '--eps', type=fraction, help="radius in the pixel range [0, 1] (default: the run's, or 8/255)"
    )
    images.add_argument('--norm', help="linf or l2, not l1 (default: the run's, or linf)")

    attacks = flags.add_argument_group('attacks')
    attacks.add_argument(
        '--attacks',
        metavar='A,B,...',
        help='names from the list below, and FILE.py:FUNCTION for attacks of your own '
        f'(default: {DEFAULT_ATTACKS}; with --audit one of the PGD family: pgd)',
    )
    attacks.add_argument(
        '--steps', type=int, default=20, metavar='N', help='of the PGD family (default: %(default)s)'
    )
    attacks.add_argument(
        '--step_size', type=fraction, metavar='SIZE', help='of the PGD family (default: eps / 4)'
    )
    attacks.add_argument(
        '--restarts', type=int, metavar='N', help='of the PGD family (default: 1, with --audit 5)'
    )
    attacks.add_argument(
        '--eot_samples',
        type=int,
        default=1,
        metavar='N',
        help='gradients averaged in each step, for random defenses (default: %(default)s)',
    )
    attacks.add_argument(
        '--gradient_of',
        metavar='FILE.py:FUNCTION',
        help='a function that returns the classifier whose derivative attacks take (BPDA)',
    )
    attacks.add_argument(
        '--transfer_from',
        metavar='A,B',
        help='other models, FILE.py:FUNCTION or folders of runs: what breaks them, tried on this one',
    )
    attacks.add_argument(
        '--individual', action='store_true', help='each stage of a cascade on all correct images'
    )
    attacks.add_argument(
        '--search_precision',
        metavar='NAME',
        help='float32, tf32 or bfloat16, of the search alone (default: by device)',
    )
    attacks.add_argument(
        '--seed', type=int, default=0, metavar='N', help='of everything random (default: %(default)s)'
    )
    attacks.add_argument(
        '--batch_size', type=int, metavar='N', help='images at once (default: by device); changes no result'
    )

    written = flags.add_argument_group('what is written')
    written.add_argument(
        '--output', metavar='FILE.json', help='default: a new file in <workdir>/evaluation, or evaluation'
    )
    written.add_argument('--save_images', action='store_true', help='the adversarial images too')
    written.add_argument(
        '--profile', metavar='FOLDER', help='a profile of a part of the first attack (docs/performance.md)'
    )

    several = flags.add_argument_group('several processes (docs/pods.md)')
    for name, flag in processes.FLAGS.items():
        several.add_argument(
            f'--{name}', type=flag.type, default=flag.default, metavar=flag.metavar, help=flag.help
        )

    audit = flags.add_argument_group('audit')
    audit.add_argument('--audit', action='store_true', help='check whether the accuracy can be trusted')
    audit.add_argument(
        '--audit_eps', type=fractions, metavar='EPS,...', help='radii (default: 1/4 to 8 times eps)'
    )
    audit.add_argument(
        '--audit_steps', type=numbers, metavar='N,...', help='numbers of steps (default: 10,20,50,100,500)'
    )
    audit.add_argument('--audit_queries', type=int, metavar='N', help='of Square (default: 1000)')
    audit.add_argument(
        '--audit_planted', type=int, metavar='N', help='images of the binarization test (default: 50)'
    )
    return flags


def fractions(text: str) -> list[float]:
    return [fraction(part) for part in text.split(',')]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(',')]


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return processes.run('evaluate.py', functools.partial(start, argv))


def start(argv: list[str]) -> int:
    if argv[:1] == ['compare']:
        compare.run(**vars(compare.parser().parse_args(argv[1:])))
        return terminal.OK
    if argv[:1] == ['audit']:
        argv = ['--audit', *argv[1:]]
    arguments = vars(parser().parse_args(argv))
    processes.start(**{name: arguments.pop(name) for name in processes.FLAGS})
    audited = arguments.pop('audit')
    settings = {name: arguments.pop(f'audit_{name}') for name in ('eps', 'steps', 'queries', 'planted')}
    if audited:
        return audit(arguments, settings)
    for name, value in settings.items():
        if value is not None:
            raise InputError(f'--audit_{name} belongs to --audit: leave it out, or give that one')
    compilation_cache.enable()
    attacks, restarts = arguments.pop('attacks'), arguments.pop('restarts')
    run(
        attacks=DEFAULT_ATTACKS if attacks is None else attacks,
        restarts=1 if restarts is None else restarts,
        **arguments,
    )
    return terminal.OK


def audit(arguments: dict[str, Any], settings: dict[str, Any]) -> int:
    if processes.count() > 1:
        raise InputError(f'--audit is for one process, and there are {processes.count()}: --distributed=off')
    for name in ('individual', 'search_precision', 'save_images', 'gradient_of', 'profile'):
        if arguments.pop(name):
            raise InputError(f'--{name} has no meaning with --audit: leave it out')
    settings = {
        'eps_grid': settings['eps'],
        'steps_grid': settings['steps'],
        'queries': settings['queries'],
        'planted': settings['planted'],
    }
    for name in ('steps', 'step_size', 'restarts', 'seed', 'batch_size', 'eot_samples'):
        settings[name] = arguments.pop(name)
    compilation_cache.enable()
    failed = run_audit(settings=settings, **arguments).verdict == 'fail'
    return terminal.FAILED if failed else terminal.OK


def run(
    *,
    workdir: str | None,
    checkpoint: str,
    model: str | None,
    torch_checkpoint: str | None = None,
    arch: str | None = None,
    variant: str | None = None,
    normalise: str | None = None,
    stated_clean: float | None = None,
    dataset: str | None,
    data_dir: str | None,
    num_examples: int | None,
    eps: float | None,
    norm: str | None,
    attacks: str,
    output: str | None,
    save_images: bool,
    gradient_of: str | None = None,
    transfer_from: str | None = None,
    logit_scale: float = 1.0,
    profile: str | None = None,
    **settings: Any,
) -> Result:
    """Evaluates a network from a run, a Python file or a PyTorch checkpoint; prints and writes the result.

    What is finished is kept in `<output without .json>.partial` until the result is written.

    Args:
        workdir: Folder of a run of train.py: the network, and the defaults of data set, eps and norm.
        checkpoint: 'best', 'last' or a step of that run.
        model: 'path/to/file.py:build' instead, a function without arguments that returns a classifier; or a
            network of the zoo, 'zoo:NAME', or a file of weights, with the defaults of a run.
        torch_checkpoint: A PyTorch file of weights instead, of torch.save or safetensors.
        arch: Its architecture, see `torch_weights.from_torch`.
        variant: Likewise, where two have the same names and shapes.
        normalise: What its authors do to images in [0, 1]; None for 'none'.
        stated_clean: The clean accuracy that its authors state, as a fraction: far below it the result warns.
        dataset: A name in `si_jax.data.SOURCES`; its test split is used.
        data_dir: Where it lies, see `si_jax.data.load`.
        num_examples: The first so many images in original order; all if None.
        eps: Radius of the ball, as a fraction of the pixel range.
        norm: 'linf' or 'l2'.
        attacks: Names, with commas between; 'path/to/file.py:attack' is an attack of the user's own.
        output: The JSON file; None for one in `<workdir>/evaluation`, or in `evaluation` without a workdir.
        save_images: Whether to write the adversarial images beside it.
        gradient_of: 'path/to/file.py:build', the classifier whose derivative attacks take (BPDA).
        transfer_from: Other models, with commas between: 'path/to/file.py:build' or folders of runs.
        logit_scale: A factor on the logits, which changes no decision.
        profile: A folder for a profile of a part of the first attack; None for none.
        settings: steps, step_size, restarts, seed, batch_size, eot_samples, individual and search_precision
            of `si_jax.evaluate`.

    Raises:
        InputError: A value is wrong, before anything is computed, or the network is unfit.
    """
    given = [_own_attack(name) if '.py:' in name else name for name in attacks.split(',')]
    names, _ = parse_attacks(given)
    if output is not None:
        check_output(output)
    loading = functools.partial(
        load,
        workdir=workdir,
        checkpoint=checkpoint,
        model=model,
        torch_checkpoint=torch_checkpoint,
        arch=arch,
        variant=variant,
        normalise=normalise,
        stated_clean=stated_clean,
        dataset=dataset,
        data_dir=data_dir,
        num_examples=num_examples,
        eps=eps,
        norm=norm,
        logit_scale=logit_scale,
    )
    loaded = processes.agree_on_errors(loading)
    shape = loaded.images.shape[1:]
    others: dict[str, Any] = {}
    if gradient_of is not None:
        others['gradient_of'] = _classifier(gradient_of, shape, 'gradient_of')
    if transfer_from is not None:
        others['transfer_from'] = sources(transfer_from, shape)
    threat: dict[str, Any] = {'eps': loaded.threat.eps, 'norm': loaded.threat.norm}
    choice = {'dataset': loaded.dataset, 'count': len(loaded.labels), **threat, **settings}
    choice |= {'gradient_of': gradient_of, 'transfer_from': transfer_from} if others else {}
    choice |= {'logit_scale': logit_scale} if logit_scale != 1 else {}
    digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:8]
    path = Path(output) if output else loaded.folder / f'{loaded.stem}-{"-".join(names)}-{digest}.json'
    if processes.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the attacks

    state = path.with_suffix('.partial')
    resumed = state.exists()
    with resumable(f'what was finished is kept in {state}'), profiling.wanted(profile) as profiled:
        result = evaluate(
            loaded.classifier,
            loaded.images,
            loaded.labels,
            attacks=given,
            **threat,
            return_images=save_images,
            progress=True,
            state_path=state,
            **others,
            **settings,
        )
    if result.gradient_of is not None:
        result = dataclasses.replace(result, gradient_of={'model': gradient_of, **result.gradient_of})
    if loaded.hint:
        clean = result.accuracy['clean'], result.ci95['clean'][1]
        found = gates.clean(*clean, result.dataset['classes'], stated_clean, loaded.hint)
        result = dataclasses.replace(result, warnings=found + result.warnings)
    described = {'name': loaded.dataset, 'split': 'test', **result.dataset}
    result = dataclasses.replace(result, dataset=described, model=loaded.about)
    if processes.is_first():
        result.save(path)
        saved.remove(state)
        show(result.table())
        if not resumed and (speed := attained_speed(result, loaded.classifier, shape)):
            print(speed)
        if profiled:
            print(profiled.report())
        print(f'written to {path}')
    return result


def attained_speed(result: Result, classifier: Any, image_shape: tuple[int, ...]) -> str:
    """What the attacks of a result reached, compilation included; '' if there were none that can be counted.

    Forward passes and the gradients of images count; attacks of the user's own that are callables do not, nor
    do transfer and the passes that decide.
    """
    passes, seconds = 0.0, 0.0
    for name, record in result.attacks.items():
        if any('forward_passes' not in stage for stage in record.stages):
            continue  # of transfer, whose passes are not counted
        if record.stages:
            passes += sum(stage['forward_passes'] + stage['backward_passes'] for stage in record.stages)
        elif record.steps is not None:
            passes += 2.0 * record.steps * record.eot_samples * record.runs.size
        else:
            continue
        seconds += result.timing['parts'][name]
    if not seconds:
        return ''
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    one = flops.count(classifier_of(classifier).function, image, key)
    meter = Meter(one, result.precision['search'], jax.local_device_count())
    return 'attacks: ' + meter.describe(passes / seconds) + ', compilation included'
