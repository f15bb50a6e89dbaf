"""One plain training loop for every system: budget, steps, checkpoints, and starts from other trainings."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from smlm_bridge.calibration import Calibration
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.networks.trainable import Trainable
from smlm_bridge.pair import AnyCalibration
from smlm_bridge.psf.protocol import PSF
from smlm_bridge.ranks import Ranks
from smlm_bridge.simulate.instrument import Instrument
from smlm_bridge.simulate.scene import Ranges

NetworkT = TypeVar("NetworkT", bound=Trainable)
OptionsT = TypeVar("OptionsT", bound="LoopOptions")
RangesT = TypeVar("RangesT", bound=Ranges)

_ALONE = Ranks()


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How to train, whatever the system.

    Parameters
    ----------
    samples, minutes
        The budget: whichever is used up first ends the training; the learning rate follows it.
    batch
        Images a step, of each process that trains.
    learning_rate, weight_decay
        Of AdamW; the rate warms up over 1 % and then follows a cosine to zero.
    freeze_backbone
        Whether the backbone stays as it is and only the head learns (transfer learning).
    seed
        Of everything random.
    """

    samples: int = 100_000
    minutes: float = math.inf
    batch: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-4
    freeze_backbone: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if self.samples < self.batch or self.minutes <= 0:
            raise InputRejected(f"nothing to train: samples {self.samples}, minutes {self.minutes}.")


@dataclass(frozen=True)
class Start:
    """Another training to start from.

    Parameters
    ----------
    weights
        Of the network, by the names of its state.
    scaling
        Fields of the network's scaling that these weights were trained with; the pixel is always the new one.
    """

    weights: Mapping[str, Tensor]
    scaling: Mapping[str, Any]


@dataclass
class Progress:
    """The state of a training: what a checkpoint holds beside weights and optimiser."""

    samples: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


