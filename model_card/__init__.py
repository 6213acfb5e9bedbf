"""How a Pleias model ships: the release as a folder."""
