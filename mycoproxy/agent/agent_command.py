"""``mycoproxy agent``: be the daemon of this node, or say what it would do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from mycoproxy.errors import UsageError


@click.command(
    epilog="""\b
Examples:
  mycoproxy agent                                 in the foreground; systemd starts it so
  mycoproxy agent --config my.toml
  mycoproxy agent --check-config
  mycoproxy agent --print-config                  what is in use, and who said it
  mycoproxy agent --print-example > agent.toml    every key, its default, what it is for
  MYCOPROXY_LOG_FORMAT=json mycoproxy agent

\b
Signals: SIGTERM, SIGINT stop (a second one at once), SIGHUP reloads.
Exit status: 0 stopped, 1 failed, 2 configuration, 3 another agent is running."""
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="The file. Default: $MYCOPROXY_CONFIG, else /etc/mycoproxy/agent.toml if it is there.",
)
@click.option("--check-config", "mode", flag_value="check", help="Say what is wrong, and end.")
@click.option("--print-config", "mode", flag_value="print", help="Print the one in use, and end.")
@click.option("--print-example", "mode", flag_value="example", help="Print an example, and end.")
@click.option("--print-schema", "mode", flag_value="schema", help="Print the JSON Schema, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --check-config, --print-config: JSON.")
@click.pass_context
def agent(ctx: click.Context, *, file: Path | None, mode: str | None, as_json: bool) -> None:
    """The daemon of this node.

    Configured by a TOML file and by environment variables (log.level is MYCOPROXY_LOG_LEVEL), which
    go before the file. docs/agent.md says more.
    """
    from mycoproxy.agent import config_text  # noqa: PLC0415
    from mycoproxy.agent.config import json_schema  # noqa: PLC0415
    from mycoproxy.agent.config_source import Source  # noqa: PLC0415

    if as_json and mode not in ("check", "print"):
        raise UsageError("--json goes with --check-config or --print-config")
    if mode == "example":
        click.echo(config_text.example(), nl=False)
        return
    if mode == "schema":
        click.echo(json.dumps(json_schema(), indent=2))
        return
    source = Source.find(file, os.environ)
    loaded = source.load()
    if mode is None:
        from mycoproxy.agent.process import run_agent  # noqa: PLC0415

        ctx.exit(run_agent(source, loaded))
    if mode == "print":
        described = config_text.as_dict(loaded)
        text = json.dumps(described, indent=2) if as_json else config_text.effective(loaded)
        click.echo(text, nl=as_json)
    elif as_json:
        click.echo(json.dumps({"ok": True, "file": str(source.file) if source.file else None}))
    else:
        click.echo(f"{source.file or 'the environment and the defaults'}: ok")
