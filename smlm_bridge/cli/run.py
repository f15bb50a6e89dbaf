"""``run``: a pipeline of verbs over one file, many files, or a folder that fills up."""

import difflib
import glob
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from smlm_bridge.cli.common import PATH, Run, verb
from smlm_bridge.cli.reporting import Summary, aligned, to_json
from smlm_bridge.cli.values import ANALYSER, NUMBER_OR_MAP, RANGE
from smlm_bridge.cli.verbs import program
from smlm_bridge.errors import InputRejected, MissingDependency, SmlmError, UsageError

if TYPE_CHECKING:
    from smlm_bridge.pipeline import Step


@dataclass(frozen=True)
class Kind:
    """A step: the verb it stands for, the option and name of its main output, whether the next step reads it."""

    verb: str
    output: str = "-o"
    suffix: str = ".csv"
    passes_on: bool = True


STEPS: Final = {
    "localize": Kind("localize"),
    "drift": Kind("drift"),
    "merge": Kind("merge"),
    "filter": Kind("filter"),
    "track": Kind("track"),
    "render": Kind("render", suffix=".png", passes_on=False),
    "report": Kind("quality", output="--report", suffix=".html", passes_on=False),
}
#: What a folder is searched for, by the first step.
MOVIES: Final = (".tif", ".tiff", ".btf", ".tf8", ".nd2", ".czi", ".lif", ".zarr")
TABLES: Final = (".csv", ".parquet", ".hdf5", ".h5", "_sml.mat", ".smlm")
#: Options of verbs that name further outputs: in a pipeline a file name, in the folder of the results.
FURTHER_OUTPUTS: Final = ("preview", "report", "save", "plot", "trajectories", "output2")
RESERVED: Final = ("json", "progress", "quiet", "debug", "overwrite", "resume")


@verb(
    "run",
    units="as of each verb.",
    example="smlm-bridge run pipeline.yaml --input movies -o results",
)
@click.argument("pipeline_file", metavar="PIPELINE", type=PATH)
@click.option(
    "--input", "given_input", metavar="PATH", help="Instead of the file's: a file, folder or quoted pattern."
)
@click.option(
    "-o", "--output", type=PATH, metavar="FOLDER", help="The folder of the results, instead of the file's."
)
@click.option("--watch", is_flag=True, help="Wait for new files in the folder, until interrupted.")
@click.option(
    "--settle-s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="--watch: a file that has not changed for so long is finished.",
)
@click.option(
    "--idle-s", type=click.FloatRange(min=0), help="--watch: end when nothing has come for so long."
)
def command(
    run: Run,
    pipeline_file: Path,
    *,
    given_input: str | None,
    output: Path | None,
    watch: bool,
    settle_s: float,
    idle_s: float | None,
) -> Summary:
    """Run the steps of PIPELINE (.yaml or .toml) on one file or on every file of a folder.

    Each file gets a folder in the results. A step whose input, options and version have not changed and whose
    outputs are there is skipped, so the same command goes on after an interruption; --overwrite runs all again.
    A file that fails does not stop the others; it is listed at the end, with exit code 1.
    """
    if idle_s is not None and not watch:
        raise UsageError("--idle-s goes with --watch.")
    from smlm_bridge.pipeline import arrivals, load_pipeline, locked

    pipeline = load_pipeline(pipeline_file)
    base = pipeline_file.absolute().parent
    steps = [
        _plan(run, number, name, options, base)
        for number, (name, options) in enumerate(pipeline.named_steps, start=1)
    ]
    _refuse_shared_names(steps)
    results = output if output is not None else base / pipeline.output
    source = given_input if given_input is not None else str(base / pipeline.input)
    suffixes = MOVIES if pipeline.named_steps[0][0] == "localize" else TABLES

    def find() -> list[Path]:
        return _files(source, pipeline.pattern, suffixes, empty=watch)

    if watch and not Path(source).is_dir():
        raise UsageError(f"--watch waits for files in a folder; the input {source} is none.")
    files = find()
    began = time.monotonic()
    done = _Progress(run, results, steps)
    with locked(results):
        if watch:
            for file in arrivals(
                find, settle_s=settle_s, poll_s=min(1.0, max(settle_s, 0.05)), idle_s=idle_s
            ):
                done.take(file, total=None)
        else:
            for file in files:
                done.take(file, total=len(files))
    return done.summary(time.monotonic() - began)


