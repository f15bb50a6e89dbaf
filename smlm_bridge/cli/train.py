"""``train``: a network for this microscope, by online simulation."""

import json
import os
import signal
import threading
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge import __version__
from smlm_bridge.cli.common import (
    Run,
    SetupReader,
    file_option,
    output_option,
    setup_options,
    verb,
)
from smlm_bridge.cli.reporting import Summary, aligned, plain
from smlm_bridge.cli.verbs import refuse_not_built
from smlm_bridge.errors import InputRejected, SmlmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smlm_bridge.model import Model, ModelInfo
    from smlm_bridge.model import Run as ModelRun
    from smlm_bridge.pair import AnyCalibration
    from smlm_bridge.ranks import Ranks
    from smlm_bridge.training import Progress, RangesT, Start, Training

SYSTEMS = ("dense", "single", "volume")
SECONDS_BETWEEN_CHECKPOINTS = 120.0
UNLIMITED_SAMPLES = 2**62
TEST_FRAMES, TEST_BOXES = 12, 500  # for the curve; the final scores are of more
SECONDS_WORTH_DESCRIBING, BOXES_DESCRIBED = 120.0, 1500  # of a training: what ``coverage`` compares with
CHECKPOINT = ".checkpoint"


@dataclass(frozen=True)
class _Files:
    """What a training writes: the model, its card, and the checkpoint while it runs."""

    model: Path

    @property
    def card(self) -> Path:
        """Text for people."""
        return self.model.with_suffix(".card.md")

    @property
    def checkpoint(self) -> Path:
        """What ``--resume`` reads."""
        return self.model.with_suffix(CHECKPOINT)


