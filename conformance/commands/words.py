"""Keep pytest away from the folders in which the data of a run lie.

pytest chooses its root folder, with its settings and its cache, before it loads plugins. It does not know the options
of this package by then: in ``--parity-scan PATH`` it reads an unknown flag and a path of tests, and the folder of the
data becomes its root folder. ``--parity-scan=PATH`` is one word and is never misread. No hook of an installed plugin
runs early enough to help, so the plugin starts pytest again, in the same process, with the words joined.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PREFIX = "--parity-"
_DATA_OPTIONS = ("--parity-scan", "--parity-reference", "--parity-previous")
_CACHE_OPTIONS = ("lf", "failedfirst", "newfirst", "stepwise", "cacheshow", "cacheclear")
_ENVIRONMENT = "PYTEST_ADDOPTS"
"""Words that pytest reads before those of the command line."""


def joined(words: Sequence[str]) -> list[str]:
    """Return the words with each option of this package and its value in one.

    >>> joined(["conformance", "--parity-scan", "scans", "-q"])
    ['conformance', '--parity-scan=scans', '-q']
    """
    found: list[str] = []
    for word in words:
        option = found[-1] if found else ""
        takes_value = option.startswith(_PREFIX) and "=" not in option
        if takes_value and not word.startswith("-"):
            found[-1] = f"{option}={word}"
        else:
            found.append(word)
    return found


def is_misread(config: pytest.Config) -> bool:
    """Return True if pytest took the value of an option for a path of tests."""
    words = [*_environment_words(), *_words(config)]
    values = set(words) - set(joined(words))
    return any(os.path.exists(config.invocation_params.dir / value.partition("::")[0]) for value in values)


def caches_beside_data(config: pytest.Config) -> bool:
    """Return True if pytest would write its cache into a folder of data, and nobody asked for the cache."""
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return False
    if any(getattr(config.option, each, False) for each in _CACHE_OPTIONS):
        return False
    root = config.rootpath.resolve()
    is_inside = (root / config.getini("cache_dir")).is_relative_to(root)
    return is_inside and root in set(_data_folders(config))


def run_again(config: pytest.Config) -> int | pytest.ExitCode:
    """Run pytest in this process with the words joined; return its exit status."""
    words = joined(_words(config))
    # What settings found by mistake put on the path of modules must not shadow any.
    wrong = {str(folder) for folder in config.getini("pythonpath")} if is_misread(config) else set()
    if caches_beside_data(config):
        words += ["-p", "no:cacheprovider"]
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get(_ENVIRONMENT):
            patch.setenv(_ENVIRONMENT, shlex.join(joined(_environment_words())))
        patch.setattr(sys, "path", [each for each in sys.path if each not in wrong])
        return pytest.main(words, plugins=config.invocation_params.plugins)


def _words(config: pytest.Config) -> list[str]:
    return [os.fspath(word) for word in config.invocation_params.args]


def _environment_words() -> list[str]:
    return shlex.split(os.environ.get(_ENVIRONMENT, ""))


def _data_folders(config: pytest.Config) -> Iterator[Path]:
    for option in _DATA_OPTIONS:
        path = config.invocation_params.dir / str(config.getoption(option) or "")
        if config.getoption(option) and path.exists():
            yield (path if path.is_dir() else path.parent).resolve()
