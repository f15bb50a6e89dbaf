"""Single-molecule localization microscopy in three dimensions, inside the Fiji and ThunderSTORM workflow."""

__version__ = "0.1.0"
