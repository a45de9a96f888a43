"""Transports: how events leave. They translate and frame, and decide nothing."""
