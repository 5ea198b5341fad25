"""A folder to be put on the path: the module `tinker` in it stands in for the package of that name."""
