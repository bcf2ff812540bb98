"""Measures the accuracy of a classifier on clean images and under attacks.

    python evaluate.py --workdir=WORKDIR --attacks=pgd,cw,dlr,sipgd
    python evaluate.py --workdir=WORKDIR --attacks=autoattack
    python evaluate.py --model=my_model.py:build --dataset=cifar10 --eps=8/255 --output=result.json
    python evaluate.py --torch_checkpoint=trades.pt --arch=wrn_34_10 --normalise=none --dataset=cifar10
    python evaluate.py --workdir=WORKDIR --audit
    python evaluate.py --model=my_model.py:build --dataset=cifar10 --gradient_of=my_model.py:undefended
    python evaluate.py --workdir=WORKDIR --attacks=pgd,my_attacks.py:attack --transfer_from=WORKDIR2
    python evaluate.py compare a.json b.json

Prints a table and writes one JSON file with the flags of each image beside it. Exit status: 0 finished, 2 a
wrong flag or value, or a classifier that cannot be judged; with --audit 1 if a check failed. The same command
after an interruption goes on where it was. Compiled programs are kept for the next command
(SI_JAX_COMPILATION_CACHE=FOLDER, or off). `--audit` checks whether the accuracy under one attack can be
trusted: a verdict in words for each check, a JSON file and a picture of the curves. `compare` holds two
results against each other, image by image (compare --help).
"""

import argparse
import sys
from typing import Any

from si_jax import compilation_cache
from si_jax.auditing.command import run_audit
from si_jax.errors import InputError
from si_jax.evaluation.command import fraction, run, run_compare
from si_jax.evaluation.compare import RESAMPLES

ATTACKS = 'pgd,cw,dlr,sipgd'


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--workdir', help='folder of a run of train.py')
    flags.add_argument(
        '--checkpoint', default='best', help='best, last or a step of that run (default: best)'
    )
    flags.add_argument(
        '--model',
        metavar='FILE.py:FUNCTION',
        help='a function that returns a classifier or nn.Module, instead',
    )
    flags.add_argument(
        '--torch_checkpoint', metavar='FILE', help='PyTorch weights (torch.save or safetensors), instead'
    )
    flags.add_argument(
        '--arch', help='of that file: resnet18, resnet50, preact_resnet18, wrn_<depth>_<widen>, small_cnn'
    )
    flags.add_argument(
        '--variant', help='of that architecture, where two have the same names (the error lists them)'
    )
    flags.add_argument(
        '--normalise', help='what its authors do to images: none, cifar10 or 2x-1 (default: none)'
    )
    flags.add_argument(
        '--stated_clean',
        type=fraction,
        metavar='FRACTION',
        help='the clean accuracy that its authors state: the result warns if this one is far below',
    )
    flags.add_argument(
        '--dataset', help="cifar10, cifar100, svhn or digits (default: the run's); the test split"
    )
    flags.add_argument('--data_dir', help='folder with <name>_test.npz, or data_dir of tensorflow-datasets')
    flags.add_argument('--num_examples', type=int, metavar='N', help='only the first N images')
    flags.add_argument(
        '--eps', type=fraction, help="radius in the pixel range [0, 1] (default: the run's, or 8/255)"
    )
    flags.add_argument('--norm', help="linf or l2, not l1 (default: the run's, or linf)")
    flags.add_argument(
        '--attacks',
        help=f'names, and FILE.py:FUNCTION for attacks of your own (default: {ATTACKS}); with --audit one of '
        'the PGD family: pgd',
    )
    flags.add_argument(
        '--gradient_of',
        metavar='FILE.py:FUNCTION',
        help='a function that returns the classifier whose derivative attacks take (BPDA)',
    )
    flags.add_argument(
        '--transfer_from',
        metavar='A,B',
        help='other models, FILE.py:FUNCTION or folders of runs: what breaks them, tried on this one',
    )
    flags.add_argument('--steps', type=int, default=20, help='of the PGD family (default: %(default)s)')
    flags.add_argument('--step_size', type=fraction, help='of the PGD family (default: eps / 4)')
    flags.add_argument('--restarts', type=int, help='of the PGD family (default: 1, with --audit 5)')
    flags.add_argument('--seed', type=int, default=0)
    flags.add_argument('--batch_size', type=int, metavar='N', help='images at once (default: by device)')
    flags.add_argument(
        '--eot_samples', type=int, default=1, metavar='N', help='gradients averaged in each step'
    )
    flags.add_argument(
        '--individual', action='store_true', help='each stage of a cascade on all correct images'
    )
    flags.add_argument(
        '--search_precision', help='float32, tf32 or bfloat16, of the search alone (default: by device)'
    )
    flags.add_argument(
        '--logit_scale',
        type=fraction,
        default=1.0,
        metavar='FACTOR',
        help='multiply the logits: the decision stays, what PGD climbs does not (default: 1)',
    )
    flags.add_argument('--output', metavar='FILE.json', help='default: a new file in <workdir>/evaluation')
    flags.add_argument('--save_images', action='store_true', help='write the adversarial images too')
    audit = flags.add_argument_group('audit', 'by default on the first 200 images')
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


def compare_parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog='evaluate.py compare',
        description='Paired difference between two results of evaluate.py: McNemar and bootstrap by image, '
        'and the spread over seeds. Refuses results that were not measured alike.',
    )
    flags.add_argument('a', metavar='A.json', help='a result; several, one a seed, with commas between')
    flags.add_argument('b', metavar='B.json', help='the other one; as many, with the same seeds')
    flags.add_argument('--output', metavar='FILE.json', help='write the comparison too')
    flags.add_argument(
        '--resamples',
        type=int,
        default=RESAMPLES,
        metavar='N',
        help='of the bootstrap (default: %(default)s)',
    )
    flags.add_argument('--seed', type=int, default=0, help='of the bootstrap')
    return flags


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ['compare']:
            run_compare(**vars(compare_parser().parse_args(argv[1:])))
            return 0
        arguments = vars(parser().parse_args(argv))
        audited = arguments.pop('audit')
        settings = {name: arguments.pop(f'audit_{name}') for name in ('eps', 'steps', 'queries', 'planted')}
        if audited:
            return _audit(arguments, settings)
        for name, value in settings.items():
            if value is not None:
                raise InputError(f'--audit_{name} belongs to --audit: leave it out, or give that one')
        compilation_cache.enable()
        attacks, restarts = arguments.pop('attacks'), arguments.pop('restarts')
        run(
            attacks=ATTACKS if attacks is None else attacks,
            restarts=1 if restarts is None else restarts,
            **arguments,
        )
    except InputError as error:
        print(f'evaluate.py: {error}', file=sys.stderr)
        return 2
    return 0


def _audit(arguments: dict[str, Any], settings: dict[str, Any]) -> int:
    for name in ('individual', 'search_precision', 'save_images', 'gradient_of'):
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
    return int(run_audit(settings=settings, **arguments).verdict == 'fail')


if __name__ == '__main__':
    sys.exit(main())
