"""Files that come in pieces, and go on where they broke off."""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from gateway import clock
from gateway.operations import quotas
from gateway.operations.model_files import SentFile
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.blobs import full
from gateway.storage.uploads import UploadRecord
from gateway.types import Principal
from idl.codes import Code, ServingError
from idl.tensors import invalid


@dataclass(frozen=True, slots=True)
class Upload:
    """One's own upload; `offset`: how many bytes have come."""

    record: UploadRecord
    offset: int


class Uploads:
    """The verbs on uploads. Thread-safe."""

    def __init__(self, storage: Storage, settings: Settings, now: clock.Clock = clock.now) -> None:
        self._storage = storage
        self._uploads = storage.uploads
        self._settings = settings
        self._now = now

    def begin(self, principal: Principal, file_name: str, size: int, sha256: str | None) -> Upload:
        """Raises too_large, and insufficient_capacity where too many are open or there would be no room for it in the user's quota."""
        limit = self._settings.max_upload_bytes
        if size > limit:
            raise ServingError(Code.TOO_LARGE, f"size: {size} bytes are more than the {limit} that a file may have")
        quotas.require(self._storage, principal.user_id, "bytes", size)
        quotas.require_room(self._storage, principal.user_id, size)
        now = self._now()
        expires = now + timedelta(seconds=self._settings.upload_ttl_s)
        record = UploadRecord(secrets.token_hex(16), principal.user_id, file_name, size, sha256, clock.to_text(now), clock.to_text(expires))
        self._uploads.create(record, self._settings.max_uploads)
        return Upload(record, 0)

    def read(self, principal: Principal, upload_id: str) -> Upload:
        """Raises not_found."""
        record = self._record(principal, upload_id)
        return Upload(record, self._uploads.received(record.id))

    def append(self, principal: Principal, upload_id: str, offset: int, pieces: Iterable[bytes]) -> Upload:
        """Writes `pieces` where the upload ends, which must be at `offset`. What came is kept however it breaks off.

        Raises not_found, conflict (another offset, or another request is at it), too_large, insufficient_capacity.
        """
        record = self._record(principal, upload_id)
        with self._uploads.held(record.id) as file:
            there = self._uploads.received(record.id)
            if offset != there:
                raise ServingError(Code.CONFLICT, f"the upload has {there} bytes, it cannot go on at {offset}")
            return Upload(record, self._uploads.append(file, pieces, record.size))

    def remove(self, principal: Principal, upload_id: str) -> None:
        """Raises not_found."""
        self._uploads.remove(self._record(principal, upload_id).id)

    @contextmanager
    def finished(self, principal: Principal, upload_id: str) -> Iterator[SentFile]:
        """The whole file, for one holder at a time. Whoever holds it renames or keeps it. Raises not_found, conflict for one that is not
        whole, and invalid_input for one whose bytes are not those that were announced; that is then removed."""
        record = self._record(principal, upload_id)
        with self._uploads.held(record.id) as file:
            there = self._uploads.received(record.id)
            if there != record.size:
                raise ServingError(Code.CONFLICT, f"upload: {there} of {record.size} bytes have come")
            try:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            except OSError as error:
                raise full(error) from error
            if record.sha256 not in (None, digest):
                self._uploads.remove(record.id)
                raise invalid(f"upload: the SHA-256 of what came is {digest}, {record.sha256} was announced; begin again")
            yield SentFile(record.file_name, self._uploads.path(record.id), digest, record.size)

    def _record(self, principal: Principal, upload_id: str) -> UploadRecord:
        record = self._uploads.find(principal.user_id, upload_id)
        if record is None or record.expires_at <= clock.to_text(self._now()):
            raise ServingError(Code.NOT_FOUND, f"there is no upload {upload_id[:64]!r}")
        if not self._uploads.path(record.id).exists():  # its file has become a model's, whose making then failed
            self._uploads.remove(record.id)
            raise ServingError(Code.NOT_FOUND, f"there is no upload {upload_id[:64]!r} any more: begin again")
        return record
