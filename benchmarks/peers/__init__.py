"""What one would write without this server, each as a good user of its library would: one small honest file each.

All answer the lab's requests on the routes of the wire contract, with its `start`, `token` and `done`, so that one
client drives them all; they keep nothing, resume nothing and cancel nothing. `python -m benchmarks.peers.NAME PORT`
serves one, with OPENAI_BASE_URL naming the model.
"""
