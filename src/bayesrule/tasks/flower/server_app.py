"""The ServerApp: it gives its grid to whoever runs the rounds."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

__all__ = ["app", "server_app"]


def server_app(serve: Callable[[Grid, Context], None]) -> ServerApp:
    """Return a ServerApp that is over when `serve` is.

    Args:
        serve: Is given the grid and the context of the run.
    """
    made = ServerApp()
    made.main()(serve)
    return made


def _serve(grid: Grid, context: Context) -> None:
    from bayesrule.tasks.flower.deployment import serve

    serve(grid, str(context.run_config["folder"]))


app = server_app(_serve)
