"""What Outboard is compared with: the same model inside the web application's own worker processes."""

MODEL_VARIABLE = "BENCHMARK_MODEL"
"""A symbolic link to `<version>/model.onnx`: it is changed, and the workers reloaded, to change the model."""
LABELS_VARIABLE = "BENCHMARK_LABELS"
