"""Classical methods beside the networks of a benchmark."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from data_specs import RestorationSpec, load_spec
from hybrid.errors import RequestError
from restore.evaluation.baselines import BASELINES, baseline, names
from restore.evaluation.engine import Method
from restore.evaluation.restoration import RestorationCase, RestorationTest, plan_restoration


def case_of(task: str) -> RestorationCase:
    spec = load_spec("mini", RestorationSpec, task)
    test_set = plan_restoration(
        [spec], [Method("same", lambda given: given)], levels=spec.levels[1:2] if spec.levels[0] else ()
    ).sets[0]
    assert isinstance(test_set, RestorationTest)
    case = test_set.read(0)
    crop = np.s_[40:136, 40:136]
    return RestorationCase(case.reference[crop], case.given[crop], case.sigma, case.kernel, case.quality)


@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for task in ("denoising", "deblurring", "jpeg") for name in names(task)[1:] if name != "bm3d"]
)
def test_classical_methods_beat_the_degraded_picture(task: str, name: str) -> None:
    case = case_of(task)
    if BASELINES[name].needs:
        pytest.importorskip(BASELINES[name].needs)
    method = baseline(name, task)
    assert method is not None and method.run is not None
    before = case.given.copy()
    result = method.run(case)
    assert result.dtype == np.float32 and result.shape == case.given.shape
    np.testing.assert_array_equal(case.given, before)
    levels = [peak_signal_noise_ratio(case.reference / 255, np.clip(each, 0, 1), data_range=1) for each in (case.given, result)]
    assert levels[1] > levels[0] + 0.2


def test_grey_pictures_go_through_the_classical_denoisers() -> None:
    case = case_of("denoising")
    grey = RestorationCase(case.reference[..., :1], case.given[..., :1], case.sigma)  # type: ignore[index]
    for name in ("bilateral", "tv-chambolle", "wavelet", "nl-means"):
        method = baseline(name, "denoising")
        assert method is not None and method.run is not None and method.run(grey).shape == grey.given.shape


def test_a_package_that_is_missing_makes_a_skipped_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm3d", None)
    method = baseline("bm3d", "denoising")
    assert method is not None and method.run is None and "pip install bm3d" in str(method.skipped)


@pytest.mark.parametrize(
    ("name", "task"), [("nl-means", "denoising"), ("richardson-lucy", "deblurring"), ("shifted-jpeg", "jpeg")]
)
def test_methods_that_must_be_told_say_so(name: str, task: str) -> None:
    method = baseline(name, task)
    assert method is not None and method.run is not None
    with pytest.raises(RequestError, match="Choose a set"):
        method.run(RestorationCase(None, np.zeros((20, 20, 3), np.float32)))
