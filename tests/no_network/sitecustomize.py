"""Refuses every connection and name look-up beyond this machine, and writes each attempt down.

Python imports this module when it starts with this folder on PYTHONPATH, and so do its children,
see `guard.guarded`; a child that would not is an attempt too. It sees what goes through Python's
`socket`, not what a library's native code does by itself.
"""

import errno
import importlib.machinery
import importlib.util
import os
import sys
import traceback

# Where the host stands in the arguments of each audit event.
_EVENTS = {
    "socket.bind": 1,
    "socket.connect": 1,
    "socket.sendmsg": 1,
    "socket.sendto": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyaddr": 0,
    "socket.gethostbyname": 0,
    "socket.getnameinfo": 0,
}
# Where the environment stands. DVC's daemons, which send statistics and ask for news, drop ours.
_CHILDREN = {"subprocess.Popen": 3, "os.exec": 2, "os.posix_spawn": 2}
_HERE = os.path.dirname(os.path.abspath(__file__))


def _refuse_outward(event, arguments):
    if event in _CHILDREN:
        _refuse_unguarded(event, arguments)
    place = _EVENTS.get(event)
    if place is None:
        return
    target = arguments[place]
    host = target[0] if isinstance(target, tuple) and target else target
    if place == 1 and not _speaks_internet(arguments[0]):
        return  # a socket in the file system, or to the kernel
    if _is_here(host, event):
        return
    _refuse(f"{event} to {target!r}")


def _refuse_unguarded(event, arguments):
    if arguments[0] and os.path.basename(os.fsdecode(arguments[0])) == "ldconfig":
        return  # by it ctypes finds a library in the system's list, in an environment of its own
    environment = arguments[_CHILDREN[event]]
    path = os.fsdecode((os.environ if environment is None else environment).get("PYTHONPATH", ""))
    if _HERE not in path.split(os.pathsep):
        _refuse(f"{event} of {arguments[1]!r} without this guard")


def _refuse(what):
    _write("attempts", f"{what} in {_command()}\n{_callers()}")
    raise OSError(errno.ENETUNREACH, f"the test forbids {what}")


def _speaks_internet(sock):
    import socket

    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _is_here(host, event):
    import ipaddress
    import socket

    if isinstance(host, (bytes, bytearray)):
        host = host.decode()
    if host is None or host in ("localhost", socket.gethostname()):
        return True
    if host == "":  # as a name nothing, as an address to listen at every network
        return event != "socket.bind"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _callers():
    frames = traceback.extract_stack()[:-3]
    return "".join(f"    {frame.filename}:{frame.lineno} {frame.name}\n" for frame in frames[-20:])


def _command():
    return " ".join(sys.orig_argv).partition("\n")[0]


def _write(name, text):
    with open(os.path.join(os.environ["WAVEGMS_NETWORK_LOG"], name), "a") as file:
        file.write(text)


def _run_the_other():
    """An installation may have a module of this name itself."""
    others = [folder for folder in sys.path if os.path.abspath(folder) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_write("processes", f"{_command()}\n")
sys.addaudithook(_refuse_outward)
_run_the_other()