def _plan(run: Run, number: int, name: str, options: dict[str, Any], base: Path) -> "Step":
    """Check a step's options against its verb and make it ready."""
    from smlm_bridge.pipeline import Step, fingerprint

    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise InputRejected(f"step {number}: there is no step '{name}'.{hint} Steps: {', '.join(STEPS)}.")
    kind = STEPS[name]
    context = click.Context(program, info_name="smlm-bridge")
    verb_command = program.get_command(context, kind.verb)
    assert verb_command is not None
    where = f"step {number} ({name})"
    label = f"{number}-{name}"
    main = _bare_name(options.pop("output", f"{label}{kind.suffix}"), where, "output")
    further = {
        key: _bare_name(options.pop(key), where, key)
        for key in FURTHER_OUTPUTS
        if key in options and f"--{key}" != kind.output
    }
    values, prints = _located(options, base)
    given, positional = _arguments(verb_command, values, where)
    common = ["--progress=none" if run.progress == "bar" else f"--progress={run.progress}"]
    common += ["--quiet"] if run.quiet else []
    if kind.verb == "localize" and _knows(verb_command, "resume"):
        common.append("--resume")  # the engine has removed what does not belong to the same state

    def argv(source: Path, folder: Path) -> list[str]:
        outputs = [f"--{key}={folder / file}" for key, file in further.items()]
        flag = [kind.output, str(folder / main)]
        return [*common, *given, *flag, *outputs, "--", str(source), *positional]

    def go(source: Path, folder: Path) -> dict[str, object]:
        with verb_command.make_context(kind.verb, argv(source, folder), parent=context) as own:
            result = verb_command.invoke(own)
        return dict(result.values)

    try:
        verb_command.make_context(kind.verb, argv(Path("input"), Path("results")), parent=context)
    except click.UsageError as error:
        raise InputRejected(f"{where}: {error.format_message()}") from error
    return Step(
        label=label,
        outputs=(main, *further.values()),
        passes_on=kind.passes_on,
        fingerprint=fingerprint(name, options, prints, main, further),
        run=go,
    )


def _bare_name(value: Any, where: str, key: str) -> str:
    """A file name without a folder: outputs lie in the folder of their input."""
    if not isinstance(value, str) or not value or Path(value).name != value or value.startswith("."):
        raise InputRejected(f"{where}: {key} must be a file name without a folder, for example picture.png.")
    return value


