"""Chat Completions, the API of OpenAI that most model servers have: its requests, its chunks, its refusals."""
