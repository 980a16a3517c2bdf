"""Who may use the app: hashed passwords, sessions, and where it may be served without."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from apps.server import Settings
from apps.serving.accounts import TRIES, Accounts, PasswordHash, Sessions, add_user
from hybrid.errors import InputError, RequestError
from tests.apps.served import Served, served
from tests.command import restore

CHEAP = (2, 8, 1)
"""Costs of scrypt that take no time."""


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app with two accounts and an audit log, as behind a proxy that shows it below a path."""
    accounts = Accounts({name: PasswordHash.of(f"{name}'s long password", CHEAP) for name in ("ann", "ben")})
    audit = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    with served(Settings(accounts=accounts, audit=audit, prefix="/imaging")) as it:
        yield it


def test_a_hash_is_of_its_password_alone_and_salted() -> None:
    first, second = PasswordHash.of("correct horse", CHEAP), PasswordHash.of("correct horse", CHEAP)
    assert str(first) != str(second)
    assert PasswordHash.parse(str(first)).fits("correct horse") and not first.fits("correct horsf")


@pytest.mark.parametrize("text", ["secret", "scrypt$16384$8$5$AAAA", "scrypt$3$8$5$AAAA$AAAA", "scrypt$1073741824$8$1$AAAA$AAAA"])
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        PasswordHash.parse(text)


def test_accounts_are_added_and_changed_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "accounts"
    for password in ("first password", "second password"):
        monkeypatch.setattr("sys.stdin", _Piped(password))
        assert restore("app", "--add-user", "ann", "--auth", path).code == 0
    add_user(path, "ben", "a third password")
    accounts = Accounts.read(path)
    assert accounts.verify("ann", "second password") and accounts.verify("ben", "a third password")
    assert not accounts.verify("ann", "first password")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "password" not in path.read_text()


def test_a_short_password_or_a_strange_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least 8"):
        add_user(tmp_path / "accounts", "ann", "short")
    with pytest.raises(RequestError, match="cannot be a name"):
        add_user(tmp_path / "accounts", "ann:root", "long enough")
    assert not list(tmp_path.iterdir())


def test_a_file_with_a_password_in_clear_is_refused_and_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text("ann:hunter2hunter2\n")
    said = restore("app", "--auth", path)
    assert said.code == InputError.exit_code
    assert "Line 1" in said.err and "no hashed password" in said.err and "hunter2" not in said.err


def test_after_wrong_passwords_a_name_has_to_wait() -> None:
    accounts = Accounts({"ann": PasswordHash.of("the right one", CHEAP)})
    for _ in range(TRIES):
        assert not accounts.verify("ann", "a wrong one")
    with pytest.raises(RequestError, match="Wait"):
        accounts.verify("ann", "the right one")
    assert not accounts.verify("ben", "the right one")


def test_a_session_ends_when_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, now = Sessions(idle=100), [0.0]
    monkeypatch.setattr("apps.serving.accounts.time.monotonic", lambda: now[0])
    token = sessions.begin("ann")
    now[0] = 90
    assert sessions.find(token) is not None
    now[0] = 189
    assert sessions.find(token) is not None
    now[0] = 290
    assert sessions.find(token) is None


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ("--root-path", "/imaging"), ("--host", "clinic.example")])
def test_without_accounts_only_this_computer_is_served(arguments: tuple[str, str]) -> None:
    said = restore("app", *arguments)
    assert said.code == RequestError.exit_code and "--auth" in said.err


def test_nothing_is_shown_before_signing_in(clinic: Served) -> None:
    visitor = clinic.visitor()
    assert visitor.enter().headers["location"] == "/imaging/login"
    for path in (
        "/config",
        "/gradio_api/info",
        "/gradio_api/queue/data?session_hash=x",
        "/files/x",
        "/gradio_api/file=/etc/hosts",
    ):
        assert visitor.http.get(path).status_code == 401, path
    assert visitor.send("a.png", b"x").status_code == 401
    assert visitor.http.get("/health").json()["status"] == "ok"


