"""The latency lab: this server, what one would otherwise write, and the floor, measured side by side. See README."""
