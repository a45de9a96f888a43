"""The client half of the latency lab: connections that note when each event came, statistics, tables, pictures.

It knows the server by its wire alone, so `chatserver bench URL` measures any deployed one. The other half, with a
scripted model and other people's servers beside this one, is in `benchmarks/` of the repository and is built on this.
"""
