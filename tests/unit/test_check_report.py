"""What becomes of the probes' answers: items, exit status, JSON and table."""

import io
import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner
from rich.console import Console

from mycoproxy import cli
from mycoproxy.check.report import OPTIONAL, RUN_AS_ROOT, Probe, Report, UnmetError, examine
from mycoproxy.errors import RefusedError, UsageError


def there() -> str:
    return "it is [here]"


def raises(error: Exception) -> Callable[[], str]:
    def ask() -> str:
        raise error

    return ask


def probe(ask: Callable[[], str], *, needed: str = "it", needs_root: bool = False) -> Probe:
    return Probe("thing", needed, "get it", ask, needs_root=needs_root)


def test_found_thing_needs_no_fix() -> None:
    (item,) = examine([probe(there)], is_root=True).items
    assert (item.ok, item.found, item.needed, item.fix) == (True, "it is [here]", "it", "")


def test_unmet_need_says_what_to_do() -> None:
    (item,) = examine([probe(raises(UnmetError("3.17")))], is_root=True).items
    assert (item.ok, item.found, item.fix) == (False, "3.17", "get it")


def test_probe_may_know_a_better_fix() -> None:
    (item,) = examine([probe(raises(UnmetError("x", fix="other")))], is_root=True).items
    assert item.fix == "other"


@pytest.mark.parametrize("error", [OSError(1, "no"), RefusedError("no"), ValueError("no")])
def test_probe_that_breaks_does_not_hide_the_others(error: Exception) -> None:
    report = examine([probe(raises(error)), probe(there)], is_root=True)
    assert [item.ok for item in report.items] == [False, True]
    assert type(error).__name__ in report.items[0].found


def test_without_root_a_probe_that_needs_it_is_not_asked() -> None:
    asked = raises(AssertionError("asked"))
    (item,) = examine([probe(asked, needs_root=True)], is_root=False).items
    assert (item.ok, item.found, item.fix) == (False, "not tested", RUN_AS_ROOT)


def test_optional_thing_that_is_missing_leaves_the_report_ok() -> None:
    report = examine([probe(raises(UnmetError("no")), needed=OPTIONAL)], is_root=True)
    assert report.ok
    assert not report.items[0].ok


GOOD = examine([probe(there)], is_root=True)
BAD = examine([probe(there), probe(raises(UnmetError("[no]")))], is_root=True)


@pytest.mark.parametrize(("report", "status"), [(GOOD, 0), (BAD, 1)])
@pytest.mark.parametrize("arguments", [["check"], ["check", "--json"]])
def test_exit_status_tells_whether_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, report: Report, status: int, arguments: list[str]
) -> None:
    monkeypatch.setattr(cli, "check_machine", lambda: report)
    assert CliRunner().invoke(cli.main, arguments).exit_code == status


def test_json_has_the_documented_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "check_machine", lambda: BAD)
    printed = json.loads(CliRunner().invoke(cli.main, ["check", "--json"]).stdout)
    assert printed == {
        "ok": False,
        "items": [
            {"name": "thing", "ok": True, "found": "it is [here]", "needed": "it", "fix": ""},
            {"name": "thing", "ok": False, "found": "[no]", "needed": "it", "fix": "get it"},
        ],
    }


def test_table_shows_brackets_as_they_are_and_sums_up() -> None:
    out = io.StringIO()
    cli.print_report(BAD, Console(file=out, width=100))
    assert "it is [here]" in out.getvalue()
    assert "[no]" in out.getvalue()
    assert out.getvalue().rstrip().endswith("Missing: thing")


@pytest.mark.parametrize(("error", "status"), [(RefusedError("no"), 3), (UsageError("no"), 2)])
def test_an_error_is_one_line_with_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    monkeypatch.setattr(cli, "check_machine", raises(error))
    result = CliRunner().invoke(cli.main, ["check"], prog_name="mycoproxy")
    assert result.exit_code == status
    assert result.stderr == "mycoproxy: no\n"


def test_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(cli.main, ["nosuch"]).exit_code == 2
