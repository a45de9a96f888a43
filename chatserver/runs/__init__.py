"""Runs: one answer of the agent each, from its start until its log is forgotten."""
