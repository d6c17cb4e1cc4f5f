"""The model repository on disk: `<root>/<model>/<integer version>/model.onnx`, with `model.toml` or `config.pbtxt` beside the versions.

Several roots are served as one; where two hold the same model the first is taken. Beside them may be the users' repository, whose
models are loaded only on order: see `user_models`.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from idl.codes import Code, ServingError
from inference_server import errors, model_folders, model_links, pushed_files, repository_model, user_models, whole_files
from inference_server.file_stamps import look
from inference_server.load_order import MODEL_NAME, PIN_FILE, LoadOrder
from inference_server.model_settings import ModelSettings
from inference_server.pushed_files import PushedFiles
from inference_server.repository_model import RepositoryModel
from inference_server.spool import Spooled
from inference_server.types import FileHeader, StoredFile
from inference_server.user_models import NAME_RULE, USER_NAME, UserModels


class Repository:
    """`roots`: the first holds what is pushed for models that no root has yet, unless `push_root` says another. `users`: the users'
    repository, None for none. Thread-safe.
    """

    def __init__(self, roots: Sequence[Path], push_root: Path | None = None, users: UserModels | None = None) -> None:
        self._roots = tuple(roots)
        self._push_root = push_root or self._roots[0]
        self.users = users
        self._pushed = PushedFiles()
        self._lock = threading.Lock()
        self._known: dict[str, tuple[object, RepositoryModel]] = {}

    @property
    def push_root(self) -> Path:
        return self._push_root

    def names(self) -> tuple[str, ...]:
        """Every model that some root, or the users' repository, has, sorted."""
        theirs = self.users.names() if self.users is not None else ()
        return tuple(sorted({*self.operators(), *theirs}))

    def on_order(self) -> tuple[str, ...]:
        """Of the users' models those that were loaded on order and not unloaded since: what a start loads of them."""
        return tuple(name for name in self.users.marked() if not self.is_operators(name)) if self.users is not None else ()

    def operators(self) -> tuple[str, ...]:
        """Every model that some root has, sorted."""
        found: set[str] = set()
        for root in self._roots:
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(root) if entry.is_dir() and MODEL_NAME.fullmatch(entry.name))
        return tuple(sorted(name for name in found if self._folder(name) is not None))

    def is_user(self, name: str) -> bool:
        """Whether `name` is a model of the users' repository."""
        return self.users is not None and not self.is_operators(name) and self.users.has(name)

    def folders(self) -> dict[str, Path]:
        """Every folder that has a model's name, whatever is in it; of two with one name the first root's. Raises OSError for a root."""
        found: dict[str, Path] = {}
        for root in self._roots:
            for entry in os.scandir(root):
                if entry.is_dir() and MODEL_NAME.fullmatch(entry.name):
                    found.setdefault(entry.name, root / entry.name)
        return found

    def devices(self) -> tuple[int, ...]:
        """Of each root the file system that it is on: another one means that something was mounted, or is no more. Raises OSError."""
        return tuple(root.stat().st_dev for root in self._roots)

    def read(self, name: str) -> RepositoryModel | None:
        """What the disk says of `name` now; None where no root has it."""
        folder = self._folder(name)
        return None if folder is None else self._read(name, folder)

    def peek(self, name: str) -> RepositoryModel | None:
        """What `read` gives, out of memory where the folder looks as it did the last time: for answers, not for loads."""
        folder = self._folder(name)
        if folder is None:
            return None
        try:
            seen = tuple(look(folder))
        except OSError:  # just removed
            return None
        with self._lock:
            known = self._known.get(name)
        if known is None or known[0] != seen:
            known = (seen, self._read(name, folder))
            with self._lock:
                self._known[name] = known
        return known[1]

    def forget(self, name: str) -> None:
        """A model that was removed: names come and go."""
        with self._lock:
            self._known.pop(name, None)

    def ordered(self, name: str, order: LoadOrder, spooled: Spooled | None) -> RepositoryModel | None:
        """What a load request describes: `spooled` are its files, without them those of the repository are meant.

        A configuration in the request takes the place of `config.pbtxt` and stands above `model.toml`. None where there are no files.
        """
        folder = self._folder(name)
        if spooled is None:
            found = None if folder is None else self._read(name, folder, order.config)
        else:
            found = replace(repository_model.read(name, spooled.folder, order.config), spooled=spooled)
            was_public = folder is None or self._read(name, folder).settings.public
            if not was_public:  # files in a request do not open a private model to everybody
                found = replace(found, settings=replace(found.settings, public=False))
            if self.is_user(name):
                found = user_models.restricted(found)
        return None if found is None else replace(found, pinned=order.version)

    def _read(self, name: str, folder: Path, sent: str = "") -> RepositoryModel:
        theirs = self.users is not None and folder.parent == self.users.root
        if link := model_links.leaving(folder, (folder,) if theirs else self._roots):
            problem = f"{link} is a link that leads out of the model repositories; where it leads to may be named as one of them"
            found = RepositoryModel(name, folder, model_folders.versions(folder), ModelSettings(public=False), problem)
        else:
            found = repository_model.read(name, folder, sent)
        return user_models.restricted(found) if theirs else found

    def _folder(self, name: str) -> Path | None:
        if not MODEL_NAME.fullmatch(name):
            return None
        for root in self._roots:
            folder = root / name
            if folder.is_dir() and model_folders.is_model(folder):
                return folder
        return self.users.folder(name) if self.users is not None and not self.is_operators(name) else None

    def pin(self, model: RepositoryModel, version: int) -> bool:
        """Remembers which version serves, over restarts; 0: the version policy decides again. False where the folder cannot be written."""
        path = model.folder / PIN_FILE
        try:
            if version:
                whole_files.write(path, f"{version}\n")
            else:
                path.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def put_file(self, header: FileHeader, chunks: Iterator[bytes]) -> StoredFile:
        """Stores one file. Raises invalid_input (names, size, hash), already_exists (other bytes are there, or the name is the other
        repository's), insufficient_capacity (disk), unsupported (there is no users' repository).
        """
        pushed_files.check(header)
        name = header.model_name
        if header.user:
            return self._pushed.store(self._users_root(name), header, chunks)
        if self.users is not None and self.users.has(name):
            raise ServingError(Code.ALREADY_EXISTS, f"model {name!r} is in the users' repository: an operator's needs another name")
        root = self._push_root if (folder := self._folder(name)) is None else folder.parent
        return self._pushed.store(root, header, chunks)

    def _users_root(self, name: str) -> Path:
        if self.users is None:
            raise errors.unsupported("this host has no repository of users' models (OUTBOARD_SERVER_USER_MODELS)")
        if not USER_NAME.fullmatch(name):
            raise errors.invalid_input(f"model name {name[:200]!r} is not {NAME_RULE}")
        if self.is_operators(name):
            raise ServingError(Code.ALREADY_EXISTS, f"model {name!r} is in the operator's repository: a user's needs another name")
        return self.users.root

    def is_operators(self, name: str) -> bool:
        """Whether an operator's repository has a folder of that name."""
        return bool(MODEL_NAME.fullmatch(name)) and any((root / name).is_dir() for root in self._roots)

    def check_one_owner(self, name: str) -> None:
        """Raises already_exists where both an operator's repository and the users' have the name."""
        if self.users is not None and self.users.has(name) and self.is_operators(name):
            raise ServingError(
                Code.ALREADY_EXISTS, f"model {name!r} is in the operator's repository and in the users': one of them has to be removed"
            )

    def mark(self, name: str, *, loaded: bool) -> bool:
        """Remembers of a user's model, over a restart, whether it serves; of others nothing. False where that cannot be written."""
        if self.users is None or self.is_operators(name) or not self.users.has(name):
            return True
        return self.users.mark(name, loaded=loaded)
