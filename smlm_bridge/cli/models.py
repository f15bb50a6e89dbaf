"""``models``: the shipped models, what for, and where their files are."""

from smlm_bridge.cli.common import Run, verb
from smlm_bridge.cli.reporting import Summary


@verb("models", units="none.", example="smlm-bridge models --json")
def command(run: Run) -> Summary:
    """List the shipped models; a name stands for the file wherever a verb takes a model or calibration."""
    from smlm_bridge.io.model import shipped_models

    models = shipped_models()
    values = [
        {
            "name": model.name,
            "for": model.purpose,
            "file": str(model.file),
            "calibration": str(model.calibration),
        }
        for model in models
    ]
    lines = [f"{model.name}\n  {model.purpose}\n  {model.file}" for model in models]
    return Summary({"models": values}, "\n".join(lines) or "No model is shipped with this installation.")
