"""Writes the report page of runs into a folder."""

from pathlib import Path

from si_jax.errors import InputError
from si_jax.evaluation.request import check_count
from si_jax.reports.collect import collect
from si_jax.reports.render import render
from si_jax.storage.files import write_atomic

GALLERY = 10


def write(
    workdirs: list[str],
    out: str,
    *,
    gallery: int = GALLERY,
    data_dir: str | None = None,
    figures: str = 'runs/figures',
) -> tuple[Path, list[str]]:
    """Writes the report page of runs.

    Args:
        workdirs: Folders of runs, folders above them, or JSON files of results.
        out: The folder that gets `index.html`; made if it does not exist.
        gallery: How many test images are shown before and after an attack; 0 reads no checkpoint.
        data_dir: Where their data set lies; None for where the runs had it.
        figures: Where `report.py --figure` puts its files: those of these runs are shown.

    Returns:
        The page, and what could not be shown, each with the remedy. The page says this too.

    Raises:
        InputError: A value is wrong, or nothing can be shown.
    """
    check_count('gallery', gallery, least=0)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f'--out={out} is a file: give the folder that gets index.html')
    page, problems = render(collect(workdirs), workdirs, gallery=gallery, data_dir=data_dir, figures=figures)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / 'index.html', page)
    return folder / 'index.html', problems
