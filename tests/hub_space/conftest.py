"""A Space that runs while the tests of one file do."""

import pytest

from .running_space import running_space


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    with running_space(tmp_path_factory.mktemp("space")) as running:
        yield running
