"""Parts of training.bench.gpu: checks and measurements on one device, each in a process of its own.

On CUDA the sizes are those of femto and of the 1.2b, on a CPU they are tiny; the functions are the same.
"""
