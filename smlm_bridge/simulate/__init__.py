"""Frames from a microscope that we know: ``scene`` draws everything random, ``render`` is deterministic."""
