"""What the GPU path is measured by: ``python -m benchmarks.gpu kernels | engine | applications | cost_model | all``.

Each runs unattended in less than eight minutes on an H200, prints a table and writes ``results/gpu_<name>.json``. With
``--dry-run`` everything runs at toy size on a CPU, the Triton kernels interpreted, and nothing is written.
"""
