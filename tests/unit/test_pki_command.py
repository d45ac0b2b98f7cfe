"""``mycoproxy pki`` as a person or a script uses it: output, exit status, one line for an error."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from mycoproxy.agent.pki_command import pki
from mycoproxy.commands import Commands
from mycoproxy.pki import Credentials


@click.group(cls=Commands)
def main() -> None:
    """The command that ``pki`` is a part of."""


main.add_command(pki)


class Shell:
    """Runs commands; ``{dir}`` is a directory of the test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, line: str) -> Result:
        return CliRunner().invoke(main, ["pki", *line.format(dir=self.path).split()])

    def ok(self, line: str) -> str:
        result = self.run(line)
        assert result.exit_code == 0, result.output
        return result.output

    def json(self, line: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok(f"{line} --json"))
        return found


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    shell.ok("init --dir {dir}/ca --cluster lab")
    shell.ok("issue alpha --dir {dir}/ca --out {dir}/alpha")
    return shell


def test_a_whole_life_in_commands(shell: Shell) -> None:
    made = shell.json("issue beta --dir {dir}/ca --out {dir}/beta --days 7")
    assert made["node"] == "beta"
    assert made["days_left"] == 7.0
    assert (
        shell.json("rotate node beta --dir {dir}/ca --out {dir}/beta")["serial"] != made["serial"]
    )
    assert shell.json("rotate authority --dir {dir}/ca")["rotation"] == "begun"
    shell.ok("install {dir}/ca --out {dir}/alpha")
    shell.ok("install {dir}/ca --out {dir}/beta")
    assert shell.json("rotate authority --dir {dir}/ca --switch")["rotation"] == "switched"
    refused = shell.run("rotate authority --dir {dir}/ca --finish")
    assert refused.exit_code == 3
    assert "nodes alpha, beta" in refused.output
    shell.ok("rotate node alpha --dir {dir}/ca --out {dir}/alpha")
    assert len(shell.json("revoke beta --dir {dir}/ca")["revoked"]) == 2
    assert shell.json("rotate authority --dir {dir}/ca --finish")["rotation"] == "none"
    found = shell.json("install {dir}/ca --out {dir}/alpha")
    assert Credentials.load(shell.path / "alpha").serial == found["serial"]


def test_a_request_goes_to_the_authority_and_a_certificate_comes_back(shell: Shell) -> None:
    shell.ok("request --out {dir}/node")
    shell.ok("issue gamma --dir {dir}/ca --csr {dir}/node/request.csr --out {dir}/given")
    assert "gamma" in shell.ok("install {dir}/given --out {dir}/node")
    assert Credentials.load(shell.path / "node").node == "gamma"


def test_show_lists_the_authority_and_the_newest_certificate_of_each_node(shell: Shell) -> None:
    shell.ok("issue beta --dir {dir}/ca --out {dir}/beta")
    newest = shell.json("rotate node alpha --dir {dir}/ca --out {dir}/alpha")
    shell.ok("revoke beta --dir {dir}/ca")
    found = shell.json("show --dir {dir}/ca")
    assert (found["cluster"], found["rotation"]) == ("lab", "none")
    authority, alpha, beta = found["certificates"]
    assert (authority["kind"], authority["node"]) == ("authority", None)
    assert alpha["serial"] == newest["serial"]
    assert (alpha["node"], alpha["revoked"]) == ("alpha", False)
    assert (beta["node"], beta["revoked"]) == ("beta", True)
    text = shell.ok("show --dir {dir}/ca")
    assert text.splitlines()[0].split()[:3] == ["who", "valid", "until"]
    assert beta["serial"] in text
    assert text.count("revoked") == 1


def test_show_reads_a_nodes_directory_or_one_file(shell: Shell) -> None:
    for source in ("--dir {dir}/alpha", "--file {dir}/alpha/node.pem"):
        node, authority = shell.json(f"show {source}")["certificates"]
        assert (node["node"], authority["kind"]) == ("alpha", "authority")
    assert "alpha" in shell.ok("show --file {dir}/alpha/node.pem")


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("init --dir {dir}/ca", 3, "has an authority already"),
        ("init --dir {dir}/new --cluster A_B", 2, "cannot name a cluster"),
        ("init --dir {dir}/new --days 0", 2, "0 is not in the range"),
        ("init", 2, "Missing option '--dir'"),
        ("issue alpha --dir {dir}/ca --out {dir}/alpha", 3, "is there already"),
        ("issue alpha --dir {dir}/none --out {dir}/x", 2, "has no authority"),
        ("issue x --dir {dir}/ca --csr {dir}/none --out {dir}/x", 1, "cannot read"),
        ("rotate node beta --dir {dir}/ca --out {dir}/alpha", 2, "not for node beta"),
        ("rotate authority --dir {dir}/ca --finish", 3, "no old authority"),
        ("rotate authority --dir {dir}/ca --switch", 3, "no rotation has begun"),
        ("rotate authority --dir {dir}/ca --force", 2, "--finish only"),
        ("revoke --dir {dir}/ca", 2, "one of the two"),
        ("revoke beta --dir {dir}/ca", 2, "no certificate that is still valid"),
        ("show", 2, "one of the two"),
        ("show --dir {dir}", 2, "has neither"),
        ("show --file {dir}/none", 1, "cannot read"),
        ("install {dir}/none --out {dir}/alpha", 1, "cannot read"),
        ("install {dir}/alpha --out {dir}/alpha/node.pem", 1, "cannot make"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    shell: Shell, line: str, status: int, reason: str
) -> None:
    result = shell.run(line)
    assert result.exit_code == status
    assert reason in result.output
    assert "Traceback" not in result.output
    own_words = [each for each in result.stderr.splitlines() if not each.startswith(("Us", "Try"))]
    assert len([each for each in own_words if each]) == 1


@pytest.mark.parametrize("command", ["", *pki.commands, "rotate node", "rotate authority"])
def test_every_command_has_help_with_its_exit_status(command: str) -> None:
    result = CliRunner().invoke(main, ["pki", *command.split(), "--help"])
    assert result.exit_code == 0
    assert "Exit status: 0 done, 1 failed, 2 usage, 3 refused." in result.output
    assert command == "rotate" or "Examples:" in result.output
