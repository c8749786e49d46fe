"""Comparisons to report, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.comparisons import write_comparison


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five strategies on three subjects with two seeds, with pictures; never write to its runs."""
    return write_comparison(tmp_path_factory.mktemp("comparison"))
