"""Parts of training.app: the page of a Space, which runs without this package, and the tabs that call it."""
