"""Trainings as processes: killed and resumed, interrupted, and several of them under torchrun."""

import contextlib
import copy
import functools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import smlm_bridge.train as dense  # noqa: E402
import smlm_bridge.train_single as single  # noqa: E402
from smlm_bridge.calibration import Calibration  # noqa: E402
from smlm_bridge.cli import main  # noqa: E402
from smlm_bridge.cli import train as cli_train  # noqa: E402
from smlm_bridge.errors import InputRejected  # noqa: E402
from smlm_bridge.io.calibration import save_calibration  # noqa: E402
from smlm_bridge.io.model import load_model  # noqa: E402
from smlm_bridge.networks.export import weights_of  # noqa: E402
from smlm_bridge.ranks import Ranks  # noqa: E402
from smlm_bridge.simulate.background import BackgroundRanges  # noqa: E402
from smlm_bridge.simulate.scene import Ranges  # noqa: E402
from smlm_bridge.train import Trainer, TrainOptions  # noqa: E402

RANGES = Ranges(
    (-300.0, 300.0), density_um2=(0.2, 0.5), background=BackgroundRanges((5.0, 20.0)), margin_nm=200.0
)
OPTIONS = TrainOptions(samples=4000, batch=4, patch_px=16, widths=(4, 6), bottom_dilations=(), reach_px=8)

# A program whose trainings are small and write a checkpoint after every step.
DRIVER = """
import functools, sys
import smlm_bridge.train as dense, smlm_bridge.train_single as single
from smlm_bridge.cli import main, train
train.SECONDS_BETWEEN_CHECKPOINTS = 0.0
train.TEST_FRAMES, train.TEST_BOXES = 2, 20
small = dict(widths=(4, 6), bottom_dilations=(), reach_px=8, patch_px=16, batch=4)
dense.TrainOptions = functools.partial(dense.TrainOptions, **small)
single.SingleOptions = functools.partial(single.SingleOptions, templates=8, width=16, blocks=1, batch=32)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
SYSTEMS = {"dense": ("--samples", "48"), "single": ("--system", "single", "--box", "13", "--samples", "384")}
STEPS = 12


@pytest.fixture
def small(monkeypatch) -> None:
    """The settings of the program above, here and for one test."""
    for place in ("cli.train.SECONDS_BETWEEN_CHECKPOINTS", "cli.train.TEST_FRAMES", "cli.train.TEST_BOXES"):
        monkeypatch.setattr(f"smlm_bridge.{place}", getattr(cli_train, place.rpartition(".")[2]))
    for module, name in ((dense, "TrainOptions"), (single, "SingleOptions")):
        monkeypatch.setattr(module, name, getattr(module, name))
    exec(DRIVER, {"__name__": "driver"})


@pytest.fixture
def folder(tmp_path, gaussian_calibration: Calibration) -> Path:
    save_calibration(tmp_path / "c.psf.h5", gaussian_calibration)
    (tmp_path / "driver.py").write_text(DRIVER)
    return tmp_path


def command(folder: Path, system: str, name: str, *more: str) -> list[str]:
    options = [*SYSTEMS[system], "--seed", "3", "--threads", "1", "--device", "cpu"]
    return ["train", str(folder / "c.psf.h5"), "-o", str(folder / f"{name}.onnx"), *options, *more]


@contextlib.contextmanager
def started(arguments: Sequence[str], folder: Path, *, steps: int) -> Iterator["subprocess.Popen[str]"]:
    """A training that has done this many steps when this returns."""
    with subprocess.Popen(
        [sys.executable, str(folder / "driver.py"), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        try:
            said = (line for line in process.stderr if "held out" in line)
            for _ in range(steps):
                assert next(said)
            yield process
        finally:
            process.kill()


def curve(path: Path) -> list[dict[str, Any]]:
    """The points of the learning curve; the seconds are those of the machine."""
    return [
        {key: value for key, value in point.items() if key != "seconds"}
        for point in load_model(path).info.training["curve"]
    ]


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("dense", "SIGKILL"),
        ("single", "SIGKILL"),
        pytest.param("dense", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("dense", "SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_training_that_was_ended_continues_the_very_same_curve(folder, small, system, name) -> None:
    assert main(command(folder, system, "undisturbed")) == 0
    with started(command(folder, system, "ended"), folder, steps=4) as process:
        process.send_signal(getattr(signal, name))
        said = process.stderr.read()
        assert process.wait(60) == (-signal.SIGKILL if name == "SIGKILL" else 130)
    assert "Traceback" not in said
    assert not (folder / "ended.onnx").exists()
    state = torch.load(folder / "ended.checkpoint", weights_only=True)
    assert 0 < len(state["progress"]["curve"]) < STEPS
    words = command(folder, system, "ended", "--resume")
    budget = words.index("--samples")  # it is recorded
    assert main([*words[:budget], *words[budget + 2 :]]) == 0
    assert not (folder / "ended.checkpoint").exists()
    whole, again = folder / "undisturbed.onnx", folder / "ended.onnx"
    assert len(curve(whole)) == STEPS
    assert curve(again) == curve(whole)
    weights = weights_of(whole.read_bytes())
    assert all(torch.equal(value, weights[key]) for key, value in weights_of(again.read_bytes()).items())


# --- several processes ---------------------------------------------------------------------------------------


def torchrun(folder: Path, script: str, *arguments: str, processes: int = 2) -> str:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*program, "--nproc-per-node", str(processes), str(folder / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,  # of two processes that import torch on a busy machine
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


EXCHANGE = """
import copy, sys
import torch
from smlm_bridge.io.calibration import load_calibration
from smlm_bridge.ranks import launched
from smlm_bridge.train import Trainer
sys.path.insert(0, {tests!r})
from test_train_runs import OPTIONS, RANGES
torch.set_num_threads(1)
with launched("cpu") as ranks:
    assert ranks.agreed(7 + ranks.rank) == 7
    def make():
        return Trainer(load_calibration({calibration!r}), RANGES, OPTIONS, ranks=ranks)
    trainer = make()
    first = trainer.step()
    weights = {{name: value.clone() for name, value in trainer.network.state_dict().items()}}
    state = copy.deepcopy(trainer.state_dict())
    curve = [trainer.step() for _ in range(3)]
    resumed = make()
    resumed.load_state_dict(state)
    again = [resumed.step() for _ in range(3)]
    found = dict(first=first, weights=weights, state=state, curve=curve, again=again)
    torch.save(found, {folder!r} + f"/rank{{ranks.rank}}.pt")
