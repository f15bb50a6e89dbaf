"""Files in, types out: the one room that knows formats on disk (with ``report`` and ``cli``)."""
