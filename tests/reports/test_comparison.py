"""The page of a comparison in a browser. Its numbers are looked at in tests/evaluation/test_compare.py."""

from pathlib import Path

from si_jax import compare
from si_jax.reports import comparison
from tests.helpers.browser import look

STUDY = Path(__file__).resolve().parents[2] / 'results' / 'study-digits'


def test_the_page_is_sound_in_a_browser(tmp_path):
    folders = (STUDY / name / 'seed0' / 'evaluation' for name in ('digits-at', 'digits-atsi'))
    a, b = (next(folder.glob('*.json')) for folder in folders)
    path = comparison.write(compare(a, b, names=('AT', 'AT-SI')), str(tmp_path))
    seen = look(path)
    assert not seen.console and not seen.requests
    assert seen.violations == [] and max(seen.overflow.values()) <= 0
    assert seen.reachable[0] == 'Skip to the comparison' and seen.printed > 0
    assert path.stat().st_size < 5_000_000
