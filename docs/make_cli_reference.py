"""Write ``docs/reference/cli.md`` from the commands themselves: python docs/make_cli_reference.py

``tests/test_docs.py`` compares the file with ``reference()``, so it cannot drift.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from smlm_bridge.cli.verbs import BUILT, NOT_BUILT, program

TARGET = Path(__file__).resolve().parent / "reference" / "cli.md"
COMMON = ("json", "progress", "quiet", "debug", "overwrite", "device", "threads", "seed")
INTRODUCTION = """# Command line

<!-- Written by docs/make_cli_reference.py from the commands; change those and run it again. -->

`smlm-bridge VERB [ARGUMENTS] [OPTIONS]`. Positional arguments are read, `-o/--output` and other options that
name an output are written: to a temporary name beside the target, then renamed. An output that exists is
refused without `--overwrite`. CAL stands for a calibration (`.psf.h5`), a model (`.onnx`, which carries its
calibration) or the name of a shipped model. Ranges are `A:B`, sequences `START:STOP:STEP` with the stop
included.

Exit codes: 0 done, 1 failed while working, 2 wrong usage, 3 an input is rejected, 4 a needed program or
package is missing, 130 interrupted. One line on stderr says what was given, what is allowed and what to do.
"""


def reference() -> str:
    """The whole page."""
    commands = {name: _command(name) for name in BUILT}
    calibrate = _options(commands["calibrate"])
    common = [option for option in calibrate if option.name in COMMON]
    setup = [option for option in calibrate if _is_setup(option)]
    parts = [INTRODUCTION.strip()]
    parts += ["## Options of every verb", _table(common)]
    parts += [
        "## Microscope, mask and camera",
        "Of the verbs that say so below; the keys of a [setup file](files.md#setup-toml) with dashes. "
        "An option wins over the file, the file over the calibration.",
        _table(setup),
    ]
    for name, command in commands.items():
        for full_name, one in _leaves(name, command):
            parts += _verb(full_name, one)
    parts += [
        "## Not built yet",
        ", ".join(f"`{name}`" for name in NOT_BUILT) + "; they end with exit code 2.",
    ]
    return "\n\n".join(parts) + "\n"


def _command(name: str) -> click.Command:
    command = program.get_command(click.Context(program), name)
    assert command is not None
    return command


def _options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


def _is_setup(option: click.Option) -> bool:
    return option.name == "setup" or str(option.name).startswith("setup_")


def _leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A verb, or the verbs of a group, by their full names."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for part, one in command.commands.items():
        yield from _leaves(f"{name} {part}", one)


def _verb(name: str, command: click.Command) -> list[str]:
    """Usage, description, own options, units and example of one verb."""
    options = _options(command)
    own = [option for option in options if option.name not in COMMON and not _is_setup(option)]
    shown = [option for option in own if not option.hidden]
    hidden = [option.opts[0] for option in own if option.hidden]
    arguments = [_metavar(param) for param in command.params if isinstance(param, click.Argument)]
    epilog = re.fullmatch(r"\W*Units: (.*?)\n.*Example:\n\s*(.*)", str(command.epilog), re.DOTALL)
    assert epilog is not None
    units, example = epilog.groups()
    parts = [f"## {name}", f"`{' '.join(['smlm-bridge', name, *arguments])} [OPTIONS]`"]
    parts += [_marked(" ".join(part.split())) for part in str(command.help).split("\n\n")]
    parts += [_table(shown)] if shown else []
    parts += [f"Also the options of {_setup_tables(options)}."] if any(map(_is_setup, options)) else []
    parts += [f"Not built yet: {', '.join(f'`{name}`' for name in hidden)}."] if hidden else []
    return [*parts, f"Units: {units}", f"```text\n{example.strip()}\n```"]


def _setup_tables(options: Iterable[click.Option]) -> str:
    names = {str(option.name) for option in options}
    tables = {
        "[optics]": "setup_numerical_aperture",
        "[mask]": "setup_slm_pixel_um",
        "[camera]": "setup_offset",
    }
    return ", ".join(["`--setup`", *(table for table, key in tables.items() if key in names)])


def _table(options: Iterable[click.Option]) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for option in options:
        names = ", ".join(option.opts) + (f" / {option.secondary_opts[0]}" if option.secondary_opts else "")
        if not (option.is_flag or option.secondary_opts or option.count):
            names += f" {_metavar(option)}"
        rows.append(f"| `{names.replace('|', chr(92) + '|')}` | {_meaning(option)} |")
    return "\n".join(rows)


def _meaning(option: click.Option) -> str:
    text = _marked(str(option.help))
    if option.required:
        text += " Required."
    if option.show_default and not option.is_flag:
        text += f" Default {option.default}."
    return text


def _metavar(param: click.Parameter) -> str:
    """The placeholder of a value; click's own differs from version to version."""
    if param.metavar:
        return param.metavar
    if isinstance(param, click.Argument):
        return str(param.name).upper()
    if isinstance(param.type, click.Choice):
        return f"[{'|'.join(param.type.choices)}]"
    name = param.type.name.removesuffix(" range")
    return name.upper() if name.isalpha() else name


def _marked(text: str) -> str:
    """Markdown of a help text: options and names as code, the rest as it is."""
    text = re.sub(r"(--[a-z][a-z-]*[a-z]|\w+(?:_\w+)+)", r"`\1`", text)
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
