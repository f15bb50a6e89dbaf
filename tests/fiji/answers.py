"""What scenarios share: collect answers and errors, print them as one JSON object."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

EXIT_CODE = 7


class Answers:
    """Name -> value, or {"error": type, "message": text, "seconds": number}."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def ask(self, name: str, action: Callable[[], Any]) -> Any:
        start = time.monotonic()
        try:
            value = action()
        except Exception as error:
            seconds = time.monotonic() - start
            value = {"error": type(error).__name__, "message": str(error), "seconds": seconds}
        self.found[name] = value
        return value

    def end(self) -> None:
        print(json.dumps(self.found, default=str))
        sys.exit(EXIT_CODE)
