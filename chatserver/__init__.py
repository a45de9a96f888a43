"""One event log, two transports: the server between an AI agent and its users."""

__version__ = "0.1.0"
