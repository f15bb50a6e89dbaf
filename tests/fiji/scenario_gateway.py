"""A gateway is started and asked everything that ImageJ answers badly: scenario_gateway.py MODE JAR|- PLUGINS."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from answers import Answers

from smlm_bridge.bridge.gateway import Gateway, GatewayOptions, gateway
from smlm_bridge.bridge.java import java_class

MACROS = {
    "macro": ("return getArgument() + '!';", None),
    "macro_language": ("a = 1;\nb = foo(;", None),
    "macro_index": ("a = newArray(2);\nprint(a[5]);", None),
    "macro_exit": ("a = 1;\nexit('bye now');", None),
    "macro_exit_plain": ("exit;", None),
    "macro_command": ("run('No Such Command');", None),
    "macro_print": ("print('printed by the macro');", None),
    "macro_quit": ("run('Quit');", None),
    "macro_loop": ("while (true) { }", 0.5),
    "macro_after_loop": ("return 'alive';", None),
}
WAITING = {
    "macro_message": "showMessage('look here');",
    "macro_wait": "waitForUser('wait for me');",
}


def gateway_of(mode: str, jar: str, plugins: str) -> Gateway:
    return gateway(
        GatewayOptions(
            back_end="pyimagej" if Path(jar).is_dir() else "ij1",
            mode=mode,
            jar=Path(jar) if Path(jar).is_file() else None,
            fiji=Path(jar) if Path(jar).is_dir() else None,
            plugins=(Path(plugins),),
        )
    )


def round_trips(ij: Gateway) -> dict[str, bool]:
    draw = np.random.default_rng(4)
    exact = {}
    for kind in ("uint8", "uint16", "float32"):
        frames = draw.integers(0, 256 if kind == "uint8" else 65536, (3, 6, 10)).astype(kind)
        back = ij.from_image(ij.to_image(frames))
        exact[kind] = back.dtype == frames.dtype and bool((back == frames).all())
    return exact


def commands(ij: Gateway, answers: Answers) -> None:
    image = ij.to_image(np.arange(4 * 32 * 32, dtype=np.uint16).reshape(4, 32, 32), pixel_nm=110.0)
    from smlm_bridge.bridge.images import pixel_nm_of

    answers.ask("pixel_nm", lambda: pixel_nm_of(image))
    answers.ask(
        "blur", lambda: float(ij.from_image(ij.run("Gaussian Blur...", {"sigma": 2.0}, image=image)).std())
    )
    answers.ask("parallel", lambda: ij.run("Gaussian Blur...", "sigma=2 stack", image=image) is image)
    answers.ask("unknown", lambda: ij.run("Gausian Blur..."))
    answers.ask("no_class", lambda: ij.run("No class behind"))
    answers.ask("quit", lambda: ij.run("Quit"))
    answers.ask("no_options", lambda: str(ij.run("Gaussian Blur...", image=image)))
    answers.ask(
        "rgb", lambda: list(ij.from_image(java_class("ij.IJ").createImage("c", "RGB", 5, 4, 2)).shape)
    )
    answers.ask("measure", lambda: ij.run("Measure", image=image) is image)
    answers.ask("results", lambda: ij.results_table()["Mean"].to_list())
    table = pd.DataFrame({"a": [1.0, 2.5], "b": [3, 4]})
    from smlm_bridge.bridge.images import from_results_table

    answers.ask("table", lambda: from_results_table(ij.new_results_table(table)).to_dict("list"))
    answers.ask("plugin", lambda: "Run analysis" in ij.commands())
    answers.ask(
        "roi_manager",
        lambda: int(ij.call(lambda: ij.java_class("ij.plugin.frame.RoiManager")().getCount(), what="roi")),
    )


def printed() -> None:
    """An exception that Java only prints."""
    try:
        java_class("java.lang.Integer").parseInt("only printed")
    except Exception as error:
        error.printStackTrace()  # type: ignore[attr-defined]


def errors(ij: Gateway, answers: Answers) -> None:
    raw: Any = java_class("ij.IJ")
    runtime = java_class("java.lang.RuntimeException")
    answers.ask("ij_error", lambda: ij.call(lambda: raw.error("Title", "said in a dialog"), what="step"))
    answers.ask(
        "ij_handled", lambda: ij.call(lambda: raw.handleException(runtime("only shown")), what="step")
    )
    answers.ask("trace", lambda: ij.call(printed, what="step"))
    answers.ask("missing_file", lambda: ij.open_image("nowhere.tif"))
    answers.ask("not_an_image", lambda: ij.open_image(__file__))
    answers.ask("no_such_class", lambda: ij.java_class("ij.NoSuchClass"))
    answers.ask("second", lambda: gateway(GatewayOptions(back_end="ij1", mode="headless", memory="300m")))


def main() -> None:
    mode, jar, plugins = sys.argv[1:4]
    answers = Answers()
    ij = gateway_of(mode, jar, plugins)
    answers.found |= {"version": ij.imagej_version, "headless": ij.headless, "commands": len(ij.commands())}
    answers.ask("same", lambda: gateway_of(mode, jar, plugins) is ij)
    answers.ask("round_trips", lambda: round_trips(ij))
    commands(ij, answers)
    for name, (code, timeout_s) in MACROS.items():
        answers.ask(
            name, lambda code=code, timeout_s=timeout_s: ij.run_macro(code, "hi", timeout_s=timeout_s)
        )
    if mode != "headless":
        for name, code in WAITING.items():
            answers.ask(name, lambda code=code: ij.run_macro(code, timeout_s=30))
    errors(ij, answers)
    java_class("java.lang.System").out.println("java says hello")
    answers.end()


if __name__ == "__main__":
    main()
