"""System calls that an owner's code may not make, as filters for the kernel (Linux, "Seccomp BPF"): one for scripts, one for models.

Boxes and limits leave code little; a filter takes what would be left of this kind: other processes, looking into other processes, memory
that no limit counts, new name spaces, and the newer doors of the kernel that nobody computing an answer needs. For scripts threads, signals
and sockets besides. Imported into the process that scripts are forked from: nothing but the standard library.
"""

import ctypes
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_ANY, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _EPERM, _ENOSYS, _EAFNOSUPPORT, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x00050061, 0x80000000
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME."""
_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK, which name spaces shut; AF_VSOCK, for one, they do not."""
_OTHER_ABI = 0x40000000
_COLUMNS = ("x86_64", "aarch64")
_ARCHES = (0xC000003E, 0xC00000B7)
_CLONE, _PRLIMIT, _CLONE3 = (56, 220), (302, 261), 435

_REFUSED: dict[str, tuple[int, int]] = {
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "modify_ldt": (154, -1),
    "personality": (135, 92),
    "syslog": (103, 116),
    "inotify_init": (253, -1),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
}
"""Name -> its number on each of _COLUMNS, -1 where there is none. Answered with EPERM.

Sources: Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""


_FOR_MODELS = frozenset(
    {
        *("execve", "execveat"),  # the box's own way to the interpreter; the filter stays
        *(
            "kill",
            "tkill",
            "tgkill",
            "rt_sigqueueinfo",
            "rt_tgsigqueueinfo",
            "pidfd_open",
            "pidfd_send_signal",
        ),  # Java stops its threads so
        *("socket", "socketpair", "memfd_create", "personality", "inotify_init", "inotify_init1"),
        *("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr", "setpriority", "ioprio_set"),
    }
)
"""Of _REFUSED, what a model may do: it has threads and libraries, and its own answers lie in memory that it makes."""


def known(machine: str = "") -> bool:
    """Whether there is a filter for this kind of machine."""
    return (machine or platform.machine()) in _COLUMNS


def of_scripts(machine: str = "") -> bytes:
    """For the process that a script runs in: one thread, alone. As `struct sock_filter[]`."""
    column = _COLUMNS.index(machine or platform.machine())
    refused = [each[column] for each in _REFUSED.values() if each[column] >= 0]
    steps = [*_begin(column)]
    for number in (*refused, _CLONE[column]):
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    steps += [*_prlimit(column), (_RETURN, 0, 0, _ALLOW)]
    return _packed(steps)


def of_models(machine: str = "") -> bytes:
    """For the process of a model: no other processes, no new name spaces, sockets of _FAMILIES. As `struct sock_filter[]`."""
    column = _COLUMNS.index(machine or platform.machine())
    steps = [*_begin(column)]
    for name, numbers in _REFUSED.items():
        if name not in _FOR_MODELS and numbers[column] >= 0:
            steps += [(_JUMP_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _EPERM)]
    steps += [
        (_JUMP_EQUAL, 0, 5, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY, 1, 0, _CLONE_NEW),
        (_JUMP_ANY, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQUAL, 0, 3 + len(_FAMILIES), _REFUSED["socket"][column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_JUMP_EQUAL, left, 0, family) for left, family in zip(range(len(_FAMILIES), 0, -1), _FAMILIES, strict=True)),
        (_RETURN, 0, 0, _EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
        *_prlimit(column),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _packed(steps)


def of_their_parent(machine: str = "") -> bytes:
    """For the process that those are forked from: no threads, which a fork would leave behind, and no programs. As `struct sock_filter[]`."""
    column = _COLUMNS.index(machine or platform.machine())
    steps = [*_begin(column)]
    for name in ("execve", "execveat"):
        steps += [(_JUMP_EQUAL, 0, 1, _REFUSED[name][column]), (_RETURN, 0, 0, _EPERM)]
    steps += [
        (_JUMP_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _packed(steps)


def _begin(column: int) -> list[tuple[int, int, int, int]]:
    """Leaves the number of the call to be looked at. clone3 is not there: its arguments lie in memory, which a filter cannot read, and
    the C library then takes clone."""
    return [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, _ARCHES[column]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _OTHER_ABI),
        (_RETURN, 0, 0, _EPERM),
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ENOSYS),
    ]


def _prlimit(column: int) -> list[tuple[int, int, int, int]]:
    """Limits of itself only: others run as the same user. What follows is for all else."""
    return [
        (_JUMP_EQUAL, 0, 3, _PRLIMIT[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _EPERM),
    ]


def _packed(steps: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def put_on(program: bytes) -> None:
    """Holds this process, and what it forks, to `program` from now on. Raises OSError."""

    class Program(ctypes.Structure):
        _fields_ = (("size", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    said = Program(len(program) // 8, program)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(said), 0, 0):
        raise OSError(ctypes.get_errno(), "the filter for system calls cannot be put on")
