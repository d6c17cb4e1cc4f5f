"""What the server tells a front process when it starts it."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Configuration:
    """Sizes are bytes, times seconds. `run_dir`: where the routes are published; `token_file`: "" where there is none; `socket`: where nginx is to connect."""

    run_dir: str
    token: str
    max_message_bytes: int
    default_timeout_s: float
    log_level: str
    token_file: str = ""
    socket: str = ""
    trace_endpoint: str = ""
    trace_rate: float = 1.0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Configuration":
        return cls(**json.loads(text))
