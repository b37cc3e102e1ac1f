"""`python -m zmq_offload`, and what `zmq_offload.console.programs.command` runs as a file."""

from __future__ import annotations

import sys

if not __package__:
    # Run as a file: its folder comes first on the path, and would shadow others' modules named `client` or `status`.
    import importlib.machinery
    import importlib.util
    import os

    folder = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == folder:
        del sys.path[0]
    if "zmq_offload" not in sys.modules:  # in a process of multiprocessing's it may be there
        spec = importlib.machinery.PathFinder.find_spec("zmq_offload", [os.path.dirname(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules["zmq_offload"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["zmq_offload"])

elif __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # `python -m`: the current folder comes first, and would shadow the standard library. Nothing of it is wanted here.
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
