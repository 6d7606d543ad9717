"""A pretend device, `pretend`, for the tests of devices on a machine that has none.

Its memory and its kernels are the CPU's, and it refuses operands on two devices, as CUDA does. It is an extension of
PyTorch (`pretend_device.cpp`), compiled by `build` in 12 seconds of CPU time. It stays in a process once it is loaded:
tests use it in a process of its own, `pytest -p harness.tests.pretend_device.plugin --device pretend`.
"""
