"""Outboard beside Triton (Python backend), KServe, MLServer and LitServe: the same models, cores and load generators, one run."""
