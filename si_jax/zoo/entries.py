"""The networks of the zoo: what the manifests say of them, and whether their files are what was added.

    {"schema": 1, "models": {NAME: {
        "recipe": {"config": "configs/digits.py:at", "overrides": {}, "command": "python train.py ..."},
        "seed": 0, "checkpoint": "best", "step": 1292,
        "dataset": {"name", "split", "examples", "classes", "digest"}, "threat_model": {"norm", "eps"},
        "protocol": {"attacks", "steps", "step_size", "restarts", "seed"},
        "accuracy": {"clean", ..., "worst_case"},
        "result": "NAME/result.json", "result_sha256", "file": "NAME/weights.npz", "bytes", "sha256"}}}

Paths are relative to the folder of the manifest, and never lead out of it.
"""

import dataclasses
import os
import re
import shlex
from pathlib import Path
from typing import Any

from si_jax.errors import InputError, unknown
from si_jax.storage.files import check_fields, read_json
from si_jax.zoo.weights import sha256

SCHEMA = 1
MANIFEST = 'manifest.json'
PREFIX = 'zoo:'
VARIABLE = 'SI_JAX_ZOO'
PACKAGED = Path(__file__).with_name('models')


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the zoo: its name, the folder of its manifest, and what that says of it (see above).

    `seed` and `step` are those of the training, `dataset`, `protocol` and `accuracy` (fractions) those of the
    evaluation. The accuracies come from the JSON file `result`; the flags of each image lie beside it.
    `bytes` and `sha256` are those of the weights, `file`.
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    seed: int
    checkpoint: str
    step: int
    dataset: dict[str, Any]
    threat_model: dict[str, Any]
    protocol: dict[str, Any]
    accuracy: dict[str, float]
    result: str
    result_sha256: str
    file: str
    bytes: int
    sha256: str

    @property
    def weights_path(self) -> Path:
        """The file of weights."""
        return self.folder / self.file

    @property
    def result_path(self) -> Path:
        """The result."""
        return self.folder / self.result

    def to_json(self) -> dict[str, Any]:
        """What stands in the manifest."""
        fields = dataclasses.asdict(self)
        return {key: value for key, value in fields.items() if key not in ('name', 'folder')}


# What a manifest must say of each network.
FIELDS: dict[tuple[str, ...], type] = {
    **{(field,): dict for field in ('recipe', 'dataset', 'threat_model', 'protocol', 'accuracy')},
    **{(field,): str for field in ('checkpoint', 'result', 'result_sha256', 'file', 'sha256')},
    **{(field,): int for field in ('seed', 'step', 'bytes')},
    ('recipe', 'config'): str,
    ('recipe', 'command'): str,
    ('dataset', 'name'): str,
    ('threat_model', 'norm'): str,
    ('threat_model', 'eps'): float,
    ('accuracy', 'clean'): float,
}


def folders() -> list[Path]:
    """The zoos: that of `SI_JAX_ZOO`, if it is set, and the package's.

    Raises:
        InputError: `SI_JAX_ZOO` names no zoo.
    """
    added = os.environ.get(VARIABLE)
    if not added:
        return [PACKAGED]
    if not (Path(added) / MANIFEST).is_file():
        raise InputError(
            f'{VARIABLE}={added} has no {MANIFEST}: unset it, name the folder of a zoo, or make one with '
            f'python -m si_jax.cli.zoo add {shlex.quote(f"--zoo={added}")}'
        )
    return [Path(added), PACKAGED]


def entries() -> dict[str, Entry]:
    """All networks by name.

    Raises:
        InputError: A manifest is damaged, or a name is in two of them.
    """
    found: dict[str, Entry] = {}
    for folder in folders():
        for name, entry in read_manifest(folder).items():
            if name in found:
                raise InputError(f'{name!r} is in {found[name].folder} and in {folder}: rename one of them')
            found[name] = entry
    return found


def entry(name: str) -> Entry:
    """One network, by its name with or without `zoo:`.

    Raises:
        InputError: The zoo does not have it (with the names that come near), or a manifest is damaged.
    """
    name = check_name(name.removeprefix(PREFIX))
    known = entries()
    if name not in known:
        raise unknown('model of the zoo', name, known)
    return known[name]


def check_name(name: str) -> str:
    """The name, if it can be one.

    Raises:
        InputError: It can not.
    """
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_.-]*', name):
        raise InputError(
            f'{name!r} cannot be the name of a model of the zoo: it has letters, digits, "_", "." and "-", '
            'and no "/"; the path of a file or a workdir stands without "zoo:"'
        )
    return name


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The networks of one zoo.

    Raises:
        InputError: There is no manifest, or it is damaged: the field is named.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read ({error}): restore it') from error
    models = manifest.get('models') if isinstance(manifest, dict) else None
    if not isinstance(models, dict) or manifest.get('schema') != SCHEMA:
        raise InputError(f'{path} is no manifest of schema {SCHEMA}: restore it, or update si_jax')
    return {check_name(name): _entry(name, folder, fields) for name, fields in models.items()}


def _entry(name: str, folder: Path, fields: Any) -> Entry:
    where = f'{folder / MANIFEST}: {name}'
    try:
        check_fields(fields, FIELDS)
    except ValueError as error:
        raise InputError(f'{where}: {error}: restore it') from error
    known = {path[0] for path in FIELDS}
    if odd := sorted(set(fields) - known):
        raise InputError(f'{where}: {odd[0]!r} is no field of schema {SCHEMA}: restore it, or update si_jax')
    for key in ('file', 'result'):
        if not (folder / fields[key]).resolve().is_relative_to(folder.resolve()):
            raise InputError(f'{where}.{key}={fields[key]!r} leads out of the folder: it must lie inside')
    return Entry(name, folder, **fields)


def check_file(one: Entry) -> Path:
    """The weights of a network, if they are the bytes that were added.

    Raises:
        InputError: The file is missing, or has another size or digest.
    """
    path = one.weights_path
    advice = f'get it again, or train it: {one.recipe.get("command")}'
    try:
        size, digest = path.stat().st_size, sha256(path)
    except OSError as error:
        raise InputError(f'{one.name}: {path} cannot be read ({error.strerror}): {advice}') from error
    if size != one.bytes:
        raise InputError(f'{one.name}: {path} has {size} bytes, the manifest says {one.bytes}: {advice}')
    if digest != one.sha256:
        raise InputError(
            f'{one.name}: the SHA-256 of {path} is {digest}, the manifest says {one.sha256}: it was changed '
            f'or damaged; {advice}'
        )
    return path
