"""Pictures: the only room that imports Matplotlib."""
