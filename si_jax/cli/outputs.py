"""Where commands write: never over what they read, nor over what this program did not write."""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation import state
from si_jax.evaluation.result import attacks_in, is_result
from si_jax.runtime import processes
from si_jax.storage import hub, npz
from si_jax.storage.files import write_atomic
from si_jax.zoo import weights

FLAGS = ('clean', 'worst_case', 'labels', 'indices')  # of each image, in the npz file of an evaluation
POINT = '_point.npz'


def check(
    flag: str,
    files: Iterable[Path],
    reads: Iterable[str | Path | None] = (),
    what: str = 'which the command reads',
) -> None:
    """Whether a command may write these files, and can: before it computes anything.

    A file that exists is replaced only if this program wrote it. Nothing is made yet, folders neither.

    Args:
        flag: What names another place, for the errors, such as '--output=FILE.json'.
        files: All that it may write, companions included; `.partial` is a folder.
        reads: Files and folders that it reads, as its flags name them; None for a flag that is not given.
        what: What these are, for the errors.

    Raises:
        InputError: One of the files is read, or is something else, or cannot be written.
    """
    files = list(files)
    read = [Path(one).expanduser() for one in reads if one is not None]
    for file in files:
        for one in read:
            if _same(file, one) or one.resolve().is_relative_to(file.resolve()):
                raise InputError(
                    f'{flag.split("=")[0]}: {file} would be written over {one}, {what}: give another {flag}'
                )
        if file.is_dir() and file.suffix != '.partial' and not file.name.endswith('_images'):
            raise InputError(f'{file} is a folder, where a file is to be written: give another {flag}')
        if (file.exists() or file.is_symlink()) and not is_ours(file):
            raise InputError(
                f'{file} is there, and was not written by this command: give another {flag}, or move it away'
            )
    for folder in {file.parent for file in files}:
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not there.is_dir():
            raise InputError(f'{there} is a file, where a folder is needed: give another {flag}')
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise InputError(
                f'{folder} cannot be written to ({error.strerror}): give another place, {flag}'
            ) from error


@contextlib.contextmanager
def point_beside(path: Path) -> Iterator[None]:
    """Within it an error that has a point of the ball leaves it beside the result `path`, and says so."""
    try:
        yield
    except InputError as error:
        if error.image is None or not processes.is_first():
            raise
        content = io.BytesIO()
        np.savez(content, point=error.image)
        place = path.with_name(f'{path.stem}{POINT}')
        write_atomic(place, content.getvalue())
        told = InputError(f'{error}. It is saved as `point` in {place}')
        told.image = error.image
        raise told from error


def of_model(*names: str | None) -> list[str]:
    """The files and folders among the values of flags that name models, with commas between or not."""
    given = [part.strip() for name in names if name for part in name.split(',')]
    return [part.rpartition(':')[0] if '.py:' in part else part for part in given]


def is_ours(file: Path) -> bool:
    """Whether a file, or the folder of an unfinished evaluation, was written by a command of this program."""
    if file.suffix == '.partial':
        return state.is_one(file)
    if _is_of_unfinished(file):
        return True
    if file.name.endswith('_images') and file.is_dir():
        there = {path.name for path in file.iterdir()}
        return there <= attacks_in(file.with_name(f'{file.name.removesuffix("_images")}.json'))
    if not file.is_file():
        return False
    if file.name == 'index.html':
        return b'<title>Robustness report: ' in file.read_bytes()
    if file.name == 'model.py':
        return 'exported by si_jax' in _first_line(file)
    if file.name == hub.DEFAULT_FILE:
        return weights.is_ours(file)
    if file.stem == 'weights':
        return (file.parent / 'model.py').is_file() and is_ours(file.parent / 'model.py')
    if file.name.endswith(POINT):
        return _holds(file, ('point',))
    if file.name.endswith('_images.npz'):
        return _names(file) <= attacks_in(file.with_name(f'{file.name.removesuffix("_images.npz")}.json'))
    if file.suffix == '.npz':
        return _holds(file, FLAGS) or (_holds(file, FLAGS[2:]) and is_ours(file.with_suffix('.json')))
    if file.suffix in ('.png', '.pdf'):
        return is_ours(file.with_suffix('.json'))
    return is_result(file)


def _is_of_unfinished(file: Path) -> bool:
    """Whether a command was killed while it wrote its result, of which this file is a companion.

    The state of an evaluation stays until all files of its result are there, so what is newer is of it.
    """
    if not file.name.endswith(('.npz', '.png', '_images')) or not file.exists():
        return False
    for folder in file.parent.glob('*.partial'):
        begun = [path.stat().st_mtime for path in folder.glob('**/identity.json')]
        of_it = file.name.startswith(folder.stem) and file.name.removeprefix(folder.stem)[:1] in tuple('._-')
        if of_it and begun and min(begun) <= file.stat().st_mtime:
            return True
    return False


def _first_line(file: Path) -> str:
    with open(file, encoding='utf-8', errors='replace') as lines:
        return lines.readline(1000)


def _names(file: Path) -> set[str]:
    try:
        return set(npz.headers(file))
    except (OSError, npz.ArchiveError):
        return {'what is no npz file'}


def _holds(file: Path, names: tuple[str, ...]) -> bool:
    try:
        return bool(npz.read(file, names))
    except (OSError, npz.ArchiveError):
        return False


def _same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)
    except OSError:  # one of them is not there
        return file.resolve() == other.resolve()
