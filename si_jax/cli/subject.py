"""The evaluation behind `evaluate.py`: from names and paths to a table and a result file."""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from si_jax import data, models
from si_jax.attacks.pgd import Attack
from si_jax.errors import InputError, unknown
from si_jax.evaluation.classifier import with_logit_scale
from si_jax.evaluation.request import check_count
from si_jax.interop.loading import is_torch_module, load_torch_checkpoint, load_torch_module
from si_jax.interop.torch_weights import accuracy_hint
from si_jax.threat import Threat
from si_jax.zoo.entries import PREFIX
from si_jax.zoo.load import is_file_or_zoo, load_model
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
    count = len(test.labels) if num_examples is None else check_count('num_examples', num_examples)
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
