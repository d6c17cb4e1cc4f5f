"""Side-by-side measurements; `benchmarks/run` prints and stores them, `benchmarks/report` renders them."""
