"""The command that writes a trained network as a PyTorch module: `python -m si_jax.cli.export`."""

import pathlib
import sys
from collections.abc import Sequence

from si_jax.cli import outputs
from si_jax.interop.export import export
from si_jax.interop.torch_files import FORMATS
from si_jax.runtime import terminal
from si_jax.runtime.terminal import Flag
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
    table = {
        'workdir': Flag('FOLDER', 'of a run of train.py', required=True),
        'checkpoint': Flag('WHICH', 'best, last or a step', default='best'),
        'output': Flag('FOLDER', 'where to write (default: WORKDIR/export)'),
    }
    terminal.add(parser, table)
    parser.add_argument(
        '--format', default='torch', choices=list(FORMATS), help='of the weights (default: %(default)s)'
    )
    flags = parser.parse_args(arguments)

    def command() -> None:
        folder = pathlib.Path(flags.output or pathlib.Path(flags.workdir) / 'export')
        files = [folder / 'model.py', folder / f'weights{FORMATS[flags.format]}']
        outputs.check('--output=FOLDER', files, [flags.workdir])
        checkpoint = int(flags.checkpoint) if flags.checkpoint.isdigit() else flags.checkpoint
        loaded = load_model(flags.workdir, checkpoint)
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
