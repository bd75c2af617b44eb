"""The measurements of `bash benchmarks/gpu.sh`, a script each."""
