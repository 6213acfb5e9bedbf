"""Command line, files, languages, generation and statistics that every program shares; imports no other package."""
