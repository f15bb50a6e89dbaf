"""The group ``thunderstorm``, and where every verb that can run the plugin finds it."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from smlm_bridge.cli.common import PATH, Run, verb
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    from smlm_bridge.bridge.engines import Engine, EngineOptions
    from smlm_bridge.bridge.thunderstorm import ThunderStorm

Command = Callable[..., Any]


@dataclass(frozen=True)
class Where:
    """Where ThunderSTORM is and how its ImageJ is started, as given."""

    plugins: Path | None = None
    fiji: Path | None = None
    mode: Literal["headless", "display", "xvfb"] = "headless"
    back_end: Literal["auto", "ij1", "pyimagej"] = "auto"

    @property
    def options(self) -> "EngineOptions":
        """As the bridge takes them."""
        from smlm_bridge.bridge.engines import EngineOptions

        return EngineOptions(self.plugins, self.fiji, self.mode, self.back_end)

    def only_for(self, option: str, chosen: bool) -> None:
        """Refuse a place of the plugin where the option that takes it is not chosen."""
        if not chosen and (self.plugins or self.fiji):
            raise UsageError(f"--plugins and --fiji say where ThunderSTORM is: they go with {option}.")

    def engine(self, run: Run) -> "Engine":
        """What does the work; where ThunderSTORM is absent, that is said."""
        from smlm_bridge.bridge.engines import open_engine

        engine = open_engine(self.options)
        if engine.note and not run.quiet:
            print(f"Warning: {engine.note}", file=sys.stderr)
        return engine

    def plugin(self, instead: str) -> "ThunderStorm":
        """ThunderSTORM, or an error that names our own verb for the same."""
        from smlm_bridge.bridge.engines import open_engine
        from smlm_bridge.bridge.jars import PLUGINS_VARIABLE
        from smlm_bridge.errors import MissingDependency

        storm = open_engine(self.options).storm
        if storm is None:
            raise MissingDependency(
                f"ThunderSTORM was not found; give --plugins (its jar or folder) or --fiji, or set "
                f"{PLUGINS_VARIABLE}. Without it take '{instead}'."
            )
        return storm


def where_options(*, how: bool = False) -> Callable[[Command], Command]:
    """``--plugins`` and ``--fiji``, with ``how`` also ``--mode`` and ``--back-end``, as one argument ``where``."""
    options = [
        click.option("--plugins", type=PATH, help="ThunderSTORM's jar, or the folder it is in."),
        click.option("--fiji", type=PATH, help="Fiji directory whose plugins hold ThunderSTORM."),
    ]
    if how:
        options += [
            click.option(
                "--mode",
                type=click.Choice(["headless", "display", "xvfb"]),
                default="headless",
                show_default=True,
                help="No display at all, this session's, or a virtual one.",
            ),
            click.option(
                "--back-end",
                type=click.Choice(["auto", "ij1", "pyimagej"]),
                default="auto",
                show_default=True,
                help="ImageJ 1, or a whole Fiji by pyimagej; auto: pyimagej where it can drive the Fiji.",
            ),
        ]
    names = ("plugins", "fiji", *(("mode", "back_end") if how else ()))

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def callback(*arguments: Any, **values: Any) -> Any:
            where = Where(**{name: values.pop(name) for name in names})
            return function(*arguments, where=where, **values)

        wrapped: Command = callback
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


@click.group("thunderstorm")
def command() -> None:
    """ThunderSTORM's steps, by the plugin itself where it is found.

    Else our own implementation of the same algorithm runs and says so. The plugin runs without a display.
    """


def step(name: str, *, units: str, example: str) -> Callable[[Command], click.Command]:
    """A verb of this group, with the options every verb has and where the plugin is."""

    def decorate(function: Command) -> click.Command:
        one: Any = verb(name, units=units, example=example)(where_options(how=True)(function))
        command.add_command(one)
        return cast("click.Command", one)

    return decorate
