"""Scripts that mean harm, with what becomes of each: test data, never run outside of a box.

`preprocess` gets `paths`, files and sockets of the host that are worth having: a token file, the folder of another model, a socket of the
server, each as a text.
"""

from dataclasses import dataclass
from textwrap import dedent

SLOW = r"the script took longer than [\d.]+ s"
MEMORY = "the script used more memory than 64 MiB"
DENIED = r"the script raised PermissionError: \[Errno 1\] Operation not permitted"
GONE = r"the script raised FileNotFoundError: \[Errno 2\] No such file or directory"
READ_ONLY = r"the script raised OSError: \[Errno 30\] Read-only file system"
ANSWERS = ""


@dataclass(frozen=True, slots=True)
class Hostile:
    """`says`: how its error begins, as a pattern, ANSWERS where it answers as an honest one; `loads`: the error comes with a call, not a load."""

    code: str
    says: str
    loads: bool = True


def _script(code: str) -> str:
    """The body of a `preprocess` that answers, where nothing keeps it from that."""
    body = "\n".join(f"    {line}" for line in dedent(code).strip().splitlines())
    return f"import os, sys\n\ndef preprocess(inputs):\n    paths = [text.decode() for text in inputs['paths']]\n{body}\n    return {{'x': inputs['x'] + 1}}\n"


HONEST = "def preprocess(inputs): return {'x': inputs['x'] + 1}\n"

BAD_SOURCES: dict[str, tuple[bytes, str]] = {
    "no source": (b"", "it has neither preprocess nor postprocess"),
    "not UTF-8": (b"# \xff\n" + HONEST.encode(), "it is not UTF-8: byte 2 is 0xff"),
    "zeros": (HONEST.encode() + b"\0", r"(script.py: |the script raised |script.py, line \d+: )(SyntaxError|ValueError)"),
    "too long": (b"#" * (2**18 + 1), "it has 262145 bytes, at most 262144 are taken"),
    "no Python": (b"x = 1\ny = = 2\n", "script.py, line 2: SyntaxError: invalid syntax"),
    "two arguments": (b"def postprocess(a, b): pass", "postprocess takes exactly one argument"),
}
"""Sources that cannot be scripts, with how the refusal begins."""

