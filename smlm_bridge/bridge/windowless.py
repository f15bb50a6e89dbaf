"""ThunderSTORM on today's Java, and without a display.

Its classes that build windows are given new bodies before they load: the table keeps its model, its history and
its post-processing modules, and has no window. What is written here is our own.
"""

import struct
from typing import Any, Final

from smlm_bridge.bridge.java import java_class, jpype
from smlm_bridge.errors import MissingDependency

ROOT: Final = "cz.cuni.lf1.lge.ThunderSTORM"
#: A class of old Java that a library in ThunderSTORM names and Java 13 took away.
PROVIDER: Final = "com.sun.net.ssl.internal.ssl.Provider"

_RESULTS: Final = f"{ROOT}.results"
# Java source for javassist: class -> ((method, body), ...); a method in angle brackets is the constructor.
_BODIES: Final = {
    f"{_RESULTS}.GenericTableWindow": (
        (
            "<init>",
            f"""{{
                this.model = new {_RESULTS}.TripleStateTableModel();
                this.table = new {_RESULTS}.GenericTableWindow.ColoredTable(this, this.model);
                this.table.setRowSorter(new javax.swing.table.TableRowSorter(this.model));
            }}""",
        ),
        ("packFrame", "{ }"),
        ("show", "{ }"),
        ("hide", "{ }"),
        ("isVisible", "{ return true; }"),
    ),
    f"{_RESULTS}.ResultsTableWindow": (
        (
            "packFrame",
            f"""{{
                this.operationsStackPanel = new {_RESULTS}.OperationsHistoryPanel();
                this.postProcessingModules = {ROOT}.ModuleLoader.getPostProcessingModules();
                for (int i = 0; i < this.postProcessingModules.size(); i++) {{
                    {_RESULTS}.PostProcessingModule module =
                        ({_RESULTS}.PostProcessingModule) this.postProcessingModules.get(i);
                    module.setModel(this.model);
                    module.setTable(this);
                    module.getUIPanel();
                }}
            }}""",
        ),
        ("setStatus", "{ }"),
        ("showPreview", "{ }"),
        ("setLivePreview", "{ this.livePreview = false; }"),
        ("setPreviewRenderer", "{ this.previewRenderer = $1; this.livePreview = false; }"),
    ),
    f"{ROOT}.UI.Help": (("createHelpButton", "{ return new javax.swing.JButton(); }"),),
    f"{ROOT}.UI.GUI": (
        ("setLookAndFeel", "{ }"),
        ("closeBalloonTip", "{ }"),
        # What a balloon would say to somebody at the screen.
        ("showBalloonTip", "{ ij.IJ.handleException(new RuntimeException($2)); }"),
    ),
}


def define_provider() -> bool:
    """Define the class that Java 13 took away, where it is missing; must come before ThunderSTORM loads.

    Returns
    -------
    bool
        Whether it was missing.
    """
    loader = java_class("java.lang.ClassLoader").getSystemClassLoader()
    try:
        loader.loadClass(PROVIDER)
    except jpype().JException:
        content = provider_class_file()
        _define(loader, PROVIDER, content)
        return True
    return False


def _define(loader: Any, name: str, content: bytes) -> None:
    module = jpype()
    reflected = java_class("java.lang.ClassLoader").class_
    integer = java_class("java.lang.Integer")
    array = module.JArray(module.JByte)
    parameters = [java_class("java.lang.String").class_, array.class_, integer.TYPE, integer.TYPE]
    method = reflected.getDeclaredMethod("defineClass", parameters)
    method.setAccessible(True)
    code = array(list(memoryview(content).cast("b")))
    method.invoke(loader, [name, code, integer(0), integer(len(content))])


def provider_class_file() -> bytes:
    """A class file: ``public class Provider extends java.security.Provider``, with an empty constructor."""

    def text(value: str) -> bytes:
        return b"\x01" + struct.pack(">H", len(value)) + value.encode("ascii")

    pool = [
        struct.pack(">BHH", 10, 2, 3),  # 1: the constructor of the superclass
        struct.pack(">BH", 7, 4),  # 2: the superclass
        struct.pack(">BHH", 12, 5, 6),  # 3: name and type of that constructor
        text("java/security/Provider"),
        text("<init>"),
        text("(Ljava/lang/String;DLjava/lang/String;)V"),
        struct.pack(">BH", 8, 8),  # 7: the provider's name
        text("smlm_bridge"),
        struct.pack(">BH", 7, 10),  # 9: this class
        text(PROVIDER.replace(".", "/")),
        text("()V"),
        text("Code"),
    ]
    # aload_0; ldc name; dconst_1; ldc name; invokespecial; return
    code = bytes([0x2A, 0x12, 7, 0x0F, 0x12, 7, 0xB7, 0, 1, 0xB1])
    attribute = struct.pack(">HHI", 5, 1, len(code)) + code + struct.pack(">HH", 0, 0)
    constructor = struct.pack(">HHHHHI", 1, 5, 11, 1, 12, len(attribute)) + attribute
    head = struct.pack(">IHHH", 0xCAFEBABE, 0, 49, len(pool) + 1) + b"".join(pool)
    return head + struct.pack(">HHHHHH", 0x21, 9, 2, 0, 0, 1) + constructor + struct.pack(">H", 0)


def remove_windows(loader: Any) -> None:
    """Give ThunderSTORM's window classes bodies without windows; before any of them is loaded.

    Parameters
    ----------
    loader
        The class loader that will load ThunderSTORM.

    Raises
    ------
    MissingDependency
        If there is no javassist; a Fiji has one.
    """
    try:
        pool = java_class("javassist.ClassPool")(True)
    except TypeError as error:
        raise MissingDependency(
            "ThunderSTORM runs without a display only where Java has javassist, which every Fiji has, and the "
            "back end ij1 with the mode headless too. Take one of them, or the mode xvfb."
        ) from error
    pool.appendClassPath(java_class("javassist.LoaderClassPath")(loader))
    for name, methods in _BODIES.items():
        changed = pool.get(name)
        for method, body in methods:
            for found in _methods(changed, method):
                found.setBody(body)
        changed.toClass(loader, None)


def _methods(changed: Any, name: str) -> list[Any]:
    if name == "<init>":
        return list(changed.getDeclaredConstructors())
    return [method for method in changed.getDeclaredMethods() if str(method.getName()) == name]
