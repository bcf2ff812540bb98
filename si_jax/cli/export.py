"""The command that writes a trained network for others: `python -m si_jax.cli.export`."""

import pathlib
import sys
from collections.abc import Sequence

from si_jax.cli import outputs
from si_jax.errors import InputError
from si_jax.interop.export import export
from si_jax.interop.torch_files import FORMATS
from si_jax.runtime import terminal
from si_jax.runtime.terminal import Flag
from si_jax.storage import hub
from si_jax.training.recipes import plain
from si_jax.zoo import robustbench, weights
from si_jax.zoo.load import is_file_or_zoo, load_model

JAX, ROBUSTBENCH = 'jax', 'robustbench'


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process unless given."""
    parser = terminal.parser(
        'python -m si_jax.cli.export',
        'python -m si_jax.cli.export --workdir=FOLDER [flags]',
        """
Writes a trained network as a PyTorch module with its weights: model.py, whose
build() returns it, and the weights beside it. Neither needs this project.
--format=jax writes one file for this library instead, and --format=robustbench
what that leaderboard asks for, with a README of what is left to do.

examples:
  the best checkpoint of a run, into WORKDIR/export
    python -m si_jax.cli.export --workdir=WORKDIR
  the last one, as safetensors, for a submission
    python -m si_jax.cli.export --workdir=WORKDIR --checkpoint=last \\
        --format=safetensors --output=submission
  one safetensors file with its config, for load_model, init_from and the Hub
    python -m si_jax.cli.export --workdir=WORKDIR --format=jax
  a submission to RobustBench, from a result of --attacks=autoattack
    python evaluate.py --workdir=WORKDIR --attacks=autoattack --save_images
    python -m si_jax.cli.export --workdir=WORKDIR --format=robustbench \\
        --result=WORKDIR/evaluation/RESULT.json --output=submission
  what was written, evaluated as any other file
    python evaluate.py --model=submission/model.py:build --dataset=cifar10
""",
        terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    table = {
        'workdir': Flag('FOLDER', 'of a run of train.py', required=True),
        'checkpoint': Flag('WHICH', 'best, last or a step', default='best'),
        'output': Flag('FOLDER', 'where to write (default: WORKDIR/export)'),
        'result': Flag('FILE.json', 'of --format=robustbench: under AutoAttack, with its images'),
    }
    terminal.add(parser, table)
    parser.add_argument(
        '--format',
        default='torch',
        choices=[*FORMATS, JAX, ROBUSTBENCH],
        help='of the weights, or of the whole (default: %(default)s)',
    )
    flags = parser.parse_args(arguments)

    def command() -> None:
        # What is no workdir, a network of the zoo or a file of weights, gets no folder of its name.
        of_run = pathlib.Path() if is_file_or_zoo(flags.workdir) else pathlib.Path(flags.workdir)
        folder = pathlib.Path(flags.output or of_run / 'export')
        of_torch = ['model.py', f'weights{FORMATS.get(flags.format, "")}']
        names = {JAX: [hub.DEFAULT_FILE], ROBUSTBENCH: robustbench.FILES}.get(flags.format, of_torch)
        if (flags.format == ROBUSTBENCH) != (flags.result is not None):
            raise InputError(
                f'--format={ROBUSTBENCH} goes with --result=FILE.json, what evaluate.py --attacks=autoattack '
                '--save_images wrote: give both, or neither'
            )
        outputs.check('--output=FOLDER', [folder / name for name in names], [flags.workdir, flags.result])
        checkpoint = int(flags.checkpoint) if flags.checkpoint.isdigit() else flags.checkpoint
        loaded = load_model(flags.workdir, checkpoint)
        if flags.format == ROBUSTBENCH:
            readme = robustbench.bundle(loaded, robustbench.evidence(flags.result, loaded), folder)
            print(f'{readme}: what is left to do; the claim, the network and the images lie beside it')
            return
        if flags.format == JAX:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / hub.DEFAULT_FILE
            weights.write(path, plain(loaded.config), loaded.step, loaded.variables, loaded.init_from)
            print(f'{path}: load_model reads it, of training step {loaded.step}')
            return
        model = loaded.config.model
        path = export(
            loaded.variables,
            folder,
            arch=model.arch,
            variant=model.variant or None,
            normalise=model.normalise,
            activation=model.activation,
            format=flags.format,
        )
        print(f'{path}: build() returns the network of training step {loaded.step}, weights beside it')

    if status := terminal.run(parser.prog, command):
        sys.exit(status)


if __name__ == '__main__':
    main()