import driver
sys.exit(driver.main({command!r}))
"""


def test_processes_train_one_network_with_the_mean_of_their_gradients(
    folder, gaussian_calibration: Calibration
) -> None:
    places = {
        "tests": str(Path(__file__).parent),
        "calibration": str(folder / "c.psf.h5"),
        "folder": str(folder),
    }
    words = command(folder, "dense", "two", "--json")
    (folder / "exchange.py").write_text(EXCHANGE.format(**places, command=words))
    told = json.loads(torchrun(folder, "exchange.py"))  # of the first process alone
    assert (told["samples"], told["seed"]) == (48, 3)
    assert len(curve(folder / "two.onnx")) == 48 // (2 * 4)
    assert not (folder / "two.checkpoint").exists()
    one, two = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, two["weights"][name]) for name, value in one["weights"].items())
    assert one["first"] == two["first"]
    assert one["curve"] == two["curve"] == one["again"] == two["again"]
    assert one["state"]["progress"]["samples"] == 2 * OPTIONS.batch
    # The same by hand: two trainings of the two seeds, and the mean of their gradients.
    apart = [Trainer(gaussian_calibration, RANGES, OPTIONS, ranks=Alone(rank, 2)) for rank in (0, 1)]
    batches = [trainer.draw_batch() for trainer in apart]
    assert not torch.equal(batches[0][0], batches[1][0])
    gradients, losses = [], []
    for trainer, (photons, targets) in zip(apart, batches, strict=True):
        trainer.network.train()
        terms = trainer.network.loss(photons, targets)
        sum(trainer.loss_weights[name] * term for name, term in terms.items()).backward()
        gradients.append([value.grad for value in trainer.network.parameters()])
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    for name, mean in one["first"].items():
        assert mean == pytest.approx((losses[0][name] + losses[1][name]) / 2, rel=1e-5)
    first = apart[0]
    for value, *both in zip(first.network.parameters(), *gradients, strict=True):
        value.grad = (both[0] + both[1]) / 2
    torch.nn.utils.clip_grad_norm_(first.network.parameters(), 5.0)
    first.optimizer.param_groups[0]["lr"] = OPTIONS.learning_rate * 0.05
    first.optimizer.step()
    for name, value in first.network.named_parameters():
        torch.testing.assert_close(value.detach(), one["weights"][name], rtol=1e-5, atol=1e-7)


class Alone(Ranks):
    """One process of several that exchanges nothing."""

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        del tensors


def test_a_checkpoint_of_more_processes_is_refused(gaussian_calibration: Calibration) -> None:
    trainer = Trainer(gaussian_calibration, RANGES, OPTIONS)
    state = trainer.state_dict()
    with pytest.raises(InputRejected, match="2 process"):
        trainer.load_state_dict({**state, "generator": state["generator"].repeat(2, 1)})
    with pytest.raises(InputRejected, match="of 2"):
        Trainer(gaussian_calibration, RANGES, OPTIONS, ranks=Alone(0, 2)).load_state_dict(state)


def test_each_process_draws_its_own_images_and_none_the_held_out_ones() -> None:
    seeds = [Ranks(rank, 8).seed(5) for rank in range(8)]
    assert seeds[0] == 5
    assert len({*seeds, 6}) == 9  # 6: of the held-out images
    assert [Ranks(rank, 8).seed(5) for rank in range(8)] == seeds


def test_one_process_is_as_it_was(gaussian_calibration: Calibration) -> None:
    """A checkpoint from before there were several processes."""
    trainer = Trainer(gaussian_calibration, RANGES, OPTIONS)
    trainer.step()
    state = copy.deepcopy(trainer.state_dict())
    old = {**state, "generator": state["generator"][0]}
    curve = [trainer.step() for _ in range(2)]
    again = Trainer(gaussian_calibration, RANGES, replace(OPTIONS, seed=9))
    again.load_state_dict(old)
    assert [again.step() for _ in range(2)] == curve


def test_help_says_how_several_gpus_train(capsys) -> None:
    assert main(["train", "--help"]) == 0
    assert "torchrun" in capsys.readouterr().out
