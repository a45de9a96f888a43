"""The command line's clients: talk to a chatserver, and look at one through all that lies between."""
