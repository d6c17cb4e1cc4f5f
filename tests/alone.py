"""What scripts/test runs by itself, after the rest."""

ALONE = (
    "containers/",
    "proofs/test_batcher.py",
    "proofs/test_crashes.py",
    "proofs/test_load_unload.py",
    "proofs/test_many_models.py",
    "proofs/test_overload.py",
    "proofs/test_reloads.py",
    "proofs/test_soak.py",
    "test_lane_trouble.py",
    "test_linger.py",
    "gateway/test_front.py",
    "e2e/test_hanging_model.py",
    "e2e/test_streaming.py",
    "inference_server/test_batching.py",
    "inference_server/test_grpc_connections.py",
    "inference_server/test_hang_watch.py",
    "inference_server/test_memory_limit.py",
    "inference_server/test_no_orphans.py",
    "inference_server/test_reserved_models.py",
    "inference_server/test_thrift_connections.py",
    "inference_server/test_warmup_samples.py",
    "inference_server/test_zygote.py",
)
"""Below tests/: what measures times or memory, counts what is left on the machine, or takes all of it."""
