"""The classes that thriftpy2 makes from `inference.thrift`, loaded once per process."""

from pathlib import Path
from typing import Any

import thriftpy2

schema: Any = thriftpy2.load(str(Path(__file__).parent / "inference.thrift"), module_name="outboard_inference_thrift")
Inference: Any = schema.Inference
METHODS: tuple[str, ...] = tuple(Inference.thrift_services)
"""The verbs, in the IDL's order."""
