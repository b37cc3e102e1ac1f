"""The program `python -m zmq_offload`. `zmq_offload.console.programs.command` runs it as a file."""

from __future__ import annotations

import sys

if not __package__:
    # As a file: its folder is first on the path, and would hide other packages named `client` or `testing`.
    import importlib.machinery
    import importlib.util
    import os

    folder = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == folder:
        del sys.path[0]
    if "zmq_offload" not in sys.modules:  # in a process of `multiprocessing` it may be imported already
        spec = importlib.machinery.PathFinder.find_spec("zmq_offload", [os.path.dirname(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules["zmq_offload"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["zmq_offload"])

elif __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # `python -m`: the current folder is first on the path, and would hide the standard library.
    del sys.path[0]

if __name__ == "__main__":
    if sys.argv[1:2] == ["--module"]:  # see `zmq_offload.console.programs.module`
        import runpy

        name = sys.argv[2]
        sys.argv = [sys.argv[0], *sys.argv[3:]]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        from zmq_offload.cli.main import main

        sys.exit(main())
