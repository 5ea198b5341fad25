"""`lossbook serve`: Tinker's protocol over HTTP, on the models of this machine."""
