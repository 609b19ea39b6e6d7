"""Saying in words how a process ended."""

import signal
import sys
from collections.abc import Mapping

_MEMORY_HINT = "free some memory: building takes about four times the size of the weights; or build a smaller recipe"
_CRASH_HINT = "a fault of the compiler: try another recipe, or --gpu cpu for ONNX Runtime; rtgen doctor checks it"

# https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-erref/596a1078-e883-4972-9bbc-49e60bebca55
_WINDOWS_STATUS: Mapping[int, tuple[str, str]] = {
    0xC0000005: ("crashed (access violation)", _CRASH_HINT),
    0xC0000017: ("ran out of memory", _MEMORY_HINT),
    0xC000001D: ("crashed (illegal instruction)", _CRASH_HINT),
    0xC00000FD: ("crashed (stack overflow)", _CRASH_HINT),
    0xC0000135: ("did not start: a library (DLL) is missing", "rtgen doctor shows what is missing"),
    0xC000013A: ("was interrupted", "run the command again"),
    0xC0000142: ("did not start: a library (DLL) failed to load", "rtgen doctor shows what is missing"),
    0xC0000374: ("crashed (heap corruption)", _CRASH_HINT),
    0xC0000409: ("aborted", _CRASH_HINT),
}


def describe_exit(status: int) -> tuple[str, str]:
    """What an exit status says, as ``(end of a sentence, hint)``.

    Signals are negative, as in ``subprocess``; Windows gives NTSTATUS codes, signed or unsigned.
    """
    if (code := status & 0xFFFFFFFF) in _WINDOWS_STATUS:
        return _WINDOWS_STATUS[code]
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        if name == "SIGKILL":
            return "was killed (SIGKILL), most often for want of memory", _MEMORY_HINT
        reasons = {"SIGABRT": "aborted", "SIGSEGV": "crashed"}
        return f"{reasons.get(name, 'was stopped')} ({name})", _CRASH_HINT
    if status == 3 and sys.platform == "win32":  # abort() of the C runtime
        return "aborted", _CRASH_HINT
    if status == 0:
        return "ended without a result", _CRASH_HINT
    return f"failed with exit status {status}", _CRASH_HINT
