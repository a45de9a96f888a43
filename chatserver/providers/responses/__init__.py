"""Responses, the newer API of OpenAI: its requests and its events. The server is asked to store nothing."""
