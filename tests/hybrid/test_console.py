"""How far work has come, told where nobody watches a bar."""

from __future__ import annotations

import pytest

from hybrid.console import LINES, counted, messages


def lines(total: int, capsys: pytest.CaptureFixture[str], *, quiet: bool = False) -> list[str]:
    with counted(messages(quiet=quiet), "cases", total) as tell:
        for done in range(1, total + 1):
            tell(done, total)
    return capsys.readouterr().err.splitlines()


def test_few_steps_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(3, capsys)
    assert [line.split(",")[0] for line in said] == ["cases: 1 of 3", "cases: 2 of 3", "cases: 3 of 3"]
    assert "left" in said[0] and "left" not in said[-1]


def test_many_steps_have_the_first_and_every_twentieth_part(capsys: pytest.CaptureFixture[str]) -> None:
    said = [int(line.split()[1]) for line in lines(1000, capsys)]
    assert said == [1, *range(50, 1001, 50)] and len(said) == LINES + 1


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(5, capsys, quiet=True) == []
