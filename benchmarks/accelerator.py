"""What one accelerator does, in two commands of five minutes: `make accelerator`.

    python -m benchmarks.accelerator speed                       # products, training steps, XLA's options
    python -m benchmarks.accelerator training --data_dir=FOLDER  # two short trainings, evaluated
    python -m benchmarks.accelerator speed --rehearse            # the same on a CPU, tiny

Each is a list of stages. A command says first what its stages are expected to take, leaves out a stage that
does not fit `--minutes` any more, and writes `--output` after each: the same command goes on with those that
are missing. Expected seconds are guesses, for the order and the limit; what a stage took stands beside its
figures. PyTorch is measured beside ours where it is installed, the public AutoAttack where `--reference`
names a checkout of fra31/auto-attack.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import si_jax
from benchmarks.spread import spread
from si_jax import data, defenses
from si_jax.errors import InputError
from si_jax.interop.export import export
from si_jax.runtime import compilation_cache
from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json
from si_jax.training import recipes
from si_jax.training.loop import run as train
from si_jax.training.timing import synthetic, timed

TERA = 1e12
# Height and channels of the 3 x 3 convolutions of ResNet-18's four stages.
SHAPES = ((32, 64), (16, 128), (8, 256), (4, 512))
METHODS = ('trades', 'tradessi')
# What one step of TRADES is measured with, in a process of its own each.
OPTIONS = {
    'command buffers on': '',
    'command buffers off': '--xla_gpu_enable_command_buffer=',
    'runtime fusion on': '--xla_gpu_use_runtime_fusion=true',
}


class Scale(NamedTuple):
    """How large the work is; `REHEARSAL` is for a CPU."""

    arch: str = 'resnet18'
    batches: tuple[int, ...] = (256, 128, 512)
    products: tuple[int, ...] = (128, 256, 512, 1024)
    channels: int = 64  # of the first stage of the convolutions
    steps: int = 10
    turns: int = 10
    epochs: int = 10
    limit: int = 0
    attacks: tuple[tuple[str, int], ...] = (('fast', 10_000), ('autoattack', 500))  # with numbers of images
    dtype: str = 'bfloat16'


REHEARSAL = Scale('small_cnn', (8,), (2,), 2, 1, 2, 1, 64, (('pgd', 16), ('apgd-ce', 16)), 'float32')


class Stage(NamedTuple):
    """A measurement: its name, about how many seconds it takes on an H200, and what makes its figures."""

    name: str
    seconds: float
    measure: Callable[[], dict[str, Any]]


def speed(scale: Scale, rehearse: bool) -> list[Stage]:
    """The stages of the first command, the most wanted first."""
    stages = [Stage('versions', 1, lambda: {'devices': [device.device_kind for device in jax.devices()]})]
    stages += [
        Stage(f'3 x 3 convolutions, {name}', 40, functools.partial(products, scale, dtype, precision))
        for name, dtype, precision in (('bf16', 'bfloat16', 'default'), ('tf32', 'float32', 'tensorfloat32'))
    ]
    sides = {'si_jax': step_of_ours, 'PyTorch': step_of_torch}
    stages += [
        Stage(f'step of {method}, batch {batch}, {side}', 45, functools.partial(step, scale, method, batch))
        for batch in scale.batches
        for method in METHODS
        for side, step in sides.items()
        if side != 'PyTorch' or importlib.util.find_spec('torch')
    ]
    stages += [
        Stage(name, 60, functools.partial(child, option, rehearse)) for name, option in OPTIONS.items()
    ]
    return stages


def products(scale: Scale, dtype: str, precision: str) -> dict[str, Any]:
    """TFLOP/s of the convolutions of ResNet-18, forward, by shape and batch."""
    found = {}
    for side, channels in SHAPES:
        channels = channels * scale.channels // 64
        for batch in scale.products:
            images = jnp.ones((batch, side, side, channels), dtype)
            kernel = jnp.ones((3, 3, channels, channels), dtype)

            @jax.jit
            def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
                for _ in range(8):  # one behind the other, so that starting them costs little
                    images = jax.lax.conv_general_dilated(
                        images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
                    )
                return images

            with jax.default_matmul_precision(precision):
                jax.block_until_ready(convolve(images, kernel))
                taken = []
                for _ in range(scale.turns):
                    began = time.perf_counter()
                    jax.block_until_ready(convolve(images, kernel))
                    taken.append(time.perf_counter() - began)
            flop = 8 * 2 * 9 * channels**2 * side**2 * batch
            rates = spread([flop / TERA / one for one in taken])
            found[f'{channels} channels, {side} x {side}, batch {batch}'] = rates
    return {'TFLOP/s': found}


def config_of(scale: Scale, method: str) -> Any:
    """TRADES or TRADES-SI with the network of the scale, in its precision."""
    config = recipes.paper('trades', si=method.endswith('si'), dataset='cifar10', arch=scale.arch)
    config.model.dtype, config.attack.steps = scale.dtype, scale.steps
    return config


def step_of_ours(scale: Scale, method: str, batch: int) -> dict[str, Any]:
    """Images a second of the compiled step, and the seconds of compiling it."""
    config = config_of(scale, method)
    config.batch_size = batch
    began = time.perf_counter()
    call = timed(synthetic(config, scale.steps, defenses.from_config(config.defense)))
    compiling = time.perf_counter() - began
    return {
        'images_per_second': spread([batch / call() for _ in range(scale.turns)]),
        'compile_seconds': compiling,
    }


def step_of_torch(scale: Scale, method: str, batch: int) -> dict[str, Any]:
    """The same step in PyTorch: compiled, channels last, in bfloat16 by autocast on a GPU."""
    import torch

    from benchmarks import peers, torch_steps

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net = peers.network(scale.arch, None).to(device)
    rng = np.random.default_rng(0)
    images = rng.random((batch, 32, 32, 3), np.float32)
    x, y = (one.to(device) for one in peers.tensors(images, rng.integers(0, 10, batch)))
    began = time.perf_counter()
    # On the CPU its compiler needs a C++ compiler, and a rehearsal minutes.
    if device == 'cuda':
        net.forward, net.features = torch.compile(net.forward), torch.compile(net.features)
    call = torch_steps.stepper(method, net, x, y, scale.steps)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            call()
        if device == 'cuda':
            torch.cuda.synchronize()

    for _ in range(2):
        step()
    compiling, taken = time.perf_counter() - began, []
    for _ in range(scale.turns):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return {
        'images_per_second': spread([batch / one for one in taken]),
        'compile_seconds': compiling,
        'device': device,
    }


def child(option: str, rehearse: bool) -> dict[str, Any]:
    """A step of TRADES in a process of its own, since XLA reads its options once.

    An option that this version of XLA does not know is a finding too, and says so.
    """
    known = os.environ | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {option}'.strip()}
    command = [sys.executable, '-m', 'benchmarks.accelerator', 'step', *['--rehearse'] * rehearse]
    if rehearse:  # a CPU knows no options of GPUs
        known = dict(os.environ)
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
    if done.returncode:
        return {'option': option, 'error': done.stderr.strip().splitlines()[-1:]}
    return {'option': option, **json.loads(done.stdout.splitlines()[-1])}


def training(scale: Scale, data_dir: str | None, workdirs: Path, reference: str | None) -> list[Stage]:
    """The stages of the second command."""
    stages = []
    for method in METHODS:
        folder = workdirs / method
        on = functools.partial(evaluated, folder, data_dir)
        stages += [
            Stage(f'training of {method}', 90, functools.partial(trained, scale, method, data_dir, folder)),
            *(
                Stage(f'{attack} on {method}', 45, functools.partial(on, attack, count))
                for attack, count in scale.attacks
            ),
        ]
    if reference is not None:
        public = functools.partial(of_the_reference, workdirs / METHODS[0], data_dir, reference)
        stages.append(Stage('public AutoAttack on trades', 180, lambda: public(scale.attacks[-1][1])))
    return stages


def trained(scale: Scale, method: str, data_dir: str | None, folder: Path) -> dict[str, Any]:
    """A short training with a cosine schedule; its last line of metrics. It goes on where it was stopped."""
    config = config_of(scale, method)
    config.epochs, config.data.dir, config.data.limit = scale.epochs, data_dir, scale.limit
    config.schedule.kind, config.schedule.peak = 'cosine', 0.1
    config.data.validation = min(1000, scale.limit or 1000)
    config.evaluation.every_epochs = scale.epochs
    if scale.limit:
        config.batch_size, config.logging.tensorboard = 16, False
        config.data.validation, config.evaluation.steps = 16, 1
    resumed = (folder / 'config.json').exists()  # then the stage took longer than its last command
    with contextlib.redirect_stdout(sys.stderr):
        train(config, str(folder))
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    metrics = [line for line in lines if 'epoch' in line]
    return {'epochs': scale.epochs, 'resumed': resumed, 'metrics': metrics}


def of_test(data_dir: str | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    test = data.load('cifar10', 'test', data_dir)
    return test.images[:count].astype(np.float32) / test.scale, test.labels[:count]


def evaluated(folder: Path, data_dir: str | None, attack: str, count: int) -> dict[str, Any]:
    """Accuracies of a training's last checkpoint on the first test images, and the seconds they took."""
    images, labels = of_test(data_dir, count)
    model = si_jax.load_model(folder, checkpoint='last')
    eps = 8 / 255
    result = si_jax.evaluate(model, images, labels, attacks=attack, eps=eps)
    return {'images': len(labels), 'accuracy': result.accuracy, 'seconds': result.timing['seconds'],
            'warnings': result.warnings}  # fmt: skip


