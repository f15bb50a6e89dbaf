"""Phase retrieval: from the stack of a bead to a calibrated microscope."""

from smlm_bridge.retrieve.fit import retrieve
from smlm_bridge.retrieve.result import Retrieval, RetrieveOptions

__all__ = ["Retrieval", "RetrieveOptions", "retrieve"]
