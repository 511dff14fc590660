"""Triton kernels that pay, each with its plain-torch twin."""
