"""Settings in the name of an attack, such as `apgd-ce(steps=50, restarts=5)`.

The row of an attack declares which settings its name can have. A name that has some is brought to one form,
its canonical name: settings in the order of the row, those that are the default left out, `, ` between them.
So one attack has one name, wherever it is asked for, and two that differ have two.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from si_jax.errors import InputError, unknown

NUMBER = r'(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?'
VALUE = re.compile(rf'(?P<above>[+-]?{NUMBER})(\s*/\s*(?P<below>{NUMBER}))?')
LARGEST = 10**7  # of a whole number: tables have an entry for each iteration
READABLE = 7  # characters of a number that is shown as it is; a longer one is a fraction, if it can be
DENOMINATORS, LEVELS = 1000, 64


class Setting(NamedTuple):
    """A setting that can stand in the name of an attack.

    Attributes:
        name: What it is called.
        default: What holds without it; None where that is the caller's.
        multiple: Of which number it must be a multiple, 1 or 2; 0 for a setting that need not be whole.
        most: The largest value.
        choices: The words of which it must be one; empty for a number.
    """

    name: str
    default: int | float | str | None = None
    multiple: int = 1
    most: float = LARGEST
    choices: tuple[str, ...] = ()

    def read(self, text: str, attack: str) -> int | float | str:
        """The value that a text stands for: a number, or a fraction `a/b`, or one of the choices.

        Raises:
            InputError: It stands for none that the setting can have.
        """
        if self.choices:
            if text not in self.choices:
                raise unknown(f'{self.name} of {attack}', text, self.choices)
            return text
        value = _number(text)
        if value is not None and 0 < value <= self.most and (not self.multiple or not value % self.multiple):
            if not self.multiple and float(value):
                return float(value)
            if self.multiple:
                return int(value)
        what = {0: 'a number above 0', 1: 'an integer of at least 1', 2: 'an even integer of at least 2'}
        example = self.default if self.default is not None else '1/255' if not self.multiple else 20
        raise InputError(
            f'{self.name}={text} of {attack} must be {what[self.multiple]}, and at most {self.most}: '
            f'write, for example, {attack}({self.name}={shown(example)})'
        )


def _number(text: str) -> Fraction | None:
    """The number, or the fraction `a/b`, that a text is; None if it is something else."""
    found = VALUE.fullmatch(text)
    if found is None:
        return None
    below = Fraction(found['below'] or 1)
    return Fraction(found['above']) / below if below else None


def shown(value: int | float | str) -> str:
    """The text of a value: a fraction, best of 255, where the number itself has many digits."""
    text = str(value)
    if not isinstance(value, float) or len(text) <= READABLE:
        return text
    levels, part = round(value * 255), Fraction(value).limit_denominator(DENOMINATORS)
    if levels / 255 == value and levels <= LEVELS:
        return f'{levels}/255'
    return str(part) if part and float(part) == value else text


def split(attacks: str) -> list[str]:
    """The names in a comma string: commas inside parentheses do not separate.

    Raises:
        InputError: A parenthesis has no other.
    """
    depth, names = 0, ['']
    for letter in attacks:
        depth += {'(': 1, ')': -1}.get(letter, 0)
        if depth not in (0, 1):
            break
        if letter == ',' and not depth:
            names.append('')
        else:
            names[-1] += letter
    if depth:
        raise InputError(
            f'the parentheses of {attacks!r} do not match: write settings as in apgd-ce(steps=50, restarts=5)'
        )
    return [name.strip() for name in names]


def taken_apart(name: str) -> tuple[str, list[tuple[str, str]]]:
    """The name before the parenthesis, and the settings in it as pairs of texts.

    Raises:
        InputError: What is there is no list of settings, or one is given twice.
    """
    base, opened, inside = name.strip().partition('(')
    base = base.strip()
    if not opened:
        return base, []
    if not inside.endswith(')') or '(' in inside or ')' in inside[:-1]:
        raise InputError(
            f'{name!r} is no name of an attack: settings stand behind it in one pair of parentheses, as in '
            'apgd-ce(steps=50, restarts=5)'
        )
    found = []
    for part in inside[:-1].split(',') if inside[:-1].strip() else []:
        key, equals, text = (one.strip() for one in part.partition('='))
        if not (key and equals and text):
            raise InputError(
                f'{part.strip()!r} in {name!r} is no setting: write its name and its value, as in '
                'apgd-ce(steps=50, restarts=5)'
            )
        found.append((key, text))
    keys = [key for key, _ in found]
    if twice := next((key for key in keys if keys.count(key) > 1), ''):
        raise InputError(f'{twice} is given {keys.count(twice)} times in {name!r}: give it once')
    return base, found


def read(
    base: str, texts: Sequence[tuple[str, str]], settings: Sequence[Setting], why_none: str = ''
) -> dict[str, Any]:
    """The values of the settings of an attack that are not the default, in their order.

    Args:
        base: The name of the attack.
        texts: The settings as they were given.
        settings: Those that it takes.
        why_none: What to say where it takes none.

    Raises:
        InputError: It does not take a setting, or a value is wrong.
    """
    known = {one.name: one for one in settings}
    for key, text in texts:
        if not known:
            raise InputError(
                f'{base} takes no settings, and {key}={text} is given: write {base} alone{why_none}'
            )
        if key not in known:
            raise unknown(f'setting of {base}', key, known)
    values = {key: known[key].read(text, base) for key, text in texts}
    return {key: values[key] for key, one in known.items() if key in values and values[key] != one.default}


def written(base: str, values: dict[str, Any]) -> str:
    """The name of an attack with these settings."""
    inside = ', '.join(f'{key}={shown(value)}' for key, value in values.items())
    return f'{base}({inside})' if inside else base


def file_name(name: str) -> str:
    """A canonical name as a part of a file's name: no two have the same."""
    # No commas: commands take several files with commas between.
    for old, new in (('(', '_'), (')', ''), (', ', '_'), ('/', '-')):
        name = name.replace(old, new)
    return name
