"""The report as one HTML file."""
def html(recording, chapters, earlier):
    return "<p>soon"
