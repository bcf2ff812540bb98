"""The evaluation behind `evaluate.py`: from names and paths to a table and a result file."""

import dataclasses
import fractions
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from si_jax import data, models, processes, profiling
from si_jax.attacks.gradient import Attack
from si_jax.errors import InputError, unknown
from si_jax.evaluation import checks, own, sanity, saved
from si_jax.evaluation.classifier import with_logit_scale
from si_jax.evaluation.compare import Comparison, compare
from si_jax.evaluation.result import Result, check_output
from si_jax.evaluation.runner import evaluate
from si_jax.evaluation.speed import of_evaluation
from si_jax.files import write_json
from si_jax.interop.loading import is_torch_module, load_torch_checkpoint, load_torch_module
from si_jax.interop.torch_weights import accuracy_hint
from si_jax.load import is_file_or_zoo, load_model
from si_jax.terminal import resumable, show
from si_jax.threat import Threat
from si_jax.zoo.entries import PREFIX
from si_jax.zoo.weights import SUFFIX


class Loaded(NamedTuple):
    """What is evaluated.

    Attributes:
        classifier: The network.
        images: [N, H, W, C], in [0, 1].
        labels: [N].
        dataset: The name of the data set; these are the first images of its test split.
        threat: The ball that was asked for, or that of the run.
        about: Where the network came from, in JSON's types.
        stem: How the files of its results begin.
        folder: Where they go, unless said otherwise.
        hint: What to try if it classifies clean images badly; '' if nothing can be said.
    """

    classifier: Any
    images: np.ndarray
    labels: np.ndarray
    dataset: str
    threat: Threat
    about: dict[str, Any]
    stem: str
    folder: Path
    hint: str


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
        arch: Its architecture, see `torch_weights.load`.
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
    names, _ = own.parse(given)
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
    loaded = processes.checked(loading)
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
        found = sanity.clean(*clean, result.dataset['classes'], stated_clean, loaded.hint)
        result = dataclasses.replace(result, warnings=found + result.warnings)
    described = {'name': loaded.dataset, 'split': 'test', **result.dataset}
    result = dataclasses.replace(result, dataset=described, model=loaded.about)
    if processes.is_first():
        result.save(path)
        saved.remove(state)
        show(result.table())
        if not resumed and (speed := of_evaluation(result, loaded.classifier, shape)):
            print(speed)
        if profiled:
            print(profiled.report())
        print(f'written to {path}')
    return result


def load(
    *,
    workdir: str | None,
    checkpoint: str,
    model: str | None,
    torch_checkpoint: str | None,
    arch: str | None,
    variant: str | None,
    normalise: str | None,
    stated_clean: float | None,
    dataset: str | None,
    data_dir: str | None,
    num_examples: int | None,
    eps: float | None,
    norm: str | None,
    logit_scale: float = 1.0,
) -> Loaded:
    """The network and the images that the flags of `run` speak of.

    Raises:
        InputError: A value is wrong.
    """
    if sum(given is not None for given in (workdir, model, torch_checkpoint)) != 1:
        raise InputError(
            'give either --workdir=FOLDER or --model=FILE.py:FUNCTION (or zoo:NAME) or '
            '--torch_checkpoint=FILE --arch=NAME'
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
    classifier: Any
    about: dict[str, Any]
    hint = ''
    saved = workdir or (model if model is not None and _is_saved(model) else None)
    if saved is not None:
        classifier = load_model(saved, checkpoint)
        config = classifier.config
        if dataset in (None, config.data.name):
            dataset, data_dir = config.data.name, data_dir or config.data.dir
        eps = config.threat.eps if eps is None else eps
        norm = norm or config.threat.norm
        if workdir is None:
            about = {'model': model, 'step': classifier.step}
            stem, folder = _name_of(saved), Path('evaluation')
        else:
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
            classifier = _classifier(model, source.shape)
            about, stem = {'model': model}, _name_of(model)
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
    threat = Threat(norm, eps)
    threat.check(test.images.shape[1:])
    count = len(test.labels) if num_examples is None else checks.check_count('num_examples', num_examples)
    if count > len(test.labels):
        raise InputError(f'num_examples={count} is more than the {len(test.labels)} images of {dataset}')
    return Loaded(
        classifier,
        np.asarray(data.to_unit(jnp.asarray(test.images[:count]), test.scale)),
        test.labels[:count],
        dataset,
        threat,
        about,
        stem,
        folder,
        hint,
    )


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
    show(comparison.table())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, comparison.to_json())
        print(f'written to {path}')
    return comparison


def _classifier(model: str, image_shape: tuple[int, ...], flag: str = 'model') -> Any:
    """The classifier that `path/to/file.py:function` returns, whatever it was written in, or a saved one."""
    if _is_saved(model):
        return load_model(model)
    classifier = _load(model, flag)()
    return load_torch_module(classifier, image_shape) if is_torch_module(classifier) else classifier


def sources(models: str, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The classifiers of --transfer_from, named after their files or folders."""
    found: dict[str, Any] = {}
    for model in models.split(','):
        name = _name_of(model)
        if name in found:
            name = f'{name}-{len(found)}'
        if '.py:' in model:
            found[name] = _classifier(model, image_shape, 'transfer_from')
        else:
            found[name] = load_model(model)
    return found


def _is_saved(model: str) -> bool:
    """Whether --model is a network of the zoo or a file of weights, not a function of a Python file."""
    return model.startswith(PREFIX) or model.endswith(SUFFIX)


def _name_of(model: str) -> str:
    """A name for files and rows: of a Python file, a file of weights, a network of the zoo or a workdir."""
    if '.py:' in model:
        return Path(model.rpartition(':')[0]).stem
    if is_file_or_zoo(model):
        return Path(model).stem if model.endswith(SUFFIX) else model.removeprefix(PREFIX)
    return '-'.join(Path(model).parts[-2:])


def _own_attack(name: str) -> Any:
    """An attack of the user's own, `path/to/file.py:attack`."""
    return _load(name.strip(), 'attacks')


def _load(model: str, flag: str) -> Any:
    """The attribute of a file, `path/to/file.py:attribute`."""
    file, separator, name = model.rpartition(':')
    if not separator or not file.endswith('.py'):
        raise InputError(f'--{flag}={model} is not of the form path/to/file.py:function')
    path = Path(file)
    if not path.is_file():
        raise InputError(f'--{flag}={model}: there is no file {file}')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # it may import its neighbours, as a script can
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found) and not isinstance(found, Attack):
        functions = (key for key, value in vars(module).items() if inspect.isfunction(value))
        theirs = [key for key in functions if vars(module)[key].__module__ == module.__name__]
        raise InputError(f'{file} has no function {name!r}, only {", ".join(theirs) or "none"}')
    return found
