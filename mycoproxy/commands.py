"""What the three commands share: an error that a person should see is one line and a status."""

from typing import Any

import click

from mycoproxy.errors import MycoError


class Commands(click.Group):
    """A group whose commands end with the exit status of the ``MycoError`` they raise."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's own signature
        try:
            return super().invoke(ctx)
        except MycoError as error:
            click.echo(f"{ctx.info_name}: {error}", err=True)
            ctx.exit(error.exit_status)
