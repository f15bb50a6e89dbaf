"""``train``: a network for this microscope, by online simulation."""

import json
import time
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge import __version__
from smlm_bridge.cli.common import (
    Run,
    SetupReader,
    file_option,
    not_built,
    output_option,
    setup_options,
    verb,
)
from smlm_bridge.cli.reporting import Summary, aligned, plain
from smlm_bridge.cli.verbs import refuse_not_built
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.model import ModelInfo
    from smlm_bridge.simulate.scene import Ranges
    from smlm_bridge.train import Progress, Trainer

SYSTEMS = ("dense",)
SECONDS_BETWEEN_CHECKPOINTS = 120.0
UNLIMITED_SAMPLES = 2**62
TEST_FRAMES = 12  # for the curve; the final scores are of more


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
        return self.model.with_suffix(".checkpoint")


@verb(
    "train",
    units="time in minutes; in the ranges nm, photo-electrons, emitters per square micrometre.",
    example="smlm-bridge train tetrapod.psf.h5 -o tetrapod.onnx --ranges ranges.toml --minutes 120",
)
@click.argument("calibration", metavar="CAL")
@output_option("The model, .onnx; its card is written beside it (.card.md).")
@click.option("--system", default=SYSTEMS[0], show_default=True, help="The learned system.")
@file_option("--ranges", "What to draw the training frames from, TOML; absent: the defaults.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Time for training.")
@click.option("--samples", type=click.IntRange(min=1), help="Frames to train on; whichever ends first.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output (.checkpoint).")
@click.option("--purpose", default="", help="What the model is for, a sentence for its card.")
@click.option(
    "--from", "start", metavar="M", help="Start from the weights of this model (file or shipped name)."
)
@not_built("--freeze")
@setup_options(optics=False)
def command(
    run: Run,
    calibration: str,
    *,
    output: Path,
    system: str,
    ranges: Path | None,
    minutes: float | None,
    samples: int | None,
    resume: bool,
    start: str | None,
    purpose: str,
    setup: SetupReader,
) -> Summary:
    """Train a network on frames simulated with the PSF and the camera of CAL.

    Of --setup only [camera] is read. An interrupted training leaves its checkpoint and goes on with --resume.
    The scores are of fresh frames with known truth.
    """
    if system not in SYSTEMS:
        refuse_not_built(f"the system '{system}' (built: {', '.join(SYSTEMS)})")
    files = _Files(output)
    if output.suffix != ".onnx":
        raise InputRejected(f"a model file ends in .onnx, got {output}.")
    run.outputs(files.model, files.card)
    from smlm_bridge._optional import require
    from smlm_bridge.io.calibration import load_calibration

    require("torch", extra="train")
    require("onnx", extra="train")
    from smlm_bridge.io.checkpoint import load_checkpoint
    from smlm_bridge.train import Trainer, TrainOptions

    known = load_calibration(calibration)
    known = replace(known, camera=setup(known.camera).camera or known.camera)
    state = load_checkpoint(files.checkpoint) if resume else None
    # A resumed training goes on with its own seed, which its options record.
    seed = run.seed if state is None else int(state["options"]["seed"])
    budget: dict[str, Any] = {
        key: value for key, value in (("samples", samples), ("minutes", minutes)) if value
    }
    if "minutes" in budget and "samples" not in budget:
        budget["samples"] = UNLIMITED_SAMPLES
    options = TrainOptions(**budget, seed=seed)
    weights = None if start is None or state is not None else _weights(start)
    trainer = Trainer(known, _ranges(ranges, known), options, device=run.device, weights=weights)
    if state is not None:
        trainer.load_state_dict(state)
    _train(run, trainer, files)
    purpose = purpose or f"emitters imaged with the PSF of {Path(calibration).name}"
    return _finish(run, trainer, files, system=system, purpose=purpose, start=start)


def _weights(start: str) -> "Mapping[str, Tensor]":
    """The weights of a model file or a shipped model."""
    from smlm_bridge.io.model import find_model
    from smlm_bridge.networks.export import weights_of

    return weights_of(find_model(start).read_bytes())


