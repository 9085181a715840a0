"""Runs the examples of every metric's docstring."""

import doctest
import importlib
import pkgutil

import pytest

import hf_unlearn.metrics

MODULES = [module.name for module in pkgutil.iter_modules(hf_unlearn.metrics.__path__)]
WITHOUT_EXAMPLE = {"hf_evaluate", "_few"}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"hf_unlearn.metrics.{name}"))
    assert outcome.failed == 0
    assert outcome.attempted > 0 or name in WITHOUT_EXAMPLE
