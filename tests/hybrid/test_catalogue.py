"""The catalogue, and the order in which weights are found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.errors import RequestError, WeightsError
from hybrid.weights.catalogue import Catalogue
from hybrid.weights.find import Store, fallback, fallback_notice, resolve

ROOT = Path(__file__).resolve().parents[2]
BODY = b"what the file holds is not looked at here"
DOCUMENT = """
format: 1
models:
  net:
    {family: f, title: Net, summary: s, code_licence: MIT, weights_licence: unknown, training_data: d, fallback: small,
     files: {2: {name: n2.pth, page: "https://example.org/page"}, 4: {name: n4.pth, urls: ["https://example.org/a/mirrored%20n4.pth"]}}}
  small:
    {family: f, title: Small, summary: s, code_licence: MIT, weights_licence: own, training_data: d,
     files: {4: {name: small.safetensors, shipped: weights/small.safetensors}}}
"""


def load(tmp_path: Path, text: str = DOCUMENT) -> Catalogue:
    (tmp_path / "catalogue.yaml").write_text(text, encoding="utf-8")
    return Catalogue.load(tmp_path / "catalogue.yaml", tmp_path / "package")


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    (tmp_path / "package" / "weights").mkdir(parents=True)
    (tmp_path / "package" / "weights" / "small.safetensors").write_bytes(BODY)
    return load(tmp_path)


def test_order_of_sources(tmp_path: Path, catalogue: Catalogue) -> None:
    store = Store(tmp_path / "cache")
    given = tmp_path / "mine.pth"
    given.write_bytes(BODY)
    for form in (given, str(given)):
        assert resolve(form, 3, catalogue, store, allow_download=False).origin == "file"
    shipped = resolve("small", None, catalogue, store, allow_download=False)
    assert (shipped.origin, shipped.scale, shipped.path) == ("shipped", 4, tmp_path / "package/weights/small.safetensors")
    with pytest.raises(WeightsError, match=r"n4\.pth of net are not in the cache.*restore models pull net --scale 4"):
        resolve("net", 4, catalogue, store, allow_download=False)
    with pytest.raises(WeightsError, match=r"n2\.pth of net.*Open https://example\.org/page .* models import n2\.pth"):
        resolve("net", 2, catalogue, store, allow_download=False)
    store.folder.mkdir()
    (store.folder / "n4.pth").write_bytes(BODY)
    found = resolve("NET", 4, catalogue, store, allow_download=False)
    assert (found.origin, found.path, found.entry) == ("cache", store.folder / "n4.pth", catalogue.entry("net"))


def test_requests_that_cannot_be_met(tmp_path: Path, catalogue: Catalogue) -> None:
    store = Store(tmp_path / "cache")
    for asked, scale, error, message in [
        ("smal", 4, RequestError, "no model named 'smal'. Did you mean small?"),
        ("zzzzzz", 4, RequestError, "Known: net, small"),
        ("net", 3, RequestError, "net has no weights for scale 3. Its scales: 2, 4."),
        ("net", None, RequestError, "net has several scales. Say which scale: 2, 4."),
        ("absent.pth", 4, WeightsError, "There is no file absent.pth"),
        ("some/where", 4, WeightsError, "There is no file some/where"),
        (str(tmp_path), 4, WeightsError, "is a folder"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            resolve(asked, scale, catalogue, store, allow_download=False)


def test_fallback_is_the_callers_step(tmp_path: Path, catalogue: Catalogue) -> None:
    net, small = catalogue.entry("net"), catalogue.entry("small")
    assert fallback(catalogue, net, 4) == small
    assert fallback(catalogue, net, 2) is None and fallback(catalogue, small, 4) is None
    why = WeightsError("n4.pth is not here.", hint="Get it: restore models pull net --scale 4")
    notice = fallback_notice(net, small, why)
    assert "\n" not in notice and "Using small" in notice and "restore models pull net --scale 4" in notice
    (tmp_path / "package/weights/small.safetensors").unlink()
    assert fallback(catalogue, net, 4) is None
    with pytest.raises(WeightsError, match=r"installation lacks small\.safetensors"):
        resolve("small", 4, catalogue, Store(tmp_path / "cache"), allow_download=False)


def test_downloaded_files_are_known_by_name(catalogue: Catalogue) -> None:
    net = catalogue.entry("net")
    assert catalogue.whose_file("n4.pth") == catalogue.whose_file("mirrored n4.pth") == (net, 4)
    assert catalogue.whose_file("n2.pth") == (net, 2) and catalogue.whose_file("x.pth") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Net", "titel: Net", "models.net.title: Field required; models.net.titel: Extra inputs"),
        ("format: 1", "format: 2", "format"),
        ("n2.pth", "../n2.pth", "models.net.files.2.name"),
        ("n2.pth", "n4.pth", "their names must differ: n4.pth"),
        ("weights/small.safetensors", "../small.safetensors", "inside the package"),
        ("https://example.org/a", "http://example.org/a", "models.net.files.4.urls.0"),
        ("fallback: small", "fallback: net", "fallback net is not a shipped model"),
        ('page: "https://example.org/page"', "size: 3", "needs urls, a page, or a shipped path"),
        ("  small:", "  net:", "the key 'net' is given twice"),
        ("files: {2:", "files: {2: [", "not valid YAML"),
        ("models:", "models: 3\nx:", "is not valid"),
    ],
)
def test_faults_of_a_catalogue_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DOCUMENT
    with pytest.raises(WeightsError, match=re.escape(message)):
        load(tmp_path, DOCUMENT.replace(old, new))


def test_missing_catalogue(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        Catalogue.load(tmp_path / "absent.yaml", tmp_path)


def test_the_picture_catalogue_needs_no_torch() -> None:
    code = (
        "import sys, json; from pathlib import Path; from hybrid.weights.catalogue import Catalogue; import hybrid.weights.find;"
        "c = Catalogue.load(Path('restore/weights/catalogue.yaml'), Path('restore'));"
        "print(json.dumps({e.name: [sorted(e.files), e.shipped] for e in c}), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    models, torch_loaded = out.rsplit(maxsplit=1)
    assert torch_loaded == "False"
    found = json.loads(models)
    assert {name: found[name] for name in ("hat", "real-hat-gan", "hat-compact", "cfsr-compact")} == {
        "hat": [[2, 3, 4], False],
        "real-hat-gan": [[4], False],
        "hat-compact": [[2, 3, 4], True],
        "cfsr-compact": [[2, 3, 4], True],
    }


def test_published_values_of_the_picture_catalogue() -> None:
    """Spot checks, and the order that the paper reports at every scale and on every set: S < HAT < ImageNet < L."""
    c = Catalogue.load(ROOT / "restore/weights/catalogue.yaml", ROOT / "restore")
    assert c.entry("hat-l").files[4].published["urban100"] == {"psnr": 28.60, "ssim": 0.8498}
    assert c.entry("hat-s").files[2].published["set5"] == {"psnr": 38.58, "ssim": 0.9628}
    for scale in (2, 3, 4):
        tables = [c.entry(name).files[scale].published for name in ("hat-s", "hat", "hat-imagenet", "hat-l")]
        for data in ("set5", "set14", "bsd100", "urban100", "manga109"):
            for metric in ("psnr", "ssim"):
                values = [table[data][metric] for table in tables]
                assert values == sorted(values), (scale, data, metric)
    assert c.entry("real-hat-gan").files[4].published == {}
    assert c.entry("hat").files[4].urls == ("https://github.com/OpenModelDB/model-hub/releases/download/hat/4x-HAT_SR.pth",)
