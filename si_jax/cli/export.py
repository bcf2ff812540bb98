"""The command that writes a trained network as a PyTorch module: `python -m si_jax.cli.export`."""

import pathlib
from collections.abc import Sequence

from si_jax.errors import InputError
from si_jax.interop.export import export
from si_jax.interop.torch_files import FORMATS
from si_jax.runtime import terminal
from si_jax.zoo.load import load_model


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process unless given."""
    parser = terminal.parser(
        'python -m si_jax.cli.export',
        'python -m si_jax.cli.export --workdir=FOLDER [flags]',
        """
Writes a trained network as a PyTorch module with its weights: model.py, whose
build() returns it, and the weights beside it. Neither needs this project.

examples:
  the best checkpoint of a run, into WORKDIR/export
    python -m si_jax.cli.export --workdir=WORKDIR
  the last one, as safetensors, for a submission
    python -m si_jax.cli.export --workdir=WORKDIR --checkpoint=last \\
        --format=safetensors --output=submission
  what was written, evaluated as any other file
    python evaluate.py --model=submission/model.py:build --dataset=cifar10
""",
        terminal.exit_status('a fault of this library, with a traceback', 'nothing is kept'),
    )
    parser.add_argument('--workdir', required=True, metavar='FOLDER', help='of a run of train.py')
    parser.add_argument(
        '--checkpoint', default='best', metavar='WHICH', help='best, last or a step (default: %(default)s)'
    )
    parser.add_argument(
        '--format', default='torch', choices=list(FORMATS), help='of the weights (default: %(default)s)'
    )
    parser.add_argument('--output', metavar='FOLDER', help='where to write (default: WORKDIR/export)')
    flags = parser.parse_args(arguments)
    checkpoint = int(flags.checkpoint) if flags.checkpoint.isdigit() else flags.checkpoint
    try:
        loaded = load_model(flags.workdir, checkpoint)
        path = export(
            loaded.variables,
            flags.output or pathlib.Path(flags.workdir) / 'export',
            arch=loaded.config.model.arch,
            variant=loaded.config.model.variant or None,
            normalise=loaded.config.model.normalise,
            format=flags.format,
        )
    except InputError as error:
        parser.exit(terminal.BAD_INPUT, f'{parser.prog}: {error}\n')
    print(f'{path}: build() returns the network of training step {loaded.step}, weights beside it')


if __name__ == '__main__':
    main()
