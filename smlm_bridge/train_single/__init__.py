"""Train the network of single emitters by online simulation, and score it against the Cramér-Rao bound."""

from smlm_bridge.train_single.scores import HeldOut, held_out, run_now, single_scores
from smlm_bridge.train_single.trainer import ADAPTING, SingleOptions, SingleTrainer, check_box

__all__ = [
    "ADAPTING",
    "HeldOut",
    "SingleOptions",
    "SingleTrainer",
    "check_box",
    "held_out",
    "run_now",
    "single_scores",
]
