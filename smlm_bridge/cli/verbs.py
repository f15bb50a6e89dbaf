"""The verbs: one table for ``--help``, and a group that imports a verb's module only when it is called."""

import importlib
from typing import Final, NoReturn

import click

from smlm_bridge import __version__
from smlm_bridge.errors import UsageError

# verb -> short help, in the order of the path of the data
BUILT: Final = {
    "calibrate": "Bead stack to calibration (x.psf.h5).",
    "crlb": "Best possible precision of a calibration over z.",
    "simulate": "Frames with ground truth from a calibration.",
    "train": "Train a network for this microscope (.onnx).",
    "detect": "Candidates of emitters in frames, as ThunderSTORM finds them.",
    "coverage": "Is this model meant for these data?",
    "localize": "Frames to a ThunderSTORM table.",
    "evaluate": "Score a table against ground truth.",
    "rerender": "Re-render localizations and compare with the frames.",
    "merge": "Merge the blinks of a molecule.",
    "filter": "Keep the localizations that fulfil an expression.",
    "render": "Draw a table as PNG or TIFF.",
    "drift": "Estimate the drift of a table and take it out.",
    "quality": "Precision and resolution of a table (NeNA, FRC).",
    "track": "Follow particles from frame to frame; diffusion.",
    "axial-scan": "Reference heights from a focal stack.",
    "colocalize": "How two tables lie to each other (CBC).",
    "camera": "Offset, gain and read noise of a camera from movies.",
    "register": "The transform between two channels, from beads or from the data.",
    "join": "Two channels' calibrations to one of the pair.",
    "convert": "Tables, masks and calibrations into other formats.",
    "export": "A model as a package for DeepImageJ.",
    "run": "A pipeline of verbs over one file or a folder.",
    "thunderstorm": "ThunderSTORM's steps, by the plugin where it is found.",
    "fiji": "Put the commands for Fiji into a Fiji directory, or remove them.",
    "worker": "Run verbs for Fiji and other programs.",
    "models": "List the shipped models.",
    "doctor": "Check this installation and say what to do.",
}

NOT_BUILT: Final = (
    "design",
)  # fmt: skip


class LazyGroup(click.Group):
    """Knows every verb by name and imports none before it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb that is built, in the order of the path of the data."""
        return list(BUILT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb; a verb of the contract that is not built yet ends with exit code 2."""
        if cmd_name in BUILT:
            module = importlib.import_module(f"smlm_bridge.cli.{cmd_name.replace('-', '_')}")
            command: click.Command = module.command
            return command
        if cmd_name in NOT_BUILT:
            refuse_not_built(f"the verb '{cmd_name}'")
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with a message that names the nearest verb."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            import difflib

            near = difflib.get_close_matches(name, [*BUILT, *NOT_BUILT], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"There is no verb '{name}'.{hint} Verbs: {', '.join(BUILT)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(BUILT.items()))
        with formatter.section("Not built yet"):
            formatter.write_text(", ".join(NOT_BUILT))


def refuse_not_built(what: str) -> NoReturn:
    """End with exit code 2, naming the verb or option of the contract that is not built yet."""
    raise UsageError(f"{what} is not built yet in smlm_bridge {__version__}; see 'smlm-bridge --help'.")


@click.command(
    cls=LazyGroup,
    subcommand_metavar="VERB [ARGUMENTS] [OPTIONS]",
    options_metavar="",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="'smlm-bridge VERB --help' gives the units and an example of each verb.",
)
@click.version_option(__version__, prog_name="smlm-bridge")
def program() -> None:
    """3-D single-molecule localization, from a bead stack and raw frames to a ThunderSTORM table.

    Lengths are in nm, photons are detected photo-electrons, frames count from 1.
    """
