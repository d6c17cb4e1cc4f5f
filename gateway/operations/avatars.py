"""The pictures of accounts: whatever comes becomes a small square JPEG file, made here; nothing of the file that was sent is kept."""

import io
from datetime import datetime

from PIL import Image, ImageOps

from gateway.operations import images
from gateway.settings import Settings
from gateway.storage import Storage
from gateway.storage.audit import Doer
from gateway.types import Principal
from idl.codes import Code, ServingError

MOST_BYTES = 5 << 20
MOST_PIXELS = 25_000_000
SIDE = 256
TYPE = "image/jpeg"
TAKEN = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "application/octet-stream")
"""What a body may be called; its content decides."""
_QUALITY = 88


def put(storage: Storage, settings: Settings, caller: Principal, file: bytes, now: datetime, doer: Doer) -> None:
    """Raises invalid_input for what is no picture, too_large for one with too many pixels, insufficient_capacity for a full disk."""
    sha256, _ = storage.blobs.put([small(file, min(MOST_PIXELS, settings.max_image_pixels))], now)
    storage.users.set_avatar(caller.user_id, sha256, now, doer=doer)


def small(file: bytes, most_pixels: int) -> bytes:
    """A JPEG file of SIDE x SIDE pixels, out of the picture's middle. Raises as `put`."""
    picture = ImageOps.fit(images.read("the picture", file, "RGB", most_pixels), (SIDE, SIDE), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    clean = Image.new("RGB", picture.size)  # pixels alone: neither a profile nor a note goes with it
    clean.paste(picture)
    clean.save(made, "JPEG", quality=_QUALITY)
    return made.getvalue()


def read(storage: Storage, name: str) -> tuple[str, bytes]:
    """(SHA-256, file) of somebody's picture. Raises not_found alike for nobody, and for somebody without one."""
    user = storage.users.by_name(name)
    if user is None or user.avatar_sha256 is None:
        raise ServingError(Code.NOT_FOUND, "there is no such picture")
    return user.avatar_sha256, storage.blobs.read(user.avatar_sha256)
