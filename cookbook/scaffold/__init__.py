"""Starting files for a loss of one's own: the loss and its test, by family and by what one value is about."""
