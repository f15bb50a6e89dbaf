"""``worker``: verbs for Fiji and other programs, as messages on stdin and stdout."""

import io
import sys

from smlm_bridge.cli.common import Run, verb
from smlm_bridge.cli.reporting import Summary


@verb(
    "worker",
    units="as of each verb.",
    example="smlm-bridge worker < requests.jsonl",
)
def command(run: Run) -> Summary:
    """Run verbs for another program: requests on stdin, responses on stdout, one JSON object a line.

    The messages are those of an Appose worker (docs/reference/worker.md); Fiji's scripts speak it. A task is
    {"task": NAME, "requestType": "EXECUTE", "script": VERB, "inputs": {"arguments": [...], OPTION: VALUE}}. Ends
    when stdin closes and the tasks in progress are done. Of the common options none has an effect; the tasks
    take their own.
    """
    from smlm_bridge.bridge.worker import serve

    # Messages are UTF-8 whatever the locale says, and a wrong byte spoils its own message only.
    for stream in (sys.stdin, responses := sys.__stdout__ or sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    tasks = serve(sys.stdin, responses, child=(sys.executable, "-m", "smlm_bridge.cli.worker"))
    return Summary({"tasks": tasks})


if __name__ == "__main__":
    # The process of one task: see smlm_bridge.bridge.worker_child.
    from smlm_bridge.bridge.worker_child import run_task
    from smlm_bridge.cli import main

    sys.exit(run_task(main))
