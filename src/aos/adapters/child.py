"""The first page of every child process: bind its life to its parent's, drop privileges, become the program.

Run by path (``python -I -S child.py SPEC``), never imported: it must start in milliseconds and may not
depend on the package. SPEC is one JSON object: ``argv``, ``parent`` (pid), ``signal`` (sent by the kernel
when the parent dies), ``uid`` and ``gid`` (null: stay who we are), ``cwd`` (null: stay where we are).

The order matters. The working directory is entered *before* the privileges go, so that a server may work in
a directory below a closed home; the death signal is asked for *after* they went, because the kernel forgets
it when the user changes. It does no waiting and no supervision: after ``exec`` nothing of it is left.
"""

import json
import os
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def _load_prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    return ctypes.CDLL(None).prctl


def main() -> None:
    spec = json.loads(sys.argv[1])
    prctl = _load_prctl()  # while we may still read our own libraries
    if spec["cwd"] is not None:
        os.chdir(spec["cwd"])
    if spec["uid"] is not None:
        os.setgroups([])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    if prctl is not None:
        if prctl(_PR_SET_PDEATHSIG, spec["signal"], 0, 0, 0) != 0:
            raise OSError("the kernel refused prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != spec["parent"]:  # it died before we could ask for the signal
            sys.exit(1)
    os.execvp(spec["argv"][0], spec["argv"])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"cannot start {sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(127)