def test_signing_in_and_out(clinic: Served) -> None:
    visitor = clinic.visitor()
    assert visitor.sign_in("ann", "wrong password").status_code == 401
    answer = visitor.sign_in("ann", "ann's long password")
    assert answer.status_code == 303 and "HttpOnly" in answer.headers["set-cookie"] and "SameSite" in answer.headers["set-cookie"]
    assert visitor.enter().status_code == 200
    visitor.http.get("/logout")
    assert visitor.enter().status_code == 303
    log = clinic.context.audit.path.read_text() if clinic.context.audit.path else ""
    assert '"user": "ann", "action": "sign-in", "outcome": "refused"' in log and '"outcome": "done"' in log


def test_below_a_path_addresses_lead_back_there(clinic: Served) -> None:
    """Whether or not the proxy cuts the path off."""
    visitor = clinic.visitor()
    assert 'action="/imaging/login"' in visitor.http.get("/login").text
    answer = visitor.sign_in("ann", "ann's long password")
    assert answer.headers["location"] == "/imaging/" and "Path=/imaging;" in answer.headers["set-cookie"]
    forwarded = {"host": "clinic.example", "x-forwarded-proto": "https"}
    assert visitor.http.get("/config", headers=forwarded).json()["root"] == "https://clinic.example/imaging"
    cookie = answer.headers["set-cookie"].split(";")[0]
    cut = httpx.get(clinic.url.replace("/imaging/", "/config"), headers={"cookie": cookie}, trust_env=False)
    assert cut.status_code == 200 and cut.json()["root"].endswith("/imaging")


def test_a_taken_port_is_told(clinic: Served) -> None:
    said = restore("app", "--port", str(urlsplit(clinic.url).port))
    assert said.code == RequestError.exit_code and "--port" in said.err


def test_the_audit_log_names_no_file_and_no_password(clinic: Served) -> None:
    visitor = clinic.visitor()
    visitor.sign_in("my secret typed as a name", "x")
    visitor.sign_in("ben", "ben's long password")
    visitor.send("Mrs Miller 1950.png", b"content of a scan")
    assert clinic.context.audit.path is not None
    log = clinic.context.audit.path.read_text()
    assert '"user": "ben", "action": "upload"' in log
    assert not any(word in log for word in ("Miller", "1950", "content", "secret"))


class _Piped:
    """Standard input that is no terminal."""

    def __init__(self, text: str) -> None:
        self.text = text

    def isatty(self) -> bool:
        return False

    def readline(self) -> str:
        return self.text + "\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of this computer that no authority signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the test of HTTPS makes its certificate with the command openssl (`apt-get install openssl`)")
    folder = tmp_path_factory.mktemp("https")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", *names)
    subprocess.run([*new, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_with_a_certificate_it_is_https_and_cookies_travel_nowhere_else(certificate: tuple[Path, Path]) -> None:
    accounts = Accounts({"ann": PasswordHash.of("ann's long password", CHEAP)})
    with served(Settings(accounts=accounts, certificate=certificate[0], key=certificate[1])) as app:
        assert app.url.startswith("https://")
        visitor = app.visitor()
        cookie = visitor.sign_in("ann", "ann's long password").headers["set-cookie"]
        assert "Secure" in cookie and visitor.enter().status_code == 200
        assert visitor.send("a.png", b"x").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(app.url.replace("https:", "http:"), trust_env=False)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(app.url, trust_env=False)  # by one who does not trust it


def test_files_that_are_no_certificate_are_told_before_serving(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", certificate[1], "-aes256", "-passout", "pass:word", "-out", locked],
        check=True,
        capture_output=True,
    )
    for pair in ((tmp_path / "cert.pem", certificate[1]), (certificate[0], locked), (certificate[1], certificate[0])):
        said = restore("app", "--certificate", pair[0], "--key", pair[1])
        assert said.code == InputError.exit_code and "no certificate and its key" in said.err, said
    assert restore("app", "--certificate", certificate[0]).code == RequestError.exit_code
