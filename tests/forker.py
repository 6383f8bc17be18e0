"""A process that has imported torch and DeepSpeed already and forks one rank per request.

Importing costs three CPU-seconds per rank, more than a tiny run itself; forked ranks begin at once. They are processes
of their own in every respect: pid, signals, environment, working directory, output, exit code.

Requests are lines of JSON on stdin; answers on stdout are {"started": pid} and {"ended": pid, "code": exit code}.
When stdin closes, ranks that still run are killed.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import sys
import traceback
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401  # the first optimizer imports it

    import launch.cli  # noqa: F401
    import pretrain.trainer  # noqa: F401

    running: set[int] = set()
    while True:
        if select.select([0], [], [], 0.02)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            rank = os.fork()
            if rank == 0:
                become(json.loads(line))
            running.add(rank)
            print(json.dumps({"started": rank}), flush=True)
        while running:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                break
            running.discard(ended)
            print(json.dumps({"ended": ended, "code": os.waitstatus_to_exitcode(status)}), flush=True)
    for rank in running:
        os.kill(rank, signal.SIGKILL)
        os.waitpid(rank, 0)


def become(request: dict) -> None:
    """Run request["command"] (a script and its arguments) as Python would, in this process; does not return."""
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY)]
    ):
        os.dup2(os.open(path, flags | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = request["command"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
