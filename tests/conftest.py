"""What all tests share."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from hybrid.weights.catalogue import Catalogue
from restore.loading import catalogue

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HYBRID_AUTO_PRECISION", "float32")  # no test shall depend on how fast this machine is today

# A failure is found again by running again; `--hypothesis-profile=default` draws other examples each time.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What is drawn without a seed is the same whichever tests ran in this process before."""
    random.seed(0)
    np.random.seed(0)  # libraries draw from it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity cases and benchmark data beside the repository; tests that need it are skipped without it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the parity and benchmark data in {folder}, which this checkout does not have beside it")
    return folder


@pytest.fixture
def small_for_hat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue without HAT x4's number of parameters, so that the small shipped network can play its part."""
    whole = catalogue()
    entry = whole.entry("hat")
    small = entry.model_copy(update={"files": entry.files | {4: entry.files[4].model_copy(update={"parameters": None})}})
    known = Catalogue(whole.entries | {"hat": small}, whole.package)
    monkeypatch.setattr("restore.loading.catalogue", lambda: known)
