"""`torchrun`, but the ranks' exit code and signals pass through it: `python launch/torchrun.py --nnodes 2 ... SCRIPT`.

Takes torchrun's arguments. Plain torchrun ends with 1 whatever its ranks end with, so a job script could not tell
"saved, start me again" (75) from a failure; and it dies of SIGUSR1, and gives its ranks 30 s after SIGTERM. Here both
signals reach the ranks, which save and end by themselves.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`

from pretrain.signals import RESUBMIT  # noqa: E402

OURS = (signal.SIGUSR1, signal.SIGTERM)
THEIRS = "SIGINT,SIGHUP,SIGQUIT"  # after which torchrun ends its ranks


def forward(number: int, frame: FrameType | None) -> None:
    """Send the signal to every rank started here: the children of this process, each in a session of its own."""
    import psutil

    ranks = psutil.Process().children()
    for rank in ranks:
        rank.send_signal(number)
    if not ranks:
        os._exit(RESUBMIT)  # nothing has begun


def main() -> int:
    for number in OURS:
        signal.signal(number, forward)

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(["--signals-to-handle", THEIRS, *sys.argv[1:]])
    except ChildFailedError as error:
        # The first that failed is the cause; the others end because of it.
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code  # a signal, as shells tell it
    return 0


if __name__ == "__main__":
    sys.exit(main())