class Training(ABC, Generic[NetworkT, OptionsT, RangesT]):
    """A training that can be stopped after any step and resumed.

    The loop is ``while not training.done: training.step()``; ``state_dict`` and ``load_state_dict`` carry
    weights, optimiser, random state and budget, so that a resumed training draws the very same images.

    Several processes (``ranks``) draw images of their own and step with the mean of their gradients, so that all
    have the same weights; ``step`` and ``state_dict`` are called by all of them.

    Raises
    ------
    InputRejected
        If the start is of another network, or a frozen backbone has none.
    """

    #: Weights of the terms of the loss.
    loss_weights: ClassVar[Mapping[str, float]]
    #: Options that decide the shape of the network.
    shape_options: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        calibration: AnyCalibration,
        ranges: RangesT,
        options: OptionsT,
        *,
        device: torch.device | str = "cpu",
        start: Start | None = None,
        ranks: Ranks = _ALONE,
    ) -> None:
        if options.freeze_backbone and start is None:
            raise InputRejected(
                "a frozen backbone has to come from another training: give --from, or train all of it."
            )
        self.calibration, self.ranges, self.options = calibration, ranges, options
        self.device, self.ranks = torch.device(device), ranks
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        psfs = tuple(self._psf(channel) for channel in calibration.channels)
        self.instrument = Instrument(calibration, psfs, ranges)
        scaling = self._scaling()
        if start is not None:
            scaling = replace(scaling, **_kept_scaling(scaling, start.scaling))
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
            torch.manual_seed(options.seed)
            network = self._network(scaling)
        if start is not None:
            _take_over(network, start.weights)
        if options.freeze_backbone:
            network.freeze()
        self.network: NetworkT = network.to(self.device)
        self.network.to(memory_format=torch.channels_last)
        learning = [value for value in self.network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(
            learning, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        self.generator.manual_seed(ranks.seed(options.seed))  # network and scaling are those of the first
        self.progress = Progress()

    @abstractmethod
    def draw_batch(self) -> tuple[Tensor, Any]:
        """Simulated images in photo-electrons (B, C, H, W), and what the network's loss compares with."""

    @abstractmethod
    def _psf(self, channel: Calibration) -> PSF: ...

    @abstractmethod
    def _scaling(self) -> Any: ...

    @abstractmethod
    def _network(self, scaling: Any) -> NetworkT: ...

    @property
    def channels(self) -> int:
        """Channels of the calibration."""
        return len(self.calibration.channels)

    @property
    def psf(self) -> PSF:
        """That of the first channel, as the images are drawn with."""
        return self.instrument.psfs[0]

    @property
    def fraction(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        used = max(
            self.progress.samples / self.options.samples, self.progress.seconds / (60 * self.options.minutes)
        )
        return min(1.0, used)

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.fraction >= 1.0

    def step(self) -> dict[str, float]:
        """One optimiser step on fresh images; returns the terms of the loss."""
        began = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * schedule(self.fraction)
        photons, targets = self.draw_batch()
        self.network.train()
        if self.options.freeze_backbone:
            self.network.backbone.eval()  # else batch norm would follow the new images
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            terms = self.network.loss(photons.contiguous(memory_format=torch.channels_last), targets)
            loss = sum(self.loss_weights[name] * term for name, term in terms.items())
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        terms = {name: term.detach() for name, term in terms.items()}
        self.ranks.average([*self._in_common(), *terms.values()])
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        spent = torch.tensor(time.monotonic() - began, dtype=torch.float64)
        self.ranks.average([spent])  # the learning rate and the end of the budget are those of all
        self.progress.samples += self.options.batch * self.ranks.count
        self.progress.seconds += float(spent)
        return {name: float(term) for name, term in terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs; tensors, numbers and strings only."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.ranks.gathered(self.generator.get_state()),
            "progress": asdict(self.progress),
            "options": asdict(self.options),
            "ranges": self.ranges.to_json(),
            "calibration_hash": self.calibration.hash,
            "scaling": asdict(self.network.scaling),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict``.

        Raises
        ------
        InputRejected
            If the checkpoint belongs to another calibration, other ranges, another network or another number of
            processes.
        """
        if state["calibration_hash"] != self.calibration.hash or state["ranges"] != self.ranges.to_json():
            raise InputRejected(
                "the checkpoint was trained on another calibration or other ranges. Resume with the same "
                "ones, or start afresh from its weights with --from."
            )
        for name in self.shape_options:
            own = getattr(self.options, name)
            theirs = state["options"].get(name, own)  # an earlier version did not have every option
            if theirs != own:
                raise InputRejected(
                    f"the checkpoint's network has {name} {theirs}, this training {own}. Resume with the same "
                    "network."
                )
        generators = state["generator"].reshape(-1, state["generator"].shape[-1])
        if len(generators) != self.ranks.count:
            raise InputRejected(
                f"the checkpoint is of {len(generators)} process(es) that trained together, this is of "
                f"{self.ranks.count}. Resume with as many, or start afresh from its weights with --from."
            )
        self.network.scaling = type(self.network.scaling)(**state["scaling"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        # A copy: torch reads from the start of the storage, whatever row this is.
        self.generator.set_state(generators[self.ranks.rank].clone())
        self.progress = Progress(**state["progress"])

    def _in_common(self) -> list[Tensor]:
        """Gradients, and the running means of batch norm."""
        gradients = [value.grad for value in self.network.parameters() if value.grad is not None]
        return [*gradients, *(value for value in self.network.buffers() if value.is_floating_point())]


def _kept_scaling(own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a start keeps of its scaling; the pixel is always that of the new calibration."""
    names = {part.name for part in fields(own)} - {"pixel_nm"}
    kept = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in names}
    for key, value in kept.items():
        if isinstance(value, tuple) and len(value) != len(getattr(own, key)):
            raise InputRejected(
                f"the training to start from has {len(value)} value(s) of {key}, this one "
                f"{len(getattr(own, key))}. Give ranges with the same aberrations, or leave --from out."
            )
    return kept


def _take_over(network: Trainable, weights: Mapping[str, Tensor]) -> None:
    """Take the weights of another training of the same network."""
    own = network.state_dict()
    for name, value in own.items():
        given = weights.get(name)
        if not name.endswith("num_batches_tracked") and (given is None or given.shape != value.shape):
            raise InputRejected(
                f"the weights to start from belong to another network ('{name}' is missing or of another size). "
                "Start from a model of the same system, or without --from."
            )
    network.load_state_dict({**own, **{name: value for name, value in weights.items() if name in own}})


def train(
    trainer: Training[NetworkT, OptionsT, RangesT],
    *,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> NetworkT:
    """Run a training to the end of its budget.

    ``on_step`` sees the progress and the loss after every step; it may save ``trainer.state_dict()``,
    evaluate, or raise to stop.

    Raises
    ------
    SmlmError
        If the loss is not finite; ``on_step`` has not seen that step, so its checkpoints hold good weights.
    """
    while not trainer.done:
        terms = trainer.step()
        if not math.isfinite(sum(terms.values())):
            raise SmlmError(
                f"the loss is not finite after {trainer.progress.samples} samples: {terms}. Resume from the "
                "last checkpoint or start with a lower learning rate."
            )
        if on_step is not None:
            on_step(trainer.progress, terms)
    trainer.network.eval()
    return trainer.network


def schedule(fraction: float) -> float:
    """Learning rate over its peak after a fraction of the budget: a warm-up, then half a cosine."""
    warm_up = 0.01
    if fraction < warm_up:
        return 0.05 + 0.95 * fraction / warm_up
    return 0.5 * (1 + math.cos(math.pi * (fraction - warm_up) / (1 - warm_up)))
