"""AI Act documents: what only a provider knows, the forms, and their files."""
