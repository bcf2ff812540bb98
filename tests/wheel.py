"""sdist and wheel, installed into an empty environment and used from another folder: `make check-wheel`.

It needs a network and some minutes. What pip installs, how long that takes and how much room it needs is
printed. `--torch` installs the extra too, and attacks a convolutional network of PyTorch under AutoAttack by
the README's lines.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERBS = ('train', 'evaluate', 'audit', 'compare', 'report', 'plan', 'launch', 'export', 'zoo')
FIRST = ('--config=quickstart', '--config.epochs=1', '--config.data.limit=128', '--workdir=runs/first')
COMMANDS = (
    ('train', *FIRST),
    ('evaluate', '--workdir=runs/first', '--attacks=pgd,sipgd', '--num_examples=50'),
    ('evaluate', '--model=zoo:digits-at', '--attacks=apgd-ce', '--num_examples=20'),
    ('report', '--workdirs=runs/first', '--out=report'),
    ('zoo', 'verify'),
)
# What the README's programs take for granted; a function stands for the PyTorch module.
BEFORE = """
import jax, jax.numpy as jnp, numpy as np
images, labels = np.random.default_rng(0).uniform(size=(8, 4, 4, 1)).astype('float32'), np.arange(8) % 3
kernel = jax.random.normal(jax.random.key(0), (16, 3))
def my_network(images):
    return images.reshape(len(images), -1) @ kernel
module = my_network
"""
CHECKS = """
import si_jax, sys
from pathlib import Path
assert dir(si_jax) == sorted(si_jax.__all__), dir(si_jax)
assert 'site-packages' in si_jax.__file__ and (Path(si_jax.__file__).parent / 'py.typed').exists()
assert {'torch', 'tensorflow', 'tensorflow_datasets', 'matplotlib'}.isdisjoint(sys.modules)
print('version', si_jax.__version__)
"""
MISSING = {
    ('evaluate', '--torch_checkpoint=w.pt', '--arch=resnet18', '--dataset=digits'): 'si_jax[torch]',
    ('train', '--config=tradessi_cifar10'): 'si_jax[tfds]',
    ('report', '--figure=1'): 'si_jax[plots]',
}
# What the README's PyTorch program takes for granted, as it says: a small convolutional network, and tensors.
BEFORE_TORCH = """
import torch
from torch import nn
module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
images = torch.rand(16, 3, 8, 8)
labels = module.eval()(images).argmax(1)
"""


def run(*command: object, folder: Path, failing: bool = False) -> str:
    """What a command prints; it must succeed, or fail with status 2 if that is what is looked for."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    if done.returncode != (2 if failing else 0):
        sys.exit(f'{command} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}')
    return done.stdout + done.stderr


def environment(folder: Path, *packages: object) -> tuple[Path, str]:
    """The scripts of a new environment with these packages, and what installing them took."""
    began = time.monotonic()
    venv.create(folder, with_pip=True)
    run(folder / 'bin' / 'pip', 'install', '--no-cache-dir', *packages, folder=ROOT)
    size = sum(path.lstat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6
    return folder / 'bin', f'{time.monotonic() - began:.0f} s, {size:.0f} MB'


def attack_with_torch(folder: Path, wheel: Path, requirement: str, program: str) -> None:
    """Installs the wheel and PyTorch into an empty environment, and runs the README's program there."""
    scripts, taken = environment(folder / 'torch', requirement, f'{wheel}[torch]')
    print(f'with torch: {taken}')
    began = time.monotonic()
    print(run(scripts / 'python', '-c', BEFORE_TORCH + program, folder=folder), end='')
    print(f'evaluated: {time.monotonic() - began:.0f} s')


def main(torch: str | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tools, _ = environment(folder / 'tools', 'build', 'twine')
        # The wheel is built from the sdist, so that both are whole.
        run(tools / 'python', '-m', 'build', '--outdir', folder / 'dist', ROOT, folder=folder)
        built = sorted((folder / 'dist').iterdir())
        print(run(tools / 'twine', 'check', '--strict', *built, folder=folder), end='')
        (wheel,) = (path for path in built if path.suffix == '.whl')
        print(*(f'{path.name}: {path.stat().st_size / 1e6:.2f} MB' for path in built), sep='\n')

        scripts, taken = environment(folder / 'empty', wheel)
        print(f'installed: {taken}')
        work = folder / 'elsewhere'
        work.mkdir()
        (work / 'w.pt').touch()  # a file of weights that needs PyTorch to be read
        python, command = scripts / 'python', scripts / 'si-jax'
        print(run(python, '-c', CHECKS, folder=work), end='')
        for verb in VERBS:
            run(command, verb, '--help', folder=work)
            run(python, '-m', 'si_jax', verb, '--help', folder=work)
        for arguments in COMMANDS:
            run(command, *arguments, folder=work)
        for arguments, extra in MISSING.items():
            said = run(command, *arguments, folder=work, failing=True)
            assert f'pip install "{extra}"' in said, said
        programs = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
        for program in programs:
            run(python, '-c', BEFORE + program, folder=work)
        if torch:
            attack_with_torch(folder, wheel, torch, programs[0])
    print('the wheel works')


if __name__ == '__main__':
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument(
        '--torch',
        nargs='?',
        const='torch',
        metavar='REQUIREMENT',
        help='with the extra [torch], gigabytes on Linux; or with this PyTorch, such as torch==2.13.0+cpu',
    )
    main(flags.parse_args().torch)
