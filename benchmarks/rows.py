"""A first look at every method: two epochs of a narrow network on 5,000 CIFAR-10 images, does the loss fall?

    python -m benchmarks.rows --data_dir=FOLDER --output=results/rows.json
    python -m benchmarks.rows --data_dir=FOLDER --output=results/rows.json --rows=gat_cifar10,gatsi_cifar10
    python -m benchmarks.rows --data_dir=FOLDER --output=results/rows.json --rows=at_cifar10 --attack_steps=3
    python -m benchmarks.rows --data_dir=FOLDER --output=results/rows.json --rows=gatsi_cifar10 --peak=0.05

Every row is a config of its own with its schedule squeezed into the run, its network with 8 filters in the
first layer. A learning rate for tens of epochs can be too high for two: `--peak` lowers it. It says whether a
method trains at all, nothing of its accuracy. FreeAT takes each batch eight times, so the last 8 of 5,000
images decide how a pass ends: `--images=5120` fills every batch. Rows that the output file holds already and
that are not named stay. Exit status 1 if a loss did not fall.
"""

import argparse
import importlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from si_jax.runtime.environment import environment
from si_jax.storage.files import write_json
from si_jax.training.loop import run
from si_jax.training.metrics import read_metrics

METHODS = ('at', 'trades', 'alp', 'mart', 'freeat', 'gat', 'rfgsm', 'gradalign')
ROWS = [f'{method}{kind}_cifar10' for method in METHODS for kind in ('', 'si')]
ROWS += [f'{method}he_cifar10' for method in ('at', 'trades', 'alp')]
PASSES, WIDTH, IMAGES = 2, 8, 5000


def measure(
    name: str,
    data_dir: str,
    attack_steps: int | None = None,
    peak: float | None = None,
    images: int = IMAGES,
) -> dict[str, Any]:
    """Trains one config; the mean loss and its terms over each pass through the data."""
    config = importlib.import_module(f'configs.{name}').get_config()
    replays = config.defense.replays
    if attack_steps is not None and config.attack.steps > 1:
        config.attack.steps = attack_steps
    if peak is not None:
        config.schedule.peak = peak
    config.update_from_flattened_dict(
        {
            'data.dir': data_dir,
            'data.limit': images,
            'data.validation': 0,
            'model.width': WIDTH,
            'epochs': PASSES * replays,
            'logging.tensorboard': False,
            'checkpoint.keep_last': 1,
        }
    )
    with tempfile.TemporaryDirectory() as workdir:
        run(config, workdir)
        lines = list(read_metrics(Path(workdir) / 'metrics.jsonl'))
    train = [{key[6:]: line[key] for key in line if key.startswith('train/')} for line in lines]
    passes = [
        {key: sum(epoch[key] for epoch in part) / replays for key in part[0]}
        for part in (train[i * replays : (i + 1) * replays] for i in range(PASSES))
    ]
    speeds = [line['images_per_second'] for line in lines]
    return {
        'arch': config.model.arch,
        'variant': config.model.variant,
        'replays': replays,
        'attack_steps': config.attack.steps,
        'peak': config.schedule.peak,
        'images': images,
        'updates': lines[-1]['step'],
        'passes': passes,
        'loss_fell': all(math.isfinite(each['loss']) for each in passes)
        and passes[-1]['loss'] < passes[0]['loss'],
        'updates_times_images_per_second': speeds[-1],
    }


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--data_dir', required=True, help='npz folder, or that of tensorflow-datasets')
    flags.add_argument('--output', required=True, help='JSON file')
    flags.add_argument('--rows', default=','.join(ROWS), help='configs, with commas between')
    flags.add_argument(
        '--attack_steps', type=int, metavar='N', help="of multi-step methods (default: the config's)"
    )
    flags.add_argument(
        '--peak', type=float, metavar='RATE', help="of the learning rate (default: the config's)"
    )
    flags.add_argument('--images', type=int, default=IMAGES, metavar='N', help='default: %(default)s')
    given = flags.parse_args()
    output = Path(given.output)
    rows = json.loads(output.read_text())['rows'] if output.exists() else {}
    settings = {'images': IMAGES, 'width': WIDTH, 'passes': PASSES}
    for name in given.rows.split(','):
        rows[name] = measure(name, given.data_dir, given.attack_steps, given.peak, given.images)
        write_json(output, {'settings': settings, 'rows': rows, 'environment': environment()})
        losses = ' -> '.join(f'{each["loss"]:.4f}' for each in rows[name]['passes'])
        print(f'{name}: loss {losses}')
    return 0 if all(row['loss_fell'] for row in rows.values()) else 1


if __name__ == '__main__':
    raise SystemExit(main())
