"""The evaluation behind `evaluate.py`: from names and paths to a table and a result file."""

import dataclasses
import fractions
import hashlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from si_jax import attacks as catalogue
from si_jax import data
from si_jax.errors import InputError
from si_jax.evaluation import checks, saved
from si_jax.evaluation.result import Result, check_output
from si_jax.evaluation.runner import evaluate
from si_jax.interop.loading import is_torch_module, load_torch_module
from si_jax.load import load_model
from si_jax.threat import Threat


def fraction(text: str) -> float:
    """The number that '8/255', '0.031' or '1e-2' stands for.

    Raises:
        ValueError: It stands for none.
    """
    try:
        return float(fractions.Fraction(text))
    except ZeroDivisionError:
        raise ValueError(f'{text!r} divides by zero') from None


def run(
    *,
    workdir: str | None,
    checkpoint: str,
    model: str | None,
    dataset: str | None,
    data_dir: str | None,
    num_examples: int | None,
    eps: float | None,
    norm: str | None,
    attacks: str,
    output: str | None,
    save_images: bool,
    **settings: Any,
) -> Result:
    """Evaluates a trained network, or one that a Python file makes; prints the table and writes the result.

    What is finished is kept in `<output without .json>.partial` until the result is written.

    Args:
        workdir: Folder of a run of train.py: the network, and the defaults of data set, eps and norm.
        checkpoint: 'best', 'last' or a step of that run.
        model: 'path/to/file.py:build' instead, a function without arguments that returns a classifier.
        dataset: A name in `si_jax.data.SOURCES`; its test split is used.
        data_dir: Where it lies, see `si_jax.data.load`.
        num_examples: The first so many images in original order; all if None.
        eps: Radius of the ball, as a fraction of the pixel range.
        norm: 'linf' or 'l2'.
        attacks: Names, with commas between.
        output: The JSON file; None for one in `<workdir>/evaluation`, or in `evaluation` with `model`.
        save_images: Whether to write the adversarial images beside it.
        settings: steps, step_size, restarts, seed, batch_size, eot_samples, individual and search_precision
            of `si_jax.evaluate`.

    Raises:
        InputError: A value is wrong, before anything is computed, or the network is unfit.
    """
    if (workdir is None) == (model is None):
        raise InputError('give either --workdir=FOLDER or --model=FILE.py:FUNCTION')
    names = catalogue.parse(attacks)
    if output is not None:
        check_output(output)
    classifier: Any
    if workdir is not None:
        classifier = load_model(workdir, checkpoint)
        config = classifier.config
        if dataset in (None, config.data.name):
            dataset, data_dir = config.data.name, data_dir or config.data.dir
        eps = config.threat.eps if eps is None else eps
        norm = norm or config.threat.norm
        about = {'workdir': str(workdir), 'checkpoint': checkpoint, 'step': classifier.step}
        stem, folder = checkpoint, Path(workdir) / 'evaluation'
    else:
        assert model is not None
        if dataset is None:
            raise InputError(f'--model needs --dataset, one of {", ".join(data.SOURCES)}')
        classifier = _build(model)
        if is_torch_module(classifier) and dataset in data.SOURCES:
            classifier = load_torch_module(classifier, data.SOURCES[dataset].shape)
        eps, norm = 8 / 255 if eps is None else eps, norm or 'linf'
        about = {'model': model}
        stem, folder = Path(model.rpartition(':')[0]).stem, Path('evaluation')
    assert dataset is not None

    test = data.load(dataset, 'test', data_dir)
    Threat(norm, eps).check(test.images.shape[1:])
    count = len(test.labels) if num_examples is None else checks.check_count('num_examples', num_examples)
    if count > len(test.labels):
        raise InputError(f'num_examples={count} is more than the {len(test.labels)} images of {dataset}')
    choice = {'dataset': dataset, 'count': count, 'eps': eps, 'norm': norm, **settings}
    digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode()).hexdigest()[:8]
    path = Path(output) if output else folder / f'{stem}-{"-".join(names)}-{digest}.json'
    path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the attacks

    state = path.with_suffix('.partial')
    result = evaluate(
        classifier,
        np.asarray(data.to_unit(jnp.asarray(test.images[:count]), test.scale)),
        test.labels[:count],
        attacks=names,
        eps=eps,
        norm=norm,
        return_images=save_images,
        progress=True,
        state_path=state,
        **settings,
    )
    described = {'name': dataset, 'split': 'test', **result.dataset}
    result = dataclasses.replace(result, dataset=described, model=about)
    result.save(path)
    saved.remove(state)
    print(result.table())
    print(f'written to {path}')
    return result


def _build(model: str) -> Any:
    """What the function `path/to/file.py:function` returns."""
    file, separator, name = model.rpartition(':')
    if not separator or not file.endswith('.py'):
        raise InputError(f'--model={model} is not of the form path/to/file.py:function')
    path = Path(file)
    if not path.is_file():
        raise InputError(f'--model={model}: there is no file {file}')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # it may import its neighbours, as a script can
    spec.loader.exec_module(module)
    if not callable(function := getattr(module, name, None)):
        own = (key for key, value in vars(module).items() if inspect.isfunction(value))
        functions = [key for key in own if vars(module)[key].__module__ == module.__name__]
        raise InputError(f'{file} has no function {name!r}, only {", ".join(functions) or "none"}')
    return function()
