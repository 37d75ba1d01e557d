"""One tiny model folder for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_runs


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_tiny_model(tmp_path_factory.mktemp("model"))
