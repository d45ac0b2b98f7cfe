"""``mycoproxy pki``: the cluster's authority and the nodes' certificates, for a person or a script.

What a command needs is imported when it runs: ``--help`` shall not wait for a crypto library.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mycoproxy.errors import UsageError

if TYPE_CHECKING:
    from cryptography import x509

    from mycoproxy.pki.credentials import Credentials

_STATUS = "\b\nExit status: 0 done, 1 failed, 2 usage, 3 refused."


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + f"\n\n{_STATUS}"


_path = click.Path(path_type=Path)
_dir_option = click.option(
    "--dir", "directory", type=_path, required=True, help="The authority's directory."
)
_out_option = click.option(
    "--out", type=_path, required=True, help="The node's directory; made if it is not there."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout.")
_node_days_option = click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=30,
    show_default=True,
    help="How long it is valid.",
)
_authority_days_option = click.option(
    "--days",
    type=click.IntRange(1, 36500),
    default=5 * 365,
    show_default=True,
    help="How long it is valid.",
)


@click.group(
    epilog=_examples(
        "mycoproxy pki init --dir /root/pki --cluster lab",
        "mycoproxy pki issue alpha --dir /root/pki --out alpha",
        "mycoproxy pki rotate node alpha --dir /root/pki --out alpha",
        "mycoproxy pki show --dir /root/pki",
    )
)
def pki() -> None:
    """Certificates: the cluster's authority, and one for each node.

    Agents speak only with nodes that show a certificate of their cluster's authority. The
    authority's directory belongs on one safe machine; a node gets a directory of its own.
    """


@pki.command(
    epilog=_examples(
        "mycoproxy pki init --dir /root/pki",
        "mycoproxy pki init --dir /root/pki --cluster lab --days 3650",
    )
)
@_dir_option
@click.option("--cluster", default="mycoproxy", show_default=True, help="The cluster's name.")
@_authority_days_option
@_json_option
def init(directory: Path, cluster: str, days: int, as_json: bool) -> None:
    """Make the authority of a new cluster. Refuses where there is one."""
    from mycoproxy.pki.authority_directory import AuthorityDirectory  # noqa: PLC0415

    made = AuthorityDirectory.create(directory, cluster=cluster, lifetime=timedelta(days=days))
    _say(made.authority().certificate, f"the authority of {cluster} is in {directory}", as_json)


@pki.command(
    epilog=_examples(
        "mycoproxy pki issue alpha --dir /root/pki --out alpha",
        "mycoproxy pki issue alpha --dir /root/pki --csr request.csr --out for-alpha",
    )
)
@click.argument("node")
@_dir_option
@_out_option
@click.option("--csr", type=_path, help="Sign the key of this request instead of making a key.")
@_node_days_option
@_json_option
def issue(
    *, node: str, directory: Path, out: Path, csr: Path | None, days: int, as_json: bool
) -> None:
    """Make the key and certificate of NODE, with the authorities that it trusts.

    With --csr the node keeps its key: NODE's name is taken from here and only the key from the
    request, and `mycoproxy pki install` on the node puts the two together.
    """
    from mycoproxy.pki.authority_directory import AuthorityDirectory  # noqa: PLC0415
    from mycoproxy.pki.files import read_file  # noqa: PLC0415

    authority, lifetime = AuthorityDirectory(directory), timedelta(days=days)
    if csr is None:
        certificate = authority.issue(node, out, lifetime=lifetime)
    else:
        certificate = authority.issue_for_request(node, read_file(csr), out, lifetime=lifetime)
    _say(certificate, f"the certificate of {node} is in {out}", as_json)


@pki.command(epilog=_examples("mycoproxy pki request --out /etc/mycoproxy/pki"))
@_out_option
@_json_option
def request(out: Path, as_json: bool) -> None:
    """On a node: make a key that stays here, and a request to take to the authority."""
    from mycoproxy.pki.node_directory import make_request  # noqa: PLC0415

    path = make_request(out)
    if as_json:
        click.echo(json.dumps({"request": str(path)}, indent=2))
    else:
        click.echo(f"take {path} to the authority: mycoproxy pki issue NODE --csr {path.name} ...")


@pki.command(
    epilog=_examples(
        "mycoproxy pki install for-alpha --out /etc/mycoproxy/pki",
        "mycoproxy pki install /root/pki --out alpha     trust and refuse whom the authority does",
    )
)
@click.argument("source", type=_path)
@_out_option
@_json_option
def install(source: Path, out: Path, as_json: bool) -> None:
    """Bring what an authority made into a node's directory, at one stroke.

    SOURCE is a directory (or a copy of one) that `issue` made, with or without --csr, or one with
    an authority's public files `authorities.pem` and `revoked`: then the node's own key and
    certificate stay. Nothing changes if it does not fit together. Agents notice by themselves.
    """
    from mycoproxy.pki.node_directory import install as install_files  # noqa: PLC0415

    found: Credentials = install_files(source, out)
    trusted = len(found.authorities)
    _say(found.certificate, f"{found.node} in {out} trusts authorities: {trusted}", as_json)


@pki.group(epilog=_STATUS)
def rotate() -> None:
    """Replace a node's certificate or the cluster's authority; agents go on talking."""


@rotate.command(
    name="node", epilog=_examples("mycoproxy pki rotate node alpha --dir /root/pki --out alpha")
)
@click.argument("node")
@_dir_option
@_out_option
@_node_days_option
@_json_option
def rotate_node(node: str, directory: Path, out: Path, days: int, as_json: bool) -> None:
    """Give NODE a new key and certificate in place, at one stroke.

    The old certificate runs out by itself; if its key was stolen, revoke it first.
    """
    from mycoproxy.pki.authority_directory import AuthorityDirectory  # noqa: PLC0415

    lifetime = timedelta(days=days)
    certificate = AuthorityDirectory(directory).rotate_node(node, out, lifetime=lifetime)
    _say(certificate, f"the new certificate of {node} is in {out}", as_json)


@rotate.command(
    name="authority",
    epilog=_examples(
        "mycoproxy pki rotate authority --dir /root/pki              then install on every node",
        "mycoproxy pki rotate authority --dir /root/pki --switch     then rotate every node",
        "mycoproxy pki rotate authority --dir /root/pki --finish     then install on every node",
    ),
)
@_dir_option
@click.option("--switch", "step", flag_value="switch", help="Sign with the new one from now on.")
@click.option("--finish", "step", flag_value="finish", help="Trust the old one no more.")
@click.option("--force", is_flag=True, help="Finish although nodes still need the old one.")
@_authority_days_option
@_json_option
def rotate_authority(
    directory: Path, step: str | None, force: bool, days: int, as_json: bool
) -> None:
    """Replace the cluster's authority, in three steps.

    Without an option: make the new one; nodes shall trust both, the old one still signs. Between
    two steps every node must get what the last step made, or it falls out of the cluster.
    """
    from mycoproxy.pki.authority_directory import AuthorityDirectory  # noqa: PLC0415

    if force and step != "finish":
        raise UsageError("--force goes with --finish only")
    authority = AuthorityDirectory(directory)
    if step == "finish":
        authority.finish(force=force)
        text = "the old authority is trusted no more; now on every node: mycoproxy pki install"
    elif step == "switch":
        authority.switch()
        text = "the new authority signs; now for every node: mycoproxy pki rotate node"
    else:
        authority.begin_rotation(lifetime=timedelta(days=days))
        text = "nodes shall trust both authorities; now on every node: mycoproxy pki install"
    newest = authority.trusted()[-1]
    _say(newest, text, as_json, extra={"rotation": str(authority.rotation())})


@pki.command(
    epilog=_examples(
        "mycoproxy pki revoke beta --dir /root/pki          then install on every node",
        "mycoproxy pki revoke --serial 3f2a... --dir /root/pki",
    )
)
@click.argument("node", required=False)
@click.option("--serial", help="Only the certificate with this serial number.")
@_dir_option
@_json_option
def revoke(node: str | None, serial: str | None, directory: Path, as_json: bool) -> None:
    """Shut out every certificate that NODE has now, or one of them.

    It takes effect on a node once the list is there: `mycoproxy pki install`.
    """
    from mycoproxy.pki.authority_directory import AuthorityDirectory  # noqa: PLC0415

    if (node is None) == (serial is None):
        raise UsageError("the name of a node or --serial is wanted, one of the two")
    found = AuthorityDirectory(directory).revoke(node=node, serial=serial)
    if as_json:
        rows = [{"node": each.node, "serial": each.serial} for each in found]
        click.echo(json.dumps({"revoked": rows}, indent=2))
        return
    for each in found:
        click.echo(f"revoked {each.serial} of {each.node}")
    click.echo("now on every node: mycoproxy pki install")


@pki.command(
    epilog=_examples(
        "mycoproxy pki show --dir /root/pki",
        "mycoproxy pki show --file /etc/mycoproxy/pki/node.pem --json",
    )
)
@click.option("--dir", "directory", type=_path, help="An authority's directory or a node's.")
@click.option("--file", type=_path, help="A PEM file with certificates.")
@_json_option
def show(directory: Path | None, file: Path | None, as_json: bool) -> None:
    """Say who has a certificate, until when it is valid, and its serial number."""
    from mycoproxy.pki import overview  # noqa: PLC0415
    from mycoproxy.pki.pem import utc_now  # noqa: PLC0415

    if directory is not None and file is None:
        found = overview.of_directory(directory, now=utc_now())
    elif file is not None and directory is None:
        found = overview.of_file(file, now=utc_now())
    else:
        raise UsageError("--dir or --file is wanted, one of the two")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(_as_text(found))


def _as_text(found: dict[str, Any]) -> str:
    rows = [("who", "valid until", "days left", "serial", "")]
    for each in found["certificates"]:
        who = each["node"] or f"authority of {each['cluster']}"
        marks = (("ran out", each["days_left"] < 0), ("revoked", each["revoked"]))
        mark = ", ".join(word for word, holds in marks if holds)
        rows.append((who, each["not_after"], f"{each['days_left']:.1f}", each["serial"], mark))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if found.get("rotation", "none") != "none":
        lines.append(f"a rotation of the authority has {found['rotation']}")
    return "\n".join(lines)


def _say(
    certificate: x509.Certificate, text: str, as_json: bool, *, extra: dict[str, Any] | None = None
) -> None:
    from mycoproxy.pki import overview  # noqa: PLC0415
    from mycoproxy.pki.pem import utc_now  # noqa: PLC0415

    found = overview.of_certificate(certificate, now=utc_now()) | (extra or {})
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"{text} (valid until {found['not_after']}, serial {found['serial']})")
