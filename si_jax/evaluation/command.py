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
from si_jax import data, models
from si_jax.errors import InputError, unknown
from si_jax.evaluation import checks, sanity, saved
from si_jax.evaluation.classifier import with_logit_scale
from si_jax.evaluation.compare import Comparison, compare
from si_jax.evaluation.result import Result, check_output
from si_jax.evaluation.runner import evaluate
from si_jax.files import write_json
from si_jax.interop.loading import is_torch_module, load_torch_checkpoint, load_torch_module
from si_jax.interop.torch_weights import accuracy_hint
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
    logit_scale: float = 1.0,
    **settings: Any,
) -> Result:
    """Evaluates a network from a run, a Python file or a PyTorch checkpoint; prints and writes the result.

    What is finished is kept in `<output without .json>.partial` until the result is written.

    Args:
        workdir: Folder of a run of train.py: the network, and the defaults of data set, eps and norm.
        checkpoint: 'best', 'last' or a step of that run.
        model: 'path/to/file.py:build' instead, a function without arguments that returns a classifier.
        torch_checkpoint: A PyTorch file of weights instead, of torch.save or safetensors.
        arch: Its architecture, see `torch_weights.load`.
        variant: Likewise, where two have the same names and shapes.
        normalise: What its authors do to images in [0, 1]; None for 'none'.
        stated_clean: The clean accuracy that its authors state, as a fraction: far below it the result warns.
        dataset: A name in `si_jax.data.SOURCES`; its test split is used.
        data_dir: Where it lies, see `si_jax.data.load`.
        num_examples: The first so many images in original order; all if None.
        eps: Radius of the ball, as a fraction of the pixel range.
        norm: 'linf' or 'l2'.
        attacks: Names, with commas between.
        output: The JSON file; None for one in `<workdir>/evaluation`, or in `evaluation` without a workdir.
        save_images: Whether to write the adversarial images beside it.
        logit_scale: A factor on the logits, which changes no decision.
        settings: steps, step_size, restarts, seed, batch_size, eot_samples, individual and search_precision
            of `si_jax.evaluate`.

    Raises:
        InputError: A value is wrong, before anything is computed, or the network is unfit.
    """
    if sum(given is not None for given in (workdir, model, torch_checkpoint)) != 1:
        raise InputError(
            'give either --workdir=FOLDER or --model=FILE.py:FUNCTION or --torch_checkpoint=FILE --arch=NAME'
        )
    of_checkpoint = {'arch': arch, 'variant': variant, 'normalise': normalise, 'stated_clean': stated_clean}
    if torch_checkpoint is None and (extra := [key for key, v in of_checkpoint.items() if v is not None]):
        raise InputError(f'--{extra[0]} belongs to --torch_checkpoint: leave it out, or give that one')
    if stated_clean is not None and not 0 < stated_clean <= 1:
        advice = f': did you mean {stated_clean / 100:g}?' if 1 < stated_clean <= 100 else ''
        raise InputError(f'stated_clean={stated_clean:g} is not a fraction in (0, 1]{advice}')
    if not 0 < logit_scale < float('inf'):
        raise InputError(
            f'logit_scale={logit_scale:g} must be positive and finite; 1 leaves the logits alone'
        )
    names = catalogue.parse(attacks)
    if output is not None:
        check_output(output)
    classifier: Any
    about: dict[str, Any]
    hint = ''
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
        if dataset is None:
            flag = 'model' if torch_checkpoint is None else 'torch_checkpoint'
            raise InputError(f'--{flag} needs --dataset, one of {", ".join(data.SOURCES)}')
        if dataset not in data.SOURCES:
            raise unknown('data set', dataset, data.SOURCES)
        source = data.SOURCES[dataset]
        eps, norm, folder = 8 / 255 if eps is None else eps, norm or 'linf', Path('evaluation')
        if model is not None:
            classifier = _build(model)
            if is_torch_module(classifier):
                classifier = load_torch_module(classifier, source.shape)
            about, stem = {'model': model}, Path(model.rpartition(':')[0]).stem
        else:
            assert torch_checkpoint is not None
            if arch is None:
                raise InputError(
                    f'--torch_checkpoint needs --arch, one of {", ".join(models.ARCHITECTURES)}, '
                    'wrn_<depth>_<widen>'
                )
            normalise = normalise or 'none'
            classifier = load_torch_checkpoint(
                torch_checkpoint,
                arch,
                normalise=normalise,
                variant=variant,
                num_classes=source.num_classes,
                image_shape=source.shape,
            )
            about = {'torch_checkpoint': torch_checkpoint, **of_checkpoint, 'normalise': normalise}
            stem = Path(torch_checkpoint).stem
            hint = accuracy_hint(arch, variant, normalise)
    assert dataset is not None

    if logit_scale != 1:
        classifier = with_logit_scale(classifier, logit_scale)
        about['logit_scale'] = logit_scale

    test = data.load(dataset, 'test', data_dir)
    Threat(norm, eps).check(test.images.shape[1:])
    count = len(test.labels) if num_examples is None else checks.check_count('num_examples', num_examples)
    if count > len(test.labels):
        raise InputError(f'num_examples={count} is more than the {len(test.labels)} images of {dataset}')
    choice = {'dataset': dataset, 'count': count, 'eps': eps, 'norm': norm, **settings}
    if logit_scale != 1:
        choice['logit_scale'] = logit_scale
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
    if hint:
        clean = result.accuracy['clean'], result.ci95['clean'][1]
        found = sanity.clean(*clean, result.dataset['classes'], stated_clean, hint)
        result = dataclasses.replace(result, warnings=found + result.warnings)
    described = {'name': dataset, 'split': 'test', **result.dataset}
    result = dataclasses.replace(result, dataset=described, model=about)
    result.save(path)
    saved.remove(state)
    print(result.table())
    print(f'written to {path}')
    return result


def run_compare(*, a: str, b: str, output: str | None, resamples: int, seed: int) -> Comparison:
    """Compares results that `run` wrote; prints the table and, if asked to, writes the comparison.

    Args:
        a: JSON files, one a seed, with commas between.
        b: Likewise.
        output: The JSON file; None for none.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: A value is wrong, or the results cannot be compared.
    """
    path = None if output is None else check_output(output)
    if path is not None and path.resolve() in {Path(name).resolve() for name in f'{a},{b}'.split(',')}:
        raise InputError(f'--output={output} is one of the results compared: give another file')
    comparison = compare(a, b, resamples=resamples, seed=seed)
    print(comparison.table())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, comparison.to_json())
        print(f'written to {path}')
    return comparison


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
