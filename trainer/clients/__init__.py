"""What a user holds: the service, its clients, and futures."""
