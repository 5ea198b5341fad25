"""What a request goes through before any route: the connection, the watch that answers for everything, the guard."""
