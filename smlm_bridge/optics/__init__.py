"""The microscope: objective and media, the pupil, and how a pupil becomes a field in the image."""
