"""The server process: uvicorn, with all that touches its insides, and peers that are gone."""
