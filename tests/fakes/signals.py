"""Signals as a test expects them, whatever the caller of pytest did with them.

A job that a shell starts in the background has SIGINT ignored, and what is ignored or blocked is inherited through
fork and exec: the server of a test would not hear of Ctrl-C.
"""

from __future__ import annotations

import signal


def reset() -> None:
    """Python's own dispositions and an empty mask; child processes then begin with the system's defaults.

    Left as they are: SIGHUP, which `nohup` ignores for good reason and no test sends; SIGPIPE and SIGXFSZ, which
    Python itself ignores, and which `subprocess` and asyncio give back to children.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
