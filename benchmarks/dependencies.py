"""Write docs/dependencies.md: the direct dependencies, their pinned versions, licences as installed, and what each is for.

    python -m benchmarks.dependencies            # writes the page
    python -m benchmarks.dependencies --all      # prints every installed distribution with its licence

Run it in the environment that `make` builds. A test holds page, pyproject.toml and constraints.txt in step.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
OWN = "hybrid-imaging"

WHY = {
    "torch": "networks",
    "numpy": "arrays",
    "scipy": "sparse resize matrices, statistics, distance maps",
    "pyvips": "pictures of every depth, profile and size; brings libvips with `[binary]`",
    "pillow": "AVIF, ICC profiles",
    "tifffile": "TIFF fields that libvips does not keep",
    "safetensors": "weights, in files that hold no code",
    "psutil": "memory that is free, CPU cores",
    "pooch": "downloads with checksums",
    "pydantic": "files that people write: recipes, catalogues, data sets",
    "pyyaml": "the same",
    "typer": "commands",
    "rich": "progress, tables in a terminal",
    "matplotlib": "plots of reports",
    "scikit-image": "classical methods beside the networks, surfaces",
    "nibabel": "NIfTI",
    "pydicom": "DICOM",
    "highdicom": "DICOM SEG",
    "python-gdcm": "compressed DICOM: JPEG, JPEG lossless, JPEG 2000",
    "pyjpegls": "compressed DICOM: JPEG-LS",
    "monai": "transforms and losses of 3-D training",
    "kornia": "warps, layers of the face detector",
    "gradio": "the app",
    "fastapi": "serves the app",
    "uvicorn": "serves the app",
    "fsspec": "inputs and outputs on other machines",
    "lightning-fabric": "training on several processes and devices",
    "tensorboard": "curves of a training, where asked for",
    "ray": "batches on a cluster",
    "onnx": "exported networks",
    "onnxruntime": "runs and checks exported networks",
    "onnxscript": "exported networks",
    "openvino": "exported networks on Intel's processors",
}
"""What the product needs each for. Tools of the tests (extra `dev`) never reach a user and are named alone."""

CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: MIT No Attribution License (MIT-0)": "MIT-0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0",
    "License :: OSI Approved :: GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "License :: OSI Approved :: The Unlicense (Unlicense)": "Unlicense",
}
KNOWN_TEXTS = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache": "Apache-2.0",
    "LICENSE.txt": "Apache-2.0",
    "MIT License": "MIT",
    "The MIT License (MIT)": "MIT",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "ISC License": "ISC",
}
"""What metadata write in their own words."""
BINARY = """
Wheels bring compiled libraries with licences of their own. Those under the LGPL are linked dynamically and can be replaced:
libvips and what it is built on, in `pyvips-binary`. `python-gdcm` holds GDCM (BSD-3-Clause), `pyjpegls` CharLS (BSD-3-Clause).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every installed distribution instead")
    if parser.parse_args().all:
        for found in sorted(distributions(), key=lambda each: key_of(each.name)):
            print(f"{found.name}=={found.version}\t{licence(found)}")
        return
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The page, from pyproject.toml, constraints.txt and what is installed here."""
    parts = [
        "# Dependencies\n",
        "Written by `python -m benchmarks.dependencies` from `pyproject.toml`, `constraints.txt` (the versions that the tests",
        "were run with, which `make` installs) and the metadata of the installed packages.\n",
    ]
    for title, names in direct().items():
        if title == "dev":
            parts += ["## Tools of the tests (`dev`)\n", ", ".join(f"{name} {pinned(name)}" for name in names) + ".\n"]
            continue
        parts += [f"## {'Core' if title == 'core' else f'Extra `{title}`'}\n"]
        parts += ["| package | version | licence | why |", "|---|---|---|---|"]
        parts += [f"| {name} | {pinned(name)} | {of_installed(name)} | {WHY[name]} |" for name in names]
        parts.append("")
    rows = [f"| {found.name} | {found.version} | {licence(found)} |" for found in copyleft()]
    parts += [
        "## Licences that ask for more than a notice\n",
        "Of all pinned packages, direct and indirect, tools of the tests included:\n",
    ]
    parts += ["| package | version | licence |", "|---|---|---|", *rows, BINARY]
    parts += [AUDIT]
    return "\n".join(parts)


AUDIT = """## Audit and bill of materials

    make audit      # pip-audit over constraints.txt: known vulnerabilities of the pinned versions
    make sbom       # build/sbom.json: CycloneDX, of everything that is installed

Both install their tool into an environment of its own (`.venv/tools`), so that the product does not depend on it. `make audit`
asks PyPI, and fails where that cannot be reached or does not know a version: a list that could not be looked up is no clean one.
The versions above have not been looked up yet: PyPI's list of vulnerabilities could not be reached where this page was written.

The bill lists the direct and indirect packages of the environment with versions, licences and addresses; two runs in one
environment write the same bytes.
"""


def direct() -> dict[str, list[str]]:
    """Names of the direct dependencies, of the core and of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    named = {title: [re.split(r"[\[<>=!~; ]", each)[0] for each in asked] for title, asked in groups.items()}
    return {title: [name for name in names if name != OWN] for title, names in named.items()}


def pinned(name: str) -> str:
    """The version in constraints.txt; of torch, which the Makefile pins, the one there."""
    if name == "torch":
        found = re.search(r"torch==([\d.]+)", (ROOT / "Makefile").read_text())
    else:
        lines = (ROOT / "constraints.txt").read_text()
        found = next((m for m in re.finditer(r"^([\w.-]+)==(\S+)$", lines, re.M) if key_of(m[1]) == key_of(name)), None)
        return found[2] if found else "not pinned"
    return found[1] if found else "not pinned"


def of_installed(name: str) -> str:
    try:
        return licence(distribution(name))
    except PackageNotFoundError:
        return "not installed here"


def licence(found: Distribution) -> str:
    """The licence as metadata tell it: the expression, the classifiers, or the first line of the text."""
    told = found.metadata
    if expression := told.get("License-Expression"):
        return str(expression)
    classified = [each for each in told.get_all("Classifier") or [] if each.startswith("License :: OSI")]
    line = next(iter((told.get("License") or "").strip().splitlines()), "").strip()
    line = KNOWN_TEXTS.get(line, line)
    if re.match(r"(MIT|BSD|Apache|ISC|PSF|[AL]?GPL|MPL)", line):
        return line
    named = " and ".join(CLASSIFIERS.get(each, each.rsplit(" :: ", 1)[-1]) for each in classified)
    return named or ("as in its text" if told.get("License") or told.get_all("License-File") else "not told")


def copyleft() -> list[Distribution]:
    """Pinned packages, direct and indirect, under licences of the GPL family or the MPL."""
    marks = ("GPL", "MPL", "Mozilla", "EUPL")
    names = {key_of(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    found = {key_of(each.name): each for each in distributions() if key_of(each.name) in names}
    return [found[name] for name in sorted(found) if any(mark in licence(found[name]) for mark in marks)]


def key_of(name: str) -> str:
    """A name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