def of_the_reference(folder: Path, data_dir: str | None, reference: str, count: int) -> dict[str, Any]:
    """The public code on the same network, exported to PyTorch, and the same images."""
    import torch

    sys.path.insert(0, reference)
    import autoattack

    images, labels = of_test(data_dir, count)
    loaded = si_jax.load_model(folder, checkpoint='last')
    variables, config = loaded.variables, loaded.config
    path = export(variables, folder / 'export', arch=config.model.arch)
    spec = importlib.util.spec_from_file_location('exported', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net = module.build().to(device)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
    y = torch.from_numpy(labels).long().to(device)
    attack = autoattack.AutoAttack(net, norm='Linf', eps=8 / 255, seed=0, device=device, verbose=False)
    began = time.perf_counter()
    found = attack.run_standard_evaluation(x, y, bs=count)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        accuracy = float((net(found).argmax(1) == y).float().mean())
    return {'images': count, 'accuracy': accuracy, 'seconds': seconds}


def run_stages(stages: list[Stage], path: Path, minutes: float, about: dict[str, Any]) -> list[str]:
    """Runs what is missing and fits, writing the file after each stage; the names of those left out."""
    known = json.loads(path.read_text()) if path.exists() else {'stages': {}}
    done = known['stages']
    if done and known.get('scale') != about['scale']:
        raise InputError(f'{path} holds stages of another scale: name another --output, or remove it')
    known |= about
    wanted = [stage for stage in stages if stage.name not in done]
    print(f'{len(done)} of {len(stages)} stages are in {path}; about {sum(s.seconds for s in wanted):.0f} s:')
    for stage in wanted:
        print(f'  {stage.seconds:>5.0f} s  {stage.name}')
    began, left = time.perf_counter(), []
    for stage in wanted:
        if time.perf_counter() - began + stage.seconds > 60 * minutes:
            left.append(stage.name)
            continue
        start = time.perf_counter()
        figures = stage.measure()
        done[stage.name] = {'took': round(time.perf_counter() - start, 1), **figures}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
        print(f'{stage.name}: {done[stage.name]["took"]} s', flush=True)
    if left:
        names = ', '.join(left)
        print(f'left out, as they do not fit {minutes:g} minutes: {names}; the same command goes on')
    return left


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        'benchmarks.accelerator', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument('what', choices=('speed', 'training', 'step'))
    flags.add_argument('--minutes', type=float, default=5, help='no stage that does not fit (default: 5)')
    flags.add_argument('--output', type=Path, help='default: results/accelerator/WHAT.json')
    flags.add_argument('--data_dir', help='npz files of CIFAR-10, see benchmarks/mosaics.py')
    flags.add_argument('--workdirs', type=Path, default=Path('runs/accelerator'), help='of the trainings')
    flags.add_argument('--reference', help='a checkout of fra31/auto-attack')
    flags.add_argument('--rehearse', action='store_true', help='tiny, for a CPU')
    return flags


def main(argv: list[str] | None = None) -> int:
    chosen = parser().parse_args(argv)
    scale = REHEARSAL if chosen.rehearse else Scale()
    if not chosen.rehearse and jax.default_backend() == 'cpu':
        print('there is no accelerator: --rehearse runs the stages on the CPU, tiny', file=sys.stderr)
        return 2
    compilation_cache.enable()
    if chosen.what == 'step':
        print(json.dumps(step_of_ours(scale, METHODS[0], scale.batches[0])))
        return 0
    if chosen.what == 'speed':
        stages = speed(scale, chosen.rehearse)
    else:
        stages = training(scale, chosen.data_dir, chosen.workdirs, chosen.reference)
    name = f'{chosen.what}-rehearsal' if chosen.rehearse else chosen.what
    output = chosen.output or Path(f'results/accelerator/{name}.json')
    # A list, as JSON has it, so that the scale read back compares equal.
    about = {'scale': json.loads(json.dumps(scale._asdict())), 'environment': environment()}
    try:
        run_stages(stages, output, chosen.minutes, about)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
