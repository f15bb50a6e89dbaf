"""``fiji``: our commands and models into a Fiji directory, and out of it."""

import io
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import click

from smlm_bridge.cli.common import PATH, Run, SetupReader, file_option, setup_options, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import UsageError

#: One class that Java 13 took away and ThunderSTORM needs; see ``bridge.windowless``.
PROVIDER_JAR: Final = "jars/smlm_bridge-thunderstorm.jar"


@verb(
    "fiji",
    units="counts in ADU.",
    example="smlm-bridge fiji install Fiji.app --offset 100 --e-per-adu 0.45",
)
@click.argument("action", type=click.Choice(["install", "uninstall"]))
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--model", "models", multiple=True, metavar="MODEL",
              help="Only this model (file or shipped name); repeatable. Absent: all shipped ones.")  # fmt: skip
@click.option("--no-models", is_flag=True, help="Only the commands.")
@file_option("--python", "The Python that the commands call; absent: this one.")
@setup_options(optics=False)
def command(
    run: Run,
    action: str,
    directory: Path,
    *,
    models: tuple[str, ...],
    no_models: bool,
    python: Path | None,
    setup: SetupReader,
) -> Summary:
    """Put the commands and models into the Fiji directory DIR, or take exactly those out again.

    The commands appear under Plugins > SMLM Bridge after a restart of Fiji and call the Python that ran this.
    The models are packages of DeepImageJ, which also run without Python; they take raw counts, so give the
    camera of the movies (see 'export'). Shipped models that DeepImageJ cannot run are left
    out and named. A jar of one class lets ThunderSTORM run on Java 13 and newer.

    A list of what was written stays in DIR; a file that was changed since is kept and named.
    """
    from smlm_bridge.io.fiji_install import install, script_files, uninstall

    left_out: dict[str, str] = {}
    if action == "uninstall":
        if models or no_models or python is not None:
            raise UsageError(
                "'fiji uninstall DIR' removes all that was installed; leave the other options out."
            )
        done = uninstall(directory)
    else:
        if models and no_models:
            raise UsageError("--model and --no-models contradict each other; give one of them.")
        files = (
            script_files()
            | {PROVIDER_JAR: _provider_jar()}
            | ({} if no_models else _packages(run, models, setup, left_out))
        )
        program = str(python.absolute()) if python is not None else sys.executable
        done = install(directory, files, python=program, overwrite=run.overwrite)
    values: dict[str, object] = {
        "directory": str(directory),
        "written": len(done.written),
        "removed": len(done.removed),
        "kept": list(done.kept),
    }
    if action == "install":
        values["left_out"] = left_out
    shown = aligned({name: value for name, value in values.items() if name != "left_out"})
    shown += "".join(f"\nNot packed: {reason}" for reason in left_out.values())
    if action == "install":
        shown += "\nStart Fiji again; then run Plugins > SMLM Bridge > Check installation."
    return Summary(values, shown)


def _provider_jar() -> bytes:
    from smlm_bridge.bridge.windowless import PROVIDER, provider_class_file

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as jar:
        # With a fixed date, so that the same content is the same file.
        place = zipfile.ZipInfo(f"{PROVIDER.replace('.', '/')}.class", (1980, 1, 1, 0, 0, 0))
        jar.writestr(place, provider_class_file())
    return data.getvalue()


def _packages(
    run: Run, models: tuple[str, ...], setup: SetupReader, left_out: dict[str, str]
) -> dict[str, bytes]:
    """The packages of the verb ``export``, unpacked, by their place in Fiji.

    A shipped model that nobody asked for by name, and that cannot be packed, goes to ``left_out`` with the reason.
    """
    from smlm_bridge.cli.verbs import program
    from smlm_bridge.io.deepimagej import NotForDeepImageJ
    from smlm_bridge.io.shipped import shipped_names

    camera = [f"--setup={setup.path}"] if setup.path is not None else []
    camera += [
        f"--{key.replace('_', '-')}={value}" for key, value in setup.given.items() if value is not None
    ]
    files: dict[str, bytes] = {}
    parent = click.Context(program, info_name="smlm-bridge")
    export = program.get_command(parent, "export")
    assert export is not None
    chosen = models or tuple(shipped_names())
    with tempfile.TemporaryDirectory() as folder, run.steps("packing models") as on_step:
        on_step(0, len(chosen))
        for number, model in enumerate(chosen):
            name = Path(model).name.removesuffix(".onnx")
            archive = Path(folder) / f"{name}.zip"
            words = [model, "--deepimagej", "-o", str(archive), *camera]
            try:
                with export.make_context("export", words, parent=parent) as context:
                    export.invoke(context)
            except NotForDeepImageJ as error:
                if models:
                    raise
                left_out[name] = str(error)
                on_step(number + 1, len(chosen))
                continue
            with zipfile.ZipFile(archive) as opened:
                files |= {f"models/{name}/{part}": opened.read(part) for part in opened.namelist()}
            on_step(number + 1, len(chosen))
    return files
