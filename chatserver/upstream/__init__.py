"""One HTTP/1.1 connection to an upstream and the events that come over it. No file here knows what a model is."""
