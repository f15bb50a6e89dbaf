"""The group ``thunderstorm``: what its steps share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from smlm_bridge.cli.common import PATH, Run, verb

if TYPE_CHECKING:
    from smlm_bridge.bridge.engines import Engine

Command = Callable[..., Any]


@click.group("thunderstorm")
def command() -> None:
    """ThunderSTORM's steps, by the plugin itself where it is found.

    Else our own implementation of the same algorithm runs and says so. The plugin runs without a display.
    """


def _engine_options(function: Command) -> Command:
    """Where the plugin is."""
    options = (
        click.option("--plugins", type=PATH, help="ThunderSTORM's jar, or the folder it is in."),
        click.option("--fiji", type=PATH, help="Fiji directory whose plugins hold ThunderSTORM."),
        click.option(
            "--mode",
            type=click.Choice(["headless", "display", "xvfb"]),
            default="headless",
            show_default=True,
            help="No display at all, this session's, or a virtual one.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def open_engine_of(run: Run, plugins: Path | None, fiji: Path | None, mode: Any) -> "Engine":
    """What does the work; where ThunderSTORM is absent, that is said."""
    from smlm_bridge.bridge.engines import EngineOptions, open_engine

    engine = open_engine(EngineOptions(plugins, fiji, mode))
    if engine.note and not run.quiet:
        print(f"Warning: {engine.note}", file=sys.stderr)
    return engine


def step(name: str, *, units: str, example: str) -> Callable[[Command], click.Command]:
    """A verb of this group, with the options every verb has and where the plugin is."""

    def decorate(function: Command) -> click.Command:
        one: Any = verb(name, units=units, example=example)(_engine_options(function))
        command.add_command(one)
        return cast("click.Command", one)

    return decorate


def open_plugin(run: Run, plugins: Path | None, fiji: Path | None, mode: str, instead: str) -> Any:
    """ThunderSTORM, or an error that names our own verb for the same."""
    from smlm_bridge.bridge.engines import EngineOptions, open_engine
    from smlm_bridge.bridge.jars import PLUGINS_VARIABLE
    from smlm_bridge.errors import MissingDependency

    storm = open_engine(EngineOptions(plugins, fiji, mode)).storm  # type: ignore[arg-type]
    if storm is None:
        raise MissingDependency(
            f"ThunderSTORM was not found; give --plugins (its jar or folder) or --fiji, or set "
            f"{PLUGINS_VARIABLE}. Without it take '{instead}'."
        )
    return storm
