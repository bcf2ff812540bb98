"""The installed package asks for what requirements.txt asks for, and holds what it needs."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-r'))]


def settings() -> dict:
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_base_and_extras_are_what_requirements_txt_has():
    project = settings()['project']
    extras = project['optional-dependencies']
    asked = [*project['dependencies'], *extras['plots'], *extras['tfds']]
    wanted = [
        line.replace("'", '"') for line in requirements('requirements.txt') if not line.startswith('pytest')
    ]
    assert sorted(asked) == sorted(wanted)
    assert not any('tensorflow' in line or 'torch' in line for line in project['dependencies'])


def test_every_requirement_has_a_lower_and_an_upper_bound():
    lines = requirements('requirements.txt') + requirements('requirements-dev.txt')
    for line in lines:
        requirement = line.split(';')[0]
        assert '==' in requirement or ('>=' in requirement and ',<' in requirement), line


def test_the_licence_file_is_the_named_one():
    text = (ROOT / 'LICENSE').read_text()
    assert settings()['project']['license'] == 'Apache-2.0'
    assert 'Apache License' in text and 'Version 2.0, January 2004' in text


def test_types_and_recipes_are_in_the_wheel():
    assert (ROOT / 'si_jax' / 'py.typed').exists()
    wheel = settings()['tool']['hatch']['build']['targets']['wheel']
    assert wheel['packages'] == ['si_jax'] and wheel['force-include'] == {'configs': 'si_jax/configs'}