def _ranges(path: Path | None, known: "Calibration") -> "Ranges":
    """The ranges of a TOML file; heights that it does not name are the calibration's."""
    from smlm_bridge.simulate.scene import Ranges

    try:
        given = {} if path is None else tomllib.loads(path.read_bytes().decode("utf-8-sig"))
        return Ranges.from_json({"z_nm": list(known.z_range_nm), **given})
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


def _train(run: Run, trainer: "Trainer", files: _Files) -> None:
    """Run to the end of the budget; a checkpoint and held-out scores now and then, and when interrupted."""
    from smlm_bridge.io.checkpoint import save_checkpoint
    from smlm_bridge.train import held_out_scores, train

    saved = time.monotonic()
    losses: list[float] = []
    with run.steps("training") as on_step:

        def watch(progress: "Progress", terms: dict[str, float]) -> None:
            nonlocal saved
            on_step(round(1000 * trainer.fraction), 1000)
            losses.append(sum(terms.values()))
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                scores = held_out_scores(trainer, frames=TEST_FRAMES)
                _note(run, progress, sum(losses) / len(losses), scores)
                losses.clear()
                save_checkpoint(files.checkpoint, trainer.state_dict())
                saved = time.monotonic()

        try:
            train(trainer, on_step=watch)
        except KeyboardInterrupt:
            save_checkpoint(files.checkpoint, trainer.state_dict())
            raise
    save_checkpoint(files.checkpoint, trainer.state_dict())


def _note(run: Run, progress: "Progress", loss: float, scores: dict[str, Any]) -> None:
    """Add a point to the curve, which the checkpoint keeps, and say it."""
    kept = {key: scores[key] for key in ("jaccard", "rmse_lateral_nm", "rmse_axial_nm")}
    progress.curve.append({"samples": progress.samples, "seconds": progress.seconds, "loss": loss, **kept})
    if not run.quiet:
        values = ", ".join(f"{key} {value:.4g}" for key, value in kept.items() if value is not None)
        click.echo(
            f"{progress.samples} samples, {progress.seconds / 60:.1f} min: loss {loss:.4g}; held out: {values}",
            err=True,
        )


def _finish(
    run: Run, trainer: "Trainer", files: _Files, *, system: str, purpose: str, start: str | None
) -> Summary:
    """Export, score, write the model and its card, and drop the checkpoint."""
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.model import load_model, save_model
    from smlm_bridge.model import ModelInfo
    from smlm_bridge.networks.export import to_onnx
    from smlm_bridge.train import held_out_scores

    network, progress = trainer.network, trainer.progress
    info = ModelInfo(
        name=files.model.stem,
        system=system,
        purpose=purpose,
        calibration=trainer.calibration,
        ranges=trainer.ranges.to_json(),
        channels=1,
        size_step=network.size_step,
        reach_px=network.reach,
        training={
            "made_by": f"smlm_bridge {__version__}, train",
            "samples": progress.samples,
            "seconds": progress.seconds,
            "started_from": start,
            "curve": progress.curve,
            "options": plain(asdict(trainer.options)),
        },
    )

    def export(described: "ModelInfo") -> bytes:
        return to_onnx(network, described.to_metadata(), channels=info.channels, size_step=info.size_step)

    # Scored as it will run: from the exported file, in ONNX Runtime.
    with atomic_output(files.model, overwrite=run.overwrite) as temporary:
        save_model(temporary, export(info))
        info = replace(info, scores=held_out_scores(trainer, load_model(temporary, threads=run.threads).run))
        save_model(temporary, export(info), overwrite=True)
    with atomic_output(files.card, overwrite=run.overwrite) as temporary:
        temporary.write_text(_card(info), encoding="utf-8")
    files.checkpoint.unlink(missing_ok=True)
    values = {
        "samples": progress.samples,
        "seconds": progress.seconds,
        "scores": dict(info.scores),
        "seed": trainer.options.seed,
    }
    return Summary(values, aligned({"model": str(files.model), "card": str(files.card), **values}))


def _card(info: "ModelInfo") -> str:
    """The model's card: what it is for, what it was trained on, what it scores."""
    parts = {
        "Optics": asdict(info.calibration.optics),
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
