"""The package as it is installed: built from a clean copy, looked into, and run from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hybrid", "restore", "medical", "apps", "data_specs")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed, run without the paths of this one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the setuptools that is here, so that no network is needed, from a copy, so that nothing is left here."""
    pytest.importorskip("setuptools", minversion="77", reason="building the package needs setuptools 77 or later")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel alone; all that it depends on is lent by this one."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, symlinks=os.name != "nt")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    run(sys.executable, "-m", "pip", "--python", folder, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    # A .pth file in a lent folder is not followed, so that an editable install there stays out of sight.
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "lent.pth").write_text("".join(f"{path}\n" for path in sorted(lent)))
    return folder


def test_the_wheel_holds_what_runs_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for pattern in ("*.py", "*.yaml", "*.sha256", "*.safetensors", "weights/*.json", "mini/*")
        for path in (ROOT / package).rglob(pattern)
        if "__pycache__" not in path.parts
    }
    for name in ("restore/recipes/hat-compact-x4.yaml", "restore/weights/catalogue.yaml", "data_specs/set5.yaml"):
        assert name in wanted  # so that the comparison below cannot be empty
    assert any(name.endswith(".safetensors") for name in wanted) and any("/mini/" in name for name in wanted)
    assert wanted - held == set()
    extra = {name.split("/")[0] for name in held} - set(PACKAGES)
    assert len(extra) == 1 and extra.pop().endswith(".dist-info")
    assert not [name for name in held if Path(name).name.startswith(("test_", "conftest")) or "__pycache__" in name]


def test_the_installed_command_enlarges_a_picture_elsewhere(installed: Path, tmp_path: Path) -> None:
    scripts = Path(sysconfig.get_path("scripts", vars={"base": str(installed)}))
    python = scripts / Path(sys.executable).name
    code = "import restore, hybrid, apps, data_specs\nfor each in (restore, hybrid, apps, data_specs): print(each.__file__)"
    for place in run(python, "-c", code, cwd=tmp_path).splitlines():
        assert Path(place).is_relative_to(installed)
    Image.new("RGB", (12, 10), (30, 90, 150)).save(tmp_path / "in.png")
    settings = {"RESTORE_OFFLINE": "1", "HYBRID_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run(scripts / "restore", "sr", "in.png", "--model", "hat-compact", cwd=tmp_path, **settings)
    with Image.open(tmp_path / "in_x4.png") as judge:
        assert judge.size == (48, 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "in_x4.png", "in_x4.png.json"]