@verb(
    "train",
    units="time in minutes; in the ranges nm, photo-electrons, emitters per square micrometre.",
    example="smlm-bridge train tetrapod.psf.h5 -o tetrapod.onnx --ranges ranges.toml --minutes 120",
)
@click.argument("calibration", metavar="CAL")
@output_option("The model, .onnx; its card is written beside it (.card.md).")
@click.option(
    "--system",
    default=SYSTEMS[0],
    show_default=True,
    help="The learned system: dense (crowded frames), single (boxes around detected emitters), or volume (crowded "
    "frames to a grid of voxels, as DeepSTORM3D does).",
)
@click.option(
    "--box", type=int, help="Side of the boxes of --system single, px, odd, 13 to 41; absent: by the PSF."
)
@file_option(
    "--network", "Sizes of the network and how it learns, TOML; absent: the defaults, or those of --from."
)
@file_option("--ranges", "What to draw the training frames from, TOML; absent: the defaults.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Time for training.")
@click.option(
    "--samples", type=click.IntRange(min=1), help="Frames (or boxes) to train on; whichever ends first."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output (.checkpoint).")
@click.option("--purpose", default="", help="What the model is for, a sentence for its card.")
@click.option(
    "--from",
    "start",
    metavar="M",
    help="Start from the weights of this model (file or shipped name) or checkpoint.",
)
@click.option(
    "--freeze",
    type=click.Choice(["backbone"]),
    help="With --from: keep the backbone and learn the head anew, for a PSF that changed little.",
)
@setup_options(optics=False)
def command(
    run: Run,
    calibration: str,
    *,
    output: Path,
    system: str,
    box: int | None,
    network: Path | None,
    ranges: Path | None,
    minutes: float | None,
    samples: int | None,
    resume: bool,
    start: str | None,
    freeze: str | None,
    purpose: str,
    setup: SetupReader,
) -> Summary | None:
    """Train a network on frames simulated with the PSF and the camera of CAL.

    CAL of two channels (see join) makes a network of both: photons of the ranges are those of both together, and
    their part channel2 says what channel 2 has otherwise.

    Of --setup only [camera] is read. An interrupted training leaves its checkpoint and goes on with --resume.
    The scores are of fresh frames with known truth.

    Several GPUs train one network under torchrun: torchrun --nproc-per-node N -m smlm_bridge train ...
    """
    if system not in SYSTEMS:
        refuse_not_built(f"the system '{system}' (built: {', '.join(SYSTEMS)})")
    if freeze is not None and start is None and not resume:
        raise UsageError("--freeze keeps the backbone of another training: give it with --from MODEL.")
    files = _Files(output)
    if output.suffix != ".onnx":
        raise InputRejected(f"a model file ends in .onnx, got {output}.")
    run.outputs(files.model, files.card)
    from smlm_bridge._optional import require
    from smlm_bridge.io.calibration import load_channels

    require("torch", extra="train")
    require("onnx", extra="train")
    from smlm_bridge.io.checkpoint import load_checkpoint
    from smlm_bridge.pair import with_cameras
    from smlm_bridge.ranks import launched

    known = load_channels(calibration)
    known = with_cameras(known, [setup(c.camera).camera or c.camera for c in known.channels])
    state = load_checkpoint(files.checkpoint) if resume else None
    purpose = purpose or f"emitters imaged with the PSF of {Path(calibration).name}"
    with launched(run.device) as ranks:
        settings = {
            **_budget(samples, minutes),
            "seed": ranks.agreed(run.seed),
            "freeze_backbone": freeze is not None,
        }
        begin: Start | None = None
        recorded: Mapping[str, Any] = {}
        if state is not None:  # a resumed training goes on with what its options record
            begin, recorded = _state_start(state)
            settings |= {key: recorded.get(key, settings[key]) for key in ("seed", "freeze_backbone")}
            if samples is None and minutes is None:
                settings |= {key: recorded[key] for key in ("samples", "minutes") if recorded.get(key)}
        elif start is not None:
            begin, recorded = _start(start)
            if system == "single":
                from smlm_bridge.train_single import ADAPTING

                settings = {**ADAPTING, **settings}
        if system == "single" and (resume or box is None):
            box = recorded.get("box_px", box)
        device = _own_gpu(run.device)
        trainer = _trainer(
            system,
            known,
            ranges,
            settings,
            box=box,
            sizes=_sizes(network, system, recorded, resumed=state is not None),
            device=device,
            start=begin,
            ranks=ranks,
        )
        if state is not None:
            trainer.load_state_dict(state)
        _train(run if ranks.first else replace(run, progress="none", quiet=True), trainer, files)
    return _finish(run, trainer, files, system=system, purpose=purpose, start=start) if ranks.first else None


def _budget(samples: int | None, minutes: float | None) -> dict[str, Any]:
    """The options that say when a training ends; absent ones are the system's."""
    if minutes is None:
        return {} if samples is None else {"samples": samples}
    return {"samples": samples or UNLIMITED_SAMPLES, "minutes": minutes}


def _own_gpu(device: str) -> str:
    """The GPU of this process of those that ``torchrun`` started on a machine."""
    number = os.environ.get("LOCAL_RANK")
    return device if device != "cuda" or number is None else f"cuda:{number}"


def _trainer(
    system: str,
    known: "AnyCalibration",
    path: Path | None,
    settings: dict[str, Any],
    *,
    box: int | None,
    sizes: dict[str, Any],
    device: str,
    start: "Start | None",
    ranks: "Ranks",
) -> "Training[Any, Any, Any]":
    """The training of a system with the ranges of a TOML file."""
    from smlm_bridge.simulate.scene import Ranges
    from smlm_bridge.simulate.single import SingleRanges
    from smlm_bridge.train import Trainer, TrainOptions
    from smlm_bridge.train_single import SingleOptions, SingleTrainer
    from smlm_bridge.train_volume import VolumeOptions, VolumeTrainer

    if system != "single" and box is not None:
        raise UsageError(f"--box goes with --system single; the system {system} takes whole frames.")
    kinds: dict[str, tuple[Any, Any, Any]] = {
        "dense": (Ranges, TrainOptions, Trainer),
        "single": (SingleRanges, SingleOptions, SingleTrainer),
        "volume": (Ranges, VolumeOptions, VolumeTrainer),
    }
    drawn, wanted, trainer = kinds[system]
    if system == "single":
        settings = {**settings, "box_px": _box(known) if box is None else box}
    try:
        options = wanted(**{**settings, **sizes})
    except (TypeError, ValueError) as error:
        raise InputRejected(f"the network has a size of the wrong kind: {error}.") from error
    made: Training[Any, Any, Any]
    made = trainer(known, _ranges(path, known, drawn), options, device=device, start=start, ranks=ranks)
    return made


def _box(known: "AnyCalibration") -> int:
    """Side of boxes that hold the PSF of every channel."""
    from smlm_bridge.fit.work import box_px
    from smlm_bridge.networks.single import LARGEST_BOX_PX, SMALLEST_BOX_PX

    holding = max(box_px(channel) for channel in known.channels)
    return min(max(holding, SMALLEST_BOX_PX), LARGEST_BOX_PX)


def _sizes(
    network: Path | None, system: str, recorded: "Mapping[str, Any]", *, resumed: bool
) -> dict[str, Any]:
    """The options of a network: those of the file, else those that the training recorded which it goes on from.

    Of another model only the shape is taken over, of a resumed training also how it learns.
    """
    from smlm_bridge.cli.network_sizes import HOW_TO_LEARN, HOW_TO_LEARN_BOXES, read_sizes
    from smlm_bridge.train import Trainer
    from smlm_bridge.train_single import SingleTrainer
    from smlm_bridge.train_volume import VolumeTrainer

    trainers: dict[str, type[Training[Any, Any, Any]]] = {
        "dense": Trainer,
        "single": SingleTrainer,
        "volume": VolumeTrainer,
    }
    shape = tuple(name for name in trainers[system].shape_options if name != "box_px")
    allowed = (*shape, *(HOW_TO_LEARN_BOXES if system == "single" else HOW_TO_LEARN))
    kept = {name: recorded[name] for name in (allowed if resumed else shape) if name in recorded}
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return {**kept, **read_sizes(network, allowed)}


def _start(start: str) -> "tuple[Start, Mapping[str, Any]]":
    """Weights and scaling of a model file, a shipped model or a checkpoint, and the options of its training."""
    from smlm_bridge.training import Start

    if Path(start).suffix == CHECKPOINT:
        from smlm_bridge.io.checkpoint import load_checkpoint

        return _state_start(load_checkpoint(start))
    from smlm_bridge.io.model import find_model, load_model
    from smlm_bridge.networks.export import input_scaling_of, weights_of

    data = find_model(start).read_bytes()
    # Files of earlier versions record no scaling; that of the input is in their graph.
    training = load_model(start).info.training
    scaling = {**input_scaling_of(data), **training.get("scaling", {})}
    return Start(weights_of(data), scaling), training.get("options", {})


def _state_start(state: "Mapping[str, Any]") -> "tuple[Start, Mapping[str, Any]]":
    from smlm_bridge.training import Start

    return Start(state["network"], state["scaling"]), state["options"]


def _ranges(path: Path | None, known: "AnyCalibration", kind: "type[RangesT]") -> "RangesT":
    """The ranges of a TOML file; heights that it does not name are the calibration's."""
    try:
        given = {} if path is None else tomllib.loads(path.read_bytes().decode("utf-8-sig"))
        found: RangesT = kind.from_json({"z_nm": list(known.z_range_nm), **given})  # type: ignore[assignment]
        return found
    except InputRejected:
        raise
    except OSError as error:
        raise InputRejected(
            f"the ranges '{path}' cannot be read ({error.strerror}). Give a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputRejected(f"the ranges '{path}' are not TOML: {error}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputRejected(f"the ranges '{path}' have a value of the wrong kind: {error}.") from error


def _scores(
    trainer: "Training[Any, Any, Any]", run: "ModelRun | None" = None, *, quick: bool = False
) -> dict[str, Any]:
    """Figures of merit of a system on fresh images; ``quick`` for the curve."""
    from smlm_bridge.train import Trainer, held_out_scores

    if isinstance(trainer, Trainer):
        return held_out_scores(trainer, run, **({"frames": TEST_FRAMES} if quick else {}))
    from smlm_bridge.train_volume import VolumeTrainer, volume_scores

    if isinstance(trainer, VolumeTrainer):
        return volume_scores(trainer, run, **({"frames": TEST_FRAMES} if quick else {}))
    from smlm_bridge.train_single import SingleTrainer, single_scores

    assert isinstance(trainer, SingleTrainer)
    return single_scores(trainer, run, **({"boxes": TEST_BOXES} if quick else {}))


def _train(run: Run, trainer: "Training[Any, Any, Any]", files: _Files) -> None:
    """Run to the end of the budget; a checkpoint and held-out scores now and then, and when interrupted."""
    from smlm_bridge.io.checkpoint import save_checkpoint
    from smlm_bridge.training import train

    saved = trainer.progress.seconds
    losses: list[float] = []

    def save() -> None:
        state = trainer.state_dict()  # of all processes, so all of them ask for it
        if trainer.ranks.first:
            save_checkpoint(files.checkpoint, state)

    with run.steps("training") as on_step, _interrupted_between_steps() as step_done:

        def watch(progress: "Progress", terms: dict[str, float]) -> None:
            nonlocal saved
            on_step(round(1000 * trainer.fraction), 1000)
            losses.append(sum(terms.values()))
            # By the seconds of the training, which are the same in all processes.
            if progress.seconds - saved > SECONDS_BETWEEN_CHECKPOINTS:
                if trainer.ranks.first:
                    _note(run, progress, sum(losses) / len(losses), _scores(trainer, quick=True))
                losses.clear()
                save()
                saved = progress.seconds
            step_done()

        try:
            train(trainer, on_step=watch)
        except KeyboardInterrupt:
            if trainer.ranks.count == 1:  # several are interrupted in different steps
                save()
            raise
        save()


@contextmanager
def _interrupted_between_steps() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and SIGTERM back until the function given is called: of half a step there is no checkpoint.

    The second one is not held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(number)

    def step_done() -> None:
        if told:
            raise KeyboardInterrupt

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield step_done
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(run: Run, progress: "Progress", loss: float, scores: dict[str, Any]) -> None:
    """Add a point to the curve, which the checkpoint keeps, and say it."""
    kept: dict[str, float]
    if "rmse_over_crlb" in scores:
        kept = {f"{name} over CRLB": scores["rmse_over_crlb"][name] for name in ("x", "y", "z")}
    else:
        kept = {key: scores[key] for key in ("jaccard", "rmse_lateral_nm", "rmse_axial_nm")}
    progress.curve.append({"samples": progress.samples, "seconds": progress.seconds, "loss": loss, **kept})
    if not run.quiet:
        values = ", ".join(f"{key} {value:.4g}" for key, value in kept.items() if value is not None)
        click.echo(
            f"{progress.samples} samples, {progress.seconds / 60:.1f} min: loss {loss:.4g}; held out: {values}",
            err=True,
        )


def _finish(
    run: Run,
    trainer: "Training[Any, Any, Any]",
    files: _Files,
    *,
    system: str,
    purpose: str,
    start: str | None,
) -> Summary:
    """Export, score, write the model and its card, and drop the checkpoint."""
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.model import load_model, save_model
    from smlm_bridge.model import SINGLE, VOLUME, ModelInfo
    from smlm_bridge.networks.export import single_to_onnx, to_onnx, volume_to_onnx
    from smlm_bridge.train_volume import THRESHOLD

    network, progress = trainer.network, trainer.progress
    box: int = trainer.options.box_px if system == SINGLE else 0
    info = ModelInfo(
        name=files.model.stem,
        system=system,
        purpose=purpose,
        calibration=trainer.calibration,
        ranges=trainer.ranges.to_json(),
        channels=trainer.channels,
        size_step=1 if box else network.size_step,
        reach_px=0 if box else network.reach,
        box_px=box,
        context_frames=0 if box else trainer.options.context_frames,
        volume=network.grid if system == VOLUME else None,
        threshold=THRESHOLD if system == VOLUME else 0.5,
        training={
            "made_by": f"smlm_bridge {__version__}, train",
            "samples": progress.samples,
            "seconds": progress.seconds,
            "started_from": start,
            "curve": progress.curve,
            "options": plain(asdict(trainer.options)),
            "scaling": plain(asdict(network.scaling)),
        },
    )

    def export(described: "ModelInfo") -> bytes:
        if box:
            return single_to_onnx(network, described.to_metadata(), channels=info.channels, side=box)
        if info.volume is not None:
            return volume_to_onnx(network, described.to_metadata(), channels=info.inputs)
        return to_onnx(network, described.to_metadata(), channels=info.inputs, size_step=info.size_step)

    # Scored as it will run: from the exported file, in ONNX Runtime.
    with atomic_output(files.model, overwrite=run.overwrite) as temporary:
        save_model(temporary, export(info))
        loaded = load_model(temporary, threads=run.threads)
        model = loaded.run
        info = replace(info, scores=_scores(trainer, model), coverage=_training_space(loaded, progress))
        more = _single_card(run, trainer, model, files) if box else ""
        save_model(temporary, export(info), overwrite=True)
    with atomic_output(files.card, overwrite=run.overwrite) as temporary:
        temporary.write_text(_card(info) + more, encoding="utf-8")
    files.checkpoint.unlink(missing_ok=True)
    values = {
        "samples": progress.samples,
        "seconds": progress.seconds,
        "scores": dict(info.scores),
        "seed": trainer.options.seed,
    }
    return Summary(values, aligned({"model": str(files.model), "card": str(files.card), **values}))


def _single_card(run: Run, trainer: "Training[Any, Any, Any]", model: "ModelRun", files: _Files) -> str:
    """What the card of a model of single emitters says beyond others."""
    from smlm_bridge.cli.single_card import single_sections
    from smlm_bridge.train_single import SingleTrainer
    from smlm_bridge.train_single.comparison import boxes_per_cpu_second, compared

    assert isinstance(trainer, SingleTrainer)
    options = trainer.options
    command = (
        f"smlm-bridge train CAL -o {files.model.name} --system single --box {options.box_px} --ranges RANGES.toml "
        f"--samples {trainer.progress.samples} --seed {options.seed}"
    )
    return "\n" + single_sections(
        compared(trainer, model),
        boxes_per_second=boxes_per_cpu_second(model, options.box_px, channels=trainer.channels),
        threads=run.threads or os.cpu_count() or 1,
        command=command,
    )


def _training_space(model: "Model", progress: "Progress") -> dict[str, Any]:
    """What ``coverage`` compares with; of short trainings nothing, it is then drawn when it is asked for.

    Of boxes of two channels nothing either: the check has none.
    """
    from smlm_bridge.coverage import reference_of

    if progress.seconds < SECONDS_WORTH_DESCRIBING or (model.info.box_px and model.info.channels > 1):
        return {}
    try:
        return reference_of(model, boxes=BOXES_DESCRIBED).to_json()
    except SmlmError as error:
        warnings.warn(f"the model's file will not say what its training looks like: {error}", stacklevel=2)
        return {}


def _card(info: "ModelInfo") -> str:
    """The model's card: what it is for, what it was trained on, what it scores."""
    parts = {
        **_optics(info),
        "Training ranges (nm, photo-electrons)": info.ranges,
        "Training": info.training,
        "Scores on simulated frames from these ranges": info.scores,
    }
    text = (
        f"# {info.name}\n\n{info.purpose}\n\nSystem: {info.system}. Calibration: {info.calibration.hash}.\n"
    )
    for title, values in parts.items():
        rows = "\n".join(f"| {key} | {json.dumps(value)} |" for key, value in values.items())
        text += f"\n## {title}\n\n| | |\n|---|---|\n{rows}\n"
    return text + f"\n## Use\n\n    smlm-bridge localize FRAMES -o table.csv --model {info.name}.onnx\n"


def _optics(info: "ModelInfo") -> dict[str, Any]:
    """The part of the card about the microscope; of a pair about both channels and how they lie on each other."""
    from smlm_bridge.pair import PairCalibration

    known = info.calibration
    if not isinstance(known, PairCalibration):
        return {"Optics": asdict(known.optics)}
    optics = {f"Optics of channel {n}": asdict(c.optics) for n, c in enumerate(known.channels, 1)}
    between = {"photon_ratio": known.photon_ratio, "transform": json.loads(known.transform.to_json())}
    return {**optics, "Channel 1 to channel 2": between}
