"""What accounts look like in bodies and answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.operations import confirmations, names, passwords
from gateway.operations.quotas import Share
from gateway.shapes import Object, OrNull, Reasons, Text, Whole, answer, optional, required
from gateway.storage.quotas import KINDS
from gateway.storage.users import UserRecord
from gateway.types import Role


@dataclass(frozen=True, slots=True)
class Judged:
    """Text about which an operation's own rule says what is wrong, "" for nothing."""

    rule: Callable[[str], str]
    told: Mapping[str, Any] = field(default_factory=dict)

    def check(self, value: Any, where: str, reasons: Reasons) -> Any:
        if not isinstance(value, str):
            reasons[where] = "must be text"
        elif any(0xD800 <= ord(character) < 0xE000 for character in value):
            reasons[where] = "is not valid Unicode text"
        elif reason := self.rule(value):
            reasons[where] = reason
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", **self.told}


def _anything(text: str) -> str:
    return ""


USERNAME = Judged(names.reason_against, {"pattern": f"^{names.PATTERN}$"})
EMAIL = Judged(confirmations.reason_against_email, {"format": "email", "maxLength": confirmations.MAX_EMAIL})
NEW_PASSWORD = Judged(
    passwords.reason_against, {"minLength": passwords.MIN_LENGTH, "maxLength": passwords.MAX_LENGTH, "format": "password"}
)
PASSWORD = Judged(_anything, {"format": "password"})
"""One that may be wrong."""
SECRET = Judged(_anything)
CODE = Text(1, 20)
TIME = Text(format="date-time")
ROLE = Text(choices=tuple(role.value for role in Role))
_ACCOUNT = {
    "username": required(USERNAME),
    "email": required(OrNull(EMAIL)),
    "role": required(ROLE),
    "created_at": required(TIME),
    "updated_at": required(TIME),
}
ACCOUNT = Object(
    _ACCOUNT
    | {
        "email_verified_at": optional(TIME, "there once the address was confirmed"),
        "pending_email": optional(EMAIL, "an address that takes the other one's place when it is confirmed"),
        "avatar": optional(Text(), "where the picture is, for an account that has one"),
    },
    "Account",
)
SHARE = answer("Share", {"used": (Whole(), ""), "limit": (OrNull(Whole()), "null: none")})
SHARES = answer("Shares", dict.fromkeys(KINDS, (SHARE, "")))
ADMIN_ACCOUNT = Object(
    _ACCOUNT
    | {
        "email_verified_at": required(OrNull(TIME)),
        "pending_email": required(OrNull(EMAIL)),
        "disabled_at": required(OrNull(TIME)),
        "deleted_at": required(OrNull(TIME)),
        "quota": required(Object({kind: optional(Whole()) for kind in KINDS}), "what differs from the settings; 0: no limit"),
    },
    "AdminAccount",
)


def account(user: UserRecord) -> dict[str, Any]:
    """As its owner sees it."""
    body: dict[str, Any] = _common(user)
    body |= {"email_verified_at": user.email_verified_at} if user.email_verified_at else {}
    body |= {"pending_email": user.pending_email} if user.pending_email else {}
    return body | ({"avatar": "/v1/me/avatar"} if user.avatar_sha256 else {})


def admin_account(user: UserRecord) -> dict[str, Any]:
    """As administrators see it."""
    return _common(user) | {
        "email_verified_at": user.email_verified_at,
        "pending_email": user.pending_email,
        "disabled_at": user.disabled_at,
        "deleted_at": user.deleted_at,
        "quota": dict(user.quota),
    }


def _common(user: UserRecord) -> dict[str, Any]:
    return {
        "username": user.name,
        "email": user.email,
        "role": user.role.value,
        "created_at": user.created_at,
        "updated_at": user.updated_at,
    }


def shares(found: Mapping[str, Share]) -> dict[str, Any]:
    return {kind: {"used": share.used, "limit": share.limit or None} for kind, share in found.items()}