def _located(options: dict[str, Any], base: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Options with the files they name found from the pipeline's folder, and fingerprints of those files."""
    from smlm_bridge.io.shipped import find_shipped
    from smlm_bridge.pipeline import content_fingerprint

    values, prints = dict(options), {}
    for key, value in options.items():
        if not isinstance(value, str) or key == "expression" or len(value) > 1000:
            continue
        file = base / value
        if file.exists():
            values[key] = str(file)
        elif key in ("model", "calibration") and (shipped := find_shipped(value)):
            file = shipped
        else:
            continue
        prints[key] = content_fingerprint(file)
    return values, prints


def _knows(command: click.Command, name: str) -> bool:
    return any(f"--{name}" in param.opts and not getattr(param, "hidden", False) for param in command.params)


def _arguments(command: click.Command, values: dict[str, Any], where: str) -> tuple[list[str], list[str]]:
    """What the command line would say: options, and arguments after the input."""
    options = {
        opt.removeprefix("--"): param
        for param in command.params
        if isinstance(param, click.Option)
        for opt in param.opts
        if opt.startswith("--")
    }
    extra = [str(param.name) for param in command.params if isinstance(param, click.Argument)][1:]
    allowed = sorted((set(options) - set(RESERVED) - {"output"}) | set(extra))
    given: list[str] = []
    for key, value in values.items():
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise InputRejected(f"{where}: there is no option '{key}'.{hint} Options: {', '.join(allowed)}.")
        if key not in extra:
            given += _as_text(key, options[key], value, where)
    return given, [str(values[key]) for key in extra if key in values]


def _as_text(key: str, option: click.Option, value: Any, where: str) -> list[str]:
    """One option as the command line would have it."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputRejected(f"{where}: {key} is true or false, got {value!r}.")
        off = [option.secondary_opts[0]] if option.secondary_opts else []
        return [f"--{key}"] if value else off
    if isinstance(value, bool):
        raise InputRejected(f"{where}: {key} takes a value, got {str(value).lower()}.")
    if isinstance(value, list):
        if not option.multiple:
            raise InputRejected(f"{where}: {key} takes one value, got a list.")
        return [f"--{key}={item}" for item in value]
    ranges = isinstance(option.type, type(RANGE)) and option.type not in (ANALYSER, NUMBER_OR_MAP)
    if ranges and not isinstance(value, str):
        raise InputRejected(
            f'{where}: {key} is {option.type.name}; write it in quotes, for example "{value}". Without them '
            "YAML reads 1:50 as the number 110."
        )
    return [f"--{key}={value}"]


def _refuse_shared_names(steps: Sequence["Step"]) -> None:
    names = [name for step in steps for name in step.outputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputRejected(f"two steps write {', '.join(twice)}; give each its own name.")


def _files(source: str, pattern: str | None, suffixes: Sequence[str], *, empty: bool) -> list[Path]:
    """The inputs that a file, folder or pattern stands for."""
    path = Path(source)
    if path.is_dir() and not source.lower().endswith(tuple(suffixes)):
        found = path.glob(pattern) if pattern else path.iterdir()
        files = sorted(
            file
            for file in found
            if not file.name.startswith(".") and (pattern or file.name.lower().endswith(tuple(suffixes)))
        )
    elif path.exists():
        files = [path]
    else:
        files = sorted(map(Path, glob.glob(source)))
    if not files and not empty:
        what = pattern or ", ".join(suffixes)
        raise InputRejected(f"the input {source} has no file ({what}); check the path and the pattern.")
    names = [file.name for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputRejected(
            f"several files are called {', '.join(twice[:3])}, and each needs a folder of its own in the "
            "results; run them into separate folders."
        )
    return files


class _Progress:
    """What was done so far; one file after the other."""

    def __init__(self, run: Run, results: Path, steps: Sequence["Step"]) -> None:
        self._run, self._results, self._steps = run, results, steps
        self._done: dict[str, dict[str, list[str]]] = {}
        self._failed: dict[str, str] = {}

    def take(self, file: Path, *, total: int | None) -> None:
        """Take one file through the steps; a failure is kept, one that every file would have is raised."""
        from smlm_bridge.pipeline import process

        number = len(self._done.keys() | self._failed.keys() | {file.name})
        of = f"{number}/{total}" if total else str(number)
        self._failed.pop(file.name, None)
        self._done.pop(file.name, None)
        try:
            outcome = process(
                file,
                self._results / file.name,
                self._steps,
                again=self._run.overwrite,
                on_step=lambda label: self._say(f"{file.name} ({of}): {label}"),
            )
        except (MissingDependency, UsageError):
            raise
        except Exception as error:
            self._failed[file.name] = _reason(error)
            self._say(f"{file.name} ({of}): failed: {self._failed[file.name]}")
        else:
            self._done[file.name] = {"ran": list(outcome.ran), "skipped": list(outcome.skipped)}
        self._lines(number, total)

    def _say(self, text: str) -> None:
        if not self._run.quiet and self._run.progress == "bar":
            print(text, file=sys.stderr, flush=True)

    def _lines(self, number: int, total: int | None) -> None:
        if self._run.progress == "jsonl":
            line = {"progress": {"done": number, "total": total or number, "what": "files"}}
            print(to_json(line), file=sys.stderr, flush=True)

    def summary(self, seconds: float) -> Summary:
        """Counts, and every failure."""
        skipped = sum(not entry["ran"] for entry in self._done.values())
        values = {
            "files": len(self._done) + len(self._failed),
            "done": len(self._done) - skipped,
            "skipped": skipped,
            "failed": len(self._failed),
            "failures": self._failed,
            "steps": self._done,
            "results": str(self._results),
            "seconds": seconds,
        }
        shown = {key: value for key, value in values.items() if key not in ("failures", "steps")}
        lines = [aligned(shown), *(f"failed: {name}: {reason}" for name, reason in self._failed.items())]
        return Summary(values, "\n".join(lines), exit_code=1 if self._failed else 0)


def _reason(error: Exception) -> str:
    """One line, as a verb of its own would say it."""
    text = " ".join(str(error).split())
    if isinstance(error, SmlmError):
        return text
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"cannot open '{error.filename}': {error.strerror}."
    return f"{type(error).__name__}: {text or 'no message'}"