SCRIPTS: dict[str, Hostile] = {
    "endless loop": Hostile(_script("while True: pass"), SLOW),
    "endless loop at import": Hostile("while True: pass\n" + HONEST, SLOW, loads=False),
    "sleep for ever": Hostile(_script("import time\ntime.sleep(10**6)"), SLOW),
    "ignores every exception": Hostile(_script("while True:\n    try:\n        while True: pass\n    except BaseException: pass"), SLOW),
    "endless line of C": Hostile(_script("sum(range(10**15))"), SLOW),
    "fork bomb": Hostile(_script("while True: os.fork()"), DENIED),
    "fork bomb that does not look": Hostile(
        _script("while True:\n    try: os.fork()\n    except OSError: pass"),
        SLOW,
    ),
    "fork at import": Hostile("import os\nos.fork()\n" + HONEST, DENIED, loads=False),
    "a program": Hostile(_script("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'id'])"), DENIED),
    "becomes a program": Hostile(_script("os.execv('/bin/sh', ['sh'])"), DENIED),
    "thread bomb": Hostile(
        _script("import threading\nwhile True: threading.Thread(target=print).start()"),
        r"the script raised RuntimeError: can't start new thread",
    ),
    "thread that stays": Hostile(
        "import _thread, time\n_thread.start_new_thread(time.sleep, (10**6,))\n" + HONEST,
        r"the script raised RuntimeError: can't start new thread",
        loads=False,
    ),
    "/etc/passwd": Hostile(_script("return {'x': open('/etc/passwd').read()}"), GONE),
    "/etc/passwd by a link": Hostile(_script("os.symlink('/etc/passwd', '/tmp/p')"), READ_ONLY),
    "the token file": Hostile(_script("return {'x': open(paths[0]).read()}"), GONE),
    "another model": Hostile(_script("return {'x': os.listdir(paths[1])}"), GONE),
    "another model by ..": Hostile(_script("return {'x': os.listdir('../../' + os.path.basename(paths[1]))}"), GONE),
    "a socket of the server": Hostile(_script("import socket\nsocket.socket(socket.AF_UNIX).connect(paths[2])"), DENIED),
    "a socket over TCP": Hostile(_script("import socket\nsocket.create_connection(('127.0.0.1', 8001), 1)"), DENIED),
    "an address looked up": Hostile(
        _script("import socket\nsocket.getaddrinfo('example.org', 80)"), r"the script raised (gaierror|PermissionError)"
    ),
    "writes beside itself": Hostile(_script("open('script.py', 'a')"), READ_ONLY),
    "writes in /tmp": Hostile(_script("open('/tmp/kept', 'w')"), READ_ONLY),
    "writes in /dev/shm": Hostile(_script("open('/dev/shm/kept', 'w')"), READ_ONLY),
    "memory": Hostile(_script("kept = []\nwhile True: kept.append(bytearray(2**20))"), MEMORY),
    "memory at once": Hostile(_script("bytes(2**40)"), MEMORY),
    "memory at import": Hostile("x = [bytearray(2**20) for _ in range(10**5)]\n" + HONEST, MEMORY, loads=False),
    "shared memory": Hostile(_script("import mmap\nkept = [mmap.mmap(-1, 2**24) for _ in range(10**4)]"), MEMORY),
    "memory as a file": Hostile(_script("os.memfd_create('x')"), DENIED),
    "leaves": Hostile(_script("os._exit(0)"), r"the script ended its process \(status 0\)"),
    "leaves at import": Hostile("import os\nos._exit(7)\n" + HONEST, r"the script ended its process \(status 7\)", loads=False),
    "exits": Hostile(_script("sys.exit(3)"), "the script raised SystemExit: 3"),
    "kills its parent": Hostile(_script("os.kill(os.getppid(), 9)"), DENIED),
    "kills everybody": Hostile(_script("for pid in range(-1, 300): os.kill(pid, 9)"), DENIED),
    "stops itself": Hostile(_script("import signal\nsignal.raise_signal(signal.SIGSTOP)"), DENIED),
    "segmentation fault": Hostile(_script("import ctypes\nctypes.string_at(0)"), "the script's process died of SIGSEGV"),
    "ends by a signal": Hostile(_script("os.abort()"), "the script's process died of SIG"),
    "huge answer": Hostile(
        _script("import numpy\nreturn {'x': numpy.zeros(2**25, numpy.uint8)}"), "the script gave 33554432 bytes, at most 8388608 are sent"
    ),
    "answer of many tensors": Hostile(
        _script("return {str(n): n for n in range(2000)}"),
        "the script's answer cannot be used: it gave 2000 outputs, at most 1000 are taken",
    ),
    "answer with a long name": Hostile(
        _script("return {'x' * 1000: 1}"), "the script's answer cannot be used: an output's name has 1 to 256 characters"
    ),
    "deep recursion": Hostile(_script("def deep(): deep()\ndeep()"), "the script raised RecursionError: maximum recursion depth exceeded"),
    "deeper recursion": Hostile(
        _script("sys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())"),
        f"the script's process died of SIGSEGV|{MEMORY}|{SLOW}",
    ),
    "no dict": Hostile(_script("return [1, 2]"), "preprocess gave a list, not a dict of name -> array"),
    "an object": Hostile(_script("return {'x': object()}"), "output 'x': element 0 is a object, not a number, a text or bytes"),
    "a class that lies": Hostile(
        _script("class A:\n    def __array__(self, *a, **k): raise ValueError('no')\nreturn {'x': A()}"),
        "output 'x' cannot be made an array: no",
    ),
    "an error that cannot be read": Hostile(
        _script("class E(Exception):\n    def __str__(self): raise E\nraise E"), r"the script raised E \(script.py, line"
    ),
    "an error of a megabyte": Hostile(_script("raise ValueError('x' * 10**6)"), "the script raised ValueError: x{400}"),
    "changes its inputs": Hostile(_script("inputs['paths'][:] = b''\nmine = inputs['x']\nmine += 1\nmine -= 1"), ANSWERS),
    "changes numpy": Hostile(
        _script("import numpy, builtins, json\nnumpy.add = numpy.asarray = json.dumps = None\nbuiltins.len = builtins.isinstance = None"),
        "the script|preprocess|output",
    ),
    "remembers": Hostile(
        "import builtins\n"
        + _script("assert not hasattr(builtins, 'seen'), 'seen before'\nbuiltins.seen = True\nimport numpy\nnumpy.seen = True"),
        ANSWERS,
    ),
    "prints gigabytes": Hostile(_script("while True: print('x' * 2**20)"), SLOW),
    "prints without end of line": Hostile(_script("for _ in range(64): os.write(2, bytes(2**20))"), ANSWERS),
    "reads the environment": Hostile(
        _script(
            "import json\nassert set(os.environ) <= set('HOME LANG LC_CTYPE PWD OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS'.split()), str(os.environ)"
        ),
        ANSWERS,
    ),
    "closes descriptors": Hostile(_script("os.closerange(0, 1000)"), "the script has closed the way that its answer goes"),
    "closes descriptors and goes on": Hostile(
        _script("os.closerange(0, 1000)\nwhile True: pass"), "the script has closed the way that its answer goes"
    ),
    "answers by itself": Hostile(_script("os.write(3, b'x' * 10**6)"), "the script's answer cannot be used|the script gave more than"),
    "says that more comes": Hostile(_script("import struct, time\nos.write(3, struct.pack('=IQ', 100, 100))\ntime.sleep(100)"), SLOW),
    "an answer of forged tensors": Hostile(
        _script(
            """
            import struct
            head = struct.pack('=HHBBQ', 1, 1, 5, 1, 8) + b'xBYTES' + struct.pack('=q', 2**40) + struct.pack('=H', 0)
            os.write(3, struct.pack('=IQ', len(head), 8) + head + bytes(8))
            os._exit(0)
            """
        ),
        "the script's answer cannot be used: it gave an output that is none",
    ),
    "looks into others": Hostile(
        _script(
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.ptrace(16, os.getppid(), 0, 0) == -1 and ctypes.get_errno() == 1"
        ),
        ANSWERS,
    ),
    "/proc of others": Hostile(_script("return {'x': open(f'/proc/{os.getppid()}/environ').read()}"), GONE),
    "limits of others": Hostile(_script("import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))"), DENIED),
    "more for itself": Hostile(
        _script("import resource\nresource.setrlimit(resource.RLIMIT_DATA, (-1, -1))"),
        "the script raised ValueError: not allowed to raise maximum limit",
    ),
    "other cores": Hostile(_script("os.sched_setaffinity(0, range(64))"), DENIED),
    "a name space": Hostile(
        _script(
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.unshare(0x10000000) == -1 and ctypes.get_errno() == 1"
        ),
        ANSWERS,
    ),
    "source that kills the parser": Hostile("x = " + "(" * 10**5 + "\n" + HONEST, "script.py|the script", loads=False),
    "source of one long sum": Hostile("x = " + "+".join(["1"] * 10**5) + "\n" + HONEST, "script.py|the script", loads=False),
}
